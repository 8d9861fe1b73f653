"""Whether gradients are those of the model's answers."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.differences import rademacher
from holdfast.audit.diagnosis.judged import judged
from holdfast.audit.diagnosis.points import Points, contrast
from holdfast.audit.diagnosis.subject import Subject
from holdfast.audit.result import Diagnostic
from holdfast.models.bpda import BPDA
from holdfast.models.query import Query

__all__ = ["true_gradient"]

# Directions: dense random signs, signs on a few features, and the gradient's own steepest step.
_DENSE, _SPARSE, _FEW = 4, 2, 1 / 16
# Lengths of steps in shares of the reach, and how far the two slopes may lie apart there, as a share of the larger.
# Where the model can be had in float64, the first is so short that hardly any kink lies on it; the longer ones are for
# slopes that hold on the average, as those do that go straight through a rounding.
_EXACT = ((1e-5, 0.1), (1e-3, 0.1), (0.03, 0.3), (0.3, 0.5), (1.0, 0.5))
_ROUNDED = ((0.01, 0.1), (0.1, 0.3), (0.3, 0.5), (1.0, 0.5))
# Rounding of a logit, in units in the last place of the largest; and of a gradient, as a share of its length.
_ULPS, _GRAD = 16, 1e-4

# The share that disagrees: on nine published networks at several budgets at most 0.008; for gradients that are wrong
# in half of the features 0.55, for wholly wrong ones 0.7 to 1.
_WARN, _FAIL = 0.05, 0.25


def true_gradient(subject: Subject) -> Diagnostic | None:
    """Compare slopes along many directions with central finite differences of the logits.

    Near clean inputs, at random points of the set and where a short attack leads. A direction at a point counts as
    wrong only where the two disagree at every length of a step, from one that no kink lies on to the budget's.
    """
    if not subject.differentiable:
        return None
    share = _disagreement(subject)
    if share is None:
        return None
    return judged(
        name="true gradient",
        value=share,
        warn=_WARN,
        # BPDA is how a user says that another slope is meant.
        fail=math.inf if any(isinstance(part, BPDA) for part in subject.query.model.modules()) else _FAIL,
        well="gradients agree with finite differences of the logits",
        ill=f"along {share:.0%} of the directions the gradient is not the slope of the logits, at steps of any length: "
        "attacks that follow it are misled",
        advice="replace what has a backward pass of its own by what it computes, or by BPDA; or ask without gradients "
        "(protocol blackbox)",
    )


@dataclass(frozen=True)
class _Ruler:
    """How finite differences are taken.

    Parameters
    ----------
    ask : callable
        Logits of any number of rows.
    dtype : torch.dtype
        Of inputs.
    steps : tuple
        Their lengths in shares of the reach, and how far slopes may lie apart there.
    noise : float
        Rounding of a difference of logits.
    held : bool
        Whether a call must always hold the same rows, since random numbers belong to their places.
    """

    ask: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    steps: tuple[tuple[float, float], ...]
    noise: float
    held: bool

    def wrong(self, points: Points, way: Tensor) -> Tensor:
        """``(M,)`` bool, the points at which the gradient is not the slope along ``way``, ``(M, ...)``."""
        everywhere = torch.arange(len(way), device=way.device)
        left, grad = everywhere, points.finite.double()
        for size, apart in self.steps:
            rows = everywhere if self.held else left
            start, move = points.x[rows].double(), size * way[rows]
            ahead, behind = ((start + side * move).to(self.dtype) for side in (1, -1))
            seen = self._gap(points, rows, ahead) - self._gap(points, rows, behind)
            change = ahead.double() - behind.double()
            told = (grad[rows] * change).flatten(1).sum(1)
            room = apart * torch.maximum(told.abs(), seen.abs()) + self.noise + _GRAD * _length(grad[rows], change)
            agree = (told - seen).abs() <= room
            left = left[~agree[left]] if self.held else left[~agree]
            if not len(left):
                break
        return torch.zeros_like(everywhere, dtype=torch.bool).index_fill(0, left, True)

    def _gap(self, points: Points, rows: Tensor, x: Tensor) -> Tensor:
        logits = self.ask(x).double()
        return contrast(logits, points.y[rows], points.rival[rows])


def _disagreement(subject: Subject) -> float | None:
    """The share of directions, at all points, along which the gradient is not the slope.

    None where the model draws random numbers that cannot be held.
    """
    points = subject.points
    with ExitStack() as stack:
        twin = _exact(subject, stack) if subject.steady else None
        asked = subject.query if twin is None else twin

        def part(rows: Tensor) -> Tensor:
            with points.pinned:
                return asked.logits(rows)

        def ask(x: Tensor) -> Tensor:
            return torch.cat([part(rows) for rows in x.split(asked.batch_size)])

        if not subject.steady and not torch.equal(ask(points.x), points.logits):
            return None
        noise = _ULPS * torch.finfo(asked.inner_dtype).eps * float(points.logits.abs().max())
        steps = _ROUNDED if twin is None else _EXACT
        ruler = _Ruler(ask, asked.dtype, steps, noise, held=not subject.steady)
        wrong = [ruler.wrong(points, way) for way in _ways(subject, points)]
        if twin is not None:
            subject.query.forwards += twin.forwards
    return float(torch.stack(wrong).double().mean())


def _ways(subject: Subject, points: Points) -> list[Tensor]:
    """Directions, ``(M, ...)`` each, that move features by about their reach."""
    count, copies = subject.x[0].numel(), len(points.x) // len(subject.x)
    draws = [subject.draws(draw, copies) for draw in range(_DENSE + 2 * _SPARSE)]
    signs = [rademacher(rng, count).double() for rng in draws[: _DENSE + _SPARSE]]
    for number, rng in enumerate(draws[_DENSE + _SPARSE :], _DENSE):
        signs[number] *= rng.uniform(count) < max(_FEW, 4 / count)
    ways = [way.reshape(points.x.shape) for way in signs]
    return [way * subject.reach.double() for way in (*ways, points.finite.double().sign())]


def _exact(subject: Subject, stack: ExitStack) -> Query | None:
    """The model in float64, where it can be had and says the same."""
    some = slice(subject.query.batch_size)
    try:
        query = stack.enter_context(subject.query.doubled())
        apart = float((query.logits(subject.x[some]) - subject.logits[some]).abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's own code may refuse to be copied, or another precision, by whatever it raises
        return None
    return query if apart <= 1e-3 * float(subject.logits.abs().max()) else None


def _length(grad: Tensor, change: Tensor) -> Tensor:
    """``(N,)`` the largest slope that the two could have together."""
    steep, far = (values.flatten(1).square().sum(1).sqrt() for values in (grad, change))
    return steep * far
