"""Defences whose way back is not that of their way forward.

Most are a function that makes another gradient of the true one. ``Lying(change)`` is an identity that does so, to put
before or behind a network: outputs are as they were, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Branching",
    "Detached",
    "Hooked",
    "Lying",
    "Noise",
    "Replaced",
    "Stale",
    "ThroughNumpy",
    "TwoFaced",
    "drip",
    "flipped",
    "half_flipped",
    "hashed",
    "huge",
    "mirrored",
    "not_a_number",
    "nothing",
    "ones",
    "shifted",
    "sparse",
    "tiny",
]

# The gradient to hand back, of the input and of the true one.
Change = Callable[[Tensor, Tensor], Tensor]


class _Lie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Change) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.change(x, grads[0]), None


class Lying(nn.Module):
    """An identity by a custom ``autograd.Function`` that hands another gradient back."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Lie.apply(x, self.change)  # type: ignore[no-untyped-call]
        return out


def flipped(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient with the other sign."""
    return -grad


def half_flipped(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient with the other sign in every second coordinate."""
    flat = grad.flatten(1)
    signs = 1 - 2 * (torch.arange(flat.shape[1], device=grad.device) % 2).to(grad.dtype)
    return (flat * signs).view_as(grad)


def hashed(x: Tensor, grad: Tensor) -> Tensor:
    """Signs that hang on the last digits of the input."""
    return (1e5 * x + 7.0 * torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])).sin()


def ones(x: Tensor, grad: Tensor) -> Tensor:
    """A one for every coordinate."""
    return torch.ones_like(grad)


def nothing(x: Tensor, grad: Tensor) -> Tensor:
    """A gradient of exactly 0."""
    return torch.zeros_like(grad)


def sparse(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of one coordinate in fifty, and 0 elsewhere."""
    flat = grad.flatten(1)
    return (flat * (torch.arange(flat.shape[1], device=grad.device) % 50 == 0)).view_as(grad)


def drip(x: Tensor, grad: Tensor) -> Tensor:
    """A thousandth of the gradient, under a hundred times as much of something else."""
    size = grad.flatten(1).abs().mean(1).view(-1, *[1] * (grad.dim() - 1))
    return 1e-3 * (grad + 100 * size * hashed(x, grad))


def shifted(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the coordinate three places on."""
    return grad.roll(3, -1)


def mirrored(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient in the reverse order."""
    return grad.flip(-1)


def tiny(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient, too small for most of it to be a number other than 0 (1e-43 times as large)."""
    return grad * 1e-30 * 1e-13


def huge(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient, so large that it is infinite."""
    return grad * 1e30 * 1e30


def not_a_number(x: Tensor, grad: Tensor) -> Tensor:
    """NaN for every coordinate."""
    return torch.full_like(grad, torch.nan)


class Noise:
    """Gaussian noise instead of the gradient, another at every pass back."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self, x: Tensor, grad: Tensor) -> Tensor:
        self.calls += 1
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.calls)
        return torch.randn(grad.shape, generator=generator).to(grad)


class Replaced(nn.Module):
    """A network behind a module that is not differentiated: the gradient of its logits is changed instead."""

    def __init__(self, net: nn.Module, last: nn.Module, change: Change) -> None:
        super().__init__()
        self.net, self.last, self.change = net, last, Lying(change)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        straight = self.change(logits)
        exact: Tensor = self.last(logits.detach())
        answer: Tensor = exact + (straight - straight.detach())
        return answer


class Stale:
    """The gradient of the pass before, where that was of the same shape; 0 at the first."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, x: Tensor, grad: Tensor) -> Tensor:
        last, self.last = self.last, grad.clone()
        return torch.zeros_like(grad) if last is None or last.shape != grad.shape else last


class Detached(nn.Module):
    """An input cut from the graph; ``connected``: with a gradient of 0 in place of none at all."""

    def __init__(self, *, connected: bool) -> None:
        super().__init__()
        self.connected = connected

    def forward(self, x: Tensor) -> Tensor:
        return x.detach() + 0 * x if self.connected else x.detach()


class ThroughNumpy(nn.Module):
    """An input that goes through an array of NumPy, where the graph ends."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().cpu().numpy().copy()).to(x)


class Branching(nn.Module):
    """Another network when gradients are asked for: the same on a mirrored input, some of whose answers are wrong."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(1 - x if torch.is_grad_enabled() and x.requires_grad else x)
        return logits


class TwoFaced(nn.Module):
    """The network's own logits at all times, and when gradients are asked for those of another input with them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.detach())
        if torch.is_grad_enabled():
            decoy = self.net(1 - x)
            logits = logits + (decoy - decoy.detach())
        return logits


class Hooked(nn.Module):
    """An identity with a hook on its tensor that changes the gradient."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        out = x.view_as(x)
        if out.requires_grad:
            out.register_hook(lambda grad: self.change(x.detach(), grad))
        return out
