"""Admissible rows near any wanted ones."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from holdfast.threats.table.around import Around
from holdfast.threats.table.nearest import HalfSpaces, nearest
from holdfast.threats.table.repair import settle, undo
from holdfast.threats.table.rows import decode, one_hot
from holdfast.threats.table.spending import afford, norm_of

__all__ = ["FRACTION", "mend"]

# Shares of a change that are tried whole before parts of it are taken back.
_SHARES = (1.0, 0.5, 0.25)
# How far a choice may stand from the whole number it means, so that what steps add to less than half is not lost.
FRACTION = 0.49


def mend(here: Around, wanted: Tensor, rounds: int) -> Tensor:
    """Choices, as numbers that :func:`rows.decode` makes rows of, whose rows are admissible.

    The nearest point of the convex part first (:mod:`nearest`), and its nearest whole numbers. Where these break a
    rule: whole numbers on the clean row's side, with relations settled or else changes undone (:mod:`repair`). Where
    nothing of that is admissible, the clean row.

    Parameters
    ----------
    here : Around
        The rules around the clean rows.
    wanted : Tensor
        ``(N, d)`` float64.
    rounds : int
        Of the search for the nearest point.

    Returns
    -------
    Tensor
        ``(N, d)`` float64.
    """
    base, left, score = _categories(here, wanted)
    s = here.scaled(wanted).clamp(-1e15, 1e15)
    seen = torch.where(here.layout.moves, decode(here.layout, here.x, wanted), base)
    active = here.layout.guards.may_hold(seen)
    half = HalfSpaces.of(here.layout.relations, here.scale, base, active, here.layout.unit)
    s = nearest(s, norm_of(here.norm), left.unsqueeze(1), *here.box(), here.charged, half, rounds)
    target = base + s * here.scale
    row, open_ = here.x.clone(), torch.arange(len(wanted), device=wanted.device)
    for trial in _trials(base, target):
        part = here.take(open_)
        found = trial(part, open_)
        obeyed = part.obeyed(found)
        row[open_[obeyed]] = found[obeyed]
        open_ = open_[~obeyed]
        if not len(open_):
            break
    return _meaning(here, row, target, score)


def _trials(base: Tensor, target: Tensor) -> Iterator[Callable[[Around, Tensor], Tensor]]:
    """Ways to make rows of the points ``target``, the strongest first; all take rules and positions of rows."""

    def towards_clean(size: float, part: Around, rows: Tensor) -> Tensor:
        return _whole(part, base[rows], base[rows] + size * (target[rows] - base[rows]), Tensor.floor)

    def settled(size: float, part: Around, rows: Tensor) -> Tensor:
        return settle(part, towards_clean(size, part, rows))

    yield lambda part, rows: _whole(part, base[rows], target[rows], Tensor.round)
    for size in _SHARES:
        yield partial(settled, size)
    yield lambda part, rows: undo(part, towards_clean(1.0, part, rows))


def _whole(here: Around, base: Tensor, target: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Points with whole numbers where there must be: the size of each change is rounded."""
    change = target - here.x
    whole = rounded(change.abs() + 1e-9).copysign(change)
    row = (here.x + torch.where(here.layout.integer, whole, change)).clamp(here.lower, here.upper)
    return torch.where(here.layout.moves, row, base)


def _categories(here: Around, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean rows with the wanted categories that the budget pays, what it leaves, and the numbers that mean them."""
    layout, x = here.layout, here.x
    base, score = x.clone(), wanted.clamp(0, 1)
    if not layout.groups:
        return base, here.budget, score
    chosen = [one_hot(g.allowed, x[:, g.columns], wanted[:, g.columns]) for g in layout.groups]
    asked = torch.stack([(c != x[:, g.columns]).any(1) for g, c in zip(layout.groups, chosen, strict=True)], 1)
    wish = torch.stack(
        [((c - x[:, g.columns]) * wanted[:, g.columns]).sum(1) for g, c in zip(layout.groups, chosen, strict=True)], 1
    )
    paid, left = afford(layout, here.norm, wish, asked, here.budget)
    for number, (group, category) in enumerate(zip(layout.groups, chosen, strict=True)):
        base[:, group.columns] = torch.where(paid[:, number : number + 1], category, x[:, group.columns])
    return base, left, score


def _meaning(here: Around, row: Tensor, target: Tensor, score: Tensor) -> Tensor:
    """Numbers that mean a row and stand as near to the ``target`` as they can: a choice remembers more than its row."""
    layout = here.layout
    fine = layout.integer & (row.abs() * here.rounding < 1e-3)
    meaning = torch.where(fine, target.clamp(row - FRACTION, row + FRACTION), row)
    for group in layout.groups:
        columns = group.columns
        category, clean, wanted = row[:, columns], here.x[:, columns], score[:, columns]
        # The category's number above all others; where it is the clean one, or already ahead, that costs nothing.
        agrees = (one_hot(group.allowed, clean, wanted) == category).all(1, keepdim=True)
        meaning[:, columns] = torch.where(agrees, wanted, category)
    return meaning
