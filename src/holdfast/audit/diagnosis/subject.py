"""What the checks before an audit look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from holdfast.attacks import PGD
from holdfast.audit.diagnosis.points import STAGE, Points, nearby, reach
from holdfast.audit.protocols import EvaluationProtocol, endless
from holdfast.audit.result import Diagnostic
from holdfast.data import Batch
from holdfast.draws import Draws
from holdfast.engine import maximize
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Ball, Climbable, Linf, Threat
from holdfast.words import reason

__all__ = ["Check", "Subject"]

# Examples that checks look at: enough to tell a share of a quarter from none, few enough to cost next to nothing.
EXAMPLES = 32
# Where the budget is infinite: the share of the inputs' range within which checks look.
_NEARBY = 0.1
# The first draw after those that told how far a threat reaches.
_APART = 16
_NEAR = 900
# The short attack: it raises the margin, which does not saturate.
_CLIMB = PGD(steps=10, objective="margin")


@dataclass(frozen=True)
class Subject:
    """A model before it is attacked, with the first of the examples.

    What several checks look at is worked out once, when the first of them asks for it.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager; it has answered before.
    threat : Threat
        What the adversary may do, the examples' budgets looked up; where these are infinite, a ball of a tenth of the
        inputs' range.
    protocol : EvaluationProtocol
        The attacks that it is to stand up to.
    x, y : Tensor
        ``(N, ...)`` and ``(N,)`` a few examples: the first that are classified correctly, and where none is, the first;
        on the model's device, in its precision.
    logits : Tensor
        ``(N, K)`` what the model says of them.
    seed : int
        Of every random draw.
    """

    query: Query
    threat: Threat
    protocol: EvaluationProtocol
    x: Tensor
    y: Tensor
    logits: Tensor
    seed: int

    @classmethod
    def of(cls, query: Query, threat: Threat, protocol: EvaluationProtocol, batch: Batch, seed: int) -> "Subject":
        """The subject that a first batch of examples makes: one forward pass of it."""
        index, y = batch.index.to(query.device), batch.y.to(query.device)
        logits = query.bare_logits(batch.x)
        right = margin(logits, y.clamp(0, logits.shape[1] - 1)) < 0
        chosen = (right if bool(right.any()) else right.logical_not()).nonzero()[:EXAMPLES, 0]
        x = query.prepare(batch.x)[chosen]
        y = y[chosen].clamp(0, logits.shape[1] - 1)
        here = _finite(threat.at(index[chosen]), x).near(x)
        return cls(query, here, protocol, x, y, logits[chosen], seed)

    @property
    def sighted(self) -> bool:
        """Whether any attack follows gradients."""
        return any(stage.attack.knowledge == "gradient" for stage in self.protocol.stages)

    @property
    def continuous(self) -> bool:
        """Whether inputs are numbers that an adversary moves a little, or more."""
        return self.x.is_floating_point() and self.x.numel() > 0 and bool(self.reach.any())

    @property
    def differentiable(self) -> bool:
        """Whether attacks follow gradients, and there are any to be looked at."""
        return self.sighted and self.continuous and not self.refusal

    @cached_property
    def again(self) -> Tensor:
        """``(N, K)`` what the model says of the same examples when it is asked again."""
        return self.query.bare_logits(self.x)

    @property
    def steady(self) -> bool:
        """Whether the same input gets the same answer."""
        return torch.equal(self.again, self.logits)

    @cached_property
    def refusal(self) -> str:
        """Why there is no gradient with respect to the input; empty where there is one."""
        try:
            self.query.bare_gradient(self.x[: self.query.batch_size], lambda logits: logits.sum(1))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a backward pass of a model's own may raise anything
            return reason(error)
        return ""

    @cached_property
    def reach(self) -> Tensor:
        """``(1, ...)`` by how much an adversary moves each feature, as a root mean square."""
        return reach(self.threat, self.x, self.seed)

    @cached_property
    def points(self) -> Points:
        """Clean inputs, random points of their sets, and where a short attack leads: three times ``N``."""
        x = torch.cat([self.x, self.drawn(0), self._attacked()])
        near = nearby(self.threat, x, self.reach, self.draws(_NEAR, 3))
        return Points.at(self.query, near, self.y.repeat(3))

    def _attacked(self) -> Tensor:
        """``(N, ...)`` where a short attack leads; random points of sets that cannot be climbed in."""
        if not isinstance(self.threat, Climbable):
            return self.drawn(1)
        parts = torch.arange(len(self.x), device=self.x.device).split(self.query.batch_size)
        return torch.cat(
            [maximize(_CLIMB, self.query, self.threat.at(i), self.x[i], self.y[i], seed=self.seed) for i in parts]
        )

    def drawn(self, draw: int) -> Tensor:
        """``(N, ...)`` random points of the examples' sets."""
        return self.threat.apply(self.x, self.threat.sample(self.x, self.draws(draw)))

    def draws(self, draw: int, count: int = 1) -> Draws:
        """The examples' own random numbers, those of ``count`` copies of them one after the other."""
        return Draws(self.seed, torch.arange(count * len(self.x), device=self.x.device), STAGE, _APART + draw)


def _finite(threat: Threat, x: Tensor) -> Threat:
    """A set of finite reach: instead of an infinite budget a tenth of the range of inputs."""
    if not endless(threat) or not isinstance(threat, Ball):
        return threat
    spread = float((x.amax() - x.amin()).clamp_min(0)) if x.numel() else 0.0
    return Linf(_NEARBY * spread, threat.box)


# One question about a subject; None where it does not arise.
Check = Callable[[Subject], Diagnostic | None]
