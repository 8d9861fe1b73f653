"""What defended classifiers share: modules that let votes decide, and that prove something of themselves.

A vote has no gradient. What an attack is shown therefore goes by the votes, and is differentiated as the average of the
logits behind them (backward pass differentiable approximation; Athalye, Carlini and Wagner, "Obfuscated gradients give
a false sense of security", ICML 2018, section 4.1). Verdicts are about the answer of the whole.

All votes about an image are asked for in one call of the model, of which nothing else is part. So an answer depends on
the image alone, bit for bit, and what a certificate says of it holds in the model's own arithmetic.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from holdfast.certify.smoothing.votes import named
from holdfast.errors import ModelError
from holdfast.models.layout import lay_out
from holdfast.threats import Threat

__all__ = ["Defended", "as_logits", "ask"]

# How far the answer's score stands above all others: a share of votes is at most 1, and what follows it less than 1/2.
_ABOVE = 2.0


@runtime_checkable
class Defended(Protocol):
    """A module that proves by itself what no admissible change can do to its answers."""

    @property
    def procedure(self) -> str:
        """What proves it, as results call it."""
        ...

    def refuses(self, threat: Threat) -> str:
        """Why it proves nothing about a threat, in one line; empty where it proves something."""
        ...

    def keeps(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """``(N,)`` bool: for which inputs every admissible change is answered by the label ``y``, ``(N,)``."""
        ...


def ask(model: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
    """What a model says of the views of one image: ``(V, K)`` logits, and ``(V,)`` int64 classes, K for none.

    Raises
    ------
    ModelError
        When it does not answer with two logits or more for each.
    """
    logits = model(lay_out(views, channels_last=False))
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(views) or logits.shape[1] < 2:
        raise ModelError(
            "the classifier behind the votes must return logits (N, K) for N views of an image, K at least 2; wrap it "
            "in a module that does"
        )
    return logits, named(logits.detach())


def as_logits(votes: Tensor, logits: Tensor, answer: int) -> Tensor:
    """``(1, K)`` scores whose largest is the answer's; NaN where there is none.

    The others stand by their share of the votes, and among equals by the average of the views' logits, ``(V, K)``,
    whose gradient the scores have.
    """
    average = logits.mean(0, keepdim=True)
    classes = logits.shape[1]
    if answer >= classes:
        return average * torch.nan
    share = nn.functional.one_hot(votes, classes + 1)[:, :classes].to(logits.dtype).mean(0, keepdim=True)
    with torch.no_grad():
        score = share + average.softmax(1).nan_to_num(0.0) / 4
        score[:, answer] += _ABOVE
    return score + (average - average.detach()).nan_to_num(0.0)
