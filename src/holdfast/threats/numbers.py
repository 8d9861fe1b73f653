"""Numbers as people hand them over: tensors, arrays, lists, and what else reads as an array."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataError, HoldfastError
from holdfast.words import reason

__all__ = ["plain_tensor", "type_of"]


def plain_tensor(values: Any, name: str, fault: type[HoldfastError] = DataError) -> Tensor:
    """Numbers as a dense tensor of one of torch's types, cut off from any graph of gradients.

    Parameters
    ----------
    values : Tensor, array, list or what else reads as an array
        The numbers.
    name : str
        The argument, for the line that refuses them.
    fault : type, optional
        The error to raise.

    Raises
    ------
    HoldfastError
        Of the class ``fault``, when they are no numbers, or none that can be read.
    """
    if isinstance(values, Tensor):
        if values.is_nested or values.layout != torch.strided or values.is_meta or values.is_quantized:
            raise fault(f"{name}: a plain tensor of numbers is needed; call to_dense() or dequantize() on it first")
        return values.detach()
    try:
        if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
            return torch.stack([plain_tensor(value, name, fault) for value in values])
        array = np.asarray(values)
    except Exception as error:  # an object of the user's may raise anything while it is read
        raise fault(f"{name}: a {type_of(values)} that does not read as an array: {reason(error)}") from error
    if array.dtype.kind not in "biuf":
        raise fault(f"{name}: a {type_of(values)} of {array.dtype} is no tensor or array of real numbers")
    # numpy knows precisions, byte orders and names of types that torch does not.
    size = min(array.dtype.itemsize, 8)
    kind = array.dtype if array.dtype.kind == "b" else np.dtype(f"{array.dtype.kind}{size}")
    return torch.tensor(np.ascontiguousarray(array, kind).reshape(array.shape))


def type_of(value: object) -> str:
    """What a value is, in a word."""
    return value.__name__ if isinstance(value, type) else type(value).__name__
