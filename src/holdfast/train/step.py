"""What a method is told of a training step besides the batch."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.threats import Threat

__all__ = ["Step"]


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
    """

    number: int
    seed: int
    index: Tensor
    share: float | Tensor = 1.0
    label_smoothing: float = 0.0
    memory: dict[str, Tensor] = field(default_factory=dict)

    def draws(self, lane: int = 0) -> Draws:
        """The examples' own random numbers in this step, and others for another ``lane``."""
        return Draws(self.seed, self.index, lane, self.number)

    def around(self, threat: Threat, x: Tensor) -> Threat:
        """The threat at these examples, with the budgets that are in force."""
        return threat.at(self.index).scaled(self.share).near(x)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """``(N,)`` the loss that is minimised at logits ``(N, K)``, with the smoothing of labels in force."""
        return functional.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)
