"""The extragradient method: look ahead before stepping."""

from dataclasses import dataclass

from holdfast.games.game import Game, State, Strategy, along
from holdfast.games.quadratic import Quadratic, Spectrum, first_root

__all__ = ["Extragradient"]


@dataclass(frozen=True)
class Extragradient:
    """A simultaneous step, and then the step proper with the gradients found there.

    Korpelevich, "The extragradient method for finding saddle points and other problems", Matecon 1976; for networks
    Gidel, Berard, Vignoud, Vincent and Lacoste-Julien, ICLR 2019, arXiv:1802.10551. On the
    bilinear game the squared distance is multiplied by ``(1 - lr^2)^2 + lr^2`` a step, less than 1 for ``lr < 1``.

    Parameters
    ----------
    lr : float
        The step size of both players and of both halves.
    """

    lr: float

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One step: two gradients a player."""
        down_first, down_second = game.gradients(state.first, state.second)
        ahead = along(state.first, down_first, self.lr), along(state.second, down_second, self.lr)
        down_first, down_second = game.gradients(*ahead)
        return State(along(state.first, down_first, self.lr), along(state.second, down_second, self.lr))

    def spectrum(self, game: Quadratic) -> Spectrum:
        """``1 - w + w^2`` with ``w = lr l`` for every eigenvalue ``l`` of the field."""
        w = self.lr * game.spectrum
        return 1 - w + w**2

    def largest_lr(self, game: Quadratic) -> float:
        """The least positive root in ``lr`` of ``|1 - w + w^2|^2 = 1``, a cubic, over the eigenvalues of the field."""

        def bound(w: complex) -> float:
            re, square = w.real, abs(w) ** 2
            return first_root(-2 * re, 4 * re**2 - square, -2 * re * square, square**2)

        return min(bound(w) for w in game.spectrum)
