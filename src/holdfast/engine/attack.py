"""What an attack is, and what it returns."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows

__all__ = ["Attack", "AttackResult", "Knowledge", "roams"]

# What an attack learns from a query: gradients, the logits, or the predicted class alone.
Knowledge = Literal["gradient", "score", "decision"]


class Attack(Protocol):
    """Frozen settings and pure functions over an explicit state.

    A state is a dataclass of tensors whose first dimension counts rows, so that the engine can drop rows and add
    others without knowing what they mean. ``init`` asks the model nothing and ``step`` asks it once, whatever the
    age of a row: that keeps rows of all ages in one full batch, and makes a budget of queries exact.
    """

    @property
    def name(self) -> str:
        """The attack's name as results print it, such as ``"apgd-ce"``."""
        ...

    @property
    def knowledge(self) -> Knowledge:
        """What it learns from a query."""
        ...

    @property
    def minimum_norm(self) -> bool:
        """Whether it looks for the nearest adversarial input, and so at choices outside the budget too.

        Under a finite budget such an attack ends with the first adversarial input inside it; under an infinite one
        it goes on to its end, and the nearest one counts.
        """
        ...

    def again(self, rows: Rows) -> Tensor:
        """``(N,)`` bool: which rows, unbroken at the end of run ``rows.run``, go into another."""
        ...

    def init(self, problem: Problem) -> Any:
        """The state of rows at the start of their run."""
        ...

    def step(self, problem: Problem, state: Any) -> Any:
        """One query for every row, and what follows from it."""
        ...

    def done(self, state: Any) -> Tensor:
        """``(N,)`` bool, the rows whose run is over."""
        ...


def roams(attack: Attack) -> bool:
    """Whether an attack looks at choices outside the budget too, where what it sees does not count.

    Every minimum-norm attack does; another one says so by a class attribute ``roams = True``.
    """
    return attack.minimum_norm or bool(getattr(attack, "roams", False))


@dataclass(frozen=True)
class AttackResult:
    """What one attack did to a batch.

    Parameters
    ----------
    x_adv : Tensor
        ``(N, ...)`` the adversarial inputs; where none was found, the admissible input of the highest objective; the
        clean input where that is already misclassified.
    success : Tensor
        ``(N,)`` bool, verified on ``x_adv`` by a forward pass of the bare model and by the threat.
    distance : Tensor
        ``(N,)`` how far ``x_adv`` lies from the clean input, in the units of the budget; infinite where the budget is,
        and no adversarial input was found.
    objective : Tensor
        ``(N,)`` the objective at ``x_adv``; NaN where the clean input was already misclassified and nothing was run.
    forwards, backwards : Tensor
        ``(N,)`` int64, passes spent on each example, the clean prediction and the verification included.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    objective: Tensor
    forwards: Tensor
    backwards: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the inputs, as lists; None, which JSON knows, for those that are infinite or NaN."""
        names = ("success", "distance", "objective", "forwards", "backwards")
        return {
            name: [value if math.isfinite(value) else None for value in getattr(self, name).tolist()] for name in names
        }
