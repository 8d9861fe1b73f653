"""Operations that answer which, by whole numbers: the largest, the best, an order."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.models.retracing.ledger import Shadow, anchored

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.retracing.call import Call

__all__ = ["RULES"]


def _which(call: Call, indices: Tensor, dim: int | None) -> Shadow | None:
    """Which places of a dimension were taken, with smooth shares of all.

    Prillo and Eisenschlos, "SoftSort: a continuous relaxation for the argsort operator", ICML 2020, arXiv:2006.16038,
    equation 4: the share of a place falls with the distance of what is there from what was taken. For the largest it
    is the softmax.
    """
    x = call.number(call.args[0])
    if dim is None:
        x, dim = x.flatten(), 0
    x = x.movedim(dim, -1)
    if not x.dim() or x.shape[-1] < 2:
        return None
    taken = indices.unsqueeze(dim) if indices.dim() < call.number(call.args[0]).dim() else indices
    taken = taken.reshape(1) if not taken.dim() else taken.movedim(dim, -1)
    values = x.gather(-1, taken)
    scale = x.detach().double().std(-1).mean()

    @cache  # one site, which is there when somebody asks
    def shares() -> Tensor:
        site = call.slope("choice", scale, True)
        if not site.soft:
            return torch.nn.functional.one_hot(indices, x.shape[-1]).to(x.dtype)
        apart = (values.unsqueeze(-1) - x.unsqueeze(-2)).abs()
        share = torch.softmax(-apart / site.scale, -1)
        share = share.movedim(-2, dim if dim >= 0 else dim - 1)
        return share.reshape(*indices.shape, x.shape[-1])

    back = values.movedim(-1, dim) if values.dim() == indices.dim() else values
    # Its value as a number has no slope of use.
    return Shadow(anchored(back.reshape(indices.shape) * 0, indices), shares)


def _single(call: Call) -> Shadow | None:
    return _which(call, call.result, call.given(1, "dim"))


def _with_values(call: Call, place: int, default: int = -1) -> list[Shadow | None]:
    _, indices = call.result
    if len(call.func._schema.arguments) == 1:
        return []
    try:
        number: Tensor | None = call.replayed()[0]
    except RuntimeError:
        number = None
    found = None if number is None or not number.requires_grad else Shadow(number)
    return [found, _which(call, indices, call.given(place, "dim", default))]


def _extreme(call: Call) -> list[Shadow | None]:
    """The largest, alone or along a dimension, or of two."""
    if isinstance(call.result, Tensor):
        return [Shadow(number) for number in call.replayed()]
    return _with_values(call, 1)


def _sort(call: Call) -> list[Shadow | None]:
    stable = "stable" in call.func._schema.overload_name
    return _with_values(call, 2 if stable and len(call.args) > 2 else 1 if not stable else 9)


RULES: dict[str, Callable[[Call], Shadow | list[Shadow | None] | None]] = {
    "argmax": _single,
    "argmin": _single,
    "max": _extreme,
    "min": _extreme,
    "median": _extreme,
    "sort": _sort,
    "topk": partial(_with_values, place=2),
    "kthvalue": partial(_with_values, place=2),
}
