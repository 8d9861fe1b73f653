"""Which module's own gradient is not that of what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["first_differing"]

# How far two gradients may lie apart by rounding, of their length: for numbers of so many bytes.
_APART = {1: 0.3, 2: 0.3, 4: 1e-2, 8: 1e-2}


def first_differing(
    model: nn.Module, twin: Callable[[nn.Module], nn.Module], x: Tensor, set_back: Callable[[], None]
) -> str | None:
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
    set_back : callable
        Sets all generators of random numbers back.
    """

    def differs(module: nn.Module, x: Tensor) -> bool:
        return _differ(*(_pulled_back(one, x, set_back) for one in (module, twin(module))), _APART[x.dtype.itemsize])

    if not differs(model, x):
        return None
    for name, module, given in _calls(model, x):
        if differs(module, given):
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


def _differ(one: Tensor | None, other: Tensor | None, apart: float) -> bool:
    if one is None or other is None:
        return one is not other
    scale = torch.maximum(one.norm(), other.norm())
    return bool((one - other).norm() > apart * scale) or bool(one.isnan().any() != other.isnan().any())


def _pulled_back(module: nn.Module, x: Tensor, set_back: Callable[[], None]) -> Tensor | None:
    """A fixed combination of a module's outputs, differentiated; None where it has no derivative."""
    set_back()
    x = x.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = module(x.clone())
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        (grad,) = torch.autograd.grad((output * weights).sum(), x, allow_unused=True)
    except Exception:  # whatever stands in the way of its gradient
        return None
    return None if grad is None else grad.double()
