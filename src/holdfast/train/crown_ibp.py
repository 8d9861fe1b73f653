"""Certified training with backward bounds that intervals make cheap."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.certify import Region
from holdfast.certify.bounds.crown import interval_planes
from holdfast.certify.bounds.margins import each_interval_margin, each_margin
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.train.bounds import bounded, check_ball, mixed_loss, observed, worst_logits
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["CROWNIBP"]


@dataclass(frozen=True)
class CROWNIBP:
    """The loss of :class:`~holdfast.train.IBP` with tighter margins, ``beta CROWN-IBP + (1 - beta) IBP``.

    Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh, "Towards stable and efficient training of verifiably
    robust neural networks", ICLR 2020, arXiv:1906.06316. ``beta`` falls from 1 to its final value as the
    budget grows: backward bounds lead a network to where intervals are tight, which they are not at the start.

    Batch normalisation takes the statistics of the clean batch, in the bounds too; dropout is left out of the bounds.
    A step costs what one of IBP does, and while ``beta`` is not 0 besides about two passes each way for every class.

    Parameters
    ----------
    threat : Ball
        The set to be proved robust against.
    kappa : float
        The weight of the clean loss when the whole budget is in force.
    beta : float
        The weight of the backward bounds then.
    """

    threat: Ball
    kappa: float = 0.5
    beta: float = 0.0
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "certified"

    def __post_init__(self) -> None:
        check_ball("crown-ibp", self.threat)
        if not (0 <= self.kappa <= 1 and 0 <= self.beta <= 1):
            raise SettingError(f"crown-ibp: kappa and beta must lie between 0 and 1, got {self.kappa} and {self.beta}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        logits, statistics = observed(model, x)
        region = Region.around(step.around(self.threat, x), x)
        beta = 1 - (1 - self.beta) * torch.as_tensor(step.share, dtype=x.dtype, device=x.device).unsqueeze(-1)
        with torch.autocast(x.device.type, enabled=False):
            graph = bounded(model, x, statistics)
            bounds = interval_planes(graph, region)
            margins = each_interval_margin(graph, bounds.intervals, region, y)
            if bool(beta.any()):
                margins = torch.lerp(margins, each_margin(graph, bounds, region, y), beta)
        return mixed_loss(self.kappa, logits, worst_logits(margins, y), y, step)
