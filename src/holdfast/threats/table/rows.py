"""Rows of a table: where their columns may go, what a choice makes of them, and whether they obey the rules."""

import torch
from torch import Tensor

from holdfast.threats.table.layout import TOLERANCE, Layout
from holdfast.threats.table.spending import TableNorm, distance

__all__ = ["admissible", "decode", "in_bounds", "one_hot", "reach", "switched"]


def reach(layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of every column, whatever the budget: bounds, directions, and how far at most.

    Parameters
    ----------
    layout : Layout
        The rules.
    x : Tensor
        ``(N, d)`` clean rows in float64.

    Returns
    -------
    Tensor, Tensor
        ``(N, d)`` each, with ``x`` between them. Columns of groups have 0 and 1.
    """
    lower = torch.where(layout.down, torch.maximum(layout.lower, x - layout.most), x).minimum(x)
    upper = torch.where(layout.up, torch.minimum(layout.upper, x + layout.most), x).maximum(x)
    for group in layout.groups:
        lower[:, group.columns], upper[:, group.columns] = 0.0, 1.0
    return lower, upper


def decode(layout: Layout, x: Tensor, wanted: Tensor) -> Tensor:
    """The row that stands for ``wanted``: inside its reach, whole where it must be, one category a group.

    Parameters
    ----------
    layout : Layout
        The rules.
    x, wanted : Tensor
        ``(N, d)`` float64, clean rows, and any numbers.

    Returns
    -------
    Tensor
        ``(N, d)``; relations and budget may not hold of it. Of categories wanted alike the clean one stays.
    """
    row = wanted.clamp(*reach(layout, x))
    row = torch.where(layout.integer, row.round(), row)
    for group in layout.groups:
        row[:, group.columns] = one_hot(group.allowed, x[:, group.columns], wanted[:, group.columns])
    return row


def one_hot(allowed: Tensor, clean: Tensor, score: Tensor) -> Tensor:
    """``(N, k)`` the category of the highest score that the clean one may become; numbers that are none stay so."""
    start = clean.argmax(1, keepdim=True)
    score = score.masked_fill(~allowed[start[:, 0]], -torch.inf)
    best = torch.where(score.gather(1, start) >= score.amax(1, keepdim=True), start, score.argmax(1, keepdim=True))
    chosen = torch.zeros_like(score).scatter(1, best, 1.0)
    return torch.where(score.isnan().any(1, keepdim=True), torch.nan, chosen)


def switched(layout: Layout, x: Tensor, row: Tensor) -> Tensor:
    """``(N, G)`` bool, the groups of which two rows have different categories."""
    columns = [(x[:, g.columns] != row[:, g.columns]).any(1) for g in layout.groups]
    return torch.stack(columns, 1) if columns else torch.zeros(len(x), 0, dtype=torch.bool, device=x.device)


def admissible(layout: Layout, norm: TableNorm, budget: Tensor, x: Tensor, row: Tensor, rounding: float) -> Tensor:
    """Whether rows obey all rules and the budget, however they were found; the clean row itself always does.

    What is whole is judged to the last unit, and so are directions and columns that stay as they are. Bounds,
    relations and the budget of real columns hold but for a millionth, of what went into a relation, of a bound, and
    of a change; from that change half a unit in the last place of the row's value is forgiven besides.

    Parameters
    ----------
    layout, norm
        The rules, and the kind of budget.
    budget : Tensor
        ``(N,)`` float64.
    x, row : Tensor
        ``(N, d)`` float64, clean rows and those to judge.
    rounding : float
        The distance from 1 to the next number in the precision of the rows.

    Returns
    -------
    Tensor
        ``(N,)`` bool.
    """
    change = row - x
    still = change == 0
    room = TOLERANCE * (~layout.integer).double()
    # Half a unit in the last place: what the nearest number of this precision may be off.
    blur = torch.where(layout.integer, 0.0, rounding / 2 * row.abs())
    size = (change.abs() * (1 - room) - blur).clamp_min(0)
    way = torch.where(change > 0, layout.up, layout.down)
    fits = still | (way & in_bounds(layout, row) & (size <= layout.most) & (~layout.integer | (row == row.round())))
    for group in layout.groups:
        clean, chosen = x[:, group.columns], row[:, group.columns]
        one = ((chosen == 0) | (chosen == 1)).all(1) & (chosen.sum(1) == 1)
        one &= group.allowed[clean.argmax(1), chosen.argmax(1)]
        fits[:, group.columns] = one.unsqueeze(1)
    spent = distance(layout, norm, size, switched(layout, x, row))
    obeys = fits.all(1) & layout.satisfied(row).all(1) & (spent <= budget * (1 + 1e-9))
    return row.isfinite().all(1) & (obeys | still.all(1))


def in_bounds(layout: Layout, row: Tensor) -> Tensor:
    """``(N, d)`` bool, whether values are inside their bounds: those of real columns but for a millionth of a bound."""
    room = TOLERANCE * (~layout.integer).double()
    # The products are 0 for whole numbers, also where there is no bound.
    under, above = (torch.where(end.isfinite(), room * end.abs(), 0.0) for end in (layout.lower, layout.upper))
    return (row >= layout.lower - under) & (row <= layout.upper + above)
