"""Where gradients are looked at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.models.pinned import Pinned
from holdfast.models.query import Query
from holdfast.threats import Box, Threat

__all__ = ["Points", "contrast", "nearby", "reach"]

# Of random draws of checks, so that no attack draws the same; and draws that tell how far a threat reaches.
STAGE, _DRAWS = 1 << 20, 8
# How far points are moved away from inputs, in shares of the reach.
_NEARBY = 0.02


@dataclass(frozen=True)
class Points:
    """Some inputs, and the gradient that the model gives there.

    Parameters
    ----------
    x : Tensor
        ``(M, ...)``.
    y, rival : Tensor
        ``(M,)`` the labels, and the other class that is nearest.
    logits : Tensor
        ``(M, K)``.
    grad : Tensor
        ``(M, ...)`` of the rival's logit less the label's, as autograd gives it, NaN and all.
    pinned : Pinned
        The random numbers of every call that they were asked in, batch by batch.
    """

    x: Tensor
    y: Tensor
    rival: Tensor
    logits: Tensor
    grad: Tensor
    pinned: Pinned

    @classmethod
    def at(cls, query: Query, x: Tensor, y: Tensor) -> "Points":
        """The points ``x``; a backward and a forward pass each, with the random numbers of one call the same."""
        pinned, grads, looks, rivals = Pinned(query.model), [], [], []
        for rows, labels in zip(x.split(query.batch_size), y.split(query.batch_size), strict=True):
            chosen: list[Tensor] = []

            def gap(logits: Tensor, labels: Tensor = labels, chosen: list[Tensor] = chosen) -> Tensor:
                others = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf)
                chosen[:] = [others.argmax(1)]
                return contrast(logits, labels, chosen[0])

            with pinned:
                answer = query.bare_gradient(rows, gap)
            grads.append(answer.grad)
            looks.append(answer.logits)
            rivals += chosen
        return cls(x, y, torch.cat(rivals), torch.cat(looks), torch.cat(grads), pinned)

    @property
    def finite(self) -> Tensor:
        """``(M, ...)`` the gradient as attacks see it: 0 where it is not finite."""
        return self.grad.nan_to_num(0.0, 0.0, 0.0)


def contrast(logits: Tensor, y: Tensor, rival: Tensor) -> Tensor:
    """``(N,)`` the rival's logit less the label's: the margin, without its kink where the rival changes."""
    return (logits.gather(1, rival.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1)))[:, 0]


def reach(threat: Threat, x: Tensor, seed: int) -> Tensor:
    """``(1, ...)`` by how much an adversary moves each feature: the root mean square over random choices."""
    draws = (Draws(seed, torch.arange(len(x), device=x.device), STAGE, draw) for draw in range(_DRAWS))
    moves = [(threat.apply(x, threat.sample(x, draw)) - x).double().square().mean(0, keepdim=True) for draw in draws]
    return torch.stack(moves).mean(0).sqrt().to(x.dtype)


def nearby(threat: Threat, x: Tensor, reach: Tensor, rng: Draws) -> Tensor:
    """Random points inside the box and very near to others.

    Inputs themselves are often where networks have a kink: at an end of the box, or where a background of one value
    makes all that a pooling layer compares equal.
    """
    lower, upper = x - _NEARBY * reach, x + _NEARBY * reach
    box = getattr(threat, "box", None)
    if isinstance(box, Box):
        lowest, highest = box.ends(x)
        lower, upper = torch.maximum(lower, lowest), torch.minimum(upper, highest)
    share = rng.uniform(x[0].numel()).reshape(x.shape).to(x.dtype)
    return lower + (0.1 + 0.8 * share) * (upper - lower)
