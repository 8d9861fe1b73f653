"""Adversarial training of a smoothed classifier."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["SmoothAdv"]


@dataclass(frozen=True)
class SmoothAdv:
    """Mean cross-entropy under noise, where the smoothed classifier is attacked.

    Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck, "Provably robust deep learning via adversarially trained
    smoothed classifiers", NeurIPS 2019, arXiv:1906.04584, pseudocode 1. The ascent raises
    ``-log mean_k softmax(f(x + z + n_k))_y`` from ``z = 0`` over ``samples`` draws ``n_k`` of Gaussian noise. They stay
    the same during a step, and under them the adversarial inputs are then learned, all in one batch. A step costs
    ``samples (steps + 1)`` forward and backward passes.

    Parameters
    ----------
    threat : Ball
        What the smoothed classifier is attacked with.
    sigma : float
        The noise's deviation, in units of the input; certify with the same.
    samples : int
        Of noise, for each example.
    steps : int
        Of the ascent.
    step_size : float
        Of each step, in units of the budget; by default 2 budgets are shared among the steps, as published.

    Raises
    ------
    SettingError
        When one of the numbers is not positive.
    """

    threat: Ball
    sigma: float
    samples: int = 2
    steps: int = 2
    step_size: float | None = None
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("smoothadv", self.threat, "worst-of-k")
        if not 0 < self.sigma < math.inf:
            raise SettingError(f"smoothadv: sigma must be positive, got {self.sigma}")
        if self.samples < 1 or self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(
                f"smoothadv: samples, steps and step_size must be positive, got {self.samples}, {self.steps} and "
                f"{self.step_size}"
            )

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        size = (self.step_size or 2 / self.steps) * threat.budget(x)
        noises = self._noises(x, step)
        z = torch.zeros_like(x)
        for _ in range(self.steps):
            z = threat.ascend(z, x, _smoothed_gradient(query, threat.apply(x, z), y, noises), size)
        return threat.apply(x, z)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        logits = model((x_adv + self._noises(x, step)).flatten(0, 1))
        return torch.stack([step.cross_entropy(part, y) for part in logits.chunk(self.samples)]).mean()

    def _noises(self, x: Tensor, step: Step) -> Tensor:
        """``(samples, N, ...)`` the step's noise."""
        copies = x.unsqueeze(1).expand(-1, self.samples, *x.shape[1:])
        return self.sigma * step.normal(copies).transpose(0, 1)


def _smoothed_gradient(query: Query, x: Tensor, y: Tensor, noises: Tensor) -> Tensor:
    """``(N, ...)`` the gradient of ``-log mean_k p_k``, where ``p_k`` is the label's probability under noise ``k``.

    It is the mean of the cross-entropies' gradients with weights ``p_k``, which as a softmax never underflow.
    """
    answers = [query.gradient(x + noise, partial(cross_entropy, y=y)) for noise in noises]
    weights = (-torch.stack([answer.values for answer in answers])).softmax(0)
    grads = torch.stack([answer.grad for answer in answers])
    return (weights.reshape(*weights.shape, *[1] * (x.dim() - 1)) * grads).sum(0)
