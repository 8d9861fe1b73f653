"""Arithmetic, activations, reductions, and operators that move values around.

Every rule follows the operator's text in the ONNX specification (https://onnx.ai/onnx/operators), in the version that
the graph's opset names; rules that changed between opsets take the attribute form and the input form alike.

A rule is called as ``rule(node, *inputs)``. Integers of at most one dimension (shapes, axes, indices) are Python
integers or tuples of them, scalars are Python numbers, and an input left out is None. To add an operator, write a rule
and name it in the table at the end.
"""

from __future__ import annotations

import math
import operator as python
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node, Rule

Ints = tuple[int, ...]


def _plain(function: Rule, node: Node, *inputs: Tensor) -> Tensor:
    """Apply a function that needs no attribute of the node."""
    result: Tensor = function(*inputs)
    return result


def _identity(node: Node, x: Tensor, *_: object) -> Tensor:
    # also a dropout, which does nothing at inference
    return x


def _cast(node: Node, x: Tensor) -> Tensor:
    # the module computes in the one dtype to which its user moved it, so a cast between floating types says nothing
    if node.get("to") not in {1, 10, 11, 16}:
        raise ModelError("a cast of tensors to anything but a floating type is not supported")
    return x


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | float | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.T if node.get("transA", 0) else a
    weight = b if node.get("transB", 0) else b.T
    if alpha == beta == 1 and isinstance(c, Tensor) and c.dim() == 1 and len(c) == len(weight):
        return functional.linear(a, weight, c)
    product = functional.linear(a, weight)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = node.get("min", low), node.get("max", high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _softmax(node: Node, x: Tensor) -> Tensor:
    if node.opset >= 13:
        return x.softmax(node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()  # before opset 13: over all dimensions from this one on
    return x.flatten(axis).softmax(-1).reshape(x.shape)


def _batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ModelError("only the inference form with one mean per channel is supported; export in eval mode")
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def _reduce(node: Node, x: Tensor, axes: Ints | None = None) -> Tensor:
    axes = node.get("axes", axes)
    if not axes and node.get("noop_with_empty_axes", 0):
        return x
    function = torch.mean if node.op == "ReduceMean" else torch.sum
    return function(x, dim=axes or tuple(range(x.dim())), keepdim=bool(node.get("keepdims", 1)))


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.flatten(1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(node: Node, x: Tensor, shape: Ints) -> Tensor:
    if not node.get("allowzero", 0):
        shape = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(shape))
    return x.reshape(shape)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", tuple(reversed(range(x.dim())))))


def _unsqueeze(node: Node, x: Tensor, axes: Ints | int | None = None) -> Tensor:
    axes = _several(node.get("axes", axes))
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node, x: Tensor, axes: Ints | int | None = None) -> Tensor:
    axes = node.get("axes", axes)
    return x.squeeze() if axes is None else x.squeeze(_several(axes))


def _shape_of(node: Node, x: Tensor) -> Ints:
    return tuple(x.shape)[node.get("start", 0) : node.get("end")]


def _concat(node: Node, *tensors: Tensor) -> Tensor:
    axis = node.get("axis")
    if axis % tensors[0].dim() != 0:  # a constant beside the input, exported with one row, belongs to every row
        rows = next((x.shape[0] for x in tensors if x.shape[0] != 1), 1)
        tensors = tuple(x.expand(rows, *x.shape[1:]) for x in tensors)
    return torch.cat(tensors, axis)


def _split(node: Node, x: Tensor, sizes: Ints | None = None) -> list[Tensor]:
    axis = node.get("axis", 0)
    sizes = node.get("split", sizes)
    if sizes is None:  # equal parts, the last one smaller where that does not work out
        length, parts = x.shape[axis], node.get("num_outputs", len(node.outputs))
        part = -(-length // parts)
        sizes = (*[part] * (parts - 1), length - part * (parts - 1))
    return list(torch.split(x, list(sizes), axis))


def _gather(node: Node, x: Tensor, indices: Tensor | int) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    if isinstance(indices, Tensor):
        return x[(slice(None),) * axis + (indices,)]
    return x.select(axis, indices)


def _slice(
    node: Node,
    x: Tensor,
    starts: Ints | None = None,
    ends: Ints | None = None,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Tensor:
    starts, ends, axes = node.get("starts", starts), node.get("ends", ends), node.get("axes", axes)
    if starts is None or ends is None:
        raise ModelError("its starts and ends are missing")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    window, backwards = [slice(None)] * x.dim(), []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:  # torch only walks forwards: take the same elements in rising order, then turn them round
            rising = range(x.shape[axis])[start:end:step][::-1]
            window[axis] = slice(rising.start, rising.stop, rising.step)
            backwards.append(axis)
        else:
            window[axis] = slice(start, end, step)
    x = x[tuple(window)]
    return x.flip(backwards) if backwards else x


def _pad(
    node: Node, x: Tensor, pads: Ints | None = None, value: float | None = None, axes: Ints | None = None
) -> Tensor:
    pads = node.get("pads", pads)
    if pads is None:
        raise ModelError("its pads are missing")
    value = node.get("value", value)
    axes = tuple(range(x.dim())) if axes is None else tuple(axis % x.dim() for axis in axes)
    amounts = [(0, 0)] * x.dim()
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        amounts[axis] = (before, after)
    mode = node.get("mode", "constant")
    if mode != "constant":  # torch's other modes never pad the rows and channels, and want them left out
        plain = min(x.dim() - 1, 2)
        amounts = amounts[plain:] if not any(map(any, amounts[:plain])) else amounts
    flat = [amount for pair in reversed(amounts) for amount in pair]  # torch starts at the last dimension
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else value)
    return functional.pad(x, flat, {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def _several(axes: Ints | int) -> Ints:
    return (axes,) if isinstance(axes, int) else axes


OPERATORS: dict[str, Rule] = {
    "Add": partial(_plain, python.add),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Div": partial(_plain, python.truediv),
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": partial(_plain, torch.matmul),
    "Mul": partial(_plain, python.mul),
    "Neg": partial(_plain, python.neg),
    "Pad": _pad,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Relu": partial(_plain, torch.relu),
    "Reshape": _reshape,
    "Shape": _shape_of,
    "Sigmoid": partial(_plain, torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": partial(_plain, python.sub),
    "Tanh": partial(_plain, torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
