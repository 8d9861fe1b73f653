import io
import re
import zipfile

import numpy as np
import pytest
import torch

from helpers.shared import SHARED, needs_shared
from helpers.sources import check_source, drain, peak_memory, read
from holdfast.data.npz import load_npz
from holdfast.errors import DataError

SAVE = {"stored": np.savez, "compressed": np.savez_compressed}
COUNT = 75


def saved(tmp_path, *, save=np.savez, **arrays):
    path = tmp_path / "set.npz"
    save(path, **arrays)
    return path


def labels(count=COUNT):
    return np.arange(count) % 10


def numbers(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def error(path, text, **options):
    """The line that loading, or at the latest reading, fails with."""
    with pytest.raises(DataError) as caught:
        drain(load_npz(path, "test", **options))
    line = str(caught.value)
    assert line == text
    assert "\n" not in line


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
@pytest.mark.parametrize(
    ("stored", "expected", "order"),
    [
        ((COUNT, 6, 5, 3), (3, 6, 5), (0, 3, 1, 2)),
        ((COUNT, 6, 5, 1), (1, 6, 5), (0, 3, 1, 2)),
        ((COUNT, 6, 5, 4), (4, 6, 5), (0, 3, 1, 2)),
        ((COUNT, 3, 6, 5), (3, 6, 5), (0, 1, 2, 3)),
        ((COUNT, 1, 3, 5), (1, 3, 5), (0, 1, 2, 3)),
        ((COUNT, 12), (12,), (0, 1)),
        ((COUNT, 2, 3, 4, 5), (2, 3, 4, 5), (0, 1, 2, 3, 4)),
    ],
)
def test_uint8_arrays_come_back_exactly_with_channels_first(tmp_path, save, stored, expected, order):
    x = numbers(*stored)
    source = load_npz(saved(tmp_path, save=save, x=x, y=labels()), "test")
    whole = check_source(source, count=COUNT, shape=expected)
    assert torch.equal(whole.x, torch.from_numpy(x.transpose(order).astype(np.float32) / 255))
    assert torch.equal(whole.y, torch.from_numpy(labels()))
    assert source.name == "set"


def test_grey_images_get_a_channel(tmp_path):
    x = numbers(COUNT, 6, 5)
    whole = check_source(load_npz(saved(tmp_path, x=x, y=labels()), "test"), count=COUNT, shape=(1, 6, 5))
    assert torch.equal(whole.x[:, 0], torch.from_numpy(x / np.float32(255)))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">i2", "i8", "?"])
def test_other_numbers_stay_in_their_units(tmp_path, dtype):
    x = (numbers(COUNT, 4, dtype=np.float64) - 100).astype(dtype)
    source = load_npz(saved(tmp_path, x=x, y=labels()), "test")
    whole = check_source(source, count=COUNT, shape=(4,), unit_range=False)
    assert torch.equal(whole.x, torch.from_numpy(x.astype(np.float32)))


def test_three_dimensions_of_floats_are_kept_unless_told(tmp_path):
    x = numbers(COUNT, 6, 5, dtype=np.float32)
    path = saved(tmp_path, x=x, y=labels())
    assert load_npz(path, "test").shape == (6, 5)
    source = load_npz(path, "test", layout="nhw")
    whole = check_source(source, count=COUNT, shape=(1, 6, 5), unit_range=False)
    assert torch.equal(whole.x[:, 0], torch.from_numpy(x))


def test_layout_that_the_shape_does_not_tell(tmp_path):
    x = numbers(COUNT, 3, 5, 3)
    path = saved(tmp_path, x=x, y=labels())
    assert torch.equal(read(load_npz(path, "test", layout="nchw"), 9).x, torch.from_numpy(x / np.float32(255)))
    nhwc = read(load_npz(path, "test", layout="nhwc"), 9).x
    assert torch.equal(nhwc, torch.from_numpy(x.transpose(0, 3, 1, 2) / np.float32(255)))
    say = f"does not tell where the channels are; say npz:{path}?layout=nhwc or ?layout=nchw"
    error(path, f"{path}, array x: shape (75, 3, 5, 3) {say}")
    path = saved(tmp_path, x=numbers(COUNT, 2, 6, 5), y=labels())
    error(path, f"{path}, array x: shape (75, 2, 6, 5) {say}")


def test_layout_that_does_not_fit(tmp_path):
    path = saved(tmp_path, x=numbers(COUNT, 4), y=labels())
    for layout in ("nhwc", "chw"):
        text = f"{path}, array x: layout {layout} for shape (75, 4); use one of nhwc, nchw, nhw"
        error(path, text, layout=layout)


@pytest.mark.parametrize(
    "y", [labels().astype(np.uint8), labels()[:, None], labels().astype(np.float64), labels() > 4], ids=str
)
def test_forms_of_labels(tmp_path, y):
    source = load_npz(saved(tmp_path, x=numbers(COUNT, 4), y=y), "test")
    whole = check_source(source, count=COUNT, shape=(4,))
    assert torch.equal(whole.y, torch.from_numpy(y.reshape(COUNT).astype(np.int64)))


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (np.eye(COUNT), "labels have shape (N, 75); give one integer an example (one-hot: take the argmax)"),
        (labels() / 2, "the label of example 1 is 0.5; give integers counted from 0"),
        (np.where(labels() == 7, -1, labels()), "the label of example 7 is -1; give integers counted from 0"),
        (np.where(labels() == 6, np.nan, labels()), "the label of example 6 is nan; give integers counted from 0"),
        (labels().astype(str), "labels have dtype <U21; give integers counted from 0"),
    ],
    ids=["one-hot", "halves", "negative", "nan", "strings"],
)
def test_labels_that_are_no_class_numbers(tmp_path, y, text):
    path = saved(tmp_path, x=numbers(COUNT, 4), y=y)
    error(path, f"set: {text}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_inputs_that_are_not_finite(tmp_path, value):
    x = numbers(COUNT, 2, 3, dtype=np.float64)
    x[66:, 1, 2] = value
    path = saved(tmp_path, x=x, y=labels())
    source = load_npz(path, "test")
    for size in (1, 64, COUNT):
        with pytest.raises(DataError, match=r"^set: x of example 66 is NaN or infinite in float32; mend or drop that"):
            drain(source, size)
    assert drain(source, 64, 0, 66) == 66


@pytest.mark.parametrize("bad", [np.array([["a"]] * COUNT), np.ones((COUNT, 1), complex)])
def test_inputs_that_are_not_real_numbers(tmp_path, bad):
    path = saved(tmp_path, x=bad, y=labels())
    error(path, f"set: x has dtype {bad.dtype}; give real numbers, such as uint8 or float32")


def test_splits_and_names(tmp_path):
    arrays = {"x_train": numbers(COUNT, 4), "y_train": labels(), "x_test": numbers(9, 4), "y_test": labels(9)}
    path = saved(tmp_path, **arrays)
    assert (len(load_npz(path, "train")), load_npz(path, "train").name) == (COUNT, "set train")
    assert (len(load_npz(path, "test")), load_npz(path, "test").name) == (9, "set test")
    assert len(load_npz(path, "test", x="x_train", y="y_train")) == COUNT
    assert load_npz(path, "test", x="x_train", y="y_train").name == "set x_train"
    held = "only x_train, y_train, x_test, y_test; name two with npz:FILE?x=NAME&y=NAME"
    with pytest.raises(DataError, match=re.escape(f"{path}: no array x_val, {held}")):
        load_npz(path, "val")


def test_a_name_for_one_array_alone(tmp_path):
    path = saved(tmp_path, pixels=numbers(COUNT, 4), y=labels())
    assert len(load_npz(path, "test", x="pixels")) == COUNT
    path = saved(tmp_path, x=numbers(COUNT, 4), coarse=labels() // 5)
    assert read(load_npz(path, "test", y="coarse"), 20).y.max() == 1
    error(path, f"{path}: no array y, only x, coarse; name two with npz:FILE?x=NAME&y=NAME")


def test_arrays_that_do_not_fit(tmp_path):
    path = saved(tmp_path, x=numbers(COUNT, 4), y=labels(9))
    error(path, f"{path}: x has shape (75, 4), y (9,); take as many of each")
    path = saved(tmp_path, x=numbers(COUNT), y=labels())
    error(path, "set: one input has shape (); x needs at least one feature, as (N, ...)")
    path = saved(tmp_path, x=numbers(COUNT, 4), y=np.array(3))
    error(path, f"{path}, array y: a single number; give one row an example")
    path = saved(tmp_path, x=numbers(0, 4), y=labels(0))
    error(path, "set: the data set is empty; give at least one example")


def test_python_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    path = saved(tmp_path, x=np.array([Bomb()] * COUNT), y=labels())
    why = "holds Python objects, which are never unpickled; save it as plain numbers"
    error(path, f"{path}, array x: {why}")


def test_fortran_order(tmp_path):
    path = saved(tmp_path, x=np.asfortranarray(numbers(COUNT, 4)), y=labels())
    why = "in Fortran order, which has no rows to stream; save it with numpy.ascontiguousarray"
    error(path, f"{path}, array x: {why}")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "set.npz"
    error(path, f"{path}: no such file; check the path")
    path.write_bytes(b"x" * 100)
    error(path, f"{path}: cannot be read (File is not a zip file); check the path or get the file again")
    zipped(path, x=b"nothing of numpy", y=npy(labels()))
    error(path, f"{path}, array x: not a readable npy header of plain numbers; save it again with numpy.savez")
    good = npy(numbers(COUNT, 4))
    zipped(path, x=good[:6] + b"\x07" + good[7:], y=npy(labels()))  # a version that does not exist
    error(path, f"{path}, array x: not a readable npy header of plain numbers; save it again with numpy.savez")


@pytest.mark.parametrize(("end", "size"), [(slice(-1), 427), (slice(None), 429)])
def test_members_of_the_wrong_length(tmp_path, end, size):
    data = npy(numbers(COUNT, 4))
    path = zipped(tmp_path / "set.npz", x=data[end] if size == 427 else data + b"\0", y=npy(labels()))
    error(path, f"{path}, array x: {size} bytes, but its header says 428; get the file again")


def test_truncated_file(tmp_path):
    path = saved(tmp_path, x=numbers(COUNT, 400), y=labels())
    path.write_bytes(path.read_bytes()[:20000])
    error(path, f"{path}: cannot be read (File is not a zip file); check the path or get the file again")


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
def test_corrupt_bytes_are_noticed(tmp_path, save):
    path = saved(tmp_path, save=save, x=numbers(COUNT, 400), y=labels())
    data = bytearray(path.read_bytes())
    data[15000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}, array x: cannot be read \(.+\); check the path or get the file"):
        drain(load_npz(path, "test"))


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
def test_memory_does_not_grow_with_the_file(tmp_path, save):
    count = 60 * 2**20 // 1024
    x = np.zeros((count, 1024), np.uint8)
    x[:, 0] = np.arange(count) % 256
    path = saved(tmp_path, save=save, x=x, y=np.zeros(count, np.int64))
    del x
    source = load_npz(path, "test")
    with peak_memory(8 * 2**20):
        assert drain(source) == count
        assert drain(source, start=count - 10) == 10


@needs_shared
def test_cifar10():
    path = SHARED / "data" / "cifar10" / "cifar10_exact_test_first1017.npz"
    source = load_npz(path, "test")
    assert source.shape == (3, 32, 32)
    whole = read(source, 100)
    with np.load(path) as arrays:
        assert torch.equal(whole.x, torch.from_numpy(arrays["x"].transpose(0, 3, 1, 2).astype(np.float32) / 255))
        assert torch.equal(whole.y, torch.from_numpy(arrays["y"].astype(np.int64)))
    assert whole.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the official test set: cat, ship, ship, plane, ...


@needs_shared
def test_medical_images_under_other_names():
    path = SHARED / "data" / "medical" / "pneumoniamnist.npz"
    with pytest.raises(DataError, match=r"no array x_test, only train_images, train_labels, val_images, .*; name two"):
        load_npz(path, "test")
    whole = read(load_npz(path, "test", x="test_images", y="test_labels"), 100)
    assert whole.x.shape == (624, 1, 28, 28)
    assert whole.y.bincount().tolist() == [234, 390]


@needs_shared
def test_tabular_data_keep_their_units():
    path = SHARED / "data" / "tabular" / "spambase.npz"
    whole = read(load_npz(path, "test"), 1000)
    assert whole.y.bincount().tolist() == [2788, 1813]
    with np.load(path) as arrays:
        assert torch.equal(whole.x, torch.from_numpy(arrays["x"].astype(np.float32)))
    path = SHARED / "data" / "tabular" / "nsl_kdd.npz"
    assert [len(load_npz(path, split)) for split in ("train", "test")] == [25192, 22544]
    usps = read(load_npz(SHARED / "data" / "usps" / "usps.npz", "test", layout="nhw"), 500)
    assert (usps.x.shape, usps.x.min(), usps.x.max()) == ((2007, 1, 16, 16), -1000, 1000)
