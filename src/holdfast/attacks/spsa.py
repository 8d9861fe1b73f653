"""SPSA: Adam on gradients estimated from scores."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from holdfast.attacks.differences import Climb, Probing, rademacher
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column

__all__ = ["SPSA"]

# Adam's, as Kingma and Ba give them (ICLR 2015, arXiv:1412.6980, algorithm 1).
_DECAYS = (0.9, 0.999)
_FLOOR = 1e-8


@dataclass(frozen=True)
class SPSA:
    """Simultaneous perturbation: every coordinate is probed at once, by a random sign each; Adam makes the moves.

    From the clean input, Adam ascends along ``sum (f(z + delta v) - f(z - delta v)) v / (2 delta n)`` with ``v`` of
    random signs, and each move is put back into ball and box. Probes may leave the ball, where what they see does not
    count, but not the box; every iterate is looked at as well.

    Uesato, O'Donoghue, van den Oord and Kohli, "Adversarial risk and the dangers of evaluating against weak attacks",
    ICML 2018, arXiv:1802.05666, algorithm 1, on the margin of its section 4.

    Costs ``steps * (samples + 1) + 1`` forwards a run.

    Parameters
    ----------
    steps : int
        Moves a run.
    samples : int
        Probes a move, half of them on either side of the iterate.
    delta : float
        How far a probe moves each coordinate, in input units.
    learning_rate : float
        Adam's, in input units: about how far a move takes each coordinate.
    restarts : int
        Runs for an example that stays unbroken, each with other noise.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number is not positive, the probes do not make pairs, or the threat is neither L-infinity nor L2.
    """

    steps: int = 100
    samples: int = 128
    delta: float = 0.01
    learning_rate: float = 0.01
    restarts: int = 1
    objective: ObjectiveName = "margin"
    name: ClassVar[str] = "spsa"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False
    roams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.restarts < 1 or self.samples < 2 or self.samples % 2:
            raise SettingError(f"spsa: steps and restarts must be positive and samples even, got {self}")
        if not self.delta > 0 or not self.learning_rate > 0:
            raise SettingError(f"spsa: delta and learning_rate must be positive, got {self}")

    @property
    def _probing(self) -> Probing:
        return Probing(self.steps, self.samples, self.delta, self.objective, rademacher)

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> Climb:
        needs_ball(self.name, problem.threat, "nes", ("linf", "l2"))
        return Climb.start(problem, moments=True)

    def step(self, problem: Problem, state: Climb) -> Climb:
        state, complete = self._probing.look(problem, state)
        if not bool(complete.any()):
            return state
        assert state.mean is not None
        assert state.square is not None
        # The estimate just completed is that of this move, counted from 1.
        move = column(state.looks // (self.samples + 1), state.z).to(state.z.dtype)
        first, second = _DECAYS
        mean = first * state.mean + (1 - first) * state.total
        square = second * state.square + (1 - second) * state.total.square()
        step = mean / (1 - first**move) / ((square / (1 - second**move)).sqrt() + _FLOOR)
        z = problem.ball.retract(state.z + self.learning_rate * step, problem.x)
        state = replace(state, mean=overlay(state.mean, mean, complete), square=overlay(state.square, square, complete))
        return self._probing.moved(state, z, complete)

    def done(self, state: Climb) -> Tensor:
        return self._probing.done(state)
