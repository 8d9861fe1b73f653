"""What holdfast needs to know of a norm, and the steps they share.

Everything here works on rows: tensors ``(N, ...)`` whose first dimension counts examples, radii ``(N, 1, ...)`` that
broadcast against them, and a box given relative to the centre, ``lower <= 0 <= upper``. The four norms are modules
(:mod:`linf`, :mod:`l2`, :mod:`l1`, :mod:`l0`) with the functions of :class:`Norm`.
"""

from typing import Protocol

import torch
from torch import Tensor

from holdfast.draws import Draws

__all__ = ["Norm", "climb", "column", "each", "random_length", "room_along", "safe_divide", "whole_box"]


class Norm(Protocol):
    """The functions of a norm. By Hölder's inequality ``<g, d> <= length(d) * dual(g)``."""

    def length(self, d: Tensor) -> Tensor:
        """``(N,)`` the norm of each row."""
        ...

    def dual(self, g: Tensor) -> Tensor:
        """``(N,)`` the dual norm of each row, the maximum of ``<g, d>`` over the unit ball."""
        ...

    def steepest(self, g: Tensor) -> Tensor:
        """Where that maximum is reached: a point of the unit ball with ``<g, d> = dual(g)``."""
        ...

    def cut(self, radius: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The box as the functions below want it, worked out once for all of them."""
        ...

    def ascend(self, z: Tensor, g: Tensor, size: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """One step of projected gradient ascent from ``z`` by a length ``size``, within ball and box."""
        ...

    def maximize(self, g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """The maximiser of ``<g, d>`` over the ball of ``radius`` intersected with the box."""
        ...

    def project(self, d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """The nearest point, in Euclidean distance, of the ball of ``radius`` intersected with the box."""
        ...

    def retract(self, d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """A point of the same set by projecting onto the ball and then clipping to the box: cheap, not the nearest."""
        ...

    def to_plane(self, g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """The shortest ``d`` in the box with ``<g, d> = gap``, not negative; the corner that comes nearest if none is.

        Gradients are given at a scale where the largest entry is 1; gaps, at the same scale, in float64.
        """
        ...

    def sphere(self, rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
        """A random point at the distance ``radius``, before any box, shaped like ``like``."""
        ...

    def sample(self, rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
        """A random point of the ball of ``radius`` and the box: uniform in the ball, then clipped."""
        ...


def whole_box(radius: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The box as it is, for norms that gain nothing from cutting it."""
    return lower, upper


def each(d: Tensor) -> tuple[int, ...]:
    """The dimensions of one example."""
    return tuple(range(1, d.dim()))


def column(values: Tensor, like: Tensor) -> Tensor:
    """``(N,)`` values shaped to broadcast against ``like``, ``(N, ...)``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is 0 where the denominator is 0 and the numerator with it."""
    return numerator / torch.where(denominator == 0, 1, denominator)


def room_along(direction: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """How far the box lets each coordinate go to the side of its sign in ``direction``; 0 where that is 0."""
    return torch.where(direction > 0, upper, torch.where(direction < 0, -lower, 0.0))


def climb(direction: Tensor, g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``clip(s direction)`` with the least ``s`` at which ``<g, .>`` is ``gap``, or every coordinate at its bound.

    ``direction`` has the signs of ``g``, so that ``<g, clip(s direction)>`` is concave, piecewise linear and rising in
    ``s``: Newton's method started at 0 climbs to the root without overshooting, every round but the last fixes
    another coordinate at its bound, and it ends exactly.
    """
    speed, room = direction.abs(), room_along(direction, lower, upper)
    rise, whole, goal = g.abs() * speed, g.abs() * room, column(gap, g)
    s = torch.zeros_like(goal)
    while True:
        moved = s.to(g.dtype) * speed
        at_bound = moved >= room
        reached = whole.masked_fill(~at_bound, 0).sum(each(g), keepdim=True, dtype=gap.dtype)
        slope = rise.masked_fill(at_bound, 0).sum(each(g), keepdim=True, dtype=gap.dtype)
        root = safe_divide(goal - reached, slope).clamp_max(torch.finfo(g.dtype).max)
        larger = (slope > 0) & (root > s)
        if not bool(larger.any()):
            return torch.minimum(moved, room).copysign(direction)
        s = torch.where(larger, root, s)


def random_length(rng: Draws, like: Tensor) -> Tensor:
    """The length of a point drawn uniformly from a unit ball of any norm: ``U^(1/d)`` in ``d`` dimensions."""
    return column(rng.uniform(1, lane=1)[:, 0] ** (1 / max(like.shape[1:].numel(), 1)), like).to(like.dtype)
