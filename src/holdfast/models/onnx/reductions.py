"""Sums, means and extremes along axes, and what normalises by them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.onnx.node import Node

Ints = tuple[int, ...]


def _reduce(
    function: Callable[[Tensor, Ints, bool], Tensor], node: Node, x: Tensor, axes: Ints | int | None = None
) -> Tensor:
    given = node.get("axes", axes)
    axes = () if given is None else (given,) if isinstance(given, int) else given
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return _without_axes(node.op, x)
        axes = tuple(range(x.dim()))
    keep = bool(node.get("keepdims", 1))
    return function(x, axes, keep) if axes else _without_axes(node.op, x)


def _without_axes(op: str, x: Tensor) -> Tensor:
    """A reduction of each number by itself."""
    each = {"ReduceL1": torch.abs, "ReduceL2": torch.abs, "ReduceLogSum": torch.log, "ReduceSumSquare": torch.square}
    return each[op](x) if op in each else x


def _sum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    if not x.is_floating_point():  # which torch would widen
        return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)
    return torch.sum(x, axes, keepdim=keep)


def _mean(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    if not x.is_floating_point():
        raise ModelError("the mean of whole numbers is not supported")
    return torch.mean(x, axes, keepdim=keep)


def _product(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(name: str, x: Tensor, axes: Ints, keep: bool) -> Tensor:
    if x.dtype == torch.bool:
        return _extreme(name, x.to(torch.uint8), axes, keep).to(torch.bool)
    function: Callable[..., Tensor] = getattr(torch, name)
    return function(x, axes, keepdim=keep)


def _absolute_sum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return _sum(torch.abs(x), axes, keep)


def _length(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.sqrt(_sum(torch.square(x), axes, keep))


def _log_sum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _sum_of_squares(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return _sum(torch.square(x), axes, keep)


def _cumulative_sum(node: Node, x: Tensor, axis: int | Ints) -> Tensor:
    (axis,) = axis if isinstance(axis, tuple) else (axis,)
    turned = x.flip(axis) if node.get("reverse", 0) else x
    total = torch.cumsum(turned, axis, dtype=x.dtype)
    if node.get("exclusive", 0):
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if node.get("reverse", 0) else total


def _softmax(function: Callable[[Tensor, int], Tensor], node: Node, x: Tensor) -> Tensor:
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1)  # before opset 13: over all dimensions from this one on
    if not -x.dim() <= axis < x.dim():
        raise ModelError(f"its axis {axis} is not one of {x.dim()} dimensions")
    return function(x.flatten(axis), -1).reshape(x.shape)


def _batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ModelError("only the inference form with one mean per channel is supported; export in eval mode")
    if node.opset < 14 and len(node.outputs) > 1 and any(node.outputs[1:]):
        raise ModelError("it gives the statistics of the batch, as in training; export in eval mode")
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def _instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


def _group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    # a scale for each channel; the form of opset 18, with one for each group, is deprecated and refused
    return functional.group_norm(x, node.get("num_groups"), scale, bias, node.get("epsilon", 1e-5))


def _layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    normal = _normal_shape(node, x)
    epsilon = node.get("epsilon", 1e-5)
    if scale.shape == normal and (bias is None or bias.shape == normal):
        return functional.layer_norm(x, normal, scale, bias, epsilon)
    unit = functional.layer_norm(x, normal, None, None, epsilon) * torch.broadcast_to(scale, x.shape)
    return unit if bias is None else unit + torch.broadcast_to(bias, x.shape)


def _rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(-len(_normal_shape(node, x)), 0))
    mean_square = torch.mean(torch.square(x), axes, keepdim=True)
    return x / torch.sqrt(mean_square + node.get("epsilon", 1e-5)) * scale


def _normal_shape(node: Node, x: Tensor) -> torch.Size:
    """The dimensions that are normalised together; the types of their statistics are no narrower than x's."""
    if node.get("stash_type", 1) not in {1, 11}:
        raise ModelError("statistics of any type but float and double are not supported")
    axis = node.get("axis", -1)
    if not -x.dim() <= axis < x.dim():
        raise ModelError(f"its axis {axis} is not one of {x.dim()} dimensions")
    return x.shape[axis:]


def _mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes", (0, 2, 3))
    centred = x - torch.mean(x, axes, keepdim=True)
    return centred / (torch.sqrt(torch.mean(torch.square(centred), axes, keepdim=True)) + 1e-9)


def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    axis, p = node.get("axis", -1), node.get("p", 2)
    if p not in {1, 2}:
        raise ModelError(f"its norm p is {p}, and the specification knows 1 and 2")
    size = (_absolute_sum if p == 1 else _length)(x, (axis,), True)
    return torch.where(size == 0, torch.zeros_like(x), x / size)


def _local_response(node: Node, x: Tensor) -> Tensor:
    size, alpha, beta = node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75)
    if not 1 <= size <= 2 * x.shape[1] + 1:
        raise ModelError(f"its size {size} does not suit {x.shape[1]} channels")
    before = (size - 1) // 2
    squares = torch.square(x).unsqueeze(1)
    padded = functional.pad(squares, (*[0, 0] * (x.dim() - 2), before, size - 1 - before))
    near = sum((padded.narrow(2, i, x.shape[1]) for i in range(size)), start=torch.zeros_like(squares)).squeeze(1)
    return x / torch.pow(node.get("bias", 1.0) + alpha / size * near, beta)


def _reduction(function: Callable[..., Any]) -> Operator:
    return operator(partial(_reduce, function), "axes keepdims noop_with_empty_axes", 1)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


def _plain_softmax(x: Tensor, axis: int) -> Tensor:
    return torch.softmax(x, axis)


REDUCTIONS: dict[str, Operator] = {
    "BatchNormalization": operator(_batch_normalization, "epsilon momentum spatial training_mode"),
    "CumSum": operator(_cumulative_sum, "exclusive reverse", 1),
    "GroupNormalization": operator(_group_normalization, "epsilon num_groups stash_type"),
    "InstanceNormalization": operator(_instance_normalization, "epsilon"),
    "LRN": operator(_local_response, "alpha beta bias size"),
    "LayerNormalization": operator(_layer_normalization, "axis epsilon stash_type"),
    "LogSoftmax": operator(partial(_softmax, _log_softmax), "axis"),
    "LpNormalization": operator(_lp_normalization, "axis p"),
    "MeanVarianceNormalization": operator(_mean_variance_normalization, "axes"),
    "RMSNormalization": operator(_rms_normalization, "axis epsilon stash_type"),
    "ReduceL1": _reduction(_absolute_sum),
    "ReduceL2": _reduction(_length),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(partial(_extreme, "amax")),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(partial(_extreme, "amin")),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_sum_of_squares),
    "Softmax": operator(partial(_softmax, _plain_softmax), "axis"),
}
