"""Which wrong class a run steers to."""

import torch
from torch import Tensor

from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.models.query import Answer

__all__ = ["nearest_boundary", "pick_target", "runs_of"]


def runs_of(rows: Rows, targets: int) -> int:
    """How many runs go through all targets once: at most K - 1, and one for an attack without targets."""
    return max(min(targets, rows.classes - 1), 1)


def pick_target(problem: Problem, targets: int) -> Tensor | None:
    """``(N,)`` the class of each row's run among the ``targets`` that rank next to the label in the clean logits.

    None for an attack without targets, and where the adversary wants a class of his own.
    """
    if not targets or problem.rows.target is not None:
        return None
    others = problem.clean_logits().scatter(1, problem.rows.y.unsqueeze(1), -torch.inf)
    rank = problem.rows.run % runs_of(problem.rows, targets)
    return others.argsort(dim=1, descending=True, stable=True).gather(1, rank.unsqueeze(1)).squeeze(1)


def nearest_boundary(problem: Problem, answer: Answer) -> tuple[Tensor, Tensor]:
    """Of a jacobian, the linearised boundary between the label and another class that is nearest in the threat's norm.

    Returns ``(N,)`` how far that class's logit is above the label's, and the gradient of this, ``(N, ...)``.
    """
    rows, label = torch.arange(len(problem), device=answer.logits.device), problem.rows.y
    rise = answer.logits - answer.logits.gather(1, label.unsqueeze(1))
    grad = answer.grad - answer.grad[rows, label].unsqueeze(1)
    slope = problem.ball.dual_norm(grad.flatten(0, 1)).reshape(rise.shape)
    # A class whose difference to the label is flat has no boundary to go to.
    distance = torch.where(slope > 0, rise.abs() / slope, torch.inf)
    nearest = distance.argmin(1)
    return rise[rows, nearest], grad[rows, nearest]
