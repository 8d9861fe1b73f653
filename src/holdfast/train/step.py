"""What a method is told of a training step besides the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.processes import ALONE
from holdfast.threats import Threat
from holdfast.threats.needs import scaled

__all__ = ["Step"]

T = TypeVar("T", bound=Threat)


@dataclass(frozen=True)
class Step:
    """One step of training.

    Parameters
    ----------
    number : int
        Steps before it.
    seed : int
        Of the training.
    index : Tensor
        ``(N,)`` the positions of the batch's examples in their data set.
    share : float or Tensor
        The part of every budget that is in force, one number or ``(N,)``: below 1 while budgets are warmed up.
    label_smoothing : float
        How much of a label's weight is spread over all classes.
    memory : dict of Tensor
        What methods carry from one step to the next, each under a key of its own. It is saved with a checkpoint.
    add : callable
        Adds tensors up over all processes, in place. Where several share a batch, each has a part of it and a loss of
        its own, and what is to depend on the whole batch goes through this. The gradients for the parameters are
        averaged without the method's doing.
    weight : float or Tensor
        What an example's cross-entropy counts for, one number or ``(N,)``.
    reach : float
        What budgets are multiplied by besides: above 1 for training against more than has to be withstood.
    """

    number: int
    seed: int
    index: Tensor
    share: float | Tensor = 1.0
    label_smoothing: float = 0.0
    memory: dict[str, Tensor] = field(default_factory=dict)
    add: Callable[[Sequence[Tensor]], None] = ALONE.add
    weight: float | Tensor = 1.0
    reach: float = 1.0

    def draws(self, lane: int = 0) -> Draws:
        """The examples' own random numbers in this step, and others for another ``lane``."""
        return Draws(self.seed, self.index, lane, self.number)

    def normal(self, x: Tensor, lane: int = 0) -> Tensor:
        """``(N, ...)`` standard normal noise for inputs ``x``, each example's own."""
        return self.draws(lane).normal(x.shape[1:].numel()).to(x.dtype).reshape(x.shape)

    def around(self, threat: T, x: Tensor) -> T:
        """The threat at these examples, with the budgets that are in force."""
        return scaled(threat.at(self.index), self.share * self.reach).near(x)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """``(N,)`` the loss that is minimised at logits ``(N, K)``: labels smoothed, and examples weighted."""
        loss = functional.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)
        return self.weight * loss
