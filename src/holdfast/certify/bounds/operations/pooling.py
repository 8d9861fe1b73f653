"""Max pooling over windows of feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.relaxations import Planes, contested, max_pool
from holdfast.certify.bounds.rounding import Rounding, dot, largest, summed
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["MaxPool"]

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class MaxPool:
    """``max_pool2d``; padding never wins."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def apply(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def interval(self, x: Interval) -> Interval:
        return Interval(self.apply(x.lower), self.apply(x.upper))

    def relax(self, x: Interval) -> Planes:
        """Planes ``(N, C, H, W, k)`` over the ``k`` inputs of each window, with intercepts ``(N, C, H, W)``."""
        return max_pool(self._windows(x.lower), self._windows(x.upper))

    def rounding(self, planes: Planes | None, x: Interval) -> Rounding:
        # Slopes of a window add up to less than the number of its inputs.
        count = self.kernel[0] * self.kernel[1]
        size = self.apply(largest(x)) * count
        return Rounding(size, 0, count + summed(size[0].numel()) + 8)

    def undecided(self, x: Interval) -> Tensor:
        """Those that may be the largest of a window in which another one may be that too."""
        shape = tuple(x.lower.shape[1:])
        found = contested(self._windows(x.lower), self._windows(x.upper)).to(x.lower.dtype)
        return self._scatter(found.unbind(-1), Rows.whole(found[..., 0]), shape).full(shape) > 0

    def backward(self, rows: Rows, planes: Planes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        assert rows.window is not None  # the value is a feature map
        lower, lower_shift, upper, upper_shift = (rows.cut(plane).unsqueeze(1) for plane in planes)
        values = rows.grouped(len(lower))
        negative = values.clamp_max(0)
        positive = values - negative
        total = dot(positive.flatten(2), lower_shift.flatten(2)) + dot(negative.flatten(2), upper_shift.flatten(2))
        slopes = ((part.contiguous() for part in slope.unbind(-1)) for slope in (lower, upper))
        parts = (
            (positive * below).addcmul_(negative, above).flatten(0, 1) for below, above in zip(*slopes, strict=True)
        )
        return (self._scatter(parts, rows, shapes[0]),), total.flatten()

    def inputs(self, shape: tuple[int, ...]) -> Tensor:
        """``(outputs, k)`` int64: which entries of a flattened ``(C, H, W)`` are in each window, -1 for padding."""
        numbers = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(1, *shape)
        return self._windows(numbers).flatten(0, -2).clamp_min(0).long() - 1

    def contenders(self, x: Interval) -> Tensor:
        """``(outputs, most)``: of each window the inputs that are its largest for some example, as above, then -1."""
        lower, upper = self._windows(x.lower), self._windows(x.upper)
        kept = (upper >= lower.amax(-1, keepdim=True)).any(0).flatten(0, -2)
        kept, order = kept.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        places = self.inputs(tuple(x.lower.shape[1:])).to(order.device).gather(1, order)
        return places.where(kept > 0, -1)[:, : int(kept.sum(1).max())]

    def _windows(self, x: Tensor) -> Tensor:
        """``(N, C, H, W, k)`` the inputs of each window, the lowest number there is for those in the padding."""
        (height, width), (high, wide) = self._outputs(x), self._span(x)
        bottom, right = high - x.shape[2] - self.padding[0], wide - x.shape[3] - self.padding[1]
        lowest = torch.finfo(x.dtype).min
        padded = functional.pad(x, (self.padding[1], max(right, 0), self.padding[0], max(bottom, 0)), value=lowest)
        parts = [
            padded[:, :, i : i + (height - 1) * self.stride[0] + 1 : self.stride[0],
                   j : j + (width - 1) * self.stride[1] + 1 : self.stride[1]]
            for i, j in self._places()
        ]  # fmt: skip
        return torch.stack(parts, dim=-1)

    def _places(self) -> list[Pair]:
        return [
            (i * self.dilation[0], j * self.dilation[1]) for i in range(self.kernel[0]) for j in range(self.kernel[1])
        ]

    def _outputs(self, x: Tensor) -> torch.Size:
        return self.apply(x[:1].detach()).shape[2:]

    def _span(self, x: Tensor) -> tuple[int, int]:
        """How far, from the start of the padding, the windows reach."""
        height, width = self._outputs(x)
        return (
            (height - 1) * self.stride[0] + self.dilation[0] * (self.kernel[0] - 1) + 1,
            (width - 1) * self.stride[1] + self.dilation[1] * (self.kernel[1] - 1) + 1,
        )

    def _scatter(self, parts: Iterable[Tensor], rows: Rows, shape: tuple[int, ...]) -> Rows:
        """The coefficients ``(R, C, h, w)`` of each of the windows' inputs in turn, summed into place."""
        assert rows.window is not None
        (first, last), (begin, end) = rows.window
        starts = (first * self.stride[0] - self.padding[0], begin * self.stride[1] - self.padding[1])
        size = tuple(
            (count - 1) * stride + dilation * (kernel - 1) + 1
            for count, stride, dilation, kernel in zip(
                (last - first, end - begin), self.stride, self.dilation, self.kernel, strict=True
            )
        )
        total = rows.values.new_zeros(len(rows.values), shape[0], *size)
        for (i, j), part in zip(self._places(), parts, strict=True):
            total[:, :, i : i + (last - first - 1) * self.stride[0] + 1 : self.stride[0],
                  j : j + (end - begin - 1) * self.stride[1] + 1 : self.stride[1]] += part  # fmt: skip
        top, left = (max(start, 0) for start in starts)
        bottom, right = (
            min(start + length, limit) for start, length, limit in zip(starts, size, shape[1:], strict=True)
        )
        inside = total[:, :, top - starts[0] : bottom - starts[0], left - starts[1] : right - starts[1]]
        return Rows(inside, ((top, bottom), (left, right)))
