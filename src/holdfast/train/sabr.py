"""Certified training with intervals of small boxes."""

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

__all__ = ["SABR"]


@dataclass(frozen=True)
class SABR:
    """``kappa loss(f(c), y) + (1 - kappa) loss(worst logits, y)``, with what is worst in a small set around ``c``.

    Müller, Eckert, Fischer and Vechev, "Certified training: small boxes are all you need", ICLR 2023,
    arXiv:2210.04871, with the loss at the centre ``c`` in place of the clean one in IBP. The set has ``ratio`` times
    the budget, and its centre is where an ascent ends, drawn towards the clean input until the small set lies within
    the whole one. Between adversarial training (``ratio`` 0) and IBP (``ratio`` 1) networks are more accurate and
    harder to prove: certify them with branch and bound. The weight of the first loss falls from 1 to ``kappa`` as the
    budget grows, which it has to do slowly: give the recipe a ``warmup``.

    Batch normalisation takes the statistics of the centres, in the bounds too; dropout is left out of the bounds. A
    step costs ``steps + 1`` forward and backward passes, and the bounds another two of each.

    Parameters
    ----------
    threat : Ball
        The set to be proved robust against.
    ratio : float
        The small set's part of the budget.
    kappa : float
        The weight of the loss at the centre when the whole budget is in force.
    steps, step_size
        Of the ascent, as :class:`~holdfast.train.PGDTraining` takes them.
    """

    threat: Ball
    ratio: float = 0.4
    kappa: float = 0.0
    steps: int = 2
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "certified"

    def __post_init__(self) -> None:
        check_ball("sabr", self.threat)
        if self.threat.norm == "l0":
            raise SettingError("sabr: an L0 budget of whole coordinates has no small part; choose linf, l2 or l1")
        if not (0 <= self.ratio <= 1 and 0 <= self.kappa <= 1):
            raise SettingError(f"sabr: ratio and kappa must lie between 0 and 1, got {self.ratio} and {self.kappa}")
        PGDTraining(self.threat, self.steps, self.step_size)

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return PGDTraining(self.threat, self.steps, self.step_size).perturb(query, x, y, step)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        rest = threat.scaled(1 - self.ratio)
        centre = rest.apply(x, rest.project(x_adv - x, x))
        logits, statistics = observed(model, centre)
        worst = interval_logits(model, Region.around(threat.scaled(self.ratio), centre), y, statistics)
        return mixed_loss(self.kappa, logits, worst, y, step)
