"""The activation functions, each as its values, its slope and where it turns."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.relaxations.planes import Activation, Function, Turns
from holdfast.errors import ModelError

__all__ = ["ACTIVATIONS", "clamp", "elu", "gelu", "mish", "power", "silu", "softplus"]

# The nodes between which the slopes of a function are interpolated, in each of its pieces.
_NODES = 1 << 16
# Beyond this, either way, an exponential is nothing beside any number that it is added to, or nothing at all.
_END = 800.0
# By how many units of roundoff exp(p log x) can be off by the rounding of p: float32 holds no power above exp(89) and
# none below exp(-104).
_ROUNDED_EXPONENT = 112
# Below this size a function's float32 value is as far off as if it were this large: an intermediate result such as the
# exponential in a sigmoid may overflow, which leaves 0 for numbers of up to 1 / 3.4e38.
_OVERFLOWN = 1e-31
# How many turns of the circle around 0 a sine is followed through.
_TURNS = 8
# What these hold, every precision does.
_SHORT = (torch.half, torch.bfloat16)


def clamp(low: float, high: float) -> Activation:
    """``x`` between two ends, either of which may be infinite.

    A network rounds an end to its own precision, unless that is as good as any.
    """
    short = _held(low) and _held(high)
    return Activation(
        "clamp",
        lambda x: x.clamp(low, high),
        lambda x: ((x > low) & (x < high)).to(x.dtype),
        peaks=_kinks(high),
        valleys=_kinks(low),
        roundings=0 if short else 1,
        ends=(low, high),
    )


def _held(number: float) -> bool:
    """Whether every precision holds a number."""
    return all(float(torch.tensor(number, dtype=dtype)) == number for dtype in _SHORT)


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    """``scale * x`` where it is positive, ``scale * alpha * (exp(input_scale * x) - 1)`` where it is not.

    With them come SELU (both scales fixed) and CELU (``input_scale`` is ``1 / alpha``).

    Raises
    ------
    ModelError
        When one of the scales is not positive.
    """
    if scale <= 0 or input_scale <= 0:
        raise ModelError("it is bounded with positive scales only")
    start = scale * alpha * input_scale

    def bend(k: Tensor) -> Tensor:
        """Where left of 0 the slope is ``k``; at 0 where it is so nowhere on that side of it."""
        share = k / start if start else torch.zeros_like(k)
        return share.clamp(0, 1).log() / input_scale

    bends, kink = (bend,), _kinks(0.0)
    # Left of 0 the function curves as alpha says; at 0 its slope goes from one number to another.
    curved = _joined(*(bends if alpha > 0 else ())), _joined(*(bends if alpha < 0 else ()))
    convex = start <= scale
    return Activation(
        "elu",
        lambda x: scale * torch.where(x > 0, x, alpha * torch.expm1(input_scale * x.clamp_max(0))),
        lambda x: torch.where(x > 0, scale, start * torch.exp(input_scale * x.clamp_max(0))),
        peaks=_joined(curved[1], *(() if convex else (kink,))),
        valleys=_joined(curved[0], *((kink,) if convex else ())),
        extremes=(0.0,) if alpha < 0 else (),
    )


def power(exponent: float) -> Activation:
    """``x ** exponent``; for exponents other than whole numbers of at least 2, of positive numbers only."""
    if exponent >= 2 and exponent == int(exponent):
        return _whole_power(int(exponent))
    falling = exponent < 0

    def turn(k: Tensor) -> Tensor:
        found: Tensor = (k / exponent).clamp_min(0) ** (1 / (exponent - 1))
        return found

    concave = 0 < exponent < 1
    return Activation(
        f"power {exponent}",
        lambda x: x**exponent,
        lambda x: exponent * x ** (exponent - 1),
        peaks=lambda k: (turn(k),) if concave else (),
        valleys=lambda k: () if concave else (turn(k),),
        start=0.0,
        pole=falling,
        roundings=8 if _held(exponent) else _ROUNDED_EXPONENT + 8,
        floor=_OVERFLOWN if falling else 0.0,
    )


def _whole_power(exponent: int) -> Activation:
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


def softplus(threshold: float = 20.0) -> Activation:
    """``log(1 + exp(x))``, and ``x`` above a threshold, where torch's function jumps down to it."""
    just_above = math.nextafter(threshold, math.inf)
    return Activation(
        "softplus",
        lambda x: functional.softplus(x, 1.0, threshold),
        lambda x: torch.where(x > threshold, 1.0, x.sigmoid()),
        peaks=_kinks(threshold),
        valleys=lambda k: (torch.special.logit(k.clamp(0, 1)).clamp_max(threshold), torch.full_like(k, just_above)),
        extremes=(threshold, just_above),
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
        return _gated("gelu tanh", _gelu_tanh_gate, _gelu_tanh_gate_slope, 1.4, 40.0)
    if approximate != "none":
        raise ModelError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    return _gated("gelu", _normal, _normal_density, 1.4, 40.0)


@cache
def silu() -> Activation:
    """``x`` times its sigmoid."""
    return _gated("silu", torch.sigmoid, _sigmoid_slope, 2.4, _END)


@cache
def mish() -> Activation:
    """``x`` times the hyperbolic tangent of its softplus."""
    low = _turning(lambda x: -_mish_slope(x), -3.0, -1.5)
    high = _turning(_mish_slope, 0.5, 3.0)
    pieces = ((-_END, low), (low, high), (high, _END))
    return _tabulated("mish", lambda x: x * _mish_gate(x), _mish_slope, pieces, gain=1.0)


def _mish_gate(x: Tensor) -> Tensor:
    """``tanh(log(1 + exp(x)))`` as a quotient of sums of positive terms, which do not cancel."""
    w = torch.exp(-x.abs())
    above = torch.where(x < 0, w * (w + 2), 1 + 2 * w)
    return above / (above + 2 * torch.where(x < 0, 1.0, w * w))


def _mish_slope(x: Tensor) -> Tensor:
    w = torch.exp(-x.abs())
    above = torch.where(x < 0, w * (w + 2), 1 + 2 * w)
    below = above + 2 * torch.where(x < 0, 1.0, w * w)
    return above / below + x * 4 * (1 + w) * torch.where(x < 0, w, w * w) / below.square()


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

    Convex between two inflections, at ``-p`` and ``p``, and concave beyond. Beyond ``end`` the slope is 0 or 1 as far
    as numbers go.
    """

    def slope(x: Tensor) -> Tensor:
        return gate(x) + x * gate_slope(x)

    p = _turning(slope, guess - 0.1, guess + 0.1)
    return _tabulated(name, lambda x: x * gate(x), slope, ((-end, -p), (-p, p), (p, end)), gain=2.0)


def _turning(function: Function, low: float, high: float) -> float:
    """Where the function has its maximum."""
    fine = torch.linspace(low, high, _NODES, dtype=torch.float64)
    return float(fine[function(fine).argmax()])


def _tabulated(
    name: str, function: Function, slope: Function, pieces: tuple[tuple[float, float], ...], gain: float
) -> Activation:
    """A function that is concave, convex and concave in three pieces, whose slopes have no inverse in closed form.

    Its one extreme is the minimum in the middle one.
    """
    from scipy.optimize import brentq  # slow to import, so only where it is used

    tables, widest = [], 0.0
    for (start, end), rising in zip(pieces, (False, True, False), strict=True):
        # Close together around 0, and farther and farther apart from there.
        first, last = (math.asinh(place) for place in ((start, end) if rising else (end, start)))
        places = torch.linspace(first, last, _NODES, dtype=torch.float64)
        nodes = places.sinh().clamp(start, end)
        tables.append((slope(nodes).cummax(0).values, nodes))
        widest = max(widest, abs(last - first))

    def turns(k: Tensor, *numbers: int) -> tuple[Tensor, ...]:
        return tuple(_interpolated(k, *tables[number]) for number in numbers)

    least = brentq(lambda x: float(slope(torch.tensor(x, dtype=torch.float64))), pieces[1][0], 0.0, xtol=1e-15)
    return Activation(
        name,
        function,
        slope,
        peaks=lambda k: turns(k, 0, 2),
        valleys=lambda k: turns(k, 1),
        extremes=(least,),
        cell=3 * widest / (_NODES - 1),
        roundings=12,
        gain=gain,
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


def _joined(*turns: Turns) -> Turns:
    return lambda k: tuple(point for turn in turns for point in _several(turn(k)))


def _several(points: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return points if isinstance(points, tuple) else (points,)


def _logit(k: Tensor) -> Tensor:
    """The positive number at which the sigmoid's slope is ``k``; 0 above the largest slope, infinite below 0."""
    k = k.clamp(0, 0.25)
    # The small root of s (1 - s) = k, in the form that does not cancel.
    s = 2 * k / (1 + (1 - 4 * k).sqrt())
    return ((1 - s) / s).log()


def _sigmoid_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (-x).sigmoid()


def _wave(name: str, function: Function, slope: Function, start: float) -> Activation:
    """A sine that begins to rise from 0 at ``start``, followed through a few turns."""
    turns = [start + 2 * math.pi * turn for turn in range(-_TURNS, _TURNS + 1)]
    return Activation(
        name,
        function,
        slope,
        peaks=lambda k: tuple(torch.acos(k.clamp(-1, 1)) + turn for turn in turns),
        valleys=lambda k: tuple(turn - torch.acos(k.clamp(-1, 1)) for turn in turns),
        extremes=tuple(turn + quarter for turn in turns for quarter in (-math.pi / 2, math.pi / 2)),
        reach=2 * math.pi * (_TURNS - 1),
        size=1.0,
    )


# The slope of the error function at 0.
_ERF = 2 / math.sqrt(math.pi)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation(
            "sigmoid",
            torch.sigmoid,
            _sigmoid_slope,
            peaks=lambda k: (_logit(k),),
            valleys=lambda k: (-_logit(k),),
            floor=_OVERFLOWN,
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
        softplus(),
        Activation(
            "logsigmoid",
            functional.logsigmoid,
            lambda x: torch.sigmoid(-x),
            peaks=lambda k: (-torch.special.logit(k.clamp(0, 1)),),
        ),
        Activation(
            "hardswish",
            lambda x: x * (x / 6 + 0.5).clamp(0, 1),
            lambda x: torch.where(x.abs() < 3, x / 3 + 0.5, (x > 0).to(x.dtype)),
            peaks=_kinks(-3.0, 3.0),
            valleys=lambda k: ((3 * k - 1.5).clamp(-3, 3),),
            extremes=(-1.5,),
            # The product with a number of up to 6 comes before the division, and may overflow.
            roundings=4,
            gain=7.0,
        ),
        Activation(
            "erf",
            torch.erf,
            lambda x: torch.exp(-x.square()) * _ERF,
            peaks=lambda k: ((-(k / _ERF).clamp(0, 1).log()).sqrt(),),
            valleys=lambda k: (-(-(k / _ERF).clamp(0, 1).log()).sqrt(),),
        ),
        Activation(
            "atan",
            torch.atan,
            lambda x: 1 / (1 + x.square()),
            peaks=lambda k: ((1 / k.clamp(0, 1) - 1).sqrt(),),
            valleys=lambda k: (-(1 / k.clamp(0, 1) - 1).sqrt(),),
        ),
        Activation(
            "log1p",
            torch.log1p,
            lambda x: 1 / (1 + x),
            peaks=lambda k: (1 / k.clamp_min(0) - 1,),
            start=-1.0,
            pole=True,
        ),
        Activation("expm1", torch.expm1, torch.exp, valleys=lambda k: (k.clamp_min(0).log(),)),
        _wave("sin", torch.sin, torch.cos, 0.0),
        _wave("cos", torch.cos, lambda x: -torch.sin(x), -math.pi / 2),
    )
}
