"""The linear regions that a straight line passes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from holdfast.arguments import one_input
from holdfast.geometry.cells import subdivide
from holdfast.geometry.network import Network

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Segment", "regions_on_segment"]


@dataclass(frozen=True, eq=False)
class Segment:
    """What a network does from ``start``, at 0, to ``end``, at 1: between breakpoints it is affine.

    Parameters
    ----------
    breakpoints : Tensor
        ``(R + 1,)`` float64, rising from 0 to 1.
    logits : Tensor
        ``(R + 1, K)`` the output at each.
    patterns : Tensor
        ``(R, U)`` the activation patterns between them.
    """

    breakpoints: Tensor
    logits: Tensor
    patterns: Tensor


def regions_on_segment(model: nn.Module, start: Tensor, end: Tensor) -> Segment:
    """All linear regions between two inputs, in order, by exact arithmetic of straight lines and not by sampling.

    Parameters
    ----------
    model : nn.Module
        A sequence of layers that :class:`~holdfast.geometry.Network` knows. What is computed is in float64.
    start, end : Tensor
        ``(*shape)``, without a batch dimension.

    Returns
    -------
    Segment

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When an input does not fit the model or is not finite.
    """
    start, end = one_input(start, "start"), one_input(end, "end")
    network = Network.of(model, tuple(start.shape))
    start, end = network.fits(start), network.fits(end)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    cells = sorted(subdivide(network, start, (end - start)[None], ends), key=lambda cell: float(cell.corners.min()))
    # Corners come in the order of the cut, and a cell may be turned round.
    first = [int(cell.corners.argmin()) for cell in cells]
    last = int(cells[-1].corners.argmax())
    return Segment(
        torch.stack([*(c.corners[i, 0] for c, i in zip(cells, first, strict=True)), cells[-1].corners[last, 0]]),
        torch.stack([*(c.logits[i] for c, i in zip(cells, first, strict=True)), cells[-1].logits[last]]),
        torch.stack([cell.pattern for cell in cells]),
    )
