"""True and false as numbers, 1 and 0, that depend on the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from holdfast.models.retracing.ledger import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from holdfast.models.retracing.call import Call

__all__ = ["RULES"]


def _truth(call: Call, value: Tensor) -> Tensor:
    """An operand as 1 or 0; of other numbers, whether they are 0, which has no slope."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return call.number(value)
    return (call.number(value) != 0).to(call.ledger.dtype)


def _not(call: Call) -> Shadow | None:
    return call.anchored(1 - _truth(call, call.args[0])) if call.result.dtype == torch.bool else _bits(call)


def _and(call: Call) -> Shadow | None:
    if call.result.dtype != torch.bool:
        return _bits(call)
    a, b = (_truth(call, value) for value in call.args)
    return call.anchored(a * b)


def _or(call: Call) -> Shadow | None:
    if call.result.dtype != torch.bool:
        return _bits(call)
    a, b = (_truth(call, value) for value in call.args)
    return call.anchored(a + b - a * b)


def _xor(call: Call) -> Shadow | None:
    if call.result.dtype != torch.bool:
        return _bits(call)
    a, b = (_truth(call, value) for value in call.args)
    return call.anchored(a + b - 2 * a * b)


def _bits(call: Call) -> Shadow | None:
    """Bits of whole numbers that are masked or shifted, as in quantisation: as far as they still follow the operand."""
    shadow = call.shadow(call.args[0])
    if shadow is None or shadow.number.shape != call.result.shape:
        return None
    before, after = shadow.number.detach().double().flatten(), call.result.double().flatten()
    before, after = before - before.mean(), after - after.mean()
    slope = float(before @ after) / max(float(before @ before), 1e-30)
    site = call.slope("bits", torch.tensor(abs(slope)), True)
    return call.anchored(shadow.number * (site.scale if slope >= 0 else -site.scale)) if site.soft else None


def _reduced(call: Call, largest: bool) -> Shadow:
    """Whether any, or all, are true."""
    x = _truth(call, call.args[0])
    dims, keepdim = call.given(1, "dim", None), call.given(2, "keepdim", False)
    dims = list(range(x.dim())) if dims is None else dims
    return call.anchored((torch.amax if largest else torch.amin)(x, dims, keepdim))


def _where(call: Call) -> Shadow | list[Shadow | None] | None:
    """A choice by a condition: moving with both sides, and with the condition by their difference."""
    condition, *sides = call.args
    if len(call.args) < 3:
        return [None] * len(call.result)
    a, b = (call.number(side) for side in sides)
    dtype = call.ledger.carrier(call.result.dtype)
    return _mixed(call, condition, a.to(dtype), b.to(dtype))


def _masked_fill(call: Call) -> Shadow:
    x, mask, value = call.args
    number = call.number(x)
    return _mixed(call, mask, call.number(value).to(number.dtype), number)


def _mixed(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Shadow:
    smooth = torch.where(condition, a, b)
    if (shadow := call.shadow(condition)) is None:
        return Shadow(smooth)
    gap = (a - b).detach().nan_to_num(0.0, 0.0, 0.0)
    before = condition.to(shadow.number.dtype) if call.ledger.relaxed else shadow.number.detach()
    return call.anchored(smooth + gap * (shadow.number - before))


RULES: dict[str, Callable[[Call], Shadow | list[Shadow | None] | None]] = {
    "logical_not": _not,
    "bitwise_not": _not,
    "logical_and": _and,
    "bitwise_and": _and,
    "logical_or": _or,
    "bitwise_or": _or,
    "logical_xor": _xor,
    "bitwise_xor": _xor,
    "bitwise_left_shift": _bits,
    "bitwise_right_shift": _bits,
    "__lshift__": _bits,
    "__rshift__": _bits,
    "any": lambda call: _reduced(call, True),
    "all": lambda call: _reduced(call, False),
    "where": _where,
    "masked_fill": _masked_fill,
}
