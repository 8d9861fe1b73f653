"""An attack of a cascade at work: its batch of live rows, and the queues that fill it."""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from holdfast.engine.attack import Attack
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, join, take

__all__ = ["Lane", "Run"]

# Filling a gap costs about as much for one row as for many, so a batch is refilled when an eighth of it is empty.
_REFILL = 8


@dataclass(frozen=True)
class Run:
    """Rows with what the attack knows of them: its state in the middle of a run, None before the start."""

    rows: Rows
    state: Any = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Lane:
    """An attack of a stage at work: its live rows with their state, and the rows that wait."""

    number: int  # of the stage
    attack: Attack
    live: Problem
    state: Any
    fresh: list[Run] = field(default_factory=list)  # before the start of a run
    paused: list[Run] = field(default_factory=list)  # in the middle of one
    polish: "Lane | None" = None  # who takes over at the end of a run

    @property
    def load(self) -> int:
        return len(self.live) + sum(map(len, self.fresh)) + sum(map(len, self.paused))

    def enter(self, run: Run) -> None:
        if len(run):
            (self.fresh if run.state is None else self.paused).append(run)

    def advance(self, max_forwards: int | None) -> tuple[Run, Tensor, Tensor] | None:
        """Fill the batch, make one step, and hand over the rows that leave, if any.

        With them goes which have won, and which are at the end of their run; the others have spent their queries.
        """
        self._refill()
        self.state = self.attack.step(self.live, self.state)
        rows = self.live.rows
        won = rows.found & ~self.live.nearest
        over = self.attack.done(self.state)
        leave = won | over
        if max_forwards is not None:
            leave = leave | (rows.forwards > max_forwards)
        if not bool(leave.any()):
            return None
        everyone = Run(rows, self.state)
        self._keep(take(everyone, ~leave))
        return take(everyone, leave), won[leave], over[leave]

    def _refill(self) -> None:
        size = self.live.query.batch_size
        room = size - len(self.live)
        if not (self.fresh or self.paused) or (len(self.live) and room * _REFILL < size):
            return
        runs = [Run(self.live.rows, self.state)] if len(self.live) else []
        paused, self.paused = _first(self.paused, room)
        fresh, self.fresh = _first(self.fresh, room - sum(map(len, paused)))
        started = [Run(run.rows, self.attack.init(self.live.of(run.rows))) for run in fresh]
        self._keep(reduce(join, [*runs, *paused, *started]))

    def _keep(self, run: Run) -> None:
        self.live = self.live.of(run.rows)
        self.state = run.state


def _first(queue: list[Run], count: int) -> tuple[list[Run], list[Run]]:
    """The first rows of a queue, as one run or none, and what is left of it."""
    if not queue or not count:
        return [], queue
    run = reduce(join, queue)
    if len(run) <= count:
        return [run], []
    order = torch.arange(len(run), device=run.rows.index.device)
    return [take(run, order[:count])], [take(run, order[count:])]
