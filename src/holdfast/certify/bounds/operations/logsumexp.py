"""``log sum exp``, with which networks that return log-probabilities end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.relaxations import Planes
from holdfast.certify.bounds.rounding import Rounding, dot, largest, summed
from holdfast.certify.bounds.rows import Rows
from holdfast.threats.norm import safe_divide

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["LogSumExp"]


@dataclass(frozen=True, eq=False)
class LogSumExp:
    """``log sum_j exp x_j`` along the last dimension, of which 1 is left.

    It is convex, so the tangent at the middle lies below. Above, every exponential is replaced by its chord, and the
    logarithm of their sum by its tangent at the middle.
    """

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return x.logsumexp(-1, keepdim=True)

    def interval(self, x: Interval) -> Interval:
        return Interval(self.apply(x.lower), self.apply(x.upper))

    def relax(self, x: Interval) -> Planes:
        """Slopes ``(N, ..., k)`` and intercepts ``(N, ..., 1)``."""
        lower, upper = x
        middle = lower / 2 + upper / 2
        below = middle.softmax(-1)
        top = upper.amax(-1, keepdim=True)
        low, high = (lower - top).exp(), (upper - top).exp()
        # Where both ends agree, any slope does.
        chord = safe_divide(high - low, upper - lower)
        total = (low / 2 + high / 2).sum(-1, keepdim=True)
        above = chord / total
        tangent = self.apply(middle) - (below * middle).sum(-1, keepdim=True)
        level = top + total.log() - (above * middle).sum(-1, keepdim=True)
        return Planes(below, tangent, above, level)

    def rounding(self, planes: Planes | None, x: Interval) -> Rounding:
        # The largest input, the exponentials of what is below it, their sum and its logarithm.
        count = x.lower.shape[-1]
        size = largest(x).amax(-1, keepdim=True) + (math.log(count) + 1)
        return Rounding(size * 2, count + 16, count + summed(size[0].numel()) + 16, count + 16)

    def undecided(self, x: Interval) -> Tensor:
        return x.lower < x.upper

    def backward(self, rows: Rows, planes: Planes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        lower_slope, lower_intercept, upper_slope, upper_intercept = (plane.unsqueeze(1) for plane in planes)
        values = rows.full((*shapes[0][:-1], 1)).unflatten(0, (len(planes.lower_slope), -1))
        positive = values.relu()
        negative = values - positive
        before = positive * lower_slope + negative * upper_slope
        intercept = (positive * lower_intercept + negative * upper_intercept).flatten(2)
        total = dot(intercept, intercept.new_ones(intercept.shape[-1]))
        return (Rows.whole(before.flatten(0, 1)),), total.flatten()
