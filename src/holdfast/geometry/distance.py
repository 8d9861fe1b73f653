"""How far an input is from the facets of its region, and from the decision boundary inside it.

In closed form or by a solver, computed in float64: numbers that are as near as its rounding and the solver's tolerance
let them be, and no bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from holdfast.arguments import ball_of, one_input, whole
from holdfast.errors import DataError
from holdfast.geometry.polyhedron import nearest_point, refuse_l0
from holdfast.geometry.region import region_given

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.geometry.region import LinearRegion
    from holdfast.threats import Ball

__all__ = ["Nearest", "boundary_distance", "boundary_on_facets", "class_walls", "facet_distance"]

# Of the largest number involved: how far a point may miss a plane and count as on it.
_ON = 1e-9


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest point of a set.

    Parameters
    ----------
    distance : float
        In the norm of the threat; infinite where the set is empty.
    point : Tensor or None
        ``(*shape)`` float64, the nearest point.
    facet : int or None
        The row of the region's ``normals`` that it lies on, where a facet was looked for.
    """

    distance: float
    point: Tensor | None = None
    facet: int | None = None


def facet_distance(region: LinearRegion, x: Tensor, threat: Ball) -> Nearest:
    """The nearest activation facet: within that distance the network is affine.

    In closed form: the least distance to a half-space's plane is that to a facet, since whatever lies before the
    nearest plane is in the region (Croce, Andriushchenko and Hein, "Provable robustness of ReLU networks via
    maximization of linear regions", AISTATS 2019). The box is honoured exactly.

    Parameters
    ----------
    region : LinearRegion
        Of ``x``.
    x : Tensor
        ``(*shape)``.
    threat : Ball
        The norm and the box; its budget is not used.

    Raises
    ------
    DataError
        When ``x`` does not fit the region's network.
    """
    x, threat = region_given(region).network.fits(one_input(x)), ball_of(threat)
    distances, points = _to_planes(x, -region.normals, region.slack(x[None])[0], threat)
    if not len(distances) or distances.min() == torch.inf:
        return Nearest(torch.inf)
    facet = int(distances.argmin())
    return Nearest(float(distances[facet]), points[facet], facet)


def boundary_distance(region: LinearRegion, x: Tensor, y: int, threat: Ball) -> Nearest:
    """``D_in``: the nearest point of the region, its facets included, where another class catches up with ``y``.

    The nearest point of each plane between two classes has a closed form, and is the answer if it lies in the region
    and the box; else a linear program (in L2 a least-squares problem) finds it. No point is nearer than the smaller of
    this distance and :func:`facet_distance`; where this one is the smaller, it is the exact distance to the decision
    boundary.

    Parameters
    ----------
    region : LinearRegion
        Of ``x``.
    x : Tensor
        ``(*shape)``.
    y : int
        The label; the distance is 0 where another class is ahead.
    threat : Ball
        The norm, linf, l2 or l1, and the box; its budget is not used.

    Raises
    ------
    DataError
        When ``x`` or ``y`` does not fit the region's network.
    SettingError
        When the norm is L0.
    """
    threat = ball_of(threat)
    refuse_l0(threat)
    x = region_given(region).network.fits(one_input(x))
    normals, slack = class_walls(region, x, y)
    if bool((slack >= 0).any()):
        return Nearest(0.0, x)
    inside = region.slack(x[None])[0]
    feet, points = _to_planes(x, normals, -slack, threat)
    best = Nearest(torch.inf)
    for wall in feet.argsort().tolist():
        if feet[wall] >= best.distance:
            break
        scale = inside.abs() + region.normals.abs().sum(1) * feet[wall]
        if bool((region.slack(points[wall][None])[0] >= -_ON * scale).all()):
            best = Nearest(float(feet[wall]), points[wall])
            continue
        walls = torch.cat([region.normals, normals[wall : wall + 1]])
        best = _nearer(best, x, threat, walls, torch.cat([inside, slack[wall : wall + 1]]), None)
    return best


def boundary_on_facets(region: LinearRegion, x: Tensor, y: int, threat: Ball) -> Nearest:
    """``D_facet``: the best point on a facet that is on the decision boundary of the region behind it as well.

    On a facet both regions' maps agree, so this is where the boundary between ``y`` and the class beside it leaves the
    region: never nearer than :func:`boundary_distance`, and equal to it where the nearest point has to be on a facet.
    Parameters and errors are those of :func:`boundary_distance`.
    """
    threat = ball_of(threat)
    refuse_l0(threat)
    x = region_given(region).network.fits(one_input(x))
    normals, slack = class_walls(region, x, y)
    inside = region.slack(x[None])[0]
    to_facets, _ = _to_planes(x, -region.normals, inside, threat)
    to_classes, _ = _to_planes(x, normals * -slack.sign()[:, None], slack.abs(), threat)
    least = torch.maximum(to_facets[:, None], to_classes)
    best = Nearest(torch.inf)
    for pair in least.flatten().argsort().tolist():
        facet, wall = divmod(pair, len(normals))
        if least[facet, wall] >= best.distance:
            break
        # On the facet; as far as y and no class farther than the one that catches up.
        walls = [region.normals, -region.normals[facet, None], normals[wall] - normals, -normals[wall, None]]
        room = [inside, -inside[facet, None], slack[wall] - slack, -slack[wall, None]]
        walls.append(normals[wall, None])
        room.append(slack[wall, None])
        best = _nearer(best, x, threat, torch.cat(walls), torch.cat(room), facet)
    return best


def class_walls(region: LinearRegion, x: Tensor, y: int) -> tuple[Tensor, Tensor]:
    """``(K - 1, d)`` normals and ``(K - 1,)`` leads at ``x`` of the other classes over ``y``.

    Raises
    ------
    DataError
        When there is no class ``y``, or no other.
    SettingError
        When ``y`` is no whole number of at least 0.
    """
    classes, y = len(region.bias), whole("y", y, 0)
    if y >= classes or classes < 2:
        raise DataError(f"y: class {y} is none of the {classes} of a network that has to tell at least 2 apart")
    others = torch.arange(classes) != y
    logits = region.logits(x[None])[0]
    return region.weight[others] - region.weight[y], logits[others] - logits[y]


def _to_planes(x: Tensor, grads: Tensor, gaps: Tensor, threat: Ball) -> tuple[Tensor, Tensor]:
    """``(F,)`` distances, infinite where the box keeps it from, and ``(F, *shape)`` the points that gain ``gaps``."""
    rows = x.expand(len(grads), *x.shape)
    shaped = grads.reshape(rows.shape)
    move = threat.to_plane(torch.zeros_like(rows), rows, shaped, gaps.clamp_min(0))
    gained = (shaped * move).flatten(1).sum(1)
    reached = gained >= gaps - _ON * (gaps.abs() + (shaped * move).flatten(1).abs().sum(1))
    return torch.where(reached, threat.length(rows + move - rows), torch.inf), rows + move


def _nearer(best: Nearest, x: Tensor, threat: Ball, normals: Tensor, slack: Tensor, facet: int | None) -> Nearest:
    move = nearest_point(threat, x, normals, slack)
    if move is None:
        return best
    distance = float(threat.length(move[None]))
    return Nearest(distance, x + move, facet) if distance < best.distance else best
