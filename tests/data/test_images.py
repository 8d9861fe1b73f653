import sys

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
