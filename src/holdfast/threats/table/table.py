"""Rows of a table within rules and a budget."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.threats.budget import Budget, parse_budget
from holdfast.threats.norm import safe_divide
from holdfast.threats.table.around import Around, around
from holdfast.threats.table.checks import check_rows
from holdfast.threats.table.cover import choose, first_cells, halves, of_cells
from holdfast.threats.table.layout import Layout, layout_of
from holdfast.threats.table.mend import FRACTION, mend
from holdfast.threats.table.rows import decode, one_hot, switched
from holdfast.threats.table.rules import Rules
from holdfast.threats.table.spending import TableNorm, distance, norm_of

__all__ = ["Table"]

# Rounds of the search for the nearest row, and for one that is near enough to go on from.
_NEAREST, _NEAR = 2000, 30
_MEASURES = {"raw": "raw", "range": "its range", "std": "its standard deviation"}


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """All rows that obey the rules, within ``eps`` of the clean one.

    A choice ``z`` is a change in raw units, ``(N, d)`` like the rows. What it means is the row that :meth:`apply`
    makes of it: columns of whole numbers are rounded, and of a one-hot group the highest number is the category. So a
    choice may stand between whole numbers, and what counts is always the row. The clean row itself is admissible
    whatever relations say of it; every other row must satisfy them all.

    Parameters
    ----------
    rules : Rules
        What rows may be.
    norm : str
        What the budget counts, with a change of one ``unit`` of a column as 1: ``"linf"`` the largest change,
        ``"l2"`` and ``"l1"`` their length and sum, ``"l0"`` how many columns and groups change, ``"cost"`` the sum of
        changes times costs.
    eps : float, str or Tensor
        The budget: one number, or ``(M,)`` numbers, one an example.
    path : str, optional
        The file of rules, as a user gave it.

    Raises
    ------
    SettingError
        When the budget makes no sense, or nothing bounds a column that may move.
    """

    rules: Rules
    norm: TableNorm
    eps: Budget
    path: str = ""
    # Which examples the rows are, where `at` has been told.
    _index: Tensor | None = field(default=None)
    _layout: Layout = field(init=False)
    # What `near` has worked out, and for which inputs.
    _near: tuple[Tensor, Around] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        place = self.rules.where(0)
        if self.norm not in get_args(TableNorm):
            raise SettingError(f"{place}: unknown norm {self.norm!r}: write one of {', '.join(get_args(TableNorm))}")
        eps = parse_budget(self.eps)
        numbers = torch.as_tensor(eps, dtype=torch.float64)
        if not bool(numbers.isfinite().all()):
            raise SettingError(f"{place}: eps must be finite: the bounds of columns say what no budget limits")
        if self.norm == "l0" and bool((numbers % 1 != 0).any()):
            raise SettingError(f"{place}: an L0 budget counts columns, so eps must be whole numbers")
        object.__setattr__(self, "eps", eps)
        object.__setattr__(self, "_layout", layout_of(self.rules))
        for column in self.rules.columns:
            free = self.norm == "l0" or (self.norm == "cost" and column.cost == 0)
            ends = (column.lower if column.move != "up" else 0, column.upper if column.move != "down" else 0)
            if column.moves and free and math.isinf(column.most) and any(map(math.isinf, ends)):
                raise self.rules.fault(
                    column.line,
                    f"nothing limits how far column {column.name!r} may move: give it bounds, or most",
                )

    @property
    def name(self) -> str:
        if self.path:
            return f"table:{self.path}"
        eps = self.eps
        if isinstance(eps, float):
            return f"table:{self.norm}:{eps:g}"
        return f"table:{self.norm}:{eps.min():g}..{eps.max():g}" if len(eps) else f"table:{self.norm}:no budgets"

    def __repr__(self) -> str:
        moving = sum(column.moves for column in self.rules.columns)
        return (
            f"Table({self.name.partition(':')[2]}, {moving} of {len(self.rules.columns)} columns move, "
            f"{len(self.rules.groups)} groups, {len(self.rules.relations)} relations)"
        )

    def nothing(self, x: Tensor) -> Tensor:
        """``(N, d)`` no change."""
        return torch.zeros_like(self._around(x).x, dtype=x.dtype)

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """The row that the choice means: in its columns' reach, whole where it must be, one category a group."""
        here = self._around(x)
        return decode(here.layout, here.x, here.x + z.double()).to(x.dtype)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool, whether the row obeys all rules and the budget; see :func:`rows.admissible`."""
        return self.admits(self.apply(x, z), x)

    def admits(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` bool, whether some choice gives the row ``x_adv``."""
        return self._around(x).obeyed(x_adv.double())

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` what the change counts, in the units of the budget."""
        here = self._around(x)
        row = self.apply(x, z).double()
        return distance(here.layout, self.norm, row - here.x, switched(here.layout, here.x, row)).to(x.dtype)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """An admissible choice that is nearest, in units of the budget, where nothing is whole and no guard holds.

        Otherwise near: the nearest point of the convex part, then whole numbers, relations met again (:mod:`repair`),
        and no change at all where nothing else is found.
        """
        return self._admit(x, z, _NEAREST)

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """An admissible choice near ``z``, in few rounds."""
        return self._admit(x, z, _NEAR)

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """The gradient with respect to the choice: that of the row, straight through what is rounded."""
        layout = self._around(x).layout
        free = layout.moves.clone()
        for group in layout.groups:
            free[group.columns] = True
        return grad.masked_fill(~free, 0)

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """One step of length ``size``, ``(N,)`` in units of the budget, along the steepest direction of its norm.

        Categories move towards the one of the highest gradient, and are exchanged when that is ahead: at once by a
        step as long as twice the budget.
        """
        here = self._around(x)
        layout, norm = here.layout, norm_of(self.norm)
        grad, size, wanted = grad.double(), size.double(), here.x + z.double()
        s, (lower, upper), gains = here.scaled(wanted), here.box(), grad * here.scale
        radius = here.budget.unsqueeze(1)
        moved = norm.ascend(s, gains, size.unsqueeze(1), radius, *norm.cut(radius, lower, upper))
        free = torch.where(gains > 0, upper, torch.where(gains < 0, lower, s))
        target = here.x + torch.where(here.charged, moved, free) * here.scale
        rate = safe_divide(size, here.budget).clamp_max(2).unsqueeze(1)
        for group in layout.groups:
            columns = group.columns
            score = wanted[:, columns]
            lean = _lean(group.allowed, here.x[:, columns], score, grad[:, columns])
            target[:, columns] = (score + rate * lean).clamp(0, 1)
        return self._admit(x, (target - here.x).to(x.dtype), _NEAR)

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """A random admissible choice: uniform in ball and bounds, categories at random, then made to obey."""
        here = self._around(x)
        layout, target = here.layout, here.x.clone()
        columns = layout.moves.nonzero()[:, 0]
        if len(columns):
            norm, radius = norm_of(self.norm), here.budget.unsqueeze(1)
            lower, upper = (end[:, columns] for end in here.box())
            s = norm.sample(rng, radius, *norm.cut(radius, lower, upper), like=lower)
            target[:, columns] += s * here.scale[columns]
        for number, group in enumerate(layout.groups):
            count = len(group.columns)
            change = rng.uniform(count + 1, lane=4 + number % 8).to(target)
            clean = here.x[:, group.columns]
            target[:, group.columns] = torch.where(change[:, count:] < 0.5, change[:, :count], clean)
        return self._admit(x, (target - here.x).to(x.dtype), _NEAR)

    def cells(self, x: Tensor) -> Tensor:
        """``(M, 3 d)`` a cell for each combination of categories, where there are few; see :mod:`cover`."""
        return first_cells(self._around(x.unsqueeze(0)), x.dtype)

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """``(M, d)`` lower and upper bounds of the rows of cells."""
        lower, upper, _ = of_cells(cells)
        return lower, upper

    def choose(self, x: Tensor, cells: Tensor, point: Tensor) -> Tensor:
        """``(M, d)`` an admissible choice of each cell; no change where a cell seems to have none."""
        rows = choose(self._around(x.unsqueeze(0)), cells, point)
        clean = x.expand(len(cells), -1)
        z = (rows - clean.double()).to(x.dtype)
        return torch.where(self.contains(clean, z).unsqueeze(1), z, 0)

    def split(self, cells: Tensor) -> Tensor:
        """``(2 M, 3 d)`` two parts of each cell: categories, then whole numbers, then halves."""
        return halves(self._around(of_cells(cells)[2][:1]), cells) if len(cells) else cells

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` the budget of each row."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if eps.dim() and len(eps) not in (1, len(x)):
            raise DataError(f"{len(eps)} budgets for {len(x)} examples: give one number, or one for each example")
        return eps.expand(len(x))

    def at(self, index: Tensor) -> Self:
        """The threat to the examples ``index``."""
        eps = self.eps
        if isinstance(eps, Tensor):
            if len(index) and int(index.max()) >= len(eps):
                raise DataError(f"example {int(index.max())} has no budget: eps holds only {len(eps)}")
            eps = eps.to(index.device)[index]
        return replace(self, eps=eps, _index=index)

    def near(self, x: Tensor) -> Self:
        """The same threat, quicker at these very rows.

        Raises
        ------
        DataError
            When a row is none that the rules are for: see :func:`checks.check_rows`.
        """
        threat = replace(self)
        object.__setattr__(threat, "_near", (x, self._around(x)))
        return threat

    def units(self) -> dict[str, str]:
        """By column and group that may change, what one unit of the budget is, in words: ``"20 (its range)"``."""
        words = {
            column.name: f"{column.unit:g} ({_MEASURES[column.measure]})"
            + (f", at {column.cost:g} each" if self.norm == "cost" else "")
            for column in self.rules.columns
            if column.moves
        }
        for group in self.rules.groups:
            counts = 1 if self.norm == "l0" else group.cost if self.norm == "cost" else group.distance
            words[group.name] = f"another category counts {counts:g}"
        return words

    def to_dict(self) -> dict[str, Any]:
        """Norm, budget and rules in plain numbers, texts and lists; None for a bound that is not there."""
        eps = self.eps.tolist() if isinstance(self.eps, Tensor) else self.eps
        return {"norm": self.norm, "eps": eps, "rules": self.rules.to_dict()}

    def _around(self, x: Tensor) -> Around:
        if self._near is not None and self._near[0] is x:
            return self._near[1]
        layout, clean = self._layout.to(x.device), x.double()
        check_rows(self.rules, layout, clean, self._index)
        return around(layout, self.norm, self.budget(clean), clean, torch.finfo(x.dtype).eps)

    def _admit(self, x: Tensor, z: Tensor, rounds: int) -> Tensor:
        """Choices, those that are admissible as they are and others mended."""
        here = self._around(x)
        layout, wanted = here.layout, here.x + z.double()
        # What no column reaches is forgotten, lest it take as long to come back.
        slack = FRACTION * layout.integer.double()
        reached = wanted.clamp(here.lower - slack, here.upper + slack)
        reached = torch.where(layout.moves, reached, wanted)
        z = torch.where(reached == wanted, z, (reached - here.x).to(z.dtype))
        bad = (~self._means_admissible(here, z)).nonzero()[:, 0]
        if not len(bad):
            return z
        part = here.take(bad)
        change = (mend(part, wanted[bad].nan_to_num(0.0), rounds) - part.x).to(z.dtype)
        obeys = self._means_admissible(part, change)
        return z.index_copy(0, bad, torch.where(obeys.unsqueeze(1), change, 0))

    def _means_admissible(self, here: Around, z: Tensor) -> Tensor:
        return here.obeyed(decode(here.layout, here.x, here.x + z.double()).to(z.dtype).double())


def _lean(allowed: Tensor, clean: Tensor, score: Tensor, grad: Tensor) -> Tensor:
    """``(N, k)`` where the numbers of a category's columns are to go: from the one they mean to the best one."""
    now = one_hot(allowed, clean, score).argmax(1, keepdim=True)
    open_ = allowed[clean.argmax(1)]
    gain = (grad - grad.gather(1, now)).masked_fill(~open_, 0)
    return safe_divide(gain - gain.amax(1, keepdim=True) / 2, gain.abs().amax(1, keepdim=True))
