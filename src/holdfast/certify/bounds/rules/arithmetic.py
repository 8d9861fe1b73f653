"""Sums, differences, products and quotients of numbers, one by one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.operations.kink import relu
from holdfast.certify.bounds.operations.linear import Scale, Sum
from holdfast.certify.bounds.operations.product import Product
from holdfast.certify.bounds.relaxations import ACTIVATIONS, silu
from holdfast.certify.bounds.rules.builder import Builder, Symbol, applied, is_applied
from holdfast.errors import ModelError

__all__ = ["add", "affine", "divide", "maximum", "minimum", "multiply", "negate", "reverse_subtract", "subtract"]


def add(builder: Builder, a: Any, b: Any, sign: int = 1, *, alpha: float = 1) -> Symbol:
    """``a + sign * alpha * b``, of which one may be a constant."""
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if alpha != 1:
            b = affine(builder, b, alpha, 0.0)
        return builder.add(Sum((1, sign)), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    if isinstance(a, Symbol):
        return affine(builder, builder.broadcast(a, builder.shape), 1.0, b * (sign * alpha))
    return affine(builder, builder.broadcast(b, builder.shape), sign * alpha, a)


# Roundings of a factor, of a shift, of their product with a value and of the sum; and some to spare.
_SCALED = 6


def affine(
    builder: Builder,
    x: Symbol,
    factor: Tensor | float,
    shift: Tensor | float,
    *,
    size: Tensor | float | None = None,
    roundings: int = _SCALED,
    error: Callable[..., Tensor] | None = None,
) -> Symbol:
    """``factor * x + shift``; the shift is made of terms whose sizes add up to ``size``."""
    factor, shift = builder.constant(factor, x.shape), builder.constant(shift, x.shape)
    if not bool((factor.abs() <= torch.finfo(builder.network).max).all()):
        raise ModelError(f"it multiplies by a number that {builder.network} does not hold")
    size = shift.abs() if size is None else builder.constant(size, x.shape)
    before = builder.nodes[x.node]
    first = before.operation
    # Such as the two steps of a normalisation: one pass will do, if nothing between them is larger than what comes out.
    alike = before.executed == builder.executed and before.error is None
    if isinstance(first, Scale) and alike and _grows(first.shift, factor, shift):
        size = first.size * factor.abs() + size
        roundings += first.roundings
        factor, shift = first.factor * factor, first.shift * factor + shift
        x = Symbol(before.inputs[0], x.shape)
    return builder.add(Scale(factor, shift, size, roundings), x, shape=x.shape, error=error)


def _grows(before: Tensor, factor: Tensor, shift: Tensor) -> bool:
    """Whether neither a factor nor a further shift makes anything smaller: ``(x + 1e6) - 1e6`` is not ``x``."""
    moved = before * factor
    return bool(((factor.abs() >= 1) & ((moved + shift).abs() >= moved.abs())).all())


def subtract(builder: Builder, a: Any, b: Any, *, alpha: float = 1) -> Symbol:
    """``a - alpha * b``."""
    return add(builder, a, b, -1, alpha=alpha)


def reverse_subtract(builder: Builder, a: Any, b: Any, alpha: float = 1) -> Symbol:
    """``b - alpha * a``."""
    return add(builder, b, a, -1, alpha=alpha)


def multiply(builder: Builder, a: Any, b: Any) -> Symbol:
    """The product of two values, or of a value and a constant."""
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if a == b:
            return applied(builder, ACTIVATIONS["square"], a)
        if is_applied(builder, "sigmoid", b, a) or is_applied(builder, "sigmoid", a, b):
            return applied(builder, silu(), a if is_applied(builder, "sigmoid", b, a) else b)
        return builder.add(Product(), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    x, constant = (a, b) if isinstance(a, Symbol) else (b, a)
    return affine(builder, builder.broadcast(x, builder.shape), constant, 0.0)


def divide(builder: Builder, a: Any, b: Any) -> Symbol:
    """``a`` times the reciprocal of ``b``."""
    if not isinstance(b, Symbol):
        return multiply(builder, a, 1 / torch.as_tensor(b, dtype=builder.dtype))
    return multiply(builder, a, applied(builder.between(), ACTIVATIONS["reciprocal"], b))


def negate(builder: Builder, x: Symbol) -> Symbol:
    """``-x``, which rounds nothing."""
    return affine(builder, x, -1.0, 0.0, roundings=0)


def maximum(builder: Builder, a: Any, b: Any) -> Symbol:
    """``b + relu(a - b)``."""
    ideal = builder.between()
    return add(ideal, ideal.add(relu(), subtract(ideal, a, b)), b)


def minimum(builder: Builder, a: Any, b: Any) -> Symbol:
    """``b - relu(b - a)``."""
    ideal = builder.between()
    return subtract(ideal, b, ideal.add(relu(), subtract(ideal, b, a)))
