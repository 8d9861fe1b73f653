"""The activation functions, each as its values, its slope and where it turns."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from holdfast.certify.relaxations.planes import Activation, Function
from holdfast.errors import ModelError

__all__ = ["ACTIVATIONS", "clamp", "gelu", "power", "silu"]

# The nodes between which the slopes of a gated function are interpolated, in each of its pieces.
_NODES = 1 << 16
# What these hold, every precision does.
_SHORT = (torch.half, torch.bfloat16)


def clamp(low: float, high: float) -> Activation:
    """``x`` between two ends, either of which may be infinite.

    A network rounds an end to its own precision, unless that is as good as any.
    """
    short = all(float(torch.tensor(end, dtype=dtype)) == end for end in (low, high) for dtype in _SHORT)
    return Activation(
        "clamp",
        lambda x: x.clamp(low, high),
        lambda x: ((x > low) & (x < high)).to(x.dtype),
        peaks=_kinks(high),
        valleys=_kinks(low),
        roundings=0 if short else 1,
        ends=(low, high),
    )


def power(exponent: int) -> Activation:
    """``x ** exponent`` for a whole number of at least 2."""

    def size(k: Tensor) -> Tensor:
        root: Tensor = (k / exponent) ** (1 / (exponent - 1))
        return root

    even = exponent % 2 == 0
    return Activation(
        f"power {exponent}",
        lambda x: x**exponent,
        lambda x: exponent * x ** (exponent - 1),
        peaks=lambda k: () if even else (-size(k.clamp_min(0)),),
        valleys=lambda k: (size(k.abs()).copysign(k),) if even else (size(k.clamp_min(0)),),
        extremes=(0.0,) if even else (),
        roundings=max(8, 2 * exponent),
    )


@cache
def gelu(approximate: str = "none") -> Activation:
    """``x Phi(x)``, with the normal distribution's ``Phi`` or, for ``"tanh"``, its usual approximation.

    Raises
    ------
    ModelError
        When the approximation is unknown.
    """
    if approximate == "tanh":
        return _gated("gelu tanh", _gelu_tanh_gate, _gelu_tanh_gate_slope, 1.4, 12.0)
    if approximate != "none":
        raise ModelError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    return _gated("gelu", _normal, _normal_density, 1.4, 12.0)


@cache
def silu() -> Activation:
    """``x`` times its sigmoid."""
    return _gated("silu", torch.sigmoid, _sigmoid_slope, 2.4, 40.0)


def _normal(x: Tensor) -> Tensor:
    # Unlike 1 + erf, and unlike torch's own function, this does not cancel far below 0.
    twice: Tensor = torch.special.erfc(-x / math.sqrt(2))
    return twice / 2


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_gate(x: Tensor) -> Tensor:
    # (1 + tanh z) / 2 is the sigmoid of 2 z, which does not cancel.
    return torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


def _gelu_tanh_gate_slope(x: Tensor) -> Tensor:
    scale = math.sqrt(8 / math.pi)
    return _sigmoid_slope(scale * (x + 0.044715 * x**3)) * scale * (1 + 3 * 0.044715 * x.square())


def _gated(name: str, gate: Function, gate_slope: Function, guess: float, end: float) -> Activation:
    """``x`` times a gate that rises from 0 to 1, symmetric about 0.

    Convex between two inflections, at ``-p`` and ``p``, and concave beyond. By symmetry the slopes at ``x`` and ``-x``
    sum to 1. Beyond ``end`` the slope is 1 as far as numbers go.
    """
    from scipy.optimize import brentq  # slow to import, so only where it is used

    def slope(x: Tensor) -> Tensor:
        return gate(x) + x * gate_slope(x)

    fine = torch.linspace(guess - 0.1, guess + 0.1, _NODES, dtype=torch.float64)
    inflection = float(fine[slope(fine).argmax()])
    bend = torch.linspace(-inflection, inflection, _NODES, dtype=torch.float64)
    tail = torch.linspace(end, inflection, _NODES, dtype=torch.float64)
    bend_slopes, tail_slopes = (slope(nodes).cummax(0).values for nodes in (bend, tail))

    return Activation(
        name,
        lambda x: x * gate(x),
        slope,
        peaks=lambda k: (_interpolated(k, tail_slopes, tail), -_interpolated(1 - k, tail_slopes, tail)),
        valleys=lambda k: (_interpolated(k, bend_slopes, bend),),
        extremes=(brentq(lambda x: float(slope(torch.tensor(x, dtype=torch.float64))), -inflection, 0.0, xtol=1e-15),),
        cell=2 * max(inflection, end - inflection) / (_NODES - 1),
        roundings=24,
        gain=1.0,
    )


def _interpolated(k: Tensor, slopes: Tensor, nodes: Tensor) -> Tensor:
    """Where the rising ``slopes`` at the ``nodes`` reach ``k``, to within a cell; infinity beyond either end."""
    slopes, nodes = slopes.to(k.device), nodes.to(k.device)
    after = torch.searchsorted(slopes, k.contiguous())
    cell = after.clamp(1, len(nodes) - 1)
    (a, b), (x, y) = ((table[cell - 1], table[cell]) for table in (slopes, nodes))
    point = torch.lerp(x, y, ((k - a) / (b - a).clamp_min(torch.finfo(k.dtype).tiny)).clamp(0, 1))
    ahead = torch.inf if nodes[-1] > nodes[0] else -torch.inf
    return torch.where(k < slopes[0], -ahead, torch.where(k > slopes[-1], ahead, point))


def _kinks(*places: float) -> Callable[[Tensor], tuple[Tensor, ...]]:
    finite = [place for place in places if math.isfinite(place)]
    return lambda k: tuple(torch.full_like(k, place) for place in finite)


def _logit(k: Tensor) -> Tensor:
    """The positive number at which the sigmoid's slope is ``k``; 0 above the largest slope, infinite below 0."""
    k = k.clamp(0, 0.25)
    # The small root of s (1 - s) = k, in the form that does not cancel.
    s = 2 * k / (1 + (1 - 4 * k).sqrt())
    return ((1 - s) / s).log()


def _sigmoid_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (-x).sigmoid()


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation(
            "sigmoid",
            torch.sigmoid,
            _sigmoid_slope,
            peaks=lambda k: (_logit(k),),
            valleys=lambda k: (-_logit(k),),
        ),
        Activation(
            "tanh",
            torch.tanh,
            lambda x: 4 * _sigmoid_slope(2 * x),
            peaks=lambda k: (_logit(k / 4) / 2,),
            valleys=lambda k: (-_logit(k / 4) / 2,),
        ),
        Activation("exp", torch.exp, torch.exp, valleys=lambda k: (k.clamp_min(0).log(),)),
        Activation(
            "log", torch.log, torch.reciprocal, peaks=lambda k: (k.clamp_min(0).reciprocal(),), start=0.0, pole=True
        ),
        Activation(
            "sqrt",
            torch.sqrt,
            lambda x: x.rsqrt() / 2,
            peaks=lambda k: ((2 * k.clamp_min(0)).square().reciprocal(),),
            start=0.0,
        ),
        Activation(
            "reciprocal",
            torch.reciprocal,
            lambda x: -x.square().reciprocal(),
            valleys=lambda k: ((-k).clamp_min(0).rsqrt(),),
            start=0.0,
            pole=True,
        ),
        Activation("square", torch.square, lambda x: 2 * x, valleys=lambda k: (k / 2,), extremes=(0.0,)),
    )
}
