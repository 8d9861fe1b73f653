"""MART: adversarial training that asks more of examples which are already misclassified."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from holdfast.attacks import climb
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy, kl_divergence
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step
from holdfast.train.trades import just_off

__all__ = ["MART"]

# How far the published code keeps the logarithm of a boosted loss away from that of 0.
_ROOM = 1e-4


@dataclass(frozen=True)
class MART:
    """Boosted cross-entropy at adversarial inputs, and the divergence there, weighted by the doubt about clean ones.

    With ``p = softmax f(x)`` and ``q = softmax f(x')`` the loss is ``-log q_y - log(1 - max_{k != y} q_k) +
    beta (1 - p_y) KL(p || q)``, where ``x'`` raises the cross-entropy: Wang, Zou, Yi, Bailey, Ma and Gu, "Improving
    adversarial robustness requires revisiting misclassified examples", ICLR 2020, and the published code. The gradient
    flows through ``p`` and its weight too. Judge such a model with a margin loss: its cross-entropy flatters it. The
    ascent sees the model in evaluation mode; batch-norm statistics move twice. A step costs ``steps + 2`` forward and
    backward passes.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    beta : float
        The weight of the divergence.
    steps : int
        Of the ascent.
    step_size : float
        Of each step, in units of the budget; by default 2.5 budgets are shared among the steps.

    Raises
    ------
    SettingError
        When beta is negative, or steps or their size are not positive.
    """

    threat: Ball
    beta: float = 5.0
    steps: int = 10
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("mart", self.threat, "worst-of-k")
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"mart: steps and step_size must be positive, got {self.steps} and {self.step_size}")
        if not self.beta >= 0:
            raise SettingError(f"mart: beta must be at least 0, got {self.beta}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        size = (self.step_size or 2.5 / self.steps) * threat.budget(x)
        objective = partial(cross_entropy, y=y)
        z = climb(query, threat, x, just_off(threat, x, step), objective, steps=self.steps, step_size=size)
        return threat.apply(x, z)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        clean, worst = model(x), model(x_adv)
        label = y.unsqueeze(1)
        rival = functional.softmax(worst, 1).scatter(1, label, 0.0).max(1).values
        boosted = step.cross_entropy(worst, y) - (1 + _ROOM - rival).log()
        doubt = 1 - functional.softmax(clean, 1).gather(1, label).squeeze(1)
        return (boosted + self.beta * doubt * kl_divergence(worst, clean)).mean()
