"""The attack of Carlini and Wagner."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.nearest import keep, objective, refine, search_constant
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, each, safe_divide

__all__ = ["CW"]

_DECAY, _DECAY_SQUARE, _FLOOR = 0.9, 0.999, 1e-8  # Adam's
_SHRINK = 1e-6  # atanh is infinite at the faces of the box
_PROGRESS = 0.9999


@dataclass(frozen=True)
class _State:
    z: Tensor  # where to look next
    w: Tensor  # the change of the variable whose tanh is the input
    mean: Tensor  # Adam's two averages
    square: Tensor
    inner: Tensor  # steps made this round
    round: Tensor
    constant: Tensor
    lower: Tensor  # bounds of the constant
    upper: Tensor
    hit: Tensor  # whether the model was fooled this round
    checked: Tensor  # the loss when progress was last checked
    best: Tensor  # the nearest adversarial choice seen
    length: Tensor  # (N,) its distance, infinite where there is none
    candidate: Tensor  # the nearest point of the boundaries that the refinement has compared
    refined: Tensor  # looks of the refinement made


@dataclass(frozen=True)
class CW:
    """Carlini and Wagner's attack in L2: Adam on ``|z|^2 + c max(-margin, 0)``, with a binary search over ``c``.

    Carlini and Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017, arXiv:1608.04644,
    section VI.A, with the objective f6 and no confidence. The input is ``tanh`` of the variable, stretched over the
    box. A round that has stalled is ended early for each row alone, once the model is fooled; the authors' code
    asks the whole batch. Added to the paper: the refinement at the end.

    Costs at most ``binary_search_steps * steps + refine`` forwards and one backward less.

    Parameters
    ----------
    steps : int
        Adam's steps a round.
    binary_search_steps : int
        Rounds, each with another ``c``.
    step_size : float
        Adam's learning rate.
    initial_constant : float
        The first ``c``: it grows tenfold until the model is fooled, and is bisected then.
    abort_early : bool
        End a round that fooled the model when a tenth of its steps has brought nothing more.
    refine : int
        Looks spent at the end on the linearised boundaries, see ``nearest.py``; 0 for the published attack.

    Raises
    ------
    SettingError
        When a number makes no sense, the threat is not L2, or its box is not finite.
    """

    steps: int = 10_000
    binary_search_steps: int = 9
    step_size: float = 0.01
    initial_constant: float = 1e-3
    abort_early: bool = True
    refine: int = 20
    name: ClassVar[str] = "cw"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if not min(self.steps, self.binary_search_steps, self.step_size, self.initial_constant) > 0 or self.refine < 0:
            raise SettingError(f"cw: every number must be positive, and refine at least 0, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        if not needs_ball("cw", problem.threat, "fmn", ("l2",)).box.bounded:
            raise SettingError("cw: its tanh maps onto a box: set a finite box, or use ddn")
        zero, count = torch.zeros_like(problem.x), torch.zeros_like(problem.rows.index)
        low = problem.x.new_zeros(len(problem))
        none = low + torch.inf
        return _State(
            z=zero,
            w=zero,
            mean=zero,
            square=zero,
            inner=count,
            round=count,
            constant=low + self.initial_constant,
            lower=low,
            upper=none,
            hit=torch.zeros_like(problem.rows.found),
            checked=none,
            best=zero,
            length=none,
            candidate=zero + torch.inf,
            refined=count,
        )

    def step(self, problem: Problem, state: _State) -> _State:
        x, searching = problem.x, state.round < self.binary_search_steps
        age = torch.where(searching, -2, state.refined)
        aims = objective(problem, state.length, age, self.refine, problem.objective("margin"))
        answer = problem.gradient(state.z, aims, needed=searching | (state.refined + 1 < self.refine))
        best, length = keep(problem, state.z, state.best, state.length)
        hit = state.hit | problem.fooled
        loss = state.z.square().sum(each(x)) - state.constant * answer.values.clamp_max(0)
        slope = 2 * state.z - column(state.constant * (answer.values < 0), x) * answer.grad
        w, mean, square = self._adam(problem, state, slope)
        check = searching & (state.inner % max(self.steps // 10, 1) == 0)
        stalled = check & hit & (loss > _PROGRESS * state.checked) & self.abort_early
        over = searching & (stalled | (state.inner + 1 == self.steps))
        constant, lower, upper = search_constant(state.constant, state.lower, state.upper, hit, over)
        fresh, count = column(over, x), state.round + over
        w = torch.where(fresh, 0, w)
        moved = self._choice(problem, w)
        age = torch.where(over & (count == self.binary_search_steps), -1, age)
        z, candidate = refine(problem, answer, state.z, best, length, state.candidate, age, self.refine, moved)
        return _State(
            z=z,
            w=w,
            mean=torch.where(fresh, 0, mean),
            square=torch.where(fresh, 0, square),
            inner=torch.where(over, 0, state.inner + 1),
            round=count,
            constant=constant,
            lower=lower,
            upper=upper,
            hit=hit & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, state.checked)),
            best=best,
            length=length,
            candidate=candidate,
            refined=state.refined + ~searching,
        )

    def done(self, state: _State) -> Tensor:
        return (state.round >= self.binary_search_steps) & (state.refined >= self.refine)

    def _adam(self, problem: Problem, state: _State, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The variable after a step of Adam along ``slope``, a gradient with respect to the choice."""
        half, start = self._space(problem)
        grad = slope * half * (1 - (start + state.w).tanh().square())
        mean = torch.lerp(grad, state.mean, _DECAY)
        square = torch.lerp(grad.square(), state.square, _DECAY_SQUARE)
        made = column(state.inner + 1, grad).to(grad.dtype)
        size = (square / (1 - _DECAY_SQUARE**made)).sqrt() + _FLOOR
        return state.w - self.step_size * mean / (1 - _DECAY**made) / size, mean, square

    def _choice(self, problem: Problem, w: Tensor) -> Tensor:
        half, start = self._space(problem)
        lower, upper = _box(problem)
        return ((start + w).tanh() * half + (lower + upper) / 2).clamp(lower, upper)

    def _space(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Half the width of the box, and where the clean input lies in the variable's space."""
        lower, upper = _box(problem)
        half = (upper - lower) / 2
        share = safe_divide(-(lower + upper) / 2, half) * (1 - _SHRINK)
        # That is atanh, whose torch version rounds a number by where it stands in the tensor.
        return half, (share.log1p() - (-share).log1p()) / 2


def _box(problem: Problem) -> tuple[Tensor, Tensor]:
    return needs_ball("cw", problem.threat, "fmn", ("l2",)).box.around(problem.x)
