"""Moves of values: to other shapes and places, apart and together."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.rules.builder import Builder, Symbol, among, check_dims, terms_of
from holdfast.errors import ModelError

__all__ = [
    "along",
    "dropout",
    "indexed",
    "item",
    "join",
    "move",
    "pad",
    "pieces",
    "reshape",
    "select",
    "sliced",
    "unchanged",
    "with_settings",
]


def move(builder: Builder, x: Any, *settings: Any, **more: Any) -> Symbol:
    """Any linear move of values, sum or mean, as torch does it."""
    return builder.move(partial(with_settings, function=builder.target, settings=settings, more=more), x)


def with_settings(
    x: Tensor, function: Callable[..., Tensor], settings: tuple[Any, ...], more: dict[str, Any]
) -> Tensor:
    """A function with its settings, of a value alone."""
    return function(x, *settings, **more)


def along(builder: Builder, x: Any, dims: Any, *settings: Any, **more: Any) -> Symbol:
    """A move along some dimensions."""
    check_dims(x, [dims] if isinstance(dims, int) else dims or range(len(x.shape)))
    return move(builder, x, dims, *settings, **more)


def select(builder: Builder, x: Any, dim: int, index: int) -> Symbol:
    """One of a dimension; of two that are 1 long, the batch is the other one."""
    if dim == 0 and x.shape[:2] == (1, 1):
        return builder.reshaped(x, builder.shape)
    return along(builder, x, dim, index)


def reshape(builder: Builder, x: Any, *_: Any, **__: Any) -> Symbol:
    """The same numbers in another shape."""
    return builder.reshaped(x, builder.shape)


def sliced(builder: Builder, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Symbol:
    """Every so many of a dimension, from one place to another."""
    return x if builder.shape == x.shape and step == 1 else along(builder, x, dim, start, end, step)


def indexed(builder: Builder, x: Any, indices: Any) -> Symbol:
    """The numbers at constant places."""
    if any(isinstance(index, Symbol) for index in indices):
        raise ModelError("it picks values by others that depend on the network's input")
    check_dims(x, [dim for dim, index in enumerate(indices) if index is not None])
    return move(builder, x, indices)


def pad(builder: Builder, x: Any, amounts: Any, *settings: Any) -> Symbol:
    """More numbers at the ends of dimensions: a constant, or copies."""
    if any(amounts[2 * (len(x.shape) - 1) :]):
        raise ModelError("it pads the batch")
    values = [value for value in settings if isinstance(value, int | float)]
    function = partial(with_settings, function=builder.target, settings=(amounts, *settings), more={})
    return builder.move(function, x, terms=terms_of(builder, *values))


def join(builder: Builder, tensors: Any, dim: int = 0) -> Symbol:
    """``cat`` and ``stack``."""
    symbols = [tensor for tensor in tensors if isinstance(tensor, Symbol)]
    places = [None if isinstance(tensor, Symbol) else tensor for tensor in tensors]
    function = partial(_joined, function=builder.target, places=places, dim=dim)
    return builder.move(function, *symbols, terms=terms_of(builder, *places))


def _joined(*inputs: Tensor, function: Callable[..., Tensor], places: list[Tensor | None], dim: int) -> Tensor:
    return function(among(inputs, places), dim)


def pieces(builder: Builder, x: Any, *settings: Any, **more: Any) -> list[Symbol]:
    """``split``, ``chunk`` and ``unbind``."""
    function = partial(with_settings, function=builder.target, settings=settings, more=more)
    shapes = [tuple(part.shape) for part in function(torch.empty(x.shape, device="meta"))]
    if any(len(shape) != len(x.shape) for shape in shapes):
        check_dims(x, [settings[0] if settings else 0])
    return [builder.move(partial(_part, function=function, place=i), x, shape=shape) for i, shape in enumerate(shapes)]


def _part(x: Tensor, function: Callable[..., Any], place: int) -> Tensor:
    part: Tensor = function(x)[place]
    return part


def item(builder: Builder, parts: list[Symbol], place: int) -> Symbol:
    """One of several values."""
    if place >= len(parts):
        raise ModelError("the indices of a max pooling are not bounded")
    return parts[place]


def unchanged(builder: Builder, x: Symbol, *_: Any, **__: Any) -> Symbol:
    """The value as it is."""
    return x


def dropout(builder: Builder, x: Symbol, probability: float, train: bool) -> Symbol:
    """The value as it is: nothing is dropped in evaluation."""
    if train and probability > 0:
        raise ModelError("it drops values at random")
    return x
