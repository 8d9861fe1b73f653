"""The worst of some random choices: the plainest attack, and for sets of few parameters a strong one."""

from collections.abc import Callable
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
from holdfast.models.query import Query
from holdfast.settings import check
from holdfast.threats import Threat

__all__ = ["WorstOfK", "worst_of"]


@dataclass(frozen=True)
class _State:
    iteration: Tensor


@dataclass(frozen=True)
class WorstOfK:
    """Look at ``k`` random choices and keep the worst.

    Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape of spatial robustness", ICML 2019,
    arXiv:1712.02779, section 3.1, with ``k = 10``. It works in any set, since all sets can be drawn from, and asks for
    no more than the model's class.

    Parameters
    ----------
    k : int
        How many choices; a forward pass each.

    Raises
    ------
    SettingError
        When the number is not positive.
    """

    k: int = 10
    name: ClassVar[str] = "worst-of-k"
    knowledge: ClassVar[Knowledge] = "decision"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.k < 1:
            raise SettingError(f"worst-of-k: k must be positive, got {self.k}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        return _State(torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        z = problem.threat.sample(problem.x, problem.draws(state.iteration))
        problem.evaluate(z, problem.objective("margin"))
        return _State(state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= self.k


def worst_of(
    query: Query, threat: Threat, x: Tensor, draws: Draws, objective: Callable[[Tensor], Tensor], k: int
) -> Tensor:
    """``(N, *choice)`` of ``k`` random choices the one of the highest objective: the inner problem of training.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager.
    threat : Threat
        What may be done; its budgets are those of these rows.
    x : Tensor
        ``(N, ...)`` clean inputs, at most a batch of the query.
    draws : Draws
        The rows' random numbers; their stage is counted on from here.
    objective : callable
        Maps logits ``(N, K)`` to values ``(N,)``.
    k : int
        A forward pass each.
    """
    worst, highest = threat.nothing(x), x.new_full((len(x),), -torch.inf)
    for number in range(k):
        z = threat.sample(x, Draws(draws.seed, draws.index, draws.stage + number, draws.draw))
        values = objective(query.logits(threat.apply(x, z)))
        better = values > highest
        worst, highest = overlay(worst, z, better), torch.where(better, values, highest)
    return worst
