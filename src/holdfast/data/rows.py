"""The one :class:`Source` behind every format: a format only says how to read raw rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.data.convert import as_array, to_inputs, to_labels
from holdfast.data.source import Batch
from holdfast.errors import DataError, SettingError
from holdfast.limits import check_bytes

__all__ = ["RawColumns", "ReadRows", "RowSource", "read_arrays"]

ReadRows = Callable[[int, int, int], Iterator[tuple[NDArray[Any], NDArray[Any]]]]
"""``read(size, start, stop)`` yields raw ``(x, y)`` for the rows ``[start, stop)``, ``size`` at a time."""


@dataclass(frozen=True)
class RawColumns:
    """The columns of the table that a source was made of, features or not.

    Parameters
    ----------
    names : tuple of str
        Of all columns.
    read : callable
        What a column holds, in all rows, as text.
    group : str or None
        The column by which results are told apart unless another is named.
    """

    names: tuple[str, ...]
    read: Callable[[str], list[str]]
    group: str | None = None


@dataclass(frozen=True)
class RowSource:
    """A source over a function that reads raw rows; scaling and checks happen here, a batch at a time.

    Parameters
    ----------
    name, shape, classes
        As in :class:`Source`.
    count : int
        How many rows there are.
    read : ReadRows
        Reads them, already with channels first but otherwise as stored.
    columns : tuple of str, optional
        As in :class:`~holdfast.data.source.Tabular`.
    raw : RawColumns, optional
        The table behind them.

    Raises
    ------
    DataError
        No rows, or rows that are single numbers or empty.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    count: int
    read: ReadRows
    columns: tuple[str, ...] | None = None
    raw: RawColumns | None = None

    def __post_init__(self) -> None:
        if self.count == 0:
            raise DataError(f"{self.name}: the data set is empty; give at least one example")
        if not self.shape or 0 in self.shape:
            raise DataError(f"{self.name}: one input has shape {self.shape}; x needs at least one feature, as (N, ...)")

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Read in order, as :meth:`Source.batches`.

        Raises
        ------
        SettingError
            ``size`` below 1.
        DataError
            While reading: an input that is not finite, a label that is not a class number, a file that is broken.
        """
        if size < 1:
            raise SettingError(f"batch size {size} is not positive; use 1 or more")
        return self._batches(size, max(start, 0), self.count if stop is None else min(stop, self.count))

    def _batches(self, size: int, start: int, stop: int) -> Iterator[Batch]:
        if start >= stop:  # no file need be opened
            return
        rows = min(size, stop - start)
        check_bytes(4 * rows * math.prod(self.shape), f"{self.name}, {rows} examples at once", DataError)
        first, read = start, iter(self.read(size, start, stop))
        while True:
            try:
                if (pair := next(read, None)) is None:
                    return
                inputs = to_inputs(pair[0], where=self.name, first=first)
                labels = to_labels(pair[1], where=self.name, first=first)
            except MemoryError as error:
                raise DataError(
                    f"{self.name}: {rows} examples of shape {self.shape} do not fit into memory; take fewer at once "
                    "(--batch-size)"
                ) from error
            yield Batch(torch.arange(first, first + len(inputs)), inputs, labels)
            first += len(inputs)


def read_arrays(
    x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], size: int, start: int, stop: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Rows of arrays that are in memory (or mapped) already."""
    for first in range(start, stop, size):
        last = min(first + size, stop)
        yield as_array(x[first:last]), as_array(y[first:last])
