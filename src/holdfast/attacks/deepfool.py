"""DeepFool: from one linearised boundary to the next until the model is fooled."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.targets import nearest_boundary
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import safe_divide

__all__ = ["DeepFool"]

_LEAST = 1e-3  # the least step, as a share of the way so far: the box can make ever smaller ones fall ever shorter
_LEAPS = 5  # one in so many of the steps, the last ones, goes all the way inside the box


@dataclass(frozen=True)
class _State:
    z: Tensor  # the point to look at next
    way: Tensor  # the sum of the steps, which the overshoot makes z
    fooled: Tensor
    query: Tensor  # looks made


@dataclass(frozen=True)
class DeepFool:
    """DeepFool, in L-infinity, L2 and L1: quick, and seldom the nearest adversarial input.

    Each step goes to the nearest of the linearised boundaries between the label and the other classes, and a little
    beyond; the first point that fools the model ends the run. Where the adversary wants a class, a step goes to the
    boundary between it and the likeliest other one.

    Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR
    2016, arXiv:1511.04599, algorithm 2. As in the authors' code, gradients are taken beyond the boundary, where the
    overshoot leads. In the original, the reference is the predicted class; here it is the label, which is the same for
    every example that is attacked.

    The paper knows no box. Here a step is as long as without one and cut to it, which can leave it short of the
    boundary; to go all the way inside the box would be far where the gradient misleads. So that short steps do not
    creep towards a boundary for good, each is at least a thousandth as long as the way so far, and the last fifth of
    them do go all the way.

    Costs at most ``steps + 1`` forwards and ``K * steps`` backwards.

    Parameters
    ----------
    steps : int
        The most steps made.
    overshoot : float
        The share of a step by which it goes beyond the boundary, and so of the whole way.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is none of the three.
    """

    steps: int = 50
    overshoot: float = 0.02
    name: ClassVar[str] = "deepfool"
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or not self.overshoot >= 0:
            raise SettingError(f"deepfool: steps must be positive and overshoot at least 0, got {self}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball(self.name, problem.threat, "pgd", ("linf", "l2", "l1"))
        rows = problem.rows
        zero = torch.zeros_like(rows.x)
        return _State(zero, zero, torch.zeros_like(rows.found), torch.zeros_like(rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        threat, x = problem.ball, problem.x
        moving = state.query < self.steps
        if problem.rows.target is None:
            rise, grad = nearest_boundary(problem, problem.jacobian(state.z, needed=moving))
        else:
            answer = problem.gradient(state.z, problem.objective("margin"), needed=moving)
            rise, grad = answer.values, answer.grad
        most = torch.finfo(x.dtype).max ** 0.5 / 2  # the way can still be added up and squared
        length = safe_divide(-rise, threat.dual_norm(grad)).nan_to_num(0.0).clamp(0, most)
        length = length.maximum(_LEAST * threat.length(state.way))
        way = replace(threat, eps=torch.inf).ascend(state.way, x, grad, length)
        leaping = state.query >= self.steps - self.steps // _LEAPS
        if bool(leaping.any()):
            way = overlay(way, state.z + threat.to_plane(state.z, x, grad, -rise), leaping)
        lower, upper = threat.box.around(x)
        z = ((1 + self.overshoot) * way).clamp(lower, upper)
        return _State(z, way, problem.fooled, state.query + 1)

    def done(self, state: _State) -> Tensor:
        return state.fooled | (state.query > self.steps)
