"""DeepFool: from one linearised boundary to the next until the model is fooled."""

from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from holdfast.attacks.attack import AttackResult, Knowledge
from holdfast.attacks.craft import Options, craft
from holdfast.attacks.problem import Problem
from holdfast.attacks.rows import Rows
from holdfast.attacks.targets import nearest_boundary
from holdfast.errors import SettingError
from holdfast.threats import Ball, Threat

__all__ = ["DeepFool"]


@dataclass(frozen=True)
class _State:
    z: Tensor  # the point to look at next
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
    overshoot leads. Unlike the paper, which knows no box, a step is the shortest one inside it, so that what the box
    refuses one coordinate the others make up for. In the original, the reference is the predicted class; here it is
    the label, which is the same for every example that is attacked.

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
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.overshoot >= 0:
            raise SettingError(f"deepfool: steps must be positive and overshoot at least 0, got {self}")

    @property
    def name(self) -> str:
        return "deepfool"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, **options: Unpack[Options]
    ) -> AttackResult:
        """Attack a batch; see :func:`holdfast.attacks.craft`."""
        return craft(self, model, x, y, threat=threat, **options)

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        threat = problem.threat
        if not isinstance(threat, Ball) or threat.norm not in ("linf", "l2", "l1"):
            raise SettingError(f"deepfool works in L-infinity, L2 and L1, not under {threat.name}: use pgd there")
        rows = problem.rows
        return _State(torch.zeros_like(rows.x), torch.zeros_like(rows.found), torch.zeros_like(rows.index))

    def step(self, problem: Problem, state: _State) -> _State:
        threat, x = problem.threat, problem.x
        assert isinstance(threat, Ball)
        moving = state.query < self.steps
        if problem.rows.target is None:
            rise, grad = nearest_boundary(problem, problem.jacobian(state.z, needed=moving))
        else:
            answer = problem.gradient(state.z, problem.objective("margin"), needed=moving)
            rise, grad = answer.values, answer.grad
        lower, upper = threat.box.around(x)
        # As the way so far holds its own overshoot, that of this step makes it one of the whole way.
        moved = state.z + (1 + self.overshoot) * threat.to_plane(state.z, x, grad, -rise)
        return _State(moved.clamp(lower, upper), problem.fooled, state.query + 1)

    def done(self, state: _State) -> Tensor:
        return state.fooled | (state.query > self.steps)
