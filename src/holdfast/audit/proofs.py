"""Certification within an audit: what proves quickly goes before the attacks, what takes long after them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from holdfast.audit.ledger import Ledger
from holdfast.audit.store import contradiction
from holdfast.certify.certificate import SEARCH, Certificate
from holdfast.certify.doubt import CHECK, Doubt
from holdfast.certify.proving import ExampleProver
from holdfast.data import Batch
from holdfast.engine import Outcome, Rows, drive
from holdfast.engine.rows import join, take
from holdfast.models.query import Query
from holdfast.threats import Ball, Threat

__all__ = ["Proofs"]

# Examples that the attacks left and no thorough proof has been tried on: one that failed leaves a note.
_UNTRIED = "verdict IN ('robust', 'undecided') AND certified IS NULL AND note IS NULL"
_NO_CURVE = "verdict != 'misclassified' AND certified IS NULL AND idx NOT IN (SELECT idx FROM curve)"


@dataclass
class Proofs:
    """Certification of one audit's examples.

    Parameters
    ----------
    certifier : ExampleProver
        What proves.
    query : Query
        The model, entered as a context manager.
    threat : Threat
        What the adversary may do.
    ledger : Ledger
        Where verdicts are kept.
    seed, samples : int
        As the attacks have them.
    doubt : Doubt
        What attacks some of the examples that are proved.
    """

    certifier: ExampleProver
    query: Query
    threat: Threat
    ledger: Ledger
    seed: int
    samples: int
    doubt: Doubt
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
            attacked = self.doubt.attack(_without(missing, wrong), certificates, self.threat)
            decided = [_after(clean[index], attacked) for index in missing.index.tolist() if index in wrong | proved]
            self.ledger.add(decided, _withdrawn(certificates, attacked))
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
            found: dict[int, Certificate] = {}
            for budget in sorted(budgets, reverse=True):
                left = take(batch, reached == 0)
                if len(left):
                    found |= self._bound(left, _at(self.threat, budget))
                    proved = torch.tensor([found[index].verdict == "certified" for index in left.index.tolist()])
                    reached[reached == 0] = proved.double() * budget
            self._check_curve(batch, reached)
            passes = self._doubt_curve(batch, reached, found)
            self.ledger.store.insert("curve", list(zip(batch.index.tolist(), reached.tolist(), strict=True)), passes)
            self.ledger.report()

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.query.prepare(batch.x).contiguous(), batch.y.to(self.query.device)

    def _clean_pass(self, batch: Batch) -> Iterator[list[Outcome]]:
        """The engine without a stage: what is misclassified, and the rest as if it were robust."""
        return drive(self.query, self.threat, (), [batch], seed=self.seed, samples=self.samples)

    def _bound(self, batch: Batch, threat: Threat) -> dict[int, Certificate]:
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
        ((bound,),) = self.ledger.store.select("SELECT bound FROM examples WHERE idx = ?", index)
        before = self._known(example)
        if bound is not None:
            certificate = replace(
                certificate, bound=max(bound, -math.inf if certificate.bound is None else certificate.bound)
            )
        attacked = self.doubt.attack(example, {index: certificate}, self.threat)
        before = _after(before, attacked)
        certificate = _withdrawn({index: certificate}, attacked)[index]
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
        index = example.index.to(self.query.device)
        threat = self.threat.at(index)
        rows = Rows.fresh(threat, index, self.query.prepare(example.x), example.y.to(self.query.device))
        x_adv = self.query.prepare(certificate.x_adv.unsqueeze(0))
        wrong = rows.wrong(*(self.query.bare_logits(x_adv) for _ in range(self.samples)))
        outcome = replace(outcome, forwards=outcome.forwards + self.samples)
        if certificate.choice is None:
            assert isinstance(threat, Ball)
            admitted, distance = threat.admits(x_adv, rows.x), threat.length(x_adv - rows.x)
        else:
            z = certificate.choice.unsqueeze(0)
            same = torch.equal(threat.apply(rows.x, z), x_adv)
            admitted, distance = threat.contains(rows.x, z) & same, threat.distance(rows.x, z)
        if not bool(rows.broken(wrong) & admitted):
            return outcome
        found = replace(outcome, verdict="broken", stage=SEARCH, distance=float(distance), x_adv=x_adv[0])
        return replace(found, attacked_wrong=max(outcome.attacked_wrong, float(wrong)))

    def _doubt_curve(
        self, batch: Batch, reached: Tensor, certificates: Mapping[int, Certificate]
    ) -> list[tuple[int, int, int]]:
        """Attack some of the examples at the budgets that they have reached, and say what that has cost.

        Those that rounding breaks there have reached none.
        """
        passes = []
        for budget in reached[reached > 0].unique().tolist():
            here = take(batch, reached == budget)
            for index, check in self.doubt.attack(here, certificates, _at(self.threat, budget)).items():
                passes.append((check.forwards, check.backwards, index))
                if check.verdict == "broken":
                    reached[batch.index == index] = 0.0
                    before = self._known(take(batch, batch.index == index))
                    if before.verdict in ("robust", "undecided"):
                        broken = replace(check, forwards=before.forwards, backwards=before.backwards)
                        self.ledger.settle(broken, Certificate("undecided", CHECK, None, None, 0.0))
        return passes

    def _known(self, example: Batch) -> Outcome:
        """What the store holds of an example."""
        (index,) = example.index.tolist()
        columns = "label, clean_prediction, verdict, stage, distance, forwards, backwards, clean_wrong, attacked_wrong"
        (row,) = self.ledger.store.select(f"SELECT {columns} FROM examples WHERE idx = ?", index)
        label, said, verdict, stage, distance, forwards, backwards, clean, attacked = row
        x = example.x[0]
        return Outcome(index, label, said, verdict, stage, distance, math.nan, forwards, backwards, x, clean, attacked)

    def _check_curve(self, batch: Batch, reached: Tensor) -> None:
        """No example may be certified at a budget at which an attack has broken it."""
        for index, budget in zip(batch.index.tolist(), reached.tolist(), strict=True):
            broken = "SELECT stage, distance FROM examples WHERE idx = ? AND verdict = 'broken' AND distance <= ?"
            for stage, distance in self.ledger.store.select(broken, index, budget):
                raise contradiction(index, f"certified at {budget:g}, broken by {stage} at {distance:g}")


def _at(threat: Threat, budget: float) -> Threat:
    """A norm ball with another budget."""
    assert isinstance(threat, Ball)
    return replace(threat, eps=budget)


def _after(outcome: Outcome, attacked: Mapping[int, Outcome]) -> Outcome:
    """The outcome of an example, once the check of its proof is counted and, where rounding broke it, believed."""
    check = attacked.get(outcome.index)
    if check is None:
        return outcome
    passes = outcome.forwards + check.forwards, outcome.backwards + check.backwards
    kept = check if check.verdict == "broken" else outcome
    return replace(kept, forwards=passes[0], backwards=passes[1])


def _withdrawn(certificates: Mapping[int, Certificate], attacked: Mapping[int, Outcome]) -> dict[int, Certificate]:
    """Certificates without those of examples that rounding breaks: of the model that runs they say nothing."""
    broken = {index for index, outcome in attacked.items() if outcome.verdict == "broken"}
    return {
        index: replace(certificate, verdict="undecided", bound=None) if index in broken else certificate
        for index, certificate in certificates.items()
    }


def _without(batch: Batch, indices: set[int]) -> Batch:
    return take(batch, torch.tensor([index not in indices for index in batch.index.tolist()], dtype=torch.bool))
