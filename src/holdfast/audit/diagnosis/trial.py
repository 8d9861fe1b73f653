"""Short attacks on a few examples, for what they tell about each other."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from holdfast.attacks import FGSM, PGD, Square
from holdfast.data import Batch
from holdfast.engine import Attack, Stage, drive
from holdfast.models.query import Query
from holdfast.threats import Ball, Threat

__all__ = ["Attempt", "Trial"]

# Steps of a short attack and of a long one, and queries of a random walk: together less than a hundred passes each.
SHORT, LONG, WALK = 10, 40, 100
# For noise of the model's own a look is averaged over fewer passes than a protocol may take.
_SAMPLES = 4


@dataclass(frozen=True)
class Attempt:
    """What one attack did.

    Parameters
    ----------
    broken : Tensor
        ``(N,)`` bool, the examples that it was made on and broke.
    x_adv : Tensor
        ``(N, ...)`` the worst inputs that it found; where it was not made, the clean ones.
    """

    broken: Tensor
    x_adv: Tensor


@dataclass(frozen=True)
class Trial:
    """Short attacks on examples that are classified correctly; each is made when it is first asked about.

    All raise the margin, which does not saturate. What :attr:`climb` has broken needs no other.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager.
    threat : Threat
        What may be done to the examples, a finite set to climb in.
    x, y : Tensor
        ``(N, ...)`` and ``(N,)``.
    seed : int
        Of every random draw.
    samples : int
        Passes averaged a look.
    """

    query: Query
    threat: Threat
    x: Tensor
    y: Tensor
    seed: int
    samples: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", min(self.samples, _SAMPLES))

    @cached_property
    def climb(self) -> Attempt:
        """Ten steps of PGD from a random start."""
        return self.attempt(PGD(steps=SHORT, objective="margin"), self.everybody)

    @cached_property
    def again(self) -> Attempt:
        """The same on what that left, from another start."""
        return replace(self, seed=self.seed ^ 1).attempt(PGD(steps=SHORT, objective="margin"), ~self.climb.broken)

    @cached_property
    def longer(self) -> Attempt:
        """Forty steps on what both left."""
        return self.attempt(PGD(steps=LONG, objective="margin"), ~(self.climb.broken | self.again.broken))

    @cached_property
    def single(self) -> Attempt:
        """One step of full length from the clean input, on everybody."""
        return self.attempt(FGSM(objective="margin"), self.everybody)

    @cached_property
    def walk(self) -> Attempt:
        """A random walk on what all gradient attacks left; its windows shrink as in a long run, cut short."""
        return self.attempt(Square(queries=WALK), ~self.climbed)

    @property
    def climbed(self) -> Tensor:
        """``(N,)`` bool, what gradient attacks of many steps broke."""
        return self.climb.broken | self.again.broken | self.longer.broken

    @property
    def everybody(self) -> Tensor:
        return torch.ones_like(self.y, dtype=torch.bool)

    def under(self, threat: Ball) -> Attempt:
        """The same short attack within another budget, on everybody."""
        return replace(self, threat=threat).attempt(PGD(steps=SHORT, objective="margin"), self.everybody)

    def attempt(self, attack: Attack, rows: Tensor) -> Attempt:
        """An attack on some of the examples, ``(N,)`` bool."""
        index = rows.nonzero()[:, 0]
        broken, x_adv = torch.zeros_like(rows), self.x.clone()
        batches = (Batch(part, self.x[part], self.y[part]) for part in index.split(self.query.batch_size))
        stages = [Stage(attack.name, attack)]
        for outcomes in drive(self.query, self.threat, stages, batches, seed=self.seed, samples=self.samples):
            for outcome in outcomes:
                broken[outcome.index] = outcome.verdict != "robust"
                x_adv[outcome.index] = outcome.x_adv.to(x_adv)
        return Attempt(broken, x_adv)
