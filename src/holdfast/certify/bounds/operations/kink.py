"""Functions with one kink, at 0: ReLU, leaky ReLU, absolute values.

On one side of a convex one there is no choice, the chord; on the other any slope between those of its two pieces will
do. A concave one is the negative of a convex one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Rounding, gamma, largest, summed, unit
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.certify.bounds.operations.linear import Shapes

__all__ = ["Kink", "KinkPlanes", "Slope", "free_share", "kink_planes", "relu", "slope_between"]

Slope = float | Tensor

# Terms that are summed in the precision of their factors.
_TERMS = 4096


class KinkPlanes(NamedTuple):
    """``lower * x <= f(x) <= upper * x + shift`` of a convex ``f``, for ``N`` examples; of a concave one of ``-f``.

    Parameters
    ----------
    lower : Tensor
        ``(N, *shape)``, or slopes of their own for ``R`` rows, ``(R, *shape)``.
    upper, shift : Tensor
        ``(N, *shape)``.
    push : Tensor or None
        ``(N, *shape)`` what is added to the coefficients of ``x``: the multipliers of constraints on its sign.
    """

    lower: Tensor
    upper: Tensor
    shift: Tensor
    push: Tensor | None = None


def slope_between(below: Slope, above: Slope, share: Tensor) -> Tensor:
    """From one slope to the other, at shares from 0 to 1 of the way; never beyond an end, and exact at both."""
    if not isinstance(below, Tensor) and not isinstance(above, Tensor) and (below, above) == (0, 1):
        return share
    start, end = (torch.as_tensor(slope, dtype=share.dtype, device=share.device) for slope in (below, above))
    return torch.lerp(start, end, share)


def free_share(lower: Tensor, upper: Tensor, below: Slope, above: Slope) -> Tensor:
    """How far the slope of least area is from ``below`` to ``above`` (Zhang et al. 2018, section 3.3).

    Over a symmetric interval all of them have the same area; the one nearest to 0 gives the better interval.
    """
    share = (upper > -lower).to(lower.dtype)
    if not isinstance(below, Tensor) and below >= 0:
        return share
    start, end = (torch.as_tensor(slope, dtype=share.dtype, device=share.device) for slope in (below, above))
    flat = -start / (end - start)
    return torch.where((upper == -lower) & (flat > 0) & (flat < 1), flat, share)


def kink_planes(lower: Tensor, upper: Tensor, below: Slope = 0.0, above: Slope = 1.0) -> KinkPlanes:
    """The chord above, below the slope of least area; exact where signs are known.

    Parameters
    ----------
    lower, upper : Tensor
        ``(N, *shape)`` bounds of the input.
    below, above : float or Tensor
        The slopes left and right of 0, the second at least as large.
    """
    low, high = lower.clamp_max(0), upper.clamp_min(0)
    width = high - low
    tiny = torch.finfo(width.dtype).tiny
    share = torch.where(width > 0, high / width.clamp_min(tiny), (lower > 0).to(width.dtype)).clamp_max(1)
    slope = slope_between(below, above, share)
    # Above both ends, whatever the slope was rounded to; and with room for the sum that it becomes a term of.
    shift = torch.maximum((below - slope) * low, (above - slope) * high) * (
        1 + 2 * gamma(summed(width[0].numel() if len(width) else 1) + 8, unit(width.dtype))
    )
    adaptive = slope_between(below, above, free_share(lower, upper, below, above))
    return KinkPlanes(adaptive, slope, shift + tiny * (shift > 0))


@dataclass(frozen=True, eq=False)
class Kink:
    """``below * x`` for negative inputs and ``above * x`` for positive ones.

    Parameters
    ----------
    below, above : float or Tensor
        The slopes: numbers, or tensors that broadcast to the shape of one example.
    roundings : int
        How many a network makes on the way to the value, that of a slope to its precision included; 0 where all slopes
        are 0, 1 or -1.
    """

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    below: Slope
    above: Slope
    roundings: int = 2

    @property
    def relative(self) -> bool:
        return not self.roundings

    @property
    def plain(self) -> bool:
        """Whether it is a ReLU."""
        numbers = not isinstance(self.below, Tensor) and not isinstance(self.above, Tensor)
        return numbers and (self.below, self.above) == (0, 1)

    @cached_property
    def sign(self) -> Slope:
        """1 where it is convex, -1 where it is concave."""
        convex = self.above >= self.below
        return convex * 2.0 - 1.0

    @cached_property
    def slopes(self) -> tuple[Slope, Slope]:
        """Left and right of 0, of the convex one of the function and its negative."""
        return self.sign * self.below, self.sign * self.above

    def apply(self, x: Tensor) -> Tensor:
        if (
            not isinstance(self.below, Tensor)
            and not isinstance(self.above, Tensor)
            and self.below == -self.above == -1
        ):
            return x.abs()  # of which no zero is negative
        return x.relu() if self.plain else torch.where(x > 0, _times(x, self.above), _times(x, self.below))

    def interval(self, x: Interval) -> Interval:
        ends = Interval(self.apply(x.lower), self.apply(x.upper))
        if self.plain:
            return ends
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        inside = self.undecided(x)
        return Interval(torch.where(inside, lower.clamp_max(0), lower), torch.where(inside, upper.clamp_min(0), upper))

    def relax(self, x: Interval) -> KinkPlanes:
        return kink_planes(*x, *self.slopes)

    def rounding(self, planes: KinkPlanes | None, x: Interval) -> Rounding:
        size = largest(x)
        if not self.plain:
            size = torch.maximum(_times(size, self.below).abs(), _times(size, self.above).abs())
        return Rounding(size, self.roundings, 2 + self.roundings, self.roundings)

    def undecided(self, x: Interval) -> Tensor:
        return (x.lower < 0) & (x.upper > 0)

    @property
    def carries(self) -> bool:
        """Whether :meth:`through` can take a radius of its input along: no coefficient changes its sign."""
        below, above = self.below, self.above
        return not isinstance(below, Tensor) and not isinstance(above, Tensor) and 0 <= below <= above

    def backward(self, rows: Rows, planes: KinkPlanes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        before, total, _ = self.through(rows, planes, shapes, None)
        return before, total

    def through(
        self, rows: Rows, planes: KinkPlanes, shapes: Shapes, radius: Tensor | None
    ) -> tuple[tuple[Rows, ...], Tensor, Tensor]:
        """What ``backward`` does, and ``(N, R / N)`` what is lost where a radius ``(N, *shape)`` moves the input."""
        values = rows.grouped(len(planes.upper))
        if isinstance(self.sign, Tensor):
            values = values * rows.cut(self.sign.expand(1, *shapes[0]))[0]
        elif self.sign < 0:
            values = -values
        # All rows read them: what lies together is quicker to read than a window's strides.
        lower, upper, shift = (
            rows.cut(plane).unflatten(0, (len(values), -1)).contiguous()
            for plane in (planes.lower, planes.upper, planes.shift)
        )
        reach = None if radius is None else rows.cut(radius).unsqueeze(1).contiguous()
        before, total, lost = step(values, lower, upper, shift, reach)
        if planes.push is not None:
            push = rows.cut(planes.push).unsqueeze(1)
            before = before + push
            if reach is not None:
                lost = lost + _of_one_sign(push.abs(), reach)
        return (Rows(before.flatten(0, 1), rows.window),), total.flatten(), lost


def relu() -> Kink:
    """``max(x, 0)``."""
    return Kink(0.0, 1.0, 0)


def _times(x: Tensor, slope: Slope) -> Tensor:
    """The product, 0 where the slope is, however large the number."""
    product = x * slope
    return torch.where(torch.as_tensor(slope == 0, device=x.device), 0, product)


def _of_one_sign(a: Tensor, b: Tensor) -> Tensor:
    """``sum_i a_i b_i`` for each row, in float64: no smaller in size than that, where no two terms differ in sign."""
    a, b = a.flatten(2), b.flatten(2)
    size = a.shape[2]
    parts = [(a[..., i : i + _TERMS] @ b[..., i : i + _TERMS].mT)[..., 0].double() for i in range(0, size, _TERMS)]
    return torch.stack(parts).sum(0) * (1 + gamma(min(size, _TERMS) + 4, unit(a.dtype)))


class Step(torch.autograd.Function):
    """One pass through the planes: coefficients above 0 take the lower one, those below 0 the upper one.

    Besides, what a radius of the input may cost, if there is one, which is too little to be worth a gradient. That of
    the rest with respect to the slopes is the coefficient times the value of the relaxed network's neuron, which
    autograd brings along; this keeps the coefficients alone for it, and not the seven tensors between.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, lower: Tensor, upper: Tensor, shift: Tensor, radius: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(values, lower, upper, shift)
        negative = values.clamp_max(0)
        total = _of_one_sign(negative, shift)
        # One of the two products is 0, so that each coefficient is rounded but once.
        before = values.clamp_min(0).mul_(lower)
        if radius is None:
            lost = torch.zeros_like(total)
        else:
            lost = _of_one_sign(before, radius) - _of_one_sign(negative, upper * radius)
        ctx.mark_non_differentiable(lost)
        return before.addcmul_(negative, upper), total, lost

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, lower, upper, shift = ctx.saved_tensors
        grad, total, _ = grads
        total = total.to(values.dtype).reshape(*total.shape, *[1] * (values.dim() - 2))
        need_values, need_lower, need_upper, need_shift, _ = ctx.needs_input_grad
        above = (values > 0).to(values.dtype)
        positive = values * above if need_lower or need_upper or need_shift else None
        by_values = by_lower = by_upper = by_shift = None
        if need_values:
            below_slope = torch.addcmul(total * shift, grad, upper)
            by_values = torch.lerp(below_slope, grad * lower, above)
        if positive is not None:
            by_lower = (grad * positive).sum_to_size(lower.shape) if need_lower else None
            by_upper = (grad * (values - positive)).sum_to_size(upper.shape) if need_upper else None
            by_shift = (total * (values - positive)).sum_to_size(shift.shape) if need_shift else None
        return by_values, by_lower, by_upper, by_shift, None


step: Callable[..., tuple[Tensor, Tensor, Tensor]] = Step.apply
