"""The losses of robust linear models, in the linear predictor ``f = w.x + b`` and in ``t``, the dual norm of ``w``.

All are convex and do not fall with ``t``. A loss says what it is worth, and opens an :class:`Interior`: its side of the
interior-point method, with slacks, multipliers and private variables.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit

from holdfast.linear.cones import longest

__all__ = ["Curvature", "Hinge", "Interior", "Logistic", "Loss", "Multipliers", "Squared"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curvature:
    """Second derivatives of every example in ``f``, in ``f`` and ``t``, and in ``t``, each ``(n,)``."""

    ff: Array
    ft: Array
    tt: Array


@dataclass(frozen=True)
class Multipliers:
    """A point of the dual problem.

    For all ``f`` and ``t >= 0`` the loss is at least ``value + <force, f> + slope t``.
    """

    force: Array
    slope: float
    value: float


class Interior(Protocol):
    """A loss inside the interior-point method; the calls are those of :class:`holdfast.linear.cones.Cone`."""

    @property
    def degree(self) -> float:
        """How much of the complementarity at hand is this loss's: 1, or 0 for none."""
        ...

    def complementarity(self, step: float = 0.0) -> float:
        """``<s, z>`` a step along the last direction away."""
        ...

    def curvature(self) -> Curvature:
        """Second derivatives, private variables eliminated."""
        ...

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        """The constant part of the gradient in ``f`` and in ``t`` after the step."""
        ...

    def direct(self, df: Array, dt: float) -> float:
        """Take up the shared direction; the longest step that stays inside."""
        ...

    def move(self, step: float) -> None:
        """Go along the last direction."""
        ...

    def multipliers(self, balanced: bool) -> Multipliers:
        """The dual point, made feasible; ``balanced`` where there is an intercept, so that forces sum to 0."""
        ...


class Loss(Protocol):
    """One number for all examples, with weights ``s`` that sum to 1."""

    @property
    def y(self) -> Array:
        """``(n,)`` targets, or labels -1 and 1."""
        ...

    @property
    def s(self) -> Array:
        """``(n,)`` weights."""
        ...

    def value(self, f: Array, t: float) -> float:
        """The loss."""
        ...

    def constant(self) -> float:
        """The best intercept when ``w`` is 0."""
        ...

    def interior(self, f: Array, t: float) -> Interior:
        """Open the interior-point method, with slacks as large as losses are."""
        ...


@dataclass(frozen=True)
class Logistic:
    """``sum s log(1 + exp(-(y f - eps t)))`` with ``y`` in {-1, 1}."""

    y: Array
    s: Array
    eps: float

    def value(self, f: Array, t: float) -> float:
        return float(self.s @ np.logaddexp(0, self.eps * t - self.y * f))

    def constant(self) -> float:
        return float(np.log(self.s[self.y > 0].sum() / self.s[self.y < 0].sum()))

    def interior(self, f: Array, t: float) -> Interior:
        return _Smooth(self, f, t)


@dataclass
class _Smooth:
    """The logistic loss has derivatives: it needs neither slacks nor private variables."""

    loss: Logistic
    f: Array
    t: float
    degree: float = 0
    share: Array = field(init=False)

    def __post_init__(self) -> None:
        self.share = expit(self.loss.eps * self.t - self.loss.y * self.f)

    def complementarity(self, step: float = 0.0) -> float:
        return 0.0

    def curvature(self) -> Curvature:
        ff = self.loss.s * self.share * (1 - self.share)
        return Curvature(ff, -self.loss.eps * self.loss.y * ff, self.loss.eps**2 * ff)

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        a = self.loss.s * self.share
        return -self.loss.y * a, self.loss.eps * float(a.sum())

    def direct(self, df: Array, dt: float) -> float:
        """Without slacks the step ends where second derivatives have grown too much for a step of Newton's."""
        self.df, self.dt = df, dt
        rise, slope = self.force(0.0, False)
        curve, before = self.curvature(), self.loss.value(self.f, self.t)
        first = float(rise @ df) + slope * dt
        second = float(curve.ff @ (self.loss.y * df - self.loss.eps * dt) ** 2)
        allowed, step = 1e-13 * before, 1.02
        while step > 1e-6:
            model = before + step * first + 0.75 * step**2 * second
            if self.loss.value(self.f + step * df, self.t + step * dt) <= model + allowed:
                break
            step /= 2
        return step

    def move(self, step: float) -> None:
        self.f = self.f + step * self.df
        self.t = self.t + step * self.dt
        self.share = expit(self.loss.eps * self.t - self.loss.y * self.f)

    def multipliers(self, balanced: bool) -> Multipliers:
        a = self.loss.s * self.share
        if balanced:
            a = _balance(a, self.loss.y)
        share = a / self.loss.s
        value = float(self.loss.s @ (entr(share) + entr(1 - share)))
        return Multipliers(-self.loss.y * a, self.loss.eps * float(a.sum()), value)


@dataclass(frozen=True)
class Hinge:
    """``sum s max(0, 1 - y f + eps t)`` with ``y`` in {-1, 1}."""

    y: Array
    s: Array
    eps: float

    def value(self, f: Array, t: float) -> float:
        return float(self.s @ np.maximum(0, 1 - self.y * f + self.eps * t))

    def constant(self) -> float:
        return float(np.sign(self.s @ self.y))

    def interior(self, f: Array, t: float) -> Interior:
        zero = np.zeros_like(self.y)
        in_f, in_t, offset = np.stack((zero, self.y)), np.array([[0.0], [-self.eps]]), np.array([[0.0], [-1.0]])
        return _Pairs(self, in_f, in_t, offset, self.s, zero, 1 - np.minimum(0, self.y * f - self.eps * t - 1), f, t)

    def dual(self, z: Array, balanced: bool) -> Multipliers:
        """``s max(0, 1 - m)`` is at least ``a (1 - m)`` for every ``0 <= a <= s``."""
        a = np.minimum(z[1], self.s)
        if balanced:
            a = _balance(a, self.y)
        return Multipliers(-self.y * a, self.eps * float(a.sum()), float(a.sum()))


@dataclass(frozen=True)
class Squared:
    """``sum s (|y - f| + eps t)^2``."""

    y: Array
    s: Array
    eps: float

    def value(self, f: Array, t: float) -> float:
        return float(self.s @ (np.abs(self.y - f) + self.eps * t) ** 2)

    def constant(self) -> float:
        return float(self.s @ self.y / self.s.sum())

    def interior(self, f: Array, t: float) -> Interior:
        sides = np.array([[1.0], [-1.0]])
        error = np.abs(self.y - f)
        c = error + self.eps * t + (float(self.s @ error) or 1.0)
        return _Pairs(
            self, sides, np.full((2, 1), -self.eps), -sides * self.y, np.zeros_like(self.y), 2 * self.s, c, f, t
        )

    def dual(self, z: Array, balanced: bool) -> Multipliers:
        """``s (|r| + eps t)^2`` is at least ``u r + a eps t - a^2 / 4 s`` for every ``|u| <= a``."""
        u, a = z[0] - z[1], z.sum(0)
        if balanced:
            u = u - self.s * (u.sum() / self.s.sum())
            a = np.maximum(a, np.abs(u))
        return Multipliers(-u, self.eps * float(a.sum()), float(u @ self.y - (a * a / self.s).sum() / 4))


@dataclass
class _Pairs:
    """``min_c sum linear c + quadratic c^2 / 2`` with each ``c`` at least as large as two functions of ``f`` and ``t``.

    The slacks are ``c + in_f f + in_t t + offset``, ``(2, n)``; the private ``c`` ``(n,)`` is eliminated.
    """

    loss: Hinge | Squared
    in_f: Array
    in_t: Array
    offset: Array
    linear: Array
    quadratic: Array
    c: Array
    f: Array
    t: float
    s: Array = field(init=False)
    z: Array = field(init=False)
    ds: Array = field(init=False)
    dz: Array = field(init=False)
    degree: float = 1

    def __post_init__(self) -> None:
        self.s = self.c + self.in_f * self.f + self.in_t * self.t + self.offset
        self.z = (self.linear / self.s.sum(0) + self.quadratic / 2) * self.s[::-1]
        self.share = self.loss.s / 2

    def complementarity(self, step: float = 0.0) -> float:
        if step == 0:
            return float(np.vdot(self.s, self.z))
        return float(np.vdot(self.s + step * self.ds, self.z + step * self.dz))

    def curvature(self) -> Curvature:
        self.weight = self.z / self.s
        self.total = self.quadratic + self.weight.sum(0)
        self.wf, self.wt = (self.weight * self.in_f).sum(0), (self.weight * self.in_t).sum(0)
        ff = (self.weight * self.in_f**2).sum(0) - self.wf**2 / self.total
        ft = (self.weight * self.in_f * self.in_t).sum(0) - self.wf * self.wt / self.total
        tt = (self.weight * self.in_t**2).sum(0) - self.wt**2 / self.total
        return Curvature(ff, ft, tt)

    def force(self, target: float, corrected: bool) -> tuple[Array, float]:
        self.pull = (target * self.share - (self.ds * self.dz if corrected else 0.0)) / self.s - self.z
        after = self.z + self.pull
        self.excess = after.sum(0) - self.linear - self.quadratic * self.c
        after = after - self.weight * (self.excess / self.total)
        return -(self.in_f * after).sum(0), -float((self.in_t * after).sum())

    def direct(self, df: Array, dt: float) -> float:
        self.dc = (self.excess - self.wf * df - self.wt * dt) / self.total
        self.ds = self.dc + self.in_f * df + self.in_t * dt
        self.dz = self.pull - self.weight * self.ds
        return min(longest(self.s, self.ds), longest(self.z, self.dz))

    def move(self, step: float) -> None:
        self.c = self.c + step * self.dc
        self.s = self.s + step * self.ds
        self.z = self.z + step * self.dz

    def multipliers(self, balanced: bool) -> Multipliers:
        return self.loss.dual(self.z, balanced)


def _balance(a: Array, y: Array) -> Array:
    """Shrink the multipliers of one class so that both weigh the same, and an intercept feels no force."""
    positive, negative = float(a[y > 0].sum()), float(a[y < 0].sum())
    least = min(positive, negative)
    return np.where(y > 0, a * (least / positive), a * (least / negative))
