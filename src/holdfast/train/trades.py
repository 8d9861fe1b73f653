"""TRADES: accuracy on clean inputs, and predictions that do not change around them."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from holdfast.attacks import climb
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import kl_divergence
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["TRADES", "just_off"]

# The deviation of the noise from which the published ascent starts, in units of the input.
_OFF = 1e-3


@dataclass(frozen=True)
class TRADES:
    """Cross-entropy at clean inputs, and the divergence from their predictions to the worst ones around them.

    ``min E [loss(f(x), y) + beta max_{z in Z(x)} KL(softmax f(x) || softmax f(x + z))]``: Zhang, Yu, Jiao, Xing,
    El Ghaoui and Jordan, "Theoretically principled trade-off between robustness and accuracy", ICML 2019,
    arXiv:1901.08573, and the published code, which starts the ascent a little off the clean input: on it the
    divergence has no gradient. The outer gradient flows through both predictions. The ascent sees the model in
    evaluation mode, and asks for the clean prediction once; the outer loss runs clean and adversarial inputs in two
    batches, so batch-norm statistics move twice. A step costs ``steps + 3`` forward and ``steps + 2`` backward passes.

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
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("trades", self.threat, "worst-of-k")
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"trades: steps and step_size must be positive, got {self.steps} and {self.step_size}")
        if not self.beta >= 0:
            raise SettingError(f"trades: beta must be at least 0, got {self.beta}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        size = (self.step_size or 2.5 / self.steps) * threat.budget(x)
        objective = partial(kl_divergence, clean_logits=query.logits(x))
        z = climb(query, threat, x, just_off(threat, x, step), objective, steps=self.steps, step_size=size)
        return threat.apply(x, z)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        clean, worst = model(x), model(x_adv)
        return (step.cross_entropy(clean, y) + self.beta * kl_divergence(worst, clean)).mean()


def just_off(threat: Ball, x: Tensor, step: Step) -> Tensor:
    """The published start: an admissible choice next to the clean input."""
    return threat.retract(_OFF * step.normal(x), x)
