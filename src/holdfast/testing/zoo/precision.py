"""Networks in fewer bits than those of their weights."""

import torch
from torch import Tensor, nn

__all__ = ["Lowered", "OverflowingHalf"]


class Lowered(nn.Module):
    """A network in another precision, with answers in that of its input."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.lower = net.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(self.lower))
        return logits.to(x.dtype)


class OverflowingHalf(nn.Module):
    """Logits that leave the range of half precision: some are infinite, and their differences are no numbers."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return (self.factor * logits).half().to(logits.dtype)
