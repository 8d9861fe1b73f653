"""Two-dimensional convolutions, whose backward pass stays inside the patch that the rows see.

Field and engine agree on the trick under the name of patch form: a neuron depends on a small window of the layer before
it, so the pass works on that window alone. On a CPU a product with the dense matrix between two windows is quicker than
a transposed convolution as long as the windows are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Rounding, largest, nonzero
from holdfast.certify.bounds.rows import Rows, Window
from holdfast.models.gradients import Geometry, by_columns, by_phases, phases

if TYPE_CHECKING:
    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["Convolution"]

Pair = tuple[int, int]

# How large a dense matrix may be, and how many times the products of the convolution it may take: transposed
# convolutions with a stride, and those to few channels, run at a small share of a processor's speed. All measured.
_LARGEST = 1 << 22
_WORTH, _WORTH_OF_STRIDED, _WORTH_OF_FEW = 3, 14, 24
_FEW = 8
# Input channels up to which it is quicker without a stride, too, to sum up the columns of a matrix product.
_FEWEST = 3
# Numbers that are summed in their own precision, at most.
_PIXELS = 256


@dataclass(frozen=True, eq=False)
class Convolution:
    """``conv2d``; ``weight`` is ``(out, in / groups, height, width)``."""

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    _matrices: dict[tuple[Pair, Window], tuple[int, Tensor]] = field(default_factory=dict, init=False)

    def apply(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias)

    def interval(self, x: Interval) -> Interval:
        middle = self._convolve(x.lower / 2 + x.upper / 2, self.weight, self.bias)
        radius = self._convolve(x.upper / 2 - x.lower / 2, self.weight.abs(), None)
        return Interval(middle - radius, middle + radius)

    def rounding(self, planes: None, x: Interval) -> Rounding:
        size = self._convolve(largest(x), self.weight.abs(), None if self.bias is None else self.bias.abs())
        channels, terms = len(self.weight), self.weight[0].numel()
        # How many outputs an input goes into: with a stride, but every so many along each axis.
        spans = zip(self.weight.shape[2:], self.stride, self.dilation, strict=True)
        back = math.prod(math.ceil(length / step) if spread == 1 else length for length, step, spread in spans)
        own = max(channels // self.groups * back, min(math.prod(size.shape[2:]), _PIXELS))
        live = self._convolve(nonzero(largest(x)), nonzero(self.weight), None)
        return Rounding(size, live + 1, own + 8, terms + 8)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        assert rows.window is not None  # the value of a convolution is a feature map
        channels, *size = shapes[0]
        ends = [self._reach(axis, *rows.window[axis]) for axis in (0, 1)]
        top, bottom, left, right = (
            bound
            for (start, stop), length in zip(ends, size, strict=True)
            for bound in (max(start, 0), min(stop, length))
        )
        bias = None if self.bias is None else _by_channel(rows.values) @ self.bias.double()
        if top >= bottom or left >= right:
            # Rows that see nothing but padding.
            return (Rows(rows.values.new_zeros(len(rows.values), channels, 1, 1), ((0, 1), (0, 1))),), bias
        # Of everything that the kernels reach, the part inside the image.
        inside = (
            (top - ends[0][0], bottom - ends[0][0]),
            (left - ends[1][0], right - ends[1][0]),
        )
        values = self._transpose(rows.values, inside, channels)
        return (Rows(values, ((top, bottom), (left, right))),), bias

    def _transpose(self, values: Tensor, inside: Window, channels: int) -> Tensor:
        (top, bottom), (left, right) = inside
        shape = (channels, bottom - top, right - left)
        kernel = math.prod(self.weight.shape[1:])
        entries = math.prod(values.shape[1:]) * math.prod(shape)
        worth = _WORTH if self.stride == (1, 1) else _WORTH_OF_STRIDED
        worth = _WORTH_OF_FEW if channels < _FEW else worth
        dense = entries <= min(_LARGEST, worth * math.prod(values.shape[1:]) * kernel)
        # A matrix pays when enough rows use it; gradients with respect to the weights go the other way.
        if dense and values.device.type == "cpu" and not self.weight.requires_grad:
            product = values.flatten(1) @ self._matrix(values, inside)
            return product.reshape(len(values), *shape)
        return self._spread(values)[:, :, top:bottom, left:right]

    def _matrix(self, values: Tensor, inside: Window) -> Tensor:
        """The dense matrix from coefficients of the value in a window to those of the input."""
        channels, height, width = values.shape[1:]
        key = ((height, width), inside)
        # Weights that are trained change in place.
        version, matrix = self._matrices.get(key, (-1, self.weight))
        if version != self.weight._version:
            count = channels * height * width
            unit = torch.eye(count, dtype=values.dtype, device=values.device).reshape(-1, channels, height, width)
            (top, bottom), (left, right) = inside
            with torch.no_grad():
                matrix = self._spread(unit)[:, :, top:bottom, left:right].flatten(1).contiguous()
            self._matrices[key] = (self.weight._version, matrix)
        return matrix

    def _spread(self, values: Tensor) -> Tensor:
        plain = self.groups == 1 and self.dilation == (1, 1) and not self.weight.requires_grad
        if not plain or (self.stride == (1, 1) and self.weight.shape[1] > _FEWEST):
            return functional.conv_transpose2d(
                values, self.weight, stride=self.stride, groups=self.groups, dilation=self.dilation
            )
        return _spread(values, self.weight, self.stride)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _reach(self, axis: int, start: int, stop: int) -> Pair:
        """The places of the input, those in the padding too, that the outputs from ``start`` to ``stop`` see."""
        stride, padding = self.stride[axis], self.padding[axis]
        span = self.dilation[axis] * (self.weight.shape[2 + axis] - 1)
        return start * stride - padding, (stop - 1) * stride - padding + span + 1


def _by_channel(values: Tensor) -> Tensor:
    """``(R, C)`` float64, the sums over feature maps ``(R, C, h, w)``; at most so many numbers at a time in theirs."""
    parts = [part.sum(2).double() for part in values.flatten(2).split(_PIXELS, 2)]
    return torch.stack(parts).sum(0)


def _spread(values: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    function: Any = _Spread  # its base class has no annotations
    spread: Tensor = function.apply(values, weight, stride)
    return spread


class _Spread(torch.autograd.Function):
    """A transposed convolution by the quicker of two ways, as for input gradients; its transpose is the convolution."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, stride: Pair) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride = stride
        kernel = (weight.shape[2], weight.shape[3])
        height, width = ((n - 1) * s + k for n, s, k in zip(values.shape[2:], stride, kernel, strict=True))
        geometry = Geometry(kernel, stride, (0, 0))
        if stride == (1, 1) or weight.shape[1] == 1:
            return by_columns(values, weight.flatten(1).t(), (height, width), geometry)
        return by_phases(values, phases(weight, stride), (height, width), geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return functional.conv2d(grads[0], weight, stride=ctx.stride), None, None
