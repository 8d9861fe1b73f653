"""What a training method is."""

from typing import Literal, Protocol

from torch import Tensor, nn

from holdfast.models.query import Query
from holdfast.train.step import Step

__all__ = ["Criterion", "Method"]

# What the best state of a run is the best at, on held-out examples.
Criterion = Literal["clean", "robust", "certified"]


class Method(Protocol):
    """Frozen settings, and the two halves of a min-max as functions of a batch.

    What a step needs beyond the batch it is told, and what a method has to remember it keeps in ``step.memory``.
    """

    @property
    def replays(self) -> int:
        """How many updates in a row are made with one batch: 1 but for free adversarial training."""
        ...

    @property
    def judged_by(self) -> Criterion:
        """By which accuracy the best state is chosen: what the method is after."""
        ...

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The inner problem: ``(N, ...)`` inputs at which the loss is taken, found by asking the model."""
        ...

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        """The outer problem: the batch's loss, a scalar, as a function of the model's parameters."""
        ...
