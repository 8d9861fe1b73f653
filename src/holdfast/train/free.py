"""Adversarial training for free."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["Free"]


@dataclass(frozen=True)
class Free:
    """Mean cross-entropy at a perturbation that the same backward pass then moves on.

    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor and Goldstein, "Adversarial training for free!",
    NeurIPS 2019, arXiv:1904.12843, algorithm 1. Every batch is used for several updates in a row; each backward pass
    gives the gradient for the parameters and, for an ascent step of the whole budget, that for the input, with the
    model in training mode. The perturbations start at 0, belong to the places in the batch and not to the examples, and
    stay from one batch to the next, within the budget and the box of the examples that then have those places. A step
    costs a forward and a backward pass.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    replays : int
        How many updates in a row are made with one batch.

    Raises
    ------
    SettingError
        When a batch would never be used.
    """

    threat: Ball
    replays: int = 8
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("free", self.threat, "worst-of-k")
        if self.replays < 1:
            raise SettingError(f"free: replays must be at least 1, got {self.replays}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        delta = step.memory.get("delta", torch.zeros_like(x))
        return threat.apply(x, threat.project(delta, x))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        inputs = x_adv.detach().requires_grad_()

        def ascend(grad: Tensor) -> None:
            step.memory["delta"] = threat.ascend(x_adv - x, x, grad, threat.budget(x))

        inputs.register_hook(ascend)
        return step.cross_entropy(model(inputs), y).mean()
