"""Elementwise nonlinear functions, between two planes each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Rounding, dot, largest, summed
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from holdfast.certify.bounds.operations.linear import Shapes
    from holdfast.certify.bounds.relaxations import Activation, Planes, Steps

__all__ = ["Elementwise"]


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A function of each coordinate alone."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    activation: Activation | Steps

    def apply(self, x: Tensor) -> Tensor:
        return self.activation.function(x)

    def interval(self, x: Interval) -> Interval:
        return Interval(*self.activation.interval(*x))

    def relax(self, x: Interval) -> Planes:
        return self.activation.relax(*x)

    def rounding(self, planes: Planes | None, x: Interval) -> Rounding | None:
        count, reach = self.activation.roundings, largest(x)
        size = largest(self.interval(x))
        if self.activation.gain:
            size = torch.maximum(size, reach * self.activation.gain)
        size = size.clamp_min(self.activation.floor)
        if planes is not None:
            for slope, intercept in (
                (planes.lower_slope, planes.lower_intercept),
                (planes.upper_slope, planes.upper_intercept),
            ):
                size = torch.maximum(size, slope.abs() * torch.where(slope == 0, 0, reach) + intercept.abs())
        return Rounding(size, count, summed(size[0].numel()) + 8)

    def undecided(self, x: Interval) -> Tensor:
        return x.lower < x.upper

    def backward(self, rows: Rows, planes: Planes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        lower_slope, lower_intercept, upper_slope, upper_intercept = (
            rows.cut(plane).unsqueeze(1)
            for plane in (
                planes.lower_slope,
                planes.lower_intercept,
                planes.upper_slope,
                planes.upper_intercept,
            )
        )
        values = rows.grouped(len(planes.lower_slope))
        positive = values.relu()
        negative = values - positive
        before = positive * lower_slope + negative * upper_slope
        total = dot(positive.flatten(2), lower_intercept.flatten(2))
        total = total + dot(negative.flatten(2), upper_intercept.flatten(2))
        return (Rows(before.flatten(0, 1), rows.window),), total.flatten()
