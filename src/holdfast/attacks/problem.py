"""What an attack is given: rows to break, and the one door to the model, which remembers what it sees."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.rows import Rows, overlay
from holdfast.draws import Draws
from holdfast.models.query import Answer, Query
from holdfast.objectives import ObjectiveName, objective
from holdfast.threats import Threat

__all__ = ["Problem"]


class Problem:
    """Rows under attack by one stage.

    An attack asks :meth:`gradient` and :meth:`evaluate`; both count the pass on every row and keep the best choice
    seen, so that success is what the model was seen to do and never what an attack says of itself.

    Attributes
    ----------
    rows : Rows
        The examples and what has been seen of them so far.
    threat : Threat
        What may be done to them, per-example budgets already looked up.
    """

    def __init__(self, query: Query, threat: Threat, rows: Rows, *, seed: int = 0, stage: int = 0) -> None:
        self.query = query
        self.rows = rows
        self.threat = threat.at(rows.index).near(rows.x)
        self._whole = threat
        self._seed = seed
        self._stage = stage

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: Rows) -> "Problem":
        """The same stage with other rows."""
        return Problem(self.query, self._whole, rows, seed=self._seed, stage=self._stage)

    @property
    def x(self) -> Tensor:
        """``(N, ...)`` clean inputs."""
        return self.rows.x

    def draws(self, draw: Tensor | int) -> Draws:
        """The rows' own random numbers for one draw of this stage."""
        return Draws(self._seed, self.rows.index, self._stage, draw)

    def objective(self, name: ObjectiveName, target: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The named objective for these rows: towards the class the adversary wants or ``target``, else away."""
        return objective(name, self.rows.y, target if self.rows.target is None else self.rows.target)

    def clean_logits(self) -> Tensor:
        """``(N, K)`` logits of the clean inputs, asked of the model only where they are not known yet."""
        if self.rows.clean_logits is None:
            logits = self.query.logits(self.x)
            self.rows = replace(self.rows, clean_logits=logits, forwards=self.rows.forwards + 1)
            return logits
        return self.rows.clean_logits

    def evaluate(self, z: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """``(N,)`` the objective at the choice ``z``: one forward pass a row."""
        logits = self.query.logits(self.threat.apply(self.x, z))
        values = objective(logits)
        self._record(z, logits, values, backwards=0)
        return values

    def gradient(self, z: Tensor, objective: Callable[[Tensor], Tensor], needed: Tensor | None = None) -> Answer:
        """The objective at ``z`` and its gradient with respect to the model's input.

        Parameters
        ----------
        z : Tensor
            ``(N, ...)`` admissible choices.
        objective : callable
            Maps logits ``(N, K)`` to values ``(N,)``.
        needed : Tensor, optional
            ``(N,)`` bool, the rows whose gradient will be used; the others count no backward pass and get 0, and the
            pass is left out when nobody needs it.
        """
        if needed is not None and not bool(needed.any()):
            logits = self.query.logits(self.threat.apply(self.x, z))
            answer = Answer(logits, objective(logits), torch.zeros_like(self.x))
        else:
            answer = self.query.gradient(self.threat.apply(self.x, z), objective)
        self._record(z, answer.logits, answer.values, backwards=1 if needed is None else needed)
        return answer

    def _record(self, z: Tensor, logits: Tensor, values: Tensor, backwards: Tensor | int) -> None:
        rows = self.rows
        hit = rows.fooled(logits)
        better = torch.where(hit == rows.found, values > rows.value, hit)
        self.rows = replace(
            rows,
            forwards=rows.forwards + 1,
            backwards=rows.backwards + backwards,
            found=rows.found | hit,
            best=overlay(rows.best, z, better),
            value=torch.where(better, values, rows.value),
        )
