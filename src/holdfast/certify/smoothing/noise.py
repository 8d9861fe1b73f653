"""Noise that makes any classifier robust: what it adds to an input, and what radius the votes then prove.

Let ``g(x)`` be the class that the base classifier gives most often to ``x`` with noise, ``lower`` a lower bound of that
class's probability and ``upper`` an upper bound of every other's. Then ``g`` answers the same everywhere within a
radius. Gaussian noise, in L2: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing",
ICML 2019, theorem 1. Uniform noise, in L1: Yang, Duan, Hu, Salman, Razenshteyn and Li, "Randomized smoothing of all
shapes and sizes", ICML 2020. Noisy inputs leave the box of valid ones; the certificate speaks of the input without
noise.

These theorems are about real numbers, and floating-point noise does not obey them: the last bits of ``x + noise`` tell
``x``, and a classifier can read them (Voracek and Hein, "Sound randomized smoothing in floating-point arithmetic",
ICLR 2023). So, with them, the base classifier is shown the sum on a grid only: ``round((x + noise) / step) * step``,
with a step that depends on the noise's scale alone. Rounding is then a part of the base classifier, of which the
theorem asks nothing, and real noise added to real ``x`` is what the theorem speaks of. The input itself is not rounded,
so nothing is lost: of ``x`` the rest beside the grid is split off exactly, the noise is added to that rest, and the
rounded sum goes back to the grid point in whole numbers.

What remains are the noise's own last bits: the rounded sum is another than that of perfect noise with a probability of
at most ``deviation(features)``, for which certificates pay. That takes the words of the random generator for
independent and uniform, and a model that knows neither seed nor draws; elementary functions may be off by 4 units in
the last place.
"""

import math
import sys
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from holdfast.arguments import one_input, whole
from holdfast.certify.smoothing.confidence import lower_quantile, upper_quantile
from holdfast.certify.smoothing.tails import normal_cdf, round_up
from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError

__all__ = ["Gaussian", "Noise", "Perturbation", "Uniform"]

# A scale is 2^8 to 2^9 steps of its grid: too coarse for last bits to matter, and far finer than the noise.
_FINENESS = 8


class Perturbation(Protocol):
    """What is done to an input before each vote."""

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """Inputs for the base classifier, made from ``x``, ``(N, ...)``, each with its own draw of ``rng``."""
        ...


@runtime_checkable
class Noise(Perturbation, Protocol):
    """A random perturbation and the radius that votes under it prove, in the distance ``norm``."""

    @property
    def norm(self) -> str:
        """The distance that radii are measured in: ``"l2"``, ``"l1"``, ``"l0"`` or ``"edit"``."""
        ...

    @property
    def step(self) -> float:
        """The distance between radii of the default grid."""
        ...

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``(N,)`` float64 radii proved where ``lower > upper``: bounds of the top class and of all others.

        For the perturbation's law as it is stated, and rounded down.
        """
        ...

    def probability(self, radius: float) -> float:
        """What the top class's probability must exceed so that ``radius`` is proved, whatever the others'.

        For the perturbation's law as it is stated, and rounded up.
        """
        ...

    def deviation(self, features: int) -> float:
        """How far the law of ``perturb`` is from the stated one, at most, in total variation, with so many numbers."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent normal noise with standard deviation ``sigma`` on every coordinate; radii in L2.

    Parameters
    ----------
    sigma : float
        In input units, positive.

    Raises
    ------
    SettingError
        When ``sigma`` is not positive and finite.
    """

    sigma: float
    norm: ClassVar[str] = "l2"
    step: ClassVar[float] = 0.25

    def __post_init__(self) -> None:
        _require_positive("sigma", self.sigma)

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """``x`` and noise, on the grid (Box and Muller 1958, with 52 bits for radius and angle).

        Raises
        ------
        DataError
            When ``x`` is not finite, or too large beside ``sigma``.
        """
        features = x[0].numel()
        half = -(-features // 2)
        u = rng.fine(2 * half)
        radius = u[:, :half].log().mul_(-2).sqrt_()
        angle = u[:, half:] * (2 * torch.pi)
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :features]
        return _add(x, normal.reshape(x.shape), self.sigma)

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``sigma / 2 * (Phi^-1(lower) - Phi^-1(upper))`` (equation 3 of the paper)."""
        return _reduced(float(self.sigma) / 2 * (lower_quantile(lower) - upper_quantile(upper)))

    def probability(self, radius: float) -> float:
        return round_up(normal_cdf(math.nextafter(radius / float(self.sigma), math.inf) if radius else 0.0)[1])

    def deviation(self, features: int) -> float:
        """``features / 2**36``.

        Consider one number, with ``m <= 512`` steps a sigma. (a) Rounding 52 bits: for a given angle the sum on the
        grid is monotone in the first uniform number, and takes at most ``8.6 m |cos| + 1`` steps, 5.5 m on average; for
        a given radius ``r`` it takes ``4 r m + 2`` with the angle, 5.1 m on average. Only the cells of ``2**-52`` in
        which a step lies can matter, and the first one: less than ``12 m / 2**52``. (b) Arithmetic: with 4 units for
        logarithm, cosine and sine the computed noise is off by less than ``2**-48 r`` with ``r`` at most the sum of two
        independent normal numbers' sizes, so that it must lie as near to one of the borders, a step apart: ``2**-47 m
        (2 * 0.8 + 1)`` with room for the sums' granularity, and twice (a) since the noise in question has 52 bits. All
        in all ``36 m / 2**52 + 2.6 m / 2**47 < 2**-36``.
        """
        return features * 2.0**-36

    def linf_radius(self, radius: Tensor, features: int) -> Tensor:
        """Radii of the L-infinity balls inside the L2 balls, for inputs of ``features`` numbers."""
        return one_input(radius, "radius") / math.sqrt(whole("features", features, 1, 2**53))


@dataclass(frozen=True)
class Uniform:
    """Independent noise, uniform on ``[-width, width]``, on every coordinate; radii in L1.

    A shift by ``d`` changes no class's probability by more than ``|d|_1 / (2 width)``.

    Parameters
    ----------
    width : float
        In input units, positive; the standard deviation is ``width / sqrt(3)``.

    Raises
    ------
    SettingError
        When ``width`` is not positive and finite.
    """

    width: float
    norm: ClassVar[str] = "l1"
    step: ClassVar[float] = 0.25

    def __post_init__(self) -> None:
        _require_positive("width", self.width)

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """``x`` and noise, on the grid.

        Raises
        ------
        DataError
            When ``x`` is not finite, or too large beside ``width``.
        """
        return _add(x, rng.fine(x[0].numel()).mul_(2).sub_(1).reshape(x.shape), self.width)

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``width * (lower - upper)``."""
        return _reduced(float(self.width) * (lower - upper))

    def probability(self, radius: float) -> float:
        return math.nextafter(0.5 + math.nextafter(radius / float(self.width) / 2, math.inf), 2) if radius else 0.5

    def deviation(self, features: int) -> float:
        """``features / 2**40``.

        Consider one number, with ``m <= 512`` steps a width. At most ``2 m + 1`` of the ``2**52`` cells contain a
        border of the grid; the sum with what lies beside the grid is off by at most ``2**-43`` steps, so that the noise
        must lie as near to a border: ``2**-42 (1 + 1/m)`` and twice the former. All in all ``3 (2 m + 1) / 2**52 +
        1.004 / 2**42 < 2**-40``.
        """
        return features * 2.0**-40

    def linf_radius(self, radius: Tensor, features: int) -> Tensor:
        """Radii of the L-infinity balls inside the L1 balls, for inputs of ``features`` numbers."""
        return one_input(radius, "radius") / whole("features", features, 1, 2**53)


def _add(x: Tensor, noise: Tensor, scale: float) -> Tensor:
    """``x + scale * noise`` on the grid of noise with this scale, a function of the exact sum alone; spends ``noise``.

    Grid points are whole numbers in float64. Where their sum has more than 53 bits it is rounded, and so it is on the
    way back to the precision of ``x``: to what the sum says, not to what its parts were.
    """
    step = math.ldexp(1.0, math.frexp(scale)[1] - 1 - _FINENESS)
    places = x.double() / step
    if not math.isfinite(places.abs().amax().item()):
        raise DataError(
            f"x: noise of scale {scale:g} was to be added to numbers that are not finite, or too large beside it; "
            "give finite inputs, and noise in their units"
        )
    near = places.round()
    beside = places.sub_(near)
    return noise.mul_(scale / step).add_(beside).round_().add_(near).mul_(step).to(x.dtype)


def _reduced(radius: Tensor) -> Tensor:
    """Radii that took at most three roundings, rounded down."""
    return (radius * (1 - radius.sign() * 2.0**-50)).clamp_max(sys.float_info.max)


def _require_positive(name: str, value: float) -> None:
    try:
        sensible = isinstance(value, Real) and 0 < float(value) < math.inf
    except OverflowError:
        sensible = False
    if not sensible:
        raise SettingError(f"{name}: noise needs a positive, finite scale, got {str(value)[:100]}")
