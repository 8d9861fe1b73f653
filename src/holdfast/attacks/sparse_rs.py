"""Sparse-RS: random search over which coordinates to change, from scores alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball

__all__ = ["SparseRS"]

# In a run of 10,000 queries, by what alpha is divided after so many proposals; shorter runs shrink the schedule.
_CHANGES = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)


@dataclass(frozen=True)
class _State:
    z: Tensor  # the perturbation to look at next
    best: Tensor
    value: Tensor  # the margin there
    order: Tensor  # (N, d) the coordinates, those that z changes first
    best_order: Tensor
    looks: Tensor


@dataclass(frozen=True)
class SparseRS:
    """Random search in L0: some of the changed coordinates are exchanged for others, and what raises the margin stays.

    A run starts from ``eps`` random coordinates, each at a random end of its box. A proposal takes back
    ``alpha_t * eps`` of the changes and makes as many others; ``alpha_t`` falls from ``alpha`` to a twentieth of it.

    Croce, Andriushchenko, Singh, Flammarion and Hein, "Sparse-RS: a versatile framework for query-efficient sparse
    black-box adversarial attacks", AAAI 2022, arXiv:2006.12834, algorithm 1 and the L0 section, with the schedule of
    the authors' code. There a change is a pixel with all its channels; here it is a coordinate, as the budget counts
    them. A coordinate that stands at one end of its box goes to the other. Where the budget covers every coordinate,
    a proposal turns changes to their other ends.

    Costs ``queries`` forwards a run.

    Parameters
    ----------
    queries : int
        Forward passes a run.
    alpha : float
        The share of the changes that the first proposals exchange.
    restarts : int
        Runs for an example that stays unbroken.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is not L0.
    """

    queries: int = 5000
    alpha: float = 0.3
    restarts: int = 1
    name: ClassVar[str] = "sparse-rs"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.queries < 1 or self.restarts < 1 or not 0 < self.alpha <= 1:
            raise SettingError(f"sparse-rs: queries and restarts must be positive and alpha in (0, 1], got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> _State:
        needs_ball("sparse-rs", problem.threat, "square", ("l0",))
        x, zero = problem.x, torch.zeros_like(problem.rows.index)
        draws = problem.draws(problem.rows.run * self.queries)
        order = draws.bits(x.shape[1:].numel()).argsort(dim=1, stable=True)
        changed = torch.arange(order.shape[1], device=x.device) < _budget(problem).unsqueeze(1)
        up = (draws.bits(order.shape[1], lane=1) & 1).bool()
        changes = torch.where(changed, _ends(problem, order, up), 0)
        z = torch.zeros_like(changes).scatter(1, order, changes).reshape(x.shape)
        return _State(z, z, x.new_full((len(x),), -torch.inf), order, order, zero)

    def step(self, problem: Problem, state: _State) -> _State:
        values = problem.evaluate(state.z, problem.objective("margin"))
        better = values > state.value
        best, order = overlay(state.best, state.z, better), overlay(state.best_order, state.order, better)
        looks = state.looks + 1
        z, proposed = self._exchange(problem, best, order, looks)
        return _State(z, best, torch.where(better, values, state.value), proposed, order, looks)

    def done(self, state: _State) -> Tensor:
        return state.looks >= self.queries

    def _exchanged(self, problem: Problem, looks: Tensor) -> Tensor:
        """``(N,)`` how many changes the proposal exchanges."""
        device = looks.device
        level = torch.bucketize(looks * 10_000 // self.queries, torch.tensor(_CHANGES, device=device))
        share = self.alpha / torch.tensor(_DIVISORS, device=device, dtype=torch.float64)[level]
        return (share * _budget(problem)).long().clamp_min(1)

    def _exchange(self, problem: Problem, best: Tensor, order: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
        """A proposal: the first of ``order`` against others, both drawn without replacement by swaps within it."""
        features, budget = order.shape[1], _budget(problem)
        # Where every coordinate is changed there are no others, and a change is exchanged for its own other end.
        others = torch.where(budget < features, budget, 0)
        wanted = self._exchanged(problem, looks).minimum(budget).minimum(features - others)
        most = int(wanted.max()) if len(wanted) else 0
        words = problem.draws(problem.rows.run * self.queries + looks).bits(3 * max(most, 1))
        z, order = best.flatten(1).clone(), order.clone()
        for number in range(most):
            # Rows that want fewer swap a coordinate with itself and leave it as it is.
            here = number < wanted
            out = torch.where(here, number, 0)
            into = torch.where(here, others + number, 0)
            word = words[:, 3 * number : 3 * number + 3]
            _swap(order, out, torch.where(here, number + (word[:, 0] * (budget - number) >> 32), 0))
            _swap(order, into, torch.where(here, into + (word[:, 1] * (features - into) >> 32), 0))
            leaving, entering = order.gather(1, out.unsqueeze(1)), order.gather(1, into.unsqueeze(1))
            old = z.gather(1, entering)
            ends = _ends(problem, entering, (word[:, 2:] & 1).bool())
            other = _ends(problem, entering, old <= 0)
            z.scatter_(1, leaving, torch.where(here.unsqueeze(1), 0, z.gather(1, leaving)))
            value = torch.where((others < budget).unsqueeze(1), other, ends)
            z.scatter_(1, entering, torch.where(here.unsqueeze(1), value, z.gather(1, entering)))
            _swap(order, out, into)
        return z.reshape(best.shape), order


def _budget(problem: Problem) -> Tensor:
    """``(N,)`` how many coordinates a row may change."""
    return problem.threat.budget(problem.x).clamp_max(problem.x.shape[1:].numel()).long()


def _ends(problem: Problem, coordinates: Tensor, up: Tensor) -> Tensor:
    """``(N, k)`` the changes that take coordinates to an end of their box: where one is there already, to the other."""
    lower, upper = (
        bound.expand_as(problem.x).flatten(1).gather(1, coordinates) for bound in problem.ball.box.around(problem.x)
    )
    return torch.where((up | (lower == 0)) & (upper != 0), upper, lower)


def _swap(order: Tensor, first: Tensor, second: Tensor) -> None:
    """Exchange two columns, ``(N,)`` each, in place."""
    pair = torch.stack([first, second], 1)
    order.scatter_(1, pair, order.gather(1, pair.flip(1)))
