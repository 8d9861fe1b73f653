"""Interval bound propagation.

Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models", arXiv
1810.12715.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Errors, gamma, unit

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.region import Region

__all__ = ["interval_bounds", "least_of", "meet", "settled"]


def interval_bounds(graph: Graph, region: Region, known: dict[int, Interval] | None = None) -> list[Interval]:
    """Intervals of all nodes.

    Parameters
    ----------
    graph : Graph
        The network.
    region : Region
        Its inputs, a set for each of ``N`` examples; of a ball, the box around it.
    known : dict, optional
        Intervals known otherwise, by node: they are met with those found here.

    Returns
    -------
    list of Interval
        ``(N, *shape)`` each.
    """
    found: list[Interval] = []
    errors = Errors.none()
    for number, node in enumerate(graph.nodes):
        if node.operation is None:
            interval = Interval(region.lower, region.upper)
        else:
            interval = node.operation.interval(*(found[i] for i in node.inputs))
            interval = settled(interval, errors.add(graph, number, found))
        if known is not None and number in known:
            interval = meet(interval, known[number])
        found.append(interval)
    return found


def settled(interval: Interval, radius: Tensor | None) -> Interval:
    """An interval with room for rounding on both sides; an end that an overflow has left no number is infinite."""
    lower, upper = interval
    if radius is not None:
        lower, upper = lower - radius, upper + radius
    return Interval(lower.masked_fill(lower.isnan(), -torch.inf), upper.masked_fill(upper.isnan(), torch.inf))


def meet(a: Interval, b: Interval) -> Interval:
    """What lies in both; NaN, which an overflow may leave in one of them, says nothing."""
    return Interval(torch.fmax(a.lower, b.lower), torch.fmin(a.upper, b.upper))


def least_of(rows: Tensor, x: Interval) -> Tensor:
    """``(N, S)`` float64, at most what linear functions ``(N, S, K)`` are in an interval ``(N, K)``.

    A coefficient of 0 makes 0 of an infinite end, too.
    """
    rows = rows.double()
    ends = torch.where(rows > 0, x.lower.double().unsqueeze(1), x.upper.double().unsqueeze(1))
    terms = torch.where(rows == 0, 0, rows * ends)
    total = terms.sum(2)
    room = gamma(terms.shape[2] + 2, unit(total.dtype)) * terms.abs().sum(2) + torch.finfo(total.dtype).tiny
    return torch.where(total.isfinite(), total - room, -torch.inf)
