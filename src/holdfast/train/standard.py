"""Ordinary training."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard:
    """Mean cross-entropy of the clean batch."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> Tensor:
        return functional.cross_entropy(model(x), y)
