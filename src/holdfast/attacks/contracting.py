"""Projected gradient ascent in a ball that contracts from many budgets to one."""

from dataclasses import dataclass, replace
from typing import ClassVar

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
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column

__all__ = ["ContractingPGD"]

_MOMENTUM = 0.75  # the share of the new step in a move, as in APGD
_CONTRACTING = 0.6  # of a run; the rest is spent in the budget's own ball, as APGD for L1 has it


@dataclass(frozen=True)
class _State:
    z: Tensor
    last: Tensor  # the point before z
    target: Tensor | None
    iteration: Tensor


@dataclass(frozen=True)
class ContractingPGD:
    """Come in from outside: projected gradient ascent while the ball contracts from ``radius`` budgets to one.

    Near the clean input the gradients of a network may mislead or say nothing, above all in a norm that it was not
    trained for. Far outside they point the way, and what matters there is what a smaller ball keeps. The ball contracts
    linearly over the first 60 % of the moves; steps are a multiple of its radius that follows half a cosine to 0, with
    the momentum of :class:`~holdfast.attacks.APGD`. Only what lies inside the budget counts as success.

    The contracting ball takes further, from three steps to a line, the three radii of Croce and Hein, "Mind the box:
    l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208, section 4; the annealing
    is that of :class:`~holdfast.attacks.AnnealedPGD`.

    Costs ``steps + 1`` forwards and ``steps`` backwards a run.

    Parameters
    ----------
    steps : int
        Gradient steps a run.
    radius : float
        Of the first ball, as a multiple of the budget; at least 1.
    step_size : float
        Length of the first step, as a multiple of the ball's radius.
    restarts : int
        Runs an example that stays unbroken, a target. The first starts from the clean input, the others at random
        points of the budget's ball.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    targets : int
        0 raises the objective away from the label. Otherwise a run steers towards one of the ``targets`` classes that
        rank next to the label in the clean logits (at most K - 1), and any wrong class is success.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is not a ball in L-infinity, L2 or L1.
    """

    steps: int = 60
    radius: float = 40.0
    step_size: float = 2.0
    restarts: int = 1
    objective: ObjectiveName = "ce"
    targets: int = 0
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False
    roams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, "contracting-pgd")
        if self.steps < 1 or self.restarts < 1 or self.targets < 0 or not self.step_size > 0 or not self.radius >= 1:
            raise SettingError(
                "contracting-pgd: steps, step_size and restarts must be positive, radius at least 1 and targets at "
                f"least 0, got {self}"
            )

    @property
    def name(self) -> str:
        return "contracting-pgd" + ("-t" if self.targets else "")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * runs_of(rows, self.targets)

    def init(self, problem: Problem) -> _State:
        rows, x = problem.rows, problem.x
        threat = needs_ball(self.name, problem.threat, "pgd", ("linf", "l2", "l1"))
        z = threat.nothing(x)
        restart = rows.run >= (runs_of(rows, self.targets) if len(rows) and rows.clean_logits is not None else 1)
        if bool(restart.any()):
            z = torch.where(column(restart, z), threat.sample(x, problem.draws(rows.run)), z)
        return _State(z=z, last=z, target=pick_target(problem, self.targets), iteration=torch.zeros_like(rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        # The last iterate is only looked at.
        climbing = state.iteration < self.steps
        answer = problem.gradient(state.z, problem.objective(self.objective, state.target), needed=climbing)
        x, budget = problem.x, problem.threat.budget(problem.x)
        left = (1 - (state.iteration + 1) / (_CONTRACTING * self.steps)).clamp_min(0).to(budget.dtype)
        radius = budget * (1 + (self.radius - 1) * left)
        share = (1 + torch.cos(torch.pi * state.iteration / self.steps)) / 2
        ball = replace(problem.ball, eps=radius)
        ahead = ball.ascend(state.z, x, answer.grad, self.step_size * radius * share.to(radius.dtype))
        moved = _MOMENTUM * ahead + (1 - _MOMENTUM) * (2 * state.z - state.last)
        z = torch.where(column(state.iteration == 0, ahead), ahead, ball.retract(moved, x))
        return replace(state, z=z, last=state.z, iteration=state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps
