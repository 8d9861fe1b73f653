"""Certification within an audit: what proves quickly goes before the attacks, what takes long after them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from holdfast.attacks import Outcome, Rows, drive
from holdfast.attacks.rows import join, take
from holdfast.audit.ledger import Ledger
from holdfast.audit.store import contradiction
from holdfast.certify.certificate import SEARCH, Certificate
from holdfast.certify.certify import Certifier
from holdfast.data import Batch
from holdfast.models.query import Query
from holdfast.threats import Ball

__all__ = ["Proofs"]

# Examples that the attacks left and no thorough proof has been tried on: one that failed leaves a note.
_UNTRIED = "verdict IN ('robust', 'undecided') AND certified IS NULL AND note IS NULL"
_NO_CURVE = "verdict != 'misclassified' AND certified IS NULL AND idx NOT IN (SELECT idx FROM curve)"


@dataclass
class Proofs:
    """Certification of one audit's examples.

    Parameters
    ----------
    certifier : Certifier
        What proves.
    query : Query
        The model, entered as a context manager.
    threat : Ball
        What the adversary may do.
    ledger : Ledger
        Where verdicts are kept.
    seed, samples : int
        As the attacks have them.
    """

    certifier: Certifier
    query: Query
    threat: Ball
    ledger: Ledger
    seed: int
    samples: int
    # What the quick bounds say of examples that are under attack.
    bounds: dict[int, Certificate] = field(default_factory=dict)

    def screen(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Decide what the clean pass and the quick bounds decide; the examples that are left need an attack.

        Batches are bounded whole, also where a run is resumed in their midst: a bound's last bits depend on what it is
        computed together with.
        """
        for batch in batches:
            places = self.ledger.store.missing(batch.index.tolist())
            if not places:
                continue
            clean = {outcome.index: outcome for some in self._clean_pass(batch) for outcome in some}
            wrong = {index for index, outcome in clean.items() if outcome.verdict == "misclassified"}
            right = _without(batch, wrong)
            certificates = self._bound(right, self.threat.at(right.index))
            proved = {index for index, certificate in certificates.items() if certificate.verdict == "certified"}
            missing = take(batch, torch.tensor(places))
            decided = [clean[index] for index in missing.index.tolist() if index in wrong | proved]
            self.ledger.add(decided, certificates)
            self.ledger.report()
            left = _without(missing, wrong | proved)
            self.bounds |= {index: certificates[index] for index in left.index.tolist()}
            yield left

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Keep what the attacks say of examples that :meth:`screen` has passed on."""
        # Their clean pass was made twice.
        counted = [replace(outcome, forwards=outcome.forwards + self.samples) for outcome in outcomes]
        self.ledger.add(counted, {outcome.index: self.bounds.pop(outcome.index) for outcome in outcomes})

    def finish(self, batches: Iterable[Batch]) -> None:
        """Prove or break what the attacks left, a batch of examples together."""
        for batch in self._gathered(batches, _UNTRIED):
            for place, certificate in self.certifier.prove(*self._prepared(batch), self.threat.at(batch.index)):
                self._settle(take(batch, torch.tensor([place])), certificate)
                self.ledger.report()

    def draw_curve(self, batches: Iterable[Batch], budgets: Sequence[float]) -> None:
        """Find the largest of some budgets at which each example that is not certified is, by the quick bounds.

        The sets are nested: what is proved at one budget holds at all smaller ones.
        """
        if not budgets:
            return
        for batch in self._gathered(batches, _NO_CURVE):
            reached = torch.zeros(len(batch), dtype=torch.float64)
            for budget in sorted(budgets, reverse=True):
                left = take(batch, reached == 0)
                if len(left):
                    certificates = self._bound(left, replace(self.threat, eps=budget)).values()
                    proved = torch.tensor([certificate.verdict == "certified" for certificate in certificates])
                    reached[reached == 0] = proved.double() * budget
            self._check_curve(batch, reached)
            self.ledger.store.insert("curve", list(zip(batch.index.tolist(), reached.tolist(), strict=True)))
            self.ledger.report()

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.query.prepare(batch.x).contiguous(), batch.y.to(self.query.device)

    def _clean_pass(self, batch: Batch) -> Iterator[list[Outcome]]:
        """The engine without a stage: what is misclassified, and the rest as if it were robust."""
        return drive(self.query, self.threat, (), [batch], seed=self.seed, samples=self.samples)

    def _bound(self, batch: Batch, threat: Ball) -> dict[int, Certificate]:
        certificates = self.certifier.bound(*self._prepared(batch), threat) if len(batch) else []
        return dict(zip(batch.index.tolist(), certificates, strict=True))

    def _gathered(self, batches: Iterable[Batch], where: str) -> Iterator[Batch]:
        """The examples whose row in the store meets a condition, in full batches."""
        if not next(self.ledger.store.select(f"SELECT EXISTS (SELECT 1 FROM examples WHERE {where})"))[0]:
            return
        size = self.query.batch_size
        waiting: Batch | None = None
        for batch in batches:
            places = torch.tensor(self.ledger.store.among(batch.index.tolist(), where), dtype=torch.int64)
            waiting = take(batch, places) if waiting is None else join(waiting, take(batch, places))
            if len(waiting) >= size:
                yield take(waiting, torch.arange(size))
                waiting = take(waiting, torch.arange(size, len(waiting)))
        if waiting is not None and len(waiting):
            yield waiting

    def _settle(self, example: Batch, certificate: Certificate) -> None:
        """Bring a certificate into an example's row, a counterexample only if the bare model agrees."""
        (index,) = example.index.tolist()
        columns = "label, clean_prediction, verdict, stage, distance, forwards, backwards, bound"
        (row,) = self.ledger.store.select(f"SELECT {columns} FROM examples WHERE idx = ?", index)
        label, prediction, verdict, stage, distance, forwards, backwards, bound = row
        before = Outcome(
            index, label, prediction, verdict, stage, distance, math.nan, forwards, backwards, example.x[0]
        )
        if bound is not None:
            certificate = replace(
                certificate, bound=max(bound, -math.inf if certificate.bound is None else certificate.bound)
            )
        if certificate.verdict == "broken":
            after = self._replayed(before, example, certificate)
            if after.verdict != "broken":
                certificate = replace(certificate, verdict="undecided", note="its counterexample failed the replay")
            self.ledger.settle(after, certificate)
        else:
            self.ledger.settle(before, certificate)

    def _replayed(self, outcome: Outcome, example: Batch, certificate: Certificate) -> Outcome:
        """The outcome after the bare model and the threat have judged a counterexample."""
        assert certificate.x_adv is not None
        rows = Rows.fresh(
            example.index.to(self.query.device), self.query.prepare(example.x), example.y.to(self.query.device)
        )
        x_adv = self.query.prepare(certificate.x_adv.unsqueeze(0))
        threat = self.threat.at(rows.index)
        votes = sum(int(rows.fooled(self.query.bare_logits(x_adv))) for _ in range(self.samples))
        outcome = replace(outcome, forwards=outcome.forwards + self.samples)
        if 2 * votes <= self.samples or not bool(threat.contains(x_adv, rows.x)):
            return outcome
        (distance,) = threat.distance(x_adv, rows.x).tolist()
        return replace(outcome, verdict="broken", stage=SEARCH, distance=distance, x_adv=x_adv[0])

    def _check_curve(self, batch: Batch, reached: Tensor) -> None:
        """No example may be certified at a budget at which an attack has broken it."""
        for index, budget in zip(batch.index.tolist(), reached.tolist(), strict=True):
            broken = "SELECT stage, distance FROM examples WHERE idx = ? AND verdict = 'broken' AND distance <= ?"
            for stage, distance in self.ledger.store.select(broken, index, budget):
                raise contradiction(index, f"certified at {budget:g}, broken by {stage} at {distance:g}")


def _without(batch: Batch, indices: set[int]) -> Batch:
    return take(batch, torch.tensor([index not in indices for index in batch.index.tolist()], dtype=torch.bool))
