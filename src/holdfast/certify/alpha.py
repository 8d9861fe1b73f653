"""Bounds of hidden neurons with slopes of their own, optimised: the costly half of alpha-CROWN.

Xu et al. 2021 (arXiv 2011.13824) optimise the slopes that bound hidden neurons for the sake of the output's bound. With
a slope for each neuron bounded and each neuron on the way, nothing is gained by that: tighter hidden bounds are never
worse for anything after them, so each is optimised for itself, from the input on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from holdfast.certify.crown import Bounds, Undecided, propagate
from holdfast.certify.domains import Domains, Problem, bound_domains
from holdfast.certify.graph import Interval

if TYPE_CHECKING:
    from holdfast.certify.graph import Graph
    from holdfast.certify.region import Region

__all__ = ["tightened"]

# Rows that are optimised together.
_ROWS = 256


def tightened(graph: Graph, region: Region, bounds: Bounds, steps: int, deadline: float = torch.inf) -> Bounds:
    """Better bounds of hidden nodes, by as many steps of optimisation.

    Parameters
    ----------
    graph, region, bounds
        The network, the inputs of ``N`` examples, and what is known.
    steps : int
        Of the optimiser, for each neuron that is not decided yet.
    deadline : float
        By ``time.perf_counter``; nodes that are not reached by then stay as they are.
    """

    def refine(known: Bounds, number: int, undecided: Undecided) -> Interval:
        found = known.intervals[number]
        mask = undecided(found)
        if not bool(mask.any()):
            return found
        lower, upper = (end.clone() for end in found)
        problem = Problem(graph, region, known, number)
        for places in mask.nonzero().split(_ROWS // 2):
            if time.perf_counter() > deadline:
                break
            index = tuple(places.T)
            unit = torch.zeros(len(places), *mask.shape[1:], dtype=lower.dtype)
            unit[(torch.arange(len(places)), *index[1:])] = 1
            domains = Domains.whole(problem, index[0].repeat(2), torch.cat([unit, -unit]))
            low, high = bound_domains(problem, domains, steps).bound.chunk(2)
            lower[index] = torch.fmax(lower[index], low)
            upper[index] = torch.fmin(upper[index], -high)
        return Interval(lower, upper)

    return propagate(graph, region, refine, dict(enumerate(bounds.intervals)))
