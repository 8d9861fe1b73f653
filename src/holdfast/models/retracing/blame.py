"""Which module's own gradient is not that of what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["first_differing"]

# How far two gradients may lie apart by rounding, of their length; in a network of half precision too.
_APART, _APART_IN_HALF = 1e-2, 0.3


def first_differing(
    model: nn.Module, twins: Sequence[Callable[[nn.Module], nn.Module]], x: Tensor, set_back: Callable[[], None]
) -> str | None:
    """The name of the first module whose own gradient is none of its twins'; None of an honest model.

    Modules are looked at in the order in which they end, so those inside another one before it.

    Parameters
    ----------
    model : nn.Module
        As it is used.
    twins : sequence of callable
        Make modules with true gradients of another one, or such as are honestly put in their place.
    x : Tensor
        ``(N, ...)`` inputs of the model.
    set_back : callable
        Sets all generators of random numbers back.
    """
    half = any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
    apart = _APART_IN_HALF if half else _APART

    def differs(module: nn.Module, x: Tensor) -> bool:
        own = _pulled_back(module, x, set_back)
        return all(_differ(own, _pulled_back(twin(module), x, set_back), apart) for twin in twins)

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


def _differ(one: Tensor, other: Tensor, apart: float) -> bool:
    if bool(one.isnan().any()) or bool(other.isnan().any()):
        return bool(one.isnan().any() != other.isnan().any())
    return bool((one - other).norm() > apart * torch.maximum(one.norm(), other.norm()))


def _pulled_back(module: nn.Module, x: Tensor, set_back: Callable[[], None]) -> Tensor:
    """A fixed combination of a module's outputs, differentiated; 0 where it has no derivative."""
    set_back()
    x = x.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = module(x.clone())
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        (grad,) = torch.autograd.grad((output * weights).sum(), x, allow_unused=True)
    except Exception:  # whatever stands in the way of its gradient
        grad = None
    return torch.zeros_like(x, dtype=torch.float64) if grad is None else grad.double()
