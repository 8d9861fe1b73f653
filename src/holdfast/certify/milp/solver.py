"""Exact minima of a network's margins by mixed-integer linear programming, and bounds of its pieces by linear ones.

The programs are those of :mod:`holdfast.certify.milp.encoding`; HiGHS solves them, through scipy. Its answers hold up
to its tolerances: a constraint may be violated by :data:`TOLERANCE`. What a *linear* program proves needs no trust in
that: its multipliers give the bound again, by weak duality, in plain arithmetic (Neumaier and Shcherbina, "Safe bounds
in linear and mixed-integer linear programming", Mathematical Programming 99, 2004). What a mixed-integer one says of
its minimum is therefore proved again by a branch and bound over its whole numbers, whose every leaf is such a bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
import torch
from numpy.typing import NDArray

from holdfast.certify.milp.encoding import Affine, Encoding, Program, constant, encode
from holdfast.certify.milp.silence import silence
from holdfast.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from holdfast.certify.bounds.graph import Graph, Interval
    from holdfast.certify.bounds.region import Region

__all__ = ["TOLERANCE", "Leaf", "Minimum", "lp_bound", "milp_margin", "program_bound", "proved", "solve"]

Array = NDArray[np.float64]

# By how much HiGHS lets a constraint of a mixed-integer program be violated.
TOLERANCE = 1e-6
_OPTIMAL, _LIMIT, _INFEASIBLE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Minimum:
    """What a solver found of a minimum.

    Parameters
    ----------
    status : str
        ``"optimal"``; ``"infeasible"``: there is no point; ``"timeout"``. Up to :data:`TOLERANCE`.
    lower : float
        No point is below; infinite where there is none.
    upper : float
        The value at ``variables``; infinite where no point was found.
    variables : ndarray or None
        The best point found.
    """

    status: Literal["optimal", "infeasible", "timeout"]
    lower: float
    upper: float
    variables: Array | None


def solve(program: Program, cost: Affine, *also: Affine, seconds: float, gap: float = TOLERANCE) -> Minimum:
    """Minimise a linear function of a program's variables.

    Parameters
    ----------
    program : Program
        The variables and constraints.
    cost : Affine
        One entry.
    also : Affine
        Further expressions that must not be negative.
    seconds : float
        After which the solver stops with what it has.
    gap : float
        The share of its value by which the point may be above the minimum; infinite where any point will do.

    Raises
    ------
    RunError
        When the solver fails for another reason than its limit.
    """
    if seconds <= 0:
        return Minimum("timeout", -np.inf, np.inf, None)
    matrix, floor = program.constraints(*also)
    with silence():
        result = scipy.optimize.milp(
            _row(cost, program.width),
            integrality=np.concatenate(program.integral).astype(int),
            bounds=scipy.optimize.Bounds(*program.bounds()),
            constraints=scipy.optimize.LinearConstraint(matrix, floor, np.inf) if len(floor) else None,
            options={"time_limit": seconds, "mip_rel_gap": gap},
        )
    shift = float(cost.constant[0])
    if result.status == _INFEASIBLE:
        return Minimum("infeasible", np.inf, np.inf, None)
    if result.status not in (_OPTIMAL, _LIMIT):
        raise RunError(f"the solver failed: {' '.join(result.message.split())}")
    best = np.inf if result.x is None else float(result.fun) + shift
    bound = getattr(result, "mip_dual_bound", None)
    if result.status == _OPTIMAL and bound is None:
        bound = result.fun
    lower = -np.inf if bound is None else float(bound) + shift
    return Minimum("optimal" if result.status == _OPTIMAL else "timeout", lower, best, result.x)


def proved(program: Program, cost: Affine, *also: Affine, goal: float, seconds: float) -> float:
    """A lower bound of a minimum that rests on no solver.

    Parameters
    ----------
    program, cost, also
        As :func:`solve` takes them.
    goal : float
        What is to be proved: parts of the program that reach it are done with.
    seconds : float
        After which the bound is what is known of the parts that are left.

    Returns
    -------
    float
        At most the goal.
    """
    until = time.perf_counter() + seconds
    whole = np.concatenate(program.integral)
    matrix, floor = program.constraints(*also)
    parts = [(-np.inf, program.bounds())]
    found = goal
    while parts:
        known, (lower, upper) = parts.pop()
        if time.perf_counter() > until:
            return min([found, known, *(bound for bound, _ in parts)])
        relaxed = _relaxed(cost, matrix, floor, lower, upper)
        if relaxed is None:
            bound, values = (goal if _empty(matrix, floor, lower, upper) else known), None
        else:
            bound, values = max(relaxed[0], known), relaxed[1]
        if bound >= goal:
            continue
        open_ = np.flatnonzero(whole & (lower < upper))
        if not len(open_):
            found = min(found, bound)
            continue
        middle = (lower + upper) / 2 if values is None else values
        place = open_[np.abs(middle[open_] - np.floor(middle[open_]) - 0.5).argmin()]
        cut = np.clip(np.floor(middle[place]), lower[place], upper[place] - 1)
        below, above = upper.copy(), lower.copy()
        below[place], above[place] = cut, cut + 1
        parts += [(bound, (lower, below)), (bound, (above, upper))]
    return found


def milp_margin(graph: Graph, region: Region, intervals: list[Interval], y: int, *, seconds: float) -> Minimum:
    """The least margin ``z_y - max_k z_k`` over one set of inputs.

    Parameters
    ----------
    graph, region, intervals
        As :func:`~holdfast.certify.milp.encoding.encode` takes them.
    y : int
        The label.
    seconds : float
        For all classes together.

    Returns
    -------
    Minimum
        Over all classes; ``variables`` begin with the input.
    """
    until = time.perf_counter() + seconds
    encoding = encode(graph, region, intervals)
    found = [
        solve(encoding.program, margin(encoding, y, k), seconds=until - time.perf_counter())
        for k in range(len(encoding.output))
        if k != y
    ]
    best = min(found, key=lambda one: one.upper)
    statuses = {one.status for one in found}
    lower = min(one.lower for one in found)
    if statuses == {"infeasible"}:
        return best
    return Minimum("timeout" if "timeout" in statuses else "optimal", lower, best.upper, best.variables)


def margin(encoding: Encoding, y: int, k: int) -> Affine:
    """``z_y - z_k``."""
    return encoding.output.take(np.array([y])) - encoding.output.take(np.array([k]))


@dataclass(frozen=True, eq=False)
class Leaf:
    """What a linear program says of a linear function of the output.

    Parameters
    ----------
    bound : float
        A lower bound that its multipliers prove; infinite where they prove that no input has these signs.
    x : Tensor or None
        ``(*shape)`` the input at which the program has its minimum, in float64.
    """

    bound: float
    x: Tensor | None


def lp_bound(
    graph: Graph,
    region: Region,
    intervals: list[Interval],
    signs: Mapping[int, Tensor],
    row: Tensor,
    offset: float = 0.0,
) -> Leaf:
    """Bound ``<row, output> + offset`` over the inputs of one example for which ReLUs have given signs.

    Exact where all signs are given or decided by the bounds; other neurons are relaxed to the triangle between the two
    pieces.

    Parameters
    ----------
    graph, region, intervals, signs
        As :func:`~holdfast.certify.milp.encoding.encode` takes them.
    row : Tensor
        ``(K,)``.
    offset : float
        Added to the value.

    Returns
    -------
    Leaf
    """
    return program_bound(encode(graph, region, intervals, signs), region, {}, row, offset)


def program_bound(
    encoding: Encoding, region: Region, signs: Mapping[int, Tensor], row: Tensor, offset: float = 0.0
) -> Leaf:
    """The same with a program that serves all signs."""
    program = encoding.restricted(signs)
    cost = encoding.output.apply(scipy.sparse.csr_matrix(row.detach().double().cpu().numpy()[None])) + constant(
        np.array([offset])
    )
    found = _relaxed(cost, *program.constraints(), *program.bounds())
    if found is not None:
        bound, variables = found
        x = torch.from_numpy(variables[: len(encoding.inputs)].copy()).reshape(region.center.shape[1:])
        return Leaf(bound, x.clamp(region.lower[0].double(), region.upper[0].double()))
    empty = _empty(*program.constraints(), *program.bounds())
    return Leaf(np.inf if empty else -np.inf, None)


def _empty(matrix: Any, floor: Array, lower: Array, upper: Array) -> bool:
    """Whether a program that a solver calls infeasible is so.

    The least violation of its constraints proves it, if the multipliers of that program make it positive.
    """
    elastic, violation = _elastic(matrix, floor, lower, upper)
    least = _relaxed(violation, *elastic.constraints(), *elastic.bounds())
    return least is not None and least[0] > 0


def _relaxed(cost: Affine, matrix: Any, floor: Array, lower: Array, upper: Array) -> tuple[float, Array] | None:
    """A proved lower bound of the linear program, and its minimiser; None where it is infeasible."""
    price = _row(cost, len(lower))
    result = scipy.optimize.linprog(
        price,
        A_ub=-matrix if len(floor) else None,
        b_ub=-floor if len(floor) else None,
        bounds=np.stack([lower, upper], 1),
        method="highs",
    )
    if result.status == _INFEASIBLE:
        return None
    if result.status != _OPTIMAL:
        raise RunError(f"the solver failed: {' '.join(result.message.split())}")
    multipliers = np.maximum(-result.ineqlin.marginals, 0) if len(floor) else np.zeros(0)
    return safe_bound(price, matrix, floor, lower, upper, multipliers) + float(cost.constant[0]), result.x


def safe_bound(price: Array, matrix: Any, floor: Array, lower: Array, upper: Array, multipliers: Array) -> float:
    """``min <price, v>`` subject to ``matrix v >= floor`` and bounds, from below, by any multipliers of at least 0.

    Rounding is allowed for: a sum of ``n`` products is off by at most ``n`` units in the last place of what their sizes
    add up to.
    """
    reduced = price - matrix.T @ multipliers
    terms = np.minimum(reduced * lower, reduced * upper)
    gained = multipliers * floor
    unit = (len(price) + len(floor) + 4) * np.finfo(float).eps
    reach = np.maximum(np.abs(lower), np.abs(upper))
    error = unit * (
        np.abs(terms).sum() + np.abs(gained).sum() + (np.abs(price) + abs(matrix).T @ np.abs(multipliers)) @ reach
    )
    return float(terms.sum() + gained.sum() - error)


def _elastic(matrix: Any, floor: Array, lower: Array, upper: Array) -> tuple[Program, Affine]:
    """The program with every constraint allowed to fail by the same amount, and that amount."""
    least = matrix.maximum(0) @ lower + matrix.minimum(0) @ upper
    worst = np.maximum(floor - least, 0)
    relaxed = Program()
    variables = relaxed.variables(lower, upper)
    amount = relaxed.variables(np.zeros(1), np.array([worst.max(initial=0.0)]))
    spread = amount.apply(scipy.sparse.csr_matrix(np.ones((len(floor), 1))))
    relaxed.at_least_zero(variables.apply(matrix) + spread - constant(floor))
    return relaxed, amount


def _row(cost: Affine, width: int) -> Array:
    dense: Array = np.zeros(width)
    dense[: cost.matrix.shape[1]] = cost.matrix.toarray()[0]
    return dense
