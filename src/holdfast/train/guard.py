"""The guard that notices when single steps stop telling how robust a model is, and mends it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.models.query import Query
from holdfast.processes import Processes
from holdfast.threats import Threat
from holdfast.threats.needs import scaled
from holdfast.train.escalation import escalation, title
from holdfast.train.evaluation import Evaluation, evaluate
from holdfast.train.method import Method
from holdfast.train.state import Groups, State
from holdfast.train.step import Step

__all__ = ["KEPT", "Event", "Guard", "cost"]

# How often it looks, and how much of the training's passes it may cost: by the clock that is up to 3 %.
_STEPS, _COST = 200, 0.025
# Examples looked at: batches of a query on a CPU, and no fewer than tell a gap from chance.
_BATCH, _LEAST, _MOST = 64, 128, 512
_PGD_STEPS = 10
# A check in passes an example, forward and backward together: the two ends of the gradients' angle, PGD, and two
# forward passes, which are about one.
_CHECK = 2 + _PGD_STEPS + 1

# A collapse: by how much single steps flatter the model, on average over looks, and PGD's accuracy does not grow; or by
# how much that falls.
_GAP, _DROP = 0.15, 0.2
# How much the newest look counts in that average; with how many it is compared, and to how many it may be gone back.
_NEWEST, _MEMORY, KEPT = 0.5, 3, 2


@dataclass(frozen=True)
class Event:
    """What the guard noticed, and what it did.

    Parameters
    ----------
    step : int
        Updates that had been made.
    evaluation : Evaluation
        Of held-out examples, against the budgets in force.
    back_to : int or None
        The step whose state was gone back to; None where training goes on as it is.
    method : str
        What it goes on with.
    """

    step: int
    evaluation: Evaluation
    back_to: int | None
    method: str

    def __str__(self) -> str:
        found = self.evaluation
        seen = (
            f"step {self.step}: single steps find {found.single_step:.1%} robust, PGD {found.multi_step:.1%} "
            f"(gradient alignment {found.alignment:.2f})"
        )
        if self.back_to is None:
            return f"{seen}; nothing is left to try, training goes on with {self.method}"
        return f"{seen}; back to step {self.back_to} and on with {self.method}"

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain numbers."""
        return {**vars(self), "evaluation": self.evaluation.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` was made from; a ``ValueError`` or ``TypeError`` where nothing was."""
        back_to = plain["back_to"]
        return cls(
            int(plain["step"]),
            Evaluation.from_dict(plain["evaluation"]),
            None if back_to is None else int(back_to),
            str(plain["method"]),
        )


@dataclass
class Guard:
    """Watches a run, and where it collapses goes back and on with a method that is harder to overfit.

    The collapse is catastrophic overfitting (Wong, Rice and Kolter, ICLR 2020, arXiv:2001.03994; Andriushchenko and
    Flammarion, NeurIPS 2020, arXiv:2007.02617): the network withstands single steps and nothing else.

    Parameters
    ----------
    methods : tuple of Method
        What the run began with, and what may follow. The last of them is only watched.
    threat : Threat
        Of the examples looked at.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels that are not learned from.
    every : int
        Updates from one look to the next.
    rung : int
        Which of the methods is in force.
    gap : float
        How much single steps flatter the model, an average over looks.
    lately : list of pair
        Of the last looks since it went back: the part of budgets that was in force, and the accuracy under PGD.
    good : list of Groups
        The last states where all was well, the newest last.
    events : list of Event
    """

    methods: tuple[Method, ...]
    threat: Threat
    x: Tensor
    y: Tensor
    every: int
    rung: int = 0
    gap: float = 0.0
    lately: list[tuple[float, float]] = field(default_factory=list)
    good: list[Groups] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @classmethod
    def posted(
        cls, method: Method, threat: Threat, state: State, held: tuple[Tensor, Tensor, Tensor], passes: float
    ) -> Self:
        """A guard at the beginning of a run.

        Parameters
        ----------
        method : Method
        threat : Threat
        state : State
            What it can go back to at first.
        held : tuple of Tensor
            Positions, inputs and labels of held-out examples, some of which it takes.
        passes : float
            That an update costs, forward and backward together, in examples.
        """
        index, x, y = held
        affordable = int(_COST * _STEPS * passes / _CHECK)
        count = min(max(affordable // _BATCH * _BATCH, _LEAST), _MOST, len(x))
        every = max(_STEPS, math.ceil(count * _CHECK / (_COST * passes)))
        # From all over the data, whatever its order.
        rows = torch.arange(count, device=x.device) * len(x) // count
        guard = cls((method, *escalation(method)), threat.at(index[rows]), x[rows], y[rows], every)
        guard._keep(state)
        return guard

    @property
    def method(self) -> Method:
        """The one in force."""
        return self.methods[self.rung]

    def look(self, state: State, share: float, seed: int, processes: Processes) -> Event | None:
        """Measure the model, and where it has collapsed set ``state`` back and go on to the next method.

        Parameters
        ----------
        state : State
        share : float
            The part of budgets that is in force.
        seed : int
            Of random starts.
        processes : Processes
            Those that share the work.
        """
        found = evaluate(
            state.model, scaled(self.threat, share), self.x, self.y, seed=seed, steps=_PGD_STEPS, processes=processes
        )
        self.gap += _NEWEST * (found.gap - self.gap)
        robust = found.multi_step
        # A young model, or one that a new method mends, may have a gap and still become more robust.
        grows = not self.lately or robust > max(before for _, before in self.lately)
        # A larger budget may cost as much as it has grown.
        fell = any(robust < before - _DROP - (share - smaller) for smaller, before in self.lately)
        if (self.gap > _GAP and not grows) or fell:
            return self._act(state, found)
        self.lately = [*self.lately, (share, robust)][-_MEMORY:]
        if found.gap <= _GAP:
            self._keep(state)
        return None

    def _act(self, state: State, found: Evaluation) -> Event | None:
        step, back_to = state.step, None
        if self.rung + 1 < len(self.methods):
            self.rung += 1
            state.restore(self.good[-1])
            back_to = state.step
            # A collapse before all was well again came from earlier on; after the last method nothing is gone back to.
            self.good = (self.good[:-1] or self.good) if self.rung + 1 < len(self.methods) else []
            self.gap, self.lately = 0.0, []
        elif any(event.back_to is None for event in self.events):
            return None
        self.events.append(Event(step, found, back_to, title(self.method)))
        return self.events[-1]

    def _keep(self, state: State) -> None:
        if self.rung + 1 < len(self.methods):
            # In main memory, since there may be little room where the model is.
            kept = {
                group: {name: tensor.cpu() for name, tensor in members.items()}
                for group, members in state.snapshot().items()
            }
            self.good = [*self.good, kept][-KEPT:]

    def to_dict(self) -> dict[str, Any]:
        """What has become of it, but for the states it keeps."""
        events = [event.to_dict() for event in self.events]
        return {"rung": self.rung, "gap": self.gap, "lately": self.lately, "events": events}

    def restore(self, plain: Mapping[str, Any], good: list[Groups]) -> None:
        """Go on from what :meth:`to_dict` was made from, and the states that were kept.

        Raises
        ------
        ValueError
            When no guard of these methods can have come to that.
        """
        rung, goes_on = plain["rung"], plain["rung"] in range(len(self.methods) - 1)
        if not goes_on and rung != len(self.methods) - 1:
            raise ValueError(f"the guard is at method {rung!r} of {len(self.methods)}")
        if goes_on and not good:
            raise ValueError("the guard has no state to go back to")
        self.rung, self.gap, self.good = int(rung), float(plain["gap"]), good
        self.lately = [(float(share), float(robust)) for share, robust in plain["lately"]]
        self.events = [Event.from_dict(event) for event in plain["events"]]


def cost(method: Method, query: Query, x: Tensor, y: Tensor, step: Step) -> float:
    """Passes an example, forward and backward together, of an update: those of the perturbation, and the loss's."""
    before = query.forwards + query.backwards
    with query:
        method.perturb(query, x, y, step)
    return (query.forwards + query.backwards - before) / (2 * len(x)) + 1
