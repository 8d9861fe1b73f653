"""Noise that makes any classifier robust: what it adds to an input, and what radius the votes then prove.

Let ``g(x)`` be the class that the base classifier gives most often to ``x`` with noise, ``lower`` a lower bound of that
class's probability and ``upper`` an upper bound of every other's. Then ``g`` answers the same everywhere within a
radius. Gaussian noise, in L2: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing",
ICML 2019, theorem 1. Uniform noise, in L1: Yang, Duan, Hu, Salman, Razenshteyn and Li, "Randomized smoothing of all
shapes and sizes", ICML 2020. Noisy inputs leave the box of valid ones; the certificate speaks of the input without
noise.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.errors import SettingError

__all__ = ["Gaussian", "Noise", "Perturbation", "Uniform"]


class Perturbation(Protocol):
    """What is done to an input before each vote."""

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """Inputs for the base classifier, made from ``x``, ``(N, ...)``, each with its own draw of ``rng``."""
        ...


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
        """``(N,)`` float64 radii proved where ``lower > upper``: bounds of the top class and of all others."""
        ...

    def probability(self, radius: float) -> float:
        """What the top class's probability must exceed so that ``radius`` is proved, whatever the others'."""
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
        return x + self.sigma * rng.normal(x[0].numel()).reshape(x.shape).to(x.dtype)

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``sigma / 2 * (Phi^-1(lower) - Phi^-1(upper))`` (equation 3 of the paper)."""
        distance: Tensor = torch.special.ndtri(lower) - torch.special.ndtri(upper)
        return self.sigma / 2 * distance

    def probability(self, radius: float) -> float:
        return 0.5 * math.erfc(-radius / self.sigma / math.sqrt(2))

    def linf_radius(self, radius: Tensor, features: int) -> Tensor:
        """Radii of the L-infinity balls inside the L2 balls, for inputs of ``features`` numbers."""
        return radius / math.sqrt(features)


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
        return x + self.width * (2 * rng.uniform(x[0].numel()) - 1).reshape(x.shape).to(x.dtype)

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``width * (lower - upper)``."""
        return self.width * (lower - upper)

    def probability(self, radius: float) -> float:
        return 0.5 + radius / (2 * self.width)

    def linf_radius(self, radius: Tensor, features: int) -> Tensor:
        """Radii of the L-infinity balls inside the L1 balls, for inputs of ``features`` numbers."""
        return radius / features


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SettingError(f"{name}: noise needs a positive, finite scale, got {value:g}")
