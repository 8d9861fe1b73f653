"""Auto-PGD for L1: sparse steps whose sparsity follows that of the best point, in balls that shrink to the budget."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.targets import pick_target, runs_of
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, each

__all__ = ["APGDL1"]

_RADII = (3, 2, 1)  # of the three phases, in budgets
_SLOWDOWN, _SLOWEST = 1.5, 10  # a checkpoint divides the step size by the first, down to the budget over the second


def phases(steps: int) -> tuple[int, int, int]:
    """Moves in each of the three balls: 30, 30 and 40 % of them, the first two rounded up."""
    share = -(-3 * steps // 10)
    return share, share, steps - 2 * share


@dataclass(frozen=True)
class _State:
    z: Tensor  # the point to look at next
    best: Tensor  # of this phase
    best_grad: Tensor
    best_value: Tensor
    target: Tensor | None
    size: Tensor  # step size
    support: Tensor  # coordinates changed by the best point at the last checkpoint
    phase: Tensor
    iteration: Tensor  # moves made in this phase


@dataclass(frozen=True)
class APGDL1:
    """Auto-PGD for L1 with the schedule of shrinking balls, as the published ensemble runs it.

    A step changes the coordinates of the largest gradients, two thirds as many as the best point changes, by equal
    amounts that add up to the step size, and is projected onto ball and box exactly. At a checkpoint the step size is
    set back to the budget, and the search to its best point, where that has become sparser by more than 5 %; else it is
    divided by 1.5, to a tenth of the budget at least. A run spends 30 % of its moves in the ball of three budgets,
    30 % in that of two and 40 % in the true one, each phase beginning at the best point of the one before, projected;
    outside the budget nothing counts as success.

    Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
    arXiv:2103.01208, sections 3 and 4, with the constants and the order of operations of the authors' code: the first
    point is a projected Gaussian, there is no momentum, checkpoints are ``max(int(0.04 n), 1)`` moves apart in a phase
    of ``n``, and the sparsity starts from the phase's first point. The number of coordinates is worked out in
    integers, where that code may round a third the wrong way.

    Costs ``steps + 3`` forwards, since each phase looks at its first point, and ``steps`` backwards a run.

    Parameters
    ----------
    steps : int
        Moves a run, at least 3.
    restarts : int
        Runs an example that stays unbroken, a target.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    targets : int
        0 raises the objective away from the label. Otherwise a run steers towards one of the ``targets`` classes that
        rank next to the label in the clean logits (at most K - 1), and any wrong class is success.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is not an L1 ball.
    """

    steps: int = 100
    restarts: int = 1
    objective: ObjectiveName = "ce"
    targets: int = 0
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False
    roams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, "apgd-l1")
        if self.steps < 3 or self.restarts < 1 or self.targets < 0:
            raise SettingError(
                f"apgd-l1: steps must be at least 3, restarts positive and targets at least 0, got {self}"
            )

    @property
    def name(self) -> str:
        return f"apgd-l1-{self.objective}" + ("-t" if self.targets else "")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * runs_of(rows, self.targets)

    def init(self, problem: Problem) -> _State:
        threat, x = needs_ball("apgd-l1", problem.threat, "apgd or pgd", ("l1",)), problem.x
        noise = problem.draws(problem.rows.run).normal(x.shape[1:].numel()).to(x.dtype).reshape(x.shape)
        return _enter(threat, x, noise, torch.zeros_like(problem.rows.index), pick_target(problem, self.targets))

    def step(self, problem: Problem, state: _State) -> _State:
        moves = torch.tensor(phases(self.steps), device=state.phase.device)[state.phase]
        over = state.iteration == moves
        answer = problem.gradient(state.z, problem.objective(self.objective, state.target), needed=~over)
        improved = answer.values > state.best_value
        state = replace(
            state,
            best=overlay(state.best, state.z, improved),
            best_grad=overlay(state.best_grad, answer.grad, improved),
            best_value=torch.where(improved, answer.values, state.best_value),
        )
        threat = _widened(problem.ball, problem.x, state.phase)
        due = (state.iteration > 0) & (state.iteration % (moves // 25).clamp_min(1) == 0)
        state, back = _check(state, due, threat, problem.x)
        base, grad = overlay(state.z, state.best, back), overlay(answer.grad, state.best_grad, back)
        ahead = base + column(state.size, base) * _sparse_sign(grad, _two_thirds(state.support))
        state = replace(state, z=threat.project(ahead, problem.x), iteration=state.iteration + 1)
        turn = over & (state.phase < 2)
        if not bool(turn.any()):
            return state
        following = (state.phase + 1).clamp_max(2)
        fresh = _enter(problem.ball, problem.x, state.best, following, state.target)
        return _overlaid(state, fresh, turn)

    def done(self, state: _State) -> Tensor:
        return (state.phase == 2) & (state.iteration > phases(self.steps)[2])


def _widened(threat: Ball, x: Tensor, phase: Tensor) -> Ball:
    """The ball that each row is searched in."""
    return replace(threat, eps=torch.tensor(_RADII, device=x.device)[phase] * threat.budget(x))


def _enter(threat: Ball, x: Tensor, point: Tensor, phase: Tensor, target: Tensor | None) -> _State:
    """The state at the start of a phase, from the point that it is to start near."""
    ball = _widened(threat, x, phase)
    z = ball.project(point, x)
    return _State(
        z=z,
        best=z,
        best_grad=torch.zeros_like(z),
        best_value=x.new_full((len(x),), -torch.inf),
        target=target,
        size=ball.budget(x),
        support=_support(ball, x, z),
        phase=phase,
        iteration=torch.zeros_like(phase),
    )


def _check(state: _State, due: Tensor, threat: Ball, x: Tensor) -> tuple[_State, Tensor]:
    """Checkpoint of the rows that are due; returns the new state and which rows go back to their best point."""
    support, budget = _support(threat, x, state.best), threat.budget(x)
    sparser = 20 * support < 19 * state.support
    slower = torch.maximum(state.size / _SLOWDOWN, budget / _SLOWEST)
    size = torch.where(due, torch.where(sparser, budget, slower), state.size)
    return replace(state, size=size, support=torch.where(due, support, state.support)), due & sparser


def _support(threat: Ball, x: Tensor, z: Tensor) -> Tensor:
    """``(N,)`` how many coordinates of the input change; what a projection's rounding leaves of others does not."""
    return (threat.apply(x, z) != x).sum(each(x))


def _two_thirds(count: Tensor) -> Tensor:
    """Rounded up."""
    return (2 * count + 2) // 3


def _sparse_sign(grad: Tensor, count: Tensor) -> Tensor:
    """A point of the unit sphere: equal changes along the ``count`` largest entries (at least one, and all ties)."""
    size = grad.flatten(1).abs()
    last = (count.clamp(1, size.shape[1]) - 1).unsqueeze(1)
    least = size.sort(1, descending=True).values.gather(1, last)
    signs = torch.where(size >= least, grad.flatten(1).sign(), 0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).reshape(grad.shape)


def _overlaid(old: _State, new: _State, which: Tensor) -> _State:
    """The old state with the rows ``which`` of the new one; the target stays."""
    names = [field.name for field in fields(old) if field.name != "target"]
    return replace(old, **{name: overlay(getattr(old, name), getattr(new, name), which) for name in names})
