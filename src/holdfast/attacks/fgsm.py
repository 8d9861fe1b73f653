"""The fast gradient sign method, for any norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_ball

__all__ = ["FGSM"]


@dataclass(frozen=True)
class _State:
    z: Tensor
    iteration: Tensor


@dataclass(frozen=True)
class FGSM:
    """One step from the clean input to where the linearised objective is largest.

    In L-infinity that is ``eps sign(grad)``, clipped to the box; in any norm it is the exact maximiser of
    ``<grad, z>`` over ball and box, so on a linear model FGSM is optimal.

    Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572,
    section 4. Costs 2 forwards and 1 backward an example.

    Parameters
    ----------
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    """

    objective: ObjectiveName = "ce"
    name: ClassVar[str] = "fgsm"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball(self.name, problem.threat, "pgd")
        return _State(torch.zeros_like(problem.x), torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        looking = state.iteration == 0
        answer = problem.gradient(state.z, problem.objective(self.objective), needed=looking)
        leap = problem.ball.maximize(answer.grad, problem.x)
        return _State(overlay(state.z, leap, looking), state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration > 1
