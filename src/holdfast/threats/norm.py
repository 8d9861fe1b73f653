"""What holdfast needs to know of a norm, and the steps they share.

Everything here works on rows: tensors ``(N, ...)`` whose first dimension counts examples, radii ``(N, 1, ...)`` that
broadcast against them, and a box given relative to the centre, ``lower <= 0 <= upper``. The four norms are modules
(:mod:`linf`, :mod:`l2`, :mod:`l1`, :mod:`l0`) with the functions of :class:`Norm`.
"""

from typing import Protocol

import torch
from torch import Tensor

from holdfast.draws import Draws

__all__ = ["Norm", "column", "each", "random_length", "safe_divide", "whole_box"]


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


def random_length(rng: Draws, like: Tensor) -> Tensor:
    """The length of a point drawn uniformly from a unit ball of any norm: ``U^(1/d)`` in ``d`` dimensions."""
    return column(rng.uniform(1, lane=1)[:, 0] ** (1 / max(like.shape[1:].numel(), 1)), like).to(like.dtype)
