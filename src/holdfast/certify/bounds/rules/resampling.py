"""Upsampling, to the nearest pixel and by linear interpolation."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.linear import Dense, Monotone
from holdfast.certify.bounds.rounding import largest
from holdfast.certify.bounds.rules.builder import Builder, Symbol, example_shape, pick, reshaped, turn
from holdfast.errors import ModelError

__all__ = ["upsample_linear", "upsample_nearest"]


def upsample_nearest(builder: Builder, x: Any, *settings: Any) -> Symbol:
    """The pixel that torch takes for the nearest."""
    lead, size = x.shape[:2], x.shape[2:]
    places = torch.arange(math.prod(size)).reshape(1, 1, *size)
    index = builder.target(places.double(), *settings).long().flatten()
    # Where they are is computed in the precision of the numbers.
    if not torch.equal(builder.target(places.float(), *settings).long().flatten(), index):
        raise ModelError("it takes other pixels in float32 than in float64; choose another size")
    flat = builder.reshaped(x, (*lead, math.prod(size)))
    return builder.reshaped(builder.move(partial(pick, places=index), flat, shape=(*lead, len(index))), builder.shape)


def upsample_linear(
    builder: Builder, x: Any, sizes: Any, corners: bool, factors: Sequence[float] | None = None
) -> Symbol:
    """Along one axis after the other, by weights that are exact."""
    ideal, value = builder.between(), x
    lengths = x.shape[2:]
    for axis, (length, count) in enumerate(zip(lengths, builder.shape[2:], strict=True), 2):
        matrix = _interpolation(length, count, None if factors is None else factors[axis - 2], corners)
        turned = turn(ideal, value, axis, -1)
        drawn = ideal.add(Dense(matrix.to(ideal.dtype), None), turned, shape=(*turned.shape[:-1], count))
        value = turn(ideal, drawn, -1, axis)
    same = Monotone(partial(reshaped, shape=example_shape(value.shape)), separate=True)
    return builder.add(same, value, shape=value.shape, error=partial(_interpolating, lengths=lengths), also=[x])


def _interpolation(length: int, count: int, factor: float | None, corners: bool) -> Tensor:
    """``(count, length)`` the weights of linear interpolation, each rounded once."""
    weights = torch.zeros(count, length, dtype=torch.float64)
    for place in range(count):
        if corners:
            source = Fraction(place * (length - 1), count - 1) if count > 1 else Fraction(0)
        else:
            step = Fraction(length, count) if factor is None else Fraction(1 / factor)
            source = max(Fraction(0), step * (place + Fraction(1, 2)) - Fraction(1, 2))
        first = min(int(source), length - 1)
        second = min(first + 1, length - 1)
        share = min(source - first, Fraction(1))
        weights[place, first] += float(1 - share)
        weights[place, second] += float(share)
    return weights


def _interpolating(unit: float, value: Interval, x: Interval, *, lengths: Sequence[int]) -> Tensor:
    """What rounding does: each place is off by a few units of the axis' length, and so are the two weights there."""
    share = sum(8 * length + 32 for length in lengths) * 2 * unit
    most = largest(x).flatten(1).amax(1)
    return (most * share).reshape(-1, *[1] * (value.lower.dim() - 1)).expand(value.lower.shape)
