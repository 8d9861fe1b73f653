"""Decoupled direction and norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import around, keep, objective, refine, worst_length
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column

__all__ = ["DDN"]

_LAST = 0.01  # the step size's end, as a share of its start


@dataclass(frozen=True)
class _State:
    z: Tensor
    radius: Tensor  # (N,) of the sphere that the next point lies on
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    iteration: Tensor


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm, in L2: gradient steps on a sphere that shrinks while the model is fooled.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient
    gradient-based L2 adversarial attacks and defenses", CVPR 2019, arXiv:1811.09600, algorithm 1, with the step sizes
    of its section 5 (from 1 down to 0.01 along a cosine). Added to the paper: the refinement at the end. Left out by
    default: the rounding to 256 levels.

    Costs ``steps + refine`` forwards and one backward less.

    Parameters
    ----------
    steps : int
        Iterations of the published attack.
    gamma : float
        The share by which the sphere shrinks or grows.
    init_norm : float
        Its first radius.
    levels : int, optional
        Round every iterate to so many levels between the bounds of the box; the refinement is left out then.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``; 0 for the published attack.

    Raises
    ------
    SettingError
        When a number makes no sense, the threat is not L2, or levels are asked for without a finite box.
    """

    steps: int = 100
    gamma: float = 0.05
    init_norm: float = 1.0
    levels: int | None = None
    refine: int = 20
    name: ClassVar[str] = "ddn"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.refine < 0 or not 0 < self.gamma < 1 or not self.init_norm > 0:
            raise SettingError(
                f"ddn: steps and init_norm must be positive, refine at least 0 and gamma within (0, 1), got {self}"
            )
        if self.levels is not None and self.levels < 2:
            raise SettingError(f"ddn: levels must be at least 2, or None for no rounding, got {self.levels}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        box = needs_ball("ddn", problem.threat, "fmn", ("l2",)).box
        if self.levels is not None and not box.bounded:
            raise SettingError("ddn: levels lie between the bounds of a box: set a finite box, or levels=None")
        zero, none = torch.zeros_like(problem.x), problem.x.new_full((len(problem),), torch.inf)
        radius = torch.full_like(none, self.init_norm)
        return _State(zero, radius, zero, none, torch.full_like(zero, torch.inf), torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        age = state.iteration - self.steps
        answer = problem.gradient(
            state.z,
            objective(problem, state.length, age, self.refine, problem.objective("ce")),
            needed=state.iteration + 1 < self._looks,
        )
        best, length = keep(problem, state.z, state.best, state.length)
        radius = state.radius * torch.where(problem.fooled, 1 - self.gamma, 1 + self.gamma)
        radius = radius.minimum(worst_length(problem))
        cosine = (1 + (torch.pi * state.iteration.clamp_max(self.steps) / self.steps).cos()) / 2
        size = _LAST + (1 - _LAST) * cosine
        moved = state.z + column(size, state.z).to(state.z.dtype) * self._direction(problem, state, answer.grad)
        # On the sphere, and not only inside it, before the box cuts it.
        threat = around(problem, radius)
        moved = threat.retract(threat.steepest(moved) * column(radius, moved), problem.x)
        moved = self._rounded(problem, moved)
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(z, radius, best, length, candidate, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= self._looks

    @property
    def _looks(self) -> int:
        return self.steps + (0 if self.levels else self.refine)

    def _direction(self, problem: Problem, state: _State, grad: Tensor) -> Tensor:
        """The gradient at length 1, a random one where it is 0."""
        still = (grad == 0).flatten(1).all(1)
        if bool(still.any()):
            noise = problem.draws(state.iteration).normal(grad.shape[1:].numel()).to(grad.dtype).reshape(grad.shape)
            grad = torch.where(column(still, grad), noise, grad)
        return problem.ball.steepest(grad)

    def _rounded(self, problem: Problem, z: Tensor) -> Tensor:
        if self.levels is None:
            return z
        box = needs_ball("ddn", problem.threat, "fmn", ("l2",)).box
        low, high = box.ends(z)
        share = (problem.x + z - low) / (high - low)
        return low + (share * (self.levels - 1)).round() / (self.levels - 1) * (high - low) - problem.x
