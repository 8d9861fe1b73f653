"""Softmax, with and without a mask, its logarithm, and attention."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.linear import Monotone, Scale, Sum
from holdfast.certify.bounds.operations.logsumexp import LogSumExp
from holdfast.certify.bounds.relaxations import ACTIVATIONS
from holdfast.certify.bounds.rules.arithmetic import add, affine
from holdfast.certify.bounds.rules.builder import Builder, Symbol, check_dims, example_shape, pick, reshaped, turn
from holdfast.certify.bounds.rules.choosing import fixed
from holdfast.certify.bounds.rules.elementwise import activation
from holdfast.certify.bounds.rules.products import matmul
from holdfast.errors import ModelError

__all__ = ["attention", "log_softmax", "log_sum_exp", "softmax"]


def attention(
    builder: Builder, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Symbol:  # fmt: skip
    """``softmax(q k^T / sqrt(width)) v``."""
    if enable_gqa or dropout:
        raise ModelError("attention is bounded without dropout and grouped queries")
    scores = (*builder.shape[:-1], k.shape[-2])
    at = builder.at(builder.name, builder.target, scores)
    turned = builder.move(
        partial(torch.transpose, dim0=-1, dim1=-2), k, shape=(*k.shape[:-2], k.shape[-1], k.shape[-2])
    )
    factor = scale or 1 / math.sqrt(q.shape[-1])
    weights = matmul(at, affine(builder, q, factor, 0.0) if isinstance(q, Symbol) else q * factor, turned)
    kept = None
    if causal:
        kept = torch.ones(scores[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        kept = mask if kept is None else mask & kept
    elif mask is not None:
        weights = add(at, weights, mask)
    return matmul(builder, _masked_softmax(at, weights, -1, kept), v)


def softmax(builder: Builder, x: Any, dim: int, *_: Any) -> Symbol:
    """Along one dimension, which is not the batch."""
    return _masked_softmax(builder, x, dim, None)


def _masked_softmax(builder: Builder, x: Any, dim: int, kept: Tensor | None) -> Symbol:
    """What a constant mask does not keep is 0, and so is its part in the sums.

    Whatever the network puts there, minus infinity or a large number, goes no farther.
    """
    builder = builder.between()
    check_dims(x, [dim])
    place = dim % len(x.shape)
    whole, (x, found, numbers) = turn(builder, x, place, -1), _unmasked(builder, x)
    last = turn(builder, x, place, -1)
    masks = [mask.expand(x.shape).movedim(place, -1) for mask in (kept, found) if mask is not None]
    mask = torch.stack(masks).all(0) if masks else None
    if mask is not None and not bool(mask.any(-1).all()):
        raise ModelError("a softmax of which everything is masked is not defined")
    if last.shape[-1] == 1:
        return fixed(builder, whole, 1.0)
    weights = _kept(builder, _shares(builder, last, mask), mask)
    if mask is not None and numbers is not None:
        shape = example_shape(last.shape)
        lost = partial(_masking, kept=mask.reshape(shape), numbers=numbers.movedim(place, -1).reshape(shape))
        same = Monotone(partial(reshaped, shape=shape), separate=True)
        weights = builder.add(same, weights, shape=last.shape, error=lost, also=[last, whole])
    return turn(builder, weights, -1, place)


def _shares(builder: Builder, x: Symbol, mask: Tensor | None) -> Symbol:
    """``1 / (1 + sum_j exp(z_j - z_k))`` over all other ``j`` of the last dimension that a mask keeps.

    No product, and at most 1 whatever the bounds.
    """
    count = x.shape[-1]
    pairs = (*x.shape, count - 1)
    others = torch.tensor([[j for j in range(count) if j != k] for k in range(count)], dtype=torch.int64)
    each = builder.move(partial(pick, places=others), x, shape=pairs)
    own = builder.move(partial(_repeated, count=count - 1), x, shape=pairs)
    both = None if mask is None else mask[..., others] & mask.unsqueeze(-1)
    distances = _kept(builder, builder.add(Sum((1, -1)), each, own, shape=pairs), both)
    powers = _kept(builder, activation("exp", builder, distances), both)
    total = builder.move(partial(torch.sum, dim=-1), powers, shape=x.shape, terms=count)
    total = affine(builder, total, 1.0, 1.0)
    error = partial(_softmax_error, count=count)
    return builder.add(Elementwise(ACTIVATIONS["reciprocal"]), total, shape=x.shape, error=error)


def _kept(builder: Builder, x: Symbol, mask: Tensor | None) -> Symbol:
    """The values that a mask keeps; 0 in the place of the others."""
    if mask is None:
        return x
    return builder.add(Monotone(partial(_kept_values, mask=mask.reshape(example_shape(x.shape)))), x, shape=x.shape)


def _kept_values(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.to(x.device), x, 0)


def _masking(
    unit: float, weights: Interval, scores: Interval, whole: Interval, *, kept: Tensor, numbers: Tensor
) -> Tensor:
    """What numbers that were put in the place of others take of a softmax: the share of their exponentials."""
    kept, numbers = (mask.to(scores.lower.device) for mask in (kept, numbers))
    most = scores.lower.masked_fill(~kept, -torch.inf).amax(-1, keepdim=True)
    beyond = whole.upper.masked_fill(~numbers, -torch.inf)
    found = (beyond - most).exp().sum(-1, keepdim=True) * (1 + 4 * kept.shape[-1] * torch.finfo(most.dtype).eps)
    return found.nan_to_num(1.0).clamp(0, 1).expand(weights.lower.shape)


# Constants of this size, from which nothing that depends on the input comes back, are meant as minus infinity.
_MASKED = -1e4


def _unmasked(builder: Builder, x: Symbol) -> tuple[Symbol, Tensor | None, Tensor | None]:
    """A value without the large negative numbers that were put into it or added to it.

    And where there are none, and where there are some that are not minus infinity.

    They are looked for in the moves and shifts that lead to the value.
    """
    steps, number = list[int](), x.node
    while isinstance(builder.nodes[number].operation, Monotone | Scale) and len(builder.nodes[number].inputs) == 1:
        steps.append(number)
        number = builder.nodes[number].inputs[0]
    value = torch.zeros(1, *builder.nodes[number].shape, dtype=builder.dtype)
    found = Symbol(number, (1, *builder.nodes[number].shape))
    masked = torch.zeros_like(value, dtype=torch.bool)
    with torch.no_grad():
        for step in reversed(steps):
            node = builder.nodes[step]
            assert isinstance(node.operation, Monotone | Scale)
            value = node.operation.apply(value)
            masked = value <= _MASKED
            operation = _emptied(node.operation, masked[0]) if bool(masked.any()) else node.operation
            at = replace(builder, executed=node.executed)
            found = at.add(operation, found, shape=(1, *node.shape))
    if not bool(masked.any()):
        return x, None, None
    finite = masked & (value > -torch.inf)
    numbers = finite.reshape(x.shape) if bool(finite.any()) else None
    return Symbol(found.node, x.shape), ~masked.reshape(x.shape), numbers


def _emptied(operation: Monotone | Scale, masked: Tensor) -> Monotone | Scale:
    """The operation with 0 for the constants in some places."""
    if isinstance(operation, Scale):
        shift, size = (torch.where(masked, 0, part) for part in (operation.shift, operation.size))
        return replace(operation, shift=shift, size=size)
    return replace(operation, function=partial(_without, function=operation.function, masked=masked))


def _without(*inputs: Tensor, function: Callable[..., Tensor], masked: Tensor) -> Tensor:
    return function(*inputs).masked_fill(masked.to(inputs[0].device), 0)


def _softmax_error(unit: float, x: Interval, *, count: int) -> Tensor:
    """What rounding does to a softmax.

    The distance from the largest number is rounded, which changes ``exp(-d)`` by at most ``d exp(-d)`` units; each
    exponential is good to a few, and their sum, of which the largest term is 1, loses one for each of them. Attention
    may rescale that sum as often as it meets a larger number.
    """
    return torch.full_like(x.lower, unit * (16 * count + 32))


def _repeated(x: Tensor, count: int) -> Tensor:
    return x.unsqueeze(-1).expand(*x.shape, count)


def log_softmax(builder: Builder, x: Any, dim: int, *_: Any) -> Symbol:
    """``z_k - log sum_j exp z_j``: of the difference between two classes, nothing is left of the sum."""
    total = log_sum_exp(builder, x, [dim], keep=True)
    return builder.add(Sum((1, -1)), x, builder.broadcast(total, x.shape), shape=x.shape)


def log_sum_exp(builder: Builder, x: Any, dims: Any, keep: bool = False) -> Symbol:
    """``log sum_j exp z_j`` along one dimension."""
    check_dims(x, dims)
    if len(dims) != 1:
        raise ModelError("it is bounded along one dimension only")
    place = dims[0] % len(x.shape)
    last, others = turn(builder, x, place, -1), (*x.shape[:place], *x.shape[place + 1 :])
    kept = (*x.shape[:place], 1, *x.shape[place + 1 :])
    return builder.reshaped(builder.add(LogSumExp(), last, shape=(*others, 1)), kept if keep else others)
