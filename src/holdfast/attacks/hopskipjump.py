"""HopSkipJump: walks along the decision boundary, from predicted classes alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column

__all__ = ["HopSkipJump"]

# What a row does with its next query: look for a start, bisect towards the clean input, probe around, try a step.
_START, _BISECT, _PROBE, _STEP = range(4)


@dataclass(frozen=True)
class _State:
    z: Tensor  # the perturbation to look at next
    base: Tensor  # an adversarial one: the end of a bisection, or the boundary point that it found
    agree: Tensor  # the sum of the probes around it that were adversarial; while stepping, the direction
    total: Tensor  # the sum of all probes around it
    phase: Tensor
    looks: Tensor
    iteration: Tensor  # of the paper, from 1 when the first boundary point is found
    low: Tensor  # the bisection's bounds: a share of base in L2, a size in L-infinity
    high: Tensor
    reach: Tensor  # the distance from which the last bisection set out
    probes: Tensor  # made around base
    hits: Tensor  # of them adversarial
    size: Tensor  # length of the step


@dataclass(frozen=True)
class HopSkipJump:
    """Alternate between the boundary, an estimate of its normal from decisions, and a step along that normal.

    From a random input of another class a bisection towards the clean input finds the boundary. There, probes in
    random directions are adversarial on one side only, and their mean, less what they share, points along the normal.
    A step of ``distance / sqrt(t)`` that way, halved until it is adversarial, is followed by the next bisection.

    Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE Symposium on
    Security and Privacy 2020, arXiv:1904.02144, algorithms 1 and 2: ``probes * sqrt(t)`` probes in iteration ``t``, the
    variance-reduced estimate of equation 16, the probes' radius and the bisection's tolerance of section 4.3, and as in
    the authors' code a first radius of a tenth of the box. A bisection ends also where numbers have no middle any more.

    Costs ``queries`` forwards and never one more: a row stops wherever it then is. Where no start is found in
    ``tries`` queries it stops there, and the example counts as robust.

    Parameters
    ----------
    queries : int
        Forward passes an example.
    probes : int
        Probes in the first iteration.
    gamma : float
        Factor of tolerance and radius.
    tries : int
        Random inputs of the box that may be tried as a start.

    Raises
    ------
    SettingError
        When a number is not positive, the threat is neither L-infinity nor L2, or its box has no end.
    """

    queries: int = 5000
    probes: int = 100
    gamma: float = 1.0
    tries: int = 100
    name: ClassVar[str] = "hopskipjump"
    knowledge: ClassVar[Knowledge] = "decision"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.queries < 1 or self.probes < 1 or self.tries < 1 or not self.gamma > 0:
            raise SettingError(f"hopskipjump: queries, probes, tries and gamma must be positive, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        ball = needs_ball(self.name, problem.threat, "square or sparse-rs", ("linf", "l2"))
        if not ball.box.bounded:
            raise SettingError("hopskipjump starts from random inputs of the box: give one that is bounded")
        still, none = torch.zeros_like(problem.x), problem.x.new_zeros(len(problem))
        zero = torch.zeros_like(problem.rows.index)
        state = _State(still, still, still, still, zero, zero, zero, none, none, none, zero, zero, none)
        return replace(state, z=self._propose(problem, state))

    def step(self, problem: Problem, state: _State) -> _State:
        fooled = problem.decide(state.z)
        phase = state.phase
        probing = phase == _PROBE
        moved = state.z - state.base
        state = replace(
            state,
            looks=state.looks + 1,
            agree=torch.addcmul(state.agree, moved, column(probing & fooled, moved).to(moved.dtype)),
            total=torch.addcmul(state.total, moved, column(probing, moved).to(moved.dtype)),
            probes=state.probes + probing,
            hits=state.hits + (probing & fooled),
            size=torch.where((phase == _STEP) & ~fooled, state.size / 2, state.size),
        )
        # Three of the four phases end here for some rows; no row ends two, since each belonged to one.
        state = self._narrowed(problem, state, phase == _BISECT, fooled)
        state = self._aimed(problem, state, probing & (state.probes >= self._wanted(state)))
        state = self._landed(problem, state, fooled & ((phase == _START) | (phase == _STEP)))
        return replace(state, z=self._propose(problem, state))

    def done(self, state: _State) -> Tensor:
        return (state.looks >= self.queries) | ((state.phase == _START) & (state.looks >= self.tries))

    def _landed(self, problem: Problem, state: _State, which: Tensor) -> _State:
        """Rows at an adversarial input away from the boundary begin to bisect."""
        if not bool(which.any()):
            return state
        reach = problem.ball.length(state.z)
        return replace(
            state,
            base=overlay(state.base, state.z, which),
            phase=torch.where(which, _BISECT, state.phase),
            reach=torch.where(which, reach, state.reach),
            low=torch.where(which, 0.0, state.low),
            high=torch.where(which, reach if _linf(problem) else 1.0, state.high),
        )

    def _narrowed(self, problem: Problem, state: _State, which: Tensor, fooled: Tensor) -> _State:
        """A round of bisection; rows within the tolerance begin to probe."""
        if not bool(which.any()):
            return state
        middle = (state.low + state.high) / 2
        high = torch.where(which & fooled, middle, state.high)
        low = torch.where(which & ~fooled, middle, state.low)
        # Both bounds are shares of the distance in L2, and distances themselves in L-infinity.
        features = problem.x.shape[1:].numel()
        tolerance = self.gamma / features**2 * state.reach if _linf(problem) else self.gamma / features**1.5
        middle = (low + high) / 2
        ended = which & ((high - low <= tolerance) | (middle <= low) | (middle >= high))
        zero = torch.zeros_like(state.agree)
        return replace(
            state,
            low=low,
            high=high,
            base=overlay(state.base, _shrunk(problem, state.base, high), ended),
            phase=torch.where(ended, _PROBE, state.phase),
            iteration=state.iteration + ended,
            agree=overlay(state.agree, zero, ended),
            total=overlay(state.total, zero, ended),
            probes=torch.where(ended, 0, state.probes),
            hits=torch.where(ended, 0, state.hits),
        )

    def _aimed(self, problem: Problem, state: _State, which: Tensor) -> _State:
        """Rows with all their probes turn them into a direction and begin to step."""
        if not bool(which.any()):
            return state
        # The probes weighted by their decisions less the mean decision; where all agree, by the decisions alone.
        share = state.hits.to(state.z.dtype) / state.probes.clamp_min(1)
        weight = torch.where((share == 0) | (share == 1), 1 - share, share)
        normal = state.agree - column(weight, state.z) * state.total
        ball = problem.ball
        distance = ball.length(state.base)
        return replace(
            state,
            agree=overlay(state.agree, ball.steepest(normal), which),
            phase=torch.where(which, _STEP, state.phase),
            size=torch.where(which, distance / state.iteration.clamp_min(1).to(distance.dtype).sqrt(), state.size),
        )

    def _wanted(self, state: _State) -> Tensor:
        """Probes of the iteration."""
        return (self.probes * state.iteration.double().sqrt()).long()

    def _propose(self, problem: Problem, state: _State) -> Tensor:
        """What each row looks at next."""
        z = _shrunk(problem, state.base, (state.low + state.high) / 2)
        stepping = state.phase == _STEP
        if bool(stepping.any()):
            z = overlay(z, state.base + column(state.size, z) * state.agree, stepping)
        lower, upper = problem.ball.box.around(problem.x)
        count = problem.x.shape[1:].numel()
        starting = (state.phase == _START).nonzero()[:, 0]
        if len(starting):
            u = _draws(problem, state, starting).uniform(count).to(z.dtype).reshape(-1, *z.shape[1:])
            z = z.index_copy(0, starting, torch.lerp(lower[starting], upper[starting], u))
        probing = (state.phase == _PROBE).nonzero()[:, 0]
        if len(probing):
            draws = _draws(problem, state, probing)
            u = 2 * draws.uniform(count) - 1 if _linf(problem) else draws.normal(count)
            u = (u / torch.linalg.vector_norm(u, dim=1, keepdim=True)).to(z.dtype).reshape(-1, *z.shape[1:])
            first = 0.1 * (upper - lower).flatten(1).mean(1)
            radius = torch.where(state.iteration == 1, first, self.gamma / count * state.reach)[probing]
            z = z.index_copy(0, probing, state.base[probing] + column(radius, u) * u)
        return z.clamp(lower, upper)


def _linf(problem: Problem) -> bool:
    return problem.ball.norm == "linf"


def _draws(problem: Problem, state: _State, rows: Tensor) -> Draws:
    """Some rows' random numbers for their next query."""
    draws = problem.draws(state.looks)
    return replace(draws, index=draws.index[rows], draw=state.looks[rows])


def _shrunk(problem: Problem, base: Tensor, bound: Tensor) -> Tensor:
    """``base`` drawn towards the clean input: to a share of it in L2, to a size in L-infinity."""
    size = column(bound, base)
    return base.clamp(-size, size) if _linf(problem) else base * size
