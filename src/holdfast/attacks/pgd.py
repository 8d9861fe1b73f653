"""Projected gradient ascent."""

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

__all__ = ["PGD"]


@dataclass(frozen=True)
class _State:
    z: Tensor
    size: Tensor  # (N,) length of a step
    iteration: Tensor


@dataclass(frozen=True)
class PGD:
    """Repeated steps of fixed length, each projected back into the set.

    ``z <- project(z + step_size * steepest(grad))``. In L1 and L0, where the steepest direction is a single coordinate,
    a step spends its length on the best few coordinates that the box still lets move; in L0, of the coordinates then
    changed those that gain most stay. Every iterate counts, not only the last.

    Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR
    2018, arXiv:1706.06083, section 2.1. Costs ``steps + 1`` forwards and ``steps`` backwards a run.

    Parameters
    ----------
    steps : int
        Gradient steps a run.
    step_size : float, optional
        Length of a step in the units of the budget; ``2.5 * eps / steps`` by default, enough to cross the set.
    restarts : int
        Runs for an example that stays unbroken.
    random_start : bool
        Start each run at a random point of the set; the clean input otherwise.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number is not positive, or restarts would all start from the same point.
    """

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    objective: ObjectiveName = "ce"
    name: ClassVar[str] = "pgd"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.restarts < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"pgd: steps, restarts and step_size must be positive, got {self}")
        if self.restarts > 1 and not self.random_start:
            raise SettingError("pgd: restarts without a random start would repeat one run; set random_start=True")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> _State:
        needs_climbing(self.name, problem.threat)
        if self.random_start:
            z = problem.threat.sample(problem.x, problem.draws(problem.rows.run))
        else:
            z = problem.threat.nothing(problem.x)
        budget = problem.threat.budget(problem.x)
        size = 2.5 / self.steps * budget if self.step_size is None else torch.full_like(budget, self.step_size)
        return _State(z, size, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        # The last iterate is only looked at.
        climbing = state.iteration < self.steps
        answer = problem.gradient(state.z, problem.objective(self.objective), needed=climbing)
        z = problem.climbable.ascend(state.z, problem.x, answer.grad, state.size)
        return _State(z, state.size, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > self.steps
