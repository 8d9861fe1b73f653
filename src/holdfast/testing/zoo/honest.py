"""What honest networks do that may look like a defence: their gradients are true, and as good as any."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Checkpointed", "EightBit", "HandWritten", "Observed", "Standardised", "TwoViews"]


class Standardised(nn.Module):
    """Inputs standardised and put back in place, by a mean and a scale that were chosen once."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone().sub_(0.1307).div_(0.3081).mul_(0.3081).add_(0.1307)


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out: Tensor = x * x.abs()
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad: Tensor = 2 * x.abs() * grads[0]
        return grad


class HandWritten(nn.Module):
    """A custom ``autograd.Function`` whose backward is right: a signed square, a third of it added to the logits."""

    def forward(self, logits: Tensor) -> Tensor:
        square: Tensor = _Square.apply(logits / 3)  # type: ignore[no-untyped-call]
        return logits + square


class Checkpointed(nn.Module):
    """A network that is computed a second time on the way back, to save memory."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.net, x, use_reentrant=False)
        return logits


class Observed(nn.Module):
    """A network that is watched: hooks that change nothing, and statistics kept outside the graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.brightest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.brightest = max(self.brightest, float(x.detach().max()))
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: None)
        return logits


class TwoViews(nn.Module):
    """The mean of a network's answers to an image and to the same moved by a pixel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = (self.net(x) + self.net(x.roll(1, -1))) / 2
        return mean


class EightBit(nn.Module):
    """Inputs rounded to the 256 levels of images, differentiated straight through (Bengio et al. 2013)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((255 * x).round() / 255 - x).detach()
