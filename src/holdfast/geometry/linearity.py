"""How nearly linear a loss is within the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from holdfast.arguments import ball_of, inputs, labels, require_classes, seed_of, whole
from holdfast.draws import Draws
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.geometry.curvature import Loss
    from holdfast.threats import Ball

__all__ = ["gradient_alignment", "linearity_violation"]


def linearity_violation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Ball,
    *,
    steps: int = 10,
    seed: int = 0,
    loss: Loss = cross_entropy,
) -> Tensor:
    """The largest error found of the loss's tangent, ``|loss(x + d) - loss(x) - <d, gradient>|`` for admissible ``d``.

    The measure ``gamma(eps, x)`` of Qin et al., "Adversarial robustness through local linearization", NeurIPS 2019,
    by projected ascent of either sign from a random point of the set: a lower bound of the maximum.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels, all looked at in one call of the model.
    threat : Ball
        The set.
    steps : int
        Of the ascent, each a fifth of the budget long.
    seed : int
        Of the random start.
    loss : callable
        Maps logits and labels to values ``(N,)``.

    Returns
    -------
    Tensor
        ``(N,)``, 0 for a linear loss.
    """
    steps, seed = whole("steps", steps, 0), seed_of(seed)
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    with Query(model, batch_size=max(len(x), 1)) as query:
        require_classes(query.logits(x), y)
        x = query.prepare(x)
        tangent = query.gradient(x, lambda logits: loss(logits, y))
        size, worst = threat.budget(x) / 5, torch.zeros_like(tangent.values)
        for sign in (1, -1):  # a loss may bend up on one side and down on another
            z = threat.sample(x, Draws(seed, torch.arange(len(x), device=x.device)))
            for _ in range(steps + 1):
                moved = threat.apply(x, z)
                here = query.gradient(moved, lambda logits: loss(logits, y))
                error = here.values - tangent.values - ((moved - x) * tangent.grad).flatten(1).sum(1)
                worst = worst.maximum(error.abs())
                z = threat.ascend(z, x, sign * (here.grad - tangent.grad), size)
    return worst


def gradient_alignment(
    model: nn.Module, x: Tensor, y: Tensor, threat: Ball, *, seed: int = 0, loss: Loss = cross_entropy
) -> Tensor:
    """The cosine between the loss's gradient at each input and at a random point of its set.

    Andriushchenko and Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020: near
    1 where one step is as good as many, near 0 after catastrophic overfitting.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels, all looked at in one call of the model.
    threat : Ball
        The set.
    seed : int
        Of the random points.
    loss : callable
        Maps logits and labels to values ``(N,)``.

    Returns
    -------
    Tensor
        ``(N,)`` from -1 to 1; not a number where a gradient is 0 and has no direction.
    """
    seed = seed_of(seed)
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    with Query(model, batch_size=max(len(x), 1)) as query:
        require_classes(query.logits(x), y)
        x = query.prepare(x)
        near = threat.apply(x, threat.sample(x, Draws(seed, torch.arange(len(x), device=x.device))))
        here, there = (query.gradient(at, lambda logits: loss(logits, y)).grad.flatten(1) for at in (x, near))
    # Gradients of confident examples are so short that their squares would vanish.
    units = [functional.normalize(g.double() / g.double().abs().amax(1, keepdim=True), dim=1) for g in (here, there)]
    return (units[0] * units[1]).sum(1).to(x.dtype)
