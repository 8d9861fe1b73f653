"""Operations whose derivative dies away from where they bend: clamps and saturating functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.models.retracing.ledger import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.retracing.call import Call

    Rule = Callable[[Call], Shadow | list[Shadow | None] | None]

__all__ = ["RULES"]

# A slope of so little of the steepest, at so large a share of the places, is dead.
_DEAD, _MOST = 1e-3, 0.9
# The share of places beyond the ends from which on a clamp cuts more than it bounds; it is less near the answer.
_CUT = 0.5


def _native(call: Call) -> list[Shadow | None]:
    return [Shadow(number) if number.requires_grad else None for number in call.replayed()]


def _clamp(call: Call) -> Shadow | list[Shadow | None]:
    """A clamp: straight through beyond its ends, where it cuts."""
    x = call.number(call.args[0])
    cut = (call.result != x).double().mean()
    site = call.slope("clamping", torch.ones(()), bool(cut >= _CUT) or (x.dim() == 2 and bool(cut > 0)))
    return call.anchored(x) if site.soft else _native(call)


def _saturating(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Rule:
    """A function with flat ends: the same one, made as wide as its operands, where these lie on the ends."""

    def rule(call: Call) -> Shadow | list[Shadow | None]:
        x = call.number(call.args[0])
        site = call.slope("saturation", x.detach().double().square().mean().sqrt(), _is_dead(slope(call.result)))
        return call.anchored(function(x / site.scale)) if site.soft else _native(call)

    return rule


def _softmax(call: Call) -> Shadow | list[Shadow | None]:
    x, dim = call.number(call.args[0]), call.given(1, "dim")
    free = 1 - call.result.amax(dim)
    site = call.slope("saturation", x.detach().double().std(dim).mean(), x.shape[dim] > 1 and _is_dead(free))
    return call.anchored(torch.softmax(x / site.scale, dim)) if site.soft else _native(call)


def _log(call: Call) -> Shadow | list[Shadow | None]:
    """A logarithm: of finite slope where some of what it reads is 0."""
    x = call.number(call.args[0])
    flat = call.slope("logarithm of 0", x.detach().abs().mean(), bool((call.result == -torch.inf).any()))
    return call.anchored(torch.log(x.clamp_min(0) + flat.scale)) if flat.soft else _native(call)


def _is_dead(slope: Tensor) -> bool:
    return bool((slope.double().abs() < _DEAD).double().mean() >= _MOST) if slope.numel() else False


RULES: dict[str, Rule] = {
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "tanh": _saturating(torch.tanh, lambda y: 1 - y.double() ** 2),
    "sigmoid": _saturating(torch.sigmoid, lambda y: 4 * y.double() * (1 - y.double())),
    "erf": _saturating(torch.erf, lambda y: 1 - y.double() ** 2),
    "_softmax": _softmax,
    "log": _log,
}
