"""FGSM training that keeps the loss locally linear."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Ball
from holdfast.train.fgsm import FGSMTraining
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["GradAlign"]


@dataclass(frozen=True)
class GradAlign:
    """FGSM training with a penalty ``weight * mean(1 - cos(g(x), g(x + u)))`` on gradients that turn within the set.

    Andriushchenko and Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020,
    arXiv:2007.02617, section 5: ``g`` is the input gradient of the cross-entropy and ``u`` a random point of the set.
    As in the authors' training with FGSM, ``g(x)`` is a constant and only ``g(x + u)`` is differentiated. Examples
    where either gradient is 0 have no angle and are left out of the mean. The penalty is computed in the precision of
    the parameters, whatever that of the training.

    A step costs 4 forward passes and 5 backward passes, one of them through another: a pass each way for the
    perturbation, for ``g(x)``, for ``g(x + u)`` and for the loss, and the one that differentiates ``g(x + u)``. Batch
    normalisation learns from three batches: the clean, the random and the perturbed one.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    weight : float
        Of the penalty. The authors' on CIFAR-10 grows with the L-infinity budget: 0.063, 0.2, 0.632, 2 at 4, 8, 12 and
        16 of 255.

    Raises
    ------
    SettingError
        When the weight is negative.
    """

    threat: Ball
    weight: float = 0.2
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise SettingError(f"gradalign: weight must not be negative, got {self.weight}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return FGSMTraining(self.threat).perturb(query, x, y, step)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        near = threat.apply(x, threat.sample(x, step.draws()))
        with torch.autocast(x.device.type, enabled=False):
            here = _input_gradient(model, x, y, differentiable=False)
            penalty = _misalignment(here, _input_gradient(model, near, y, differentiable=True))
        return step.cross_entropy(model(x_adv), y).mean() + self.weight * penalty


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, *, differentiable: bool) -> Tensor:
    inputs = x.detach().requires_grad_()
    values = cross_entropy(model(inputs), y)
    (grad,) = torch.autograd.grad(values.sum(), inputs, create_graph=differentiable)
    return grad


def _misalignment(a: Tensor, b: Tensor) -> Tensor:
    """The mean of ``1 - cos`` over the rows where both are not 0; 0 where there are none."""
    a, b = a.flatten(1), b.flatten(1)
    turned = (a.detach() != 0).any(1) & (b.detach() != 0).any(1)
    cosines = (_direction(a[turned]) * _direction(b[turned])).sum(1)
    return (1 - cosines).sum() / turned.sum().clamp_min(1)


def _direction(rows: Tensor) -> Tensor:
    # Gradients of confident examples are so short that their squares would vanish, or that a floor would outweigh them.
    scaled = rows / rows.detach().abs().amax(1, keepdim=True)
    return scaled / scaled.square().sum(1, keepdim=True).sqrt()
