"""A part of a line or a plane, cut into the linear regions of a network that it passes through.

Sotoudeh and Thakur, "Computing linear restrictions of neural networks", NeurIPS 2019: a convex cell on which the
network is affine so far is known by the values at its corners; units of the next stage that change their choice on it
cut it along straight lines. Nothing is sampled, so no region is missed for being small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from holdfast.geometry.network import take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from holdfast.geometry.network import Network

__all__ = ["Cell", "cut_by_class", "subdivide"]

# Of the largest value on a cell: how much smaller than the largest candidate one may be and count as level with it.
_LEVEL = 1e-11


@dataclass(frozen=True, eq=False)
class Cell:
    """A convex piece of a line or a plane inside one linear region.

    Parameters
    ----------
    corners : Tensor
        ``(V, D)`` float64 coordinates along the ``D`` directions; of a polygon in order around it.
    logits : Tensor
        ``(V, K)`` the network's output at the corners; between them it is affine.
    pattern : Tensor
        ``(U,)`` the activation pattern.
    """

    corners: Tensor
    logits: Tensor
    pattern: Tensor


def subdivide(network: Network, origin: Tensor, directions: Tensor, corners: Tensor) -> list[Cell]:
    """Cut a convex piece of ``origin + corners @ directions``.

    Parameters
    ----------
    network : Network
    origin, directions : Tensor
        ``(*shape)`` and ``(D, *shape)``, float64, with ``D`` 1 or 2.
    corners : Tensor
        ``(V, D)`` the ends of an interval, or the corners of a convex polygon in order around it.
    """
    values = origin + torch.tensordot(corners, directions, 1)
    cells = [Cell(corners, values.flatten(1), torch.zeros(0, dtype=torch.int64))]
    shape = network.shape
    for stage in network.stages:
        entered = _behind(stage.affine, cells, shape)
        shape = stage.units.shape
        cells = [
            Cell(corners, take(candidates, choice), torch.cat([cell.pattern, choice]))
            for cell, values in zip(cells, entered, strict=True)
            for corners, candidates, choice in _decided(cell.corners, stage.units.candidates(values))
        ]
    outputs = _behind(network.tail, cells, shape)
    return [Cell(cell.corners, out.flatten(1), cell.pattern) for cell, out in zip(cells, outputs, strict=True)]


def cut_by_class(cell: Cell) -> list[tuple[int, Cell]]:
    """The parts of a cell on which each class is the likeliest, with that class."""
    return [
        (int(choice[0]), Cell(corners, logits[:, 0], cell.pattern))
        for corners, logits, choice in _decided(cell.corners, cell.logits.unsqueeze(1))
    ]


def _behind(affine: nn.Module, cells: list[Cell], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What an affine map makes of the values at each cell's corners."""
    values: Tensor = affine(torch.cat([cell.logits for cell in cells]).reshape(-1, *shape))
    return tuple(torch.split(values, [len(cell.corners) for cell in cells]))


def _decided(corners: Tensor, candidates: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parts on which no unit changes its choice: corners, candidates ``(V, U, k)`` there, and choices ``(U,)``."""
    level = _LEVEL * candidates.abs().max() if candidates.numel() else 0.0
    waiting = [(corners, candidates)]
    while waiting:
        corners, candidates = waiting.pop()
        largest = candidates >= candidates.amax(2, keepdim=True) - level
        split = (~largest.all(0).any(1)).nonzero()
        if not len(split):
            yield corners, candidates, candidates.mean(0).argmax(1)
            continue
        unit = int(split[0])
        # A candidate may be ahead in the middle of a cell and at none of its corners.
        for choice in range(candidates.shape[2]):
            before = candidates[:, unit, :choice] - candidates[:, unit, choice, None]
            if bool((before.abs() <= level).all(0).any()):
                continue  # the same function under another number, as at the border of a padded pool
            part = _part(corners, candidates, unit, choice, float(level))
            if part is not None:
                waiting.append(part)


def _part(corners: Tensor, candidates: Tensor, unit: int, choice: int, level: float) -> tuple[Tensor, Tensor] | None:
    """Where a unit takes one of its candidates; None where that is no more than an edge."""
    for rival in range(candidates.shape[2]):
        ahead = candidates[:, unit, choice] - candidates[:, unit, rival]
        if rival == choice or bool((ahead >= -level).all()):
            continue
        if not bool((ahead > level).any()):
            return None
        corners, candidates = _clip(corners, candidates, torch.where(ahead.abs() <= level, 0.0, ahead))
    return corners, candidates


def _clip(corners: Tensor, candidates: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
    """The side of a cell where an affine function is not negative (Sutherland and Hodgman, CACM 17, 1974)."""
    count = len(corners)
    points, weights = [], []
    for here in range(count):
        after = (here + 1) % count
        if ahead[here] >= 0:
            points.append((here, here))
            weights.append(0.0)
        # The two ends of an interval are joined by one edge, the corners of a polygon by as many as there are.
        if float(ahead[here] * ahead[after]) < 0 and (count > 2 or here == 0):
            points.append((here, after))
            weights.append(float(ahead[here] / (ahead[here] - ahead[after])))
    start, end = torch.tensor(points).unbind(1)
    share = torch.tensor(weights, dtype=torch.float64)
    corners = torch.lerp(corners[start], corners[end], share[:, None])
    return corners, torch.lerp(candidates[start], candidates[end], share[:, None, None])
