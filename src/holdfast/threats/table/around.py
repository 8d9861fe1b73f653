"""What rules and a budget say of given clean rows."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from holdfast.threats.norm import safe_divide
from holdfast.threats.table.layout import Layout
from holdfast.threats.table.rows import admissible, reach
from holdfast.threats.table.spending import TableNorm, scale_of

__all__ = ["Around", "around"]


@dataclass(frozen=True, eq=False)
class Around:
    """The rules around clean rows, in float64.

    Parameters
    ----------
    layout, norm
        The rules, and the kind of budget.
    scale : Tensor
        ``(d,)`` how many raw units of a column one unit of the budget is; 0 where a column does not move by itself.
    charged : Tensor
        ``(d,)`` bool, the columns whose moves the budget counts.
    x : Tensor
        ``(N, d)`` the clean rows.
    lower, upper : Tensor
        ``(N, d)`` where columns may go, the budget included where it limits each for itself.
    budget : Tensor
        ``(N,)``.
    rounding : float
        The distance from 1 to the next number in the precision of the rows.
    """

    layout: Layout
    norm: TableNorm
    scale: Tensor
    charged: Tensor
    x: Tensor
    lower: Tensor
    upper: Tensor
    budget: Tensor
    rounding: float

    def take(self, rows: Tensor) -> Self:
        """The same around some of the rows."""
        each = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name in _EACH}
        return replace(self, **each)

    def scaled(self, row: Tensor) -> Tensor:
        """``(N, d)`` changes in units of the budget, 0 in columns that do not move by themselves."""
        return safe_divide(row - self.x, self.scale).masked_fill(~self.layout.moves, 0)

    def box(self) -> tuple[Tensor, Tensor]:
        """``(N, d)`` twice: how far columns may go, in units of the budget."""
        return self.scaled(self.lower), self.scaled(self.upper)

    def obeyed(self, row: Tensor) -> Tensor:
        """``(N,)`` bool, whether rows are admissible."""
        return admissible(self.layout, self.norm, self.budget, self.x, row, self.rounding)


_EACH = ("x", "lower", "upper", "budget")


def around(layout: Layout, norm: TableNorm, budget: Tensor, x: Tensor, rounding: float) -> Around:
    """The rules ``layout`` around clean rows ``x``, ``(N, d)`` in float64, within budgets ``(N,)``."""
    lower, upper = reach(layout, x)
    scale = scale_of(layout, norm)
    charged = scale.isfinite()
    scale = torch.where(charged, scale, layout.unit)
    if norm == "linf":
        # As many whole steps as the budget allows, however its product is rounded.
        room = budget.unsqueeze(1) * scale
        room = torch.where(layout.integer, (room * (1 + 1e-9)).floor(), room)
        lower = torch.where(layout.moves, torch.maximum(lower, x - room), lower)
        upper = torch.where(layout.moves, torch.minimum(upper, x + room), upper)
    scale = scale.masked_fill(~layout.moves, 0)
    return Around(layout, norm, scale, charged, x, lower, upper, budget, rounding)
