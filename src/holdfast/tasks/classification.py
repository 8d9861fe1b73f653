"""One class of several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.errors import DataError
from holdfast.tasks.objectives import ObjectiveName, objective

__all__ = ["CLASSIFICATION", "Classification"]


@dataclass(frozen=True)
class Classification:
    """One class of several: answers are logits ``(N, K)``, labels and targets the numbers ``(N,)`` of classes.

    An example is right or wrong as a whole: its share is 0 or 1.
    """

    threshold: ClassVar[float] = 0.0

    def check(self, index: Tensor, answer: Tensor, y: Tensor, target: Tensor | None) -> None:
        """Refuse labels and targets that are none of the model's classes.

        Raises
        ------
        DataError
            At the first that is none.
        """
        classes = answer.shape[1]
        if (row := _first_outside(y, classes)) is not None:
            raise DataError(
                f"example {int(index[row])} has label {int(y[row])}, but the model knows classes 0 to {classes - 1}: "
                "count labels from 0, or give the model that goes with these data"
            )
        if target is not None and (row := _first_outside(target, classes)) is not None:
            raise DataError(f"example {int(index[row])} has a target class outside 0 to {classes - 1}")

    def prediction(self, answer: Tensor) -> Tensor:
        """``(N,)`` the class of the largest logit."""
        return answer.argmax(1)

    def wrong(self, answer: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """``(N,)`` 1 for a wrong class, or the wanted one where there is one; logits that are no numbers are wrong."""
        if target is not None:
            return (answer.argmax(1) == target).to(answer.dtype)
        top, predicted = answer.max(1)  # a maximum is NaN where any of its numbers is
        return ((predicted != y) | top.isnan()).to(answer.dtype)

    def objective(self, name: ObjectiveName, y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The named objective: away from the label, or towards the target; see :mod:`holdfast.tasks.objectives`.

        Raises
        ------
        SettingError
            When the name is unknown.
        """
        return objective(name, y, target)


CLASSIFICATION = Classification()


def _first_outside(labels: Tensor, classes: int) -> int | None:
    bad = (labels < 0) | (labels >= classes)
    return int(bad.nonzero()[0, 0]) if bool(bad.any()) else None
