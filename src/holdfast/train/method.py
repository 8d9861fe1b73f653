"""What a training method is."""

from typing import Protocol

from torch import Tensor, nn

__all__ = ["Method"]


class Method(Protocol):
    """Frozen settings and one function that maps a batch to a loss."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int) -> Tensor:
        """The loss of a batch, a scalar to be minimised; ``seed`` is that of the step's random draws."""
        ...
