"""What the checks before an audit look at."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import Diagnostic
from holdfast.data import Batch
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Threat

__all__ = ["Check", "Subject"]

# Examples that checks look at: enough to tell a share of a quarter from none, few enough to cost next to nothing.
EXAMPLES = 32


@dataclass(frozen=True)
class Subject:
    """A model before it is attacked, with the first of the examples.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager; it has answered before.
    threat : Threat
        What the adversary may do; per-example budgets are looked up by ``index``.
    protocol : EvaluationProtocol
        The attacks that it is to stand up to.
    index, x, y : Tensor
        ``(N,)``, ``(N, ...)`` and ``(N,)`` a few examples: the first that are classified correctly, and where none is,
        the first; on the model's device, in its precision.
    logits : Tensor
        ``(N, K)`` what the model says of them.
    seed : int
        Of every random draw.
    """

    query: Query
    threat: Threat
    protocol: EvaluationProtocol
    index: Tensor
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
        return cls(query, threat.at(index[chosen]).near(x), protocol, index[chosen], x, y[chosen], logits[chosen], seed)

    @property
    def sighted(self) -> bool:
        """Whether any attack follows gradients."""
        return any(stage.attack.knowledge == "gradient" for stage in self.protocol.stages)


# One question about a subject; None where it does not arise.
Check = Callable[[Subject], Diagnostic | None]
