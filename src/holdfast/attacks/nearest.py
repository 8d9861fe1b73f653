"""What minimum-norm attacks share: the nearest adversarial choice so far, and the refinement that ends their runs.

A published minimum-norm attack stops near a decision boundary, which need not be the nearest one, and not on it. The
refinement goes on from the nearest adversarial choice. It first linearises there the boundaries of the likeliest wrong
classes, one a look, and moves to the nearest point of them all, the box included; then again and again to the nearest
point of the boundary as linearised where it stands, and from where the model is not fooled half-way back. On a linear
model the first move is exact. No move leads away from the clean input.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.engine.problem import Problem
from holdfast.engine.rows import overlay
from holdfast.models.query import Answer
from holdfast.threats import Ball
from holdfast.threats.norm import column

__all__ = ["around", "keep", "objective", "ranking", "refine", "search_constant", "worst_length"]

# The margin aimed at, as a share of what the move gains and in units of the logits' rounding: aiming at the boundary
# itself would leave it to rounding on which side the look falls.
_OVERSHOOT, _ROUNDINGS = 3e-5, 8

# A weight of the margin that no model needs.
_LARGEST = 1e10


def around(problem: Problem, radius: Tensor) -> Ball:
    """The problem's ball with other radii, ``(N,)``."""
    return replace(problem.ball, eps=radius)


def worst_length(problem: Problem) -> Tensor:
    """``(N,)`` the distance of the farthest corner of the box, infinite where there is none."""
    lower, upper = problem.ball.box.around(problem.x)
    return problem.ball.length(problem.x + torch.maximum(-lower, upper) - problem.x)


def keep(problem: Problem, z: Tensor, best: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """After a look at ``z``: the nearest adversarial choice seen and its ``(N,)`` distance, infinite where none was."""
    distance = problem.threat.distance(problem.x, z)
    nearer = problem.fooled & (distance < length)
    return overlay(best, z, nearer), torch.where(nearer, distance, length)


def ranking(problem: Problem) -> Tensor:
    """``(N, K - 1)`` the wrong classes, the likeliest of the clean input first."""
    others = problem.clean_logits().scatter(1, problem.rows.y.unsqueeze(1), -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def objective(
    problem: Problem, length: Tensor, age: Tensor, looks: int, otherwise: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """What to ask at the next look: ``otherwise`` before a row's refinement, its boundaries afterwards.

    Parameters
    ----------
    problem : Problem
        Before the look.
    length : Tensor
        ``(N,)`` the distance of the nearest adversarial choice, infinite where there is none.
    age : Tensor
        ``(N,)`` the looks of the refinement made so far; below 0 before it.
    looks : int
        How many it has.
    otherwise : callable
        Maps logits ``(N, K)`` to values ``(N,)``.
    """
    refining = (age >= 0) & length.isfinite()
    if not bool(refining.any()):
        return otherwise
    margin, label = problem.objective("margin"), problem.rows.y.unsqueeze(1)
    rivals = _rivals(problem, looks)
    surveying = refining & (age < rivals)
    rival = ranking(problem).gather(1, age.clamp(0, max(rivals - 1, 0)).unsqueeze(1))

    def aims(logits: Tensor) -> Tensor:
        gap = (logits.gather(1, rival) - logits.gather(1, label)).squeeze(1)
        return torch.where(surveying, gap, torch.where(refining, margin(logits), otherwise(logits)))

    return aims


def refine(
    problem: Problem,
    answer: Answer,
    z: Tensor,
    best: Tensor,
    length: Tensor,
    candidate: Tensor,
    age: Tensor,
    looks: int,
    otherwise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where to look next, and the new ``candidate``.

    Parameters
    ----------
    problem : Problem
        After a look at ``z``.
    answer : Answer
        What that told of the function that :func:`objective` gave.
    z, best : Tensor
        ``(N, ...)`` the choice looked at, and the nearest adversarial one seen.
    length : Tensor
        ``(N,)`` the distance of ``best``, infinite where there is none.
    candidate : Tensor
        ``(N, ...)`` the nearest point of the boundaries compared so far, infinitely far before.
    age : Tensor
        ``(N,)`` which look of the refinement it was, from 0; below 0 before it.
    looks : int
        How many looks the refinement has.
    otherwise : Tensor
        ``(N, ...)`` where to look before, and where nothing adversarial has been seen.
    """
    refining = (age >= -1) & length.isfinite()
    if looks == 0 or not bool(refining.any()):
        return otherwise, candidate
    after, rivals = best, _rivals(problem, looks)
    if bool((refining & (age >= 0)).any()):
        threat, x = around(problem, length), problem.x
        offset = (answer.grad * z).flatten(1).double().sum(1) - answer.values
        rounding = _ROUNDINGS * torch.finfo(x.dtype).eps * answer.logits.abs().amax(1)
        beyond = (_OVERSHOOT * offset.abs()).maximum(rounding)
        touching = threat.to_plane(torch.zeros_like(x), x, answer.grad, (offset + beyond).clamp_min(0))
        reach = [threat.length(x + choice - x) for choice in (touching, candidate)]
        candidate = torch.where(column(refining & (age >= 0) & (reach[0] < reach[1]), z), touching, candidate)
        onward = torch.where(column(problem.fooled, z), touching, _between(threat, x, z, best))
        onward = torch.where(column(age == rivals - 1, z), candidate, onward)
        after = torch.where(column((age < rivals - 1) | (age < 0), z), best, onward)
    # In the layout of all other rows' steps: sums over another one would round differently.
    return torch.empty_like(otherwise).copy_(torch.where(column(refining, z), after, otherwise)), candidate


def search_constant(
    constant: Tensor, lower: Tensor, upper: Tensor, hit: Tensor, over: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weight of the margin in the next round, and its bounds, for the rows whose round is ``over``.

    The least weight that fools the model is bisected; before the first that does, it grows tenfold a round.
    """
    upper = torch.where(over & hit, upper.minimum(constant), upper)
    lower = torch.where(over & ~hit, lower.maximum(constant), lower)
    following = torch.where(upper.isinf(), (10 * constant).clamp_max(_LARGEST), (lower + upper) / 2)
    return torch.where(over, following, constant), lower, upper


def _rivals(problem: Problem, looks: int) -> int:
    """How many classes a refinement compares: none where one is wanted, and at most in three quarters of its looks."""
    return 0 if problem.rows.target is not None else min(3 * looks // 4, problem.clean_logits().shape[1] - 1)


def _between(threat: Ball, x: Tensor, z: Tensor, best: Tensor) -> Tensor:
    """Half-way from ``z`` back to ``best``; in L0 by the number of coordinates."""
    if threat.norm != "l0":
        return (z + best) / 2
    count = ((threat.length(x + z - x) + threat.budget(x)) / 2).floor()
    return replace(threat, eps=count).project(torch.where(z != 0, z, best), x)
