"""The worst margin of a classifier over a set, bounded from below.

The margins ``z_y - z_k`` are bounded as they are, not as differences of bounded logits: their coefficients go back
through the last linear layers first (Gowal et al. 2018, arXiv 1810.12715, section 3, "elision of the last layer").
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.certify.crown import MEMORY, Bounds, crown, lower_bounds
from holdfast.certify.graph import Graph, Interval
from holdfast.certify.interval import interval_bounds
from holdfast.certify.region import Region
from holdfast.certify.rows import Rows

__all__ = [
    "Margins",
    "crown_margins",
    "each_interval_margin",
    "each_margin",
    "interval_margins",
    "scale",
    "specification",
]


@dataclass(frozen=True, eq=False)
class Margins:
    """What is known of the worst margin of each of ``N`` examples.

    Parameters
    ----------
    lower : Tensor
        ``(N,)`` lower bounds of ``min_x z_y - max_k z_k``.
    scale : Tensor
        ``(N,)`` see :func:`scale`.
    """

    lower: Tensor
    scale: Tensor


def specification(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """``(N, K - 1, K)`` rows ``e_y - e_k`` for every other class ``k``."""
    unit = torch.eye(classes, dtype=dtype, device=y.device)
    others = torch.stack([torch.cat([unit[:k], unit[k + 1 :]]) for k in range(classes)])
    return unit[y].unsqueeze(1) - others[y]


def interval_margins(graph: Graph, region: Region, y: Tensor) -> Margins:
    """By intervals alone."""
    intervals = interval_bounds(graph, region)
    return Margins(each_interval_margin(graph, intervals, region, y).amin(1), scale(intervals))


def each_interval_margin(graph: Graph, intervals: list[Interval], region: Region, y: Tensor) -> Tensor:
    """``(N, K - 1)`` lower bounds of the margins against all other classes, by the intervals of all nodes."""
    rows = _rows(graph, y, region.lower.dtype)
    number, total = graph.output, rows.values.new_zeros(())
    node = graph.nodes[number]
    while node.operation is not None and node.operation.linear and len(node.inputs) == 1:
        (rows,), constant = node.operation.backward(rows, None, graph.inputs_of(node))
        total = total if constant is None else total + constant
        (number,) = node.inputs
        node = graph.nodes[number]
    # The network's input is its region; any other node may be anywhere in its interval.
    low, high = intervals[number]
    values = Region(low, high, low, "linf", region.eps) if number else region
    lower: Tensor = total + values.crop(rows.index()).minimum(rows.values)
    return lower.view(len(y), -1)


def crown_margins(graph: Graph, region: Region, y: Tensor, *, memory: int = MEMORY) -> Margins:
    """By backward bounds, those of the hidden neurons included, in as much memory as :func:`crown` is given."""
    bounds = crown(graph, region, memory=memory)
    return Margins(each_margin(graph, bounds, region, y).amin(1), scale(bounds.intervals))


def each_margin(graph: Graph, bounds: Bounds, region: Region, y: Tensor) -> Tensor:
    """``(N, K - 1)`` lower bounds of the margins against all other classes, in their order."""
    rows = _rows(graph, y, region.lower.dtype)
    return lower_bounds(graph, graph.output, rows, bounds.planes, region).view(len(y), -1)


def _rows(graph: Graph, y: Tensor, dtype: torch.dtype) -> Rows:
    """The specifications of all examples, one group after the other."""
    (classes,) = graph.nodes[graph.output].shape
    return Rows.whole(specification(y, classes, dtype).flatten(0, 1))


def scale(intervals: list[Interval]) -> Tensor:
    """``(N,)`` the largest number that any node can hold: what rounding is in proportion to."""
    ends = [end.abs().flatten(1).amax(1) for interval in intervals for end in interval if end.numel()]
    return torch.stack(ends).amax(0)
