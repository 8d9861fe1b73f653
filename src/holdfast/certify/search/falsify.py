"""The search for a counterexample that comes before any proof.

Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) from random points, for all boxes and conjunctions of a
property at once: in turn on the sum of what is missing from the inequalities of a conjunction, and on the sum of all
their excesses, which has a slope also where the first is flat.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.certify.search.witness import inward
from holdfast.draws import Draws
from holdfast.models.borrow import borrowed
from holdfast.models.overwritten import differentiated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from holdfast.certify.questions import Questions

__all__ = ["falsify"]

# Starts of a round in all, but of each question at least a few; steps of each.
_STARTS, _FEWEST, _STEPS = 512, 4, 40
# The first and last step, in widths of the box.
_FIRST, _LAST = 0.25, 0.002
_REPLAYS = 4


def falsify(
    model: nn.Module,
    questions: Questions,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    accept: Callable[[Tensor], bool],
    *,
    deadline: float,
    rounds: Iterable[int],
    seed: int = 0,
) -> Tensor | None:
    """Look for an input at which all inequalities of a question hold.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` to ``(N, ...)``; it is given back as it was.
    questions : Questions
        Where to look, and for what.
    shape, dtype
        Of the model's inputs. Only inputs of this precision are tried, and none outside its box.
    accept : callable
        Whether an input ``(*shape)`` is a counterexample indeed.
    deadline : float
        When to stop at the latest, by ``time.monotonic``.
    rounds : iterable of int
        The numbers of the rounds; each has starts of its own.
    seed : int
        Of the starts.

    Returns
    -------
    Tensor or None
        ``(*shape)`` an accepted input.
    """
    low, high = inward(questions.lower, questions.upper, dtype)
    possible = (low <= high).all(1).nonzero()[:, 0]
    if not len(possible):
        return None
    starts = max(_FEWEST, _STARTS // len(possible))
    of = possible.repeat_interleave(starts)
    asked, low, high = questions.take(of), low[of], high[of]
    width = high - low
    with borrowed(model, seed):
        for number in rounds:
            draw = Draws(seed, torch.arange(len(of)), draw=number).uniform(low.shape[1])
            # The first is the centre: where the whole box is unsafe, that is all it takes.
            share = torch.where((torch.arange(len(of)) % starts == 0).unsqueeze(1) & (number == 0), 0.5, draw)
            x = (low + share.to(dtype) * width).clamp(low, high)
            for step in range(_STEPS):
                if time.monotonic() > deadline:
                    return None
                x, excess, grad = differentiated(partial(_slope, model, x, asked, shape, flat=number % 2 == 1))
                found = _accepted(x, excess, shape, accept)
                if found is not None:
                    return found
                size = _FIRST * (_LAST / _FIRST) ** (step / (_STEPS - 1))
                x = (x - size * width * grad.sign()).clamp(low, high)
    return None


def _slope(
    model: nn.Module, x: Tensor, asked: Questions, shape: tuple[int, ...], *, flat: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(N, n)``, the largest excess of each, and the gradient of what is summed, of all rows where ``flat``."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # A copy, for networks that work in place on their input.
        excess = asked.excess(model(x.unflatten(1, shape).clone()).reshape(len(x), -1).double())
        # What fills up a conjunction is at minus infinity.
        total = (excess.masked_fill(excess.isinf(), 0.0) if flat else excess.relu()).sum()
        # Whole numbers and comparisons have no slope; then random starts are all there is.
        found = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        grad = torch.zeros_like(x) if found is None else found
    return x.detach(), excess.detach().amax(1), grad


def _accepted(x: Tensor, excess: Tensor, shape: tuple[int, ...], accept: Callable[[Tensor], bool]) -> Tensor | None:
    """The clearest of the inputs that seem to be counterexamples, if a replay agrees."""
    order = excess.argsort()[:_REPLAYS]
    return next((one for i in order[excess[order] <= 0] if accept(one := x[i].unflatten(0, shape))), None)
