"""What an attack is given: rows to break, and the one door to the model, which remembers what it sees."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.engine.guide import Guide
from holdfast.engine.rows import Rows, overlay
from holdfast.models.query import Answer, Query
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats import Ball, Climbable, Threat

__all__ = ["Problem"]


class Problem:
    """Rows under attack by one stage.

    An attack asks :meth:`gradient`, :meth:`jacobian`, :meth:`evaluate` or :meth:`decide`; all count their passes on
    every row and keep the best choice seen, so that success is what the model was seen to do and never what an attack
    says of itself.

    Attributes
    ----------
    rows : Rows
        The examples and what has been seen of them so far.
    threat : Threat
        What may be done to them, per-example budgets already looked up.
    nearest : Tensor
        ``(N,)`` bool, the rows of infinite budget, of which the nearest adversarial choice is wanted.
    fooled : Tensor
        ``(N,)`` bool, what the model did at the last look, whether or not the choice was inside the budget.
    """

    def __init__(
        self,
        query: Query,
        threat: Threat,
        rows: Rows,
        *,
        seed: int = 0,
        stage: int = 0,
        samples: int = 1,
        roams: bool = False,
        guide: Guide | None = None,
    ) -> None:
        self.query = query
        self.rows = rows
        self.threat = threat.at(rows.index).near(rows.x)
        self.nearest = self.threat.budget(rows.x).isinf()
        self.fooled = torch.zeros_like(rows.found)
        self._whole = threat
        self._seed = seed
        self._stage = stage
        self._samples = samples
        self._roams = roams
        self._guide = guide

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: Rows) -> "Problem":
        """The same stage with other rows."""
        return Problem(
            self.query,
            self._whole,
            rows,
            seed=self._seed,
            stage=self._stage,
            samples=self._samples,
            roams=self._roams,
            guide=self._guide,
        )

    @property
    def ball(self) -> Ball:
        """The threat, of attacks that have seen to it that it is a norm ball."""
        assert isinstance(self.threat, Ball)
        return self.threat

    @property
    def climbable(self) -> Climbable:
        """The threat, of attacks that have seen to it that it can be climbed in."""
        return cast("Climbable", self.threat)

    @property
    def x(self) -> Tensor:
        """``(N, ...)`` clean inputs."""
        return self.rows.x

    def draws(self, draw: Tensor | int) -> Draws:
        """The rows' own random numbers for one draw of this stage."""
        return Draws(self._seed, self.rows.index, self._stage, draw)

    def objective(self, name: ObjectiveName, target: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The named objective for these rows: towards the class the adversary wants or ``target``, else away."""
        rows = self.rows
        return rows.task.objective(name, rows.y, target if rows.target is None else rows.target)

    def clean_logits(self) -> Tensor:
        """``(N, K)`` logits of the clean inputs, asked of the model only where they are not known yet."""
        if self.rows.clean_logits is None:
            logits = self.query.logits(self.x)
            self.rows = replace(self.rows, clean_logits=logits, forwards=self.rows.forwards + 1)
            return logits
        return self.rows.clean_logits

    def evaluate(self, z: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """``(N,)`` the objective at the choice ``z``: one forward pass a row."""
        inputs = self.threat.apply(self.x, z)

        def look() -> Answer:
            logits = self.query.logits(inputs)
            return Answer(logits, objective(logits), logits)

        return self._see(z, look, 0).values

    def decide(self, z: Tensor) -> Tensor:
        """``(N,)`` bool, whether the choice ``z`` fools the model: one forward pass a row, and its class alone."""
        self.evaluate(z, self.objective("margin"))
        return self.fooled

    def gradient(self, z: Tensor, objective: Callable[[Tensor], Tensor], needed: Tensor | None = None) -> Answer:
        """The objective at ``z`` and its gradient with respect to the choice, by the chain rule through ``apply``.

        Parameters
        ----------
        z : Tensor
            ``(N, *choice)`` choices.
        objective : callable
            Maps logits ``(N, K)`` to values ``(N,)``.
        needed : Tensor, optional
            ``(N,)`` bool, the rows whose gradient will be used; the others count no backward pass and get 0, and the
            pass is left out when nobody needs it.
        """
        answer = self.input_gradient(z, objective, needed)
        return replace(answer, grad=self.climbable.pull(self.x, z, answer.grad))

    def input_gradient(self, z: Tensor, objective: Callable[[Tensor], Tensor], needed: Tensor | None = None) -> Answer:
        """The objective at ``z`` and its gradient with respect to the input; takes what :meth:`gradient` does."""
        inputs = self.threat.apply(self.x, z)
        blind = needed is not None and not bool(needed.any())

        def look() -> Answer:
            if blind:
                logits = self.query.logits(inputs)
                return Answer(logits, objective(logits), torch.zeros_like(self.x))
            if self._guide is None:
                return self.query.gradient(inputs, objective)
            return replace(self._guide.query.gradient(inputs, objective), logits=self.query.logits(inputs))

        return self._see(z, look, 1 if needed is None else needed)

    def jacobian(self, z: Tensor, needed: Tensor | None = None) -> Answer:
        """All logits at ``z`` and their input gradients, ``grad`` being ``(N, K, ...)``: one forward pass, K backward.

        ``needed``: as in :meth:`gradient`.
        """
        inputs = self.threat.apply(self.x, z)
        margin = self.objective("margin")
        blind = needed is not None and not bool(needed.any())

        def look() -> Answer:
            if not blind:
                logits, grad = (self.query if self._guide is None else self._guide.query).jacobian(inputs)
                logits = logits if self._guide is None else self.query.logits(inputs)
            else:
                logits = self.query.logits(inputs)
                grad = torch.zeros_like(self.x).unsqueeze(1).expand(-1, logits.shape[1], *self.x.shape[1:])
            return Answer(logits, margin(logits), grad)

        return self._see(z, look, self.rows.classes * (1 if needed is None else needed))

    def _see(self, z: Tensor, look: Callable[[], Answer], backwards: Tensor | int) -> Answer:
        """Look once, or as often as a random model needs for an average, and record what was seen."""
        parts = [look() for _ in range(self._samples)]
        share = self.rows.wrong(*(part.logits for part in parts))
        (answer, *more) = parts
        if more:
            names = ("logits", "values", "grad")
            answer = Answer(*(sum(getattr(part, name) for part in parts) / self._samples for name in names))
        self.fooled = self.rows.broken(share)
        self._record(z, answer, share, backwards)
        return answer

    def _record(self, z: Tensor, answer: Answer, share: Tensor, backwards: Tensor | int) -> None:
        rows, hit, values = self.rows, self.fooled, answer.values
        forwards: Tensor | int = 1
        if self._guide is not None:
            forwards = 1 + self._guide.passes * (backwards > 0)
            backwards = self._guide.passes * backwards
        margin = self.objective("margin")(answer.logits)
        if self._roams:
            # An attack that looks outside the budget is believed only inside it.
            distance = self.threat.distance(self.x, z)
            inside = self._inside(z, distance)
            hit = hit & inside
            margin, share = torch.where(inside, margin, rows.margin), torch.where(inside, share, rows.share)
            values = torch.where(self.nearest & hit, -distance, values)
            better = inside & torch.where(hit == rows.found, values > rows.value, hit)
        else:
            better = torch.where(hit == rows.found, values > rows.value, hit)
        self.rows = replace(
            rows,
            forwards=rows.forwards + self._samples * forwards,
            backwards=rows.backwards + self._samples * backwards,
            found=rows.found | hit,
            best=overlay(rows.best, z, better),
            stage=rows.stage.masked_fill(better, self._stage),
            value=torch.where(better, values, rows.value),
            margin=torch.fmax(rows.margin, margin),
            share=torch.maximum(rows.share, share),
        )

    def _inside(self, z: Tensor, distance: Tensor) -> Tensor:
        """``(N,)`` bool, what the threat will call admissible, at little cost far from the budget's edge."""
        budget = self.threat.budget(self.x)
        inside = distance <= budget
        edge = ~inside & (distance <= 1.1 * budget)
        return inside | (edge & self.threat.contains(self.x, z)) if bool(edge.any()) else inside
