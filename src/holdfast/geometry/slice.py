"""The linear regions in a plane through the inputs, and their picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from holdfast.arguments import as_list, number, one_input, shown
from holdfast.errors import SettingError
from holdfast.geometry.cells import Cell, cut_by_class, subdivide
from holdfast.geometry.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = ["Slice", "draw_slice", "regions_in_slice"]

Extent = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Slice:
    """A rectangle of the plane ``origin + a * across + b * up``.

    Parameters
    ----------
    extent : tuple of float
        The least and the largest ``a``, and the least and the largest ``b``.
    cells : tuple of Cell
        A polygon for each linear region that the rectangle meets; corners are pairs ``(a, b)``.
    decisions : tuple of (int, Cell)
        The same, cut where the prediction changes, with the class predicted.
    """

    extent: Extent
    cells: tuple[Cell, ...]
    decisions: tuple[tuple[int, Cell], ...]


def regions_in_slice(
    model: nn.Module, origin: Tensor, across: Tensor, up: Tensor, *, extent: Extent = (-1.0, 1.0, -1.0, 1.0)
) -> Slice:
    """All linear regions in a part of a plane, by cutting polygons and not by sampling.

    Parameters
    ----------
    model : nn.Module
        A sequence of layers that :class:`~holdfast.geometry.Network` knows. What is computed is in float64.
    origin, across, up : Tensor
        ``(*shape)`` an input and two directions, without a batch dimension.
    extent : tuple of float
        Of the rectangle: the least and the largest multiple of ``across``, then of ``up``.

    Returns
    -------
    Slice

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When an input does not fit the model or is not finite.
    SettingError
        When the rectangle is empty, or the directions span no plane.
    """
    sides = as_list(extent)
    if sides is None or len(sides) != 4:
        raise SettingError(f"extent: four numbers are needed, such as (-1, 1, -1, 1), not {shown(extent)}")
    left, right, bottom, top = (number("extent", side) for side in sides)
    extent = (left, right, bottom, top)
    if not (left < right and bottom < top):
        raise SettingError(f"extent: give the least, then the largest multiple of each direction; got {extent}")
    origin, across, up = (one_input(x, name) for x, name in ((origin, "origin"), (across, "across"), (up, "up")))
    network = Network.of(model, tuple(origin.shape))
    origin, across, up = (network.fits(part) for part in (origin, across, up))
    directions = torch.stack([across, up])
    if torch.linalg.matrix_rank(directions.flatten(1)) < 2:
        raise SettingError("across and up span no plane: one is a multiple of the other, or 0")
    corners = torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]], dtype=torch.float64)
    cells = subdivide(network, origin, directions, corners)
    return Slice(extent, tuple(cells), tuple(part for cell in cells for part in cut_by_class(cell)))


def draw_slice(found: Slice) -> Figure:
    """A picture: a colour for each class, shades and thin lines for regions, a thick line for the decision boundary.

    Parameters
    ----------
    found : Slice

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``savefig``, or add to its one pair of axes.

    Raises
    ------
    SettingError
        When matplotlib is missing.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.collections import LineCollection, PolyCollection
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingError("pictures need matplotlib: pip install 'holdfast[figures]'") from error
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    shades = {tuple(cell.pattern.tolist()): 0.25 + 0.35 * (i * 0.618 % 1) for i, cell in enumerate(found.cells)}
    axes.add_collection(
        PolyCollection(
            [cell.corners.numpy() for _, cell in found.decisions],
            facecolors=[
                (*colormaps["tab10"](label % 10)[:3], shades[tuple(cell.pattern.tolist())])
                for label, cell in found.decisions
            ],
        )
    )
    outlines = [cell.corners.numpy() for cell in found.cells]
    axes.add_collection(PolyCollection(outlines, facecolors="none", edgecolors="white", linewidths=0.6))
    axes.add_collection(LineCollection(_boundary(found), colors="black", linewidths=1.8))
    axes.set(xlim=found.extent[:2], ylim=found.extent[2:], xlabel="across", ylabel="up")
    return figure


def _boundary(found: Slice) -> list[list[tuple[float, float]]]:
    """The edges along which two classes are level and ahead of all others."""
    edges = []
    for label, cell in found.decisions:
        rivals = cell.logits.clone()
        rivals[:, label] = -torch.inf
        size = float(cell.logits.abs().max())
        level = rivals >= cell.logits[:, label, None] - 1e-9 * size
        for here in range(len(level)):
            after = (here + 1) % len(level)
            if bool((level[here] & level[after]).any()):
                edges.append([tuple(cell.corners[i].tolist()) for i in (here, after)])
    return edges
