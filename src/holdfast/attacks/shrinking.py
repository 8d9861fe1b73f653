"""Gradient ascent in a ball that shrinks below the nearest adversarial input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import around, keep, objective, ranking, refine, worst_length
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["ShrinkingBall"]

_NORMS = ("linf", "l2", "l1")

_MOMENTUM = 0.75  # the share of the new step in a move, as in APGD
_STRIDE = 2.0  # the first step of a run, in radii, or in gaps where the run starts at the nearest choice
_LAST_GAP = 0.02
_GROWTH, _BEYOND, _FARTHEST = 1.5, 1.001, 1e10  # of the radius while nothing has been found


@dataclass(frozen=True)
class _State:
    z: Tensor
    last: Tensor  # the point before z
    radius: Tensor  # (N,) of the ball
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    iteration: Tensor


@dataclass(frozen=True)
class ShrinkingBall:
    """Short runs of gradient ascent, all over a ball that is always a little smaller than the nearest distance so far.

    An attack that follows the boundary from one adversarial input ends at the nearest point of its own stretch of it;
    where there are several, only other starts find the others. Runs start in turn at a random point of the ball and at
    the nearest adversarial choice, drawn back into it. They are those of :class:`AnnealedPGD`: APGD's move, with a step
    that follows half a cosine from large to 0, large being the ball's diameter from a random point, and twice the gap
    between ball and nearest distance from the nearest one. What is found shrinks the ball at once, and what an earlier
    stage has found is where it starts; before anything is, the radius is the linearised distance to the boundary, and
    grows by half a look. There is the refinement at the end.

    Random restarts are those of Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to
    adversarial attacks", ICLR 2018, arXiv:1706.06083, section 4, and the shrinking radius that of Pintor, Roli, Brendel
    and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints", NeurIPS 2021,
    arXiv:2102.12827, algorithm 1; the combination is not published. Under a finite budget the ball is that of the
    budget, and all starts are random.

    Costs ``runs * steps + refine`` forwards, and a backward less a run and for the refinement.

    Parameters
    ----------
    steps : int
        Looks a run; the last one of a run needs no gradient.
    runs : int
        How many starts.
    gap : float
        By which share the first run's ball is smaller than the nearest distance; the last one's is 0.02, with equal
        ratios between them.
    targets : int
        The runs from random points raise the margin, and in turn the logit of each of the ``targets`` classes (at
        most K - 1) that rank next to the label in the clean logits; any wrong class is success.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is none of L-infinity, L2 and L1.
    """

    steps: int = 10
    runs: int = 30
    gap: float = 0.3
    targets: int = 3
    refine: int = 20
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 2 or self.runs < 1 or self.targets < 0 or self.refine < 0 or not 0 < self.gap < 1:
            raise SettingError(
                "shrinking-ball: steps must be at least 2, runs positive, targets and refine at least 0 and gap within "
                f"(0, 1), got {self}"
            )

    @property
    def name(self) -> str:
        return "shrinking-ball"

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball("shrinking-ball", problem.threat, "sigma-zero", _NORMS)
        rows, zero = problem.rows, torch.zeros_like(problem.x)
        known = problem.nearest & rows.found
        length = torch.where(known, -rows.value, torch.inf)
        best = torch.where(column(known, zero), rows.best, zero)
        radius = self._radius(problem, length, torch.zeros_like(length), torch.zeros_like(rows.index))
        z = around(problem, radius).sample(problem.x, problem.draws(0))
        return _State(z, z, radius, best, length, torch.full_like(zero, torch.inf), torch.zeros_like(rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        age = state.iteration - self.runs * self.steps
        run, turn = state.iteration // self.steps, state.iteration % self.steps
        ending = turn == self.steps - 1
        answer = problem.gradient(
            state.z,
            objective(problem, state.length, age, self.refine, self._aim(problem, run)),
            needed=torch.where(age < 0, ~ending, age + 1 < self.refine),
        )
        best, length = keep(problem, state.z, state.best, state.length)
        searching = problem.nearest & length.isinf()
        grown = self._grown(problem, state, answer.values, answer.grad, ending)
        radius = self._radius(problem, length, grown, (state.iteration + 1) // self.steps)
        ball, x = around(problem, radius), problem.x
        share = (1 + torch.cos(torch.pi * turn / self.steps)) / 2
        size = _STRIDE * share * torch.where(self._local(run, length), self._gap(run), 1.0)
        size = torch.where(searching, radius, radius * size.to(radius.dtype))
        ahead = ball.ascend(state.z, x, answer.grad, size)
        moved = ball.retract(_MOMENTUM * ahead + (1 - _MOMENTUM) * (2 * state.z - state.last), x)
        moved = torch.where(column((turn == 0) | searching, x), ahead, moved)
        last = state.z
        if bool(ending.any()):
            start = ball.sample(x, problem.draws(run + 1))
            start = torch.where(column(self._local(run + 1, length), x), ball.retract(best, x), start)
            moved, last = (torch.where(column(ending, x), start, other) for other in (moved, last))
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(z, last, radius, best, length, candidate, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= self.runs * self.steps + self.refine

    def _gap(self, run: Tensor) -> Tensor:
        """``(N,)`` by which share the ball is smaller than the nearest distance."""
        ratio = min(_LAST_GAP / self.gap, 1.0)
        return self.gap * ratio ** (run.clamp_max(self.runs - 1) / max(self.runs - 1, 1))

    def _radius(self, problem: Problem, length: Tensor, grown: Tensor, run: Tensor) -> Tensor:
        unknown = torch.where(problem.nearest, grown, problem.threat.budget(problem.x))
        return torch.where(length.isinf(), unknown, (1 - self._gap(run)).to(length.dtype) * length)

    @staticmethod
    def _grown(problem: Problem, state: _State, values: Tensor, grad: Tensor, blind: Tensor) -> Tensor:
        """The next radius of a ball in which nothing has been found."""
        distance = problem.ball.length(problem.x + state.z - problem.x)
        ahead = _BEYOND * (distance + safe_divide(values.abs(), problem.ball.dual_norm(grad)))
        grown = (_GROWTH * state.radius).maximum(torch.where(blind, 0, ahead))
        return grown.minimum(worst_length(problem)).clamp_max(_FARTHEST).to(state.radius.dtype)

    @staticmethod
    def _local(run: Tensor, length: Tensor) -> Tensor:
        """``(N,)`` bool, the runs that start at the nearest adversarial choice."""
        return (run % 2 == 1) & length.isfinite()

    def _aim(self, problem: Problem, run: Tensor) -> Callable[[Tensor], Tensor]:
        """The margin, or in some runs how far another class's logit is above the label's."""
        margin = problem.objective("margin")
        if not self.targets or problem.rows.target is not None:
            return margin
        classes = ranking(problem)[:, : self.targets]
        rank = torch.where(run % 2 == 0, (run // 2) % (1 + classes.shape[1]), 0)
        rival, label = classes.gather(1, (rank - 1).clamp_min(0).unsqueeze(1)), problem.rows.y.unsqueeze(1)

        def aims(logits: Tensor) -> Tensor:
            rise = (logits.gather(1, rival) - logits.gather(1, label)).squeeze(1)
            return torch.where(rank > 0, rise, margin(logits))

        return aims
