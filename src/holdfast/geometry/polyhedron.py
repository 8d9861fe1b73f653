"""The point of a polyhedron that is nearest to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
import torch
from numpy.typing import NDArray

from holdfast.errors import RunError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.threats import Ball

__all__ = ["nearest_point", "refuse_l0"]

Array = NDArray[np.float64]

# By how much HiGHS may miss a constraint, and how small a residual of least squares means that there is no point.
_TOLERANCE, _VANISHED = 1e-10, 1e-12
_OPTIMAL, _INFEASIBLE = 0, 2


def nearest_point(threat: Ball, x: Tensor, normals: Tensor, slack: Tensor) -> Tensor | None:
    """The shortest change of ``x`` that leads into a polyhedron and stays in the box.

    A linear program in L-infinity and L1. In L2 the dual is a least-squares problem with non-negative unknowns: Lawson
    and Hanson, "Solving least squares problems", Prentice-Hall 1974, chapter 23, problem LDP.

    Parameters
    ----------
    threat : Ball
        The norm, none that :func:`refuse_l0` refuses, and the box; its budget is not used.
    x : Tensor
        ``(*shape)`` float64.
    normals, slack : Tensor
        ``(F, d)`` and ``(F,)``: a change ``d`` leads there where ``normals @ d + slack >= 0``.

    Returns
    -------
    Tensor or None
        ``(*shape)`` the change; None where the polyhedron and the box have no point together.

    Raises
    ------
    RunError
        When the solver fails.
    """
    lower, upper = (end[0].flatten().numpy() for end in threat.box.around(x[None]))
    solve = {"linf": _largest_change, "l1": _sum_of_changes, "l2": _length}[threat.norm]
    # Rows of very different lengths would share one tolerance; those of none hold everywhere or nowhere.
    length = normals.norm(dim=1)
    if bool((slack[length == 0] < 0).any()):
        return None
    normals, slack, length = normals[length > 0], slack[length > 0], length[length > 0]
    found = solve((normals / length[:, None]).numpy(), (slack / length).numpy(), lower, upper)
    return None if found is None else torch.from_numpy(np.clip(found, lower, upper)).reshape(x.shape)


def refuse_l0(threat: Ball) -> None:
    """Refuse the one norm whose balls are not convex.

    Raises
    ------
    SettingError
        When the norm is L0.
    """
    if threat.norm == "l0":
        raise SettingError("geometry measures in linf, l2 and l1; for l0 use holdfast.certify.exact_distance")


def _largest_change(normals: Array, slack: Array, lower: Array, upper: Array) -> Array | None:
    """Variables are the change and its size ``t``; sides that the box alone closes need no row."""
    d, eye = len(lower), scipy.sparse.identity(len(lower), format="csr")
    up, down = upper > 0, lower < 0
    rows = [
        scipy.sparse.csr_matrix(np.pad(-normals, ((0, 0), (0, 1)))),
        scipy.sparse.hstack([eye[up], -np.ones((int(up.sum()), 1))]),
        scipy.sparse.hstack([-eye[down], -np.ones((int(down.sum()), 1))]),
    ]
    limits = np.concatenate([slack, np.zeros(int(up.sum() + down.sum()))])
    cost = np.append(np.zeros(d), 1.0)
    return _program(cost, rows, limits, np.append(lower, 0.0), np.append(upper, np.inf), d)


def _sum_of_changes(normals: Array, slack: Array, lower: Array, upper: Array) -> Array | None:
    """Variables are what each coordinate gains and what it loses."""
    d = len(lower)
    found = _program(
        np.ones(2 * d),
        [scipy.sparse.csr_matrix(np.hstack([-normals, normals]))],
        slack,
        np.zeros(2 * d),
        np.append(upper, -lower),
        2 * d,
    )
    return None if found is None else found[:d] - found[d:]


def _program(cost: Array, rows: list[Array], limits: Array, lower: Array, upper: Array, count: int) -> Array | None:
    result = scipy.optimize.linprog(
        cost,
        A_ub=scipy.sparse.vstack(rows, format="csr"),
        b_ub=limits,
        bounds=np.stack([lower, upper], 1),
        method="highs",
        options={"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE},
    )
    if result.status == _INFEASIBLE:
        return None
    if result.status != _OPTIMAL:
        raise RunError(f"the solver failed: {' '.join(result.message.split())}")
    found: Array = result.x[:count]
    return found


def _length(normals: Array, slack: Array, lower: Array, upper: Array) -> Array | None:
    """``min |d|`` subject to ``G d >= h``, by non-negative least squares on ``[G h]^T u = (0, ..., 0, 1)``."""
    eye = np.eye(len(lower))
    low, high = np.isfinite(lower), np.isfinite(upper)
    rows = np.concatenate([normals, eye[low], -eye[high]])
    floor = np.concatenate([-slack, lower[low], -upper[high]])
    goal = np.append(np.zeros(len(lower)), 1.0)
    matrix = np.concatenate([rows, floor[:, None]], 1).T
    weights, _ = scipy.optimize.nnls(matrix, goal, maxiter=30 * len(rows))
    residual = matrix @ weights - goal
    if residual @ residual < _VANISHED:
        return None
    change: Array = -residual[:-1] / residual[-1]
    return change
