"""Adversarial training with one step from a noisy input."""

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

__all__ = ["NFGSM"]


@dataclass(frozen=True)
class NFGSM:
    """Mean cross-entropy after one step from a noisy input, with nothing projected back to the budget.

    De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez and Dokania, "Make some noise: reliable and efficient single-step
    adversarial training", NeurIPS 2022, arXiv:2202.01181, algorithm 1. The noise counts as a part of the input, so the
    step may end ``noise + step_size`` budgets away; only the box holds. Where that is not small against the range of
    inputs, as at L-infinity 0.3 on MNIST, the default noise drowns them and training fails. A step costs 2 forward and
    backward passes.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    noise : float
        Its radius, in units of the budget: it is uniform in a ball of the threat's norm.
    step_size : float
        Of the step, in units of the budget.

    Raises
    ------
    SettingError
        When noise or step have no length.
    """

    threat: Ball
    noise: float = 2.0
    step_size: float = 1.0
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("n-fgsm", self.threat, "worst-of-k")
        if not (self.noise > 0 and self.step_size > 0):
            raise SettingError(f"n-fgsm: noise and step_size must be positive, got {self.noise} and {self.step_size}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        z = threat.scaled(self.noise).sample(x, step.draws())
        # A ball that noise and step cannot leave together: nothing but the box holds them.
        wide = threat.scaled(self.noise + self.step_size)
        size = self.step_size * threat.budget(x)
        return wide.apply(x, climb(query, wide, x, z, partial(cross_entropy, y=y), steps=1, step_size=size))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
