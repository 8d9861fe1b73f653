"""Whole numbers that depend on the input, used as places: one-hot codes, tables, thermometers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.models.retracing.ledger import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.retracing.call import Call

__all__ = ["RULES"]

# A table of whole numbers up to here may name classes.
_CLASSES = 1024


def _plain(call: Call) -> Tensor | None:
    """What autograd makes of it, the places being what they are."""
    numbers = call.replayed()
    return numbers[0] if numbers and numbers[0].requires_grad else None


def _added(call: Call, plain: Tensor | None, soft: Tensor, target: Tensor) -> Shadow:
    """A result that moves as autograd says, and with where its places are."""
    smooth = soft if plain is None or call.ledger.relaxed else plain + (soft - soft.detach())
    return call.anchored(smooth, target)


def _scatter(call: Call) -> Shadow | None:
    """What is put at places that were chosen: its smooth share at each."""
    target, dim, index = call.args[:3]
    value = call.args[3] if len(call.args) > 3 else call.kwargs.get("value", call.kwargs.get("src"))
    plain, shadow = _plain(call), call.shadow(index)
    if shadow is None:
        return None if plain is None else Shadow(plain)
    count = target.shape[dim]
    dim = dim % target.dim()
    shares = _neighbours(shadow.number, index, count) if shadow.choice is None else shadow.choice()
    if shares.shape[-1] != count or index.shape[:dim] + index.shape[dim + 1 :] != (
        target.shape[:dim] + target.shape[dim + 1 :]
    ):
        return None if plain is None else Shadow(plain)
    given = call.number(value).detach()
    given = given[tuple(slice(n) for n in index.shape)].unsqueeze(-1) if given.dim() else given
    soft = (shares * given).sum(dim).movedim(-1, dim)
    return _added(call, plain, soft, target if call.func._schema.name.endswith("_") else call.result)


def _neighbours(number: Tensor, index: Tensor, count: int) -> Tensor:
    """``(*shape, count)`` one-hot codes of numbers that move from one neighbour to the other."""
    places = torch.arange(count, device=index.device)
    above, below = (index + 1).clamp(max=count - 1), (index - 1).clamp(min=0)
    here, up, down = ((place.unsqueeze(-1) == places).to(number.dtype) for place in (index, above, below))
    slope = (up - down) / (above - below).clamp(min=1).unsqueeze(-1)
    return here + (number - number.detach()).unsqueeze(-1) * slope


def _index(call: Call) -> Shadow | None:
    table, indices = call.args[:2]
    if len(indices) != 1 or indices[0] is None or indices[0].dtype == torch.bool:
        plain = _plain(call)
        return None if plain is None else Shadow(plain)
    return _looked_up(call, table, indices[0])


def _embedding(call: Call) -> Shadow | None:
    return _looked_up(call, call.args[0], call.args[1])


def _index_select(call: Call) -> Shadow | None:
    table, dim, index = call.args[:3]
    if dim % table.dim():
        plain = _plain(call)
        return None if plain is None else Shadow(plain)
    return _looked_up(call, table, index)


def _looked_up(call: Call, table: Tensor, index: Tensor) -> Shadow | None:
    """Rows of a table: of all of them, by their smooth shares; of a number, the slope between its neighbours."""
    plain, shadow = _plain(call), call.shadow(index)
    if shadow is None:
        return None if plain is None else Shadow(plain)
    rows = call.number(table).detach()
    if shadow.choice is not None:
        shares = shadow.choice().to(rows.dtype)
        if shares.shape[-1] != len(rows):
            return None if plain is None else Shadow(plain)
        found = _added(call, plain, torch.tensordot(shares, rows, dims=1), call.result)
        names = not table.is_floating_point() and table.dim() == 1 and table.dtype != torch.bool
        if not names or int(table.min()) < 0 or int(table.max()) >= _CLASSES:
            return found
        codes = torch.nn.functional.one_hot(table.long()).to(shares.dtype)
        return Shadow(found.number, lambda: shares @ codes)
    above = (index + 1).clamp(max=len(rows) - 1) if index.numel() else index
    below = (index - 1).clamp(min=0) if index.numel() else index
    wide = (above - below).clamp(min=1).to(rows.dtype)
    wide = wide.reshape(*index.shape, *[1] * (rows.dim() - 1))
    slope = (rows[above] - rows[below]) / wide
    return _added(call, plain, slope * shadow.number.to(rows.dtype).reshape(wide.shape), call.result)


def _bucket(call: Call) -> Shadow | None:
    """The number of boundaries below: as steep as there are boundaries on the way from the first to the last."""
    first_is_boundaries = "searchsorted" in call.func._schema.name
    boundaries, x = call.args[:2] if first_is_boundaries else call.args[1::-1]
    x, ends = call.number(x), call.number(boundaries).detach()
    if ends.shape[-1] < 2:
        site = call.step("bucket", x.detach().std(), lambda: (1 - call.result, (x.detach() - ends).abs()))
        return call.anchored(torch.sigmoid((x - ends) / site.scale)) if site.soft else None
    density = (ends.shape[-1] - 1) / (ends[..., -1:] - ends[..., :1]).clamp_min(1e-12)
    site = call.slope("bucket", torch.ones(()), True)
    return call.anchored(x * density) if site.soft else None


RULES: dict[str, Callable[[Call], Shadow | None]] = {
    "scatter": _scatter,
    "scatter_add": _scatter,
    "index": _index,
    "embedding": _embedding,
    "index_select": _index_select,
    "bucketize": _bucket,
    "searchsorted": _bucket,
}
