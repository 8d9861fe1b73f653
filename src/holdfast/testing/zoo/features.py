"""What a network computes before its last layer."""

import torch
from torch import Tensor, nn

__all__ = ["Features"]


class Features(nn.Module):
    """``(N, F)`` what reaches the last linear layer of a network; its logits where it has no such layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.last = next((name for name, layer in reversed([*net.named_modules()]) if isinstance(layer, nn.Linear)), "")

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, of one pass."""
        kept: list[Tensor] = []
        layer = self.net.get_submodule(self.last)
        handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            logits = self.net(x)
        finally:
            handle.remove()
        return (kept[-1].flatten(1) if self.last else logits), logits

    @torch.no_grad()
    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and predicted classes of examples, to fit something to."""
        features, logits = self.both(x)
        return features.clone(), logits.argmax(1)
