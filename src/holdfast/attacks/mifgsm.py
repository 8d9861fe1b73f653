"""The momentum iterative fast gradient sign method."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_climbing
from holdfast.threats.norm import column, each, safe_divide

__all__ = ["MIFGSM", "gathered"]


def gathered(velocity: Tensor, grad: Tensor, decay: float) -> Tensor:
    """What is kept of the velocity, and the gradient scaled to an L1 norm of 1 (equation 6 of the paper)."""
    return decay * velocity + safe_divide(grad, column(grad.abs().sum(each(grad)), grad))


@dataclass(frozen=True)
class _State:
    z: Tensor
    velocity: Tensor
    size: Tensor  # (N,) length of a step
    iteration: Tensor


@dataclass(frozen=True)
class MIFGSM:
    """Iterative FGSM along a running sum of scaled gradients, which carries it over bumps.

    ``g <- decay g + grad / |grad|_1`` and ``z <- project(z + step_size steepest(g))`` from the clean input.

    Dong, Liao, Pang, Su, Zhu, Hu and Li, "Boosting adversarial attacks with momentum", CVPR 2018, arXiv:1710.06081,
    algorithm 1 and equation 9; in L1 and L0 by the threat's own sparse steps. Costs ``steps + 1`` forwards and
    ``steps`` backwards. For the transfer attack that the paper is best known for, see
    :class:`holdfast.attacks.transfer.Transfer`.

    Parameters
    ----------
    steps : int
        Gradient steps.
    decay : float
        How much of the velocity a step keeps; 0 makes it BIM.
    step_size : float, optional
        Length of a step in the units of the budget; ``eps / steps`` by default.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number makes no sense.
    """

    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None
    objective: ObjectiveName = "ce"
    name: ClassVar[str] = "mifgsm"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or not self.decay >= 0 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"mifgsm: steps and step_size must be positive and decay at least 0, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_climbing(self.name, problem.threat)
        budget, still = problem.threat.budget(problem.x), problem.threat.nothing(problem.x)
        size = budget / self.steps if self.step_size is None else torch.full_like(budget, self.step_size)
        return _State(still, still, size, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        # The last iterate is only looked at.
        climbing = state.iteration < self.steps
        answer = problem.gradient(state.z, problem.objective(self.objective), needed=climbing)
        velocity = gathered(state.velocity, answer.grad, self.decay)
        z = problem.climbable.ascend(state.z, problem.x, velocity, state.size)
        return _State(z, velocity, state.size, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps
