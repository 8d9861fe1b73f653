import gzip
import struct

import numpy as np
import pytest
import torch

from helpers.shared import SHARED, needs_shared
from helpers.sources import check_source, drain, peak_memory, read
from holdfast.data.idx import is_idx_folder, load_idx
from holdfast.errors import DataError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write(folder, name, data, gz):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}{'.gz' if gz else ''}").write_bytes(gzip.compress(data) if gz else data)


def folder_of(tmp_path, images, labels, gz):
    write(tmp_path / "set", IMAGES, idx(images), gz)
    write(tmp_path / "set", LABELS, idx(labels), gz)
    return tmp_path / "set"


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (83, 5, 4))
    images[0].flat[:2] = 0, 255
    return images, rng.integers(0, 10, 83)


@pytest.mark.parametrize("gz", [False, True])
def test_arrays_come_back_exactly(tmp_path, arrays, gz):
    images, labels = arrays
    source = load_idx(folder_of(tmp_path, images, labels, gz), "test")
    whole = check_source(source, count=83, shape=(1, 5, 4))
    assert torch.equal(whole.x[:, 0], torch.from_numpy(images.astype(np.float32) / 255))
    assert torch.equal(whole.y, torch.from_numpy(labels))
    assert source.name == "set test"
    assert source.classes is None


def test_the_split_picks_the_files(tmp_path, arrays):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz=True)
    write(folder, "train-images-idx3-ubyte", idx(images[:40]), gz=False)
    write(folder, "train-labels-idx1-ubyte", idx(labels[:40]), gz=True)
    assert len(load_idx(folder, "train")) == 40
    assert len(load_idx(folder, "test")) == 83
    with pytest.raises(DataError, match=r'^mnist: no split "val"; use train or test$'):
        load_idx(folder, "val")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"^{tmp_path}: no file {IMAGES} or {IMAGES}.gz; mnist:DIR takes the folder"):
        load_idx(tmp_path, "test")
    assert not is_idx_folder(tmp_path)


@pytest.mark.parametrize("gz", [False, True])
def test_magic_number(tmp_path, arrays, gz):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz)
    write(folder, IMAGES, struct.pack(">IIII", 2049, 1, 2, 2), gz)
    with pytest.raises(DataError, match=rf"/{IMAGES}(.gz)?: magic number 2049 is not 2051; is it the file it says\?$"):
        load_idx(folder, "test")


@pytest.mark.parametrize("gz", [False, True])
def test_truncated_header(tmp_path, arrays, gz):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz)
    write(folder, LABELS, b"\0\0\x08", gz)
    with pytest.raises(DataError, match=rf"/{LABELS}(.gz)?: truncated in its header; get the file again$"):
        load_idx(folder, "test")


@pytest.mark.parametrize(("change", "size"), [(-3, 1673), (1, 1677)])
def test_plain_file_of_the_wrong_length(tmp_path, arrays, change, size):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz=False)
    data = idx(images)
    write(folder, IMAGES, data[:change] if change < 0 else data + b"\0", gz=False)
    with pytest.raises(DataError, match=rf"/{IMAGES}: {size} bytes, but its header says 1676; get the file again$"):
        load_idx(folder, "test")


def test_gzipped_file_of_the_wrong_length(tmp_path, arrays):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz=True)
    write(folder, IMAGES, idx(images)[:-3], gz=True)
    source = load_idx(folder, "test")
    assert len(read(source, 7, 0, 82)) == 82  # what comes before the fault can be read
    with pytest.raises(DataError, match=rf"/{IMAGES}.gz: truncated in row 82 of 83; get the file again$"):
        drain(source)
    write(folder, IMAGES, idx(images) + b"\0", gz=True)
    with pytest.raises(DataError, match=rf"/{IMAGES}.gz: goes on after its 83 rows; get the file again$"):
        drain(load_idx(folder, "test"))


def test_gzipped_header_that_cannot_be_true(tmp_path, arrays):
    _, labels = arrays
    folder = folder_of(tmp_path, np.zeros((83, 1, 1)), labels, gz=True)
    write(folder, IMAGES, struct.pack(">4I", 2051, 83, 2**32 - 1, 2**32 - 1), gz=True)
    with pytest.raises(DataError, match=rf"/{IMAGES}.gz: \d+ bytes, but its header says \d+; get the file again$"):
        load_idx(folder, "test")


def test_broken_gzip(tmp_path, arrays):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels, gz=True)
    whole = (folder / f"{IMAGES}.gz").read_bytes()
    for broken in (whole[:-9], whole[:-8] + bytes(4) + whole[-4:]):  # cut; a wrong checksum
        (folder / f"{IMAGES}.gz").write_bytes(broken)
        with pytest.raises(DataError, match=rf"/{IMAGES}.gz: cannot be read \(.+\); check the path or get the file"):
            drain(load_idx(folder, "test"))
    (folder / f"{IMAGES}.gz").write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=rf"/{IMAGES}.gz: cannot be read \(Not a gzipped file"):
        load_idx(folder, "test")


def test_images_and_labels_that_differ_in_number(tmp_path, arrays):
    images, labels = arrays
    folder = folder_of(tmp_path, images, labels[:-1], gz=False)
    with pytest.raises(DataError, match=rf"/{IMAGES} has 83 images, .*/{LABELS} 82 labels; take a pair$"):
        load_idx(folder, "test")


def test_no_images(tmp_path):
    folder = folder_of(tmp_path, np.zeros((0, 5, 4)), np.zeros(0), gz=False)
    with pytest.raises(DataError, match=r"^set test: the data set is empty; give at least one example$"):
        load_idx(folder, "test")


@pytest.mark.parametrize("gz", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path, gz):
    count = 60 * 2**20 // 1024
    images = np.zeros((count, 32, 32), np.uint8)
    images[:, 0, 0] = np.arange(count) % 256
    source = load_idx(folder_of(tmp_path, images, np.zeros(count), gz), "test")
    del images
    with peak_memory(6 * 2**20):
        assert drain(source) == count
        assert drain(source, start=count - 10) == 10


@needs_shared
def test_mnist():
    source = load_idx(SHARED / "data" / "mnist", "test")
    assert (len(source), source.shape, source.name) == (10000, (1, 28, 28), "mnist test")
    whole = read(source, 1000)
    # The counts of the official test labels.
    assert whole.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert whole.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    raw = gzip.decompress((SHARED / "data" / "mnist" / f"{IMAGES}.gz").read_bytes())
    sums = np.frombuffer(raw, np.uint8, offset=16).reshape(10000, -1).sum(1, dtype=np.int64)
    assert torch.equal((whole.x.double() * 255).round().sum((1, 2, 3)).long(), torch.from_numpy(sums))
    # The mean and deviation that everyone normalises with, of the training images.
    train = read(load_idx(SHARED / "data" / "mnist", "train"), 1000)
    assert len(train) == 60000
    assert train.x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert train.x.std().item() == pytest.approx(0.3081, abs=5e-5)


@needs_shared
def test_fashion_mnist():
    source = load_idx(SHARED / "data" / "fashion_mnist", "test")
    assert read(source, 500).y.bincount().tolist() == [1000] * 10
