"""Telling probabilities from logits: by what a model says of its data, and of inputs near them and far away."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor

from holdfast.errors import ModelError

__all__ = ["are_probabilities"]

# Multiples of inputs and of noise at which a model is asked too. A linear map leaves [0, 1] at some of them, however
# small its weights; a softmax or a sigmoid leaves it nowhere.
_SCALES = (1.0, 30.0, 1e3, 1e5, 1e7, 1e9)
# Inputs that are enough to see it by.
_ROWS = 8
# A sum of probabilities is off by a few units in the last place of the precision in which they were computed.
_LEAST, _UNITS = 1e-5, 4


def are_probabilities(outputs: Tensor, x: Tensor, ask: Callable[[Tensor], Tensor], precision: torch.dtype) -> bool:
    """Whether a model answers with probabilities, as behind a softmax or a sigmoid.

    That rows lie in [0, 1] and sum to 1 at some inputs happens to logits too, such as ``(x, 1 - x)``. Probabilities do
    so at all inputs, and not by being always the same.

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
    for answers in chain([outputs], _elsewhere(x, ask)):
        # Far away sums overflow, and what is no number tells nothing.
        answers = answers[answers.isfinite().all(1)]
        if not bool(_like_probabilities(answers, tolerance).all()):
            return False
        seen = torch.cat([seen, answers])
    return len(seen) > 1 and bool((seen != seen[0]).any())


def _elsewhere(x: Tensor, ask: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """What the model says of multiples of some inputs, of what lies opposite them, and of noise."""
    some = x[:_ROWS]
    noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(0)).to(some)
    for scale in _SCALES:
        for direction in (some, -some, noise):
            with suppress(ModelError):  # it may refuse what is so far from its data
                yield ask(scale * direction)


def _like_probabilities(rows: Tensor, tolerance: float) -> Tensor:
    """``(N,)`` bool, whether a row could hold probabilities: of all classes, or of one of two."""
    inside = ((rows >= 0) & (rows <= 1 + tolerance)).all(1)
    return inside if rows.shape[1] == 1 else inside & ((rows.double().sum(1) - 1).abs() < tolerance)
