"""Evolution: a small population of choices, crossed and changed a few numbers at a time, from scores alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_climbing

__all__ = ["Evolution"]

# The share of the children that two members have made, and of those of whose changes some are taken back.
_CROSSED, _TAKEN_BACK = 0.3, 0.5


@dataclass(frozen=True)
class _State:
    z: Tensor  # the choice to look at next
    members: Tensor  # (N, P, *choice) the population
    values: Tensor  # (N, P) their margins; -inf where a place is still free
    looks: Tensor


@dataclass(frozen=True)
class Evolution:
    """Search by crossing and mutation, in any set that has steps; it needs no gradient, only the model's scores.

    A steady-state genetic algorithm on the margin, one child a query. The first ``population`` members are random
    choices. A child is the better of two random members, in three of ten cases crossed with a third, every number from
    the one or the other; in half of the cases some of its changes are taken back; then a few numbers, often only one,
    step by a random length up to the whole width of the budget, and the set makes the result admissible. It takes the
    place of the worst member unless it is worse itself: equals replace, so that the search drifts across the plateaus
    of trees.

    In the spirit of MOEVA (Simonetto, Dyrmishi, Ghamizi, Cordy and Le Traon, "A unified framework for adversarial
    attack and defense in constrained feature space", IJCAI 2022, arXiv:2112.01156), a genetic algorithm for tables
    whose objectives are misclassification, distance and violated constraints. Here every member is admissible, so
    that the margin alone is left.

    Costs ``queries`` forwards a run.

    Parameters
    ----------
    queries : int
        Forward passes a run.
    population : int
        Members.
    restarts : int
        Runs for an example that stays unbroken.

    Raises
    ------
    SettingError
        When a number makes no sense, or the set has no steps.
    """

    queries: int = 1000
    population: int = 8
    restarts: int = 1
    name: ClassVar[str] = "evolution"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.queries < 1 or self.population < 2 or self.restarts < 1:
            raise SettingError(
                f"evolution: queries and restarts must be positive and population at least 2, got {self}"
            )

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> _State:
        needs_climbing(self.name, problem.threat)
        z, x = self._start(problem, self._draws(problem, torch.zeros_like(problem.rows.index))), problem.x
        members = z.unsqueeze(1).repeat_interleave(self.population, 1)
        values = x.new_full((len(x), self.population), -torch.inf)
        return _State(z, members, values, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        found = problem.evaluate(state.z, problem.objective("margin"))
        everyone = torch.arange(len(found), device=found.device)
        worst = state.values.argmin(1)
        enters = found >= state.values[everyone, worst]
        place = (everyone, worst)
        members = state.members.index_put(place, overlay(state.members[place], state.z, enters))
        values = state.values.index_put(place, torch.where(enters, found, state.values[place]))
        looks = state.looks + 1
        draws = self._draws(problem, looks)
        fresh = looks < self.population
        z = self._child(problem, members, values, draws)
        if bool(fresh.any()):
            z = overlay(z, self._start(problem, draws), fresh)
        return _State(z, members, values, looks)

    def done(self, state: _State) -> Tensor:
        return state.looks >= self.queries

    def _draws(self, problem: Problem, looks: Tensor) -> Draws:
        return problem.draws(problem.rows.run * self.queries + looks)

    def _start(self, problem: Problem, draws: Draws) -> Tensor:
        """A random choice, and from there a step along random signs that is as long as the budget is wide."""
        z = problem.climbable.sample(problem.x, draws)
        signs = torch.where(draws.uniform(z.shape[1:].numel(), lane=5) < 0.5, -1.0, 1.0).to(z.dtype).reshape(z.shape)
        return problem.climbable.ascend(z, problem.x, signs, 2 * problem.threat.budget(problem.x))

    def _child(self, problem: Problem, members: Tensor, values: Tensor, draws: Draws) -> Tensor:
        everyone = torch.arange(len(values), device=values.device)
        count = members.shape[2:].numel()
        coins = draws.uniform(6)
        picks = (coins[:, :3] * self.population).long()
        rivals = values.gather(1, picks[:, :2])
        parent = picks[:, 0].where(rivals[:, 0] >= rivals[:, 1], picks[:, 1])
        child, other = members[everyone, parent].flatten(1), members[everyone, picks[:, 2]].flatten(1)
        side, back, order = (draws.uniform(count, lane=lane) for lane in (1, 2, 3))
        child = torch.where((coins[:, 3:4] < _CROSSED) & (side < 0.5), other, child)
        # How many numbers move: from one to all, each power of two as often as the others.
        moving = count ** draws.uniform(2, lane=4)
        nothing = problem.threat.nothing(problem.x).flatten(1)
        taken = (coins[:, 4:5] < _TAKEN_BACK) & (back * count < moving[:, :1])
        child = torch.where(taken, nothing, child).reshape(members[:, 0].shape)
        rank = order.argsort(1).argsort(1)
        sign = torch.where(draws.uniform(count, lane=5) < 0.5, -1.0, 1.0)
        # Gradients of different sizes, so that sets which spend a budget on the best few numbers spend it differently.
        grad = torch.where(rank < moving[:, 1:], sign * (1 + order), 0.0).to(child.dtype).reshape(child.shape)
        size = 2 * coins[:, 5].to(child.dtype) * problem.threat.budget(problem.x)
        return problem.climbable.ascend(child, problem.x, grad, size)
