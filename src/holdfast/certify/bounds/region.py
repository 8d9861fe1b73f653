"""The sets of inputs that bounds speak of, and the minimum of a linear function over each.

That minimum ends every backward bound (Zhang et al., "Efficient neural network robustness certification with general
activation functions", NeurIPS 2018, equation 10, who take a ball without a box). Here a ball is intersected with the
box of admissible inputs, exactly. For L2 and L1 the value is that of the Lagrangian

    min over the box of  <a, delta> + multiplier * (size(delta) - budget),

which lies below the minimum whatever the multiplier is, and equals it at the best one: an inexact multiplier makes a
bound looser, never wrong.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from holdfast.arguments import inputs
from holdfast.certify.bounds.rounding import dot, down, gamma, summed, unit
from holdfast.errors import DataError
from holdfast.threats import Ball, l0, l1, l2
from holdfast.threats.norm import Norm, column, room_along, safe_divide

if TYPE_CHECKING:
    from holdfast.certify.bounds.zonotope import Zonotope

__all__ = ["Region"]

# Rows are worked through in pieces of about this many numbers: on a processor those stay in its cache.
_PIECE = {"cpu": 1 << 17}
_LARGE_PIECE = 1 << 26
# Newton's method settles after 5 rounds on random rows, and any number of them gives a bound.
_ROUNDS = 30
# How many of a row's largest coordinates usually take up an L1 budget.
_FEW = 64

_BALLS: dict[str, Norm] = {norm.name: cast("Norm", norm) for norm in (l2, l1, l0)}


@dataclass(frozen=True, eq=False)
class Region:
    """One set of inputs for each of ``N`` examples: a box, or a box intersected with a ball.

    Make one with :meth:`around` or :meth:`box`. Bounds are those of the inputs' own precision.

    Parameters
    ----------
    lower, upper : Tensor
        ``(N, *shape)`` the smallest box around the set.
    center : Tensor
        ``(N, *shape)`` the centre of the ball.
    norm : str
        ``"linf"``, where the set is the box itself, or ``"l2"``, ``"l1"``, ``"l0"``.
    eps : Tensor
        ``(N,)`` the radius of the ball.
    swept : Zonotope or None
        Another set that holds what the box is there for, so that bounds may be taken over either.
    """

    lower: Tensor
    upper: Tensor
    center: Tensor
    norm: str
    eps: Tensor
    swept: "Zonotope | None" = None

    @classmethod
    def around(cls, threat: Ball, x: Tensor) -> Self:
        """What ``threat`` admits around each input of ``x``, ``(N, *shape)``.

        Raises
        ------
        DataError
            When an input lies outside the threat's box, or neither budget nor box bounds the set.
        """
        outside = (~threat.admits(x, x)).nonzero()
        if len(outside):
            raise DataError(
                f"example {int(outside[0, 0])} lies outside the box {threat.box}: scale the data to it, or change it"
            )
        budget = threat.budget(x)
        # However small a budget of coordinates is, one of them may go all the way.
        reach = torch.where(budget > 0, torch.inf, budget) if threat.norm == "l0" else budget
        room = column(reach, x)
        low, high = threat.box.ends(x)
        # What the box's tolerance forgave is in the set.
        lower, upper = (x - room).maximum(low).minimum(x), (x + room).minimum(high).maximum(x)
        _check_bounded(lower, upper)
        # An infinite budget allows what the box does, which a finite one can say as well.
        widest = threat.length(torch.where(upper - x > x - lower, upper, lower) - x)
        return cls(lower, upper, x, threat.norm, torch.where(budget.isfinite(), budget, widest))

    @classmethod
    def box(cls, lower: Tensor, upper: Tensor, swept: "Zonotope | None" = None) -> Self:
        """All inputs between ``lower`` and ``upper``, ``(N, *shape)``; of those, what a zonotope holds.

        Raises
        ------
        DataError
            When bounds are no floating point numbers of one shape and type, or a set is empty or unbounded.
        """
        lower, upper = inputs(lower, "lower"), inputs(upper, "upper")
        if (lower.shape, lower.dtype) != (upper.shape, upper.dtype):
            raise DataError(
                f"lower is {lower.dtype} {tuple(lower.shape)} and upper {upper.dtype} {tuple(upper.shape)}: give both "
                "in one shape and precision"
            )
        empty = (~(lower <= upper)).flatten(1).any(1).nonzero()
        if len(empty):
            raise DataError(f"example {int(empty[0, 0])} has an empty set: a lower bound lies above its upper bound")
        _check_bounded(lower, upper)
        # Half of each first, lest the sum overflow.
        center, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
        eps = radius.flatten(1).amax(1) if radius.numel() else radius.flatten(1).sum(1)
        return cls(lower, upper, center, "linf", eps, swept)

    def __len__(self) -> int:
        return len(self.center)

    def take(self, rows: Tensor) -> "Region":
        """The sets of the examples ``rows``, an index or a mask."""
        swept = None if self.swept is None else self.swept.take(rows)
        return Region(self.lower[rows], self.upper[rows], self.center[rows], self.norm, self.eps[rows], swept)

    def crop(self, window: tuple[slice, ...]) -> "Region":
        """The projections of the sets onto the coordinates in ``window``, a slice for each dimension of an example."""
        part = (slice(None), *window)
        if self.center[part].shape == self.center.shape:
            return self
        # A ball's projection is the ball of the same radius: the other coordinates may stay at the centre.
        swept = None if self.swept is None else self.swept.crop(window)
        return Region(self.lower[part], self.upper[part], self.center[part], self.norm, self.eps, swept)

    def to(self, dtype: torch.dtype) -> "Region":
        """The same sets in another precision."""
        swept = None if self.swept is None else self.swept.to(dtype)
        lower, upper, center = (end.to(dtype) for end in (self.lower, self.upper, self.center))
        return Region(lower, upper, center, self.norm, self.eps.to(dtype), swept)

    def minimum(self, a: Tensor, of: Tensor | None = None) -> Tensor:
        """The minimum of ``<a_r, x>`` over an example's set, for each row ``r``; never above it, however it rounds.

        Differentiable with respect to ``a`` and to the bounds, centre and radius of the set.

        Parameters
        ----------
        a : Tensor
            ``(R, *shape)``.
        of : Tensor, optional
            ``(R,)`` int64, the example of each row. If it is not given, rows come in equal groups: ``R / N`` for each
            of the ``N`` examples in turn.

        Returns
        -------
        Tensor
            ``(R,)``.
        """
        if self.swept is not None:
            box = replace(self, swept=None)
            return box.minimum(a, of).maximum(self.swept.minimum(a, of))
        lower, upper, center, rows = (t.flatten(1) for t in (self.lower, self.upper, self.center, a))
        # What products that are too small for the precision may leave out.
        smallest = 4 * rows.shape[1] * torch.finfo(a.dtype).tiny * torch.finfo(a.dtype).eps
        if self.norm == "linf":
            middle, radius = self._halves
            if of is None:
                groups = rows.unflatten(0, (len(self), -1))
                reached = (groups.abs() @ radius.unsqueeze(2))[..., 0].double()
                found = dot(groups, middle.unsqueeze(1)) - reached
                return down(found.flatten() - smallest, a.dtype)
            parts = [dot(row, middle[i]) - _dot(row.abs(), radius[i]).double() for row, i in _pieces(rows, of)]
            return down(torch.cat(parts) - smallest, a.dtype)
        of = self._owners(rows) if of is None else of
        low, high, gain = lower - center, upper - center, _GAINS[self.norm]
        # What the sums, and the differences from the centre, may be off by.
        share = gamma(2 * summed(rows.shape[1]) + 8, unit(a.dtype))
        reach = torch.maximum(lower.abs(), upper.abs()) + center.abs()
        reach = reach.masked_fill(reach.isinf(), 0)  # where a coefficient is not 0 there, there is no minimum
        parts = []
        for row, i in _pieces(rows, of):
            most = gain(row, self.eps[i], low[i], high[i])
            parts.append(dot(row, center[i]) - most * (1 + share) - share * dot(row.abs(), reach[i]))
        return down(torch.cat(parts) - smallest, a.dtype)

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        """``(N, d)`` the middles of the sides of the box, and half their lengths with room for rounding.

        The room is for both numbers, and for the sums that they become terms of.
        """
        lower, upper = self.lower.flatten(1), self.upper.flatten(1)
        middle, half = lower / 2 + upper / 2, upper / 2 - lower / 2
        # The first for sums of numbers of either sign, the second for those of sizes.
        few, many = (gamma(count + 8, unit(lower.dtype)) for count in (summed(lower.shape[1]), lower.shape[1]))
        return middle, (half + few * middle.abs()) * (1 + 2 * many) + torch.finfo(lower.dtype).tiny

    def minimiser(self, a: Tensor, of: Tensor | None = None) -> Tensor:
        """A point of the set at which that minimum is attained, ``(R, *shape)``; takes what :meth:`minimum` does."""
        lower, upper, center, rows = (t.flatten(1) for t in (self.lower, self.upper, self.center, a))
        found = []
        for row, i in _pieces(rows, self._owners(rows) if of is None else of):
            if self.norm == "linf":
                found.append(torch.where(row > 0, lower[i], torch.where(row < 0, upper[i], center[i])))
            else:
                delta = _BALLS[self.norm].maximize(
                    -row, self.eps[i].unsqueeze(1), lower[i] - center[i], upper[i] - center[i]
                )
                found.append((center[i] + delta).clamp(lower[i], upper[i]))
        return torch.cat(found).reshape(a.shape)

    def _owners(self, rows: Tensor) -> Tensor:
        """``(R,)`` the example of each row of equal groups."""
        examples = torch.arange(len(self), device=rows.device)
        return examples.repeat_interleave(len(rows) // max(1, len(self)))


def _gain_l2(a: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What ``-<a, delta>`` can reach over an L2 ball and a box around 0, or more: ``(R,)`` float64.

    A change that is not quite the best one for its multiplier costs the square of what it is off by.
    """
    with torch.no_grad():
        multiplier = _multiplier_l2(a, eps, room_along(-a, low, high))
        free = torch.where(a == 0, 0, -a / multiplier)
    delta = free.clamp(low, high)
    price, squares = multiplier[:, 0].double() / 2, dot(delta, delta)
    room = gamma(2 * summed(a.shape[1]) + 8, unit(a.dtype)) * (
        dot(a.abs(), delta.abs()) + price * (squares + eps.double() ** 2)
    )
    return room - dot(a, delta) - price * (squares - eps.double() ** 2)


def _multiplier_l2(a: Tensor, eps: Tensor, room: Tensor) -> Tensor:
    """``(R, 1)`` the multiplier at which ``clip(-a / multiplier)`` has the norm ``eps``; 0 if the box ends before that.

    As in :mod:`holdfast.threats.l2`, Newton's method on the squared norm climbs to the root, fixing coordinates at
    their bounds as it goes. Here nothing hangs on its last digits, so the sums are those of the inputs' precision.
    """
    scale = a.abs().amax(1, keepdim=True)
    size = safe_divide(a.abs(), scale)
    squares, rooms, target = size.square(), room.square(), eps.square()
    s = safe_divide(eps, squares.sum(1).sqrt())
    for _ in range(_ROUNDS):
        fixed = (s.unsqueeze(1) * size >= room).to(a.dtype)
        free = _dot(1 - fixed, squares)
        root = safe_divide((target - _dot(fixed, rooms)).clamp_min(0), free).sqrt()
        if not bool(((free > 0) & (root > s * (1 + 4 * torch.finfo(a.dtype).eps))).any()):
            break
        s = torch.where(free > 0, root.maximum(s), s)
    multiplier = safe_divide(scale[:, 0], s).masked_fill((rooms.sum(1) <= target) | (s == 0), 0)
    return multiplier.unsqueeze(1)


def _gain_l1(a: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same for L1: the coordinates above the multiplier in ``|a|`` are at their bounds, the one at it shares."""
    with torch.no_grad():
        size, room = a.abs(), room_along(-a, low, high)
        multiplier = _multiplier_l1(size, room, eps)
        full = size > multiplier
        left = (eps - torch.where(full, room, 0).sum(1)).clamp_min(0).unsqueeze(1)
        rest = torch.where(size == multiplier, room.minimum(left), 0).copysign(-a)
    delta = torch.where(full, torch.where(a > 0, low, high), rest)
    price, sizes = multiplier[:, 0].double(), delta.abs().sum(1, dtype=torch.float64)
    room = gamma(2 * summed(a.shape[1]) + 8, unit(a.dtype)) * (
        dot(a.abs(), delta.abs()) + price * (sizes + eps.double())
    )
    return room - dot(a, delta) - price * (sizes - eps.double())


def _multiplier_l1(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """``(R, 1)`` the size of the coordinate that gets the last of the budget when the largest are served first.

    It is among the largest few, unless the budget is large or the box narrow.
    """
    count = size.shape[1]
    for few in (min(_FEW, count), count):
        largest, order = size.topk(few, dim=1)
        spent = room.gather(1, order).cumsum(1)
        last = (spent < eps.unsqueeze(1)).sum(1, keepdim=True)
        if few == count or bool((last < few).all()):
            break
    # Where the box ends before the budget does, nothing has a price.
    return torch.where(last < count, largest.gather(1, last.clamp_max(few - 1)), 0)


def _gain_l0(a: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same for L0: the largest gains of single coordinates, as many as may change."""
    # An unbounded coordinate makes infinity here, though not where nothing is to be gained by it.
    gains = -a * torch.where(a > 0, low, torch.where(a < 0, high, 0))
    count = min(int(eps.max().clamp_max(a.shape[1])) if len(eps) else 0, a.shape[1])
    largest = gains.topk(count, dim=1).values
    return torch.where(torch.arange(count, device=a.device) < eps.unsqueeze(1), largest, 0).sum(1, dtype=torch.float64)


_GAINS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "l2": _gain_l2,
    "l1": _gain_l1,
    "l0": _gain_l0,
}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def _pieces(rows: Tensor, of: Tensor | None) -> Iterator[tuple[Tensor, Tensor | slice]]:
    """The rows, few at a time, each time with what picks their examples; one empty piece where there are none."""
    size = max(1, _PIECE.get(rows.device.type, _LARGE_PIECE) // max(1, rows.shape[1]))
    for start in range(0, max(1, len(rows)), size):
        piece = slice(start, start + size)
        yield rows[piece], piece if of is None else of[piece]


def _check_bounded(lower: Tensor, upper: Tensor) -> None:
    unbounded = (~(lower.isfinite() & upper.isfinite())).flatten(1).any(1).nonzero()
    if len(unbounded):
        raise DataError(f"example {int(unbounded[0, 0])} has an unbounded set: give a finite budget or a box")
