"""Products of two values that both depend on the input, as attention needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Rounding, dot, largest, summed
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["MatrixProduct", "Product", "ProductPlanes"]


# A share of what the worst corners of two planes can differ by.
_TIE = 1e-3


class ProductPlanes(NamedTuple):
    """``lower_x x + lower_y y + lower_shift <= x y <= upper_x x + upper_y y + upper_shift`` (McCormick 1976)."""

    lower_x: Tensor
    lower_y: Tensor
    lower_shift: Tensor
    upper_x: Tensor
    upper_y: Tensor
    upper_shift: Tensor


def mccormick(x: Interval, y: Interval) -> ProductPlanes:
    """Of the two planes on each side the one that is better at its worst corner; at the middle they are equal.

    They often are there too: the second must be clearly better, lest rounding choose.
    """
    (a, b), (c, d) = x, y
    tie = _TIE * (b - a) * (d - c)
    low = _least(c, a, x, y) - a * c >= _least(d, b, x, y) - b * d - tie
    high = -_least(-d, -a, x, y) - a * d <= -_least(-c, -b, x, y) - b * c + tie
    return ProductPlanes(
        torch.where(low, c, d), torch.where(low, a, b), torch.where(low, -a * c, -b * d),
        torch.where(high, d, c), torch.where(high, a, b), torch.where(high, -a * d, -b * c),
    )  # fmt: skip


def _least(by_x: Tensor, by_y: Tensor, x: Interval, y: Interval) -> Tensor:
    """The minimum of ``by_x x + by_y y`` over two intervals."""
    return torch.minimum(by_x * x.lower, by_x * x.upper) + torch.minimum(by_y * y.lower, by_y * y.upper)


def corners(x: Interval, y: Interval) -> Interval:
    """The smallest and the largest product of two intervals."""
    products = torch.stack([a * b for a in x for b in y])
    return Interval(products.amin(0), products.amax(0))


@dataclass(frozen=True, eq=False)
class Product:
    """``x * y``, elementwise."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def interval(self, x: Interval, y: Interval) -> Interval:
        return corners(x, y)

    def relax(self, x: Interval, y: Interval) -> ProductPlanes:
        return mccormick(x, y)

    def rounding(self, planes: ProductPlanes | None, x: Interval, y: Interval) -> Rounding:
        # Both terms of a plane and its constant are as large as this.
        size = 3 * largest(x) * largest(y)
        return Rounding(size, 1, summed(size[0].numel()) + 8, 1)

    def undecided(self, x: Interval) -> Tensor:
        return x.lower < x.upper

    def backward(self, rows: Rows, planes: ProductPlanes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        cut = ProductPlanes(*(rows.cut(plane).unsqueeze(1) for plane in planes))
        values = rows.grouped(len(planes.lower_x))
        positive = values.relu()
        negative = values - positive
        total = dot(positive.flatten(2), cut.lower_shift.flatten(2))
        total = total + dot(negative.flatten(2), cut.upper_shift.flatten(2))
        by_x, by_y = (
            positive * below + negative * above
            for below, above in ((cut.lower_x, cut.upper_x), (cut.lower_y, cut.upper_y))
        )
        return (Rows(by_x.flatten(0, 1), rows.window), Rows(by_y.flatten(0, 1), rows.window)), total.flatten()


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """``x @ y`` of ``(..., n, k)`` and ``(..., k, m)``, batch dimensions alike."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def interval(self, x: Interval, y: Interval) -> Interval:
        parts = corners(*self._pairs(x, y))
        return Interval(parts.lower.sum(-1), parts.upper.sum(-1))

    def relax(self, x: Interval, y: Interval) -> ProductPlanes:
        """Planes ``(N, ..., n, m, k)`` of all products that are summed."""
        return mccormick(*self._pairs(x, y))

    def rounding(self, planes: ProductPlanes | None, x: Interval, y: Interval) -> Rounding:
        left, right = largest(x), largest(y)
        terms, widest = left.shape[-1], max(left.shape[-2], right.shape[-1])
        size = 3 * (left @ right)
        return Rounding(size, terms + 1, max(terms, widest) + summed(terms * size[0].numel()) + 8, terms + 1)

    def undecided(self, x: Interval) -> Tensor:
        return x.lower < x.upper

    def backward(self, rows: Rows, planes: ProductPlanes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        cut = ProductPlanes(*(plane.unsqueeze(1) for plane in planes))
        values = rows.full((*shapes[0][:-1], shapes[1][-1])).unflatten(0, (len(planes.lower_x), -1)).unsqueeze(-1)
        positive = values.relu()
        negative = values - positive
        shift = (positive * cut.lower_shift + negative * cut.upper_shift).flatten(2)
        total = dot(shift, shift.new_ones(shift.shape[-1]))
        by_x = (positive * cut.lower_x + negative * cut.upper_x).sum(-2)
        by_y = (positive * cut.lower_y + negative * cut.upper_y).sum(-3).transpose(-1, -2)
        return (Rows.whole(by_x.flatten(0, 1)), Rows.whole(by_y.flatten(0, 1))), total.flatten()

    def _pairs(self, x: Interval, y: Interval) -> tuple[Interval, Interval]:
        """The factors of every product, broadcast to ``(..., n, m, k)``."""
        left = [end.unsqueeze(-2) for end in x]
        right = [end.transpose(-1, -2).unsqueeze(-3) for end in y]
        shape = torch.broadcast_shapes(left[0].shape, right[0].shape)
        return Interval(*(end.expand(shape) for end in left)), Interval(*(end.expand(shape) for end in right))
