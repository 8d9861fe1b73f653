"""The basic iterative method, also known as iterative FGSM."""

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

__all__ = ["BIM"]


@dataclass(frozen=True)
class _State:
    z: Tensor
    size: Tensor  # (N,) length of a step
    iteration: Tensor


@dataclass(frozen=True)
class BIM:
    """FGSM in many small steps from the clean input, clipped to the set after each.

    Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world", ICLR 2017 workshop,
    arXiv:1607.02533, section 2.2; in any norm by the threat's own steepest steps. It is PGD without its random start,
    in steps that together just span the budget. Costs ``steps + 1`` forwards and ``steps`` backwards.

    Parameters
    ----------
    steps : int
        Gradient steps.
    step_size : float, optional
        Length of a step in the units of the budget; ``eps / steps`` by default.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number is not positive.
    """

    steps: int = 10
    step_size: float | None = None
    objective: ObjectiveName = "ce"
    name: ClassVar[str] = "bim"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"bim: steps and step_size must be positive, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_climbing(self.name, problem.threat)
        budget = problem.threat.budget(problem.x)
        size = budget / self.steps if self.step_size is None else torch.full_like(budget, self.step_size)
        return _State(problem.threat.nothing(problem.x), size, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        # The last iterate is only looked at.
        climbing = state.iteration < self.steps
        answer = problem.gradient(state.z, problem.objective(self.objective), needed=climbing)
        z = problem.climbable.ascend(state.z, problem.x, answer.grad, state.size)
        return _State(z, state.size, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps
