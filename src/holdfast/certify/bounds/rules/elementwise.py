"""Functions of each number alone: activations, powers, roundings and casts."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds import relaxations
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations import kink
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.operations.linear import Sum
from holdfast.certify.bounds.relaxations import ACTIVATIONS, ROUNDED
from holdfast.certify.bounds.rules.arithmetic import affine, maximum, minimum
from holdfast.certify.bounds.rules.builder import LEVEL, Builder, Symbol, applied, by_channel, check_constant
from holdfast.errors import ModelError

__all__ = [
    "absolute",
    "activation",
    "cast",
    "celu",
    "clamp",
    "clamp_between",
    "clamp_max",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardtanh",
    "in_steps",
    "leaky_relu",
    "mish",
    "power",
    "prelu",
    "reciprocal_root",
    "relu",
    "selu",
    "silu",
    "softplus",
    "softshrink",
]


def activation(name: str, builder: Builder, x: Any) -> Symbol:
    """The activation of that name."""
    return applied(builder, ACTIVATIONS[name], x)


def in_steps(name: str, builder: Builder, x: Any, *, decimals: int = 0) -> Symbol:
    """Rounding to whole numbers."""
    if decimals:
        raise ModelError("it rounds to decimals; scale, and round to whole numbers")
    return applied(builder, ROUNDED[name], x)


def cast(builder: Builder, x: Symbol, source: torch.dtype, result: torch.dtype) -> Symbol:
    """A value of one type in another one.

    Exact into a wider type, and of what is 1 or 0; a function that rises in steps into a narrower one.

    Raises
    ------
    ModelError
        When it makes whole numbers of others.
    """
    if torch.promote_types(source, result) == result and (source.is_floating_point or source == torch.bool):
        return builder.reshaped(x, builder.shape)
    if not result.is_floating_point:
        raise ModelError(
            f"it makes {result} of what depends on the network's input; bounds are of floating-point numbers, which "
            "floor, round and trunc keep"
        )
    return applied(builder, relaxations.cast(result), x)


def relu(builder: Builder, x: Any) -> Symbol:
    """``max(x, 0)``."""
    return builder.add(kink.relu(), x, shape=x.shape)


def leaky_relu(builder: Builder, x: Any, slope: float = 0.01) -> Symbol:
    """``x`` above 0, and ``slope * x`` below."""
    return x if slope == 1 else builder.add(Kink(float(slope), 1.0), x, shape=x.shape)


def prelu(builder: Builder, x: Any, weight: Any) -> Symbol:
    """One slope for all values, or one for each channel."""
    check_constant(weight)
    slope = by_channel(weight, x.shape) if weight.numel() > 1 else weight
    return builder.add(Kink(builder.constant(slope, x.shape), 1.0), x, shape=x.shape)


def absolute(builder: Builder, x: Any) -> Symbol:
    """A kink at 0, with slopes -1 and 1."""
    return builder.add(Kink(-1.0, 1.0, 0), x, shape=x.shape)


def gelu(builder: Builder, x: Any, *, approximate: str = "none") -> Symbol:
    """``x`` times the normal distribution at ``x``, or what approximates that."""
    return applied(builder, relaxations.gelu(approximate), x)


def silu(builder: Builder, x: Any) -> Symbol:
    """``x * sigmoid(x)``."""
    return applied(builder, relaxations.silu(), x)


def clamp(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    """Between two numbers, either of which may be missing."""
    if low == 0 and high is None:
        return relu(builder, x)
    least, most = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    # where the ends are in the wrong order, the upper one
    return applied(builder, relaxations.clamp(min(least, most), most), x)


def clamp_between(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    """Between tensors."""
    raised = x if low is None else maximum(builder, x, low)
    return raised if high is None else minimum(builder, raised, high)


def clamp_max(builder: Builder, x: Any, high: Any) -> Symbol:
    """At most a number."""
    return clamp(builder, x, None, high)


def hardtanh(builder: Builder, x: Any, low: float = -1.0, high: float = 1.0) -> Symbol:
    """Between two numbers, -1 and 1 by default."""
    return clamp(builder, x, low, high)


def hardsigmoid(builder: Builder, x: Any) -> Symbol:
    """``x / 6 + 1 / 2``, between 0 and 1."""
    return clamp(builder, affine(builder, x, 1 / 6, 0.5), 0.0, 1.0)


def power(builder: Builder, x: Any, exponent: Any) -> Symbol:
    """A constant power."""
    known = {2: "square", 0.5: "sqrt", -1: "reciprocal"}
    if not isinstance(x, Symbol) or isinstance(exponent, Symbol):
        raise ModelError("only powers with a constant exponent are bounded")
    if exponent in known:
        return activation(known[exponent], builder, x)
    if exponent in (0, 1) or not math.isfinite(exponent):
        raise ModelError(f"the power {exponent} is not bounded; leave it out")
    return applied(builder, relaxations.power(exponent), x)


def elu(builder: Builder, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Symbol:
    """``scale`` times ``x`` above 0, and times ``alpha * (exp(input_scale * x) - 1)`` below."""
    return applied(builder, relaxations.elu(alpha, scale, input_scale), x)


def celu(builder: Builder, x: Any, alpha: float = 1.0) -> Symbol:
    """``x`` above 0, and ``alpha * (exp(x / alpha) - 1)`` below."""
    return elu(builder, x, alpha, 1.0, 1 / alpha if alpha else 0.0)


# Its two constants, from Klambauer et al. 2017, "Self-normalizing neural networks", arXiv 1706.02515.
_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def selu(builder: Builder, x: Any) -> Symbol:
    """ELU with two constants."""
    return elu(builder, x, *_SELU)


def softplus(builder: Builder, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    """Of ``beta x``, divided by ``beta``."""
    scaled = x if beta == 1 else affine(builder, x, beta, 0.0)
    error = partial(_jumping, threshold=threshold, network=builder.network)
    found = builder.add(Elementwise(relaxations.softplus(threshold)), scaled, shape=x.shape, error=error)
    return found if beta == 1 else affine(builder, found, 1 / beta, 0.0)


def _jumping(u: float, x: Interval, *, threshold: float, network: torch.dtype) -> Tensor:
    """By how much a softplus jumps at its threshold, where the network does not hold that and takes a near number."""
    held = float(torch.tensor(threshold, dtype=network)) == threshold
    near = -1.0 if held else abs(threshold) * LEVEL * torch.finfo(network).eps
    reached = (x.lower <= threshold + near) & (x.upper >= threshold - near) & (near >= 0)
    return torch.where(reached, math.log1p(math.exp(-threshold)), 0.0).to(x.lower.dtype)


def mish(builder: Builder, x: Any) -> Symbol:
    """``x * tanh(softplus(x))``."""
    return applied(builder, relaxations.mish(), x)


def softshrink(builder: Builder, x: Any, room: float = 0.5) -> Symbol:
    """``relu(x - room) - relu(-x - room)``."""
    ideal = builder.between()
    above, below = (ideal.add(kink.relu(), affine(ideal, x, sign, -room), shape=x.shape) for sign in (1.0, -1.0))
    return builder.add(Sum((1, -1)), above, below, shape=x.shape)


def reciprocal_root(builder: Builder, x: Symbol) -> Symbol:
    """``1 / sqrt(x)``."""
    return activation("reciprocal", builder, activation("sqrt", builder, x))
