"""Adversarial training with PGD."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from holdfast.attacks import PGD, maximize
from holdfast.models.query import Query
from holdfast.threats import Threat

__all__ = ["PGDTraining"]


@dataclass(frozen=True)
class PGDTraining:
    """Mean cross-entropy at the worst inputs that PGD finds, ``min E max_{z in Z(x)} loss(f(x + z), y)``.

    Madry, Makelov, Schmidt, Tsipras and Vladu, ICLR 2018, arXiv:1706.06083, equation 2.1. By Danskin's theorem the
    gradient at the inner maximiser is that of the outer objective. The inner attack sees the model in evaluation mode.

    Parameters
    ----------
    threat : Threat
        The set to be robust against.
    attack : PGD
        The inner attack; 7 steps by default.
    """

    threat: Threat
    attack: PGD = PGD(steps=7)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> Tensor:
        with Query(model, batch_size=len(x)) as query:
            x_adv = maximize(self.attack, query, self.threat, x, y, seed=seed)
        return functional.cross_entropy(model(x_adv), y)
