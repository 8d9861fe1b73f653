"""The rules of a table as variables and linear constraints of a program.

Whole numbers and categories are whole variables, relations are rows, and a relation with a guard has a variable that
says whether the guard holds. Every row that :meth:`~holdfast.threats.table.Table.contains` admits, other than the clean
one, is a point of the program: what the judge forgives of bounds, budgets and relations of real numbers, the program
forgives too. An L2 budget is no polytope; it is held by planes that touch its ball, as many as are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
import torch
from numpy.typing import NDArray

from holdfast.certify.milp.encoding import Affine, Program, constant
from holdfast.threats.table.around import around
from holdfast.threats.table.layout import TOLERANCE
from holdfast.threats.table.rows import reach
from holdfast.threats.table.spending import prices

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.threats.table import Table
    from holdfast.threats.table.around import Around
    from holdfast.threats.table.layout import Layout, Lines

__all__ = ["SPENT", "Rows", "constrain", "prices_of", "rows_around", "touching"]

Array = NDArray[np.float64]

# What a comparison with the budget forgives, and a product or two of float64 on top.
SPENT = 1 + 2e-9
_LESS, _AT_MOST, _EQUAL, _AT_LEAST, _MORE = range(5)


@dataclass(frozen=True, eq=False)
class Rows:
    """The admissible rows around one clean row, as far as each column alone tells.

    Parameters
    ----------
    here : Around
        The rules around the row.
    x, lower, upper : ndarray
        ``(d,)`` the clean row, and numbers between which every admissible one lies.
    whole : ndarray
        ``(d,)`` bool, columns of whole numbers.
    """

    here: Around
    x: Array
    lower: Array
    upper: Array
    whole: NDArray[np.bool_]

    @property
    def blur(self) -> Array:
        """``(d,)`` what the judge forgives of a change, for the rounding of the row's own numbers."""
        largest = np.maximum(np.abs(self.lower), np.abs(self.upper))
        return np.where(self.whole, 0.0, self.here.rounding * largest)

    @property
    def room(self) -> Array:
        """``(d,)`` the share of a change that it forgives."""
        return np.where(self.whole, 0.0, TOLERANCE)


def rows_around(layout: Layout, threat: Table, x: Tensor) -> Rows:
    """The rows that a threat with this layout, looked up for the one clean row ``x``, ``(1, d)``, admits."""
    precise = x.double()
    here = around(layout, threat.norm, threat.budget(precise), precise, torch.finfo(x.dtype).eps)
    clean, whole = _array(precise), _flags(layout.whole)
    lower, upper = (_array(end) for end in reach(layout, precise))
    # A number of the row's own precision may be a little beyond where it may go; where there is no end, there is none.
    ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (lower, upper)]
    pad = np.where(whole, 0.0, here.rounding * np.maximum(*ends))
    lower = np.where(_flags(layout.down), lower - pad, clean)
    upper = np.where(_flags(layout.up), upper + pad, clean)
    budget = float(here.budget[0]) * SPENT
    if here.norm != "l0":
        room = np.where(whole, 0.0, TOLERANCE + here.rounding)
        furthest = (budget * _array(here.scale) + here.rounding * np.abs(clean)) / (1 - room)
        furthest = np.where(whole, np.floor(budget * _array(here.scale) * SPENT), furthest)
        furthest = np.where(_flags(here.charged & layout.moves), furthest, np.inf)
        lower, upper = np.maximum(lower, clean - furthest), np.minimum(upper, clean + furthest)
    for group, price in zip(layout.groups, prices_of(here), strict=True):
        places = group.columns.numpy()
        own = np.arange(len(places)) == clean[places].argmax()
        open_ = _flags(group.allowed[int(own.argmax())]) if price <= budget else own
        lower[places], upper[places] = own & (open_.sum() == 1), open_
    return Rows(here, clean, lower, upper, whole)


def prices_of(here: Around) -> list[float]:
    """What another category of each group counts."""
    found: list[float] = prices(here.layout, here.norm).tolist()
    return [1.0] * len(found) if here.norm == "l0" else found


def constrain(program: Program, row: Affine, rows: Rows) -> Affine:
    """Add the rules that no column tells alone, and return what the row spends.

    Parameters
    ----------
    program : Program
        Holds the row's numbers within their bounds, the whole ones whole.
    row : Affine
        ``d`` entries, the row.
    rows : Rows
        What rows are admissible.

    Returns
    -------
    Affine
        Under an L2 budget, an entry for each column and group that is charged, at least what it spends: see
        :func:`touching`. Empty otherwise.
    """
    layout = rows.here.layout
    one = constant(np.ones(1))
    for group in layout.groups:
        total = row.take(group.columns.numpy()).apply(scipy.sparse.csr_matrix(np.ones((1, len(group.columns)))))
        _between(program, total, np.ones(1), np.ones(1))
    _relations(program, row, rows)
    norm, budget = rows.here.norm, float(rows.here.budget[0]) * SPENT
    if norm == "linf":
        return constant(np.zeros(0))
    moving = np.flatnonzero(_flags(rows.here.charged & layout.moves) & (rows.lower < rows.upper))
    spent = _changed(program, row, rows, moving) if norm == "l0" else _sizes(program, row, rows, moving)
    for group, price in zip(layout.groups, prices_of(rows.here), strict=True):
        places = group.columns.numpy()
        own = places[rows.x[places].argmax(keepdims=True)]
        spent = _stacked(spent, price * (one - row.take(own)))
    if not len(spent):
        return spent
    longest = np.sqrt(len(spent)) if norm == "l2" else 1.0
    total = spent.apply(scipy.sparse.csr_matrix(np.ones((1, len(spent)))))
    program.at_least_zero(constant(np.array([longest * budget])) - total)
    return spent if norm == "l2" else constant(np.zeros(0))


def touching(spent: Affine, at: Array, rows: Rows) -> Affine | None:
    """What must not be negative in an L2 ball, by the plane that touches it below a point; None inside of it.

    Parameters
    ----------
    spent : Affine
        What :func:`constrain` returned.
    at : ndarray
        Values of all variables.
    rows : Rows
        What rows are admissible.
    """
    point = spent.at(at)
    length, budget = float(np.linalg.norm(point)), float(rows.here.budget[0]) * SPENT
    if not length > budget * (1 + 1e-9):
        return None
    # Of length 1 or a little less, however it is rounded.
    normal = np.maximum(point, 0) / (length * (1 + 1e-12))
    return constant(np.array([budget])) - spent.apply(scipy.sparse.csr_matrix(normal[None]))


def _sizes(program: Program, row: Affine, rows: Rows, moving: NDArray[np.int64]) -> Affine:
    """Variables that are at least the sizes of changes, in units of the budget."""
    scale, room, blur = _array(rows.here.scale)[moving], rows.room[moving], rows.blur[moving]
    furthest = np.maximum(rows.upper - rows.x, rows.x - rows.lower)[moving]
    size = program.variables(np.zeros(len(moving)), furthest / scale)
    change = (row.take(moving) - constant(rows.x[moving])).apply(scipy.sparse.diags((1 - room) / scale))
    slack = constant(blur / scale)
    program.at_least_zero((size - change + slack).take(rows.upper[moving] > rows.x[moving]))
    program.at_least_zero((size + change + slack).take(rows.lower[moving] < rows.x[moving]))
    return size


def _changed(program: Program, row: Affine, rows: Rows, moving: NDArray[np.int64]) -> Affine:
    """Whole variables that are 1 where a column changes."""
    changed = program.variables(np.zeros(len(moving)), np.ones(len(moving)), integral=True)
    change = row.take(moving) - constant(rows.x[moving])
    slack = constant(rows.blur[moving] / (1 - rows.room[moving]))
    up, down = (rows.upper - rows.x)[moving], (rows.x - rows.lower)[moving]
    program.at_least_zero(changed.apply(scipy.sparse.diags(up)) + slack - change)
    program.at_least_zero(changed.apply(scipy.sparse.diags(down)) + slack + change)
    return changed


def _relations(program: Program, row: Affine, rows: Rows) -> None:
    lines, guards = rows.here.layout.relations, rows.here.layout.guards
    guarded = _flags(rows.here.layout.guarded)
    for number in range(len(lines)):
        relation = _Line.of(lines, number)
        ends = relation.held()
        if not guarded[number]:
            _within(program, relation, row, rows, ends, None)
            continue
        guard = _Line.of(guards, number)
        below, above = guard.escaped()
        low, high = guard.range(rows)
        ways = [(side, end) for side, end in ((1, below), (-1, above)) if end is not None]
        ways = [(side, end) for side, end in ways if (low <= end if side > 0 else high >= end)]
        if not guard.may_hold(rows):
            continue
        out = program.variables(np.zeros(len(ways)), np.ones(len(ways)), integral=True)
        total = out.apply(scipy.sparse.csr_matrix(np.ones((1, len(ways))))) if ways else constant(np.zeros(1))
        if len(ways) > 1:
            program.at_least_zero(constant(np.ones(1)) - total)
        for place, (side, end) in enumerate(ways):
            furthest = high - end if side > 0 else end - low
            value = constant(np.array([float(side * end)])) - float(side) * guard.value(row)
            escape = constant(np.ones(1)) - out.take(np.array([place]))
            program.at_least_zero(value + max(furthest, 0.0) * escape)
        _within(program, relation, row, rows, ends, total)


@dataclass(frozen=True, eq=False)
class _Line:
    """One comparison ``<coefficients, row[columns]>  SENSE  bound``."""

    columns: NDArray[np.int64]
    coefficients: Array
    sense: int
    bound: float
    exact: bool

    @classmethod
    def of(cls, lines: Lines, number: int) -> _Line:
        coefficients = lines.coefficients[number].numpy()
        used = coefficients != 0
        columns = lines.columns[number].numpy()[used]
        return cls(
            columns, coefficients[used], int(lines.sense[number]), float(lines.bound[number]), bool(lines.exact[number])
        )

    def value(self, row: Affine) -> Affine:
        """One entry, its left-hand side."""
        return row.take(self.columns).apply(scipy.sparse.csr_matrix(self.coefficients[None]))

    def range(self, rows: Rows) -> tuple[float, float]:
        """Between what the left-hand side lies, and a little more."""
        ends = np.stack([self.coefficients * rows.lower[self.columns], self.coefficients * rows.upper[self.columns]])
        blur = 0.0 if self.exact else 1e-12 * float(np.abs(ends).max(0).sum())
        return float(ends.min(0).sum()) - blur, float(ends.max(0).sum()) + blur

    def slack(self, row: Affine, rows: Rows) -> Affine:
        """One entry, no less than what is forgiven: a share of what goes into the comparison, all counted positive."""
        if self.exact:
            return constant(np.zeros(1))
        low, high = rows.lower[self.columns], rows.upper[self.columns]
        sign = np.where(low >= 0, 1.0, np.where(high <= 0, -1.0, 0.0))
        fixed = np.where(sign == 0, np.maximum(np.abs(low), np.abs(high)), 0.0)
        size = row.take(self.columns).apply(scipy.sparse.csr_matrix((np.abs(self.coefficients) * sign)[None]))
        rest = abs(self.bound) + float(np.abs(self.coefficients) @ fixed)
        return 1.01 * TOLERANCE * (size + constant(np.array([rest])))

    def held(self) -> tuple[float, float]:
        """The closed interval in which the left-hand side lies where the comparison holds, but for :meth:`slack`."""
        bound, whole = self.bound, self.exact
        low = {
            _EQUAL: bound,
            _AT_LEAST: float(np.ceil(bound)) if whole else bound,
            _MORE: float(np.floor(bound)) + 1 if whole else bound,
        }
        high = {
            _EQUAL: bound,
            _AT_MOST: float(np.floor(bound)) if whole else bound,
            _LESS: float(np.ceil(bound)) - 1 if whole else bound,
        }
        return low.get(self.sense, -np.inf), high.get(self.sense, np.inf)

    def escaped(self) -> tuple[float | None, float | None]:
        """Where the comparison does not hold beyond doubt: at or below the first number, at or above the second."""
        bound, whole = self.bound, self.exact
        under, over = (float(np.ceil(bound)) - 1, float(np.floor(bound)) + 1) if whole else (bound, bound)
        at_most, at_least = (float(np.floor(bound)), float(np.ceil(bound))) if whole else (bound, bound)
        return (
            {_AT_LEAST: under, _MORE: at_most, _EQUAL: under}.get(self.sense),
            {_AT_MOST: over, _LESS: at_least, _EQUAL: over}.get(self.sense),
        )

    def may_hold(self, rows: Rows) -> bool:
        """Whether the comparison can hold of any of the rows."""
        low, high = self.range(rows)
        room = 0.0 if self.exact else 1e-9 * (abs(low) + abs(high) + abs(self.bound))
        least, most = self.held()
        return low <= most + room and high >= least - room


def _within(
    program: Program, line: _Line, row: Affine, rows: Rows, ends: tuple[float, float], out: Affine | None
) -> None:
    """The left-hand side lies between ends, but where ``out``, one entry, is 1."""
    value, slack = line.value(row), line.slack(row, rows)
    low, high = line.range(rows)
    for side, end, furthest in ((1.0, ends[0], ends[0] - low), (-1.0, ends[1], high - ends[1])):
        if not np.isfinite(end) or furthest <= 0:
            continue
        inside = side * value - constant(np.array([side * end])) + slack
        program.at_least_zero(inside if out is None else inside + furthest * out)


def _between(program: Program, value: Affine, low: Array, high: Array) -> None:
    program.at_least_zero(value - constant(low))
    program.at_least_zero(constant(high) - value)


def _stacked(first: Affine, second: Affine) -> Affine:
    """The entries of both."""
    count = len(first), len(second)
    upper = scipy.sparse.csr_matrix(
        (np.ones(count[0]), (np.arange(count[0]), np.arange(count[0]))), (sum(count), count[0])
    )
    lower = scipy.sparse.csr_matrix(
        (np.ones(count[1]), (count[0] + np.arange(count[1]), np.arange(count[1]))), (sum(count), count[1])
    )
    return first.apply(upper) + second.apply(lower)


def _array(values: Tensor) -> Array:
    return np.asarray(values.detach().double().flatten().numpy(), np.float64).copy()


def _flags(values: Tensor) -> NDArray[np.bool_]:
    return np.asarray(values.numpy(), bool)
