"""Planes above and below the maximum of several inputs, each in an interval of its own."""

import torch
from torch import Tensor

from holdfast.certify.bounds.relaxations.planes import Planes, rounded_up
from holdfast.threats.norm import safe_divide

__all__ = ["contested", "max_pool"]


def contested(lower: Tensor, upper: Tensor) -> Tensor:
    """``(..., k)`` bool, the inputs that may be the maximum where it is not known which one is."""
    top = lower.amax(-1, keepdim=True)
    return (upper > top) & ~_known(lower, upper)


def _known(lower: Tensor, upper: Tensor) -> Tensor:
    """``(..., 1)`` whether the input with the largest lower bound is the maximum for certain."""
    top, winner = lower.max(-1, keepdim=True)
    return (upper.scatter(-1, winner, -torch.inf) <= top).all(-1, keepdim=True)


def max_pool(lower: Tensor, upper: Tensor) -> Planes:
    """Planes above and below ``max_i x_i`` for ``l_i <= x_i <= u_i``.

    Above: for any level ``t`` that is at least every ``l_i``,

        max_i x_i <= t + sum_i max(x_i - t, 0) <= t + sum_i max(u_i - t, 0) / (u_i - l_i) * (x_i - l_i).

    At the middle of the box the right side is ``t + sum_i max(u_i - t, 0) / 2``, least where two of the ``u_i`` are
    above ``t``: the level is the third largest, or the largest ``l_i`` if that is more. An input that is above all
    others is then the maximum exactly. Below: the input with the largest ``l_i``.

    Parameters
    ----------
    lower, upper : Tensor
        ``(..., k)`` finite bounds.

    Returns
    -------
    Planes
        Slopes ``(..., k)`` and intercepts ``(...)``.
    """
    width = upper - lower
    top = lower.amax(-1, keepdim=True)
    # A third, so that an input always has two others.
    third = torch.cat([upper, top, top], -1).topk(3, dim=-1).values[..., 2:]
    level = torch.maximum(top, third)
    slope = safe_divide((upper - level).clamp_min(0), width).clamp_max(1)
    winner = torch.zeros_like(lower).scatter(-1, lower.argmax(-1, keepdim=True), 1.0)
    slope = torch.where(_known(lower, upper), winner, slope)
    # The least intercept for these slopes: the box's worst corner for each input in turn.
    s, low, high = slope.double(), lower.double(), upper.double()
    intercept = ((1 - s) * high + s * low).amax(-1) - (s * low).sum(-1)
    return Planes(winner, torch.zeros_like(lower[..., 0]), slope, rounded_up(intercept, lower.dtype))
