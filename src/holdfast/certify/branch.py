"""Complete verification: branch and bound over the signs of ReLUs.

What optimised bounds leave open is split in two at a neuron, one half for each sign of what it is given, and both are
bounded again (Bunel et al. 2020, "Branch and bound for piecewise linear neural network verification", JMLR 21; bounds
with multipliers for the signs: Wang et al. 2021, "Beta-CROWN", arXiv 2103.06624). Which neuron is tried out: of those
whose planes lose most, the one whose worse half comes out best (De Palma et al. 2021, "Improved branch and bound for
neural network verification via Lagrangian decomposition", arXiv 2104.06718, filtered smart branching). Every bound on
the way also names the input at which it is least, and that input may be a counterexample.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from holdfast.certify.domains import Domains, Found, Problem, bound_domains, quick_bounds, signed_ends

__all__ = ["Proof", "branch_and_bound"]

# Domains bounded together, examples worked on at a time, and neurons tried out before a split.
_BATCH, _IN_FLIGHT, _CANDIDATES = 128, 16, 4
# Steps of the slopes before the first split and after each.
_ROOT_STEPS, _STEPS = 20, 4
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
    candidates: Tensor = field(compare=False)
    sizes: Tensor = field(compare=False)


@dataclass
class _Work:
    """The state of one example."""

    example: int
    leaves: list[_Leaf] = field(default_factory=list)
    stuck: float = torch.inf
    proved: float = torch.inf
    domains: int = 0
    seconds: float = 0.0
    x: Tensor | None = None

    def bound(self) -> float:
        return min(self.leaves[0].bound if self.leaves else torch.inf, self.stuck, self.proved)


def branch_and_bound(
    problem: Problem,
    rows: list[Tensor],
    offsets: list[Tensor],
    judge: Judge,
    *,
    seconds: float,
    room: Tensor,
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
    room : Tensor
        ``(N,)`` how far a bound must be above 0, so that rounding cannot have made it so.

    Yields
    ------
    Proof
        One for each example, as they fall.
    """
    order = itertools.count()
    search = _Search(problem, problem.to(torch.float64), judge, room, order)
    waiting = iter(range(len(rows)))
    active: list[_Work] = []
    while True:
        fresh = list(itertools.islice(waiting, max(0, _IN_FLIGHT - len(active))))
        if fresh:
            active += search.begin([(n, rows[n], offsets[n]) for n in fresh])
        if not active:
            return
        going = []
        for work in active:
            proof = _ended(work, seconds)
            if proof is None:
                going.append(work)
            else:
                yield proof
        active = going
        if active:
            search.advance(active)


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
    problem: Problem
    precise: Problem
    judge: Judge
    room: Tensor
    order: itertools.count[int]

    @property
    def _none(self) -> int:
        """What stands in the place of an unstable neuron where there is none."""
        return len(self.problem.unstable)

    def begin(self, examples: list[tuple[int, Tensor, Tensor]]) -> list[_Work]:
        """Bound whole examples."""
        works = {n: _Work(n) for n, _, _ in examples}
        owners = torch.tensor([n for n, rows, _ in examples for _ in rows], dtype=torch.int64)
        if len(owners):
            everything = torch.cat([rows for _, rows, _ in examples])
            offsets = torch.cat([offset for _, _, offset in examples])
            for part in torch.arange(len(owners)).split(_BATCH):
                began = time.perf_counter()
                domains = Domains.whole(self.problem, owners[part], everything[part])
                self._sort(domains, offsets[part], works, _ROOT_STEPS)
                self._charge(works, owners[part], began)
        return list(works.values())

    def advance(self, active: list[_Work]) -> None:
        """Split the worst domains of all examples and bound the halves."""
        began = time.perf_counter()
        works = {work.example: work for work in active}
        chosen: list[tuple[int, _Leaf]] = []
        share = max(1, _BATCH // (2 * len(active)))
        for work in active:
            count = min(share, len(work.leaves))
            chosen += [(work.example, heapq.heappop(work.leaves)) for _ in range(count)]
        parents, candidates, sizes = self._stack(chosen)
        offsets = torch.tensor([leaf.offset for _, leaf in chosen], dtype=parents.rows.dtype)
        best = self._choose(parents, candidates, sizes)
        neuron, unit = (t.gather(1, best.unsqueeze(1)) for t in (candidates, sizes))
        children = _halves(parents, neuron, unit)
        self._sort(children, offsets.repeat(2), works, _STEPS)
        self._charge(works, parents.example, began)

    def _choose(self, parents: Domains, candidates: Tensor, sizes: Tensor) -> Tensor:
        """``(M,)`` which candidate to split at."""
        count = candidates.shape[1]
        if count == 1:
            return torch.zeros(len(parents), dtype=torch.int64)
        repeated = parents.take(torch.arange(len(parents)).repeat_interleave(count))
        halves = _halves(repeated, candidates.reshape(-1, 1), sizes.reshape(-1, 1))
        parts = torch.arange(len(halves)).split(2 * _BATCH)
        found = torch.cat([quick_bounds(self.problem, halves.take(part)) for part in parts])
        low, high = found.unflatten(0, (2, len(parents), count))
        # A candidate that is none, where neurons run out, must not win.
        worse = torch.minimum(low, high).masked_fill(candidates >= self._none, -torch.inf)
        return (worse + 1e-3 * torch.maximum(low, high).clamp(max=0)).argmax(1)

    def _sort(self, domains: Domains, offsets: Tensor, works: dict[int, _Work], steps: int) -> None:
        """Bound domains; drop what is proved, try what might be a counterexample, and keep the rest."""
        found = bound_domains(self.problem, domains, steps, enough=float((self.room.max() - offsets).max()))
        bound = found.bound + offsets
        done = bound > self.room[domains.example]
        near = ((bound > 0) & ~done).nonzero()[:, 0]
        if len(near):
            done[near] = self._precisely(found.domains.take(near), offsets[near])
        self._try(found, offsets, works)
        candidates, sizes = self._candidates(found)
        for place in range(len(domains)):
            work = works[int(domains.example[place])]
            work.domains += 1
            value = float(bound[place])
            if bool(done[place]):
                work.proved = min(work.proved, value)
            elif int(candidates[place, 0]) >= self._none:
                work.stuck = min(work.stuck, value)
            else:
                reached = found.domains
                leaf = _Leaf(
                    value, next(self.order), reached.rows[place], float(offsets[place]), reached.split[place],
                    reached.sign[place], reached.unit[place], reached.multiplier[place], reached.slopes[place].half(),
                    candidates[place], sizes[place],
                )  # fmt: skip
                heapq.heappush(work.leaves, leaf)

    def _try(self, found: Found, offsets: Tensor, works: dict[int, _Work]) -> None:
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

    def _precisely(self, domains: Domains, offsets: Tensor) -> Tensor:
        """Whether bounds that rounding could have made positive are so in float64."""
        wide = Domains(*(v.double() if v.is_floating_point() else v for v in vars(domains).values()))
        room = self.room[domains.example].double() * 2.0**-29
        return quick_bounds(self.precise, wide) + offsets.double() > room

    def _candidates(self, found: Found) -> tuple[Tensor, Tensor]:
        """``(M, k)`` the unstable neurons whose planes lose most, and the sizes of their coefficients."""
        lower, upper = signed_ends(self.problem, found.domains)
        free = (lower < 0) & (upper > 0)
        coefficients, slopes = found.coefficients, found.domains.slopes
        shift = -lower * upper / (upper - lower).clamp_min(torch.finfo(upper.dtype).tiny)
        below = coefficients.clamp_min(0) * torch.minimum(-lower * slopes, upper * (1 - slopes))
        score = (-coefficients.clamp_max(0) * shift + below).masked_fill(~free, -1)
        # A neuron that the bound does not depend on is better than none.
        score = score + free * 1e-9 * (upper - lower)
        if not self._none:
            nothing = score.new_zeros(len(score), 1)
            return nothing.long(), nothing
        best = score.topk(min(_CANDIDATES, self._none), dim=1)
        none = best.values < 0
        sizes = coefficients.gather(1, best.indices).abs().clamp_min(1e-6)
        return best.indices.masked_fill(none, self._none), sizes.masked_fill(none, 0)

    def _stack(self, chosen: list[tuple[int, _Leaf]]) -> tuple[Domains, Tensor, Tensor]:
        leaves = [leaf for _, leaf in chosen]
        depth = max(len(leaf.split) for leaf in leaves)

        def padded(name: str, value: float) -> Tensor:
            parts = [getattr(leaf, name) for leaf in leaves]
            return torch.stack([torch.nn.functional.pad(part, (0, depth - len(part)), value=value) for part in parts])

        rows = torch.stack([leaf.rows for leaf in leaves])
        domains = Domains(
            torch.tensor([example for example, _ in chosen]),
            rows,
            padded("split", self._none),
            padded("sign", 1),
            padded("unit", 0),
            padded("multiplier", 0),
            torch.stack([leaf.slopes for leaf in leaves]).to(rows.dtype),
        )
        return domains, torch.stack([leaf.candidates for leaf in leaves]), torch.stack([leaf.sizes for leaf in leaves])

    def _charge(self, works: dict[int, _Work], examples: Tensor, began: float) -> None:
        """Share the time since then among the examples, each by its domains."""
        each = (time.perf_counter() - began) / max(1, len(examples))
        for example in examples.tolist():
            works[example].seconds += each


def _halves(parents: Domains, neuron: Tensor, unit: Tensor) -> Domains:
    """Each domain twice, first with its neuron, ``(M, 1)``, at least 0 and then with it at most 0."""
    sign = torch.cat([torch.ones_like(unit), -torch.ones_like(unit)])
    twice = parents.take(torch.arange(len(parents)).repeat(2))
    return Domains(
        twice.example,
        twice.rows,
        torch.cat([twice.split, neuron.repeat(2, 1)], 1),
        torch.cat([twice.sign, sign], 1),
        torch.cat([twice.unit, unit.repeat(2, 1)], 1),
        torch.cat([twice.multiplier, torch.zeros_like(sign)], 1),
        twice.slopes,
    )
