"""Gradients estimated from scores alone: what NES and SPSA share.

A row looks at its iterate, then at ``samples`` probes around it, in pairs on opposite sides, then moves; one query a
step, so that rows of all ages share a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.engine.problem import Problem
from holdfast.engine.rows import overlay
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.norm import column

__all__ = ["Climb", "Probing", "gaussian", "rademacher"]


@dataclass(frozen=True)
class Climb:
    """The rows' climbs.

    Parameters
    ----------
    z : Tensor
        ``(N, ...)`` the iterates.
    noise : Tensor
        ``(N, ...)`` direction of the current pair of probes.
    total : Tensor
        ``(N, ...)`` the estimate, summed over the pairs so far.
    ahead : Tensor
        ``(N,)`` the objective at the first probe of the pair.
    looks : Tensor
        ``(N,)`` queries made in this run.
    mean, square : Tensor or None
        ``(N, ...)`` running means of the estimates and their squares, where a method keeps them.
    """

    z: Tensor
    noise: Tensor
    total: Tensor
    ahead: Tensor
    looks: Tensor
    mean: Tensor | None
    square: Tensor | None

    @classmethod
    def start(cls, problem: Problem, *, moments: bool) -> "Climb":
        """Every row at its clean input."""
        still = torch.zeros_like(problem.x)
        kept = still if moments else None
        return cls(still, still, still, problem.x.new_zeros(len(problem)), problem.rows.run * 0, kept, kept)


@dataclass(frozen=True)
class Probing:
    """How estimates are made.

    Parameters
    ----------
    steps : int
        Moves a run.
    samples : int
        Probes a move, an even number.
    radius : float
        Factor of the noise.
    objective : str
        What is looked at.
    noise : callable
        ``(rng, count) -> (N, count)`` random directions of identity covariance.
    """

    steps: int
    samples: int
    radius: float
    objective: ObjectiveName
    noise: Callable[[Draws, int], Tensor]

    def look(self, problem: Problem, climb: Climb) -> tuple[Climb, Tensor]:
        """One query for every row, and ``(N,)`` bool, whose estimates are complete with it."""
        probe = climb.looks % (self.samples + 1)
        side = torch.where(probe == 0, 0, torch.where(probe % 2 == 1, self.radius, -self.radius)).to(climb.z.dtype)
        point = torch.addcmul(climb.z, column(side, climb.z), climb.noise)
        values = problem.evaluate(point, problem.objective(self.objective))
        # What the second probe of a pair adds to the sum, the first look of a move being at the iterate itself.
        rise = torch.where((probe > 0) & (probe % 2 == 0), (climb.ahead - values) / (2 * self.radius), 0)
        # One NaN would stay in the sum for ever.
        rise = rise.nan_to_num(0.0, 0.0, 0.0) / (self.samples // 2)
        climb = replace(
            climb,
            total=torch.addcmul(climb.total, column(rise, climb.z), climb.noise),
            ahead=values,
            looks=climb.looks + 1,
        )
        return replace(climb, noise=self._noise(problem, climb)), probe == self.samples

    def moved(self, climb: Climb, z: Tensor, complete: Tensor) -> Climb:
        """The rows ``complete`` (a mask) at their new iterates, ready for other estimates."""
        return replace(
            climb,
            z=overlay(climb.z, z, complete),
            total=overlay(climb.total, torch.zeros_like(z), complete),
        )

    def done(self, climb: Climb) -> Tensor:
        """The last iterate is only looked at."""
        return climb.looks > self.steps * (self.samples + 1)

    def _noise(self, problem: Problem, climb: Climb) -> Tensor:
        """The noise of the next probe, which is new where it is the first of a pair."""
        pairs = self.samples // 2
        move, probe = climb.looks // (self.samples + 1), climb.looks % (self.samples + 1)
        due = (probe % 2 == 1).nonzero()[:, 0]
        if not len(due):
            return climb.noise
        number = (problem.rows.run * self.steps + move) * pairs + probe // 2
        draws = problem.draws(number)
        fresh = self.noise(replace(draws, index=draws.index[due], draw=number[due]), climb.z.shape[1:].numel())
        fresh = fresh.to(climb.z.dtype).reshape(-1, *climb.z.shape[1:])
        return fresh if len(due) == len(climb.z) else climb.noise.index_copy(0, due, fresh)


def gaussian(rng: Draws, count: int) -> Tensor:
    """``(N, count)`` standard normal numbers."""
    return rng.normal(count)


def rademacher(rng: Draws, count: int) -> Tensor:
    """``(N, count)`` signs, each 1 or -1 with probability a half."""
    words = rng.bits(-(-count // 32)).unsqueeze(2)
    return (words >> torch.arange(32, device=words.device) & 1).flatten(1)[:, :count] * 2 - 1
