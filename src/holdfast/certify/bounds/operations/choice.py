"""The choice between two values by a third one, as ``where`` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.relaxations import Planes
from holdfast.certify.bounds.rounding import Rounding, dot, largest, summed
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["Above", "Choice", "ChoicePlanes"]


@dataclass(frozen=True, eq=False)
class Above:
    """Whether ``x > level``, as 1 or 0.

    Parameters
    ----------
    level : Tensor
        Of the shape of one example of the input, in float64.
    reached : bool
        Whether the level itself counts as above.
    margin : Tensor
        By how much the level of the network that runs may be another one.
    """

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    level: Tensor
    reached: bool
    margin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return self._above(x, self.level).to(x.dtype)

    def interval(self, x: Interval) -> Interval:
        always = self._above(x.lower, self.level + self.margin)
        ever = self._above(x.upper, self.level - self.margin) | x.upper.isnan()
        return Interval(always.to(x.lower.dtype), ever.to(x.lower.dtype))

    def relax(self, x: Interval) -> Planes:
        low, high = self.interval(x)
        return Planes(torch.zeros_like(low), low, torch.zeros_like(low), high)

    def rounding(self, planes: Planes | None, x: Interval) -> Rounding:
        size = torch.ones_like(x.lower)
        return Rounding(size, 0, summed(size[0].numel()) + 8)

    def undecided(self, x: Interval) -> Tensor:
        low, high = self.interval(x)
        return low < high

    def backward(self, rows: Rows, planes: Planes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        values = rows.grouped(len(planes.lower_slope))
        return (Rows(torch.zeros_like(rows.values), rows.window),), _constants(rows, values, planes[1], planes[3])

    def _above(self, x: Tensor, level: Tensor) -> Tensor:
        level = level.to(x.device)
        return x >= level if self.reached else x > level


class ChoicePlanes(NamedTuple):
    """Which of two values is taken, where that is known, and between which numbers the value lies where it is not."""

    first: Tensor
    second: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """The first of two values where a condition is 1, the second one where it is 0."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def apply(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition > 0.5, a, b)

    def interval(self, condition: Interval, a: Interval, b: Interval) -> Interval:
        first, second = _known(condition)
        low, high = torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper)
        return Interval(
            torch.where(first, a.lower, torch.where(second, b.lower, low)),
            torch.where(first, a.upper, torch.where(second, b.upper, high)),
        )

    def relax(self, condition: Interval, a: Interval, b: Interval) -> ChoicePlanes:
        first, second = _known(condition)
        low, high = (
            torch.where(first | second, 0, end)
            for end in (torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))
        )
        return ChoicePlanes(first.to(low.dtype), second.to(low.dtype), low, high)

    def rounding(self, planes: ChoicePlanes | None, condition: Interval, a: Interval, b: Interval) -> Rounding:
        first, second = _known(condition)
        one, other = largest(a), largest(b)
        size = torch.where(first, one, torch.where(second, other, torch.maximum(one, other)))
        # Constants among the two are rounded to the precision of the network.
        return Rounding(size, 1, summed(size[0].numel()) + 8)

    def undecided(self, x: Interval) -> Tensor:
        return x.lower < x.upper

    def backward(self, rows: Rows, planes: ChoicePlanes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        values = rows.grouped(len(planes.first))
        parts = ((values * rows.cut(share).unsqueeze(1)).flatten(0, 1) for share in (planes.first, planes.second))
        before = (torch.zeros_like(rows.values), *parts)
        shift = _constants(rows, values, planes.lower, planes.upper)
        return tuple(Rows(part, rows.window) for part in before), shift


def _known(condition: Interval) -> tuple[Tensor, Tensor]:
    """Where a number that is 0 or 1 is 1 for certain, and where it is 0."""
    return condition.lower > 0, condition.upper < 1


def _constants(rows: Rows, values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``(R,)`` float64, what the constants of the lower and the upper plane come to."""
    low, high = (rows.cut(end).unsqueeze(1).flatten(2) for end in (lower, upper))
    return (dot(values.clamp_min(0).flatten(2), low) + dot(values.clamp_max(0).flatten(2), high)).flatten()
