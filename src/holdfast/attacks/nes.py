"""NES: projected gradient ascent on gradients estimated from scores."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.attacks.differences import Climb, Probing, gaussian
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_climbing

__all__ = ["NES"]


@dataclass(frozen=True)
class NES:
    """Natural evolution strategies: the gradient of the objective's average over a Gaussian, by antithetic samples.

    From the clean input, each move is a step of :class:`~holdfast.attacks.PGD` along
    ``sum (f(z + sigma u) - f(z - sigma u)) u / (2 sigma n)``. Probes may leave the ball, where what they see does not
    count, but not the box; every iterate is looked at as well.

    Ilyas, Engstrom, Athalye and Lin, "Black-box adversarial attacks with limited queries and information", ICML 2018,
    arXiv:1804.08598, algorithm 1 with the steps of section 3.1. The paper raises the cross-entropy, whose differences
    round to 0 where the model is sure; the margin's do not.

    Costs ``steps * (samples + 1) + 1`` forwards a run.

    Parameters
    ----------
    steps : int
        Moves a run.
    samples : int
        Probes a move, half of them on either side of the iterate.
    sigma : float
        Standard deviation of the probes, in input units.
    step_size : float, optional
        Length of a step in the units of the budget; ``2.5 * eps / steps`` by default.
    restarts : int
        Runs for an example that stays unbroken, each with other noise.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.

    Raises
    ------
    SettingError
        When a number is not positive, or the probes do not make pairs.
    """

    steps: int = 100
    samples: int = 50
    sigma: float = 0.001
    step_size: float | None = None
    restarts: int = 1
    objective: ObjectiveName = "margin"
    name: ClassVar[str] = "nes"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False
    roams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.restarts < 1 or self.samples < 2 or self.samples % 2:
            raise SettingError(f"nes: steps and restarts must be positive and samples even, got {self}")
        if not self.sigma > 0 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError(f"nes: sigma and step_size must be positive, got {self}")

    @property
    def _probing(self) -> Probing:
        return Probing(self.steps, self.samples, self.sigma, self.objective, gaussian)

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem: Problem) -> Climb:
        needs_climbing(self.name, problem.threat)
        return Climb.start(problem, moments=False)

    def step(self, problem: Problem, state: Climb) -> Climb:
        state, complete = self._probing.look(problem, state)
        if not bool(complete.any()):
            return state
        budget = problem.threat.budget(problem.x)
        size = 2.5 / self.steps * budget if self.step_size is None else budget.new_full((len(budget),), self.step_size)
        z = problem.climbable.ascend(state.z, problem.x, state.total, size)
        return self._probing.moved(state, z, complete)

    def done(self, state: Climb) -> Tensor:
        return self._probing.done(state)
