"""Two players, and the two losses that each of them minimises in what is its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import SettingError

__all__ = ["Game", "State", "Strategy", "minimax"]

# What a player plays: any number of tensors, such as the parameters of a module.
Strategy = tuple[Tensor, ...]
Loss = Callable[[Strategy, Strategy], Tensor]


@dataclass(frozen=True)
class State:
    """A game between two steps of a solver.

    Parameters
    ----------
    first, second : tuple of Tensor
        What the players play.
    memory : tuple of Tensor
        What the solver remembers of the steps before: nothing, but for the optimistic gradient.
    """

    first: Strategy
    second: Strategy
    memory: Strategy = ()


@dataclass(frozen=True)
class Game:
    """Losses of two players; a minimax problem is the case where they add up to 0.

    A stochastic game is another ``Game`` at every step, of the same strategies: solvers keep none.

    Parameters
    ----------
    first, second : callable
        Map the strategies of the first and of the second player to a scalar, the loss of the first and of the second.
    """

    first: Loss
    second: Loss

    def gradients(self, first: Strategy, second: Strategy, *, create_graph: bool = False) -> tuple[Strategy, Strategy]:
        """Each player's gradient of its own loss in its own strategy: the field that gradient descent goes down."""
        first, second = _leaves(first, create_graph), _leaves(second, create_graph)
        return (
            _gradient(self.first(first, second), first, create_graph),
            _gradient(self.second(first, second), second, create_graph),
        )


def minimax(value: Loss) -> Game:
    """The game in which the first player minimises ``value`` and the second maximises it."""
    return Game(value, lambda first, second: -value(first, second))


def along(strategy: Strategy, direction: Strategy, lr: float) -> Strategy:
    """A step of gradient descent."""
    return tuple(value - lr * slope for value, slope in zip(strategy, direction, strict=True))


def _leaves(strategy: Strategy, create_graph: bool) -> Strategy:
    # A strategy that somebody differentiates further is left in the graph.
    return tuple(v if create_graph and v.requires_grad else v.detach().requires_grad_() for v in strategy)


def _gradient(loss: Tensor, strategy: Strategy, create_graph: bool) -> Strategy:
    if loss.dim():
        raise SettingError(f"a game's loss must be a scalar, got the shape {tuple(loss.shape)}: take its mean")
    if not loss.requires_grad:
        return tuple(torch.zeros_like(value) for value in strategy)
    # A loss that is linear in a strategy has a gradient without a graph, and one that ignores it has none.
    return torch.autograd.grad(loss, strategy, create_graph=create_graph, allow_unused=True, materialize_grads=True)
