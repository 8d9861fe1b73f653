"""Adversarial weight perturbation, around any method."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.train.method import Criterion, Method
from holdfast.train.step import Step

__all__ = ["AWP"]

# Keeps a gradient of 0 from being divided by its length.
_TINY = 1e-20


@dataclass(frozen=True)
class AWP:
    """Another method's loss where the weights, too, have been moved against it.

    Each weight tensor of more than one dimension goes ``gamma`` times its own length up the loss's gradient, and the
    loss there is what is minimised: Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization",
    NeurIPS 2020, arXiv:2004.05884, with the single step of the published code. Frozen tensors stay, tied ones move
    once. The loss before the move leaves batch-norm statistics and the inner method's memory alone. A step costs what
    the inner method's does, and its loss once more: a forward and a backward pass, or two for TRADES and MART.

    Parameters
    ----------
    inner : Method
        What is minimised.
    gamma : float
        The move's length in units of each tensor's own; the authors' 0.01 and 0.005, around PGD and TRADES, are for
        CIFAR-10 and 200 epochs.

    Raises
    ------
    SettingError
        When gamma is not positive.
    """

    inner: Method
    gamma: float = 0.003

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise SettingError(f"awp: gamma must be positive, got {self.gamma}")

    @property
    def replays(self) -> int:
        return self.inner.replays

    @property
    def judged_by(self) -> Criterion:
        return self.inner.judged_by

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return self.inner.perturb(query, x, y, step)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
        trial = _With(model, {name: buffer.clone() for name, buffer in model.named_buffers()})
        before = self.inner.loss(trial, x, x_adv, y, replace(step, memory=dict(step.memory)))
        grads = torch.autograd.grad(before, list(weights.values()), allow_unused=True, materialize_grads=True)
        step.add(grads)
        moved = {
            name: weight + self.gamma * _rescaled(grad, weight.detach())
            for (name, weight), grad in zip(weights.items(), grads, strict=True)
        }
        return self.inner.loss(_With(model, moved), x, x_adv, y, step)


class _With(nn.Module):
    """A network with other tensors in the place of some of its own, through which gradients reach what those are."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.tensors = model, tensors

    def forward(self, *inputs: Tensor) -> Any:
        return functional_call(self.model, self.tensors, inputs)


def _rescaled(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient, as long as the weight; 0 where it is 0."""
    factor: Tensor = weight.norm() / (grad.norm() + _TINY)
    return grad * factor
