"""Fast minimum-norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import around, keep, objective, refine, worst_length
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats import l2
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["FMN"]

_NORMS = ("linf", "l2", "l1", "l0")
_LAST_GAMMA = 0.001


@dataclass(frozen=True)
class _State:
    z: Tensor
    radius: Tensor  # (N,) of the ball that the next point lies in
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    iteration: Tensor


@dataclass(frozen=True)
class FMN:
    """Fast minimum-norm, in all four norms: gradient steps in a ball whose radius closes in on the boundary.

    Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    NeurIPS 2021, arXiv:2102.12827, algorithm 1. Until the model is first fooled the radius is the linearised distance
    to the boundary; then it shrinks by gamma while the model is fooled and grows by gamma while it is not. Steps follow
    the gradient at Euclidean length 1 in every norm. Three things are not the paper's: until the model is first fooled,
    the radius grows by gamma at least and steps cross the ball in its own norm, as those of PGD do (the published ones
    are too short for models whose gradients mislead); the projection is onto ball and box together; and there is the
    refinement at the end.

    Costs ``steps + refine`` forwards and one backward less.

    Parameters
    ----------
    steps : int
        Iterations of the published attack.
    step_size : float
        The first step; the last is a hundredth of it, with a cosine between them.
    gamma : float
        The first share by which the radius changes; the last is 0.001.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``; 0 for the published attack.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is no norm ball.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    refine: int = 20
    name: ClassVar[str] = "fmn"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.refine < 0 or not 0 < self.gamma < 1 or not self.step_size > 0:
            raise SettingError(
                f"fmn: steps and step_size must be positive, refine at least 0 and gamma within (0, 1), got {self}"
            )

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        ball = needs_ball("fmn", problem.threat, "pgd", _NORMS)
        zero, none = torch.zeros_like(problem.x), problem.x.new_full((len(problem),), torch.inf)
        radius = torch.ones_like(none) if ball.norm == "l0" else torch.zeros_like(none)
        return _State(zero, radius, zero, none, torch.full_like(zero, torch.inf), torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        age = state.iteration - self.steps
        answer = problem.gradient(
            state.z,
            objective(problem, state.length, age, self.refine, problem.objective("margin")),
            needed=age + 1 < self.refine,
        )
        best, length = keep(problem, state.z, state.best, state.length)
        cosine = (1 + (torch.pi * state.iteration.clamp_max(self.steps) / self.steps).cos()) / 2
        size = self.step_size * (0.01 + 0.99 * cosine)
        gamma = _LAST_GAMMA + (self.gamma - _LAST_GAMMA) * cosine
        if needs_ball("fmn", problem.threat, "pgd", _NORMS).norm == "l0":
            radius = self._count(problem, state.radius, length, gamma)
        else:
            distance = problem.ball.length(problem.x + state.z - problem.x)
            ahead = distance + safe_divide(answer.values.abs(), problem.ball.dual_norm(answer.grad))
            # A little past the estimate: on its own boundary a linear model may never be fooled, for rounding.
            ahead = (ahead * (1 + _LAST_GAMMA)).maximum(state.radius * (1 + gamma))
            grown = torch.where(length.isinf(), ahead, state.radius * (1 + gamma))
            radius = torch.where(problem.fooled, (state.radius * (1 - gamma)).minimum(length), grown)
        radius = radius.minimum(worst_length(problem)).to(state.radius.dtype)
        ball = around(problem, radius)
        moved = state.z + column(size, state.z).to(state.z.dtype) * l2.steepest(answer.grad)
        moved = ball.project(moved, problem.x)
        searching = length.isinf()
        if bool(searching.any()):
            crossing = ball.ascend(state.z, problem.x, answer.grad, radius)
            moved = torch.where(column(searching, moved), crossing, moved)
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(z, radius, best, length, candidate, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= self.steps + self.refine

    @staticmethod
    def _count(problem: Problem, radius: Tensor, length: Tensor, gamma: Tensor) -> Tensor:
        """The next radius in L0, where it counts coordinates and changes by at least one of them."""
        fewer = (radius - 1).minimum((radius * (1 - gamma)).floor()).minimum(length)
        more = (radius + 1).maximum((radius * (1 + gamma)).floor())
        return torch.where(problem.fooled, fewer, more).clamp_min(1)
