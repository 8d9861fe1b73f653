"""Maxima and averages over windows."""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.operations.linear import Monotone
from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.rules.builder import Builder, Shape, Symbol, example_shape, pick
from holdfast.certify.bounds.rules.convolution import as_row, check_maps, pair, per_dimension
from holdfast.certify.bounds.rules.moves import with_settings
from holdfast.certify.bounds.rules.reductions import max_of
from holdfast.errors import ModelError

__all__ = ["adaptive_max_pool", "max_pool", "max_pool_3d", "pool_average"]


def max_pool(
    dimensions: int, builder: Builder, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Symbol:  # fmt: skip
    """Maxima over windows along 1 or 2 dimensions."""
    check_maps(x, dimensions)
    kernel, stride, padding, dilation = (
        per_dimension(value, dimensions) for value in (kernel, stride or kernel, padding, dilation)
    )
    if _inside(builder, x) is not None:
        return _max_inside(builder, x, kernel, stride, padding, dilation)
    if dimensions == 2:
        return builder.add(MaxPool(pair(kernel), pair(stride), pair(padding), pair(dilation), ceil_mode), x)
    pool = MaxPool((1, *kernel), (1, *stride), (0, *padding), (1, *dilation), ceil_mode)
    return as_row(builder, pool, x)


def _max_windows(builder: Builder, x: Symbol, axes: list[list[list[int]]]) -> Symbol:
    """The maxima over windows, along each axis given by their places; shorter ones have a place twice."""
    longest = [max(map(len, places)) for places in axes]
    full = [
        torch.tensor([window + window[:1] * (size - len(window)) for window in places])
        for places, size in zip(axes, longest, strict=True)
    ]
    index = torch.zeros(1, 1, dtype=torch.int64)
    for places, length in zip(full, x.shape[-len(axes) :], strict=True):
        # Windows in rows, and the places of each in columns.
        index = (index[:, None, :, None] * length + places[None, :, None, :]).flatten(2).flatten(0, 1)
    flat = builder.reshaped(x, (*x.shape[: -len(axes)], math.prod(x.shape[-len(axes) :])))
    picked = builder.move(partial(pick, places=index), flat, shape=(*flat.shape[:-1], *index.shape))
    return max_of(1, builder, picked, index.shape[1])


def max_pool_3d(
    builder: Builder, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Symbol:
    """Maxima over windows along 3 dimensions."""
    check_maps(x, 3)
    return _max_inside(
        builder, x, *(per_dimension(value, 3) for value in (kernel, stride or kernel, padding, dilation))
    )


def _inside(builder: Builder, x: Symbol) -> tuple[Symbol, Callable[[Tensor], Tensor]] | None:
    """The map that has minus infinity around it, and what puts it there; None for any other value.

    It is never the largest number of a window, and no linear bound could hold it.
    """
    moves: list[Monotone] = []
    number = x.node
    while True:
        node = builder.nodes[number]
        if not isinstance(node.operation, Monotone) or len(node.inputs) != 1:
            return None
        moves.insert(0, node.operation)
        (number,) = node.inputs
        shape = builder.nodes[number].shape
        placed = partial(reduce, lambda value, move: move.apply(value), moves)
        zero, one, numbers, squares = (placed(value) for value in _probes(shape))
        outside = zero.isneginf()
        if bool(outside.any()):
            # Coefficients that are not negative and sum to 1 have no spread only where there is one of them.
            picks = (zero == 0) & (one == 1) & (squares == numbers.square())
            return (Symbol(number, (1, *shape)), placed) if bool((outside | picks).all()) else None


def _probes(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    return torch.zeros_like(numbers), torch.ones_like(numbers), numbers, numbers.square()


def _max_inside(builder: Builder, x: Symbol, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Symbol:
    """The maxima over windows, of which only what lies inside the map is looked at."""
    shape = example_shape(x.shape)
    source, placed = _inside(builder, x) or (Symbol(x.node, (1, *shape)), torch.clone)
    places = placed(_probes(source.shape[1:])[2]).reshape(shape)
    for axis, (size, step, room, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), 1):
        length, count = shape[axis], example_shape(builder.shape)[axis]
        window = torch.arange(count)[:, None] * step - room + torch.arange(size) * spread
        outside = (window < 0) | (window >= length)
        places = places.index_select(axis, window.masked_fill(outside, 0).flatten()).unflatten(axis, (count, size))
        places = places.movedim(axis + 1, -1).masked_fill(
            outside.reshape(count, *[1] * (places.dim() - axis - 2), size), -torch.inf
        )
    places = places.flatten(len(shape))
    last = places.amax(-1, keepdim=True)
    if bool(last.isneginf().any()):
        raise ModelError("a window lies outside of the map; take less padding")
    index = torch.where(places.isneginf(), last, places).long().flatten(0, -2)
    flat = builder.reshaped(source, (1, math.prod(source.shape)))
    picked = builder.move(partial(pick, places=index), flat, shape=(1, *index.shape))
    return max_of(1, builder, picked, index.shape[1])


def adaptive_max_pool(dimensions: int, builder: Builder, x: Any, *_: Any) -> Symbol:
    """Maxima over as many windows as the result has numbers."""
    check_maps(x, dimensions)
    sizes = list(zip(x.shape[-dimensions:], builder.shape[-dimensions:], strict=True))
    if dimensions < 3 and all(length % count == 0 for length, count in sizes):
        return max_pool(dimensions, builder, x, [length // count for length, count in sizes])
    axes = [
        [list(range(i * length // count, -(-(i + 1) * length // count))) for i in range(count)]
        for length, count in sizes
    ]
    return _max_windows(builder, x, axes)


def pool_average(dimensions: int, builder: Builder, x: Any, *settings: Any) -> Symbol:
    """Averages over windows, of a fixed size or as many as the result has numbers."""
    check_maps(x, dimensions)
    function = partial(with_settings, function=builder.target, settings=settings, more={})
    # A window of an adaptive pooling is hardly larger than the ratio of the two sizes.
    ratios = zip(x.shape[-dimensions:], builder.shape[-dimensions:], strict=True)
    terms = max(
        math.prod(before // after + 2 for before, after in ratios), math.prod(per_dimension(settings[0], dimensions))
    )
    return builder.move(function, x, terms=terms)
