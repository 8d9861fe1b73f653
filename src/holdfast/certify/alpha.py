"""Bounds of hidden neurons with slopes of their own, optimised: the costly half of alpha-CROWN.

Xu et al. 2021 (arXiv 2011.13824) optimise the slopes that bound hidden neurons for the sake of the output's bound. With
a slope for each neuron bounded and each neuron on the way, nothing is gained by that: tighter hidden bounds are never
worse for anything after them, so each is optimised for itself, from the input on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from holdfast.certify.crown import Bounds, Undecided, propagate, tiles
from holdfast.certify.domains import Domains, Problem, improved_bounds
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
        lower, upper = (end.flatten(1).clone() for end in found)
        for part, inside, window in tiles(mask):
            problem = Problem(graph, region, known, number, window)
            for places in part.nonzero().split(_ROWS // 2):
                if time.perf_counter() > deadline or not len(places):
                    break
                example, within = places[:, 0], tuple(places[:, 1:].T)
                unit = torch.zeros(len(places), *part.shape[1:], dtype=lower.dtype, device=lower.device)
                unit[(torch.arange(len(places)), *within)] = 1
                domains = Domains.whole(problem, example.repeat(2), torch.cat([unit, -unit]))
                low, high = improved_bounds(problem, domains, steps).chunk(2)
                index = (example, inside[within])
                lower[index] = torch.fmax(lower[index], low)
                upper[index] = torch.fmin(upper[index], -high)
        return Interval(lower.view_as(found.lower), upper.view_as(found.upper))

    return propagate(graph, region, refine, dict(enumerate(bounds.intervals)))
