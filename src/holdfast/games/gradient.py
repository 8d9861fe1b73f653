"""Gradient descent-ascent: both players step at once, or one after the other."""

from dataclasses import dataclass

from holdfast.games.game import Game, State, Strategy, along
from holdfast.games.quadratic import Quadratic, Spectrum, first_root, pair

__all__ = ["AlternatingGradient", "SimultaneousGradient"]


@dataclass(frozen=True)
class SimultaneousGradient:
    """Both players step down their own gradients, taken at the same point: gradient descent-ascent.

    On the bilinear game ``theta delta`` every step multiplies the distance to the equilibrium by ``sqrt(1 + lr^2)``,
    whatever ``lr``: Mescheder, Nowozin and Geiger, "The numerics of GANs", NeurIPS 2017, arXiv:1705.10461.

    Parameters
    ----------
    lr : float
        The step size of both players.
    """

    lr: float

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One step of both players: a gradient each."""
        down_first, down_second = game.gradients(state.first, state.second)
        return State(along(state.first, down_first, self.lr), along(state.second, down_second, self.lr))

    def spectrum(self, game: Quadratic) -> Spectrum:
        """``1 - lr l`` for every eigenvalue ``l`` of the field."""
        return 1 - self.lr * game.spectrum

    def largest_lr(self, game: Quadratic) -> float:
        """``min 2 Re(l) / |l|^2`` over the eigenvalues ``l`` of the field."""
        return min(first_root(-2 * w.real, abs(w) ** 2) for w in game.spectrum)


@dataclass(frozen=True)
class AlternatingGradient:
    """The second player answers what the first has just played: each step down its own gradient, in turn.

    On the bilinear game the orbit is bounded for ``lr < 2`` and does not converge: Gidel, Askari Hemmat, Pezeshki,
    Le Priol, Huang, Lacoste-Julien and Mitliagkas, "Negative momentum for improved game dynamics", AISTATS 2019,
    arXiv:1807.04740.

    Parameters
    ----------
    lr : float
        The step size of both players.
    """

    lr: float

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One step of the first player, then one of the second."""
        first = along(state.first, game.gradients(state.first, state.second)[0], self.lr)
        return State(first, along(state.second, game.gradients(first, state.second)[1], self.lr))

    def spectrum(self, game: Quadratic) -> Spectrum:
        """The eigenvalues of a step, from its trace and determinant."""
        a, b, h = game.a, game.b, self.lr
        return pair(2 - h * (a + b) - h**2, (1 - h * a) * (1 - h * b))

    def largest_lr(self, game: Quadratic) -> float:
        """Where the first of the Schur-Cohn conditions ``|det| < 1`` and ``|trace| < 1 + det`` fails."""
        a, b = game.a, game.b
        return min(
            first_root(-(a + b), a * b),  # det < 1
            first_root(-2, a + b, -a * b),  # det > -1
            first_root(-(1 + a * b)),  # trace < 1 + det
            first_root(-4, 2 * (a + b), 1 - a * b),  # -trace < 1 + det
        )
