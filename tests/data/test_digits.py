import pytest
import torch
from sklearn.datasets import load_digits as bundled

from helpers.sources import check_source
from holdfast.data.digits import load_digits
from holdfast.errors import DataError


@pytest.mark.parametrize(("split", "count", "rows"), [("train", 1297, slice(1297)), ("test", 500, slice(1297, None))])
def test_digits_are_the_bundled_ones_in_sixteenths(split, count, rows):
    source = load_digits(split)
    whole = check_source(source, count=count, shape=(1, 8, 8))
    assert torch.equal((whole.x[:, 0] * 16).double(), torch.from_numpy(bundled().images[rows]))
    assert torch.equal(whole.y, torch.from_numpy(bundled().target[rows]))
    assert source.name == f"digits {split}"
    assert source.classes == tuple("0123456789")


def test_another_split_is_an_error():
    with pytest.raises(DataError, match=r'^digits: no split "val"; use train or test$'):
        load_digits("val")
