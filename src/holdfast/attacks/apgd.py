"""Auto-PGD: projected gradient ascent that chooses its own step size."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.targets import pick_target, runs_of
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball, needs_climbing
from holdfast.threats.norm import column

__all__ = ["APGD"]

_MOMENTUM = 0.75  # alpha of the paper: the share of the new step in a move
_RISES = 0.75  # rho: halve unless more than this share of a window's steps raised the objective


def windows(steps: int) -> tuple[int, int, int]:
    """First length, shrinkage and least length of the windows between checkpoints, as the published code rounds them.

    The paper's fractions 0.22, 0.03 and 0.06 of the number of steps (section 4.2), cut to integers of at least 1.
    """
    return max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)


@dataclass(frozen=True)
class _State:
    z: Tensor  # the point to look at next
    origin: Tensor  # the point the move to z was made from
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    last_value: Tensor
    target: Tensor | None
    size: Tensor  # step size
    iteration: Tensor  # moves made
    window: Tensor  # length of the current window
    checkpoint: Tensor  # the iteration at which it ends
    rises: Tensor  # steps of it that raised the objective
    checked_value: Tensor  # best value at the checkpoint before
    halved: Tensor  # whether the step size was halved there


@dataclass(frozen=True)
class APGD:
    """Auto-PGD in L-infinity and L2: momentum, and steps halved where progress stalls.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, arXiv:2003.01690, algorithm 1 with the two conditions of section 4.2, in the order of operations of the
    authors' code where it differs from the paper: a start on the ball's surface; ball, then box, twice a move; windows
    rounded to integers; halving also when exactly 75 % of the steps rose; no second condition at the first checkpoint;
    and after a halving the momentum is the jump back to the best point. One thing differs from that code on purpose:
    the first step of a run is compared with the objective at its start and not with 0.

    Costs ``steps + 1`` forwards and ``steps`` backwards a run (the authors' code spends one backward more, on the
    gradient of a last iterate that is never used).

    Parameters
    ----------
    steps : int
        Moves a run.
    restarts : int
        Runs an example that stays unbroken, a target.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    targets : int
        0 raises the objective away from the label. Otherwise a run steers towards one of the ``targets`` classes that
        rank next to the label in the clean logits (at most K - 1), and any wrong class is success.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is neither L-infinity nor L2.
    """

    steps: int = 100
    restarts: int = 1
    objective: ObjectiveName = "ce"
    targets: int = 0
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, "apgd")
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise SettingError(f"apgd: steps and restarts must be positive and targets at least 0, got {self}")

    @property
    def name(self) -> str:
        return f"apgd-{self.objective}" + ("-t" if self.targets else "")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * runs_of(rows, self.targets)

    def init(self, problem: Problem) -> _State:
        threat, x, draws = problem.threat, problem.x, problem.draws(problem.rows.run)
        if isinstance(threat, Ball):
            z = needs_ball("apgd", threat, "pgd", ("linf", "l2")).sample_boundary(x, draws)
        else:
            z = needs_climbing("apgd", threat).sample(x, draws)
        zero, low = torch.zeros_like(problem.rows.index), x.new_full((len(x),), -torch.inf)
        first, _, _ = windows(self.steps)
        return _State(
            z=z,
            origin=z,
            best=z,
            best_grad=torch.zeros_like(z),
            best_value=low,
            last_value=low,
            target=pick_target(problem, self.targets),
            size=2 * threat.budget(x),
            iteration=zero,
            window=zero + first,
            checkpoint=zero + first,
            rises=zero,
            checked_value=low,
            halved=torch.ones_like(zero, dtype=torch.bool),
        )

    def step(self, problem: Problem, state: _State) -> _State:
        start = state.iteration == 0
        answer = problem.gradient(
            state.z, problem.objective(self.objective, state.target), needed=state.iteration < self.steps
        )
        improved = answer.values > state.best_value
        state = replace(
            state,
            best=overlay(state.best, state.z, improved),
            best_grad=overlay(state.best_grad, answer.grad, improved),
            best_value=torch.where(improved, answer.values, state.best_value),
            rises=state.rises + ((answer.values > state.last_value) & ~start),
            last_value=answer.values,
            checked_value=torch.where(start, answer.values, state.checked_value),
        )
        halve = torch.zeros_like(start)
        due = state.iteration == state.checkpoint
        if bool(due.any()):
            state, halve = self._check(state, due)
        base = overlay(state.z, state.best, halve)
        grad = overlay(answer.grad, state.best_grad, halve)
        z = self._move(problem, state, base, grad)
        return replace(state, z=z, origin=base, iteration=state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps

    def _check(self, state: _State, due: Tensor) -> tuple[_State, Tensor]:
        """End the window of the rows that are due; returns the new state and which rows restart from their best."""
        stalled = state.rises <= _RISES * state.window
        no_better = ~state.halved & (state.best_value <= state.checked_value)
        halve = due & (stalled | no_better)
        _, shrink, least = windows(self.steps)
        window = torch.where(due, (state.window - shrink).clamp_min(least), state.window)
        state = replace(
            state,
            size=torch.where(halve, state.size / 2, state.size),
            window=window,
            checkpoint=torch.where(due, state.checkpoint + window, state.checkpoint),
            rises=torch.where(due, 0, state.rises),
            checked_value=torch.where(due, state.best_value, state.checked_value),
            halved=torch.where(due, halve, state.halved),
        )
        return state, halve

    def _move(self, problem: Problem, state: _State, base: Tensor, grad: Tensor) -> Tensor:
        threat, x = problem.climbable, problem.x
        if isinstance(threat, Ball):  # as published: onto the ball first, then the box
            ahead = threat.retract(base + column(state.size, base) * threat.steepest(grad), x)
        else:
            ahead = threat.ascend(base, x, grad, state.size)
        share = column(torch.where(state.iteration == 0, 1.0, _MOMENTUM), base).to(base.dtype)
        return threat.retract(base + share * (ahead - base) + (1 - share) * (base - state.origin), x)
