"""The quadratic game in two variables, on which everything about a solver can be said exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from holdfast.games.game import Game, State, Strategy, minimax
from holdfast.games.solver import Solver

__all__ = ["Analysed", "Quadratic", "Spectrum", "Stepped", "Verdict", "radius", "search_lr", "transition", "verdict"]

Verdict = Literal["converges", "cycles", "diverges"]
Spectrum = NDArray[np.complex128]

# Moduli this close to 1 are 1 but for the rounding of a square root.
_ON_CIRCLE = 1e-9
_SMALLEST, _LARGEST, _TRIED = 1e-3, 1e3, 150


@dataclass(frozen=True)
class Quadratic:
    """``min over theta, max over delta`` of ``theta delta + a/2 theta^2 - b/2 delta^2``.

    Its one equilibrium is ``(0, 0)``, a saddle point where ``a`` and ``b`` are not negative; ``a = b = 0`` is the
    bilinear game.

    Parameters
    ----------
    a, b : float
        The curvatures that hold the first and the second player back.
    """

    a: float = 0.0
    b: float = 0.0

    def value(self, first: Strategy, second: Strategy) -> Tensor:
        """What the first player pays the second."""
        (theta,), (delta,) = first, second
        return (theta * delta + self.a / 2 * theta**2 - self.b / 2 * delta**2).sum()

    @property
    def game(self) -> Game:
        """The game, for tensors of any shape: each coordinate is a game of its own."""
        return minimax(self.value)

    @property
    def spectrum(self) -> Spectrum:
        """Eigenvalues of the field ``(theta, delta) -> (a theta + delta, b delta - theta)``, both players' descent."""
        return pair(self.a + self.b, 1 + self.a * self.b)


class Analysed(Solver, Protocol):
    """A solver whose step on a quadratic game is known in closed form."""

    def spectrum(self, game: Quadratic) -> Spectrum:
        """The eigenvalues of a step."""
        ...


class Stepped(Analysed, Protocol):
    """One with a step size, of which the largest that converges is known as well."""

    def largest_lr(self, game: Quadratic) -> float:
        """Up to which step size it converges, from the first one above 0 on; its own does not matter."""
        ...


def radius(solver: Analysed, game: Quadratic) -> float:
    """The spectral radius of a step: what the distance to the equilibrium is multiplied by in the long run."""
    return float(np.abs(solver.spectrum(game)).max())


def verdict(solver: Analysed, game: Quadratic) -> Verdict:
    """What becomes of a trajectory that starts anywhere but at special points.

    Returns
    -------
    {"converges", "cycles", "diverges"}
        ``cycles`` is a bounded orbit that does not come to the equilibrium: the largest modulus is 1, and not that of
        a double eigenvalue, with which an orbit grows, in proportion to the number of steps.
    """
    spectrum = solver.spectrum(game)
    on_circle = spectrum[np.abs(np.abs(spectrum) - 1) <= _ON_CIRCLE]
    if np.abs(spectrum).max() > 1 + _ON_CIRCLE:
        return "diverges"
    if not len(on_circle):
        return "converges"
    # No step here is a multiple of the identity, so that a double eigenvalue has one eigenvector; sqrt: its rounding.
    distinct = np.abs(np.subtract.outer(on_circle, on_circle))[np.triu_indices(len(on_circle), 1)]
    return "cycles" if (distinct > _ON_CIRCLE**0.5).all() else "diverges"


def transition(solver: Solver, game: Quadratic) -> NDArray[np.float64]:
    """The matrix of a step, measured by making it from every unit vector of the state: no formula is used.

    A state is listed as ``theta``, ``delta`` and the solver's memory.
    """
    zero = torch.zeros(1, dtype=torch.float64)
    start = solver.init((zero,), (zero,))
    units = torch.eye(2 + len(start.memory), dtype=torch.float64)
    theta, delta, *memory = units
    after = solver.step(game.game, State((theta,), (delta,), tuple(memory)))
    return torch.stack([*after.first, *after.second, *after.memory]).numpy()


def search_lr(solver: Callable[[float], Solver], game: Quadratic) -> float:
    """The step size up to which a solver converges, found by measuring spectral radii of :func:`transition`.

    Parameters
    ----------
    solver : callable
        Makes one from its step size: the class, where it has no other settings.
    game : Quadratic

    Returns
    -------
    float
        0 where it does not converge at 0.001, infinity where it still does at 1000.
    """

    def excess(lr: float) -> float:
        return float(np.abs(np.linalg.eigvals(transition(solver(lr), game))).max()) - 1

    if excess(_SMALLEST) >= 0:
        return 0.0
    for below, above in pairwise(np.geomspace(_SMALLEST, _LARGEST, _TRIED)):
        if excess(above) >= 0:
            return float(brentq(excess, below, above, xtol=1e-14))
    return math.inf


def pair(trace: float, determinant: float) -> Spectrum:
    """The eigenvalues of a matrix of two rows."""
    root = np.sqrt(complex(trace**2 / 4 - determinant))
    return np.array([trace / 2 + root, trace / 2 - root])


def first_root(*coefficients: float) -> float:
    """How far ``c0 + c1 h + c2 h^2 + ... < 0`` holds from ``h = 0`` on: 0 where it fails at once."""
    lowest = next((c for c in coefficients if c), 1.0)
    if lowest > 0:
        return 0.0
    roots = np.roots(coefficients[::-1])
    real = roots[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)].real
    return float(real.min(initial=np.inf))
