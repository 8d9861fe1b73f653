"""Sigma-zero."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import keep, objective, refine
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["SigmaZero"]

_DECAY, _DECAY_SQUARE, _FLOOR = 0.9, 0.999, 1e-8  # Adam's
_LAST = 0.1  # the step size's end, as a share of its start


@dataclass(frozen=True)
class _State:
    z: Tensor
    mean: Tensor  # Adam's two averages
    square: Tensor
    threshold: Tensor  # (N,) changes below it are undone
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    iteration: Tensor


@dataclass(frozen=True)
class SigmaZero:
    """Sigma-zero, in L0: Adam on the margin and a smooth count of changes, small changes being undone at every step.

    Cinà, Villani, Pintor, Schönherr, Biggio and Pelillo, "sigma-zero: gradient-based optimization of l0-norm
    adversarial examples", ICLR 2025, arXiv:2402.01879, algorithm 1, with Adam and the cosine of the authors' code.
    Changes are measured in widths of the box. Added to the paper: wanted classes, and the refinement at the end.

    Costs ``steps + refine`` forwards and one backward less.

    Parameters
    ----------
    steps : int
        Iterations of the published attack.
    step_size : float
        Adam's first learning rate; the last is a tenth of it, with a cosine between them.
    sigma : float
        How smooth the count ``sum z^2 / (z^2 + sigma)`` is.
    threshold : float
        Changes below it are undone. It falls while the model is not fooled and rises while it is,
    threshold_step : float
        by this share of the learning rate.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``; 0 for the published attack.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is not L0.
    """

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_step: float = 0.01
    refine: int = 20
    name: ClassVar[str] = "sigma-zero"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if not min(self.steps, self.step_size, self.sigma) > 0 or self.refine < 0 or self.threshold_step < 0:
            raise SettingError(
                "sigma-zero: steps, step_size and sigma must be positive, refine and threshold_step at least 0, "
                f"got {self}"
            )
        if not 0 <= self.threshold <= 1:
            raise SettingError(f"sigma-zero: threshold is a share of the box, within [0, 1], got {self.threshold}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball("sigma-zero", problem.threat, "fmn", ("l0",))
        zero, none = torch.zeros_like(problem.x), problem.x.new_full((len(problem),), torch.inf)
        threshold = torch.full_like(none, self.threshold)
        return _State(zero, zero, zero, threshold, zero, none, zero + torch.inf, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        age = state.iteration - self.steps
        answer = problem.gradient(
            state.z,
            objective(problem, state.length, age, self.refine, problem.objective("margin")),
            needed=age + 1 < self.refine,
        )
        best, length = keep(problem, state.z, state.best, state.length)
        lower, upper = needs_ball("sigma-zero", problem.threat, "fmn", ("l0",)).box.around(problem.x)
        width = upper - lower
        change = safe_divide(state.z, width)
        count_slope = 2 * self.sigma * change / (change.square() + self.sigma).square() / change[0].numel()
        slope = count_slope - column(answer.values < 0, width) * answer.grad * width
        slope = safe_divide(slope, column(slope.flatten(1).abs().amax(1), slope))
        mean = torch.lerp(slope, state.mean, _DECAY)
        square = torch.lerp(slope.square(), state.square, _DECAY_SQUARE)
        made = column(state.iteration + 1, slope).to(slope.dtype)
        direction = mean / (1 - _DECAY**made) / ((square / (1 - _DECAY_SQUARE**made)).sqrt() + _FLOOR)
        change = change - column(self._size((state.iteration - 1).clamp_min(0)), slope).to(slope.dtype) * direction
        by = self.threshold_step * self._size(state.iteration).to(state.threshold.dtype)
        threshold = (state.threshold + torch.where(problem.fooled, by, -by)).clamp(0, 1)
        moved = (change * width).clamp(lower, upper)
        moved = torch.where(moved.abs() < column(threshold, width) * width, 0, moved)
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(z, mean, square, threshold, best, length, candidate, state.iteration + 1)

    def done(self, state: _State) -> Tensor:
        return state.iteration >= self.steps + self.refine

    def _size(self, iteration: Tensor) -> Tensor:
        cosine = (1 + (torch.pi * iteration.clamp_max(self.steps) / self.steps).cos()) / 2
        return self.step_size * (_LAST + (1 - _LAST) * cosine)
