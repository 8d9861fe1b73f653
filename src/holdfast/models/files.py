"""What is wrong with a file, told from its first bytes before any parser sees it."""

from pathlib import Path

from holdfast.errors import ModelError
from holdfast.files import check_file

_LFS_POINTER = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html")


def existing_file(path: str | Path) -> Path:
    """Return ``path`` as a :class:`~pathlib.Path` once it is known to be a file that may hold a model.

    Raises
    ------
    ModelError
        If it is missing, is no regular file, is empty, or is what a failed download leaves behind: an HTML page or the
        pointer that Git LFS puts in place of a large file.
    """
    try:
        path = Path(path)
    except TypeError:
        raise ModelError(f"{path!r} is no path of a file") from None
    size = check_file(path, ModelError).st_size
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise ModelError(f"{path}: the file is empty; download or save it again")
    if head.startswith(_LFS_POINTER):
        raise ModelError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if head.startswith(_HTML):
        raise ModelError(f"{path}: an HTML page, not a model; the download was answered by a web page, so get it again")
    return path
