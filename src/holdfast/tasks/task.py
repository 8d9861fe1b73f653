"""What the engine needs to know of a model's answer."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from holdfast.tasks.objectives import ObjectiveName

__all__ = ["Task"]


class Task(Protocol):
    """What an answer means.

    Answers are ``(N, K)``, numbers of the model for each example; labels ``y`` and the adversary's ``target``, where it
    has one, are whole numbers ``(N, ...)`` of whatever shape says what is right.
    """

    @property
    def threshold(self) -> float:
        """An example is broken where a larger share of it is wrong."""
        ...

    def check(self, index: Tensor, answer: Tensor, y: Tensor, target: Tensor | None) -> None:
        """Refuse labels and targets of which an answer can say nothing.

        Raises
        ------
        DataError
            Which names an example by its ``(N,)`` index.
        """
        ...

    def prediction(self, answer: Tensor) -> Tensor:
        """``(N, ...)`` what an answer says, in the shape of labels."""
        ...

    def wrong(self, answer: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """``(N,)`` the share of each example that is wrong, in [0, 1] and in the answer's precision.

        Where there is a target, the share that is as the adversary wants it. What is no number is wrong.
        """
        ...

    def objective(self, name: ObjectiveName, y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
        """What the adversary raises, as a function of the answer alone with values ``(N,)``.

        Every task has a ``"margin"``, which is positive exactly where the example is broken.

        Raises
        ------
        SettingError
            When the task has no objective of that name.
        """
        ...
