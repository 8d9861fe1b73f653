"""A grid of choices, and smaller and smaller neighbourhoods of its worst points."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.grid import completed, lattices
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_climbing

__all__ = ["RefinedGrid"]


@dataclass(frozen=True)
class _State:
    points: Tensor  # (N, M, k) each row's grid, and how many points it has: as in Grid
    count: Tensor
    spacing: Tensor  # (N, k) from one value of the grid to the next
    worst: Tensor  # (N, keep, k) the points of the highest margins
    values: Tensor  # (N, keep) the margins there
    iteration: Tensor


@dataclass(frozen=True)
class RefinedGrid:
    """Look at every point of a grid, as :class:`~holdfast.attacks.Grid` does, then around its worst ones.

    Each of the points with the highest margins is where a direct search of its own begins: it looks half a spacing of
    the grid to either side along each axis, goes wherever the margin is higher, and halves the distance from round to
    round (Hooke and Jeeves, "'Direct search' solution of numerical and statistical problems", Journal of the ACM 8,
    1961, without their pattern moves).

    Costs, beside the grid, 2 forwards for each of ``keep`` points, each round, and each number of a choice that the
    threat lets change: 240 in rotations and translations, 80 in rotations alone.

    Parameters
    ----------
    rotations, translations, scales : int
        Of the grid.
    keep : int
        How many of its points are searched around.
    rounds : int
        Around each.

    Raises
    ------
    SettingError
        When a number is not positive, or the threat has no grid.
    """

    rotations: int = 31
    translations: int = 5
    scales: int = 5
    keep: int = 10
    rounds: int = 4
    name: ClassVar[str] = "refined-grid"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if min(self.rotations, self.translations, self.scales, self.keep, self.rounds) < 1:
            raise SettingError(f"refined-grid: all numbers must be positive, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        counts = (self.rotations, self.translations, self.translations, self.scales)
        points, count = lattices(problem, self.name, counts)
        needs_climbing(self.name, problem.threat)
        ends, _ = lattices(problem, self.name, [2] * len(counts))
        reach = ends.amax(1) - ends.amin(1)
        values = points.new_full((len(points), self.keep), -torch.inf)
        return _State(
            points=points,
            count=count,
            spacing=reach / (reach.new_tensor(counts)[: reach.shape[1]] - 1).clamp_min(1),
            worst=points.new_zeros(*values.shape, points.shape[2]),
            values=values,
            iteration=torch.zeros_like(count),
        )

    def step(self, problem: Problem, state: _State) -> _State:
        rows = torch.arange(len(problem), device=state.iteration.device)
        coarse = state.iteration < state.count
        turn = (state.iteration - state.count).clamp_min(0)
        place = torch.where(coarse, state.values.argmin(1), turn % self.keep)
        near = state.worst[rows, place] + self._offset(state, turn // self.keep)
        grid = state.points[rows, state.iteration.minimum(state.count - 1)]
        z = completed(problem, torch.where(coarse.unsqueeze(1), grid, near))
        z = problem.climbable.project(z, problem.x)
        values = problem.evaluate(z, problem.objective("margin")).to(state.values.dtype)
        better = values > state.values[rows, place]
        changed = (rows[better], place[better])
        return replace(
            state,
            worst=state.worst.index_put(changed, z[better, : grid.shape[1]]),
            values=state.values.index_put(changed, values[better]),
            iteration=state.iteration + 1,
        )

    def done(self, state: _State) -> Tensor:
        return state.iteration >= state.count + self.keep * self.rounds * _directions(state)

    def _offset(self, state: _State, look: Tensor) -> Tensor:
        """``(N, k)`` from a point to its ``look``-th neighbour, ``(N,)``."""
        directions = _directions(state).clamp_min(1)
        # The axes along which anything changes come first.
        axes = (state.spacing == 0).long().argsort(dim=1, stable=True)
        direction = look % directions
        axis = axes.gather(1, direction.unsqueeze(1) // 2)
        size = state.spacing.gather(1, axis) * 0.5 ** (look // directions + 1).unsqueeze(1)
        side = 1 - 2 * (direction % 2).unsqueeze(1)
        return torch.zeros_like(state.spacing).scatter(1, axis, side * size)


def _directions(state: _State) -> Tensor:
    """``(N,)`` two for each axis along which anything changes."""
    return 2 * (state.spacing > 0).sum(1)
