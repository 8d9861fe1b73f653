"""Rows of whole numbers and categories that satisfy all relations, near rows that do not.

Two ways to mend a relation. *Settling* moves whatever columns the relation names, so that a change stays possible
although others have to follow it; it may spend more than the budget. *Undoing* only takes changes back, column by
column, so it never spends, and ends at the clean row at the latest.
"""

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.threats.table.around import Around
from holdfast.threats.table.layout import Lines

__all__ = ["settle", "undo"]

# Sweeps over all relations. Most rows need one or two; a chain of relations needs as many as it is long.
_SETTLING = 4
_UNDOING = 20
# What rounding may have added to a number of steps.
_SLIP = 1e-9


def settle(here: Around, row: Tensor) -> Tensor:
    """Rows in which every relation that can be met by moving its own columns, whichever they are, is met."""
    return _sweep(here, row, _SETTLING, undoing=False)


def undo(here: Around, row: Tensor) -> Tensor:
    """Rows in which changes that break relations are taken back, and no others; relations of the clean row hold."""
    return _sweep(here, row, _UNDOING, undoing=True)


def _sweep(here: Around, row: Tensor, sweeps: int, *, undoing: bool) -> Tensor:
    layout, row = here.layout, row.clone()
    for _ in range(sweeps):
        broken = (~layout.satisfied(row)).any(1).nonzero()[:, 0]
        if not len(broken):
            break
        part, around = row[broken], here.take(broken)
        for number in range(len(layout.relations)):
            wrong = (~layout.satisfied(part)[:, number]).nonzero()[:, 0]
            if len(wrong):
                part[wrong] = _mend(around.take(wrong), part[wrong], number, undoing=undoing)
        row[broken] = part
    return row


def _mend(here: Around, row: Tensor, number: int, *, undoing: bool) -> Tensor:
    """Rows that break relation ``number``, changed so that it holds, or that its guard does not."""
    layout = here.layout
    if undoing:
        # Only what lies between the clean row and this one is open.
        here = replace(here, lower=torch.minimum(here.x, row), upper=torch.maximum(here.x, row))
    low, high = layout.relations.target(row, layout.unit)
    mended = _meet(here, row, layout.relations, number, low[:, number], high[:, number], undoing=undoing)
    left = (~layout.satisfied(mended)[:, number]).nonzero()[:, 0]
    if not bool(layout.guarded[number]) or not len(left):
        return mended
    base, here = row[left], here.take(left)
    for low, high in _outside(layout.guards, number, base, layout.unit):
        escaped = _meet(here, base, layout.guards, number, low, high, undoing=undoing)
        free = layout.satisfied(escaped)[:, number]
        mended[left] = torch.where(free.unsqueeze(1), escaped, mended[left])
    return mended


def _outside(guards: Lines, number: int, row: Tensor, unit: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The intervals, one or two, in which the left-hand side of a guard leaves it false."""
    # What is not <= is >, and so on; what is not = is < or >. Where sums are rounded, it is to be so beyond doubt.
    opposites = {0: (3,), 1: (4,), 2: (0, 4), 3: (0,), 4: (1,)}[int(guards.sense[number])]
    if bool(guards.blur[number] > 0):
        opposites = tuple({3: 4, 1: 0}.get(sense, sense) for sense in opposites)
    one = torch.tensor([number], device=row.device)
    intervals = []
    for sense in opposites:
        line = Lines(
            guards.columns[one],
            guards.coefficients[one],
            torch.full_like(guards.sense[one], sense),
            guards.bound[one],
            guards.exact[one],
        )
        low, high = line.target(row, unit)
        intervals.append((low[:, 0], high[:, 0]))
    return intervals


def _meet(
    here: Around,
    row: Tensor,
    lines: Lines,
    number: int,
    low: Tensor,
    high: Tensor,
    *,
    undoing: bool,
) -> Tensor:
    """Rows moved until the left-hand side of a comparison is in ``[low, high]``, as far as its columns allow."""
    layout, row = here.layout, row.clone()
    equal = bool(lines.sense[number] == 2)

    def lacking() -> Tensor:
        value = lines.values(row)[:, number]
        return (low - value).clamp_min(0) + (high - value).clamp_max(0)

    columns, coefficients = lines.columns[number], lines.coefficients[number]
    # The columns that gain most for what they cost go first.
    order = (coefficients.abs() * here.scale[columns]).argsort(descending=True, stable=True)
    for column, coefficient in zip(columns[order].tolist(), coefficients[order].tolist(), strict=True):
        if not coefficient or not bool(layout.moves[column]):
            continue
        step = lacking() / coefficient
        if bool(layout.integer[column]):
            # Past an inequality's end is as good as at it; past an equality is as bad as before it.
            size = step.abs()
            whole = (size + _SLIP).floor() if equal and not undoing else (size - _SLIP).ceil()
            step = whole.copysign(step)
        row[:, column] = (row[:, column] + step).clamp(here.lower[:, column], here.upper[:, column])
    named = set(columns[coefficients != 0].tolist())
    weights = torch.zeros(row.shape[1], dtype=row.dtype, device=row.device).index_add(0, columns, coefficients)
    for group in layout.groups:
        if named.isdisjoint(group.columns.tolist()):
            continue
        gap = lacking()
        now, clean = row[:, group.columns].argmax(1), here.x[:, group.columns].argmax(1)
        weight = weights[group.columns]
        gain = weight - weight[now].unsqueeze(1)
        # What would be lacking with each category, and no more than that can be asked of one.
        after = (gap.unsqueeze(1) - gain) if equal else (gap.unsqueeze(1) - gain) * gap.sign().unsqueeze(1)
        after = after.abs() if equal else after.clamp_min(0)
        after = after.masked_fill(~group.allowed[clean], torch.inf)
        if undoing:
            other = torch.arange(len(group.columns), device=row.device) != clean.unsqueeze(1)
            after = after.masked_fill(other, torch.inf)
        best = after.argmin(1)
        better = after.gather(1, best.unsqueeze(1))[:, 0] < gap.abs()
        chosen = torch.where(better, best, now)
        row[:, group.columns] = torch.nn.functional.one_hot(chosen, len(group.columns)).to(row.dtype)
    return row
