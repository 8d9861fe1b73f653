"""``min_{w, b} loss(x w + b, ||w||_q) + ridge ||w||^2 / 2`` to a certified gap, by a primal-dual interior-point method.

The norm is inside the loss. With ``t`` for its value the loss is jointly convex in ``(x w + b, t)`` and does not fall
with ``t``, so the problem is one over the cone ``||w||_q <= t``: Mehrotra's predictor and corrector (SIAM J. Optim.
2, 1992) on the
``d + 2`` variables ``(w, t, b)``, everything that belongs to single examples or coordinates eliminated.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from holdfast.linear.cones import Cone, Free, LargestCone, LengthCone, SumCone
from holdfast.linear.design import Design, Gram
from holdfast.linear.losses import Interior, Loss, Multipliers
from holdfast.threats import Ball

__all__ = ["Problem", "Solution", "solve"]

Array = NDArray[np.float64]

_CONES: dict[str, type[SumCone] | type[LengthCone] | type[LargestCone]] = {
    "linf": SumCone,
    "l2": LengthCone,
    "l1": LargestCone,
}
_DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
# A Gram matrix is used again while its weights have changed by less than this share: without slacks, and with them.
_STALE, _SAME = 0.03, 1e-9
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
        return self.spread / (self.eps + float(self.unit.length(spread)[0]) or 1.0)

    def dual_norm(self, w: Array) -> float:
        return float(np.linalg.norm(w, _DUAL[self.unit.norm]))

    def value(self, w: Array, f: Array) -> float:
        """The objective at ``w`` and the predictions ``f = x w + b``."""
        return self.loss.value(f, self.dual_norm(w)) + self.ridge * float(w @ w) / 2

    def objective(self, w: Array, b: float) -> float:
        return self.value(w, self.design.times(w) + b)

    def bound(self, dual: Multipliers) -> "Bound":
        """A lower bound on the objective, by weak duality.

        With ``g`` the force on ``w``, ``<g, w> + slope ||w||_q + ridge ||w||^2 / 2`` is least at the distance of ``-g``
        to the ball of radius ``slope`` in the norm of the perturbations, whose support function ``slope ||w||_q`` is.
        """
        g = torch.from_numpy(self.design.gather(dual.force))[None]
        none = torch.zeros_like(g)
        if self.ridge == 0:
            return Bound(dual.value, float(self.unit.length(g)[0]) - dual.slope)
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
    """A point, its objective, and how far below that the minimum can lie at most.

    ``vanished``: the objective came down to nothing, the share ``tol`` of what it is at weights of 0.
    """

    w: Array
    b: float
    objective: float
    gap: float
    iterations: int
    vanished: bool = False


def solve(problem: Problem, tol: float, max_iter: int, near: Solution | None = None) -> Solution:
    """Minimise until the gap is ``tol`` times the objective, or for ``max_iter`` steps; ``near`` is a warm start."""
    constant = problem.loss.constant() if problem.intercept else 0.0
    zero = np.zeros(problem.design.shape[1])
    best = Solution(zero, constant, problem.objective(zero, constant), np.inf, 0)
    gram = Gram(problem.design)
    path = _Path(problem, gram, *((near.w, near.b) if near else _start(problem, gram, constant)))
    nothing, bound, anchor, opened = tol * best.objective, 0.0, Bound(-np.inf, np.inf), 0
    for iteration in range(max_iter + 1):
        value = problem.value(path.w, path.f)
        here = problem.bound(path.inner.multipliers(problem.intercept))
        anchor = min(anchor, here, key=lambda point: point.cost(value))
        bound = max(bound, here.mended(anchor))
        if value < best.objective:
            best = replace(best, w=path.w, b=path.b, objective=value)
        best = replace(best, gap=best.objective - bound, iterations=iteration)
        if best.gap <= tol * best.objective or best.objective <= nothing or iteration == max_iter:
            break
        if iteration - opened >= _PATIENCE and path.complementarity() < _LOST * best.gap:
            path, opened = _Path(problem, gram, path.w, path.b), iteration
        try:
            path.advance()
        except (linalg.LinAlgError, ZeroDivisionError):  # as near the solution as rounding allows
            break
    objective = problem.objective(best.w, best.b)  # predictions were added up, step by step
    best = replace(best, objective=objective, gap=objective - bound, vanished=objective <= nothing)
    return _sparse(problem, best, tol) if problem.unit.norm == "linf" else best


def _start(problem: Problem, gram: Gram, constant: float) -> tuple[Array, float]:
    """Weights and intercept to begin with: least squares, scaled to be best along its ray."""
    design, s, y, d = problem.design, problem.loss.s, problem.loss.y, problem.design.shape[1]
    mean = np.zeros(d)
    if problem.intercept:
        y, mean = y - s @ y, design.gather(s)
    gram.follow(2 * s, 0.0)
    h = gram.matrix / 2 - np.outer(mean, mean)
    h[range(d), range(d)] += problem.ridge / 2 + (problem.eps * problem.dual_norm(np.ones(d))) ** 2 / d
    try:
        w = linalg.cho_solve(linalg.cho_factor(h, lower=True, overwrite_a=True), design.gather(s * y))
    except linalg.LinAlgError:
        return np.zeros(d), constant
    f = design.times(w) - mean @ w
    best = min((0.0, 0.25, 0.5, 1.0, 2.0, 4.0), key=lambda share: problem.value(share * w, share * f + constant))
    return best * w, constant - best * float(mean @ w)


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

    def __init__(self, problem: Problem, gram: Gram, w: Array, b: float) -> None:
        """Begin inside the cone, close to a point."""
        self.problem, self.gram, self.w, self.b = problem, gram, w, b
        size, scale = problem.dual_norm(w), problem.scale()
        self.t = 1.3 * size + 0.01 * scale if size > 0 else scale
        self.f = problem.design.times(w) + b
        self.inner: Interior = problem.loss.interior(self.f, self.t)
        slope = self.inner.multipliers(False).slope
        self.cone: Cone = _CONES[problem.unit.norm].start(w, self.t, slope) if problem.eps > 0 else Free()
        # Where nothing but the norm penalises w, only a point strictly inside the dual constraint can be certified: the
        # constraint must come to hold faster than complementarity.
        self.least_centring = 0.0 if problem.ridge > 0 else 0.1
        # With slacks the dual point is feasible only as far as steps are exact.
        self.stale = _STALE if problem.ridge > 0 and self.inner.degree == 0 else _SAME

    def advance(self) -> None:
        """One step: where would full speed lead, then a step centred and corrected accordingly."""
        factor = linalg.cho_factor(self._hessian(), lower=True, overwrite_a=True, check_finite=False)
        degree = max(self.inner.degree + self.cone.degree, 1.0)
        gap = self.complementarity()
        reach = min(1.0, self._direct(factor, 0.0, corrected=False))
        ahead = self.complementarity(reach)
        centring = min(max((ahead / gap) ** 4, self.least_centring), 0.5) if gap > 0 else 0.0
        target = centring * gap / degree
        step = min(1.0, _STEP * self._direct(factor, target, corrected=True))
        self.w, self.t, self.b = self.w + step * self.dw, self.t + step * self.dt, self.b + step * self.db
        self.f = self.f + step * self.df
        self.inner.move(step)
        self.cone.move(step)

    def complementarity(self, step: float = 0.0) -> float:
        """The distance to the solution, as far as slacks and multipliers tell, a step along the last direction away."""
        return self.inner.complementarity(step) + self.cone.complementarity(step)

    def _hessian(self) -> Array:
        """The Hessian in ``(w, t, b)``."""
        design, d = self.problem.design, len(self.w)
        curve = self.inner.curvature()
        self.gram.follow(curve.ff, self.stale)
        ff = self.gram.weights
        # An example whose weight was left as it was is in all of the matrix with that weight, which stays convex.
        kept = np.divide(ff, curve.ff, out=np.ones_like(ff), where=curve.ff > 0)
        ft, tt = kept * curve.ft, kept * curve.tt
        by_f, by_t = design.gather(np.stack((ff, ft)))
        h = np.empty((d + 2, d + 2))
        h[:d, :d] = self.gram.matrix
        h[range(d), range(d)] += self.problem.ridge
        h[:d, d] = h[d, :d] = by_t
        h[:d, -1] = h[-1, :d] = by_f
        h[d:, d:] = (tt.sum(), ft.sum()), (ft.sum(), ff.sum())
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
        self.df = design.times(self.dw) + self.db
        return min(self.inner.direct(self.df, self.dt), self.cone.direct(self.dw, self.dt))
