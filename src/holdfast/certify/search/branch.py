"""Complete verification: branch and bound over the signs of what functions with a kink are given.

What optimised bounds leave open is split in two at a neuron, one half for each sign of what it is given, and both are
bounded again (Bunel et al. 2020, "Branch and bound for piecewise linear neural network verification", JMLR 21; bounds
with multipliers for the signs: Wang et al. 2021, "Beta-CROWN", arXiv 2103.06624). Which neuron is tried out: of those
whose planes lose most, the one whose worse half comes out best (De Palma et al. 2021, "Improved branch and bound for
neural network verification via Lagrangian decomposition", arXiv 2104.06718, filtered smart branching). Clamps and max
pooling are written in such functions before the first split (:mod:`holdfast.certify.search.kinks`). An example that
does not fall soon is begun anew after a search for better bounds of its hidden neurons
(:mod:`holdfast.certify.search.hidden`), and a part that is nearly proved is looked at again with bounds for the slice
of its inputs that is left (:mod:`holdfast.certify.search.clipping`). Every bound on the way also names the input at
which it is least, and that input may be a counterexample.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from holdfast.certify.milp.encoding import Encoding, encode
from holdfast.certify.milp.solver import program_bound
from holdfast.certify.search.clipping import Lines, clipped, lines_of
from holdfast.certify.search.domains import Domains, Found, Problem, bound_domains, quick_bounds
from holdfast.certify.search.hidden import searched, tightened
from holdfast.certify.search.kinks import written
from holdfast.certify.search.witness import outward
from holdfast.errors import ModelError, RunError, SettingError

__all__ = ["Proof", "branch_and_bound"]

# Domains bounded together, examples worked on at a time, and neurons tried out before a split.
_BATCH, _IN_FLIGHT, _CANDIDATES = 256, 8, 2
# Examples that are bounded together before the first split.
_AT_ONCE = 16
# Steps of the slopes before the first split and after each.
_ROOT_STEPS, _STEPS = 20, 3
# How hidden neurons are bounded anew: first cheaply, then, for examples that have not fallen by a share of their time,
# thoroughly. Each with how much of the time that is left it may take, and that share.
_PHASES = ((partial(tightened, steps=5), 0.3, 0.1), (searched, 0.5, torch.inf))
# How near to 0 a bound must be, by how much its bounding function varies, for hidden neurons to be worth another look.
_NEAR = 0.3
# How many values a network has whose parts are worth a linear program each.
_SMALL = 1000
# From how many of a batch's worst domains counterexamples are sought, and for how many steps.
_TRIED, _DOWNHILL = 16, 5

Judge = Callable[[int, Tensor], bool]


@dataclass(frozen=True)
class Proof:
    """How the work on one example ended.

    Parameters
    ----------
    example : int
        Its place in the batch.
    status : str
        ``"proved"``: all its functions are positive everywhere; ``"broken"``: one is not, at ``x``; ``"open"``: time is
        up, or no neuron is left to split.
    bound : float
        A lower bound of the least of its functions: infinite where all were proved before.
    x : Tensor or None
        ``(*shape)`` the counterexample.
    domains : int
        How many parts were bounded.
    seconds : float
        Spent on it: what a batch takes is shared among the examples in it.
    """

    example: int
    status: Literal["proved", "broken", "open"]
    bound: float
    x: Tensor | None
    domains: int
    seconds: float


@dataclass(order=True)
class _Leaf:
    """A domain that waits to be split; the worst comes first."""

    bound: float
    order: int
    rows: Tensor = field(compare=False)
    offset: float = field(compare=False)
    split: Tensor = field(compare=False)
    sign: Tensor = field(compare=False)
    unit: Tensor = field(compare=False)
    multiplier: Tensor = field(compare=False)
    slopes: Tensor = field(compare=False)
    ends: tuple[Tensor, Tensor] = field(compare=False)
    candidates: Tensor = field(compare=False)
    sizes: Tensor = field(compare=False)


@dataclass
class _Work:
    """The state of one example."""

    example: int
    leaves: list[_Leaf] = field(default_factory=list)
    known: float = -torch.inf
    stuck: float = torch.inf
    proved: float = torch.inf
    domains: int = 0
    seconds: float = 0.0
    x: Tensor | None = None

    def bound(self) -> float:
        """What is known of the whole example, also from before it was begun anew."""
        return max(self.known, min(self.leaves[0].bound if self.leaves else torch.inf, self.stuck, self.proved))


def branch_and_bound(
    problem: Problem,
    rows: list[Tensor],
    offsets: list[Tensor],
    judge: Judge,
    *,
    seconds: float,
) -> Iterator[Proof]:
    """Decide whether functions of the output are positive for all inputs of their examples.

    Parameters
    ----------
    problem : Problem
        The network, the inputs of ``N`` examples, and the bounds known so far.
    rows, offsets : list of Tensor
        For each example ``(S, K)`` functions of the output, and ``(S,)`` what is added to them. They may differ in
        number; an example without any is proved.
    judge : callable
        Whether an input of an example, ``(*shape)``, is a counterexample: the last word on it.
    seconds : float
        For each example.

    Yields
    ------
    Proof
        One for each example, as they fall.
    """
    hard: list[_Work] = []
    for part in torch.arange(len(rows)).split(_AT_ONCE):
        search = _Search.of(problem, part, judge)
        works = search.begin([(_Work(n), rows[n], offsets[n]) for n in part.tolist()])
        for work in works:
            proof = _ended(work, seconds)
            if proof is None:
                hard.append(work)
            else:
                yield proof
    for better, share, enough in _PHASES:
        waiting: list[_Work] = []
        for start in range(0, len(hard), _IN_FLIGHT):
            active = hard[start : start + _IN_FLIGHT]
            part = torch.tensor([work.example for work in active])
            began = time.perf_counter()
            few = problem.take(part).in_kinks()
            deadline = began + share * sum(seconds - work.seconds for work in active)
            bounds = better(few.graph, few.region, few.bounds, deadline=deadline)
            few = replace(few, bounds=bounds)
            _charge(active, began)
            search = _Search.of(few, torch.arange(len(part)), judge, part)
            active = search.begin([_again(work) for work in active])
            while active:
                going = []
                for work in active:
                    proof = _ended(work, seconds)
                    if proof is not None:
                        yield proof
                    elif work.seconds > enough * seconds:
                        waiting.append(work)
                    else:
                        going.append(work)
                active = going
                if active:
                    search.advance(active)
        hard = waiting


def _charge(works: list[_Work], began: float) -> None:
    """Share the time since then among examples."""
    for work in works:
        work.seconds += (time.perf_counter() - began) / len(works)


def _again(work: _Work) -> tuple[_Work, Tensor, Tensor]:
    """An example with the functions that are still open, to be begun anew."""
    work.known = work.bound()
    leaves, work.leaves = work.leaves, []
    rows = torch.stack([leaf.rows for leaf in leaves])
    offsets = rows.new_tensor([leaf.offset for leaf in leaves])
    functions = torch.cat([rows, offsets.unsqueeze(1)], 1).unique(dim=0)
    return work, functions[:, :-1], functions[:, -1]


def _ended(work: _Work, seconds: float) -> Proof | None:
    status: Literal["proved", "broken", "open"]
    if work.x is not None:
        status = "broken"
    elif not work.leaves:
        status = "proved" if work.stuck == torch.inf else "open"
    elif work.seconds > seconds:
        status = "open"
    else:
        return None
    return Proof(work.example, status, work.bound(), work.x, work.domains, work.seconds)


@dataclass(frozen=True)
class _Search:
    """The work on some examples together: ``examples`` are their names outside."""

    problem: Problem
    examples: list[int]
    judge: Judge
    order: itertools.count[int] = field(default_factory=itertools.count)
    lines: dict[int, Lines] = field(default_factory=dict)
    programs: dict[int, Encoding | None] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, part: Tensor, judge: Judge, names: Tensor | None = None) -> _Search:
        names = part if names is None else names
        some = problem.take(part)
        return cls(some, names.tolist(), judge)

    @cached_property
    def precise(self) -> Problem:
        """The same in float64."""
        return self.problem.to(torch.float64)

    @cached_property
    def coarse(self) -> bool:
        """Whether, where no neuron is left to split, other operations are: those that are not written in kinks yet."""
        return bool(written(self.problem.graph, self.problem.bounds.intervals))

    @cached_property
    def small(self) -> bool:
        """Whether a linear program takes no longer than the splits that it saves."""
        return sum(torch.Size(node.shape).numel() for node in self.problem.graph.nodes) <= _SMALL

    @property
    def _none(self) -> int:
        """What stands in the place of an unstable neuron where there is none."""
        return len(self.problem.unstable)

    def begin(self, examples: list[tuple[_Work, Tensor, Tensor]]) -> list[_Work]:
        """Bound whole examples, each with its functions and what is added to them."""
        works = {place: work for place, (work, _, _) in enumerate(examples)}
        owners = torch.tensor([place for place, (_, rows, _) in enumerate(examples) for _ in rows], dtype=torch.int64)
        if len(owners):
            everything = torch.cat([rows for _, rows, _ in examples])
            offsets = torch.cat([offset for _, _, offset in examples])
            for part in torch.arange(len(owners)).split(_BATCH):
                began = time.perf_counter()
                domains = Domains.whole(self.problem, owners[part], everything[part])
                self._sort(self._bounded(domains, offsets[part], _ROOT_STEPS), offsets[part], works)
                self._charge(works, owners[part], began)
        return list(works.values())

    def advance(self, active: list[_Work]) -> None:
        """Split the worst domains of all examples and bound the halves."""
        began = time.perf_counter()
        # By the examples' places in the problem, where those that are done leave gaps.
        works = {self.examples.index(work.example): work for work in active}
        chosen: list[tuple[int, _Leaf]] = []
        share = max(1, _BATCH // (2 * len(active)))
        for place, work in works.items():
            count = min(share, len(work.leaves))
            chosen += [(place, heapq.heappop(work.leaves)) for _ in range(count)]
        parents, candidates, sizes = self._stack(chosen)
        offsets = torch.tensor([leaf.offset for _, leaf in chosen], dtype=parents.rows.dtype)
        best = self._choose(parents, candidates, sizes)
        neuron, unit = (t.gather(1, best.unsqueeze(1))[:, 0] for t in (candidates, sizes))
        children, offsets = parents.halved(neuron, unit), offsets.repeat(2)
        self._sort(self._clipped(self._bounded(children, offsets, _STEPS), offsets), offsets, works)
        self._charge(works, parents.example, began)

    def _choose(self, parents: Domains, candidates: Tensor, sizes: Tensor) -> Tensor:
        """``(M,)`` which candidate to split at."""
        count = candidates.shape[1]
        halves = parents.take(torch.arange(len(parents)).repeat_interleave(count))
        halves = halves.halved(candidates.flatten(), sizes.flatten())
        parts = torch.arange(len(halves)).split(2 * _BATCH)
        found = torch.cat([quick_bounds(self.problem, halves.take(part)) for part in parts])
        low, high = found.unflatten(0, (2, len(parents), count))
        # A candidate that is none, where neurons run out, must not win.
        worse = torch.minimum(low, high).masked_fill(candidates >= self._none, -torch.inf)
        return (worse + 1e-3 * torch.maximum(low, high).clamp(max=0)).argmax(1)

    def _bounded(self, domains: Domains, offsets: Tensor, steps: int) -> Found:
        return bound_domains(self.problem, domains, steps, enough=float(-offsets.min()))

    def _clipped(self, found: Found, offsets: Tensor) -> Found:
        """The same with what is nearly proved bounded once more, with better bounds of its neurons."""
        domains, region = found.domains, self.problem.region.take(found.domains.example)
        ceiling = -offsets.double()
        least, most = region.minimum(found.slope), -region.minimum(-found.slope)
        # Rounded up, since what lies above it is not looked at again.
        level = ceiling - found.constant + 2.0**-50 * (ceiling.abs() + found.constant.abs())
        near = ((found.bound <= ceiling) & (level - least < _NEAR * (most - least))).nonzero()[:, 0]
        if not len(near):
            return found
        for example in domains.example[near].unique().tolist():
            if example not in self.lines:
                self.lines[example] = lines_of(self.problem, example)
        some = found.take(near)
        narrow = clipped(self.problem, self.lines, some, level[near], some.losses())
        again = bound_domains(self.problem, narrow, 0)
        empty = (narrow.lower > narrow.upper).any(1)
        bound = torch.fmax(again.bound, some.bound).masked_fill(empty, torch.inf)
        return found.put(near, replace(again, bound=bound))

    def _sort(self, found: Found, offsets: Tensor, works: Mapping[int, _Work]) -> None:
        """Drop what is proved, try what might be a counterexample, and keep the rest."""
        domains, bound = found.domains, found.bound + offsets
        done = bound > 0
        # What may have been lost to the rounding of float32 alone is asked again.
        near = (~done & (bound + found.lost > 0)).nonzero()[:, 0]
        if len(near):
            done[near] = self._precisely(found.domains.take(near), offsets[near])
        self._try(found, offsets, works)
        candidates, sizes = found.costliest(_CANDIDATES)
        for place in range(len(domains)):
            work = works[int(domains.example[place])]
            work.domains += 1
            value = float(bound[place])
            if bool(done[place]):
                work.proved = min(work.proved, self._sure(value, domains.take(torch.tensor([place]))))
                continue
            last = int(candidates[place, 0]) >= self._none and not self.coarse
            if last or (self.small and domains.split.shape[1]):
                domain = found.domains.take(torch.tensor([place]))
                value = max(value, self._programmed(domain, float(offsets[place]), work))
            if value > 0:
                work.proved = min(work.proved, self._sure(value, domains.take(torch.tensor([place]))))
            elif last:
                work.stuck = min(work.stuck, value)
            else:
                reached = found.domains
                leaf = _Leaf(
                    value, next(self.order), reached.rows[place], float(offsets[place]), reached.split[place],
                    reached.sign[place], reached.unit[place], reached.multiplier[place], reached.slopes[place].half(),
                    outward(reached.lower[place], reached.upper[place], torch.half),
                    candidates[place], sizes[place],
                )  # fmt: skip
                heapq.heappush(work.leaves, leaf)

    def _try(self, found: Found, offsets: Tensor, works: Mapping[int, _Work]) -> None:
        """Look for counterexamples from where the worst bounds are least, downhill (Frank and Wolfe 1956)."""
        worst = (found.bound + offsets).argsort()[:_TRIED]
        domains, x, offsets = found.domains.take(worst), found.x[worst], offsets[worst]
        region = self.problem.region.take(domains.example)
        for step in range(_DOWNHILL + 1):
            with torch.enable_grad():
                x.requires_grad_(True)
                value = torch.linalg.vecdot(self.problem.graph(x), domains.rows) + offsets
                (grad,) = torch.autograd.grad(value.sum(), x)
            x = x.detach()
            for place in (value <= 0).nonzero()[:, 0].tolist():
                work = works[int(domains.example[place])]
                if work.x is None and self.judge(work.example, x[place]):
                    work.x = x[place]
            x = torch.lerp(x, region.minimiser(grad), 2 / (step + 3))

    def _programmed(self, domain: Domains, offset: float, work: _Work) -> float:
        """A bound by a linear program, with all signs as constraints; exact where no neuron is unstable any more."""
        example = int(domain.example[0])
        if example not in self.programs:
            one = self.precise.take(domain.example)
            # What a program cannot express, a ball of L2 or an operation, stays open.
            with suppress(ModelError, SettingError):
                self.programs[example] = encode(one.graph, one.region, one.bounds.intervals)
        encoding = self.programs.setdefault(example, None)
        if encoding is None:
            return -torch.inf
        region = self.precise.region.take(domain.example)
        try:
            leaf = program_bound(encoding, region, self._signs(domain), domain.rows[0].double(), offset)
        except RunError:  # the solver's own
            return -torch.inf
        if leaf.x is not None:
            x = leaf.x.to(domain.rows.dtype)
            if work.x is None and self.judge(work.example, x):
                work.x = x
        return leaf.bound

    def _sure(self, bound: float, domain: Domains) -> float:
        """What a bound proves: where neurons may have been clipped, no more than that the function is positive."""
        return min(bound, torch.finfo(torch.float32).tiny) if domain.split.shape[1] else bound

    def _signs(self, domain: Domains) -> dict[int, Tensor]:
        """The signs of split neurons, by their ReLUs, 0 for the others."""
        signs = torch.zeros(self.problem.planes.lower.shape[1])
        signs[self.problem.unstable] = (domain.lower[0] >= 0).float() - (domain.upper[0] <= 0).float()
        shapes = {number: self.problem.graph.nodes[number].shape for number in self.problem.places}
        return {number: signs[place].reshape(shapes[number]) for number, place in self.problem.places.items()}

    def _precisely(self, domains: Domains, offsets: Tensor) -> Tensor:
        """Whether bounds that rounding could have made positive are so in float64."""
        wide = Domains(*(v.double() if v.is_floating_point() else v for v in vars(domains).values()))
        return quick_bounds(self.precise, wide) + offsets.double() > 0

    def _stack(self, chosen: list[tuple[int, _Leaf]]) -> tuple[Domains, Tensor, Tensor]:
        leaves = [leaf for _, leaf in chosen]
        depth = max(len(leaf.split) for leaf in leaves)

        def padded(name: str, value: float) -> Tensor:
            parts = [getattr(leaf, name) for leaf in leaves]
            return torch.stack([torch.nn.functional.pad(part, (0, depth - len(part)), value=value) for part in parts])

        rows = torch.stack([leaf.rows for leaf in leaves])
        example = torch.tensor([example for example, _ in chosen])
        # What was rounded to half may have become infinite.
        lower, upper = (end.index_select(0, example) for end in self.problem.ends)
        domains = Domains(
            example,
            rows,
            padded("split", self._none),
            padded("sign", 1),
            padded("unit", 0),
            padded("multiplier", 0),
            torch.stack([leaf.slopes for leaf in leaves]).to(rows.dtype),
            torch.maximum(torch.stack([leaf.ends[0] for leaf in leaves]).to(rows.dtype), lower),
            torch.minimum(torch.stack([leaf.ends[1] for leaf in leaves]).to(rows.dtype), upper),
        )
        return domains, torch.stack([leaf.candidates for leaf in leaves]), torch.stack([leaf.sizes for leaf in leaves])

    def _charge(self, works: Mapping[int, _Work], examples: Tensor, began: float) -> None:
        """Share the time since then among the examples, each by its domains."""
        each = (time.perf_counter() - began) / max(1, len(examples))
        for example in examples.tolist():
            works[example].seconds += each
