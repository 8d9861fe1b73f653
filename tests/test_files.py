"""Whether what somebody named is a file."""

import errno
import os
import socket
from pathlib import Path

import pytest

from holdfast.errors import DataError, RunError, SettingError
from holdfast.files import check_file, is_file, is_folder, read_text, write_whole
from holdfast.words import plain


def words(path, read=check_file):
    with pytest.raises(SettingError) as caught:
        read(path, SettingError)
    assert str(caught.value).startswith(f"{plain(path)}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", [check_file, read_text])
def test_what_is_no_file_is_said(tmp_path, read):
    assert "no such file" in words(tmp_path / "none", read)
    assert "is a folder" in words(tmp_path, read)
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in words(tmp_path / "pipe", read)
    assert "a device" in words(Path("/dev/zero"), read)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "s"))
        assert "a socket" in words(tmp_path / "s", read)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in words(tmp_path / "loop", read)
    assert "cannot be read" in words(tmp_path / ("x" * 500), read)
    assert "cannot be read" in words(tmp_path / "a\0b", read)
    (tmp_path / "file").touch()
    assert "no such file" in words(tmp_path / "file" / "below", read)


def test_a_link_to_a_file_is_one(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert check_file(tmp_path / "link", DataError).st_size == 4
    assert read_text(tmp_path / "link", DataError) == "text"
    assert is_file(tmp_path / "link")
    assert is_folder(tmp_path)


def test_asking_never_raises(tmp_path):
    for path in (tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path / "none", Path()):
        assert not is_file(path)
    assert not is_folder(tmp_path / ("x" * 5000))


def test_text_is_utf8_and_small(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"ab\xff")
    assert "not text in UTF-8 (byte 2)" in words(path, read_text)
    with path.open("wb") as file:
        file.truncate(2**40)  # of which nothing lies on the disk
    assert f"{2**40} bytes" in words(path, read_text)


def written(path, content="new"):
    write_whole(path, lambda part: part.write_text(content), "give another")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    written(path, "old")
    written(path)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    # A link is replaced, and what it shows stays.
    (tmp_path / "link").symlink_to(path)
    written(tmp_path / "link", "newer")
    assert path.read_text() == "new"

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="file: No space left on device; give another"):
        written(path, "newest")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file", "file.part"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.with_name("precious"))], ids=["pipe", "dir", "to"]
)
def test_what_is_no_file_is_not_written_to(tmp_path, name, make):
    (tmp_path / "precious").write_text("old")
    make(tmp_path / name)
    if name == "file" and (tmp_path / name).is_symlink():
        written(tmp_path / "file")
    else:
        with pytest.raises(RunError, match=rf"{name}: is no file, and one is to be written there; delete it"):
            written(tmp_path / "file")
        assert os.path.lexists(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "old"


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_not_written_to(tmp_path, name):
    with pytest.raises(RunError, match="give another") as error:
        written(tmp_path / name)
    assert "\n" not in str(error.value)
