"""Projected gradient ascent with momentum, its step size annealed to 0."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from holdfast.attacks.targets import pick_target, runs_of
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_climbing
from holdfast.threats.norm import column

__all__ = ["AnnealedPGD"]

_MOMENTUM = 0.75  # the share of the new step in a move, as in APGD

Start = Literal["clean", "random", "best"]


@dataclass(frozen=True)
class _State:
    z: Tensor
    last: Tensor  # the point before z
    size: Tensor  # (N,) length of the first step
    target: Tensor | None
    iteration: Tensor


@dataclass(frozen=True)
class AnnealedPGD:
    """Few steps, each as useful as can be: APGD's move, with a step that follows half a cosine from large to 0.

    For runs too short for APGD's windows to find a step size. The annealing is that of
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, arXiv:1608.03983,
    equation 5, the momentum that of :class:`APGD`. It is the workhorse of the protocol ``fast``.

    Costs ``steps + 1`` forwards and ``steps`` backwards a run.

    Parameters
    ----------
    steps : int
        Gradient steps a run.
    step_size : float
        Length of the first step, as a multiple of the budget.
    restarts : int
        Runs an example that stays unbroken, a target.
    start : str
        Where the first run (or the first run towards each target) starts: ``"clean"``, ``"random"`` or ``"best"``, the
        best choice that the stage has seen. Restarts are random.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    targets : int
        0 raises the objective away from the label. Otherwise a run steers towards one of the ``targets`` classes that
        rank next to the label in the clean logits (at most K - 1), and any wrong class is success.

    Raises
    ------
    SettingError
        When a number makes no sense.
    """

    steps: int = 10
    step_size: float = 2.0
    restarts: int = 1
    start: Start = "clean"
    objective: ObjectiveName = "margin"
    targets: int = 0
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, "annealed-pgd")
        if self.steps < 1 or self.restarts < 1 or self.targets < 0 or not self.step_size > 0:
            raise SettingError(
                f"annealed-pgd: steps, step_size and restarts must be positive, targets >= 0: got {self}"
            )
        if self.start not in get_args(Start):
            raise SettingError(f"annealed-pgd: start is one of {', '.join(get_args(Start))}, not {self.start!r}")

    @property
    def name(self) -> str:
        return "annealed-pgd" + ("-t" if self.targets else "")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * runs_of(rows, self.targets)

    def init(self, problem: Problem) -> _State:
        needs_climbing(self.name, problem.threat)
        z = self._start(problem)
        return _State(
            z=z,
            last=z,
            size=self.step_size * problem.threat.budget(problem.x),
            target=pick_target(problem, self.targets),
            iteration=torch.zeros_like(problem.rows.index),
        )

    def _start(self, problem: Problem) -> Tensor:
        rows, x = problem.rows, problem.x
        first = problem.threat.nothing(x)
        if self.start == "best":
            first = torch.where(column(rows.value == -torch.inf, first), first, rows.best)
        restart = rows.run >= (runs_of(rows, self.targets) if len(rows) and rows.clean_logits is not None else 1)
        random = restart if self.start != "random" else torch.ones_like(restart)
        if not bool(random.any()):
            return first
        return torch.where(column(random, first), problem.threat.sample(x, problem.draws(rows.run)), first)

    def step(self, problem: Problem, state: _State) -> _State:
        # The last iterate is only looked at.
        climbing = state.iteration < self.steps
        answer = problem.gradient(state.z, problem.objective(self.objective, state.target), needed=climbing)
        threat, x = problem.climbable, problem.x
        share = (1 + torch.cos(torch.pi * state.iteration / self.steps)) / 2
        ahead = threat.ascend(state.z, x, answer.grad, state.size * share.to(state.size.dtype))
        moved = _MOMENTUM * ahead + (1 - _MOMENTUM) * (2 * state.z - state.last)
        z = torch.where(column(state.iteration == 0, ahead), ahead, threat.retract(moved, x))
        return replace(state, z=z, last=state.z, iteration=state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps
