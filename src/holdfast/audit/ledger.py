"""Verdicts on their way into the store, and how far an audit is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.audit.store import NO_CERTIFICATES, RunStore
from holdfast.certify.certificate import Certificate
from holdfast.engine import Outcome
from holdfast.models.query import Query

__all__ = ["Ledger", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far an audit is.

    Parameters
    ----------
    decided, standing, certified, asked : int
        Examples with a verdict, those of them not broken and not misclassified, those of these proved robust, and all
        that were asked for.
    forwards : int
        Examples passed forward in this session.
    seconds : float
        Spent on the run, earlier sessions included.
    """

    decided: int
    standing: int
    certified: int
    asked: int
    forwards: int
    seconds: float


@dataclass
class Ledger:
    """Where verdicts are kept and counted as they fall.

    Parameters
    ----------
    store : RunStore
        Where they are kept.
    query : Query
        Whose passes are counted.
    asked : int
        Examples that the audit was asked for.
    inputs : bool
        Whether adversarial inputs are kept too.
    on_progress : callable
        Told by :meth:`report` how far the audit is.
    """

    store: RunStore
    query: Query
    asked: int
    inputs: bool
    on_progress: Callable[[Progress], None]
    decided: int = field(init=False)
    standing: int = field(init=False)
    certified: int = field(init=False)

    def __post_init__(self) -> None:
        self.decided, self.standing, self.certified = next(
            self.store.select(
                "SELECT count(*), coalesce(sum(verdict IN ('robust', 'undecided')), 0), count(certified) "
                "FROM main.examples"
            )
        )

    def add(self, outcomes: Sequence[Outcome], certificates: Mapping[int, Certificate] = NO_CERTIFICATES) -> None:
        """Keep the first verdicts on some examples."""
        if outcomes:
            self.store.add(outcomes, certificates, inputs=self.inputs)
            self.decided += len(outcomes)
            self.standing += sum(outcome.verdict in ("robust", "undecided") for outcome in outcomes)
            self.certified += sum(
                outcome.index in certificates and certificates[outcome.index].verdict == "certified"
                for outcome in outcomes
            )

    def settle(self, outcome: Outcome, certificate: Certificate) -> None:
        """Keep what has become of an example that had stood."""
        broken = outcome.verdict == "broken"
        self.store.add([outcome], {outcome.index: certificate}, inputs=self.inputs and broken)
        self.standing -= broken
        self.certified += certificate.verdict == "certified"

    def report(self) -> None:
        """Say how far the audit is."""
        self.on_progress(
            Progress(
                decided=self.decided,
                standing=self.standing,
                certified=self.certified,
                asked=self.asked,
                forwards=self.query.forwards,
                seconds=self.store.seconds,
            )
        )
