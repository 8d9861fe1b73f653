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

    def dense(self, columns: int) -> Tensor:
        """``(R, d)`` the normals with all their columns."""
        full = torch.zeros(len(self.columns), columns, dtype=self.normal.dtype, device=self.normal.device)
        return full.scatter_add(1, self.columns, self.normal)

    def values(self, s: Tensor) -> Tensor:
        """``(N, R)`` the products of changes with the normals."""
        return (s[:, self.columns] * self.normal).sum(2)

    def excess(self, s: Tensor) -> Tensor:
        """``(N, R)`` how far a row lies outside, with its sign: positive above ``high``, negative below ``low``."""
        value = self.values(s)
        return (value - self.high).clamp_min(0) + (value - self.low).clamp_max(0)


def nearest(
    s: Tensor, norm: Norm, radius: Tensor, lower: Tensor, upper: Tensor, charged: Tensor, half: HalfSpaces, rounds: int
) -> Tensor:
    """The nearest changes inside ball, box and half-spaces, by accelerated ascent of the dual.

    With a multiplier for each relation, the nearest point is the projection of ``s`` less the multipliers' normals onto
    ball and box, which is exact; how far that lies outside the relations is the gradient for the multipliers. Beck and
    Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM Journal on Imaging Sciences 2009, restarted
    where the momentum points downhill (O'Donoghue and Candes, 2015). Exact at once where no relation is in the way;
    else as near as ``rounds`` allow. L0 has no convex ball: its columns are chosen first, without a look at relations.

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
        Steps at most.
    """

    def ball(s: Tensor, rows: Tensor) -> Tensor:
        low, high = lower[rows], upper[rows]
        inside = norm.project(s.masked_fill(~charged, 0), radius[rows], *norm.cut(radius[rows], low, high))
        return torch.where(charged, inside, s.clamp(low, high))

    found = ball(s, torch.arange(len(s), device=s.device))
    if norm is l0:
        lower, upper = (torch.where(charged & (found == 0), 0.0, end) for end in (lower, upper))
    rows = (half.excess(found).abs() > _CLOSE).any(1).nonzero()[:, 0]
    if not len(rows):
        return found
    here, s, normals = half.take(rows), s[rows], half.dense(s.shape[1])
    step = 1 / torch.linalg.matrix_norm(normals @ normals.T, 2)
    multiplier = ahead = torch.zeros_like(here.high)
    age = torch.ones_like(here.high[:, :1])
    for _ in range(rounds):
        point = ball(s - (ahead.unsqueeze(2) * normals).sum(1), rows)
        wanted = ahead / step + here.values(point)
        after = step * (wanted - wanted.clamp(here.low, here.high))
        moved = after - multiplier
        downhill = ((ahead - after) * moved).sum(1, keepdim=True) > 0
        older = torch.where(downhill, 1.0, (1 + (1 + 4 * age**2).sqrt()) / 2)
        ahead = after + torch.where(downhill, 0.0, (age - 1) / older) * moved
        multiplier, age = after, older
        found[rows] = point
        going = (torch.cat([moved, here.excess(point)], 1).abs().amax(1) > _CLOSE).nonzero()[:, 0]
        if len(going) < len(rows):
            rows, here, s = rows[going], here.take(going), s[going]
            multiplier, ahead, age = multiplier[going], ahead[going], age[going]
        if not len(rows):
            break
    return found
