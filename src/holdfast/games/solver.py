"""What a solver of games is, and many of its steps."""

from typing import Protocol

from holdfast.games.game import Game, State, Strategy

__all__ = ["Solver", "trajectory"]


class Solver(Protocol):
    """Frozen settings, and a step as a function of a game and a state."""

    def init(self, first: Strategy, second: Strategy) -> State:
        """The state before the first step."""
        ...

    def step(self, game: Game, state: State) -> State:
        """The state after one more."""
        ...


def trajectory(solver: Solver, game: Game, first: Strategy, second: Strategy, steps: int) -> list[State]:
    """The states of ``steps`` steps, the start included: ``steps + 1`` of them."""
    states = [solver.init(first, second)]
    for _ in range(steps):
        states.append(solver.step(game, states[-1]))
    return states
