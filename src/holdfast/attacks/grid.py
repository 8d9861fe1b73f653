"""A grid of choices, looked at point after point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_grid
from holdfast.threats.norm import safe_divide

__all__ = ["Grid", "completed", "lattices"]


@dataclass(frozen=True)
class _State:
    points: Tensor  # (N, M, k) each row's grid in the order of looks, zeros after its end
    count: Tensor  # (N,) how many points it has
    iteration: Tensor


@dataclass(frozen=True)
class Grid:
    """Look at every point of a grid over turns, moves and sizes: what robust accuracy under them is usually taken from.

    Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape of spatial robustness", ICML 2019,
    arXiv:1712.02779, section 3.1, with the 31 angles and 5 moves along each axis of section 4. Nothing is known of what
    lies between the points, so the grid is an attack and never a proof. The points come from the corners of the grid
    inwards, since large moves break most.

    Costs a forward pass a point: 775 in rotations and translations, 31 in rotations alone.

    Parameters
    ----------
    rotations, translations, scales : int
        How many angles, moves along each axis, and sizes; where the threat allows none, there is the one that changes
        nothing, and of moves by whole pixels no more than there are.

    Raises
    ------
    SettingError
        When a number is not positive, or the threat has no grid.
    """

    rotations: int = 31
    translations: int = 5
    scales: int = 5
    name: ClassVar[str] = "grid"
    knowledge: ClassVar[Knowledge] = "decision"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if min(self.rotations, self.translations, self.scales) < 1:
            raise SettingError(f"grid: rotations, translations and scales must be positive, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        counts = (self.rotations, self.translations, self.translations, self.scales)
        points, count = lattices(problem, self.name, counts)
        return _State(points, count, torch.zeros_like(count))

    def step(self, problem: Problem, state: _State) -> _State:
        rows = torch.arange(len(problem), device=state.iteration.device)
        problem.decide(completed(problem, state.points[rows, state.iteration]))
        return _State(state.points, state.count, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= state.count


def lattices(problem: Problem, who: str, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each row's grid: ``(N, M, k)`` points in the order of looks, zeros after a row's last; ``(N,)`` how many it has.

    Raises
    ------
    SettingError
        When the threat has none; ``who`` asks.
    """
    threat, x = needs_grid(who, problem.threat), problem.x
    rows = torch.arange(len(x), device=x.device)
    each = [threat.at(rows[i : i + 1]).lattice(x[i], counts) for i in range(len(x))]
    most = math.prod(counts)  # rows with shorter grids and with longer ones share a batch
    points = [functional.pad(_outside_in(found), (0, 0, 0, most - len(found))) for found in each]
    lengths = torch.tensor([len(found) for found in each], dtype=torch.long, device=x.device)
    return torch.stack(points) if points else threat.nothing(x).new_zeros(0, most, 1), lengths


def completed(problem: Problem, points: Tensor) -> Tensor:
    """``(N, D)`` the choices that begin with ``points``, ``(N, k)``, and change nothing besides."""
    nothing = problem.threat.nothing(problem.x)
    return torch.cat([points, nothing[:, points.shape[1] :]], dim=1)


def _outside_in(points: Tensor) -> Tensor:
    """The same points, first those whose shares of the limits have the largest sum."""
    low, high = points.amin(0), points.amax(0)
    shares = safe_divide((points - (low + high) / 2).abs(), high - low)
    return points[shares.sum(1).argsort(descending=True, stable=True)]
