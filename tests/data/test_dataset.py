import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from helpers.sources import check_source, drain, read
from holdfast.data import from_dataset, from_tensors
from holdfast.errors import DataError

COUNT = 75


class Items(Dataset):
    """A data set of given items, which remembers what it was asked for."""

    def __init__(self, items):
        self.items = items
        self.asked = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        self.asked.append(position)
        return self.items[position]


def images(count=COUNT):
    return torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(0))


def labels(count=COUNT):
    return torch.arange(count) % 10


@pytest.mark.parametrize(
    "y", [labels(), labels().float(), labels()[:, None], labels().numpy(), labels().to(torch.uint8)]
)
def test_tensors_come_back_exactly(y):
    x = images()
    before = x.clone()
    source = from_tensors(x, y)
    whole = check_source(source, count=COUNT, shape=(2, 3))
    assert torch.equal(whole.x, x)
    assert torch.equal(whole.y, labels())
    assert torch.equal(x, before)
    assert (source.name, source.classes) == ("tensors", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.bool])
def test_numbers_but_uint8_stay_in_their_units(dtype):
    x = (images() * 100 - 50).to(dtype).requires_grad_(dtype.is_floating_point)
    whole = check_source(from_tensors(x, labels()), count=COUNT, shape=(2, 3), unit_range=False)
    assert torch.equal(whole.x, x.detach().float())
    assert not whole.x.requires_grad


def test_every_uint8_is_divided_exactly():
    x = torch.arange(256, dtype=torch.uint8)[:, None]
    assert torch.equal(
        read(from_tensors(x, x), 64).x, torch.from_numpy(np.arange(256, dtype=np.float32)[:, None] / 255)
    )


def test_arrays_need_not_be_contiguous_or_in_memory(tmp_path):
    x = images().numpy()
    strided = np.repeat(x, 2, axis=2)[:, :, ::2]
    assert torch.equal(check_source(from_tensors(strided, labels()), count=COUNT, shape=(2, 3)).x, images())
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(check_source(from_tensors(mapped, labels()), count=COUNT, shape=(2, 3)).x, images())


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        ([[1.0]], labels(1), "mine: x is a list; give a tensor or an array"),
        (images(1), 3, "mine: y is a int; give a tensor or an array"),
        (torch.tensor(1.0), labels(1), "mine: x is a single number; give one row an example"),
        (images(3), labels(2), "mine: 3 inputs but 2 labels; give one label an example"),
        (images(0), labels(0), "mine: the data set is empty; give at least one example"),
        (labels(), labels(), "mine: one input has shape (); x needs at least one feature, as (N, ...)"),
        (images(3)[:, :0], labels(3), "mine: one input has shape (0, 3); x needs at least one feature, as (N, ...)"),
        (images(2) / 0, labels(2), "mine: x of example 0 is NaN or infinite in float32; mend or drop that example"),
        (images(3), labels(3) - 1, "mine: the label of example 0 is -1; give integers counted from 0"),
        (
            images(3),
            torch.eye(3),
            "mine: labels have shape (N, 3); give one integer an example (one-hot: take the argmax)",
        ),
    ],
)
def test_tensors_that_make_no_data_set(x, y, text):
    with pytest.raises(DataError) as caught:
        drain(from_tensors(x, y, "mine"))
    assert str(caught.value) == text


def test_dataset_items_come_back_exactly():
    source = from_dataset(TensorDataset(images(), labels()))
    whole = check_source(source, count=COUNT, shape=(2, 3))
    assert torch.equal(whole.x, images())
    assert torch.equal(whole.y, labels())
    assert source.name == "dataset"


@pytest.mark.parametrize("y", [3, 3.0, np.int32(3), torch.tensor(3), torch.tensor([3]), np.array([3])])
@pytest.mark.parametrize("x", [np.full((1, 2), 255, np.uint8), torch.full((1, 2), 255, dtype=torch.uint8)])
def test_kinds_of_items(x, y):
    whole = check_source(from_dataset(Items([(x, y)] * 4)), count=4, shape=(1, 2))
    assert torch.equal(whole.x, torch.ones(4, 1, 2))
    assert torch.equal(whole.y, torch.full((4,), 3))


def test_a_part_asks_for_its_items_alone():
    dataset = Items([(x, 0) for x in images()])
    source = from_dataset(dataset)
    dataset.asked.clear()
    assert read(source, 4, 20, 27).index.tolist() == dataset.asked == list(range(20, 27))


class Stream(IterableDataset):
    def __iter__(self):
        yield images(1)[0], 0


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Stream(), "mine: a data set without length and positions; give a map-style torch Dataset"),
        (Dataset(), "mine: a data set without length and positions; give a map-style torch Dataset"),
        (Items([]), "mine: the data set is empty; give at least one example"),
        (Items([{"x": 1, "y": 2}]), "mine: item 0 is not a pair (x, y) but a dict; return a pair"),
        (
            Items([(images(1)[0], 0), ("a.png", 0)]),
            "mine: x of item 1 is a str; add a transform that makes it a tensor",
        ),
        (
            Items([(images(1)[0], 0), (images(1), 0)]),
            "mine: x of item 1 has shape (1, 2, 3), that of item 0 (2, 3); make them equal",
        ),
        (Items([(images(1)[0], torch.eye(3)[0])]), "mine: y of item 0 has shape (3,); give one integer an example"),
        (Items([(images(1)[0], "cat")]), "mine: labels have dtype <U3; give integers counted from 0"),
        (
            Items([(images(1)[0], 0)] * 9 + [(images(1)[0] * np.nan, 0)]),
            "mine: x of example 9 is NaN or infinite in float32; mend or drop that example",
        ),
    ],
)
def test_datasets_that_make_no_data_set(dataset, text):
    with pytest.raises(DataError) as caught:
        drain(from_dataset(dataset, "mine"), 4)
    assert str(caught.value) == text
