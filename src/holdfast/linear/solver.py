"""``min_{w, b} loss(x w + b, ||w||_q) + ridge ||w||^2 / 2`` to a certified gap, by a primal-dual interior-point method.

The norm is inside the loss. With ``t`` for its value the loss is jointly convex in ``(x w + b, t)`` and does not fall
with ``t``, so the problem is one over the cone ``||w||_q <= t``: Mehrotra's predictor and corrector (SIAM J. Optim.
2, 1992) on the
``d + 2`` variables ``(w, t, b)``, everything that belongs to single examples or coordinates eliminated.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from holdfast.linear.cones import Cone, Free, LargestCone, LengthCone, SumCone
from holdfast.linear.design import Design
from holdfast.linear.losses import Interior, Loss, Multipliers
from holdfast.threats import Ball

__all__ = ["Problem", "Solution", "solve"]

Array = NDArray[np.float64]

_CONES: dict[str, type[SumCone] | type[LengthCone] | type[LargestCone]] = {
    "linf": SumCone,
    "l2": LengthCone,
    "l1": LargestCone,
}
_STALE = 0.03  # a Gram matrix is used again while its weights have changed by less than this share
_STEP = 0.99  # of the longest step
# A path that has come to the edge of its cone far from the solution creeps along it: after so many steps, where so
# little of the gap is complementarity, another is begun inside.
_PATIENCE, _LOST = 15, 1e-2


@dataclass(frozen=True)
class Problem:
    """Inputs, a loss, the unit ball of the perturbations, and what else is asked of ``w`` and ``b``."""

    design: Design
    loss: Loss
    unit: Ball
    eps: float
    spread: float
    ridge: float
    intercept: bool

    def scale(self) -> float:
        """A typical dual norm of ``w``: with it predictions spread as much as they should."""
        spread = torch.from_numpy(self.design.spread(self.loss.s))[None]
        return self.spread / (self.eps + float(self.unit.distance(spread, torch.zeros_like(spread))[0]) or 1.0)

    def dual_norm(self, w: Array) -> float:
        return float(self.unit.dual_norm(torch.from_numpy(w)[None])[0])

    def objective(self, w: Array, b: float) -> float:
        return self.loss.value(self.design.times(w) + b, self.dual_norm(w)) + self.ridge * float(w @ w) / 2

    def bound(self, dual: Multipliers) -> "Bound":
        """A lower bound on the objective, by weak duality.

        With ``g`` the force on ``w``, ``<g, w> + slope ||w||_q + ridge ||w||^2 / 2`` is least at the distance of ``-g``
        to the ball of radius ``slope`` in the norm of the perturbations, whose support function ``slope ||w||_q`` is.
        """
        g = torch.from_numpy(self.design.gather(dual.force))[None]
        none = torch.zeros_like(g)
        excess = float(self.unit.distance(g, none)[0]) - dual.slope
        if self.ridge == 0 or excess <= 0:
            return Bound(dual.value, excess)
        near = self.unit.scaled(dual.slope).project(g, none)
        return Bound(dual.value - float(((g - near) ** 2).sum()) / (2 * self.ridge), 0.0)


@dataclass(frozen=True)
class Bound:
    """The value of a dual point, and by how much it breaks the constraint there is where nothing penalises ``w``."""

    value: float
    excess: float

    def mended(self, anchor: "Bound") -> float:
        """The bound where the way from here to a feasible point becomes feasible: excess is convex, value concave."""
        if self.excess <= 0:
            return self.value
        if anchor.excess >= 0:
            return -np.inf
        share = self.excess / (self.excess - anchor.excess)
        return (1 - share) * self.value + share * anchor.value

    def cost(self, objective: float) -> float:
        """What mending with this point costs for every unit of excess."""
        return (objective - self.value) / -self.excess if self.excess < 0 else np.inf


@dataclass(frozen=True)
class Solution:
    """A point, its objective, and how far below that the minimum can lie at most."""

    w: Array
    b: float
    objective: float
    gap: float
    iterations: int


def solve(problem: Problem, tol: float, max_iter: int, near: Solution | None = None) -> Solution:
    """Minimise until the gap is ``tol`` times the objective, or for ``max_iter`` steps; ``near`` is a warm start."""
    constant = problem.loss.constant() if problem.intercept else 0.0
    zero = np.zeros(problem.design.shape[1])
    best = Solution(zero, constant, problem.objective(zero, constant), np.inf, 0)
    scale = problem.scale()
    path = _Path(problem, zero, constant, scale, room=1.0) if near is None else _Path.near(problem, near.w, near.b)
    at_zero, bound, anchor, opened = best.objective, 0.0, Bound(-np.inf, np.inf), 0
    for iteration in range(max_iter + 1):
        value = problem.objective(path.w, path.b)
        here = problem.bound(path.inner.multipliers(problem.intercept))
        anchor = min(anchor, here, key=lambda point: point.cost(value))
        bound = max(bound, here.mended(anchor))
        if value < best.objective:
            best = replace(best, w=path.w, b=path.b, objective=value)
        best = replace(best, gap=best.objective - bound, iterations=iteration)
        if best.gap <= tol * best.objective or best.objective <= tol * at_zero or iteration == max_iter:
            break
        if iteration - opened >= _PATIENCE and path.complementarity() < _LOST * best.gap:
            path, opened = _Path.near(problem, path.w, path.b), iteration
        try:
            path.advance()
        except linalg.LinAlgError:  # as near the solution as rounding allows
            break
    return _sparse(problem, best, tol) if problem.unit.norm == "linf" else best


def _sparse(problem: Problem, found: Solution, tol: float) -> Solution:
    """The same with small weights set to exactly 0, as many as the gap allows: inside the cone none ever is."""
    size = np.abs(found.w)
    for share in (1e-2, 1e-3, 1e-4, 1e-6):
        w = np.where(size > share * size.max(), found.w, 0.0)
        value = problem.objective(w, found.b)
        if (gap := found.gap + value - found.objective) <= max(found.gap, tol * value):
            return replace(found, w=w, objective=value, gap=gap)
    return found


class _Path:
    """A point near the central path."""

    def __init__(self, problem: Problem, w: Array, b: float, t: float, room: float) -> None:
        self.problem, self.w, self.b, self.t = problem, w, b, t
        self.inner: Interior = problem.loss.interior(problem.design.times(w) + b, t, room)
        slope = self.inner.multipliers(False).slope
        self.cone: Cone = _CONES[problem.unit.norm].start(w, t, slope) if problem.eps > 0 else Free()
        self.weights: Array | None = None
        # Where nothing but the norm penalises w, only a point strictly inside the dual constraint can be certified: the
        # constraint must come to hold faster than complementarity.
        self.least_centring, self.stale = (0.0, _STALE) if problem.ridge > 0 else (0.1, 0.0)

    @classmethod
    def near(cls, problem: Problem, w: Array, b: float) -> Self:
        """A path that begins a little inside the cone, close to a point."""
        return cls(problem, w, b, 1.1 * problem.dual_norm(w) + 0.01 * problem.scale(), room=0.1)

    def advance(self) -> None:
        """One step: where would full speed lead, then a step centred and corrected accordingly."""
        factor = linalg.cho_factor(self._hessian(), lower=True, overwrite_a=True, check_finite=False)
        degree = max(self.inner.degree + self.cone.degree, 1.0)
        gap = self.complementarity()
        reach = min(1.0, self._direct(factor, 0.0, corrected=False))
        ahead = self.complementarity(reach)
        # Where full speed does not lead far, the second order term says little, and asking for more gap is no way out.
        centring = min(max((ahead / gap) ** 3, self.least_centring), 0.5) if gap > 0 else 0.0
        target = centring * gap / degree
        step = min(1.0, _STEP * self._direct(factor, target, corrected=reach > 0.5))
        self.w, self.t, self.b = self.w + step * self.dw, self.t + step * self.dt, self.b + step * self.db
        self.inner.move(step)
        self.cone.move(step)

    def complementarity(self, step: float = 0.0) -> float:
        """The distance to the solution, as far as slacks and multipliers tell, a step along the last direction away."""
        return self.inner.complementarity(step) + self.cone.complementarity(step)

    def _hessian(self) -> Array:
        """The Hessian in ``(w, t, b)``."""
        design, d = self.problem.design, len(self.w)
        curve = self.inner.curvature()
        if self.weights is None or np.abs(curve.ff - self.weights).sum() > self.stale * self.weights.sum():
            self.weights, self.gram = curve.ff, design.gram(curve.ff)
            self.rows = design.gather(curve.ff), design.gather(curve.ft)
            self.curve = curve
        curve = self.curve
        h = np.empty((d + 2, d + 2))
        h[:d, :d] = self.gram
        h[range(d), range(d)] += self.problem.ridge
        h[:d, d] = h[d, :d] = self.rows[1]
        h[d, d] = curve.tt
        h[:d, -1] = h[-1, :d] = self.rows[0]
        h[d, -1] = h[-1, d] = curve.ft.sum()
        h[-1, -1] = curve.ff.sum()
        self.cone.hessian(h[: d + 1, : d + 1])
        if not self.problem.intercept:
            h[-1, :-1] = h[:-1, -1] = 0
            h[-1, -1] = 1
        return h

    def _direct(self, factor: tuple[Array, bool], target: float, corrected: bool) -> float:
        """The direction towards complementarity ``target``, and the longest step along it."""
        design, d = self.problem.design, len(self.w)
        by_f, by_t = self.inner.force(target, corrected)
        cone_w, cone_t = self.cone.force(target, corrected)
        right = np.empty(d + 2)
        right[:d] = design.gather(by_f) + self.problem.ridge * self.w + cone_w
        right[d] = by_t + cone_t if self.problem.eps > 0 else 0.0
        right[-1] = by_f.sum() if self.problem.intercept else 0.0
        move = -linalg.cho_solve(factor, right, check_finite=False)
        self.dw, self.dt, self.db = move[:d], float(move[d]), float(move[-1])
        inner = self.inner.direct(design.times(self.dw) + self.db, self.dt)
        return min(inner, self.cone.direct(self.dw, self.dt))
