"""Operators that move values around, repeat them, or make new ones from a shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node

Ints = tuple[int, ...]


def several(axes: Ints | int) -> Ints:
    """Axes as a tuple; a constant of no dimension is one axis."""
    return (axes,) if isinstance(axes, int) else axes


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    if not -x.dim() <= axis <= x.dim():
        raise ModelError(f"its axis {axis} is not one of {x.dim()} dimensions")
    axis = axis + x.dim() if axis < 0 else axis
    return x.flatten(1) if axis == 1 < x.dim() else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def reshape(node: Node, x: Tensor, shape: Ints | int) -> Tensor:
    """0 stands for "as many as before" and -1 for "as many as are left"."""
    shape = several(shape)
    if any(size < -1 for size in shape):
        raise ModelError(f"its shape {shape} makes no sense")
    if not node.get("allowzero", 0):
        if any(size == 0 for size in shape[x.dim() :]):
            raise ModelError(f"its shape {shape} leaves a dimension as it is that {x.dim()} dimensions do not have")
        shape = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(shape))
    return x.reshape(shape)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", tuple(reversed(range(x.dim())))))


def _unsqueeze(node: Node, x: Tensor, axes: Ints | int | None = None) -> Tensor:
    axes = several(node.get("axes", axes))
    rank = x.dim() + len(axes)
    if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
        raise ModelError(f"its axes {axes} are not different ones of {rank} dimensions")
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node, x: Tensor, axes: Ints | int | None = None) -> Tensor:
    axes = node.get("axes", axes)
    if axes is None:
        return x.squeeze()
    if wide := [axis for axis in several(axes) if x.shape[axis] != 1]:
        raise ModelError(f"its axis {wide[0]} has {x.shape[wide[0]]} entries, and only single ones can be taken away")
    return x.squeeze(several(axes))


def _shape_of(node: Node, x: Tensor) -> Ints:
    return tuple(x.shape)[node.get("start", 0) : node.get("end")]


def _size(node: Node, x: Tensor) -> int:
    return math.prod(x.shape)


def _concat(node: Node, *tensors: Tensor) -> Tensor:
    axis, rank = node.get("axis"), tensors[0].dim()
    if not -rank <= axis < rank or any(x.dim() != rank for x in tensors):
        raise ModelError(f"its axis {axis} is not one of every input's dimensions")
    if axis % rank != 0:  # a constant beside the input, exported with one row, belongs to every row
        rows = next((x.shape[0] for x in tensors if x.shape[0] != 1), 1)
        tensors = tuple(x.expand(rows, *x.shape[1:]) for x in tensors)
    return torch.cat(tensors, axis)


def _split(node: Node, x: Tensor, sizes: Ints | None = None) -> list[Tensor]:
    axis = node.get("axis", 0)
    length, parts = x.shape[axis], node.get("num_outputs", len(node.outputs))
    sizes = node.get("split", sizes)
    if sizes is None:  # equal parts, the last one smaller where that does not work out
        part = -(-length // parts)
        sizes = (*[part] * (parts - 1), length - part * (parts - 1))
        if node.opset < 18 and sizes[-1] != part:
            raise ModelError(f"it makes {parts} equal parts of {length} entries")
    if len(sizes) != len(node.outputs) or any(size < 0 for size in sizes):
        raise ModelError(f"it makes parts of sizes {sizes} for {len(node.outputs)} outputs")
    return list(torch.split(x, list(sizes), axis))


def _gather(node: Node, x: Tensor, indices: Tensor | int) -> Tensor:
    axis = node.get("axis", 0)
    if not -x.dim() <= axis < x.dim():
        raise ModelError(f"its axis {axis} is not one of {x.dim()} dimensions")
    if not isinstance(indices, Tensor):
        return x.select(axis, indices)
    picked = x[(slice(None),) * (axis % x.dim()) + (indices.long().reshape(indices.shape or (1,)),)]
    return picked if indices.dim() else picked.squeeze(axis)


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    batch, depth = node.get("batch_dims", 0), indices.shape[-1]
    if not 0 <= batch < min(x.dim(), indices.dim()) or not 1 <= depth <= x.dim() - batch:
        raise ModelError(f"its indices of shape {tuple(indices.shape)} do not fit values with {x.dim()} dimensions")
    # Each batch dimension is an index that counts, beside those that are given: for one row, they are every row's.
    counting = [
        torch.arange(size, device=x.device).reshape(size, *[1] * (indices.dim() - 2 - dim))
        for dim, size in enumerate(x.shape[:batch])
    ]
    return x[(*counting, *indices.long().unbind(-1))]


def _slice(
    node: Node,
    x: Tensor,
    starts: Ints | int | None = None,
    ends: Ints | int | None = None,
    axes: Ints | int | None = None,
    steps: Ints | int | None = None,
) -> Tensor:
    starts, ends, axes = node.get("starts", starts), node.get("ends", ends), node.get("axes", axes)
    if starts is None or ends is None:
        raise ModelError("its starts and ends are missing")
    starts, ends = several(starts), several(ends)
    axes = tuple(range(len(starts))) if axes is None else several(axes)
    steps = (1,) * len(starts) if steps is None else several(steps)
    if len({axis % x.dim() for axis in axes}) < len(axes) or any(not -x.dim() <= axis < x.dim() for axis in axes):
        raise ModelError(f"its axes {axes} are not different ones of {x.dim()} dimensions")
    window, backwards = [slice(None)] * x.dim(), []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:  # torch only walks forwards: take the same elements in rising order, then turn them round
            # what is before the first entry means the first, as a start and as the end of a walk backwards
            length = x.shape[axis]
            first = min(start, length - 1) if start >= 0 else max(start + length, -1)
            last = min(end, length - 1) if end >= 0 else max(end + length, -1)
            rising = range(first, last, step)[::-1]
            window[axis] = slice(rising.start, rising.stop, rising.step) if len(rising) else slice(0, 0)
            backwards.append(axis)
        else:
            window[axis] = slice(start, end, step)
    x = x[tuple(window)]
    return x.flip(backwards) if backwards else x


_PAD_MODES = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def _pad(
    node: Node,
    x: Tensor,
    pads: Ints | int | None = None,
    value: float | tuple[float] | None = None,
    axes: Ints | int | None = None,
) -> Tensor:
    pads = node.get("pads", pads)
    if not isinstance(pads, tuple):
        raise ModelError("its pads are missing")
    value = node.get("value", value)
    if isinstance(value, tuple):  # a list of one is taken for a number
        (value,) = value
    axes = tuple(range(x.dim())) if axes is None else several(axes)
    if len({axis % x.dim() for axis in axes}) < len(axes) or any(not -x.dim() <= axis < x.dim() for axis in axes):
        raise ModelError(f"its axes {axes} are not different ones of {x.dim()} dimensions")
    amounts = [(0, 0)] * x.dim()
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        amounts[axis] = (before, after)
    mode = node.get("mode", "constant")
    if mode == "constant":
        flat = [amount for pair in reversed(amounts) for amount in pair]  # torch starts at the last dimension
        return functional.pad(x, flat, value=0.0 if value is None else value)
    if mode not in _PAD_MODES:
        raise ModelError(f"its mode '{mode[:20]}' is not one of constant, {', '.join(_PAD_MODES)}")
    return _pad_by_itself(x, amounts, _PAD_MODES[mode])


def _pad_by_itself(x: Tensor, amounts: list[tuple[int, int]], mode: str) -> Tensor:
    """Pad with entries of the tensor; what is to be cut away is cut first, as the specification has it."""
    for axis, (before, after) in enumerate(amounts):
        if min(before, after) < 0:
            x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    amounts = [(max(before, 0), max(after, 0)) for before, after in amounts]
    padded = [axis for axis, pair in enumerate(amounts) if any(pair)]
    plain = min(x.dim() - 1, 2)  # torch's modes never pad the rows and channels of an image, and want them left out
    if 0 < x.dim() <= 5 and padded and padded[0] >= plain:
        return functional.pad(x, [amount for pair in reversed(amounts[plain:]) for amount in pair], mode)
    for axis in padded:
        x = x.index_select(axis, _places(x, axis, *amounts[axis], mode))
    return x


def _places(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Which entries of a dimension stand in the padded one."""
    length = x.shape[axis]
    check_bytes(8 * (before + length + after), f"padding {length} entries by {before} and {after}")
    places = torch.arange(-before, length + after, device=x.device)
    if mode == "replicate":
        return places.clamp(0, length - 1)
    if mode == "circular":
        return places % length
    if max(before, after) >= length:
        raise ModelError(f"it reflects {max(before, after)} entries of {length}")
    return length - 1 - (length - 1 - places.abs()).abs()


def _expand(node: Node, x: Tensor, shape: Ints | int) -> Tensor:
    return torch.broadcast_to(x, torch.broadcast_shapes(x.shape, several(shape)))


def _tile(node: Node, x: Tensor, repeats: Ints | int) -> Tensor:
    repeats = several(repeats)
    if len(repeats) != x.dim() or any(count < 0 for count in repeats):
        raise ModelError(f"its repeats {repeats} are not one count for each of {x.dim()} dimensions")
    return x.repeat(*repeats) if repeats else x.clone()


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    size, mode = node.get("blocksize"), node.get("mode", "DCR")
    rows, channels, height, width = x.shape
    if mode == "CRD":
        return functional.pixel_shuffle(x, size)
    if mode != "DCR" or size < 1 or channels % size**2:
        raise ModelError(f"mode '{mode[:20]}' and blocks of {size} do not suit {channels} channels")
    blocks = x.reshape(rows, size, size, channels // size**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(rows, channels // size**2, height * size, width * size)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    size = node.get("blocksize")
    rows, channels, height, width = x.shape
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(x, size)
    if node.get("mode", "DCR") != "DCR" or size < 1 or height % size or width % size:
        raise ModelError(f"blocks of {size} do not suit images of {height} by {width}")
    blocks = x.reshape(rows, channels, height // size, size, width // size, size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(rows, channels * size**2, height // size, width // size)


def _triangle(node: Node, x: Tensor, k: int | Ints = 0) -> Tensor:
    (k,) = several(k)
    return torch.triu(x, k) if node.get("upper", 1) else torch.tril(x, k)


def _constant(node: Node) -> Tensor:
    """Only numbers and tensors of them: what is made of text is refused where attributes are read."""
    value: Any
    ((kind, value),) = node.attributes.items()
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32 if "float" in kind else torch.int64)


def _constant_of_shape(node: Node, shape: Ints | int, like: Tensor) -> Tensor:
    """Filled with one value; ``like`` has its type, and lies where the result has to."""
    value = node.get("value", torch.zeros(1))
    if value.numel() != 1:
        raise ModelError(f"its value has {value.numel()} entries, and fills a shape with one")
    return torch.full(several(shape), value.item(), dtype=like.dtype, device=like.device)


def _range(node: Node, start: float, limit: float, step: float, like: Tensor) -> Tensor:
    """``start + i step`` for as many ``i`` as stay below the limit."""
    if step == 0 or not math.isfinite((limit - start) / step):
        raise ModelError(f"from {start} to {limit} by {step} is no range")
    count = max(math.ceil((limit - start) / step), 0)
    check_bytes(count * like.element_size(), f"a range of {count} entries")
    return start + torch.arange(count, dtype=like.dtype, device=like.device) * step


MOVES: dict[str, Operator] = {
    "Concat": operator(_concat, "axis"),
    "Constant": operator(_constant, "value value_float value_floats value_int value_ints sparse_value"),
    "ConstantOfShape": operator(_constant_of_shape, "value", 0),
    "DepthToSpace": operator(_depth_to_space, "blocksize mode"),
    "Expand": operator(_expand, "", 1),
    "Flatten": operator(_flatten, "axis"),
    "Gather": operator(_gather, "axis", scalars=True),
    "GatherElements": operator(_gather_elements, "axis"),
    "GatherND": operator(_gather_nd, "batch_dims"),
    "Pad": operator(_pad, "mode pads value", 1, 2, 3),
    "Range": operator(_range, "", 0, 1, 2),
    "Reshape": operator(reshape, "allowzero", 1),
    "Shape": operator(_shape_of, "start end"),
    "Size": operator(_size),
    "Slice": operator(_slice, "starts ends axes", 1, 2, 3, 4),
    "SpaceToDepth": operator(_space_to_depth, "blocksize mode"),
    "Split": operator(_split, "axis num_outputs split", 1),
    "Squeeze": operator(_squeeze, "axes", 1),
    "Tile": operator(_tile, "", 1),
    "Transpose": operator(_transpose, "perm"),
    "Trilu": operator(_triangle, "upper", 1),
    "Unsqueeze": operator(_unsqueeze, "axes", 1),
}
