"""What a change costs, in the units of the budget."""

from typing import Literal

import torch
from torch import Tensor

from holdfast.threats import l0, l1, l2, linf
from holdfast.threats.norm import Norm
from holdfast.threats.table.layout import Layout

__all__ = ["TableNorm", "afford", "distance", "norm_of", "scale_of"]

# "cost" is L1 with a price for each unit of each column.
TableNorm = Literal["linf", "l2", "l1", "l0", "cost"]
_NORMS: dict[str, Norm] = {"linf": linf, "l2": l2, "l1": l1, "l0": l0, "cost": l1}


def norm_of(norm: TableNorm) -> Norm:
    """The functions of the norm; they work on changes in units of the budget."""
    return _NORMS[norm]


def scale_of(layout: Layout, norm: TableNorm) -> Tensor:
    """``(d,)`` how many raw units of a column one unit of the budget buys; infinite for one that costs nothing."""
    return layout.unit / layout.cost if norm == "cost" else layout.unit


def distance(layout: Layout, norm: TableNorm, change: Tensor, switched: Tensor) -> Tensor:
    """``(N,)`` what changes count.

    Parameters
    ----------
    layout : Layout
        The rules.
    norm : str
        The kind of budget.
    change : Tensor
        ``(N, d)`` float64 raw changes of columns; those of groups are not looked at.
    switched : Tensor
        ``(N, G)`` bool, the groups of which another category was chosen.
    """
    # A column that costs nothing has an infinite scale, and counts 0 however far it goes.
    single = change.masked_fill(~layout.moves, 0) / scale_of(layout, norm)
    grouped = switched * prices(layout, norm).to(change)
    return norm_of(norm).length(torch.cat([single, grouped], 1))


def prices(layout: Layout, norm: TableNorm) -> Tensor:
    """``(G,)`` float64, what another category of each group counts."""
    return torch.tensor([g.cost if norm == "cost" else g.distance for g in layout.groups], dtype=torch.float64)


def afford(layout: Layout, norm: TableNorm, wish: Tensor, switched: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the categories asked for the budget pays, those most wanted first, and what is left for the columns.

    Parameters
    ----------
    layout, norm
        The rules, and the kind of budget.
    wish : Tensor
        ``(N, G)`` how much each other category is wanted.
    switched : Tensor
        ``(N, G)`` bool, the groups of which another category is asked for.
    budget : Tensor
        ``(N,)`` float64.

    Returns
    -------
    Tensor, Tensor
        ``(N, G)`` bool, and ``(N,)`` the budget left.
    """
    price = prices(layout, norm).to(wish).expand_as(wish)
    if norm == "linf":
        return switched & (price <= budget.unsqueeze(1)), budget
    power = 2 if norm == "l2" else 1
    price = torch.where(switched, torch.ones_like(price) if norm == "l0" else price**power, 0.0)
    order = wish.masked_fill(~switched, -torch.inf).argsort(dim=1, descending=True, stable=True)
    left, paid = budget**power, torch.zeros_like(switched)
    for group in order.unbind(1):
        here = group.unsqueeze(1)
        charge = price.gather(1, here)[:, 0]
        buys = switched.gather(1, here)[:, 0] & (charge <= left)
        left = torch.where(buys, left - charge, left)
        paid = paid.scatter(1, here, buys.unsqueeze(1))
    return paid, left ** (1 / power)
