"""The one loop of the library: it drives any attack, or a cascade of them, over a stream of examples.

Examples enter by a clean forward pass and move through stages. Each stage has one batch of live rows and a queue; a
row leaves its batch the moment it is decided or its run is over, and the queue fills the gap. The stage that can fill
a whole batch goes first, latest stage before earlier ones, so memory is bounded by stages times batch size. No row
sees another: draws are keyed by the example, and the model always runs on one fixed shape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor

from holdfast.arguments import whole
from holdfast.data.source import Batch
from holdfast.engine.attack import Attack, roams
from holdfast.engine.guide import Guide
from holdfast.engine.lane import Lane, Run
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, join, take
from holdfast.engine.verification import verify
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models.query import Query
from holdfast.tasks import CLASSIFICATION, Task
from holdfast.threats import Threat
from holdfast.threats.box import TOLERANCE

__all__ = ["Outcome", "Stage", "Verdict", "drive", "maximize"]

Verdict = Literal["robust", "broken", "misclassified", "undecided"]


@dataclass(frozen=True)
class Stage:
    """One attack of a cascade.

    Parameters
    ----------
    name : str
        What results call it.
    attack : Attack
        Tries each example that the stages before left unbroken.
    polish : Attack, optional
        Takes over at the end of each of the attack's runs, to go on from the best choice seen.
    margins : tuple of float
        Where effort pays: run ``r`` is for the examples whose highest margin so far, as a share of the clean one, is
        at most ``margins[r]`` (later runs: the last number). Empty for all examples.
    guide : Guide, optional
        Whose gradients the stage follows instead of the model's own.
    """

    name: str
    attack: Attack
    polish: Attack | None = None
    margins: tuple[float, ...] = ()
    guide: Guide | None = None

    def wants(self, rows: Rows) -> Tensor:
        """``(N,)`` bool, the rows for whom the run that they stand before is meant."""
        if not self.margins:
            return torch.ones_like(rows.found)
        limits = rows.margin.new_tensor(self.margins)
        clean = rows.clean_margin
        return torch.fmax(rows.margin, clean) >= limits[rows.run.clamp_max(len(self.margins) - 1)] * clean


@dataclass(frozen=True)
class Outcome:
    """The verdict on one example.

    Parameters
    ----------
    index : int
        Which example.
    label, clean_prediction : int
        Its label, and what the bare model says of the clean input; nested lists where a task's labels are no numbers.
    verdict : str
        ``"misclassified"`` on the clean input; ``"broken"`` by a verified adversarial input; ``"robust"`` against
        every stage; ``"undecided"`` where the budget of queries ended first.
    stage : str or None
        The stage that broke it, under an infinite budget the one that found ``x_adv``; or in which its budget of
        queries ended.
    distance : float
        Of ``x_adv`` from the clean input, in the units of the budget; infinite where the budget is, and nothing was
        found.
    objective : float
        At ``x_adv``, by the last stage that saw the row; NaN where none did, or where the nearest input was wanted.
    forwards, backwards : int
        Passes spent on it, clean prediction and verification included.
    x_adv : Tensor
        The adversarial input, or the best that was tried.
    clean_wrong, attacked_wrong : float
        The share of the example that is wrong, clean and at worst: as verified where it is broken, and as the attacks
        saw it elsewhere. Attacks end where an example is broken, so it may be made worse than that.
    """

    index: int
    label: int
    clean_prediction: int
    verdict: Verdict
    stage: str | None
    distance: float
    objective: float
    forwards: int
    backwards: int
    x_adv: Tensor
    clean_wrong: float
    attacked_wrong: float


@dataclass(frozen=True)
class _Claim:
    """Rows seen to be adversarial, and what becomes of those that are not."""

    run: Run
    refuted: Callable[[Run], list[Outcome]]


def drive(
    query: Query,
    threat: Threat,
    stages: Sequence[Stage],
    batches: Iterable[Batch],
    *,
    task: Task = CLASSIFICATION,
    seed: int = 0,
    target: Tensor | None = None,
    max_forwards: int | None = None,
    samples: int = 1,
) -> Iterator[list[Outcome]]:
    """Send examples through a cascade of attacks and yield their verdicts as they fall.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager.
    threat : Threat
        What the adversary may do. Per-example budgets are looked up by the examples' index.
    stages : sequence of Stage
        The attacks, in order; each sees only the examples that those before it left unbroken.
    batches : iterable of Batch
        The examples.
    task : Task
        What the model's answers mean.
    seed : int
        Of every random draw.
    target : Tensor, optional
        ``(M,)`` the class the adversary wants of each example, looked up by its index.
    max_forwards : int, optional
        The attacks' queries an example, and the verification of claims that failed; an example that has spent them
        unbroken is undecided.
    samples : int
        Passes a look, for a model with noise of its own: gradients and objectives are averaged over them (expectation
        over transformation; Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML
        2018, section 4.2), and the model counts as wrong where most of them are.

    Yields
    ------
    list of Outcome
        After each step of the engine, the examples it decided (often none). Their order depends on the batch size;
        their content does not.

    Raises
    ------
    DataError
        When an example does not fit the threat's box or the model's classes. Outcomes already yielded stand.
    ModelError
        When the model fails or does not return finite logits.
    SettingError
        When an attack that searches inside a budget meets an infinite one, or a look is to have no pass.
    """
    samples = whole("samples", samples)
    return _Engine(query, threat, stages, task, seed, target, max_forwards, samples).run(batches)


@dataclass
class _Engine:
    query: Query
    threat: Threat
    stages: Sequence[Stage]
    task: Task
    seed: int
    target: Tensor | None
    max_forwards: int | None
    samples: int
    lanes: list[Lane] = field(default_factory=list)
    heads: list[Lane] = field(default_factory=list)  # the lane of each stage's attack
    claims: list[_Claim] = field(default_factory=list)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Outcome]]:
        stream = iter(batches)
        size = self.query.batch_size
        more = True
        while True:
            full = [lane for lane in self.lanes if lane.load >= size]
            claimed = sum(len(claim.run) for claim in self.claims)
            if claimed >= size:
                yield self._verify()
            elif full:
                yield self._advance(full[-1])
            elif more:
                batch = next(stream, None)
                more = batch is not None
                if batch is not None and len(batch):
                    yield self._admit(batch)
            elif loaded := [lane for lane in self.lanes if lane.load]:
                yield self._advance(loaded[0])
            elif claimed:
                yield self._verify()
            else:
                return

    def _admit(self, batch: Batch) -> list[Outcome]:
        query = self.query
        index, x, y = batch.index.to(query.device), batch.x, batch.y.to(query.device)
        clean = self._clean_logits(x)
        x = query.prepare(x)
        threat = self.threat.at(index)
        target = None if self.target is None else self.target.to(query.device)[index]
        self.task.check(index, clean, y, target)
        rows = Rows.fresh(
            threat,
            index,
            x,
            y,
            task=self.task,
            target=target,
            clean_logits=clean,
            forwards=self.samples,
        )
        _check(rows, clean, threat, self.stages)
        if not self.lanes:
            self._open_lanes(rows)
        wrong = rows.broken(rows.share)
        outcomes = self._outcomes(take(rows, wrong), "misclassified")
        standing = take(rows, ~wrong)
        if self.max_forwards is not None and self.max_forwards < self.samples:
            return outcomes + self._outcomes(standing, "undecided")
        return outcomes + (self._enter(0, standing) if self.stages else self._finish(standing))

    def _open_lanes(self, rows: Rows) -> None:
        nobody = take(rows, rows.index[:0])

        def lane(number: int, attack: Attack, guide: Guide | None) -> Lane:
            problem = Problem(
                self.query,
                self.threat,
                nobody,
                seed=self.seed,
                stage=number,
                samples=self.samples,
                roams=roams(attack),
                guide=guide,
            )
            # An attack that cannot run under this threat says so here, before anything is decided.
            return Lane(number, attack, problem, attack.init(problem))

        for number, stage in enumerate(self.stages):
            head = lane(number, stage.attack, stage.guide)
            self.heads.append(head)
            self.lanes.append(head)
            if stage.polish is not None:
                head.polish = lane(number, stage.polish, stage.guide)
                self.lanes.append(head.polish)

    def _clean_logits(self, x: Tensor) -> Tensor:
        """Logits of the clean inputs; of a random model the average over its samples."""
        first = self.query.bare_logits(x)
        more = (self.query.bare_logits(x) for _ in range(1, self.samples))
        return sum(more, start=first) / self.samples

    def _advance(self, lane: Lane) -> list[Outcome]:
        left = lane.advance(self.max_forwards)
        if left is None:
            return []
        run, won, over = left
        self._claim(take(run, won), partial(self._resume, lane))
        outcomes = self._stop(lane.number, take(run.rows, ~won & ~over))
        return outcomes + self._onward(lane, take(run.rows, ~won & over))

    def _claim(self, run: Run, refuted: Callable[[Run], list[Outcome]]) -> None:
        if len(run):
            self.claims.append(_Claim(run, refuted))

    def _resume(self, lane: Lane, run: Run) -> list[Outcome]:
        """Rows in the middle of a run, or at its end: on from there."""
        over = lane.attack.done(run.state)
        return self._into(lane, take(run, ~over)) + self._onward(lane, take(run.rows, over))

    def _stop(self, number: int, rows: Rows) -> list[Outcome]:
        """Rows whose queries are spent: undecided, unless what they have found by then is upheld."""
        return self._end(rows, "undecided", self.stages[number].name)

    def _finish(self, rows: Rows) -> list[Outcome]:
        """Rows that are through with every stage: robust, unless what they have found by then is upheld."""
        return self._end(rows, "robust")

    def _end(self, rows: Rows, verdict: Verdict, stage: str | None = None) -> list[Outcome]:
        def refuted(run: Run) -> list[Outcome]:
            return self._outcomes(run.rows, verdict, stage)

        self._claim(Run(take(rows, rows.found)), refuted)
        return self._outcomes(take(rows, ~rows.found), verdict, stage)

    def _onward(self, lane: Lane, rows: Rows) -> list[Outcome]:
        """Rows at the end of a run: to its polish, the next run or the next stage."""
        if not len(rows):
            return []
        if lane.polish is not None:
            return self._into(lane.polish, Run(rows))
        again = self.heads[lane.number].attack.again(rows)
        outcomes = self._enter(lane.number, take(rows, again).entering(rows.run[again] + 1))
        return outcomes + self._pass(lane.number, take(rows, ~again))

    def _enter(self, number: int, rows: Rows) -> list[Outcome]:
        """Rows that stand before a run of a stage: into it, or past the stage where it is not meant for them."""
        if not len(rows):
            return []
        wanted = self.stages[number].wants(rows)
        return self._into(self.heads[number], Run(take(rows, wanted))) + self._pass(number, take(rows, ~wanted))

    def _pass(self, number: int, rows: Rows) -> list[Outcome]:
        if number + 1 == len(self.stages):
            return self._finish(rows)
        return self._enter(number + 1, rows.entering(0))

    def _into(self, lane: Lane, run: Run) -> list[Outcome]:
        """Rows join a lane, but for those whose queries are spent."""
        outcomes: list[Outcome] = []
        if self.max_forwards is not None:
            spent = run.rows.forwards > self.max_forwards
            outcomes = self._stop(lane.number, take(run.rows, spent))
            run = take(run, ~spent)
        if run.state is None and lane is self.heads[lane.number]:
            # Objectives of different stages do not compare, so each starts its own record.
            run = Run(run.rows.forgetting((run.rows.run == 0) & ~run.rows.found))
        lane.enter(run)
        return outcomes

    def _verify(self) -> list[Outcome]:
        """Judge what is claimed by the bare model and the threat; a claim that fails leaves its row unbroken."""
        claims, self.claims = self.claims, []
        rows, holds = verify(self.query, self.threat, reduce(join, [claim.run.rows for claim in claims]), self.samples)
        parts = torch.arange(len(rows), device=holds.device).split([len(claim.run) for claim in claims])
        outcomes: list[Outcome] = []
        for claim, here in zip(claims, parts, strict=True):
            run, holding = replace(claim.run, rows=take(rows, here)), holds[here]
            outcomes += self._outcomes(take(run.rows, holding), "broken")
            failed = take(run, ~holding)
            if len(failed):
                outcomes += claim.refuted(replace(failed, rows=failed.rows.forgetting(failed.rows.found)))
        return outcomes

    def _outcomes(self, rows: Rows, verdict: Verdict, stage: str | None = None) -> list[Outcome]:
        if not len(rows):
            return []
        assert rows.clean_logits is not None
        threat = self.threat.at(rows.index)
        broken = verdict == "broken"
        stages = [self.stages[number].name if broken else stage for number in rows.stage.tolist()]
        clean = verdict == "misclassified"
        x_adv = rows.x if clean else threat.apply(rows.x, rows.best)
        endless = threat.budget(rows.x).isinf()
        unknown = (rows.value == -torch.inf) | (rows.found & endless)
        distance = torch.zeros_like(rows.value) if clean else threat.distance(rows.x, rows.best)
        if verdict in ("robust", "undecided"):
            # Of the nearest adversarial input that was found, where none was.
            distance = torch.where(endless, torch.inf, distance)
        columns = (
            rows.index,
            rows.y,
            rows.task.prediction(rows.clean_logits),
            distance,
            torch.where(unknown, torch.nan, rows.value),
            rows.forwards,
            rows.backwards,
            rows.clean_share,
            rows.share,
        )
        return [
            Outcome(index, label, said, verdict, name, distance, value, forwards, backwards, x, clean_share, share)
            for name, x, index, label, said, distance, value, forwards, backwards, clean_share, share in zip(
                stages, x_adv.unbind(), *(column.tolist() for column in columns), strict=True
            )
        ]


def maximize(attack: Attack, query: Query, threat: Threat, x: Tensor, y: Tensor, *, seed: int = 0) -> Tensor:
    """The worst input that one run of an attack finds.

    A misclassified input counts as worse than any other, and of two alike the one of the higher objective. Nothing
    leaves early, nothing is verified, and clean mistakes are attacked like the rest.

    Parameters
    ----------
    attack : Attack
        How to search; its first run is made.
    query : Query
        The model, entered as a context manager.
    threat : Threat
        What may be done. Per-example budgets are looked up by row.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels, at most a batch of the query.
    seed : int
        Of the random start.

    Returns
    -------
    Tensor
        ``(N, ...)`` inputs, in the query's precision.
    """
    index = torch.arange(len(x), device=query.device)
    rows = Rows.fresh(threat.at(index), index, query.prepare(x), y.to(query.device))
    problem = Problem(query, threat, rows, seed=seed, roams=roams(attack))
    state = attack.init(problem)
    while not bool(attack.done(state).all()):
        state = attack.step(problem, state)
    return problem.threat.apply(problem.rows.x, problem.rows.best)


def _unchanged(threat: Threat, rows: Rows) -> Tensor:
    """``(N,)`` bool, whether the choice that changes nothing is one and leaves the input as it is, to 1e-6."""
    still = ((threat.apply(rows.x, rows.best) - rows.x).abs() <= TOLERANCE).flatten(1).all(1)
    return still & threat.contains(rows.x, rows.best)


def _check(rows: Rows, clean: Tensor, threat: Threat, stages: Sequence[Stage]) -> None:
    """Refuse examples on which no verdict would mean anything."""

    def first(bad: Tensor) -> int | None:
        return int(rows.index[bad.nonzero()[0, 0]]) if bool(bad.any()) else None

    attacks = [
        (stage.name, attack) for stage in stages for attack in (stage.attack, stage.polish) if attack is not None
    ]
    bound = next((name for name, attack in attacks if not attack.minimum_norm), None)
    if bound is not None and (example := first(threat.budget(rows.x).isinf())) is not None:
        raise SettingError(
            f"{bound} searches inside a budget, but that of example {example} is infinite: give a finite one, or run a "
            "minimum-norm attack"
        )
    if (example := first(~_unchanged(threat, rows))) is not None:
        low, high = (float(end) for end in rows.x[rows.index == example].aminmax())
        cure = "give raw inputs and normalise inside the model (or give mean and std), or set another box"
        if low >= 0 and 1 < high <= 255:
            cure = "if these are grey levels, divide them by 255, or set the box to 0,255 and the budget in grey levels"
        raise DataError(
            f"example {example} has values from {low:g} to {high:g}, outside the box of the threat {threat!r}: {cure}"
        )
    if (example := first(~clean.isfinite().all(1))) is not None:
        raise ModelError(f"the model returns NaN or infinite logits for clean example {example}")
