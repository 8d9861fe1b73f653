"""The ReLU, the one nonlinearity whose lower bound is a free choice: any slope from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.graph import Interval
from holdfast.certify.rounding import Rounding, dot, gamma, largest, summed, unit
from holdfast.certify.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.certify.operations.linear import Shapes

__all__ = ["ReLU", "ReLUPlanes", "relu_planes"]


class ReLUPlanes(NamedTuple):
    """``lower * x <= relu(x) <= upper * x + shift`` for ``N`` examples.

    Parameters
    ----------
    lower : Tensor
        ``(N, *shape)``, or slopes of their own for ``R`` rows, ``(R, *shape)``.
    upper, shift : Tensor
        ``(N, *shape)``.
    push : Tensor or None
        ``(N, *shape)`` what is added to the coefficients of ``x``: the multipliers of constraints on its sign.
    """

    lower: Tensor
    upper: Tensor
    shift: Tensor
    push: Tensor | None = None


def relu_planes(lower: Tensor, upper: Tensor) -> ReLUPlanes:
    """The chord above, below the slope of least area (Zhang et al. 2018, section 3.3); exact where signs are known."""
    low, high = lower.clamp_max(0), upper.clamp_min(0)
    width = high - low
    tiny = torch.finfo(width.dtype).tiny
    slope = torch.where(width > 0, high / width.clamp_min(tiny), (lower > 0).to(width.dtype)).clamp_max(1)
    adaptive = (upper > -lower).to(slope.dtype)
    # Above both ends, whatever the slope was rounded to; and with room for the sum that it becomes a term of.
    shift = torch.maximum(-slope * low, high * (1 - slope)) * (
        1 + 2 * gamma(summed(width[0].numel() if len(width) else 1) + 8, unit(width.dtype))
    )
    return ReLUPlanes(adaptive, slope, shift + tiny * (shift > 0))


@dataclass(frozen=True, eq=False)
class ReLU:
    """``max(x, 0)``."""

    linear: ClassVar[bool] = False
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = True
    adds: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return x.relu()

    def interval(self, x: Interval) -> Interval:
        return Interval(x.lower.relu(), x.upper.relu())

    def relax(self, x: Interval) -> ReLUPlanes:
        return relu_planes(*x)

    def rounding(self, planes: ReLUPlanes | None, x: Interval) -> Rounding:
        return Rounding(largest(x), 0, 2)

    def undecided(self, x: Interval) -> Tensor:
        return (x.lower < 0) & (x.upper > 0)

    def backward(self, rows: Rows, planes: ReLUPlanes, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        values = rows.grouped(len(planes.upper))
        lower, upper, shift = (
            rows.cut(plane).unflatten(0, (len(values), -1)) for plane in (planes.lower, planes.upper, planes.shift)
        )
        before, total = step(values, lower, upper, shift)
        if planes.push is not None:
            before = before + rows.cut(planes.push).unsqueeze(1)
        return (Rows(before.flatten(0, 1), rows.window),), total.flatten()


class Step(torch.autograd.Function):
    """One pass through the planes: coefficients above 0 take the lower one, those below 0 the upper one.

    Its gradient with respect to the slopes is the coefficient times the value of the relaxed network's neuron, which
    autograd brings along; this keeps the coefficients alone for it, and not the seven tensors between.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, lower: Tensor, upper: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(values, lower, upper, shift)
        negative = values.clamp_max(0)
        total = dot(negative.flatten(2), shift.flatten(2))
        # One of the two products is 0, so that each coefficient is rounded but once.
        return values.clamp_min(0).mul_(lower).addcmul_(negative, upper), total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, lower, upper, shift = ctx.saved_tensors
        grad, total = grads
        total = total.to(values.dtype).reshape(*total.shape, *[1] * (values.dim() - 2))
        need_values, need_lower, need_upper, need_shift = ctx.needs_input_grad
        above = (values > 0).to(values.dtype)
        positive = values * above if need_lower or need_upper or need_shift else None
        by_values = by_lower = by_upper = by_shift = None
        if need_values:
            below_slope = torch.addcmul(total * shift, grad, upper)
            by_values = torch.lerp(below_slope, grad * lower, above)
        if positive is not None:
            by_lower = (grad * positive).sum_to_size(lower.shape) if need_lower else None
            by_upper = (grad * (values - positive)).sum_to_size(upper.shape) if need_upper else None
            by_shift = (total * (values - positive)).sum_to_size(shift.shape) if need_shift else None
        return by_values, by_lower, by_upper, by_shift


step: Callable[..., tuple[Tensor, Tensor]] = Step.apply
