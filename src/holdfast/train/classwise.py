"""Budgets and weights by class, for a fairer robustness, around any method."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.train.method import Criterion, Method
from holdfast.train.step import Step

__all__ = ["ClassWise"]

# Examples of the last step and of those before, each step counting for less, that were right and that were seen.
_COUNTS, _BATCH = "classwise.counts", "classwise.batch"


@dataclass(frozen=True)
class ClassWise:
    """Another method, with smaller budgets and larger weights for the classes whose robust accuracy is low.

    Class ``c``, of robust accuracy ``r_c``, is perturbed within ``(base + r_c)`` times its budget: Wei, Wang, Guo and
    Wang, "CFA: Class-wise calibrated fair adversarial training", CVPR 2023, arXiv:2303.14460, where ``base`` is
    lambda_1. A strong class gets more than its budget, so perturbed inputs may be outside the threat. Beyond the paper,
    the class's cross-entropy is weighted by ``(1 - r_c) ** power``, relative to the mean of all classes. What else is
    in the inner method's loss, such as the divergence of TRADES, is not weighted: next to the cross-entropy it matters
    less where a class is weak, as it does in the paper. Accuracies are those on perturbed training examples, a moving
    average over steps. A step costs what the inner method's does, and a forward pass.

    Parameters
    ----------
    inner : Method
        How examples are perturbed, and what is minimised.
    base : float
        The part of the budget at which a class that is never right would be trained.
    power : float
        How much errors weigh; 0 for equal weights.
    decay : float
        Of the moving average, a step.

    Raises
    ------
    SettingError
        When base or power is negative, or decay is not from 0 to below 1.
    """

    inner: Method
    base: float = 0.5
    power: float = 0.5
    decay: float = 0.98

    def __post_init__(self) -> None:
        if not self.base >= 0 or not self.power >= 0:
            raise SettingError(f"classwise: base and power must be at least 0, got {self.base} and {self.power}")
        if not 0 <= self.decay < 1:
            raise SettingError(f"classwise: decay must be from 0 to below 1, got {self.decay}")

    @property
    def replays(self) -> int:
        return self.inner.replays

    @property
    def judged_by(self) -> Criterion:
        return self.inner.judged_by

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        x_adv = self.inner.perturb(query, x, y, self._told(step, y))
        logits = query.logits(x_adv)
        seen = functional.one_hot(y, logits.shape[1]).double()
        right = seen[logits.argmax(1) == y]
        step.memory[_BATCH] = torch.stack([right.sum(0), seen.sum(0)])
        step.add([step.memory[_BATCH]])
        return x_adv

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        loss = self.inner.loss(model, x, x_adv, y, self._told(step, y))
        # Only now: what the inner method is told must be the same in both halves of a step.
        batch = step.memory[_BATCH]
        step.memory[_COUNTS] = batch + self.decay * step.memory.get(_COUNTS, torch.zeros_like(batch))
        return loss

    def _told(self, step: Step, y: Tensor) -> Step:
        """The step with the classes' shares and weights, once there is something to know them from."""
        if _COUNTS not in step.memory:
            return step
        right, seen = step.memory[_COUNTS]
        # As if two more examples had been seen, one of them right: it matters where next to none were.
        accuracy = (right + 1) / (seen + 2)
        share = (self.base + accuracy)[y]
        weight = (1 - accuracy) ** self.power
        return replace(step, share=step.share * share, weight=step.weight * (weight / weight.mean())[y].float())
