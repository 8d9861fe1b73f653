"""Parts of an example's inputs, told apart by the signs of neurons, and bounds of them with optimised slopes.

With no neuron split this is alpha-CROWN for the output (Xu et al. 2021, "Fast and complete: enabling complete neural
network verification with rapid and massively parallel incomplete verifiers", arXiv 2011.13824); with the signs of split
neurons as constraints, and a multiplier for each, it is beta-CROWN (Wang et al. 2021, arXiv 2103.06624). A bound holds
for any slopes between those of a neuron's two pieces and any multipliers of at least 0, so the search for good ones may
stop at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.crown import Bounds, LowerLines, crown, least, lower_lines, taken
from holdfast.certify.bounds.operations.kink import Kink, KinkPlanes, Slope, free_share, kink_planes, slope_between
from holdfast.certify.bounds.rounding import Errors
from holdfast.certify.bounds.rows import Rows, Window
from holdfast.certify.search.kinks import in_kinks, written

if TYPE_CHECKING:
    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.region import Region

__all__ = ["Domains", "Found", "Problem", "bound_domains", "improved_bounds", "quick_bounds"]

Watch = Callable[[int, Rows], None]

# Adam's step for slopes and for multipliers (in units of the coefficient met when the neuron was split), and its decay.
_STEP, _PUSH_STEP, _DECAY = 0.25, 1.0, 0.97
_MEMORY, _SQUARES = 0.9, 0.999


@dataclass(frozen=True, eq=False)
class Problem:
    """A network with bounds of its neurons over the inputs of ``N`` examples.

    Parameters
    ----------
    graph, region, bounds
        The network, the inputs, and what is known of its nodes.
    node : int
        The node whose value is to be bounded.
    window : Window or None
        The part of it that functions depend on, where it is a feature map: rows are of that part alone.
    """

    graph: Graph
    region: Region
    bounds: Bounds
    node: int
    window: Window | None = None

    @cached_property
    def places(self) -> dict[int, slice]:
        """For every operation with a kink, by its node, which neurons it has; all neurons are counted through."""
        found: dict[int, slice] = {}
        start = 0
        for number, node in enumerate(self.graph.nodes[: self.node + 1]):
            if isinstance(node.operation, Kink):
                size = torch.Size(node.shape).numel()
                found[number] = slice(start, start + size)
                start += size
        return found

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """``(N, neurons)`` bounds of what the neurons are given."""
        inputs = [self.bounds.intervals[self.graph.nodes[number].inputs[0]] for number in self.places]
        if not inputs:
            nothing = self.region.lower.new_zeros(len(self.region), 0)
            return nothing, nothing
        lower, upper = (torch.cat([end.flatten(1) for end in ends], 1) for ends in zip(*inputs, strict=True))
        return lower, upper

    @cached_property
    def _kinks(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(neurons,)`` slopes left and right of 0, where concave ones are turned round, and -1 for those, else 1."""
        like = self.region.lower
        found: list[list[Tensor]] = [[like.new_zeros(0)] for _ in range(3)]
        for number in self.places:
            node = self.graph.nodes[number]
            assert isinstance(node.operation, Kink)
            for part, values in zip(found, (*node.operation.slopes, node.operation.sign), strict=True):
                part.append(torch.as_tensor(values, dtype=like.dtype, device=like.device).expand(node.shape).flatten())
        below, above, sign = map(torch.cat, found)
        return below, above, sign

    @cached_property
    def planes(self) -> KinkPlanes:
        """``(N, neurons)`` of all neurons."""
        return kink_planes(*self._ends, *self._kinks[:2])

    @cached_property
    def unstable(self) -> Tensor:
        """``(U,)`` the neurons whose sign is open for some example: all that a slope or a split can be about."""
        lower, upper = self._ends
        return (((lower < 0) & (upper > 0)).any(0) & self._seen).nonzero()[:, 0]

    @cached_property
    def _seen(self) -> Tensor:
        """``(neurons,)`` which of them the node's value in the window depends on."""
        seen = torch.ones_like(self._ends[0][0], dtype=torch.bool)
        if self.window is None or not len(self.region):
            return seen

        def watch(number: int, rows: Rows) -> None:
            if number in self.places:
                inside = replace(rows, values=torch.ones_like(rows.values))
                seen[self.places[number]] = inside.full(self.graph.nodes[number].shape).flatten() > 0

        one = self.take(torch.tensor([0]))
        (top, bottom), (left, right) = self.window
        row = seen.new_zeros(1, self.graph.nodes[self.node].shape[0], bottom - top, right - left).to(one.region.lower)
        with torch.no_grad():
            lower_lines(self.graph, self.node, Rows(row, self.window), one.bounds.planes, Errors.none(), watch)
        return seen

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """``(N, U)`` bounds of what those are given."""
        lower, upper = (end.index_select(1, self.unstable) for end in self._ends)
        return lower, upper

    @cached_property
    def slopes(self) -> tuple[Slope, Slope]:
        """``(U,)`` their slopes left and right of 0, those of concave ones turned round; 0 and 1 if all are ReLUs."""
        kinks = [self.graph.nodes[number].operation for number in self.places]
        if all(isinstance(kink, Kink) and kink.plain for kink in kinks):
            return 0.0, 1.0
        below, above = (part.index_select(0, self.unstable) for part in self._kinks[:2])
        return below, above

    @cached_property
    def jump(self) -> Tensor:
        """``(U,)`` by how much their slopes rise at 0: they are linear but for so many times ``max(x, 0)``."""
        below, above = self.slopes
        return self._kinks[2].index_select(0, self.unstable) * (above - below)

    @property
    def splits(self) -> bool:
        """Whether a search has anything to split."""
        return bool(self.places or written(self.graph, self.bounds.intervals))

    def in_kinks(self) -> Problem:
        """The same with all that a search splits as neurons of one kink; see :mod:`holdfast.certify.search.kinks`."""
        graph, places = in_kinks(self.graph, self.bounds.intervals)
        if len(graph.nodes) == len(self.graph.nodes):
            return self
        known = dict(zip(places, self.bounds.intervals, strict=True))
        return replace(self, graph=graph, bounds=crown(graph, self.region, known), node=places[self.node])

    def take(self, examples: Tensor) -> Problem:
        """Some of the examples."""
        return replace(self, region=self.region.take(examples), bounds=self.bounds.take(examples))

    def to(self, dtype: torch.dtype) -> Problem:
        """The same in another precision, bounds included."""
        graph = self.graph.to(dtype)
        return replace(self, graph=graph, region=self.region.to(dtype), bounds=self.bounds.to(graph, dtype))


@dataclass(frozen=True, eq=False)
class Domains:
    """``M`` parts of examples' inputs, each with one linear function of the output to be bounded there.

    Parameters
    ----------
    example : Tensor
        ``(M,)`` which example each is part of.
    rows : Tensor
        ``(M, *shape)`` the functions.
    split : Tensor
        ``(M, D)`` the neurons whose signs are given, by their places among the unstable ones; ``U`` where there are
        fewer.
    sign : Tensor
        ``(M, D)`` 1 for ``z >= 0`` and -1 for ``z <= 0``.
    unit : Tensor
        ``(M, D)`` the sizes in which multipliers are counted.
    multiplier : Tensor
        ``(M, D)`` of at least 0.
    slopes : Tensor
        ``(M, U)`` the lower slopes of unstable neurons, or of the negatives of concave ones: in [0, 1], how far on the
        way from the slope left of 0 to the one right of it.
    lower, upper : Tensor
        ``(M, U)`` bounds of what those are given, wherever the function may be negative.
    """

    example: Tensor
    rows: Tensor
    split: Tensor
    sign: Tensor
    unit: Tensor
    multiplier: Tensor
    slopes: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def whole(cls, problem: Problem, example: Tensor, rows: Tensor) -> Domains:
        """All inputs of some examples, with the slopes of CROWN."""
        nothing = rows.new_zeros(len(rows), 0)
        slopes = free_share(*problem.ends, *problem.slopes).index_select(0, example)
        ends = (end.index_select(0, example) for end in problem.ends)
        return cls(example, rows, nothing.long(), nothing, nothing, nothing, slopes, *ends)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> Domains:
        """Some of them."""
        return Domains(*(part[rows] for part in vars(self).values()))

    def put(self, rows: Tensor, others: Domains) -> Domains:
        """The same with others, of as many splits, in the places of some."""
        return Domains(*map(partial(_put, rows), vars(self).values(), vars(others).values()))

    def joined(self, others: Domains) -> Domains:
        """These and others of as many splits."""
        return Domains(*(torch.cat(parts) for parts in zip(vars(self).values(), vars(others).values(), strict=True)))

    def deeper(self, count: int) -> Domains:
        """The same with room for so many more splits."""
        columns = {"split": self.lower.shape[1], "sign": 1, "unit": 0, "multiplier": 0}
        wide = {name: functional.pad(getattr(self, name), (0, count), value=value) for name, value in columns.items()}
        return replace(self, **wide)

    def halved(self, neuron: Tensor, unit: Tensor) -> Domains:
        """Each twice, first all with a neuron of theirs, ``(M,)``, at least 0, and then all with it at most 0."""
        neuron, unit = neuron.unsqueeze(1), unit.unsqueeze(1)
        sign = torch.cat([torch.ones_like(unit), -torch.ones_like(unit)])
        twice = self.take(torch.arange(len(self)).repeat(2))
        # One column more, for the neuron that is none.
        lower, upper = (functional.pad(end, (0, 1)) for end in (self.lower, self.upper))
        raised = lower.scatter(1, neuron, lower.gather(1, neuron).clamp_min(0))
        lowered = upper.scatter(1, neuron, upper.gather(1, neuron).clamp_max(0))
        return replace(
            twice,
            split=torch.cat([twice.split, neuron.repeat(2, 1)], 1),
            sign=torch.cat([twice.sign, sign], 1),
            unit=torch.cat([twice.unit, unit.repeat(2, 1)], 1),
            multiplier=torch.cat([twice.multiplier, torch.zeros_like(sign)], 1),
            lower=torch.cat([raised, lower])[:, :-1],
            upper=torch.cat([upper, lowered])[:, :-1],
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What bounding found.

    Parameters
    ----------
    domains : Domains
        With the slopes and multipliers that were reached.
    bound : Tensor
        ``(M,)`` the best lower bounds seen, of the function where the domains' bounds of neurons hold.
    coefficients : Tensor
        ``(M, U)`` those of unstable neurons' positive parts ``max(z, 0)``, at the last look: a neuron is linear but for
        its :attr:`~Problem.jump` times that.
    x : Tensor
        ``(M, *shape)`` the inputs at which the bounding function is least.
    slope : Tensor
        ``(M, *shape)`` the bounding function itself, at the last look: the one bounded is at least
        ``<slope, x> + constant``.
    constant, lost : Tensor
        ``(M,)`` float64, and how much of the constant rounding has cost.
    """

    domains: Domains
    bound: Tensor
    coefficients: Tensor
    x: Tensor
    slope: Tensor
    constant: Tensor
    lost: Tensor

    def take(self, rows: Tensor) -> Found:
        """Of some domains."""
        domains, *parts = vars(self).values()
        return Found(domains.take(rows), *(part[rows] for part in parts))

    def put(self, rows: Tensor, others: Found) -> Found:
        """The same with others in the places of some."""
        (domains, *parts), (new, *changes) = vars(self).values(), vars(others).values()
        return Found(domains.put(rows, new), *map(partial(_put, rows), parts, changes))

    def losses(self) -> Tensor:
        """``(M, U)`` what the planes of neurons without a sign cost the bound; -1 for the others."""
        lower, upper, slopes = self.domains.lower, self.domains.upper, self.domains.slopes
        shift = -lower * upper / (upper - lower).clamp_min(torch.finfo(upper.dtype).tiny)
        below = self.coefficients.clamp_min(0) * torch.minimum(-lower * slopes, upper * (1 - slopes))
        lost = -self.coefficients.clamp_max(0) * shift + below
        return lost.masked_fill((lower >= 0) | (upper <= 0), -1)

    def costliest(self, count: int) -> tuple[Tensor, Tensor]:
        """``(M, count)`` the neurons whose planes lose most, ``U`` where there are fewer, and sizes of coefficients."""
        lower, upper, score = self.domains.lower, self.domains.upper, self.losses()
        # A neuron that the bound does not depend on is better than none.
        score = functional.pad(score + (score >= 0) * 1e-9 * (upper - lower), (0, count), value=-1)
        best = score.topk(count, dim=1)
        neuron = best.indices.masked_fill(best.values < 0, lower.shape[1])
        sizes = functional.pad(self.coefficients, (0, 1)).gather(1, neuron).abs()
        return neuron, sizes.clamp_min(1e-6)


def _put(rows: Tensor, values: Tensor, others: Tensor) -> Tensor:
    return values.index_copy(0, rows, others)


def quick_bounds(problem: Problem, domains: Domains) -> Tensor:
    """``(M,)`` lower bounds with the slopes and multipliers that domains have."""
    with torch.no_grad():
        return _Frame.of(problem, domains).bound(domains.slopes, domains.multiplier)


def improved_bounds(problem: Problem, domains: Domains, steps: int) -> Tensor:
    """``(M,)`` lower bounds, the best of some steps of Adam from the slopes and multipliers that domains have."""
    frame = _Frame.of(problem, domains)
    best, slopes, multiplier = _improved(frame, steps, torch.inf)
    with torch.no_grad():
        return torch.fmax(best, frame.bound(slopes, multiplier))


def bound_domains(problem: Problem, domains: Domains, steps: int, enough: float = torch.inf) -> Found:
    """Bound domains, improving slopes and multipliers for some steps, and look at how the bounds come about.

    Parameters
    ----------
    problem : Problem
        The network.
    domains : Domains
        What to bound, and from which slopes and multipliers on.
    steps : int
        How many; with 0 the bounds are those of the slopes and multipliers given.
    enough : float
        Where all bounds are above it, nothing is improved any more.
    """
    frame = _Frame.of(problem, domains)
    best, slopes, multiplier = _improved(frame, steps, enough)
    seen = slopes.new_zeros(len(slopes), problem.planes.lower.shape[1])

    def watch(number: int, rows: Rows) -> None:
        if number in problem.places:
            seen[:, problem.places[number]] = rows.full(problem.graph.nodes[number].shape).flatten(1)

    with torch.no_grad():
        lines = frame.lines(slopes, multiplier, watch)
        bound = least(lines, frame.region)
    reached = replace(domains, multiplier=multiplier, slopes=slopes)
    slope = lines.rows.full(problem.graph.nodes[0].shape)
    coefficients, x = seen.index_select(1, problem.unstable) * problem.jump, frame.region.minimiser(slope)
    return Found(reached, torch.fmax(best, bound), coefficients, x, slope, lines.constant, lines.lost)


def _improved(frame: _Frame, steps: int, enough: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best bounds seen, and the slopes and multipliers after the last step."""
    slopes, multiplier = frame.domains.slopes.clone(), frame.domains.multiplier.clone()
    best = slopes.new_full((len(slopes),), -torch.inf)
    memory = [(torch.zeros_like(part), torch.zeros_like(part)) for part in (slopes, multiplier)]
    for step in range(steps):
        with torch.enable_grad():
            parts = [slopes.requires_grad_(True), multiplier.requires_grad_(True)]
            bound = frame.bound(slopes, multiplier)
            # Where no slope and no multiplier takes part, there is nothing to improve.
            if not bound.requires_grad:
                return bound, slopes.detach(), multiplier.detach()
            grads = torch.autograd.grad(bound.sum(), parts, allow_unused=True)
        slopes, multiplier = slopes.detach(), multiplier.detach()
        best = torch.fmax(best, bound.detach())
        if bool((best > enough).all()):
            break
        for value, grad, (mean, square), size in zip(
            (slopes, multiplier), grads, memory, (_STEP, _PUSH_STEP), strict=True
        ):
            if grad is None or not value.numel():
                continue
            mean.lerp_(grad, 1 - _MEMORY)
            square.lerp_(grad * grad, 1 - _SQUARES)
            root = (square / (1 - _SQUARES ** (step + 1))).sqrt_().clamp_min_(torch.finfo(square.dtype).tiny)
            value.add_(mean / (1 - _MEMORY ** (step + 1)) / root, alpha=size * _DECAY**step).clamp_(min=0)
        slopes.clamp_(max=1)
    return best, slopes, multiplier


@dataclass(frozen=True, eq=False)
class _Frame:
    """What stays the same while slopes and multipliers change."""

    problem: Problem
    domains: Domains
    region: Region
    planes: KinkPlanes
    errors: Errors
    free: Tensor
    fixed: Tensor
    pushed: frozenset[int]
    others: dict[int, Any]

    @classmethod
    def of(cls, problem: Problem, domains: Domains) -> _Frame:
        lower, upper = domains.lower, domains.upper
        cut, whole = kink_planes(lower, upper, *problem.slopes), taken(problem.planes, domains.example)
        planes = KinkPlanes(
            whole.lower,
            whole.upper.index_copy_(1, problem.unstable, cut.upper),
            whole.shift.index_copy_(1, problem.unstable, cut.shift),
        )
        others = {
            number: taken(planes, domains.example)
            for number, planes in problem.bounds.planes.items()
            if number <= problem.node and number not in problem.places
        }
        neurons = problem.unstable[domains.split[domains.split < len(problem.unstable)]]
        pushed = frozenset(
            number
            for number, place in problem.places.items()
            if bool(((neurons >= place.start) & (neurons < place.stop)).any())
        )
        region = problem.region.take(domains.example)
        errors, free = problem.bounds.errors.take(domains.example), (lower < 0) & (upper > 0)
        return cls(problem, domains, region, planes, errors, free, cut.lower, pushed, others)

    def bound(self, slopes: Tensor, multiplier: Tensor) -> Tensor:
        """``(M,)`` lower bounds of the domains' functions."""
        return least(self.lines(slopes, multiplier), self.region)

    def lines(self, slopes: Tensor, multiplier: Tensor, watch: Watch = lambda number, rows: None) -> LowerLines:
        """The same as linear functions of the input."""
        problem = self.problem
        chosen = torch.where(self.free, slope_between(*problem.slopes, slopes), self.fixed)
        lower = self.planes.lower.index_copy(1, problem.unstable, chosen)
        planes = dict(self.others)
        sizes = [place.stop - place.start for place in problem.places.values()]
        # One split, whose gradient is one concatenation: that of a slice fills zeros around it.
        parts = zip(*(part.split(sizes, 1) for part in (lower, self.planes.upper, self.planes.shift)), strict=True)
        for (number, place), ends in zip(problem.places.items(), parts, strict=True):
            shape = problem.graph.nodes[number].shape
            push = self._push(place, multiplier).unflatten(1, shape) if number in self.pushed else None
            below, above, shift = (part.unflatten(1, shape) for part in ends)
            planes[number] = KinkPlanes(below, above, shift, push)
        rows = Rows(self.domains.rows, problem.window) if problem.window else Rows.whole(self.domains.rows)
        return lower_lines(problem.graph, problem.node, rows, planes, self.errors, watch)

    def _push(self, place: slice, multiplier: Tensor) -> Tensor:
        """``(M, size)`` what the signs of split neurons add to the coefficients of one node's."""
        size = place.stop - place.start
        local = functional.pad(self.problem.unstable, (0, 1), value=place.stop)[self.domains.split] - place.start
        local = torch.where((local >= 0) & (local < size), local, size)
        force = -self.domains.sign * self.domains.unit * multiplier
        return force.new_zeros(len(force), size + 1).scatter_add(1, local, force)[:, :-1]
