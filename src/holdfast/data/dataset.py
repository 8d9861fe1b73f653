"""Data that is in Python already: torch data sets, tensors and arrays."""

from collections.abc import Iterator, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from holdfast.data.convert import as_array
from holdfast.data.rows import RowSource, read_arrays
from holdfast.data.source import Source
from holdfast.errors import DataError

__all__ = ["from_dataset", "from_tensors"]


def from_dataset(dataset: Dataset[Any], name: str = "dataset") -> Source:
    """Make a source of a map-style torch data set; items are asked for when their turn comes.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Has a length, and items ``(x, y)`` with ``x`` a tensor or array of one shape (channels first) and ``y`` a
        class number. An item must be the same each time it is asked for: leave random augmentation out.
    name : str
        What to call it in a result.

    Returns
    -------
    Source
        uint8 inputs are divided by 255; all other numbers stay in their own units and are rounded to float32.

    Raises
    ------
    DataError
        An iterable data set, an empty one, or (also while reading) an item that is not as above.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(f"{name}: a data set without length and positions; give a map-style torch Dataset")
    count = len(dataset)
    shape = _item(dataset, 0, name)[0].shape if count else ()
    return RowSource(name, shape, None, count, partial(_read, dataset, name, shape))


def from_tensors(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], name: str = "tensors") -> Source:
    """Make a source of tensors or arrays, which are neither copied nor changed.

    Parameters
    ----------
    x : Tensor or ndarray
        ``(N, ...)`` inputs, images with channels first. uint8 is divided by 255; all other numbers stay in their
        own units and are rounded to float32.
    y : Tensor or ndarray
        ``(N,)`` or ``(N, 1)`` class numbers.
    name : str
        What to call it in a result.

    Returns
    -------
    Source
        Batches are copies, wherever ``x`` lies, on the CPU.

    Raises
    ------
    DataError
        Not tensors or arrays, empty, or of different lengths.
    """
    for what, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor | np.ndarray):
            raise DataError(f"{name}: {what} is a {type(value).__name__}; give a tensor or an array")
        if isinstance(value, Tensor) and (
            value.is_nested or value.layout != torch.strided or value.is_meta or value.is_quantized
        ):
            raise DataError(f"{name}: {what} is no plain tensor of numbers; call to_dense() on it first")
        if value.ndim == 0:
            raise DataError(f"{name}: {what} is a single number; give one row an example")
    if len(x) != len(y):
        raise DataError(f"{name}: {len(x)} inputs but {len(y)} labels; give one label an example")
    return RowSource(name, tuple(x.shape[1:]), None, len(x), partial(read_arrays, x, y))


def _item(dataset: Dataset[Any], position: int, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    item = dataset[position]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{name}: item {position} is not a pair (x, y) but a {type(item).__name__}; return a pair")
    x, y = item
    if not isinstance(x, Tensor | np.ndarray):
        raise DataError(f"{name}: x of item {position} is a {type(x).__name__}; add a transform that makes it a tensor")
    label = as_array(y)
    if label.size != 1:
        raise DataError(f"{name}: y of item {position} has shape {label.shape}; give one integer an example")
    return as_array(x), label.reshape(())


def _read(
    dataset: Dataset[Any], name: str, shape: tuple[int, ...], size: int, start: int, stop: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for first in range(start, stop, size):
        items = [_item(dataset, position, name) for position in range(first, min(first + size, stop))]
        for position, (x, _) in enumerate(items, first):
            if x.shape != shape:
                raise DataError(
                    f"{name}: x of item {position} has shape {x.shape}, that of item 0 {shape}; make them equal"
                )
        yield np.stack([x for x, _ in items]), np.stack([y for _, y in items])
