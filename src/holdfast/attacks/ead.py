"""The elastic-net attack."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import keep, objective, refine, search_constant
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, each

__all__ = ["EAD"]

_PROGRESS = 0.9999


@dataclass(frozen=True)
class _State:
    z: Tensor  # where to look next: the slack point and the shrunk one in turn
    point: Tensor  # the shrunk point
    before: Tensor  # the one before it
    looking: Tensor  # whether the next look is at the shrunk point, for the verdict alone
    inner: Tensor  # steps made this round
    round: Tensor
    constant: Tensor
    lower: Tensor  # bounds of the constant
    upper: Tensor
    hit: Tensor  # whether a shrunk point fooled the model this round
    stalled: Tensor  # whether progress had stopped when it was last checked
    checked: Tensor  # the loss then
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    refined: Tensor  # looks of the refinement made


@dataclass(frozen=True)
class EAD:
    """The elastic-net attack in L1: shrinkage steps on ``c max(-margin, 0) + |z|_2^2 + beta |z|_1``, accelerated.

    Chen, Sharma, Zhang, Yi and Hsieh, "EAD: elastic-net attacks to deep neural networks via adversarial examples",
    AAAI 2018, arXiv:1709.04114, algorithm 1 as the authors' code runs it, with FISTA's momentum, steps that fall with
    the square root, no confidence, and a binary search over ``c``. Of the points found the nearest in L1 counts. A
    round that has stalled is ended early for each row alone, once the model is fooled. Added to the paper: the
    refinement at the end.

    Costs at most ``2 * binary_search_steps * steps + refine`` forwards, a gradient and a verdict a step, and
    ``binary_search_steps * steps + refine - 1`` backwards.

    Parameters
    ----------
    steps : int
        Steps a round.
    binary_search_steps : int
        Rounds, each with another ``c``.
    step_size : float
        The first step.
    beta : float
        The weight of the L1 norm; changes below it are undone at every step.
    initial_constant : float
        The first ``c``: it grows tenfold until the model is fooled, and is bisected then.
    abort_early : bool
        End a round that fooled the model when a tenth of its steps has brought nothing more.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``; 0 for the published attack.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is not L1.
    """

    steps: int = 1000
    binary_search_steps: int = 9
    step_size: float = 0.01
    beta: float = 1e-2
    initial_constant: float = 1e-3
    abort_early: bool = True
    refine: int = 20
    name: ClassVar[str] = "ead"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if not min(self.steps, self.binary_search_steps, self.step_size, self.beta, self.initial_constant) > 0:
            raise SettingError(f"ead: every number must be positive, and refine at least 0, got {self}")
        if self.refine < 0:
            raise SettingError(f"ead: refine must be at least 0, got {self.refine}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball("ead", problem.threat, "fmn", ("l1",))
        zero, count = torch.zeros_like(problem.x), torch.zeros_like(problem.rows.index)
        no, low = torch.zeros_like(problem.rows.found), problem.x.new_zeros(len(problem))
        none = low + torch.inf
        return _State(
            z=zero,
            point=zero,
            before=zero,
            looking=no,
            inner=count,
            round=count,
            constant=low + self.initial_constant,
            lower=low,
            upper=none,
            hit=no,
            stalled=no,
            checked=none,
            best=zero,
            length=none,
            candidate=zero + torch.inf,
            refined=count,
        )

    def step(self, problem: Problem, state: _State) -> _State:
        x, searching = problem.x, state.round < self.binary_search_steps
        age = torch.where(searching, -2, state.refined)
        aims = objective(problem, state.length, age, self.refine, problem.objective("margin"))
        wanted = (searching | (state.refined + 1 < self.refine)) & ~state.looking
        answer = problem.gradient(state.z, aims, needed=wanted)
        best, length = keep(problem, state.z, state.best, state.length)
        sloping, judging = searching & ~state.looking, searching & state.looking

        # At the slack point: a step, shrunk; it is looked at next.
        loss = state.z.square().sum(each(x)) - state.constant * answer.values.clamp_max(0)
        check = sloping & (state.inner % max(self.steps // 10, 1) == 0)
        stalled = torch.where(check, loss > _PROGRESS * state.checked, state.stalled)
        shrunk = self._shrunk(problem, state, answer.grad * column(answer.values < 0, x))
        point = torch.where(column(sloping, x), shrunk, state.point)
        before = torch.where(column(sloping, x), state.point, state.before)

        # At the shrunk point: a verdict, and the next slack point.
        hit = state.hit | (judging & problem.fooled)
        over = judging & ((state.inner + 1 == self.steps) | (stalled & hit & self.abort_early))
        momentum = column(state.inner / (state.inner + 3.0), x).to(x.dtype)
        slack = self._boxed(problem, point + momentum * (point - before))
        constant, lower, upper = search_constant(state.constant, state.lower, state.upper, hit, over)
        count = state.round + over
        moved = torch.where(column(sloping, x), point, torch.where(column(over, x), 0, slack))
        age = torch.where(over & (count == self.binary_search_steps), -1, age)
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(
            z=z,
            point=torch.where(column(over, x), 0, point),
            before=before,
            looking=sloping,
            inner=torch.where(over, 0, state.inner + judging),
            round=count,
            constant=constant,
            lower=lower,
            upper=upper,
            hit=hit & ~over,
            stalled=stalled & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, state.checked)),
            best=best,
            length=length,
            candidate=candidate,
            refined=state.refined + ~searching,
        )

    def done(self, state: _State) -> Tensor:
        return (state.round >= self.binary_search_steps) & (state.refined >= self.refine)

    def _shrunk(self, problem: Problem, state: _State, grad: Tensor) -> Tensor:
        """The slack point after a gradient step on the smooth part, each change shrunk by beta, inside the box."""
        size = self.step_size * (1 - state.inner / self.steps).sqrt()
        slope = 2 * state.z - column(state.constant, grad) * grad
        moved = state.z - column(size, grad).to(grad.dtype) * slope
        return self._boxed(problem, moved.sign() * (moved.abs() - self.beta).clamp_min(0))

    @staticmethod
    def _boxed(problem: Problem, z: Tensor) -> Tensor:
        return z.clamp(*needs_ball("ead", problem.threat, "fmn", ("l1",)).box.around(problem.x))
