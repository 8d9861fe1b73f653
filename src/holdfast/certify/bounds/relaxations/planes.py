"""The best plane above and below a function of one variable on an interval.

Of all planes above ``f`` on ``[l, u]``, the one with the smallest area between the two is lowest at the middle, and no
plane is lower there than the smallest concave function above ``f``. The plane wanted is therefore that envelope's
tangent at the middle: a tangent of ``f`` itself, or a line through two of its points, which may be the ends. This is
what Zhang et al. ("Efficient neural network robustness certification with general activation functions", NeurIPS 2018,
table 2) list case by case for the ReLU and the sigmoid, found here for every function by one search.

Soundness does not depend on the search. Whatever the slope ``k``, the intercept is the maximum of ``f(x) - k x`` on the
interval, which is attained at an end or where ``f`` turns from above the slope to below it, once in every concave piece
of ``f``. All of this is done in float64, and rounded outwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.threats.norm import safe_divide

__all__ = ["Activation", "Planes"]

Function = Callable[[Tensor], Tensor]
Turns = Callable[[Tensor], tuple[Tensor, ...]]

# The two points approach the tangent's quadratically, and by halving where those meet at an inflection.
_ROUNDS = 12
# How far a few operations in float64 may be off, relative to their largest number.
_ROUNDING = 8 * torch.finfo(torch.float64).eps


class Planes(NamedTuple):
    """``lower_slope * x + lower_intercept <= f(x) <= upper_slope * x + upper_intercept``, elementwise."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


@dataclass(frozen=True, eq=False)
class Activation:
    """A continuous function of one variable, and where it turns.

    Parameters
    ----------
    name : str
        The name of the function.
    function, slope : callable
        The function and its derivative, elementwise; at a kink any slope between those of its sides.
    peaks, valleys : callable
        For slopes ``k``, where ``f(x) - k x`` has its maximum in each concave piece of ``f``, or its minimum in each
        convex one; anything beyond the piece's end, infinity included, where it has none inside.
    extremes : tuple of float
        Where ``f`` itself has a local maximum or minimum.
    start : float
        The least input for which the function is defined.
    reach, size : float
        How far from 0 it is known where the function turns; beyond that, how large its values may be at most.
    cell : float
        How far the points ``x`` that ``peaks`` and ``valleys`` return may be from the true ones, as a share of
        ``1 + |x|``.
    pole : bool
        Whether the function is unbounded where it starts. There the sign of a zero would decide on which side.
    roundings : int
        By how many units of roundoff a network's own value of the function may be off, relatively to its size ...
    gain : float
        ... and to that of its input times this: functions that are computed as the input times something else.
    ends : tuple of float or None
        Of a function that is its input between two ends, and constant beyond them: these ends.
    floor : float
        And to this: functions that are computed from something that may overflow where the value itself is small.
    """

    name: str
    function: Function
    slope: Function
    peaks: Turns = lambda k: ()
    valleys: Turns = lambda k: ()
    extremes: tuple[float, ...] = ()
    start: float = -torch.inf
    reach: float = torch.inf
    size: float = torch.inf
    cell: float = 0.0
    pole: bool = False
    roundings: int = 8
    gain: float = 0.0
    ends: tuple[float, float] | None = None
    floor: float = 0.0

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the value for inputs between ``lower`` and ``upper``; infinite where it may be undefined."""
        low, high = _unsigned(lower), _unsigned(upper)
        ends = [low, high, *(torch.full_like(low, x).clamp(low, high) for x in self.extremes)]
        values = torch.stack([self.function(end) for end in ends])
        least, most = values.amin(0), values.amax(0)
        unknown, size = self._beyond(lower, upper), self.size
        least, most = (torch.where(unknown, end, value) for end, value in ((-size, least), (size, most)))
        undefined = ~self._defined(lower)
        least, most = least.masked_fill(undefined, -torch.inf), most.masked_fill(undefined, torch.inf)
        return -_bound(-least, lower.dtype), _bound(most, lower.dtype)

    def relax(self, lower: Tensor, upper: Tensor) -> Planes:
        """Planes that hold between ``lower`` and ``upper``, of their shape; constants where these are not finite.

        Differentiable with respect to both.
        """
        inside = lower.isfinite() & upper.isfinite() & self._defined(lower) & ~self._beyond(lower, upper)
        # Somewhere, so that nothing computed there and thrown away spoils a gradient.
        low, high = (_unsigned(torch.where(inside, bound, 1)) for bound in (lower, upper))
        slope, intercept = _above(self.function, self.slope, self.peaks, self.cell, low, high, lower.dtype)
        under_slope, under_intercept = _above(
            lambda x: -self.function(x),
            lambda x: -self.slope(x),
            lambda k: self.valleys(-k),
            self.cell,
            low,
            high,
            lower.dtype,
        )
        least, most = self.interval(lower, upper)
        return Planes(
            *_or_constant(inside, -under_slope, -under_intercept, least), *_or_constant(inside, slope, intercept, most)
        )

    def _beyond(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (lower < -self.reach) | (upper > self.reach)

    def _defined(self, lower: Tensor) -> Tensor:
        return lower > self.start if self.pole else lower >= self.start


def _unsigned(x: Tensor) -> Tensor:
    """In float64, with one zero only."""
    return x.double() + 0.0


def _bound(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What no value can exceed, given what was found in float64: infinite where that is no number."""
    wider = rounded_up(value * (1 + _ROUNDING * value.sign()), dtype)
    return wider.nan_to_num(torch.inf, torch.inf, torch.finfo(dtype).min)


def _or_constant(inside: Tensor, slope: Tensor, intercept: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    usable = inside & slope.isfinite() & intercept.isfinite()
    return torch.where(usable, slope, 0), torch.where(usable, intercept, bound)


def _above(
    function: Function, slope: Function, peaks: Turns, cell: float, low: Tensor, high: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Slope and intercept, in ``dtype``, of the plane above the function that is lowest at the middle."""
    shape = low.shape
    low, high = low.flatten(), high.flatten()
    middle = low / 2 + high / 2
    k, b = _sealed(function, slope, peaks, cell, slope(middle), low, high, dtype)
    # Where the tangent at the middle touches there, nothing is lower. Elsewhere the line over the middle may be.
    gap = k * middle + b - function(middle)
    loose = (gap > _ROUNDING * (k * middle).abs().maximum(b.abs())).nonzero()[:, 0]
    if len(loose):
        low, high, middle = low[loose], high[loose], middle[loose]
        with torch.no_grad():
            left, right = _line(function, peaks, low, middle, high)
        # A touching point between the ends stays, to first order, when these move; one at an end moves along.
        left, right = (_along(point, low, high) for point in (left, right))
        wide = right - left > _ROUNDING * (low.abs() + high.abs())
        through = torch.where(wide, safe_divide(function(right) - function(left), right - left), slope(middle))
        other_k, other_b = _sealed(function, slope, peaks, cell, through, low, high, dtype)
        better = other_k * middle + other_b < k[loose] * middle + b[loose]
        k = k.index_copy(0, loose, torch.where(better, other_k, k[loose]))
        b = b.index_copy(0, loose, torch.where(better, other_b, b[loose]))
    return k.to(dtype).reshape(shape), rounded_up(b, dtype).reshape(shape)


def rounded_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The least number of ``dtype`` that is not below."""
    # Below the lowest number of the precision nothing but that is finite.
    rounded = value.to(dtype).clamp_min(torch.finfo(dtype).min)
    with torch.no_grad():
        step = rounded.nextafter(torch.full_like(rounded, torch.inf)) - rounded
        short = rounded < value
    return rounded + torch.where(short, step, 0)


def _line(function: Function, peaks: Turns, low: Tensor, middle: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The two points, left and right of the middle, through which the envelope's line over the middle goes.

    Starting with the ends, the point that is farthest above the line replaces the one on its side.
    """
    left, right = low, high
    for _ in range(_ROUNDS):
        k = safe_divide(function(right) - function(left), right - left)
        line = function(left) - k * left
        top, highest = left, line
        for peak in peaks(k):
            point = torch.clamp(peak, low, high)
            height = function(point) - k * point
            top, highest = torch.where(height > highest, point, top), torch.maximum(height, highest)
        above = highest - line > _ROUNDING * (line.abs() + (k * top).abs())
        if not bool(above.any()):
            break
        left, right = (
            torch.where(above & (top <= middle), top, left),
            torch.where(above & (top > middle), top, right),
        )
    return left, right


def _sealed(
    function: Function,
    slope: Function,
    peaks: Turns,
    cell: float,
    k: Tensor,
    low: Tensor,
    high: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The slope as ``dtype`` holds it, and the least intercept with which the plane is above the function."""
    k = k.to(dtype).double()
    with torch.no_grad():
        left, right = function(low) - k * low, function(high) - k * high
        top, highest = torch.where(right > left, high, low), torch.maximum(left, right)
        room = torch.zeros_like(low)
        for peak in peaks(k):
            point = torch.clamp(peak, low, high)
            height = function(point) - k * point
            top, highest = torch.where(height > highest, point, top), torch.maximum(height, highest)
            if cell:
                # The function is concave here: it rises above this point no faster than its slope says.
                width = cell * (1 + point.abs())
                near = (peak - point).abs() <= width
                room = torch.where(near, (slope(point) - k).abs() * width, 0).maximum(room)
    top = _along(top, low, high)
    value, rise = function(top), k * top
    intercept = value - rise
    rounding = (_ROUNDING * (value.abs() + rise.abs())).detach()
    return k, intercept + torch.where(intercept == 0, 0, rounding) + room


def _along(point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.where(point == low, low, torch.where(point == high, high, point))
