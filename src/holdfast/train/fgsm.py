"""Adversarial training with the fast gradient sign method."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["FGSMTraining"]


@dataclass(frozen=True)
class FGSMTraining:
    """Mean cross-entropy after one step of the whole budget from the clean input.

    Goodfellow, Shlens and Szegedy, ICLR 2015, arXiv:1412.6572, section 6, without its share of clean examples. The step
    goes where the linearised loss is largest within ball and box, so on a linear model of two classes it is exact in
    every norm. On others it is the known failure: at all but small budgets the network learns to bend its loss next to
    every input, until single steps lead nowhere and they are all that it withstands (Wong, Rice and Kolter, ICLR 2020,
    arXiv:2001.03994, who name it catastrophic overfitting). The training loss falls while that happens. A step costs 2
    forward and backward passes.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    """

    threat: Ball
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("fgsm", self.threat, "worst-of-k")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        grad = query.gradient(x, partial(cross_entropy, y=y)).grad
        return threat.apply(x, threat.maximize(grad, x))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
