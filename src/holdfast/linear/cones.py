"""The cone ``{(w, t): ||w||_q <= t}`` in an interior-point method, for q = 1, 2 and infinity.

A cone holds its slacks ``s`` and multipliers ``z`` and is asked, in this order, at every step: what it adds to the
Hessian in ``(w, t)``; the force on ``(w, t)`` when complementarity shall come to ``target``; and, once the shared
direction is known, its own. The private variables that the norm of q = 1 needs are eliminated. ``push`` is the second
order correction of Mehrotra, SIAM J. Optim. 2 (1992).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cone", "Free", "LargestCone", "LengthCone", "SumCone", "longest"]

Array = NDArray[np.float64]


class Cone(Protocol):
    """What the interior-point method asks of a cone."""

    @property
    def degree(self) -> float:
        """How much of the complementarity at hand is this cone's: 1, or 0 for none."""
        ...

    def complementarity(self, step: float = 0.0) -> float:
        """``<s, z>`` a step along the last direction away."""
        ...

    def hessian(self, h: Array) -> None:
        """Add the curvature in ``(w, t)`` to the square matrix ``h``."""
        ...

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        """The constant part of the gradient in ``w`` and in ``t`` after the step."""
        ...

    def direct(self, dw: Array, dt: float) -> float:
        """Take up the shared direction; the longest step that stays inside."""
        ...

    def move(self, step: float) -> None:
        """Go along the last direction."""
        ...


def longest(v: Array, dv: Array) -> float:
    """The longest step at which ``v + step dv >= 0``, for ``v > 0``."""
    return 1 / max(float(np.max(-dv / v, initial=0.0)), 1e-12)


class Free:
    """No cone: without a budget the norm plays no part, and ``t`` stays where it is."""

    degree: float = 0

    @staticmethod
    def start(w: Array, t: float, slope: float) -> "Free":
        """Nothing to hold."""
        return Free()

    def complementarity(self, step: float = 0.0) -> float:
        return 0.0

    def hessian(self, h: Array) -> None:
        h[-1, -1] += 1

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        return np.zeros(1), 0.0

    def direct(self, dw: Array, dt: float) -> float:
        return np.inf

    def move(self, step: float) -> None:
        pass


@dataclass
class LargestCone:
    """q = infinity: ``t - w >= 0`` and ``t + w >= 0``, coordinate by coordinate."""

    s: Array
    z: Array
    ds: Array = field(init=False)
    dz: Array = field(init=False)
    degree: float = 1

    @staticmethod
    def start(w: Array, t: float, slope: float) -> "LargestCone":
        """At ``(w, t)``, on the central path, with multipliers that balance a force ``slope`` on ``t``."""
        s = np.stack((t - w, t + w))
        return LargestCone(s, slope / s / (1 / s).sum())

    def complementarity(self, step: float = 0.0) -> float:
        return _product(self.s, self.z) if step == 0 else _product(self.s + step * self.ds, self.z + step * self.dz)

    def hessian(self, h: Array) -> None:
        self.weight = self.z / self.s
        total, difference = self.weight[0] + self.weight[1], self.weight[1] - self.weight[0]
        d = len(total)
        h[range(d), range(d)] += total
        h[:d, -1] += difference
        h[-1, :d] += difference
        h[-1, -1] += total.sum()

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        self.pull = (target / self.s.size - (self.ds * self.dz if corrected else 0.0)) / self.s - self.z
        after = self.z + self.pull
        return after[0] - after[1], -float(after.sum())

    def direct(self, dw: Array, dt: float) -> float:
        self.ds = np.stack((dt - dw, dt + dw))
        self.dz = self.pull - self.weight * self.ds
        return min(longest(self.s, self.ds), longest(self.z, self.dz))

    def move(self, step: float) -> None:
        self.s = self.s + step * self.ds
        self.z = self.z + step * self.dz


@dataclass
class SumCone:
    """q = 1: ``|w_j| <= tau_j`` with ``sum tau_j = t``; the ``tau_j`` are private."""

    s: Array
    z: Array
    ds: Array = field(init=False)
    dz: Array = field(init=False)
    degree: float = 1

    @staticmethod
    def start(w: Array, t: float, slope: float) -> "SumCone":
        """At ``(w, t)``, near the central path, with multipliers that balance a force ``slope`` on ``t``."""
        tau = np.abs(w) + (t - np.abs(w).sum()) / len(w)
        s = np.stack((tau - w, tau + w))
        return SumCone(s, slope * s[::-1] / s.sum(0))

    def complementarity(self, step: float = 0.0) -> float:
        return _product(self.s, self.z) if step == 0 else _product(self.s + step * self.ds, self.z + step * self.dz)

    def hessian(self, h: Array) -> None:
        self.weight = self.z / self.s
        self.total = self.weight.sum(0)
        # The best private direction for given (dw, dt) leaves a diagonal and one rank-one term, (dt - <skew, dw>)^2.
        self.skew = (self.weight[0] - self.weight[1]) / self.total
        self.give = float((1 / self.total).sum())
        d = len(self.total)
        h[range(d), range(d)] += 4 * self.weight[0] * self.weight[1] / self.total
        h[:d, :d] += np.outer(self.skew, self.skew / self.give)
        h[:d, -1] -= self.skew / self.give
        h[-1, :d] -= self.skew / self.give
        h[-1, -1] += 1 / self.give

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        self.pull = (target / self.s.size - (self.ds * self.dz if corrected else 0.0)) / self.s - self.z
        after = self.z + self.pull
        self.both = after.sum(0)
        self.level = float((self.both / self.total).sum()) / self.give
        return after[0] - after[1] - self.skew * (self.both - self.level), -self.level

    def direct(self, dw: Array, dt: float) -> float:
        level = self.level + (float(self.skew @ dw) - dt) / self.give
        dtau = (self.both - level) / self.total + self.skew * dw
        self.ds = np.stack((dtau - dw, dtau + dw))
        self.dz = self.pull - self.weight * self.ds
        return min(longest(self.s, self.ds), longest(self.z, self.dz))

    def move(self, step: float) -> None:
        self.s = self.s + step * self.ds
        self.z = self.z + step * self.dz


@dataclass
class LengthCone:
    """q = 2: the second-order cone, in the scaling of Nesterov and Todd, Math. Oper. Res. 22 (1997).

    Vectors are ``(t, w)``. ``W`` is the scaling ``size (2 v v^T - J)`` with ``J = diag(1, -1, ..., -1)``.
    """

    s: Array
    z: Array
    ds: Array = field(init=False)
    dz: Array = field(init=False)
    degree: float = 1

    @staticmethod
    def start(w: Array, t: float, slope: float) -> "LengthCone":
        """At ``(w, t)``, on the central path, with multipliers that balance a force ``slope`` on ``t``."""
        return LengthCone(np.r_[t, w], slope * np.r_[1, -w / t])

    def complementarity(self, step: float = 0.0) -> float:
        return float(self.s @ self.z) if step == 0 else float((self.s + step * self.ds) @ (self.z + step * self.dz))

    def hessian(self, h: Array) -> None:
        across, along = _depth(self.s), _depth(self.z)
        s, z = self.s / across, self.z / along
        middle = (s + _mirror(z)) / np.sqrt(2 * (1 + z @ s))
        self.size = np.sqrt(across / along)
        self.axis = (middle + np.eye(1, len(s))[0]) / np.sqrt(2 * (middle[0] + 1))
        self.scaled = self._scale(self.z)
        inverse = _mirror(middle) / self.size
        d = len(s) - 1
        h[:d, :d] += 2 * np.outer(inverse[1:], inverse[1:])
        h[range(d), range(d)] += self.size**-2
        h[:d, -1] += 2 * inverse[0] * inverse[1:]
        h[-1, :d] += 2 * inverse[0] * inverse[1:]
        h[-1, -1] += 2 * inverse[0] ** 2 - self.size**-2

    def _scale(self, v: Array) -> Array:
        return np.asarray(self.size * (2 * self.axis * (self.axis @ v) - _mirror(v)))

    def _unscale(self, v: Array) -> Array:
        axis = _mirror(self.axis)
        return np.asarray((2 * axis * (axis @ v) - _mirror(v)) / self.size)

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        wanted = -_jordan(self.scaled, self.scaled)
        wanted[0] += target
        if corrected:
            wanted -= _jordan(self._unscale(self.ds), self._scale(self.dz))
        self.pull = self._unscale(_divide(self.scaled, wanted))
        after = self.z + self.pull
        return -after[1:], -float(after[0])

    def direct(self, dw: Array, dt: float) -> float:
        self.ds = np.r_[dt, dw]
        self.dz = self.pull - self._unscale(self._unscale(self.ds))
        return min(_leave(self.s, self.ds), _leave(self.z, self.dz))

    def move(self, step: float) -> None:
        self.s = self.s + step * self.ds
        self.z = self.z + step * self.dz


def _product(a: Array, b: Array) -> float:
    return float(np.vdot(a, b))


def _mirror(v: Array) -> Array:
    mirrored = -v
    mirrored[0] = v[0]
    return mirrored


def _depth(v: Array) -> float:
    """``sqrt(v_0^2 - ||v_1||^2)``, how far inside the second-order cone a point lies."""
    length = float(np.linalg.norm(v[1:]))
    return float(np.sqrt((v[0] - length) * (v[0] + length)))


def _jordan(a: Array, b: Array) -> Array:
    return np.asarray(np.r_[a @ b, a[0] * b[1:] + b[0] * a[1:]])


def _divide(a: Array, b: Array) -> Array:
    """The ``x`` with ``jordan(a, x) = b``."""
    depth = _depth(a) ** 2
    inner = float(a[1:] @ b[1:])
    head = (a[0] * b[0] - inner) / depth
    return np.asarray(np.r_[head, (b[1:] - head * a[1:]) / a[0]])


def _leave(v: Array, dv: Array) -> float:
    """The longest step at which ``v + step dv`` stays in the second-order cone."""
    a = dv[0] ** 2 - dv[1:] @ dv[1:]
    b = v[0] * dv[0] - v[1:] @ dv[1:]
    c = _depth(v) ** 2
    root = np.sqrt(max(b * b - a * c, 0.0))
    # The smallest positive root of a x^2 + 2 b x + c, in the form that does not cancel.
    roots = (c / (root - b) if root - b > 0 else np.inf, -c / (root + b) if root + b < 0 else np.inf)
    ahead = min(x for x in roots if x > 0)
    return float(min(ahead, v[0] / -dv[0] if dv[0] < 0 else np.inf))
