"""The nearest row of the convex part: bounds, budget and linear relations, before anything is made whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.threats import l0
from holdfast.threats.norm import Norm
from holdfast.threats.table.layout import Lines

__all__ = ["HalfSpaces", "nearest"]

# A relation is met when its row lies no farther than this outside, in units of the budget.
_CLOSE = 1e-10


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """What relations ask of changes in units of the budget: ``low <= <normal, s> <= high`` a relation and row.

    Parameters
    ----------
    columns : Tensor
        ``(R, K)`` positions of the terms.
    normal : Tensor
        ``(R, K)`` of length 1.
    low, high : Tensor
        ``(N, R)`` ends, infinite where there is none, or where the relation asks nothing of the row.
    """

    columns: Tensor
    normal: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, lines: Lines, scale: Tensor, base: Tensor, active: Tensor, unit: Tensor) -> "HalfSpaces":
        """Comparisons of ``base + scale * s``, those that are ``active``, ``(N, R)`` bool.

        ``scale``, ``(d,)``, is 0 in columns that do not move; comparisons of none that does are left out.
        """
        normal = lines.coefficients * scale[lines.columns]
        length = normal.norm(dim=1)
        low, high = (end - lines.values(base) for end in lines.target(base, unit))
        active = active & (length > 0)
        length = torch.where(length > 0, length, 1.0)
        keep = active.any(0).nonzero()[:, 0]
        return cls(
            lines.columns[keep],
            (normal / length.unsqueeze(1))[keep],
            torch.where(active, low / length, -torch.inf)[:, keep],
            torch.where(active, high / length, torch.inf)[:, keep],
        )

    def take(self, rows: Tensor) -> "HalfSpaces":
        """Those of some rows."""
        return HalfSpaces(self.columns, self.normal, self.low[rows], self.high[rows])

    def excess(self, s: Tensor) -> Tensor:
        """``(N, R)`` how far a row lies outside, with its sign: positive above ``high``, negative below ``low``."""
        value = (s[:, self.columns] * self.normal).sum(2)
        return (value - self.high).clamp_min(0) + (value - self.low).clamp_max(0)


def nearest(
    s: Tensor, norm: Norm, radius: Tensor, lower: Tensor, upper: Tensor, charged: Tensor, half: HalfSpaces, rounds: int
) -> Tensor:
    """The nearest changes inside ball, box and half-spaces, by Dykstra's alternating projections.

    Boyle and Dykstra, "A method for finding projections onto the intersection of convex sets in Hilbert spaces", 1986.
    Of a half-space, the correction that Dykstra's method carries is one number, as in Hildreth's method; ball and box
    are one set, projected onto exactly. Exact at once where no relation is in the way; else as near as ``rounds``
    allow. L0 has no convex ball: its columns are chosen first, without a look at relations.

    Parameters
    ----------
    s : Tensor
        ``(N, d)`` float64 changes in units of the budget.
    norm : Norm
        The norm.
    radius, lower, upper : Tensor
        ``(N, 1)`` the budget, and ``(N, d)`` the box, ``lower <= 0 <= upper``.
    charged : Tensor
        ``(d,)`` bool, the columns that the budget counts.
    half : HalfSpaces
        The relations.
    rounds : int
        How often all sets are projected onto at most.
    """

    def ball(s: Tensor, rows: Tensor) -> Tensor:
        low, high = lower[rows], upper[rows]
        inside = norm.project(s.masked_fill(~charged, 0), radius[rows], *norm.cut(radius[rows], low, high))
        return torch.where(charged, inside, s.clamp(low, high))

    everyone = torch.arange(len(s), device=s.device)
    found = ball(s, everyone)
    if norm is l0:
        lower, upper = (torch.where(charged & (found == 0), 0.0, end) for end in (lower, upper))
    rows = (half.excess(found).abs() > _CLOSE).any(1).nonzero()[:, 0]
    here, s = half.take(rows), s[rows]
    pull, carried = torch.zeros_like(here.high), torch.zeros_like(s)
    for _ in range(rounds):
        if not len(rows):
            break
        before, moved = pull.clone(), s + carried
        s = ball(moved, rows)
        carried = moved - s
        for number in range(len(here.columns)):
            columns, normal = here.columns[number], here.normal[number]
            value = (s[:, columns] * normal).sum(1) + pull[:, number]
            beyond = (value - here.high[:, number]).clamp_min(0) + (value - here.low[:, number]).clamp_max(0)
            # Its correction added back and a new one taken away: along the normal, by what has changed of it.
            s.index_add_(1, columns, (pull[:, number] - beyond).unsqueeze(1) * normal)
            pull[:, number] = beyond
        found[rows] = ball(s, rows)
        still = torch.cat([here.excess(found[rows]), found[rows] - s, pull - before], 1).abs().amax(1) <= _CLOSE
        if bool(still.any()):
            keep = (~still).nonzero()[:, 0]
            rows, here, s, pull, carried = rows[keep], here.take(keep), s[keep], pull[keep], carried[keep]
    return found
