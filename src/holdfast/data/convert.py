"""From what files and users hold to what a :class:`Batch` promises: scaled float32 inputs and int64 labels, checked."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.errors import DataError

__all__ = ["as_array", "to_inputs", "to_labels"]

_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, float


def as_array(value: object) -> NDArray[Any]:
    """Return the values as a numpy array, off any device and autograd graph."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    # numpy knows no bfloat16; float32 holds every shorter float exactly.
    return (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()


def to_inputs(x: NDArray[Any], *, where: str, first: int) -> Tensor:
    """Make inputs a fresh float32 tensor: uint8 is divided by 255, all other numbers stay in their own units.

    Parameters
    ----------
    x : ndarray
        ``(N, ...)`` of any real dtype; float64 is rounded to float32.
    where : str
        The data set, for the error.
    first : int
        The position of ``x[0]`` in the split, for the error.

    Raises
    ------
    DataError
        Not numbers, or NaN or infinite once in float32.
    """
    if x.dtype.kind not in _NUMBERS:
        raise DataError(f"{where}: x has dtype {x.dtype}; give real numbers, such as uint8 or float32")
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite and is reported as such
        values: NDArray[np.float32] = np.array(x, dtype=np.float32, order="C")
    if x.dtype == np.uint8:
        values /= 255
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        position = first + int(finite.argmin())
        raise DataError(f"{where}: x of example {position} is NaN or infinite in float32; mend or drop that example")
    return torch.from_numpy(values)


def to_labels(y: NDArray[Any], *, where: str, first: int) -> Tensor:
    """Make labels an int64 tensor; floats that are whole numbers are accepted.

    Parameters
    ----------
    y : ndarray
        ``(N,)`` or ``(N, 1)``.
    where, first
        As in :func:`to_inputs`.

    Raises
    ------
    DataError
        Another shape, not numbers, or a label that is negative or not whole.
    """
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.ndim != 1:
        shape = ", ".join(["N", *map(str, y.shape[1:])])
        raise DataError(f"{where}: labels have shape ({shape}); give one integer an example (one-hot: take the argmax)")
    if labels.dtype.kind not in _NUMBERS:
        raise DataError(f"{where}: labels have dtype {labels.dtype}; give integers counted from 0")
    with np.errstate(invalid="ignore"):  # NaN has no integer, and then differs from what it became
        whole = labels.astype(np.int64)
    wrong = (whole != labels) | (whole < 0)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"{where}: the label of example {first + at} is {labels[at]}; give integers counted from 0")
    return torch.from_numpy(whole)
