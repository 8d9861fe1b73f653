"""Patch-RS: random search over where a patch lies and what it shows, from scores alone."""

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
from holdfast.threats.needs import needs_patch

__all__ = ["PatchRS"]

# In a run of 10,000 queries, after how many the share of the patch that is painted anew halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000
# A proposal in so many moves the patch, and fewer as the run goes on: with each tenth of it one in so many more.
_MOVES = 5


@dataclass(frozen=True)
class _State:
    z: Tensor  # the choice to look at next
    best: Tensor
    value: Tensor  # the margin there
    looks: Tensor


@dataclass(frozen=True)
class PatchRS:
    """Random search: a window of the patch is painted anew, or the patch moves, and what raises the margin stays.

    A run starts at a random place with vertical stripes. A window is painted in one colour, each channel of it black or
    white; its share of the patch falls from ``alpha`` on, by halves, to a pixel. Moves are uniform in a square that
    shrinks from the whole image to nothing.

    Croce, Andriushchenko, Singh, Flammarion and Hein, "Sparse-RS: a versatile framework for query-efficient sparse
    black-box adversarial attacks", AAAI 2022, arXiv:2006.12834, the section on patches, with the order of proposals of
    the authors' code. Windows here have the shape of the patch, which need not be square.

    Costs ``queries`` forwards a run.

    Parameters
    ----------
    queries : int
        Forward passes a run.
    alpha : float
        The share of the patch that the first windows have.
    restarts : int
        Runs for an example that stays unbroken.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is no patch.
    """

    queries: int = 5000
    alpha: float = 0.4
    restarts: int = 1
    name: ClassVar[str] = "patch-rs"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.queries < 1 or self.restarts < 1 or not 0 < self.alpha <= 1:
            raise SettingError(f"patch-rs: queries and restarts must be positive and alpha in (0, 1], got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> _State:
        threat, x = needs_patch(self.name, problem.threat), problem.x
        draws = problem.draws(problem.rows.run * self.queries)
        z = threat.sample(x, draws)
        channels = (z.shape[1] - 2) // (threat.height * threat.width)
        stripes = _ends(draws.bits(channels * threat.width, lane=2), x).reshape(len(x), channels, 1, threat.width)
        z = torch.cat([z[:, :2], stripes.expand(-1, -1, threat.height, -1).flatten(1)], dim=1)
        z = threat.project(z, x)
        return _State(z, z, x.new_full((len(x),), -torch.inf), torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        values = problem.evaluate(state.z, problem.objective("margin"))
        better = values > state.value
        best, looks = overlay(state.best, state.z, better), state.looks + 1
        return _State(self._proposal(problem, best, looks), best, torch.where(better, values, state.value), looks)

    def done(self, state: _State) -> Tensor:
        return state.looks >= self.queries

    def _proposal(self, problem: Problem, best: Tensor, looks: Tensor) -> Tensor:
        threat, x = needs_patch(self.name, problem.threat), problem.x
        size = torch.tensor([threat.height, threat.width], device=x.device)
        channels = (best.shape[1] - 2) // int(size.prod())
        words = problem.draws(problem.rows.run * self.queries + looks).bits(4 + channels)
        left = 1 - looks / self.queries
        shift = (left * max(x.shape[-2:])).long().unsqueeze(1)
        moves = (looks % (_MOVES * (1 + 10 * looks // self.queries)) == 0) & (shift.squeeze(1) > 0)
        moved = best[:, :2] + ((words[:, :2] * (2 * shift + 1) >> 32) - shift)
        level = torch.bucketize(looks * _SCHEDULE // self.queries, torch.tensor(_HALVINGS, device=x.device))
        side = ((self.alpha * 0.5**level).sqrt().unsqueeze(1) * size).long().clamp_min(1)
        start = words[:, 2:4] * (size - side + 1) >> 32
        rows, columns = (
            (torch.arange(length, device=x.device) >= start[:, axis, None])
            & (torch.arange(length, device=x.device) < (start + side)[:, axis, None])
            for axis, length in enumerate(size.tolist())
        )
        window = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
        content = best[:, 2:].reshape(len(x), channels, *size.tolist())
        painted = torch.where(window, _ends(words[:, 4:], x)[:, :, None, None], content)
        place = torch.where(moves.unsqueeze(1), moved, best[:, :2])
        content = torch.where(moves[:, None, None, None], content, painted)
        return threat.project(torch.cat([place, content.flatten(1)], dim=1), x)


def _ends(words: Tensor, like: Tensor) -> Tensor:
    """Beyond one end of any box, by random words."""
    return torch.where((words & 1).bool(), torch.inf, -torch.inf).to(like.dtype)
