"""The fast adaptive boundary attack: the nearest adversarial input by projections onto linearised boundaries."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.targets import nearest_boundary, pick_target, runs_of
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["FAB"]

_LEAST = 1e-8  # the published floor of the two distances that are weighed against each other
_SEARCH = 3  # looks of the paper's final search
_CLEAR = 64  # the margin it aims at, in roundings of the logits, for the model to be fooled in other batches too


@dataclass(frozen=True)
class _State:
    z: Tensor  # the point to look at next
    nearest: Tensor  # the nearest adversarial choice of the run
    length: Tensor  # its distance, infinite while there is none
    height: Tensor  # the margin there
    low: Tensor  # distance of a point on the way to it that is not adversarial
    depth: Tensor  # the margin there
    target: Tensor | None
    query: Tensor  # looks made


@dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack: a minimum-norm attack in L-infinity, L2 and L1.

    An iteration linearises the boundary at the current point, projects both that point and the clean input onto it
    inside the box, goes a little beyond between the two, looks, and where the model is fooled steps back towards the
    clean input. In the end three looks search the way to the run's nearest adversarial input by linear interpolation.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    arXiv:1907.02044, algorithm 1, in the order of operations of the authors' code. Two things differ from the code of
    their ensemble: the paper's final search is made, where the run has fooled the model at whatever distance; and what
    is seen at the point stepped back to counts too.

    Costs ``2 * steps + 3`` forwards a run and ``steps`` backwards towards a target, ``K * steps`` without. Where the
    adversary wants a class, a run goes to the boundary between it and the likeliest other one.

    Parameters
    ----------
    steps : int
        Iterations a run.
    restarts : int
        Runs an example that stays unbroken, a target. Those after the first start at a random point, half as far away
        as the budget or the nearest adversarial input (at the distance 0.5 where neither says anything).
    targets : int
        0 goes to the boundary that is nearest of all, the box left aside. Otherwise a run goes to that of one of the
        ``targets`` classes that rank next to the label in the clean logits (at most K - 1), and any wrong class is
        success.
    alpha_max : float
        The largest weight of the clean input's projection.
    eta : float
        How far a projection is extrapolated; at least 1.
    beta : float
        The share of the way from the clean input that a step back leaves.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is none of the three.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, "fab")
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise SettingError(f"fab: steps and restarts must be positive and targets at least 0, got {self}")
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise SettingError(f"fab: alpha_max from 0 to 1, eta of at least 1, beta between 0 and 1, got {self}")

    @property
    def name(self) -> str:
        return "fab-t" if self.targets else "fab"

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * self._lap(rows)

    def init(self, problem: Problem) -> _State:
        threat, x = needs_ball("fab", problem.threat, "pgd", ("linf", "l2", "l1")), problem.x
        zero, count = x.new_zeros(len(x)), torch.zeros_like(problem.rows.index)
        return _State(
            z=self._start(problem, threat),
            nearest=torch.zeros_like(x),
            length=zero + torch.inf,
            height=zero,
            low=zero,
            depth=problem.objective("margin")(problem.clean_logits()),
            target=pick_target(problem, self.targets),
            query=count,
        )

    def step(self, problem: Problem, state: _State) -> _State:
        searching = state.query >= 2 * self.steps
        moving = (state.query % 2 == 0) & ~searching
        if self.targets or problem.rows.target is not None:
            answer = problem.gradient(state.z, self._rise(problem, state), needed=moving)
            rise, grad = answer.values, answer.grad
        else:
            answer = problem.jacobian(state.z, needed=moving)
            rise, grad = nearest_boundary(problem, answer)
        margin = problem.objective("margin")(answer.logits)
        length = problem.ball.length(state.z)
        nearer = problem.fooled & (length < state.length)
        short = searching & ~problem.fooled
        state = replace(
            state,
            nearest=overlay(state.nearest, state.z, nearer),
            length=torch.where(nearer, length, state.length),
            height=torch.where(nearer, margin, state.height),
            low=torch.where(short, length, state.low),
            depth=torch.where(short, margin, state.depth),
            query=state.query + 1,
        )
        z = overlay(state.z, self.beta * state.z, problem.fooled & ~moving)
        if bool(moving.any()):
            z = overlay(z, self._move(problem, z, rise, grad), moving)
        ending = (state.query >= 2 * self.steps) & state.length.isfinite()
        if bool(ending.any()):
            z = overlay(z, self._between(state, answer.logits), ending)
        return replace(state, z=z)

    def done(self, state: _State) -> Tensor:
        return state.query >= 2 * self.steps + _SEARCH * state.length.isfinite()

    def _lap(self, rows: Rows) -> int:
        """The runs a restart: one a target, unless the adversary wants a class of his own."""
        return 1 if rows.target is not None else runs_of(rows, self.targets)

    def _start(self, problem: Problem, ball: Ball) -> Tensor:
        rows, z = problem.rows, torch.zeros_like(problem.x)
        if self.restarts == 1:
            return z
        known = torch.where(problem.nearest & rows.found, -rows.value, ball.budget(problem.x))
        radius = torch.where(known.isinf(), 1.0, known) / 2
        random = replace(ball, eps=radius).sample_boundary(problem.x, problem.draws(rows.run))
        return overlay(z, random, rows.run >= self._lap(rows))

    def _rise(self, problem: Problem, state: _State) -> Callable[[Tensor], Tensor]:
        """How far the target's logit is above the label's, or a class that the adversary wants above all others."""
        if state.target is None:
            return problem.objective("margin")
        target, label = state.target.unsqueeze(1), problem.rows.y.unsqueeze(1)
        return lambda logits: (logits.gather(1, target) - logits.gather(1, label)).squeeze(1)

    def _move(self, problem: Problem, z: Tensor, rise: Tensor, grad: Tensor) -> Tensor:
        """Beyond the linearised boundary, between the projections of the current point and of the clean input."""
        threat, x = problem.ball, problem.x
        origin = torch.zeros_like(z)
        along = (grad.double() * z).flatten(1).sum(1)
        here = threat.to_plane(z, x, grad, -rise)
        clean = threat.to_plane(origin, x, grad, (along - rise).to(rise.dtype))
        near, far = (threat.length(move).clamp_min(_LEAST) for move in (here, clean))
        alpha = column((near / (near + far)).clamp_max(self.alpha_max), z)
        lower, upper = threat.box.around(x)
        return ((1 - alpha) * (z + self.eta * here) + alpha * self.eta * clean).clamp(lower, upper)

    def _between(self, state: _State, logits: Tensor) -> Tensor:
        """Where the margin, interpolated on the way to the nearest adversarial choice, turns clearly positive."""
        clear = _CLEAR * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        share = safe_divide(clear - state.depth, state.height - state.depth).clamp(0, 1)
        length = state.low + share * (state.length - state.low)
        return state.nearest * column(length / state.length, state.nearest)
