"""Normalisation by fixed statistics and by those of an example, and variances."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import relu
from holdfast.certify.bounds.operations.linear import Dense, Monotone, Sum
from holdfast.certify.bounds.operations.product import Product
from holdfast.certify.bounds.relaxations import clamp
from holdfast.certify.bounds.rounding import largest
from holdfast.certify.bounds.rules.arithmetic import affine
from holdfast.certify.bounds.rules.builder import (
    Builder,
    Symbol,
    by_channel,
    check_dims,
    example_shape,
    reshaped,
    turned_last,
)
from holdfast.certify.bounds.rules.elementwise import activation, reciprocal_root
from holdfast.errors import ModelError

__all__ = [
    "batch_norm",
    "batch_norm_in_evaluation",
    "batch_statistics",
    "deviation_along",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "variance_along",
]

# Of a batch normalisation, whichever way it is computed: a root, a quotient, products and sums.
_NORMALISED = 12


def instance_norm(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float,
    *_: Any,
) -> Symbol:  # fmt: skip
    """By the statistics of each channel of an example, or by fixed ones."""
    if own:
        return group_norm(builder, x, x.shape[1], weight, bias, eps)
    return batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)


def batch_norm(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> Symbol:  # fmt: skip
    """By fixed statistics: a factor and a shift for each channel."""
    if training or mean is None or var is None:
        return batch_statistics(builder)
    factor = 1 / (var + eps).sqrt()
    factor = factor if weight is None else factor * weight
    shift, size = -mean * factor, (mean * factor).abs()
    if bias is not None:
        shift, size = shift + bias, size + bias.abs()
    lost = partial(_vanishing, center=builder.constant(by_channel(mean, x.shape), x.shape), network=builder.network)
    vanishes = bool(((factor != 0) & (factor.abs() < 2 * torch.finfo(builder.network).tiny)).any())
    factor, shift, size = (by_channel(values, x.shape) for values in (factor, shift, size))
    return affine(builder, x, factor, shift, size=size, roundings=_NORMALISED, error=lost if vanishes else None)


def _vanishing(unit: float, x: Interval, *, center: Tensor, network: torch.dtype) -> Tensor:
    """What a factor loses that is made in several steps and is too small a number, times what it is multiplied with."""
    info = torch.finfo(network)
    smallest = _NORMALISED * info.tiny * info.eps * bool(unit)
    return (largest(x) + center.abs().to(largest(x))) * smallest


def batch_norm_in_evaluation(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Symbol:
    """The same under the name that it has in evaluation."""
    return batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)


def batch_statistics(builder: Builder, *_: Any) -> Symbol:
    """Refuse to normalise by the batch."""
    raise ModelError("it normalises by the statistics of the batch, which ties the rows together")


# Of more numbers than this the mean is taken off as a number, which bounds hardly notice: the matrix grows too large.
_WIDEST = 1024


def _mean_along(builder: Builder, x: Symbol) -> Symbol:
    """Along the last dimension, which stays."""
    mean = partial(torch.mean, dim=-1, keepdim=True)
    return builder.move(mean, x, shape=(*x.shape[:-1], 1), terms=x.shape[-1])


def _centred(builder: Builder, x: Symbol) -> Symbol:
    """Without its mean along the last dimension."""
    width = x.shape[-1]
    if width > _WIDEST:
        mean = builder.broadcast(_mean_along(builder, x), x.shape)
        return builder.add(Sum((1, -1)), x, mean, shape=x.shape)
    unit = torch.eye(width, dtype=builder.dtype)
    return builder.add(Dense(unit - 1 / width, None), x, shape=x.shape)


def _standardised(builder: Builder, x: Symbol, eps: float) -> Symbol:
    """Zero mean and unit variance along the last dimension."""
    width, ideal = x.shape[-1], builder.between()
    centred = _centred(ideal, x)
    variance = _mean_along(ideal, activation("square", ideal, centred))
    inverse = reciprocal_root(ideal, affine(ideal, variance, 1.0, eps))
    wide = ideal.broadcast(inverse, x.shape)
    product = ideal.add(Product(), centred, wide, shape=x.shape)
    # No number is farther from the mean of its kind than the root of their count times the deviation. Bounds of the
    # three parts do not know that of each other.
    most = float(math.isqrt(width - 1) + 1)
    value = ideal.add(Elementwise(replace(clamp(-most, most), ends=None)), product, shape=x.shape)
    same = Monotone(partial(reshaped, shape=example_shape(x.shape)), separate=True)
    return ideal.add(same, value, shape=x.shape, error=partial(_standardising, eps=eps), also=[wide, x])


def variance_along(
    builder: Builder, x: Any, dims: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Symbol:
    """The variance along some dimensions, or of everything."""
    dims = list(dims or range(len(x.shape)))
    check_dims(x, dims)
    ideal = builder.between()
    turned, count = turned_last(ideal, x, dims)
    flat = ideal.reshaped(turned, (1, math.prod(x.shape) // count, count))
    mean = _mean_along(ideal, activation("square", ideal, _centred(ideal, flat)))
    freedom = count - (1 if correction is None else correction)
    if freedom <= 0:
        raise ModelError("the variance of so few numbers is not defined")
    share = count / freedom
    value = ideal.reshaped(affine(ideal, mean, share, 0.0), builder.shape)
    same = Monotone(partial(reshaped, shape=example_shape(builder.shape)), separate=True)
    found = ideal.add(same, value, error=partial(_varying, count=count, share=share), also=[x])
    return ideal.add(relu(), found)  # rounding makes none negative


def _varying(unit: float, value: Interval, x: Interval, *, count: int, share: float) -> Tensor:
    """What rounding does to a variance, as :func:`_standardising` says."""
    most = largest(x).flatten(1).amax(1).square() * (share * unit * (4 * count + 20))
    return most.reshape(-1, *[1] * (value.lower.dim() - 1)).expand(value.lower.shape)


def deviation_along(builder: Builder, x: Any, dims: Any = None, **settings: Any) -> Symbol:
    """The root of the variance."""
    return activation("sqrt", builder, variance_along(builder, x, dims, **settings))


def _standardising(unit: float, value: Interval, inverse: Interval, x: Interval, *, eps: float) -> Tensor:
    """What rounding does to a standardised value.

    However a variance of ``n`` numbers is computed, from the sum of their squares or from their distances from the
    mean, it is off by at most a few ``n`` units of the largest square among them (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", table 1). Whatever is left of one, it is not negative.
    """
    count = x.lower.shape[-1]
    reach, scale = largest(x).amax(-1, keepdim=True), inverse.upper
    # By how much the root of the variance is off, relatively; from a quarter on only the sizes are known.
    relative = unit * ((4 * count + 20) * (reach * scale).square() + 8)
    size = torch.minimum(torch.full_like(scale, float(count) ** 0.5), 2 * reach * scale)
    room = 2 * relative * size + unit * (count + 12) * reach * scale
    most = 4 * (1 + 8 * unit) * reach / eps**0.5 if eps else torch.full_like(reach, torch.inf)
    return torch.where(relative < 0.25, torch.minimum(room, most), most).expand(x.lower.shape)


def layer_norm(
    builder: Builder, x: Any, normal: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Symbol:
    """Zero mean and unit variance over the last dimensions, then a factor and a shift."""
    leading = x.shape[: len(x.shape) - len(normal)]
    flat = builder.reshaped(x, (*leading, math.prod(normal)))
    unit = builder.reshaped(_standardised(builder, flat, eps), x.shape)
    return affine(builder, unit, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


def group_norm(
    builder: Builder, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Symbol:
    """Zero mean and unit variance over each group of channels, then a factor and a shift."""
    flat = builder.reshaped(x, (1, groups, math.prod(x.shape) // groups))
    unit = builder.reshaped(_standardised(builder, flat, eps), x.shape)
    factor, shift = (
        default if values is None else by_channel(values, x.shape) for values, default in ((weight, 1.0), (bias, 0.0))
    )
    return affine(builder, unit, factor, shift)
