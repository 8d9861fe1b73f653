"""Boxes of rows that together hold all admissible ones.

A cell is a row of numbers, in the precision of the data: the least value of each column, the largest, and the clean
row. Before it is bounded, a cell is cut down by the budget and by the relations, column by column, as far as intervals
tell; one that holds no admissible row becomes the clean row, of which nothing is left to prove.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from holdfast.threats.table.around import Around
from holdfast.threats.table.layout import TOLERANCE, Layout, Lines
from holdfast.threats.table.mend import mend
from holdfast.threats.table.rows import decode, reach
from holdfast.threats.table.spending import norm_of, prices

__all__ = ["choose", "first_cells", "halves", "of_cells"]

# Up to so many combinations of categories have cells of their own from the start.
_COMBINATIONS = 64
# How often budget and relations cut a cell down.
_ROUNDS = 3
# Sides shorter than this, in units of the budget, are not split, and categories are split before any side.
_SHORT, _LONG = 1e-9, 1e30
# What rounding may have added to a number of steps.
_SLIP = 1e-9


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells apart, ``(M, d)`` each, in float64."""

    lower: Tensor
    upper: Tensor
    x: Tensor

    @classmethod
    def of(cls, cells: Tensor) -> "_Cells":
        return cls(*cells.double().chunk(3, 1))

    def packed(self, dtype: torch.dtype) -> Tensor:
        # The rows are numbers of that precision, so none is lost when an end is rounded to the nearest.
        return torch.cat([self.lower, self.upper, self.x], 1).to(dtype)

    def where(self, these: Tensor) -> "_Cells":
        """The cells ``these``, ``(M,)`` bool, and the clean row for the others."""
        these = these.unsqueeze(1)
        return _Cells(torch.where(these, self.lower, self.x), torch.where(these, self.upper, self.x), self.x)


def of_cells(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(M, d)`` each: the ends of cells, and the clean row."""
    lower, upper, x = cells.chunk(3, 1)
    return lower, upper, x


def first_cells(here: Around, dtype: torch.dtype) -> Tensor:
    """``(M, 3 d)`` one cell for each combination of categories, or one for all where there are many.

    Parameters
    ----------
    here : Around
        The rules around one row.
    dtype : torch.dtype
        The precision of the data.
    """
    layout, x = here.layout, here.x
    allowed = [group.allowed[x[0, group.columns].argmax()].nonzero()[:, 0].tolist() for group in layout.groups]
    count = 1
    for choices in allowed:
        count *= len(choices)
    kinds = [[[choice] for choice in choices] if count <= _COMBINATIONS else [choices] for choices in allowed]
    combinations = list(product(*kinds))
    lower, upper = (end.repeat(len(combinations), 1) for end in reach(layout, x))
    for number, combination in enumerate(combinations):
        for group, choices in zip(layout.groups, combination, strict=True):
            upper[number, group.columns] = 0.0
            upper[number, group.columns[choices]] = 1.0
    cells = _cut(here, _Cells(lower, upper, x.expand_as(lower)))
    # The clean row is admissible whatever relations say of it, so it has a cell of its own.
    return torch.cat([cells.packed(dtype), _Cells(x, x, x).packed(dtype)])


def halves(here: Around, cells: Tensor) -> Tensor:
    """``(2 M, 3 d)`` two parts of each cell; ``(0, 3 d)`` where no box holds more than its cell, or none has a side.

    Categories are parted first, then the longest side in units of the budget, between whole numbers where it has them.
    The second part of a cell that is not parted is the clean row.

    Parameters
    ----------
    here : Around
        The rules around the clean row.
    cells : Tensor
        ``(M, 3 d)``.
    """
    layout, parts = here.layout, _Cells.of(cells)
    sides = _sides(here, parts)
    split = (sides.amax(1) > 0) & ~_all_admissible(here, parts)
    if not bool(split.any()):
        return cells[:0]
    column = sides.argmax(1, keepdim=True)
    middle = (parts.lower / 2 + parts.upper / 2).gather(1, column)
    whole = layout.integer[column]
    first = replace(parts, upper=parts.upper.scatter(1, column, torch.where(whole, middle.floor(), middle)))
    second = replace(parts, lower=parts.lower.scatter(1, column, torch.where(whole, middle.floor() + 1, middle)))
    for group in layout.groups:
        columns = group.columns
        here_split = (column == columns).any(1, keepdim=True)
        open_ = parts.upper[:, columns]
        early = open_.cumsum(1) <= (open_.sum(1, keepdim=True) / 2).ceil()
        for part, kept in ((first, early), (second, ~early)):
            part.upper[:, columns] = torch.where(here_split, open_ * kept, open_)
            part.lower[:, columns] = parts.lower[:, columns]
    both = torch.stack([_cut(here, part).packed(cells.dtype) for part in (first, second)], 1)
    alone = torch.stack([cells, parts.where(torch.zeros_like(split)).packed(cells.dtype)], 1)
    return torch.where(split[:, None, None], both, alone).flatten(0, 1)


def choose(here: Around, cells: Tensor, point: Tensor) -> Tensor:
    """``(M, d)`` float64 rows of cells, admissible ones where any is found; ``point`` where that is one."""
    parts = _Cells.of(cells)
    many = _many(here, parts)
    layout = here.layout
    moves = layout.moves
    inside = replace(
        many,
        lower=torch.where(moves, parts.lower, many.lower),
        upper=torch.where(moves, parts.upper, many.upper),
    )
    wanted = point.double().clamp(parts.lower, parts.upper)
    row = decode(layout, parts.x, wanted)
    # Where the clean row is all that is found, it may be one of another cell.
    found = mend(inside, wanted, 50)
    return torch.where(many.obeyed(row.to(cells.dtype).double()).unsqueeze(1), row, decode(layout, parts.x, found))


def _many(here: Around, parts: _Cells) -> Around:
    """The rules around the clean row, once for each cell."""
    count = len(parts.x)
    return replace(
        here,
        x=parts.x,
        lower=here.lower.expand(count, -1),
        upper=here.upper.expand(count, -1),
        budget=here.budget.expand(count),
    )


def _cut(here: Around, cells: _Cells) -> _Cells:
    """Cells without what budget and relations exclude; the clean row in place of those that are empty then."""
    layout = here.layout
    for _ in range(_ROUNDS):
        cells = _within_budget(here, cells)
        for number in range(len(layout.relations)):
            cells = _related(layout, cells, number)
        cells = _one_category(layout, cells)
    cells = cells.where((cells.lower <= cells.upper).all(1))
    point = (cells.lower == cells.upper).all(1)
    return cells.where(~point | _many(here, cells).obeyed(cells.lower))


def _within_budget(here: Around, cells: _Cells) -> _Cells:
    """Each column as far as the budget lets it go, when the others go no farther than they must."""
    layout, power = here.layout, {"l2": 2, "linf": None}.get(here.norm, 1)
    x, budget = cells.x, here.budget * (1 + _SLIP)
    gap = torch.maximum(cells.lower - x, x - cells.upper).clamp_min(0)
    # What admissible rows are forgiven (rows.admissible) is not counted.
    exact = layout.integer
    forgiven, blur = TOLERANCE * (~exact).double(), here.rounding / 2 * (~exact).double()
    charged = layout.moves & here.charged
    scale = torch.where(charged, here.scale, 1.0)
    least = ((gap * (1 - forgiven) - blur * (x.abs() + gap)).clamp_min(0) / scale).masked_fill(~charged, 0)
    price = prices(layout, here.norm).to(x)
    gone = [cells.upper[:, g.columns].gather(1, x[:, g.columns].argmax(1, keepdim=True)) == 0 for g in layout.groups]
    must = torch.cat([*gone, gap[:, :0] > 0], 1) * price
    if here.norm == "l0":
        least, must = (least > 0).double(), (must > 0).double()
        price = torch.ones_like(price)
    if power is None:
        left, spare = budget.expand(len(x), 1).expand_as(x), budget.expand(len(x), 1).expand_as(must)
    else:
        spent = (least**power).sum(1, keepdim=True) + (must**power).sum(1, keepdim=True)
        left = budget**power - spent + least**power
        spare = (budget**power - spent + must**power).clamp_min(-1) if must.numel() else must
        left = left.clamp_min(0) ** (1 / power)
    if here.norm == "l0":
        left = torch.where(left >= 1, torch.inf, 0.0).double()
    room = (left * scale + blur * x.abs()) / (1 - forgiven - blur)
    room = torch.where(exact, (room * (1 + _SLIP)).floor(), room).masked_fill(~charged, torch.inf)
    lower, upper = torch.maximum(cells.lower, x - room), torch.minimum(cells.upper, x + room)
    for number, group in enumerate(layout.groups):
        poor = spare[:, number : number + 1] < price[number] ** (power or 1)
        stays = x[:, group.columns]
        upper[:, group.columns] = torch.where(
            poor, torch.minimum(upper[:, group.columns], stays), upper[:, group.columns]
        )
    return replace(cells, lower=lower, upper=upper)


def _related(layout: Layout, cells: _Cells, number: int) -> _Cells:
    """Columns of one relation as far as it lets them go, where its guard is sure to hold."""
    lines, guards = layout.relations, layout.guards
    columns, coefficients = lines.columns[number], lines.coefficients[number]
    sure = _sure(guards, number, cells)
    if not bool(sure.any()):
        return cells
    low, high = _ends(coefficients, cells.lower[:, columns], cells.upper[:, columns])
    bound, sense, exact = lines.bound[number], int(lines.sense[number]), bool(lines.exact[number])
    size = torch.maximum(low.abs(), high.abs()).sum(1) + bound.abs()
    slack = torch.zeros_like(size) if exact else TOLERANCE * size * (1 + 1e-6)
    most = bound + slack if sense <= 2 else torch.full_like(slack, torch.inf)
    least = bound - slack if sense >= 2 else torch.full_like(slack, -torch.inf)
    if exact and sense in (0, 4):
        most = bound.ceil() - 1 if sense == 0 else most
        least = bound.floor() + 1 if sense == 4 else least
    lower, upper = cells.lower.clone(), cells.upper.clone()
    total_low, total_high = low.sum(1), high.sum(1)
    for place, (column, coefficient) in enumerate(zip(columns.tolist(), coefficients.tolist(), strict=True)):
        if not coefficient:
            continue
        # Infinite ends would take the others' with them.
        others_low = torch.where(low[:, place].isfinite(), total_low - low[:, place], -torch.inf)
        others_high = torch.where(high[:, place].isfinite(), total_high - high[:, place], torch.inf)
        ends = torch.stack([(most - others_low) / coefficient, (least - others_high) / coefficient])
        under, above = (ends[1], ends[0]) if coefficient > 0 else (ends[0], ends[1])
        if bool(layout.whole[column]):
            under, above = (under - _SLIP).ceil(), (above + _SLIP).floor()
        lower[:, column] = torch.where(sure, torch.fmax(lower[:, column], under), lower[:, column])
        upper[:, column] = torch.where(sure, torch.fmin(upper[:, column], above), upper[:, column])
    return replace(cells, lower=lower, upper=upper)


def _ends(coefficients: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """``(M, K)`` the least and the largest of each term."""
    used = coefficients != 0
    first, second = ((coefficients * end).masked_fill(~used, 0) for end in (lower, upper))
    return torch.minimum(first, second), torch.maximum(first, second)


def _sure(lines: Lines, number: int, cells: _Cells) -> Tensor:
    """``(M,)`` bool, whether a comparison holds of every row of a cell."""
    columns = lines.columns[number]
    low, high = _ends(lines.coefficients[number], cells.lower[:, columns], cells.upper[:, columns])
    low, high, bound = low.sum(1), high.sum(1), lines.bound[number]
    holds = (high < bound, high <= bound, (low == bound) & (high == bound), low >= bound, low > bound)
    return holds[int(lines.sense[number])]


def _one_category(layout: Layout, cells: _Cells) -> _Cells:
    """Groups with the categories that are left; where it is one, all its columns are known."""
    lower, upper = cells.lower.clone(), cells.upper.clone()
    for group in layout.groups:
        low, high = lower[:, group.columns], upper[:, group.columns]
        known = (low == 1).any(1, keepdim=True)
        high = torch.where(known, torch.minimum(high, low), high)
        only = (high.sum(1, keepdim=True) == 1) & (low.sum(1, keepdim=True) <= 1)
        low = torch.where(only, high, low)
        # None left: the cell is empty.
        low = torch.where(high.sum(1, keepdim=True) < 1, 1.0, low)
        lower[:, group.columns], upper[:, group.columns] = low, high
    return replace(cells, lower=lower, upper=upper)


def _sides(here: Around, cells: _Cells) -> Tensor:
    """``(M, d)`` how long the sides of cells are that can be split."""
    layout = here.layout
    length = (cells.upper - cells.lower) / torch.where(layout.moves, here.scale, 1.0)
    side = torch.where(layout.moves & (length > _SHORT), length, 0.0)
    for group in layout.groups:
        open_ = cells.upper[:, group.columns]
        side[:, group.columns] = _LONG * ((open_.sum(1, keepdim=True) > 1) & (open_ == 1)).double()
    return side


def _all_admissible(here: Around, cells: _Cells) -> Tensor:
    """``(M,)`` bool, whether every row of a box is admissible."""
    layout, x = here.layout, cells.x
    known = ((cells.lower == cells.upper) | ~layout.whole).all(1)
    for number in range(len(layout.relations)):
        known &= _sure(layout.relations, number, cells) | _never(layout.guards, number, cells)
    if here.norm == "linf":
        return known
    far = torch.maximum(cells.upper - x, x - cells.lower)
    scale = torch.where(layout.moves & here.charged, here.scale, torch.inf)
    gone = [(cells.upper[:, g.columns] != x[:, g.columns]).any(1, keepdim=True) for g in layout.groups]
    spent = torch.cat([far / scale, torch.cat([*gone, known[:, None][:, :0]], 1) * prices(layout, here.norm).to(x)], 1)
    # Ends are as far out as rounding is forgiven; what it adds is nothing that splitting would take away.
    return known & (norm_of(here.norm).length(spent) <= here.budget * (1 + 10 * TOLERANCE))


def _never(guards: Lines, number: int, cells: _Cells) -> Tensor:
    """``(M,)`` bool, whether a guard holds of no row of a cell, beyond what rounding may say."""
    columns = guards.columns[number]
    low, high = _ends(guards.coefficients[number], cells.lower[:, columns], cells.upper[:, columns])
    size = torch.maximum(low.abs(), high.abs()).sum(1) + guards.bound[number].abs()
    blur = guards.blur[number] * size
    low, high, bound = low.sum(1) - blur, high.sum(1) + blur, guards.bound[number]
    fails = (low >= bound, low > bound, (low > bound) | (high < bound), high < bound, high <= bound)
    return fails[int(guards.sense[number])]
