"""Operations that go in steps: their true derivative is 0 where they have one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.models.retracing.ledger import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.retracing.call import Call

__all__ = ["RULES"]

# Of the spread of what is compared: how wide the slope of a hard step is.
_WIDTH = 0.5


def _rounded(call: Call, nearest: bool) -> Shadow | None:
    """Rounding, up, down, to the nearest or towards 0; straight through."""
    x = call.number(call.args[0])
    decimals = call.given(1, "decimals", 0) if nearest else 0
    unit = 10.0 ** -(decimals or 0)

    def flip() -> tuple[Tensor, Tensor]:
        return _beyond(x.detach() / unit, call.result / unit, unit)

    site = call.step("rounding", x.new_tensor(unit), flip)
    return call.anchored(x) if site.soft else None


def _beyond(x: Tensor, value: Tensor, unit: float | Tensor) -> tuple[Tensor, Tensor]:
    """Where rounding to whole numbers would lead if its operand lay beyond the nearest threshold, and how far it is."""
    # Thresholds lie a whole number apart: at the value's own remainder from whatever way of rounding it is.
    offset = x - value
    low = torch.where(offset.abs().amax() <= 0.5, torch.full_like(x, -0.5), offset.floor())
    up = (offset - low) > 0.5
    distance = torch.where(up, low + 1 - offset, offset - low)
    return (value + torch.where(up, 1.0, -1.0)) * unit, distance


def _cast(call: Call) -> Shadow | None:
    """A conversion to another type: of fractions to whole numbers, rounding."""
    source, result = call.args[0], call.result
    shadow = call.shadow(source)
    if shadow is None:
        return None
    inexact = source.is_floating_point()
    if result.dtype == torch.bool and source.dtype != torch.bool:
        return _compared(call, shadow.number, torch.zeros((), dtype=shadow.number.dtype), "ne")
    if result.is_floating_point() or result.is_complex() or not inexact:
        number = shadow.number.to(call.ledger.carrier(result.dtype))
        return Shadow(number.clone() if number is shadow.number else number, shadow.choice)

    def flip() -> tuple[Tensor, Tensor]:
        return _beyond(shadow.number.detach(), result, 1.0)

    site = call.step("conversion to whole numbers", torch.ones(()), flip)
    return call.anchored(shadow.number) if site.soft else None


def _divided(call: Call) -> Shadow | list[Shadow | None] | None:
    """Division, by which whole numbers may be asked for."""
    name = str(call.func._schema.name)
    if "floor_divide" not in name and call.kwargs.get("rounding_mode") is None:
        return [Shadow(number) for number in call.replayed()]
    a, b = call.number(call.args[0]), call.number(call.args[1])
    site = call.step("rounding", torch.ones(()), lambda: _beyond((a / b).detach(), call.result, 1.0))
    return call.anchored(a / b) if site.soft else None


def _remainder(call: Call) -> Shadow | list[Shadow | None] | None:
    """What is left of a division: no slope at all where the steps count, so that ``x - x % unit`` has one."""
    x, unit = call.number(call.args[0]), call.number(call.args[1] if len(call.args) > 1 else 1.0)

    def flip() -> tuple[Tensor, Tensor]:
        part = (call.result / unit).detach().abs()
        return torch.where(part > 0.5, call.result - unit, call.result + unit).detach(), torch.minimum(part, 1 - part)

    if call.step("remainder", torch.ones(()), flip).soft:
        return None
    return [Shadow(number) for number in call.replayed()] if len(call.args) > 1 else call.anchored(x)


def _signed(call: Call) -> Shadow | None:
    """The sign: of the slope of a hyperbolic tangent as wide as the operands."""
    x = call.number(call.args[0])
    site = call.step("sign", _spread(x), lambda: (-call.result, x.detach().abs()))
    return call.anchored(torch.tanh(x / (2 * _WIDTH * site.scale))) if site.soft else None


def _compares(call: Call, relation: str) -> Shadow | None:
    if (soft := _chosen(call, relation)) is not None:
        return soft
    return _compared(call, call.number(call.args[0]), call.number(call.args[1]), relation)


def _compared(call: Call, a: Tensor, b: Tensor, relation: str) -> Shadow | None:
    """A comparison: of the slope of a logistic function as wide as the differences; equality, of a bump so wide."""
    apart = a - b
    kind = "equality" if relation in ("eq", "ne") else "comparison"
    if kind == "equality" and any(isinstance(v, Tensor) and v.is_floating_point() for v in call.args[:2]):
        return None  # never but by chance

    def flip() -> tuple[Tensor, Tensor]:
        return ~call.result.bool(), apart.detach().abs()

    site = call.step(kind, _spread(apart), flip)
    if not site.soft:
        return None
    z = apart / (_WIDTH * site.scale)
    if kind == "comparison":
        return call.anchored(torch.sigmoid(z if relation in ("gt", "ge") else -z))
    bump = torch.exp(-(z**2) / 2)
    return call.anchored(bump if relation == "eq" else 1 - bump)


def _chosen(call: Call, relation: str) -> Shadow | None:
    """Whether something else was chosen than a constant: the smooth share of that choice."""
    shadow, other = call.shadow(call.args[0]), call.args[1]
    if relation not in ("eq", "ne") or shadow is None or shadow.choice is None or call.shadow(other) is not None:
        return None
    shares = shadow.choice()
    shape = call.result.shape
    asked = torch.as_tensor(other, device=shares.device).expand(shape)
    inside = (asked >= 0) & (asked < shares.shape[-1])
    place = torch.where(inside, asked, 0).long().unsqueeze(-1)
    share = shares.expand(*shape, shares.shape[-1]).gather(-1, place).squeeze(-1) * inside
    return call.anchored(share if relation == "eq" else 1 - share)


def _heaviside(call: Call) -> Shadow | None:
    x = call.number(call.args[0])
    site = call.step("comparison", _spread(x), lambda: (1 - call.result, x.detach().abs()))
    return call.anchored(torch.sigmoid(x / (_WIDTH * site.scale))) if site.soft else None


def _spread(x: Tensor) -> Tensor:
    """The root mean square of what is finite."""
    x = x.detach()
    x = x[x.isfinite()]
    return x.double().square().mean().sqrt() if x.numel() else torch.ones(())


def _detached(call: Call) -> Shadow | None:
    shadow = call.shadow(call.args[0])
    return None if shadow is None else Shadow(shadow.number.view_as(shadow.number), shadow.choice)


RULES: dict[str, Callable[[Call], Shadow | list[Shadow | None] | None]] = {
    "detach": _detached,
    "round": partial(_rounded, nearest=True),
    "_to_copy": _cast,
    "div": _divided,
    "floor_divide": _divided,
    "remainder": _remainder,
    "fmod": _remainder,
    "frac": _remainder,
    "sign": _signed,
    "sgn": _signed,
    "heaviside": _heaviside,
    **{name: partial(_rounded, nearest=False) for name in ("ceil", "fix", "floor", "trunc")},
    **{name: partial(_compares, relation=name) for name in ("eq", "ge", "gt", "le", "lt", "ne")},
}
