"""The one tester that every source passes through."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from holdfast.data import Batch, Source
from holdfast.errors import SettingError


def read(source: Source, size: int, start: int = 0, stop: int | None = None) -> Batch:
    """All of a source (or of a part) in one batch, read ``size`` at a time."""
    batches = list(source.batches(size, start, stop))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches[-1:])
    if not batches:
        return Batch(
            torch.empty(0, dtype=torch.int64), torch.empty(0, *source.shape), torch.empty(0, dtype=torch.int64)
        )
    return Batch(*(torch.cat([getattr(batch, part) for batch in batches]) for part in ("index", "x", "y")))


def assert_same(got: Batch, expected: Batch, part: slice = slice(None)) -> None:
    assert torch.equal(got.index, expected.index[part])
    assert torch.equal(got.x, expected.x[part])
    assert torch.equal(got.y, expected.y[part])


def check_source(source: Source, *, count: int, shape: tuple[int, ...], unit_range: bool = True) -> Batch:
    """Everything the contract of a source promises for a whole split; returns it in one batch."""
    assert isinstance(source, Source)
    assert isinstance(source.name, str)
    assert len(source) == count
    assert source.shape == shape

    whole = read(source, count)
    assert whole.index.dtype == whole.y.dtype == torch.int64
    assert whole.x.dtype == torch.float32
    assert whole.x.shape == (count, *shape)
    assert whole.x.is_contiguous()
    assert whole.y.shape == (count,)
    assert torch.equal(whole.index, torch.arange(count))
    assert whole.y.min() >= 0
    if source.classes is not None:
        assert whole.y.max() < len(source.classes)
    if unit_range:
        assert whole.x.min() >= 0
        assert whole.x.max() <= 1

    for size in (1, 7, 64, count, count + 1):  # a second pass too
        assert_same(read(source, size), whole)
    third = count // 3
    for start, stop in ((0, third), (third, 2 * third), (third, None), (count - 1, count + 5), (-3, 2)):
        part = slice(max(start, 0), stop)
        assert_same(read(source, 7, start, stop), whole, part)
    assert len(read(source, 7, count, None)) == len(read(source, 7, third, third)) == 0

    next(source.batches(2)).x.fill_(0.5)  # a batch is the reader's own
    assert_same(read(source, count), whole)
    abandoned = source.batches(1)
    next(abandoned)
    assert_same(read(source, count), whole)  # while another pass is under way
    with pytest.raises(SettingError, match=r"^batch size 0 is not positive; use 1 or more$"):
        source.batches(0)
    return whole


@contextmanager
def peak_memory(limit: int) -> Iterator[None]:
    """Fail when Python and numpy held more than ``limit`` bytes at once (batches are numpy's memory as well)."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"held {peak / 2**20:.1f} MiB"


def drain(source: Source, size: int = 256, start: int = 0, stop: int | None = None) -> int:
    """Read to the end, keeping nothing; how many there were."""
    return sum(len(batch) for batch in source.batches(size, start, stop))
