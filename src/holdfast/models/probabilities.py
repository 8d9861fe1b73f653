"""Telling probabilities from logits: by what a model says of its data, and of inputs near them and far away."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import ModelError

__all__ = ["final_squashing"]

# Multiples of inputs and of noise at which a model is asked too. A linear map leaves [0, 1] at some of them, however
# small its weights; a softmax or a sigmoid leaves it nowhere.
_SCALES = (1.0, 30.0, 1e3, 1e5, 1e7, 1e9)
# Inputs that are enough to see it by.
_ROWS = 8
# So close together that whatever goes to 0 behind a sigmoid is seen on its way.
_FINE_SCALES = tuple(2.0**power for power in range(-20, 31))
# What a sigmoid says where it is all but sure, either way; and what it says on the way to 0, where a clamp is there.
_LOW, _HIGH, _TAIL = 0.1, 0.9, 1e-3
# Directions in which it must go either way.
_RAYS = 3
# A sum of probabilities is off by a few units in the last place of the precision in which they were computed.
_LEAST, _UNITS = 1e-5, 4


def final_squashing(
    outputs: Tensor, x: Tensor, ask: Callable[[Tensor], Tensor], precision: torch.dtype
) -> Literal["softmax", "sigmoid"] | None:
    """What a model ends in that turns logits into probabilities; None where they are logits.

    That rows lie in [0, 1] and sum to 1 at some inputs happens to logits too, such as ``(x, 1 - x)``. Probabilities do
    so at all inputs, and not by being always the same. Those of independent classes, behind a sigmoid each, have any
    sum; clamped numbers lie in [0, 1] too, but reach 0 at once.

    Parameters
    ----------
    outputs : Tensor
        ``(N, K)`` what the model says of ``x``, or ``(N, 1)`` one number each.
    x : Tensor
        ``(N, ...)`` the inputs.
    ask : callable
        What the model says of other inputs of that shape; a :class:`ModelError` of its says nothing.
    precision : torch.dtype
        In which the model computes.
    """
    tolerance = max(_LEAST, _UNITS * torch.finfo(precision).eps)
    seen = outputs[:0]
    summed = True
    for answers in chain([outputs], _elsewhere(x, ask)):
        # Far away sums overflow, and what is no number tells nothing.
        answers = answers[answers.isfinite().all(1)]
        if not bool(((answers >= 0) & (answers <= 1 + tolerance)).all()):
            return None
        summed = summed and _sum_to_one(answers, tolerance)
        seen = torch.cat([seen, answers])
    if len(seen) < 2 or not bool((seen != seen[0]).any()):
        return None
    if summed:
        return "sigmoid" if outputs.shape[1] == 1 else "softmax"
    return "sigmoid" if _have_tails(x, ask) else None


def _have_tails(x: Tensor, ask: Callable[[Tensor], Tensor]) -> bool:
    """Whether numbers in [0, 1] go to both ends far from the data, and there by degrees, as behind a sigmoid.

    It fades on its way to 0, or never comes to an end at all, where its logits are bounded.
    """
    low, fading, high, reached = 0, 0, 0, False
    for direction in _directions(x):
        answers = list(_along(direction, ask, _FINE_SCALES))
        if not answers:
            continue
        ray = torch.stack(answers)
        # The last that is a number: far away sums overflow.
        order = torch.arange(1, len(ray) + 1, device=ray.device).reshape(-1, 1, 1)
        end = ray.gather(0, (ray.isfinite() * order).argmax(0, keepdim=True))[0]
        low += int((end < _LOW).sum())
        high += int((end > _HIGH).sum())
        fading += int((((ray > 0) & (ray < _TAIL)).any(0) & (end < _LOW)).sum())
        reached = reached or bool(((ray == 0) | (ray == 1)).any())
    return min(low, high) >= _RAYS and (2 * fading > low or not reached)


def _elsewhere(x: Tensor, ask: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """What the model says of multiples of some inputs, of what lies opposite them, and of noise."""
    for direction in _directions(x):
        yield from _along(direction, ask, _SCALES)


def _directions(x: Tensor) -> tuple[Tensor, ...]:
    some = x[:_ROWS]
    noise = torch.randn(_ROWS, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(some)
    return some, -some, noise


def _along(direction: Tensor, ask: Callable[[Tensor], Tensor], scales: Sequence[float]) -> Iterator[Tensor]:
    """What the model says of multiples of some inputs."""
    for scale in scales:
        with suppress(ModelError):  # it may refuse what is so far from its data
            yield ask(scale * direction)


def _sum_to_one(rows: Tensor, tolerance: float) -> bool:
    """Whether rows could hold the probabilities of all classes, or of one of two."""
    return rows.shape[1] == 1 or bool(((rows.double().sum(1) - 1).abs() < tolerance).all())
