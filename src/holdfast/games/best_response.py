"""Best response: each player plays what is best against the other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import SettingError
from holdfast.games.game import Game, State, Strategy, along
from holdfast.games.quadratic import Quadratic, Spectrum

__all__ = ["AlternatingBestResponse", "Descent", "Newton", "SimultaneousBestResponse"]

# Finds what minimises a player's loss, given where to start.
Minimizer = Callable[[Callable[[Strategy], Tensor], Strategy], Strategy]


@dataclass(frozen=True)
class Newton:
    """A step of Newton's method: the minimiser itself where the loss is quadratic and strictly convex."""

    def __call__(self, loss: Callable[[Strategy], Tensor], start: Strategy) -> Strategy:
        """The minimiser of the quadratic model of the loss.

        Raises
        ------
        SettingError
            When the Hessian is not positive definite, so that there is no best response.
        """
        here = tuple(value.detach().requires_grad_() for value in start)
        slopes = torch.autograd.grad(loss(here), here, create_graph=True, allow_unused=True, materialize_grads=True)
        slope = torch.cat([part.flatten() for part in slopes])
        rows = [torch.cat([part.flatten() for part in _gradients(entry, here)]) for entry in slope.unbind()]
        factor, failed = torch.linalg.cholesky_ex(torch.stack(rows))
        if failed:
            raise SettingError("a player has no best response: its loss is not strictly convex in what it plays")
        move = torch.cholesky_solve(slope.detach().unsqueeze(1), factor).squeeze(1)
        parts = move.split([value.numel() for value in start])
        return tuple(value.detach() - part.reshape(value.shape) for value, part in zip(start, parts, strict=True))


@dataclass(frozen=True)
class Descent:
    """Gradient descent, which comes near a best response where there is no formula.

    Parameters
    ----------
    lr : float
        The step size.
    steps : int
        How many.
    """

    lr: float
    steps: int

    def __call__(self, loss: Callable[[Strategy], Tensor], start: Strategy) -> Strategy:
        """Where the descent ends."""
        for _ in range(self.steps):
            here = tuple(value.detach().requires_grad_() for value in start)
            start = along(start, _gradients(loss(here), here), self.lr)
        return start


@dataclass(frozen=True)
class SimultaneousBestResponse:
    """Both players at once play their best response to what the other played before (Cournot 1838).

    Parameters
    ----------
    minimize : callable
        How a player finds it: :class:`Newton`, :class:`Descent` or a function of a loss and of where to start.
    """

    minimize: Minimizer = Newton()

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One response of each player."""
        return State(
            self.minimize(lambda first: game.first(first, state.second), state.first),
            self.minimize(lambda second: game.second(state.first, second), state.second),
        )

    def spectrum(self, game: Quadratic) -> Spectrum:
        """``+-i / sqrt(a b)`` with exact responses: it converges where ``a b > 1`` and cycles where ``a b = 1``."""
        root = 1j / _product(game) ** 0.5
        return torch.tensor([root, -root], dtype=torch.complex128).numpy()


@dataclass(frozen=True)
class AlternatingBestResponse:
    """The first player plays its best response, and the second its own to that.

    Parameters
    ----------
    minimize : callable
        As for :class:`SimultaneousBestResponse`.
    """

    minimize: Minimizer = Newton()

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        return State(first, second)

    def step(self, game: Game, state: State) -> State:
        """One response of the first player, then one of the second."""
        first = self.minimize(lambda first: game.first(first, state.second), state.first)
        return State(first, self.minimize(lambda second: game.second(first, second), state.second))

    def spectrum(self, game: Quadratic) -> Spectrum:
        """``-1 / (a b)`` and 0 with exact responses: the square of the simultaneous ones, two rounds in one."""
        return torch.tensor([-1 / _product(game), 0], dtype=torch.complex128).numpy()


def _gradients(value: Tensor, strategy: Strategy) -> Strategy:
    return torch.autograd.grad(value, strategy, retain_graph=True, allow_unused=True, materialize_grads=True)


def _product(game: Quadratic) -> float:
    if not (game.a > 0 and game.b > 0):
        raise SettingError(f"best responses need a, b > 0, got {game.a:g} and {game.b:g}")
    return game.a * game.b
