"""Constants in the shape of values, and values written among others."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from holdfast.certify.bounds.operations.linear import Monotone
from holdfast.certify.bounds.rules.builder import Builder, Shape, Symbol, among, check_dims, example_shape, terms_of
from holdfast.certify.bounds.rules.choosing import where
from holdfast.errors import ModelError

__all__ = ["blank", "constant_like", "index_put", "placed", "slice_scatter"]


def constant_like(builder: Builder, x: Symbol, *settings: Any, **more: Any) -> Tensor:
    """``ones_like`` and its kind, which take no more than the shape and the precision."""
    constant: Tensor = builder.target(torch.zeros(x.shape, dtype=builder.network), *settings, **more)
    return constant


def blank(builder: Builder, x: Symbol, *settings: Any, **more: Any) -> Tensor:
    """``empty_like`` and its kind: what is in new memory is overwritten, or of no meaning."""
    return constant_like(builder, x, *settings, **more).zero_()


def placed(values: tuple[int, ...], dims: tuple[int, ...], builder: Builder, *arguments: Any, **more: Any) -> Symbol:
    """Numbers at constant places among others, such as ``x[:, 0] = y``.

    Where each number of the result comes from is what torch answers when it is given the numbers' places for numbers.

    Parameters
    ----------
    values, dims : tuple of int
        Which arguments hold numbers, and which say along what dimension it works.
    """
    assert isinstance(builder.target, OpOverload)
    known: list[Any] = [argument.default_value for argument in builder.target._schema.arguments]
    known[: len(arguments)] = arguments
    check_dims(Symbol(0, tuple(arguments[0].shape)), [known[i] for i in dims])
    sources = [arguments[i] for i in values]
    settings = [argument.cpu() if isinstance(argument, Tensor) else argument for argument in arguments]
    count = 0
    for i, source in zip(values, sources, strict=True):
        shape = tuple(source.shape) if isinstance(source, Symbol | Tensor) else ()
        settings[i] = torch.arange(count, count + math.prod(shape)).reshape(shape)
        count += math.prod(shape)
        settings[i] = settings[i] if isinstance(source, Symbol | Tensor) else int(settings[i])
    if any(isinstance(setting, Symbol) for setting in settings):
        raise ModelError("where it puts values depends on the network's input")
    places = builder.target(*settings, **more).flatten()
    constants = [None if isinstance(x, Symbol) else torch.as_tensor(x, dtype=builder.dtype).flatten() for x in sources]
    if not all(constant is None or bool(constant.isfinite().all()) for constant in constants):
        raise ModelError("it puts infinity or NaN among its values")
    pick = partial(_picked_among, constants=constants, places=places, shape=example_shape(builder.shape))
    moved = Monotone(pick, terms=terms_of(builder, *constants))
    return builder.add(moved, *(source for source in sources if isinstance(source, Symbol)))


def _picked_among(*inputs: Tensor, constants: list[Tensor | None], places: Tensor, shape: Shape) -> Tensor:
    count = len(inputs[0])
    parts = [
        part.reshape(count, -1) if constant is None else part.expand(count, -1)
        for part, constant in zip(among(inputs, constants), constants, strict=True)
    ]
    return torch.cat(parts, 1)[:, places.to(inputs[0].device)].reshape(count, *shape)


def slice_scatter(builder: Builder, x: Any, y: Any, *settings: Any) -> Any:
    """``x`` with ``y`` in the place of a slice."""
    return y if y.shape == builder.shape else placed((0, 1), (2,), builder, x, y, *settings)


def index_put(builder: Builder, x: Any, indices: Any, y: Any, accumulate: bool = False) -> Symbol:
    """``x`` with ``y`` at constant places."""
    if isinstance(indices[0], Symbol) and indices[0].shape == builder.shape and y.numel() == 1 and not accumulate:
        return where(builder, indices[0], y, x)
    if accumulate or any(isinstance(index, Symbol) for index in indices):
        raise ModelError("values are put only where constants say, and not added there")
    check_dims(Symbol(0, builder.shape), [dim for dim, index in enumerate(indices) if index is not None])
    indices = [index if index is None else index.cpu() for index in indices]
    return placed((0, 2), (), builder, x, indices, y)
