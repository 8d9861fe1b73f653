"""Line search along a ray."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["Ray"]


@dataclass(frozen=True)
class _State:
    slope: Tensor  # what the ray leads up
    reach: Tensor  # (N,) its length
    right: Tensor  # (N,) the greatest length seen below the first at which the model was fooled
    wrong: Tensor  # (N,) that length, infinite before
    iteration: Tensor


@dataclass(frozen=True)
class Ray:
    """A line search for the smallest change along one ray that fools the model.

    The ray leaves the clean input in the steepest direction of the objective there; in a norm ball it bends where it
    meets the box, so that it is at every length the change of that length that raises the linearised objective most.
    Lengths are tried on a grid from 0 to the boundary of the set (the box where the budget is infinite; without a box,
    as many times the linearised distance as there are probes), then bisected between the last right and the first
    wrong one. Further runs follow random directions. The search is that of Goodfellow, Shlens and Szegedy, "Explaining
    and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572, section 8, along the gradient.

    Costs an unbroken example ``1 + probes`` forwards and 1 backward a run, and at most ``bisections`` forwards more.

    Parameters
    ----------
    probes : int
        Lengths of the grid.
    bisections : int
        Looks between two of its lengths, each halving the gap.
    tolerance : float
        Stop sooner when the gap is at most this share of the length.
    restarts : int
        Runs an example; all but the first follow a random direction.
    objective : str
        ``"margin"``, ``"ce"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number makes no sense.
    """

    probes: int = 20
    bisections: int = 20
    tolerance: float = 1e-5
    restarts: int = 1
    objective: ObjectiveName = "margin"
    name: ClassVar[str] = "ray"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.probes < 1 or self.restarts < 1 or self.bisections < 0 or self.tolerance < 0:
            raise SettingError(
                f"ray: probes and restarts must be positive, bisections and tolerance at least 0, got {self}"
            )

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> _State:
        needs_ball(self.name, problem.threat, "pgd")
        zero = problem.x.new_zeros(len(problem))
        return _State(torch.zeros_like(problem.x), zero, zero, zero + torch.inf, torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        start = state.iteration == 0
        size = self._size(state)
        answer = problem.gradient(self._choice(problem, state, size), problem.objective(self.objective), needed=start)
        if bool(start.any()):
            slope = torch.where(column(start, problem.x), self._slope(problem, answer.grad), state.slope)
            ahead = safe_divide(answer.values.abs(), problem.ball.dual_norm(answer.grad))
            reach = torch.where(start, self._reach(problem, slope, ahead), state.reach)
            state = replace(state, slope=slope, reach=reach)
        fooled = problem.fooled & ~start
        return replace(
            state,
            right=torch.where(start | fooled, state.right, size),
            wrong=torch.where(fooled, size, state.wrong),
            iteration=torch.where(fooled, state.iteration.clamp_min(self.probes), state.iteration) + 1,
        )

    def done(self, state: _State) -> Tensor:
        found = state.wrong.isfinite()
        close = state.wrong - state.right <= self.tolerance * state.wrong
        through = state.iteration > self.probes + self.bisections
        return (state.iteration > self.probes) & (~found | close | through)

    def _size(self, state: _State) -> Tensor:
        """The length to look at: none, then the grid's, then the middle of the gap."""
        grid = state.reach * (state.iteration / self.probes).to(state.reach.dtype)
        return torch.where(state.wrong.isfinite(), (state.right + state.wrong) / 2, grid)

    @staticmethod
    def _choice(problem: Problem, state: _State, size: Tensor) -> Tensor:
        return replace(problem.ball, eps=size).maximize(state.slope, problem.x)

    @staticmethod
    def _slope(problem: Problem, grad: Tensor) -> Tensor:
        """The gradient; random numbers in its place after the first run."""
        first = problem.rows.run == 0
        if bool(first.all()):
            return grad
        noise = problem.draws(problem.rows.run).normal(grad.shape[1:].numel()).to(grad.dtype).reshape(grad.shape)
        return torch.where(column(first, grad), grad, noise)

    def _reach(self, problem: Problem, slope: Tensor, ahead: Tensor) -> Tensor:
        """How far the ray goes."""
        threat, x = problem.ball, problem.x
        lower, upper = threat.box.around(x)
        corner = torch.where(slope > 0, upper, torch.where(slope < 0, lower, 0))
        reach = threat.budget(x).minimum(threat.length(x + corner - x))
        return torch.where(reach.isinf(), self.probes * ahead, reach)
