"""How a loss bends along the direction of the strongest attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from holdfast.arguments import ball_of, inputs, labels, module_of, number, real, require_classes, whole
from holdfast.errors import ModelError
from holdfast.models.borrow import borrowed
from holdfast.models.precision import first_float
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats.norm import column

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.threats import Ball

__all__ = ["Crossing", "Loss", "crossing", "curvature"]

Loss = Callable[["Tensor", "Tensor"], "Tensor"]

# After so many halvings a step of any grid is below the resolution of float64.
_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Crossing:
    """When a loss reaches a threshold on the way along the steepest direction ``v`` of a unit ball.

    Parameters
    ----------
    t_lin : Tensor
        ``(N,)`` what the gradient predicts: ``(threshold - loss) / <gradient, v>``, 0 where the loss is there already
        and infinite where the gradient is 0.
    t_act : Tensor
        ``(N,)`` the smallest ``t`` seen at which the loss of ``x + t v`` is as high; infinite where none is in reach.
    r : Tensor
        ``(N,)`` their ratio ``t_act / t_lin``: below 1 where the loss bends upwards, 1 where it is linear, above 1
        where it bends down. Not a number where both are 0 or both infinite.
    """

    t_lin: Tensor
    t_act: Tensor
    r: Tensor


def curvature(model: nn.Module, x: Tensor, y: Tensor, threat: Ball, *, loss: Loss = cross_entropy) -> Tensor:
    """The second derivative of the loss along the direction in which it rises most.

    ``<v, H v>`` for the Hessian ``H`` of the loss in the input and ``v`` the steepest point of the threat's unit ball:
    for L-infinity the sign of the gradient, as in Moosavi-Dezfooli et al., "Robustness via curvature regularization,
    and vice versa", CVPR 2019. By differentiating twice, without a step size.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels.
    threat : Ball
        Whose norm says what a unit step is; its budget and box are not used.
    loss : callable
        Maps logits and labels to values ``(N,)``, such as those in :mod:`holdfast.tasks.objectives`.

    Returns
    -------
    Tensor
        ``(N,)`` per squared unit of the norm; 0 where the loss is piecewise linear.

    Raises
    ------
    ModelError
        When no gradient reaches the input.
    """
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    with borrowed(module_of(model)), torch.enable_grad():
        precise = first_float(model, x).dtype
        center = x.to(precise, copy=True).requires_grad_()
        try:
            logits = model(center.clone())
        except Exception as error:  # a model may raise anything
            raise ModelError(f"the model failed on inputs of shape {tuple(x.shape)}: {error}") from error
        values = loss(require_classes(logits, y), y)
        if not values.requires_grad:
            raise ModelError("no gradient reaches the model's input: curvature needs one")
        (grad,) = torch.autograd.grad(values.sum(), center, create_graph=True)
        direction = threat.steepest(grad.detach())
        slope = (grad * direction).sum()
        bend = torch.autograd.grad(slope, center, allow_unused=True)[0] if slope.requires_grad else None
    return torch.zeros_like(values.detach()) if bend is None else (bend * direction).flatten(1).sum(1)


def crossing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Ball,
    threshold: float,
    *,
    reach: float,
    steps: int = 64,
    loss: Loss = cross_entropy,
) -> Crossing:
    """The linear prediction of when a loss reaches a threshold, and when it does.

    A convex loss of a linear model is never later than its tangent says, so ``r <= 1`` there; a linear loss is on time.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels, all looked at in one call of the model.
    threat : Ball
        Whose norm measures ``t``. Its budget and box are not used: the way is straight.
    threshold : float
        The loss to reach; cross-entropy above ``log 2`` may, and above ``log K`` must, be a misclassification.
    reach : float
        How far to look, in the units of the norm.
    steps : int
        Points looked at on the way; between the first two that enclose the threshold it is bisected. A loss that rises
        above it and falls again between two points is missed.
    loss : callable
        Maps logits and labels to values ``(N,)``.

    Returns
    -------
    Crossing

    Raises
    ------
    SettingError
        When the threshold or the reach is no number that float32 can hold, the reach is not positive, or there are no
        steps.
    ModelError
        When the model fails, or no gradient reaches the input.
    """
    reach, steps = number("reach", real("reach", reach)), whole("steps", steps)
    threshold = number("threshold", threshold)
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    with Query(model, batch_size=max(len(x), 1)) as query:
        require_classes(query.logits(x), y)
        x = query.prepare(x)
        start = query.gradient(x, lambda logits: loss(logits, y))
        direction = threat.steepest(start.grad)
        gap = threshold - start.values
        t_lin = torch.where(gap <= 0, 0.0, gap / threat.dual_norm(start.grad))

        def reached(t: Tensor) -> Tensor:
            return loss(query.bare_logits(x + column(t, x) * direction), y) >= threshold

        # The last point before, and the first beyond.
        low, high = torch.zeros_like(gap), torch.where(gap <= 0, 0.0, torch.inf)
        for step in range(1, steps + 1):
            t = torch.full_like(gap, reach * step / steps)
            ahead = high == torch.inf
            there = reached(t)
            high = torch.where(ahead & there, t, high)
            low = torch.where(ahead & ~there, t, low)
        for _ in range(_HALVINGS):
            middle = torch.where(high == torch.inf, low, (low + high) / 2)
            there = reached(middle)
            high, low = torch.where(there, middle, high), torch.where(there, low, middle)
    t_act = torch.where(gap <= 0, 0.0, high)
    return Crossing(t_lin, t_act, t_act / t_lin)
