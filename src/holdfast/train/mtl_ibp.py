"""Certified training with an adversarial loss and a bound of it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.certify import Region
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.train.bounds import check_ball, interval_logits, mixed_loss, observed
from holdfast.train.method import Criterion
from holdfast.train.pgd import PGDTraining
from holdfast.train.step import Step

__all__ = ["MTLIBP"]


@dataclass(frozen=True)
class MTLIBP:
    """``(1 - alpha) loss(f(x_adv), y) + alpha loss(worst logits, y)``: a lower and an upper bound of the worst loss.

    De Palma, Bunel, Dvijotham, Kumar, Stanforth and Lomuscio, "Expressive losses for verified robustness via convex
    combinations", ICLR 2024, arXiv:2305.13991. Small ``alpha`` are enough to make networks provable by
    branch and bound, and cost less accuracy than IBP. The weight of the bound grows from 0 to ``alpha`` as the budget
    does, which has to be slow: give the recipe a ``warmup``.

    Batch normalisation takes the statistics of the adversarial batch, in the bounds too; dropout is left out of the
    bounds. A step costs ``steps + 1`` forward and backward passes, and the bounds another two of each.

    Parameters
    ----------
    threat : Ball
        The set to be proved robust against.
    alpha : float
        The weight of the bound when the whole budget is in force.
    steps, step_size
        Of the ascent, as :class:`~holdfast.train.PGDTraining` takes them.
    """

    threat: Ball
    alpha: float = 0.1
    steps: int = 2
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "certified"

    def __post_init__(self) -> None:
        check_ball("mtl-ibp", self.threat)
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"mtl-ibp: alpha must lie between 0 and 1, got {self.alpha}")
        PGDTraining(self.threat, self.steps, self.step_size)

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return PGDTraining(self.threat, self.steps, self.step_size).perturb(query, x, y, step)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        logits, statistics = observed(model, x_adv)
        worst = interval_logits(model, Region.around(step.around(self.threat, x), x), y, statistics)
        return mixed_loss(1 - self.alpha, logits, worst, y, step)
