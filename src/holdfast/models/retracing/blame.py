"""Which module's own gradient is not that of what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["first_differing"]

# How far two gradients may lie apart by rounding, of their length.
_APART = 1e-2


def first_differing(model: nn.Module, twin: Callable[[nn.Module], nn.Module], x: Tensor) -> str | None:
    """The name of the first module whose own gradient differs from its twin's; None of an honest model.

    Modules are looked at in the order in which they end, so those inside another one before it.

    Parameters
    ----------
    model : nn.Module
        As it is used.
    twin : callable
        Makes a module with true gradients of another one.
    x : Tensor
        ``(N, ...)`` inputs of the model.
    """
    if not _differs(model, twin(model), x):
        return None
    for name, module, given in _calls(model, x):
        if _differs(module, twin(module), given):
            return name
    return ""


def _calls(model: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """What the modules of a model that read one tensor and return one are given, in the order in which they end."""
    found: dict[str, tuple[str, nn.Module, Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if not name:
            continue

        def enter(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_floating_point():
                inputs.setdefault(name, args[0].detach().clone())

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and name in inputs:
                found.setdefault(name, (name, module, inputs[name]))

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def _differs(module: nn.Module, twin: nn.Module, x: Tensor) -> bool:
    one, other = _pulled_back(module, x), _pulled_back(twin, x)
    if one is None or other is None:
        return one is not other
    scale = torch.maximum(one.norm(), other.norm())
    return bool((one - other).norm() > _APART * scale) or bool(one.isnan().any() != other.isnan().any())


def _pulled_back(module: nn.Module, x: Tensor) -> Tensor | None:
    """A fixed combination of a module's outputs, differentiated; None where it has no derivative."""
    torch.default_generator.manual_seed(0)
    x = x.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = module(x.clone())
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        (grad,) = torch.autograd.grad((output * weights).sum(), x, allow_unused=True)
    except Exception:  # whatever stands in the way of its gradient
        return None
    return None if grad is None else grad.double()
