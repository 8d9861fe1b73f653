"""What training tells while it goes on, and in the end."""

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from holdfast.train.evaluation import Evaluation
from holdfast.train.guard import Event

__all__ = ["Epoch", "Progress", "TrainingResult"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Parameters
    ----------
    step, steps : int
        Updates made, and in all.
    loss : float
        Of the last update.
    epoch : Epoch or None
        What the epoch that just ended came to.
    event : Event or None
        What the guard just did; where it went back, ``step`` did.
    seconds_left : float
        By the pace so far.
    """

    step: int
    steps: int
    loss: float
    epoch: "Epoch | None"
    event: Event | None
    seconds_left: float


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Parameters
    ----------
    number : int
        Counted from 1.
    step : int
        Updates made by its end.
    loss : float
        The mean over its updates.
    evaluation : Evaluation
        Of held-out examples at its end.
    """

    number: int
    step: int
    loss: float
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain numbers."""
        return {"number": self.number, "step": self.step, "loss": self.loss, "evaluation": self.evaluation.to_dict()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """What :meth:`to_dict` was made from; a ``ValueError`` or ``TypeError`` where nothing was."""
        evaluation = Evaluation.from_dict(plain["evaluation"])
        return cls(int(plain["number"]), int(plain["step"]), float(plain["loss"]), evaluation)


@dataclass(frozen=True)
class TrainingResult:
    """How a run went.

    Parameters
    ----------
    model : nn.Module
        In its best state, in evaluation mode.
    epochs : tuple of Epoch
    losses : tuple of float
        Of every update.
    best_step : int
        The updates that had been made in the state that was best on held-out examples.
    events : tuple of Event
        What the guard noticed and did.
    """

    model: nn.Module
    epochs: tuple[Epoch, ...]
    losses: tuple[float, ...]
    best_step: int
    events: tuple[Event, ...]

    @property
    def best(self) -> Epoch:
        """The epoch after which the model was best."""
        return next(epoch for epoch in self.epochs if epoch.step == self.best_step)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model and the losses of single updates, in plain numbers."""
        return {
            "best_step": self.best_step,
            "epochs": [epoch.to_dict() for epoch in self.epochs],
            "events": [event.to_dict() for event in self.events],
        }
