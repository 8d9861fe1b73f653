"""Certified training with interval bounds."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.certify import Region
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.train.bounds import check_ball, interval_logits, mixed_loss, observed
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["IBP"]


@dataclass(frozen=True)
class IBP:
    """``kappa loss(f(x), y) + (1 - kappa) loss(worst logits, y)``, with what intervals say is worst in the whole set.

    Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann and Kohli, "On the effectiveness of interval
    bound propagation for training verifiably robust models", arXiv:1810.12715. The weight of the clean loss
    falls from 1 to ``kappa`` as the budget grows, which it has to do slowly: give the recipe a ``warmup``. Margins are
    bounded through the last linear layers at once.

    Batch normalisation takes the statistics of the clean batch, in the bounds too; dropout is left out of the bounds.
    A step costs a forward and a backward pass, and the bounds another two of each.

    Parameters
    ----------
    threat : Ball
        The set to be proved robust against; of a ball that is no box, intervals see the smallest box around it.
    kappa : float
        The weight of the clean loss when the whole budget is in force.
    """

    threat: Ball
    kappa: float = 0.5
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "certified"

    def __post_init__(self) -> None:
        check_ball("ibp", self.threat)
        if not 0 <= self.kappa <= 1:
            raise SettingError(f"ibp: kappa must lie between 0 and 1, got {self.kappa}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        logits, statistics = observed(model, x)
        worst = interval_logits(model, Region.around(step.around(self.threat, x), x), y, statistics)
        return mixed_loss(self.kappa, logits, worst, y, step)
