"""Tighter bounds of hidden neurons where a function of the output can be negative at all.

Bounding a domain leaves a linear function of the input below the one that is bounded. A counterexample in the domain
lies where that linear function is not positive: once the bound is near 0, in a thin slice of the inputs, over which
hidden neurons vary less than over all of them. The least value of a neuron's own linear bound ``<g, x> + h`` there is
found through its dual (Zhou et al. 2025, "Clip-and-Verify: linear constraint-driven domain clipping", arXiv 2512.11087;
Kotha et al. 2023, "Provably bounding neural network preimages", arXiv 2302.01404),

    h + multiplier * c + min over all inputs of <g + multiplier * a, x>,

which is a bound for any multiplier of at least 0. A bound of the output that comes of them says nothing of inputs
outside the slice: what is proved is that the function is at least that bound, or above the ceiling of the slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.certify.bounds.rounding import down, gamma, unit
from holdfast.certify.search.domains import Domains, bound_domains

if TYPE_CHECKING:
    from holdfast.certify.bounds.region import Region
    from holdfast.certify.search.domains import Found, Problem

__all__ = ["Lines", "clipped", "lines_of"]

# How many bounds of neurons are tightened in a domain.
_CLIPPED = 96
# The multiplier, in widths of the neuron's bound by the excess: on two trained networks the best ones lay around it,
# and one try at it won 84 to 95 % of what they did in the last two hidden layers.
_MULTIPLIER = 0.12
# Neurons whose linear bounds are made together, and bytes that an example's may take.
_TOGETHER, _HELD = 128, 1 << 26


@dataclass(frozen=True, eq=False)
class Lines:
    """Linear lower bounds, over the inputs of one example, of ``K`` hidden neurons' values and of their negatives.

    Parameters
    ----------
    first : int
        The first of those neurons among the unstable ones: it and all after it.
    slope : Tensor
        ``(2K, n)`` coefficients of the ``n`` numbers of an input.
    constant : Tensor
        ``(2K,)`` float64.
    x : Tensor
        ``(2K, n)`` the inputs at which they are least.
    width : Tensor
        ``(2K,)`` how much they vary over the inputs.
    reach : Tensor
        ``(2K,)`` what the sizes of their terms add up to at most.
    """

    first: int
    slope: Tensor
    constant: Tensor
    x: Tensor
    width: Tensor
    reach: Tensor


def lines_of(problem: Problem, example: int) -> Lines:
    """The linear bounds of a problem's unstable neurons, with the slopes of CROWN.

    Where they are too many, of the last ones: the earlier a neuron, the fewer inputs it sees, and the less one linear
    function of all inputs says about it.
    """
    one = problem.take(torch.tensor([example]))
    inputs = one.region.lower[0]
    count = min(len(problem.unstable), _HELD // (4 * inputs.numel() * inputs.element_size()))
    first = len(problem.unstable) - count
    neurons = problem.unstable[first:]
    slope = inputs.new_zeros(2, count, *inputs.shape)
    constant = torch.zeros(2, count, dtype=torch.float64, device=inputs.device)
    for number, place in problem.places.items():
        here = ((neurons >= place.start) & (neurons < place.stop)).nonzero()[:, 0]
        hidden = replace(one, node=problem.graph.nodes[number].inputs[0])
        for part in here.split(_TOGETHER) if len(here) else ():
            unit = inputs.new_zeros(len(part), place.stop - place.start)
            unit.scatter_(1, (neurons[part] - place.start).unsqueeze(1), 1)
            rows = unit.unflatten(1, problem.graph.nodes[number].shape)
            for side, signed in enumerate((rows, -rows)):
                whole = Domains.whole(hidden, torch.zeros(len(part), dtype=torch.int64), signed)
                found = bound_domains(hidden, whole, 0)
                slope[side, part], constant[side, part] = found.slope, found.constant
    rows = slope.flatten(0, 1)
    least = one.region.minimum(rows)
    width = -one.region.minimum(-rows) - least
    reach = rows.flatten(1).abs() @ _farthest(one.region)[0]
    return Lines(first, rows.flatten(1), constant.flatten(), one.region.minimiser(rows).flatten(1), width, reach)


def _farthest(region: Region) -> Tensor:
    """``(N, n)`` the largest size of each input."""
    return torch.maximum(region.lower.abs(), region.upper.abs()).flatten(1)


def clipped(problem: Problem, lines: dict[int, Lines], found: Found, level: Tensor, loss: Tensor) -> Domains:
    """Domains with neurons' bounds for the inputs at which the bounding functions are low enough.

    Parameters
    ----------
    problem : Problem
        The network.
    lines : dict
        For every example that is part of it, its neurons' linear bounds.
    found : Found
        What bounding the ``M`` domains found.
    level : Tensor
        ``(M,)`` float64: a counterexample lies where ``<slope, x>`` is no larger.
    loss : Tensor
        ``(M, U)`` what the neurons' planes cost the bound: neurons with much of it come first.

    Returns
    -------
    Domains
        A lower end above its upper one says that there is no such input.
    """
    region = problem.region.take(found.domains.example)
    slope, floor = found.slope.flatten(1), region.minimum(found.slope)
    excess, reach = (level - floor).to(slope.dtype), (slope.abs() * _farthest(region)).sum(1)
    share = gamma(slope.shape[1] + 8, unit(slope.dtype))
    ends = torch.stack([found.domains.lower, -found.domains.upper], 1)
    for example in found.domains.example.unique().tolist():
        mine, one = lines[example], problem.region.take(torch.tensor([example]))
        here = (found.domains.example == example).nonzero()[:, 0]
        known = ends[here, :, mine.first :].flatten(1)
        # Where a neuron's bound is attained at an input that is low enough, the slice says nothing about it.
        useful = slope[here] @ mine.x.T > (floor + excess)[here].unsqueeze(1)
        worth = loss[here, mine.first :].repeat(1, 2).masked_fill(~useful, 0)
        best = worth.topk(min(_CLIPPED, worth.shape[1]), dim=1)
        for row, place in enumerate(here.tolist()):
            chosen = best.indices[row][best.values[row] > 0]
            multiplier = _MULTIPLIER * mine.width[chosen] / excess[place]
            rows = torch.addcmul(mine.slope[chosen], multiplier.unsqueeze(1), slope[place])
            # The rows have been rounded twice, and the sizes of their terms summed.
            lost = 4 * unit(slope.dtype) * (1 + share) * (mine.reach[chosen] + multiplier * reach[place])
            least = mine.constant[chosen] - multiplier.double() * level[place] + one.minimum(rows) - lost.double()
            known[row, chosen] = torch.fmax(known[row, chosen], down(least, slope.dtype))
        ends[here, :, mine.first :] = known.unflatten(1, (2, -1))
    return replace(found.domains, lower=ends[:, 0], upper=-ends[:, 1])
