"""Adversarial training with PGD."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from holdfast.attacks import climb
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Climbable
from holdfast.threats.needs import needs_climbing
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["PGDTraining"]


@dataclass(frozen=True)
class PGDTraining:
    """Mean cross-entropy where projected gradient ascent ends, ``min E max_{z in Z(x)} loss(f(x + z), y)``.

    Madry, Makelov, Schmidt, Tsipras and Vladu, ICLR 2018, arXiv:1706.06083, equation 2.1. By Danskin's theorem the
    gradient at the inner maximiser is that of the outer objective. The ascent starts at a random point of the set and
    sees the model in evaluation mode. A step costs ``steps + 1`` forward and backward passes.

    Parameters
    ----------
    threat : Climbable
        The set to be robust against.
    steps : int
        Of the ascent.
    step_size : float
        Of each step, in units of the budget; by default 2.5 budgets are shared among the steps.
    """

    threat: Climbable
    steps: int = 7
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_climbing("pgd", self.threat)
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"pgd: steps and step_size must be positive, got {self.steps} and {self.step_size}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        size = (self.step_size or 2.5 / self.steps) * threat.budget(x)
        z = threat.sample(x, step.draws())
        objective = partial(cross_entropy, y=y)
        return threat.apply(x, climb(query, threat, x, z, objective, steps=self.steps, step_size=size))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
