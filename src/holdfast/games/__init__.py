"""Two-player differentiable games: solvers as explicit states and steps, and what is exactly known of them."""

from holdfast.games.best_response import AlternatingBestResponse, Descent, Newton, SimultaneousBestResponse
from holdfast.games.consensus import Consensus
from holdfast.games.extragradient import Extragradient
from holdfast.games.game import Game, State, Strategy, minimax
from holdfast.games.gradient import AlternatingGradient, SimultaneousGradient
from holdfast.games.modules import assign, call, strategy_of
from holdfast.games.optimistic import OptimisticGradient
from holdfast.games.quadratic import Analysed, Quadratic, Stepped, radius, search_lr, transition, verdict
from holdfast.games.solver import Solver, trajectory

__all__ = [
    "AlternatingBestResponse",
    "AlternatingGradient",
    "Analysed",
    "Consensus",
    "Descent",
    "Extragradient",
    "Game",
    "Newton",
    "OptimisticGradient",
    "Quadratic",
    "SimultaneousBestResponse",
    "SimultaneousGradient",
    "Solver",
    "State",
    "Stepped",
    "Strategy",
    "assign",
    "call",
    "minimax",
    "radius",
    "search_lr",
    "strategy_of",
    "trajectory",
    "transition",
    "verdict",
]
