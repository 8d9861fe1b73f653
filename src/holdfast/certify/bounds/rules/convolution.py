"""Convolutions, transposed ones too."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.graph import Operation
from holdfast.certify.bounds.operations.convolution import Convolution
from holdfast.certify.bounds.operations.linear import Weighted
from holdfast.certify.bounds.rules.builder import Builder, Symbol, by_channel, check_constant, example_shape
from holdfast.errors import ModelError

__all__ = [
    "as_row",
    "check_maps",
    "convolution",
    "general_convolution",
    "pair",
    "per_dimension",
    "transposed_convolution",
]


def per_dimension(value: Any, dimensions: int) -> tuple[int, ...]:
    """A setting as one number for each dimension."""
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * (dimensions if len(value) == 1 else 1)


def pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Two sizes."""
    first, second = sizes
    return first, second


def check_maps(x: Symbol, dimensions: int) -> None:
    """Refuse values that are not the maps of one example."""
    if len(example_shape(x.shape)) != dimensions + 1:
        raise ModelError(f"it takes values of shape {x.shape}: its batch has been merged with another dimension")


def _same_padding(weight: Tensor, dilation: tuple[int, ...]) -> tuple[int, ...]:
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(span % 2 for span in spans):
        raise ModelError("padding 'same' is uneven for this kernel; write the padding as numbers")
    return tuple(span // 2 for span in spans)


def convolution(
    dimensions: int, builder: Builder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Symbol:  # fmt: skip
    """A convolution along 1, 2 or 3 dimensions; a signal is an image of one row."""
    check_constant(weight, bias)
    check_maps(x, dimensions)
    stride, dilation = per_dimension(stride, dimensions), per_dimension(dilation, dimensions)
    if isinstance(padding, str):
        padding = _same_padding(weight, dilation) if padding == "same" else 0
    padding = per_dimension(padding, dimensions)
    if dimensions == 3:
        settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        terms = (weight[0].numel(), len(weight) // groups * math.prod(weight.shape[2:]))
        bias = _per_channel(builder, bias)
        return builder.add(Weighted(partial(functional.conv3d, **settings), weight, bias, terms), x)
    if dimensions == 2:
        return builder.add(Convolution(weight, bias, pair(stride), pair(padding), pair(dilation), groups), x)
    row = Convolution(weight.unsqueeze(2), bias, (1, *stride), (0, *padding), (1, *dilation), groups)
    return as_row(builder, row, x)


def as_row(builder: Builder, operation: Operation, x: Symbol) -> Symbol:
    """An operation on images, of a signal: an image of one row."""
    image = builder.reshaped(x, (1, x.shape[-2], 1, x.shape[-1]))
    found = builder.add(operation, image, shape=(1, builder.shape[-2], 1, builder.shape[-1]))
    return builder.reshaped(found, builder.shape)


def transposed_convolution(
    dimensions: int, builder: Builder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Symbol:  # fmt: skip
    """A transposed convolution along 1, 2 or 3 dimensions."""
    check_constant(weight, bias)
    check_maps(x, dimensions)
    stride, padding, dilation = (per_dimension(value, dimensions) for value in (stride, padding, dilation))
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spread, gather = _TRANSPOSED[dimensions]
    convolve = partial(spread, output_padding=per_dimension(output_padding, dimensions), **settings)
    terms = (len(weight) // groups * math.prod(weight.shape[2:]), weight[0].numel())
    bias = _per_channel(builder, bias)
    return builder.add(Weighted(convolve, weight, bias, terms, partial(gather, **settings)), x)


_TRANSPOSED: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    1: (functional.conv_transpose1d, functional.conv1d),
    2: (functional.conv_transpose2d, functional.conv2d),
    3: (functional.conv_transpose3d, functional.conv3d),
}


def general_convolution(
    builder: Builder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Symbol:  # fmt: skip
    """Either, as its arguments say."""
    dimensions = weight.dim() - 2
    if transposed:
        return transposed_convolution(
            dimensions, builder, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return convolution(dimensions, builder, x, weight, bias, stride, padding, dilation, groups)


def _per_channel(builder: Builder, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else builder.constant(by_channel(bias, builder.shape), builder.shape)
