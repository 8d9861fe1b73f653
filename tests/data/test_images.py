import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch

from helpers.sources import check_source, drain, read
from holdfast.data.images import load_images
from holdfast.errors import DataError

Image = pytest.importorskip("PIL.Image")


def picture(seed, channels=3, height=5, width=4):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder_of(root, channels=3, classes=("zebra", "ant"), each=6):
    """Pictures on disk, and what they must come back as: classes and files in the order of their names."""
    pixels, y = [], []
    for label, name in enumerate(sorted(classes)):
        for number in range(each):
            pixels.append(picture(10 * label + number, channels))
            y.append(label)
            write(root / name / f"{number}.png", pixels[-1])
    x = np.stack(pixels).astype(np.float32) / 255
    return torch.from_numpy(x[:, None] if channels == 1 else x.transpose(0, 3, 1, 2)), torch.tensor(y)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_exactly(tmp_path, channels):
    x, y = folder_of(tmp_path / "pets", channels)
    source = load_images(tmp_path / "pets", "test")
    whole = check_source(source, count=12, shape=(channels, 5, 4))
    assert torch.equal(whole.x, x)
    assert torch.equal(whole.y, y)
    assert source.classes == ("ant", "zebra")
    assert source.name == "pets"


def test_the_split_picks_its_folder(tmp_path):
    folder_of(tmp_path / "train")
    x, _ = folder_of(tmp_path / "val", each=2)
    source = load_images(tmp_path, "val")
    assert torch.equal(read(source, 3).x, x)
    assert source.name == f"{tmp_path.name} val"
    with pytest.raises(DataError, match=rf'^{tmp_path}: no split "test"; it has train, val$'):
        load_images(tmp_path, "test")


def test_a_class_may_be_called_train(tmp_path):
    x, _ = folder_of(tmp_path, classes=("train", "car"))
    source = load_images(tmp_path, "test")
    assert source.classes == ("car", "train")
    assert torch.equal(read(source, 5).x, x)


def test_the_first_file_sets_the_colours(tmp_path):
    write(tmp_path / "a" / "0.png", picture(0))
    write(tmp_path / "a" / "1.png", picture(1, channels=1))
    write(tmp_path / "b" / "0.png", picture(2, channels=4))
    whole = read(load_images(tmp_path, "test"), 2)
    grey = torch.from_numpy(picture(1, channels=1).astype(np.float32) / 255)
    assert torch.equal(whole.x[1], grey.expand(3, 5, 4))
    opaque = torch.from_numpy(picture(2, channels=4)[..., :3].astype(np.float32) / 255)
    assert torch.equal(whole.x[2], opaque.permute(2, 0, 1))


def test_hidden_files_are_left_out(tmp_path):
    folder_of(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant" / ".DS_Store").write_bytes(b"x")
    assert drain(load_images(tmp_path, "test")) == 12


def test_files_are_opened_when_their_turn_comes(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "zebra" / "5.png").write_bytes(b"not an image")
    source = load_images(tmp_path, "test")
    assert drain(source, 4, 0, 11) == 11
    with pytest.raises(DataError, match=rf"^{tmp_path}/zebra/5.png: not a readable image \(.+\); mend or remove it$"):
        drain(source, 4, 11)


def test_broken_files_are_named(tmp_path):
    folder_of(tmp_path)
    path = tmp_path / "ant" / "0.png"
    for broken in (b"", path.read_bytes()[:60]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"^{path}: not a readable image"):
            load_images(tmp_path, "test")


def test_sizes_must_agree(tmp_path):
    folder_of(tmp_path)
    write(tmp_path / "zebra" / "2.png", picture(0, height=4, width=5))
    with pytest.raises(DataError, match=rf"^{tmp_path}/zebra/2.png: 4 x 5 pixels where the first is 5 x 4; resize it$"):
        drain(load_images(tmp_path, "test"))


def test_more_than_eight_bits_are_not_clipped(tmp_path):
    write(tmp_path / "a" / "0.png", np.full((5, 4), 1000, np.uint16))
    with pytest.raises(DataError, match=r"a/0.png: more than 8 bits a channel; save it with 8, or the data as npz$"):
        load_images(tmp_path, "test")


def png(width, height, depth=8, data=b""):
    """A PNG file in RGB that says what it wants of its size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(form, *frames, **options):
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if images[1:] else {}
    images[0].save(file, form, **more, **options)
    return file.getvalue()


def refused(tmp_path, content, words):
    """A file is refused in one line wherever it stands in its folder."""
    folder_of(tmp_path)
    for name in ("ant/0.png", "zebra/5.png"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{path}: .*{words}[^\n]*$"):
            drain(load_images(tmp_path, "test"))
        path.write_bytes(whole)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_every_format_that_loses_nothing_gives_its_pixels(tmp_path, form):
    pixels = np.random.default_rng(0).choice([0, 85, 255], (5, 4, 3)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0").write_bytes(encoded(form, pixels, **({"lossless": True} if form == "WEBP" else {})))
    found = read(load_images(tmp_path, "test"), 1).x[0]
    assert torch.equal(found, torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255))


@pytest.mark.parametrize("deep", [True, False])
def test_sixteen_bits_a_channel_in_colour_are_not_rounded(tmp_path, deep):
    rows = b"".join(b"\0" + bytes(4 * 3 * (2 if deep else 1)) for _ in range(5))
    content = png(4, 5, 16 if deep else 8, rows)
    if deep:
        refused(tmp_path, content, "more than 8 bits a channel")
        refused(tmp_path, b"P6 4 5 65535\n" + bytes(120), "more than 8 bits a channel")
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "0.png").write_bytes(content)
        assert drain(load_images(tmp_path, "test")) == 1


def test_an_image_never_starts_a_program(tmp_path, monkeypatch):
    trace, programs = tmp_path / "trace", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\nshowpage\n%%EOF\n"
    refused(tmp_path / "images", eps, r"not a readable image \(none of PNG, JPEG, BMP, GIF, TIFF, WEBP, PPM\)")
    assert not trace.exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10_000, 13_000, 2**31 - 1])
def test_sizes_beyond_reason_are_refused_before_anything_is_decoded(tmp_path, side):
    refused(tmp_path, png(side, side), "pixels")


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_an_example_has_one_frame(tmp_path, form):
    refused(tmp_path, encoded(form, picture(0), picture(1), picture(2)), "several frames; save the one that is meant")


def test_previews_after_the_picture_of_a_camera_are_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    for name, frames in (("0.jpg", [picture(0)]), ("1.jpg", [picture(0), picture(1)])):
        (tmp_path / "a" / name).write_bytes(encoded("MPO", *frames))
    alone, first = read(load_images(tmp_path, "test"), 2).x
    assert torch.equal(alone, first)


def test_names_that_are_no_text(tmp_path):
    for name in (b"b\xff", b"a"):
        folder = tmp_path / os.fsdecode(b"set\xfe") / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / os.fsdecode(b"\xfd.png")).write_bytes(png(4, 5, data=bytes(5 * 13)))
    source = load_images(tmp_path / os.fsdecode(b"set\xfe"), "test")
    assert source.classes == ("a", r"b\udcff")
    assert source.name == r"set\udcfe"
    assert drain(source) == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "zebra" / "5.png").unlink()
    os.mkfifo(tmp_path / "zebra" / "5.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/zebra/5.png: a pipe, a socket or a device, not a file"):
        drain(load_images(tmp_path, "test"))


def test_folders_that_hold_nothing(tmp_path):
    takes = "images:DIR takes a folder that holds one folder of images a class"
    with pytest.raises(DataError, match=rf"^{tmp_path}/none: no such folder; {takes}$"):
        load_images(tmp_path / "none", "test")
    write(tmp_path / "0.png", picture(0))
    with pytest.raises(DataError, match=rf"^{tmp_path}: no images; {takes}$"):
        load_images(tmp_path, "test")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    folder_of(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs Pillow; install it with: pip install 'holdfast\[images\]'$"):
        load_images(tmp_path, "test")
