"""How the gradient of cross-entropy dies on confident predictions, where that of the margin does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.arguments import ball_of, inputs, labels, number, require_classes
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy, margin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.threats import Ball

__all__ = ["Saturation", "gradient_saturation"]


@dataclass(frozen=True, eq=False)
class Saturation:
    """What one steepest step promises under two losses.

    Parameters
    ----------
    confidence : Tensor
        ``(N,)`` the probability of the label.
    cross_entropy, margin : Tensor
        ``(N,)`` the first-order increase of each loss by a step of the whole budget, ``eps * dual_norm(gradient)``.
    ratio : Tensor
        ``(N,)`` the first over the second; with two classes exactly ``1 - confidence``, up to rounding, and 0 where
        cross-entropy has no gradient left in the model's precision. Not a number where both are 0.
    """

    confidence: Tensor
    cross_entropy: Tensor
    margin: Tensor
    ratio: Tensor


def gradient_saturation(model: nn.Module, x: Tensor, y: Tensor, threat: Ball, *, scale: float = 1.0) -> Saturation:
    """Compare what FGSM can hope for under cross-entropy and under the margin.

    The gradient of cross-entropy is a mean of the gradients of ``z_k - z_y``, weighted by the probabilities of the
    wrong classes, which together are ``1 - p_y``: it vanishes with growing confidence, and is 0 in float32 when the
    margin passes about 100. Its direction is wrong long before: where ``1 - p_y`` is below half a unit in the last
    place of 1, from a margin of 16.6 in float32 and 36.7 in float64, rounding takes the label's logit out of it. Why
    attacks raise margins: Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels, all looked at in one call of the model.
    threat : Ball
        The norm and the budget.
    scale : float
        Multiplies the logits under both losses: confidence without another decision, as the temperature of a distilled
        model leaves it. The margin's increase is of the scaled logits, too.

    Returns
    -------
    Saturation
    """
    scale = number("scale", scale)
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    with Query(model, batch_size=max(len(x), 1)) as query:
        require_classes(query.logits(x), y)
        x = query.prepare(x)
        budget = threat.budget(x)
        first = query.gradient(x, lambda logits: cross_entropy(scale * logits, y))
        second = query.gradient(x, lambda logits: margin(scale * logits, y))
        rises = [budget * threat.dual_norm(answer.grad) for answer in (first, second)]
    confidence = (-cross_entropy(scale * first.logits.double(), y)).exp().to(x.dtype)
    return Saturation(confidence, rises[0], rises[1], rises[0] / rises[1])
