"""Adversarial training with one step from a random start."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from holdfast.attacks import climb
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["FGSMRS"]


@dataclass(frozen=True)
class FGSMRS:
    """Mean cross-entropy after one projected step from a random point of the set.

    Wong, Rice and Kolter, "Fast is better than free", ICLR 2020, arXiv:2001.03994, algorithm 3. An example whose
    gradient is 0 stays at its random start. Large budgets, long training and steps of 2 budgets lead to the failure of
    :class:`FGSMTraining`. A step costs 2 forward and backward passes.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    step_size : float
        Of the step, in units of the budget.

    Raises
    ------
    SettingError
        When the step has no length.
    """

    threat: Ball
    step_size: float = 1.25
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("fgsm-rs", self.threat, "worst-of-k")
        if not self.step_size > 0:
            raise SettingError(f"fgsm-rs: step_size must be positive, got {self.step_size}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        z = threat.sample(x, step.draws())
        size = self.step_size * threat.budget(x)
        return threat.apply(x, climb(query, threat, x, z, partial(cross_entropy, y=y), steps=1, step_size=size))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
