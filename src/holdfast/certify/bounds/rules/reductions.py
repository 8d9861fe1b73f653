"""Sums, maxima and lengths along dimensions."""

import math
from functools import partial
from typing import Any

import torch

from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.rules.arithmetic import negate
from holdfast.certify.bounds.rules.builder import Builder, Symbol, check_dims, turned_last
from holdfast.certify.bounds.rules.elementwise import absolute, activation
from holdfast.certify.bounds.rules.moves import with_settings
from holdfast.errors import ModelError

__all__ = ["max_along", "max_of", "norm", "sum_all", "sum_along", "sum_up"]


def max_along(sign: int, builder: Builder, x: Any, dims: Any = (), keep: bool = False) -> Symbol:
    """The maximum (``sign`` 1) or the minimum (-1) along some dimensions."""
    chosen = [dims] if isinstance(dims, int) else list(dims) or list(range(len(x.shape)))
    check_dims(x, chosen)
    return max_of(sign, builder, *turned_last(builder, x, chosen))


def max_of(sign: int, builder: Builder, x: Symbol, count: int) -> Symbol:
    """The maximum or the minimum of each so many numbers in turn."""
    windows = builder.reshaped(x, (1, 1, math.prod(x.shape) // count, count))
    if sign < 0:
        windows = negate(builder, windows)
    pool = MaxPool((1, count), (1, count), (0, 0), (1, 1), False)
    found = builder.add(pool, windows, shape=(1, 1, windows.shape[2], 1))
    return builder.reshaped(negate(builder, found) if sign < 0 else found, builder.shape)


def sum_along(builder: Builder, x: Any, dims: Any, *settings: Any, **more: Any) -> Symbol:
    """A sum or a mean along some dimensions."""
    check_dims(x, [dims] if isinstance(dims, int) else dims or range(len(x.shape)))
    function = partial(with_settings, function=builder.target, settings=(dims, *settings), more=more)
    terms = math.prod(x.shape) // max(1, math.prod(builder.shape))
    return builder.move(function, x, terms=max(2, terms))


def sum_all(builder: Builder, x: Any, **more: Any) -> Symbol:
    """The sum or the mean of everything."""
    return sum_along(builder, x, list(range(len(x.shape))), **more)


def sum_up(builder: Builder, x: Any, dim: int, **more: Any) -> Symbol:
    """Running sums."""
    check_dims(x, [dim])
    function = partial(with_settings, function=builder.target, settings=(dim,), more=more)
    return builder.move(function, x, terms=max(2, x.shape[dim]))


def norm(builder: Builder, x: Any, order: float = 2, dims: Any = None, keep: bool = False, **_: Any) -> Symbol:
    """The length of vectors."""
    dims = list(range(len(x.shape))) if dims is None else dims
    sizes = activation("square", builder, x) if order == 2 else absolute(builder, x)
    if order == math.inf:
        return max_along(1, builder, sizes, dims, keep)
    if order not in (1, 2):
        raise ModelError("norms of order 1, 2 and infinity are bounded")
    check_dims(x, dims)
    terms = math.prod(x.shape[dim] for dim in dims)
    total = builder.move(partial(torch.sum, dim=dims, keepdim=keep), sizes, terms=max(2, terms))
    return activation("sqrt", builder, total) if order == 2 else total
