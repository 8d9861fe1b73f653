"""The worst margin of a classifier over a set, bounded from below.

The margins ``z_y - z_k`` are bounded as they are, not as differences of bounded logits: their coefficients go back
through the last linear layers first (Gowal et al. 2018, arXiv 1810.12715, section 3, "elision of the last layer").
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.certify.bounds.crown import MEMORY, Bounds, crown, interval_planes, least, lower_lines
from holdfast.certify.bounds.graph import Graph, Interval
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import Errors
from holdfast.certify.bounds.rows import Rows

__all__ = [
    "Margins",
    "crown_margins",
    "each_interval_margin",
    "each_margin",
    "interval_margins",
    "specification",
]


@dataclass(frozen=True, eq=False)
class Margins:
    """What is known of the worst margin of each of ``N`` examples.

    Parameters
    ----------
    lower : Tensor
        ``(N,)`` lower bounds of ``min_x z_y - max_k z_k``, whatever rounding does.
    lost : Tensor
        ``(N,)`` how much of them rounding has cost at most.
    """

    lower: Tensor
    lost: Tensor


def specification(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """``(N, K - 1, K)`` rows ``e_y - e_k`` for every other class ``k``."""
    unit = torch.eye(classes, dtype=dtype, device=y.device)
    others = torch.stack([torch.cat([unit[:k], unit[k + 1 :]]) for k in range(classes)])
    return unit[y].unsqueeze(1) - others[y]


def interval_margins(graph: Graph, region: Region, y: Tensor) -> Margins:
    """By intervals alone."""
    return _worst(*_interval_margins(graph, interval_bounds(graph, region), region, y))


def each_interval_margin(graph: Graph, intervals: list[Interval], region: Region, y: Tensor) -> Tensor:
    """``(N, K - 1)`` lower bounds of the margins against all other classes, by the intervals of all nodes."""
    return _interval_margins(graph, intervals, region, y)[0]


def crown_margins(graph: Graph, region: Region, y: Tensor, *, memory: int = MEMORY) -> Margins:
    """By backward bounds, those of the hidden neurons included, in as much memory as :func:`crown` is given.

    Where they prove nothing, planes of intervals alone now and then do, since other slopes come of them.
    """
    lower, lost = _margins(graph, crown(graph, region, memory=memory), region, y)
    if not bool((lower > 0).all()):
        other, more = _margins(graph, interval_planes(graph, region), region, y)
        better = other > lower
        lower, lost = torch.where(better, other, lower), torch.where(better, more, lost)
    return _worst(lower, lost)


def each_margin(graph: Graph, bounds: Bounds, region: Region, y: Tensor) -> Tensor:
    """``(N, K - 1)`` lower bounds of the margins against all other classes, in their order."""
    return _margins(graph, bounds, region, y)[0]


def _worst(lower: Tensor, lost: Tensor) -> Margins:
    worst = lower.amin(1)  # NaN where one of them is
    place = lower.argmin(1, keepdim=True)
    return Margins(worst, lost.gather(1, place)[:, 0])


def _margins(graph: Graph, bounds: Bounds, region: Region, y: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(graph, y, region.lower.dtype)
    lines = lower_lines(graph, graph.output, rows, bounds.planes, bounds.errors)
    return least(lines, region).view(len(y), -1), lines.lost.view(len(y), -1)


def _interval_margins(graph: Graph, intervals: list[Interval], region: Region, y: Tensor) -> tuple[Tensor, Tensor]:
    number, node = graph.output, graph.nodes[graph.output]
    while node.operation is not None and node.operation.linear and len(node.inputs) == 1:
        (number,) = node.inputs
        node = graph.nodes[number]
    # Of the last linear operations alone: the network's input is its region, any other node anywhere in its interval.
    low, high = intervals[number]
    values = Region(low, high, low, "linf", region.eps) if number else region
    errors = Errors.none()
    for later in range(number + (number > 0), graph.output + 1):
        errors.add(graph, later, intervals)
    lines = lower_lines(graph, graph.output, _rows(graph, y, low.dtype), {}, errors, until=number)
    return least(lines, values).view(len(y), -1), lines.lost.view(len(y), -1)


def _rows(graph: Graph, y: Tensor, dtype: torch.dtype) -> Rows:
    """The specifications of all examples, one group after the other."""
    (classes,) = graph.nodes[graph.output].shape
    return Rows.whole(specification(y, classes, dtype).flatten(0, 1))
