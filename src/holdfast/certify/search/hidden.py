"""Better bounds of hidden neurons than those that one backward pass gives: all that lies behind them profits.

Each neuron is bounded for itself, from the input on, so that the later ones are bounded with the better planes of the
earlier ones: by optimised slopes (alpha-CROWN for every neuron), or by a small branch and bound of its own. What one
pass loses in hidden planes no slope wins back: the tightest convex relaxation of single neurons given their bounds has
a gap of its own (Salman et al. 2019, "A convex relaxation barrier to tight robustness verification of neural networks",
arXiv 1902.08722), and only bounds from beyond it narrow that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.certify.bounds.crown import Undecided, propagate, tiles
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.search.domains import Domains, Problem, bound_domains, improved_bounds

if TYPE_CHECKING:
    from holdfast.certify.bounds.crown import Bounds
    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.region import Region

__all__ = ["searched", "tightened"]

# Rows that are bounded together, or split together.
_ROWS = 128
# Steps of the slopes before a neuron's first split and after each: on two trained networks more of the second kind were
# worth less than the splits that could be made instead.
_ROOT_STEPS, _STEPS = 5, 1
# Bytes that the parts of the neurons that are searched together may take.
_HELD = 1 << 27

# Given a problem, functions of its node and the time by which they should be done: their lower bounds.
Bounding = Callable[[Problem, Domains, float], Tensor]


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
    return _rebounded(
        graph, region, bounds, lambda problem, functions, until: improved_bounds(problem, functions, steps), deadline
    )


def searched(graph: Graph, region: Region, bounds: Bounds, deadline: float) -> Bounds:
    """Better bounds of hidden nodes, by branch and bound for each neuron.

    Each node has an equal part of the time that is left. Where a neuron's search ends early, since its sign is known,
    nothing is left to split, or it has become too large, the others have more.

    Parameters
    ----------
    graph, region, bounds
        The network, the inputs of ``N`` examples, and what is known.
    deadline : float
        By ``time.perf_counter``.
    """
    return _rebounded(graph, region, bounds, _searched, deadline)


def _rebounded(graph: Graph, region: Region, bounds: Bounds, bound: Bounding, deadline: float) -> Bounds:
    """The undecided entries of all hidden nodes bounded anew, in turn."""
    asked = {i for node in graph.nodes if node.operation is not None and not node.operation.linear for i in node.inputs}

    def refine(known: Bounds, number: int, undecided: Undecided) -> Interval:
        found = known.intervals[number]
        mask = undecided(found)
        if not bool(mask.any()):
            return found
        began, done = time.perf_counter(), 0
        each = (deadline - began) / sum(i >= number for i in asked) / int(mask.sum())
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
                done += len(places)
                low, high = bound(problem, domains, began + each * done).chunk(2)
                index = (example, inside[within])
                lower[index] = torch.fmax(lower[index], low)
                upper[index] = torch.fmin(upper[index], -high)
        return Interval(lower.view_as(found.lower), upper.view_as(found.upper))

    return propagate(graph, region, refine, dict(enumerate(bounds.intervals)))


def _searched(problem: Problem, functions: Domains, until: float) -> Tensor:
    """``(M,)`` lower bounds of as many functions: of each the part with the least bound is split, again and again."""
    found = bound_domains(problem, functions, _ROOT_STEPS)
    none, parts, bound = len(problem.unstable), found.domains, found.bound
    owner = torch.arange(len(functions), device=bound.device)
    neuron, unit = (column[:, 0] for column in found.costliest(1))
    most = _HELD // sum(part[0].nbytes for part in vars(functions).values())
    while len(bound) < most and time.perf_counter() < until:
        worst = _worst(bound, owner, len(functions))
        # A function that is positive decides a sign, and is not worth more.
        some = worst[(bound[worst] < 0) & (neuron[worst] < none)]
        if not len(some):
            break
        halves = parts.take(some).halved(neuron[some], unit[some])
        found = bound_domains(problem, halves, _STEPS, enough=0.0)
        first, second = torch.arange(len(halves), device=bound.device).chunk(2)
        parts = parts.deeper(1).put(some, found.domains.take(first)).joined(found.domains.take(second))
        better = torch.fmax(found.bound, bound[some].repeat(2))
        columns = (better, owner[some].repeat(2), *(column[:, 0] for column in found.costliest(1)))
        bound, owner, neuron, unit = (
            torch.cat([old.index_copy(0, some, new[first]), new[second]])
            for old, new in zip((bound, owner, neuron, unit), columns, strict=True)
        )
    return bound[_worst(bound, owner, len(functions))]


def _worst(bound: Tensor, owner: Tensor, count: int) -> Tensor:
    """``(count,)`` for each owner the first of its parts with the least bound."""
    least = bound.new_full((count,), torch.inf).scatter_reduce(0, owner, bound, "amin")
    here = (bound == least[owner]).nonzero()[:, 0]
    return here.new_full((count,), len(bound)).scatter_reduce(0, owner[here], here, "amin")
