"""Consensus optimisation: both players also go where neither has far to go."""

from dataclasses import dataclass

import torch

from holdfast.games.game import Game, State, Strategy, along
from holdfast.games.quadratic import Quadratic, Spectrum, first_root, pair

__all__ = ["Consensus"]


@dataclass(frozen=True)
class Consensus:
    """A simultaneous step on losses to which ``weight / 2 |field|^2`` is added, the field being both gradients.

    Mescheder, Nowozin and Geiger, "The numerics of GANs", NeurIPS 2017, arXiv:1705.10461.

    Parameters
    ----------
    lr : float
        The step size of both players.
    weight : float
        Of the regulariser.
    """

    lr: float
    weight: float = 1.0

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One step: a gradient each, and the gradient of their squared length."""
        here = tuple(value.detach().requires_grad_() for value in (*state.first, *state.second))
        split = len(state.first)
        down_first, down_second = game.gradients(here[:split], here[split:], create_graph=True)
        down = *down_first, *down_second
        length = torch.stack([slope.square().sum() for slope in down]).sum() / 2
        together = torch.autograd.grad(length, here, allow_unused=True, materialize_grads=True)
        total = tuple(a.detach() + self.weight * b for a, b in zip(down, together, strict=True))
        return State(along(state.first, total[:split], self.lr), along(state.second, total[split:], self.lr))

    def spectrum(self, game: Quadratic) -> Spectrum:
        """``1 - lr c`` for every eigenvalue ``c`` of the field with its regulariser."""
        return 1 - self.lr * self._field(game)

    def largest_lr(self, game: Quadratic) -> float:
        """``min 2 Re(c) / |c|^2`` over those eigenvalues."""
        return min(first_root(-2 * w.real, abs(w) ** 2) for w in self._field(game))

    def _field(self, game: Quadratic) -> Spectrum:
        a, b, weight = game.a, game.b, self.weight
        first, second = a + weight * (a**2 + 1), b + weight * (b**2 + 1)
        return pair(first + second, first * second + 1 - (weight * (a - b)) ** 2)
