"""Tensors of an ONNX file, checked before they are allocated: what they claim to hold and what they hold must agree."""

from __future__ import annotations

import math
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.onnx.node import quoted

if TYPE_CHECKING:
    from pathlib import Path

# By the numbers of onnx.TensorProto.DataType: torch's type, and the field that holds the values where they are not raw.
_TYPES: dict[int, tuple[torch.dtype, str]] = {
    1: (torch.float32, "float_data"),
    2: (torch.uint8, "int32_data"),
    3: (torch.int8, "int32_data"),
    5: (torch.int16, "int32_data"),
    6: (torch.int32, "int32_data"),
    7: (torch.int64, "int64_data"),
    9: (torch.bool, "int32_data"),
    10: (torch.float16, "int32_data"),
    11: (torch.float64, "double_data"),
    16: (torch.bfloat16, "int32_data"),
}
_WORDS = {torch.float32: "float", torch.float64: "double"}  # the others have the same name in ONNX and in torch


def torch_type(number: int) -> torch.dtype:
    """The torch type that a number of onnx.TensorProto.DataType stands for.

    Raises
    ------
    ModelError
        If there is none: strings, complex numbers, and what has fewer than eight bits or a float's range in eight.
    """
    if number not in _TYPES:
        raise ModelError(f"tensors of type {_type_word(number)} are not supported")
    return _TYPES[number][0]


def type_name(dtype: torch.dtype) -> str:
    """What ONNX calls a type."""
    return _WORDS.get(dtype, str(dtype).removeprefix("torch."))


def _type_word(number: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number)).lower() if number in TensorProto.DataType.values() else str(number)


def read_tensor(proto: Any, folder: Path | None) -> Tensor:
    """Read a tensor.

    Parameters
    ----------
    proto : onnx.TensorProto
    folder : Path or None
        Where data outside the file may lie; None where there can be none.

    Raises
    ------
    HoldfastError
        If its type is not supported, if its shape makes no sense or asks for too many bytes, or if it does not hold as
        many values as its shape says.
    """
    what = f"tensor {quoted(proto.name)}"
    dtype, field = torch_type(proto.data_type), _TYPES[proto.data_type][1]
    shape = _shape(proto.dims, dtype, what)
    size = math.prod(shape)
    if proto.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which no exporter writes any more; export it again")
    if proto.data_location == type(proto).EXTERNAL:
        data = _external(proto, size * dtype.itemsize, folder, what)
    elif proto.HasField("raw_data"):
        data = proto.raw_data
    else:
        return _from_field(getattr(proto, field), dtype, shape, what)
    if len(data) != size * dtype.itemsize:
        raise ModelError(
            f"{what} of shape {shape} and type {type_name(dtype)} takes {size * dtype.itemsize} bytes, and {len(data)} "
            "are there; export it again"
        )
    # frombuffer takes no empty data, and shares memory with what it is given, which Python does not let be written to
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def read_sparse(proto: Any, folder: Path | None) -> Tensor:
    """Read a sparse tensor (onnx.SparseTensorProto) as a dense one; errors as of :func:`read_tensor`."""
    what = f"sparse tensor {quoted(proto.values.name)}"
    values, indices = read_tensor(proto.values, folder), read_tensor(proto.indices, folder)
    shape = _shape(proto.dims, values.dtype, what)
    size = math.prod(shape)
    if values.dim() != 1 or indices.dtype != torch.int64 or indices.dim() not in {1, 2} or len(indices) != len(values):
        raise ModelError(f"{what} has {tuple(values.shape)} values at {tuple(indices.shape)} places; export it again")
    if indices.dim() == 2:
        sizes = torch.tensor(shape, dtype=torch.int64)
        if indices.shape[1] != len(shape) or bool(((indices < 0) | (indices >= sizes)).any()):
            raise ModelError(f"{what} has values outside its shape {shape}; export it again")
        strides = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))], dtype=torch.int64)
        indices = (indices * strides).sum(1)
    if bool(((indices < 0) | (indices >= size)).any()):
        raise ModelError(f"{what} has values outside its shape {shape}; export it again")
    dense = torch.zeros(size, dtype=values.dtype)
    dense[indices] = values
    return dense.reshape(shape)


def _shape(dims: Any, dtype: torch.dtype, what: str) -> tuple[int, ...]:
    shape = tuple(dims)
    if any(size < 0 for size in shape) or len(shape) > 64:
        raise ModelError(f"{what} is of the shape {str(shape)[:80]}, which makes no sense; export it again")
    check_bytes(math.prod(shape) * dtype.itemsize, f"{what} of shape {str(shape)[:80]}")
    return shape


def _from_field(values: Any, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    if len(values) != math.prod(shape):
        raise ModelError(f"{what} of shape {shape} holds {len(values)} values; export it again")
    if dtype in {torch.float16, torch.bfloat16}:  # their bits, as whole numbers
        bits = np.asarray(values, dtype=np.int64).astype(np.uint16).view(np.int16)
        return torch.from_numpy(bits).view(dtype).reshape(shape)
    if dtype == torch.bool:
        return torch.tensor([value != 0 for value in values], dtype=dtype).reshape(shape)
    try:
        return torch.tensor(list(values), dtype=dtype).reshape(shape)
    except (RuntimeError, OverflowError) as error:
        raise ModelError(f"{what} holds values that are not of type {type_name(dtype)}; export it again") from error


def _external(proto: Any, size: int, folder: Path | None, what: str) -> bytes:
    """The bytes of a tensor that lie in another file, which has to lie beside the network or below."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"{what} lies in another file, {quoted(location)}, which a gzipped network cannot name; unzip it"
        )
    shown = f"{what} lies in {quoted(location)}"
    try:
        path = (folder / location).resolve()
        inside = bool(location) and path.is_relative_to(folder.resolve())
        status = path.stat() if inside else None
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{shown}, which cannot be read ({type(error).__name__}); keep the files together") from error
    if status is None:
        raise ModelError(f"{shown}, outside the network's own folder; only files in it are read")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{shown}, which is not a file")
    if offset < 0 or length != size or offset + length > status.st_size:
        raise ModelError(
            f"{shown}, bytes {offset} to {offset + length} of {status.st_size}, where {size} are needed; "
            "export it again"
        )
    with path.open("rb") as file:
        file.seek(offset)
        found: bytes = file.read(length)
    return found
