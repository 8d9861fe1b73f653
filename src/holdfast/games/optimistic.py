"""The optimistic gradient: extragradient's look ahead, guessed from the step before."""

from dataclasses import dataclass

import numpy as np

from holdfast.games.game import Game, State, Strategy, along
from holdfast.games.quadratic import Quadratic, Spectrum, first_root

__all__ = ["OptimisticGradient"]


@dataclass(frozen=True)
class OptimisticGradient:
    """Both players step down twice their gradients less the ones of the step before.

    Popov, "A modification of the Arrow-Hurwicz method for search of saddle points", Mathematical Notes 1980;
    Daskalakis, Ilyas, Syrgkanis and Zeng, "Training GANs with optimism", ICLR 2018, arXiv:1711.00141. The gradients
    before the first step count as 0. On the bilinear game it converges for ``lr < 1 / sqrt(3)``.

    Parameters
    ----------
    lr : float
        The step size of both players.
    """

    lr: float

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second, tuple(value.new_zeros(value.shape) for value in (*first, *second)))

    def step(self, game: Game, state: State) -> State:
        """One step: one gradient a player, kept for the next."""
        down_first, down_second = game.gradients(state.first, state.second)
        down = *down_first, *down_second
        ahead = tuple(2 * now - before for now, before in zip(down, state.memory, strict=True))
        split = len(state.first)
        return State(along(state.first, ahead[:split], self.lr), along(state.second, ahead[split:], self.lr), down)

    def spectrum(self, game: Quadratic) -> Spectrum:
        """The roots of ``m^2 - (1 - 2 w) m - w`` with ``w = lr l`` for every eigenvalue ``l`` of the field."""
        w = self.lr * game.spectrum
        middle, root = 0.5 - w, np.sqrt(0.25 + w**2)
        return np.concatenate([middle + root, middle - root])

    def largest_lr(self, game: Quadratic) -> float:
        """By the Schur-Cohn condition on that polynomial, a cubic in ``lr``, over the eigenvalues of the field."""

        def bound(w: complex) -> float:
            re, square = w.real, abs(w) ** 2
            return first_root(-2 * re, -square, 4 * re * square, 3 * square**2)

        return min(bound(w) for w in game.spectrum)
