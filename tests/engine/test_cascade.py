"""Cascades of scripted attacks, against the life of each example told one step after the other."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import FGSM, PGD, Outcome, Rows, Stage, drive
from holdfast.data import Batch
from holdfast.engine.verification import verify
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import L2, Linf

# Every input is CLEAN and class 1 begins above HALF; all numbers are multiples of 1/64, so nothing is rounded.
CLEAN, HALF, COUNT = 0.25, 0.5, 40
GAP = HALF - CLEAN
INF = math.inf


class Threshold(nn.Module):
    """Class 1 above one half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([HALF - x, x - HALF], 1)


@dataclass(frozen=True)
class State:
    index: Tensor
    iteration: Tensor


@dataclass(frozen=True)
class Actor:
    """Looks at the choices that a table names by example, run and iteration, and notes whom it sees when."""

    name: str
    table: Tensor
    log: list = field(repr=False)
    minimum_norm: bool = False
    knowledge = "score"

    def note(self, rows: Rows, what: Tensor) -> None:
        seen = zip(rows.index.tolist(), rows.run.tolist(), what.tolist(), strict=True)
        self.log.extend((self.name, *entry) for entry in seen)

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.table.shape[1]

    def init(self, problem) -> State:
        rows = problem.rows
        self.note(rows, rows.best[:, 0])
        return State(rows.index, torch.zeros_like(rows.index))

    def step(self, problem, state: State) -> State:
        rows = problem.rows
        assert torch.equal(state.index, rows.index)
        self.note(rows, state.iteration)
        z = self.table[rows.index, rows.run, state.iteration].unsqueeze(1)
        problem.evaluate(z, lambda logits: margin(logits, rows.y))
        return replace(state, iteration=state.iteration + 1)

    def done(self, state: State) -> Tensor:
        return state.iteration >= self.table.shape[2]


def table(runs: int, length: int, hits: float, lies: float, seed: int) -> Tensor:
    """Choices that mostly fool nobody; some do, and some do so outside a budget of one half."""
    generator = torch.Generator().manual_seed(seed)
    shape = (COUNT, runs, length)
    kind = torch.rand(shape, generator=generator)
    quiet, hit, lie = (
        torch.randint(low, high, shape, generator=generator) / 64.0 for low, high in ((0, 16), (17, 33), (33, 48))
    )
    return torch.where(kind < hits, hit, torch.where(kind < hits + lies, lie, quiet))


def life(i: int, stages: list[Stage], eps: float, budget: int | None) -> tuple[tuple, list]:
    """What becomes of one example, and what each attack is to see of it, in order."""
    spent, reached, best, by, value, found, log = 1, -2 * GAP, 0.0, None, -INF, False, []

    def end(verdict: str, stage: str | None) -> tuple[tuple, list]:
        # What is found without a budget is claimed at the end, for the stage that found it.
        if found:
            return ("broken", by, spent + 1, best, None), log
        return (verdict, stage, spent, best, None if value == -INF else value), log

    for stage in stages:
        fresh = not found
        for run in range(stage.attack.table.shape[1]):
            limits = stage.margins
            if limits and reached < limits[min(run, len(limits) - 1)] * -2 * GAP:
                break
            for actor in filter(None, (stage.attack, stage.polish)):
                for t, z in enumerate(actor.table[i, run].tolist()):
                    if budget is not None and spent > budget:
                        return end("undecided", stage.name)
                    if fresh:
                        value, fresh = -INF, False
                    log += [(actor.name, i, run, best)] * (t == 0) + [(actor.name, i, run, t)]
                    spent += 1
                    if z > eps and actor.minimum_norm:
                        continue
                    height, fooled = 2 * (z - GAP), z > GAP
                    reached = max(reached, height)
                    score = -z if fooled and eps == INF else height
                    if (fooled and not found) or (fooled == found and score > value):
                        best, by, value = z, stage.name, score
                    if eps == INF:
                        found = found or fooled
                    elif fooled:
                        spent += 1
                        if z <= eps:
                            return ("broken", stage.name, spent, z, height), log
                        value = -INF
    return end("robust", None)


def run(stages, threat, count=COUNT, batch_size=7, source=5, query=Query, **settings) -> dict[int, Outcome]:
    x, y = torch.full((count, 1), CLEAN), torch.zeros(count, dtype=torch.int64)
    batches = [Batch(part, x[part], y[part]) for part in torch.arange(count).split(source)]
    with query(Threshold(), batch_size=batch_size) as asked:
        found = [o for some in drive(asked, threat, stages, batches, **settings) for o in some]
        assert asked.forwards == sum(outcome.forwards for outcome in found)
    assert sorted(outcome.index for outcome in found) == list(range(count))
    return {outcome.index: outcome for outcome in found}


def check(stages, log, eps, budget=None, **settings) -> dict[int, Outcome]:
    """Every example lives as it would alone."""
    log.clear()
    limits = eps.tolist() if isinstance(eps, Tensor) else [eps] * COUNT
    found = run(stages, Linf(eps), max_forwards=budget, **settings)
    seen = defaultdict(list)
    for name, i, *rest in log:
        seen[i].append((name, i, *rest))
    for i, outcome in found.items():
        expected, looks = life(i, stages, limits[i], budget)
        assert seen[i] == looks, i
        objective = None if math.isnan(outcome.objective) else outcome.objective
        verdict, stage, forwards, distance, height = expected
        # Where any distance is admissible, what was not broken has none.
        told = INF if limits[i] == INF and verdict != "broken" else distance
        assert (outcome.verdict, outcome.stage, outcome.forwards, outcome.distance, objective) == (
            verdict,
            stage,
            forwards,
            told,
            height,
        ), i
        assert outcome.x_adv.item() == CLEAN + distance
    return found


def cascade(polish: bool, margins: bool, minimum_norm: bool, hits: float = 0.03) -> tuple[list[Stage], list]:
    log: list = []

    def actor(name: str, *sizes: int) -> Actor:
        return Actor(name, table(*sizes, hits, 0.15, seed=sum(map(ord, name))), log, minimum_norm)

    return [
        Stage("a", actor("first", 2, 3), actor("its polish", 2, 2) if polish else None),
        Stage("b", actor("second", 3, 2), None, (0.125, 0.0625, 0.03125) if margins else ()),
        Stage("c", actor("third", 1, 4), actor("another polish", 1, 1) if polish else None, (0.25,) if margins else ()),
    ], log


SIZES = [(1, 1), (4, 40), (7, 5), (64, 9)]


@pytest.mark.parametrize(("batch_size", "source"), SIZES)
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("polish", [False, True])
class TestLives:
    def test_with_claims_that_are_refuted(self, polish, margins, batch_size, source):
        stages, log = cascade(polish, margins, minimum_norm=False)
        found = check(stages, log, 0.5, batch_size=batch_size, source=source)
        assert {outcome.verdict for outcome in found.values()} == {"robust", "broken"}
        assert {outcome.stage for outcome in found.values()} == {"a", "b", "c", None}

    def test_with_looks_outside_the_budget(self, polish, margins, batch_size, source):
        stages, log = cascade(polish, margins, minimum_norm=True)
        check(stages, log, 0.5, batch_size=batch_size, source=source)

    def test_without_a_budget(self, polish, margins, batch_size, source):
        stages, log = cascade(polish, margins, minimum_norm=True, hits=0.02)
        found = check(stages, log, INF, batch_size=batch_size, source=source)
        assert {outcome.verdict for outcome in found.values()} == {"robust", "broken"}
        assert {outcome.stage for outcome in found.values()} == {"a", "b", "c", None}

    def test_with_budgets_of_both_kinds(self, polish, margins, batch_size, source):
        stages, log = cascade(polish, margins, minimum_norm=True)
        eps = torch.where(torch.arange(COUNT) % 3 == 0, INF, 0.5)
        check(stages, log, eps, batch_size=batch_size, source=source)


@pytest.mark.parametrize("budget", [1, 2, 4, 7, 12, 19, 26])
@pytest.mark.parametrize("polish", [False, True])
def test_lives_with_few_queries(polish, budget):
    for margins, minimum_norm, eps in ((False, False, 0.5), (False, True, INF), (True, False, 0.5)):
        stages, log = cascade(polish, margins, minimum_norm)
        check(stages, log, eps, budget)
        looks = Counter(i for _, i, _, last in log if isinstance(last, int))
        assert max(looks.values()) <= budget


class Strict(Query):
    """The bare model asks for a good deal more than the search does."""

    def bare_logits(self, x: Tensor) -> Tensor:
        return super().bare_logits(x - 8 / 64)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_a_claim_that_the_bare_model_refutes_goes_on_where_it_stood(batch_size):
    """Only choices above 24/64 hold; those from 17/64 on are claimed, wherever in the cascade."""
    stages, log = cascade(polish=True, margins=False, minimum_norm=False, hits=0.2)
    stages = [replace(stage, attack=replace(stage.attack, table=stage.attack.table.clamp_max(0.5))) for stage in stages]
    found = run(stages, Linf(0.5), batch_size=batch_size, query=Strict)
    seen = defaultdict(list)
    for _, i, _, last in log:
        seen[i] += [last] * isinstance(last, int)
    actors = [actor for stage in stages for actor in (stage.attack, stage.polish) if actor is not None]
    tables = {actor.name: actor.table for actor in actors}
    order = [(a, r) for s in stages for r in range(s.attack.table.shape[1]) for a in (s.attack, s.polish) if a]
    for i, outcome in found.items():
        looks = [z for actor, r in order for z in tables[actor.name][i, r].tolist()]
        end = next((number for number, z in enumerate(looks) if 24 / 64 < z <= 0.5), None)
        made = looks if end is None else looks[: end + 1]
        assert outcome.verdict == ("robust" if end is None else "broken")
        assert len(seen[i]) == len(made)
        assert outcome.forwards == 1 + len(made) + sum(z > GAP for z in made)
    assert len({outcome.verdict for outcome in found.values()}) == 2


def test_a_claim_in_the_polish_is_the_stages():
    log: list = []
    quiet, loud = torch.zeros(COUNT, 1, 2), torch.full((COUNT, 1, 2), 0.375)
    stages = [
        Stage("first", Actor("a", quiet, log)),
        Stage("second", Actor("b", quiet, log), Actor("c", loud, log)),
        Stage("third", Actor("d", quiet, log)),
    ]
    for outcome in run(stages, Linf(0.5)).values():
        assert (outcome.verdict, outcome.stage, outcome.forwards) == ("broken", "second", 1 + 2 + 2 + 1 + 1)


class TestMargins:
    def wants(self, margins, reached, run=0, clean=-1.0):
        logits = torch.tensor([[0.0, clean]])
        rows = Rows.fresh(Linf(0.1), torch.tensor([0]), torch.zeros(1, 1), torch.tensor([0]), clean_logits=logits)
        rows = replace(rows.entering(run), margin=torch.tensor([reached]))
        return Stage("a", PGD(), margins=margins).wants(rows).item()

    def test_are_shares_of_the_clean_one(self):
        for reached, wanted in [(-0.3, True), (-0.5, True), (-0.6, False), (0.1, True)]:
            assert self.wants((0.5,), reached) == wanted
            assert self.wants((0.5,), 4 * reached, clean=-4.0) == wanted

    def test_go_by_the_run_and_the_last_stands_for_all_later_ones(self):
        wanted = [self.wants((0.75, 0.5, 0.25), -0.4, run) for run in range(6)]
        assert wanted == [True, True, False, False, False, False]

    def test_of_rows_that_nobody_has_looked_at(self):
        assert self.wants((1.0,), -math.inf)
        assert not self.wants((0.99,), -math.inf)
        assert self.wants((), -math.inf)

    def test_of_rows_on_the_boundary(self):
        """A clean input of margin 0 is as near as can be."""
        assert self.wants((0.01,), -math.inf, clean=0.0)


class TestWithoutABudget:
    def test_attacks_that_need_one_are_refused(self):
        threat = Linf(torch.where(torch.arange(COUNT) == 5, INF, 0.5))
        actor = Actor("a", torch.zeros(COUNT, 1, 1), [], minimum_norm=True)
        message = "b searches inside a budget, but that of example 5 is infinite"
        for stages in ([Stage("a", actor), Stage("b", PGD())], [Stage("a", actor), Stage("b", actor, PGD())]):
            with pytest.raises(SettingError, match=message):
                run(stages, threat)
        assert len(run([Stage("a", actor)], threat)) == COUNT
        assert len(run([Stage("b", FGSM())], Linf(0.5))) == COUNT

    def test_a_claim_that_no_nudge_saves(self):
        """Nothing at all holds: each nudge costs a pass, and the row ends as one of which nothing was found."""
        looks = torch.tensor([23 / 64, 8 / 64, 20 / 64]).expand(COUNT, 1, 3)
        for budget, verdict, stage in ((None, "robust", None), (2, "undecided", "a")):
            found = run([Stage("a", Actor("a", looks, [], True))], Linf(INF), query=Strict, max_forwards=budget)
            for outcome in found.values():
                assert (outcome.verdict, outcome.stage) == (verdict, stage)
                assert outcome.forwards == 1 + (budget or 3) + 5
                assert math.isnan(outcome.objective)

    def test_the_nearest_is_lengthened_until_the_bare_model_agrees(self):
        """Choices that fall short of the boundary by a share: the least nudge above it, and a pass for each tried."""
        short = torch.tensor([-1e-9, 5e-7, 5e-6, 5e-5, 5e-4, 5e-3], dtype=torch.float64)
        needed = torch.tensor([0, 1e-6, 1e-5, 1e-4, 1e-3, 0], dtype=torch.float64)
        x, y = torch.full((12, 1), CLEAN, dtype=torch.float64), torch.zeros(12, dtype=torch.int64)
        eps = torch.tensor([INF] * 6 + [0.5] * 6, dtype=torch.float64)
        best = (GAP * (1 - short)).repeat(2).unsqueeze(1)
        rows = replace(Rows.fresh(Linf(0.1), torch.arange(12), x, y), best=best, found=y == 0)
        model = Threshold()
        model.register_buffer("precision", torch.zeros((), dtype=torch.float64))
        with Query(model, batch_size=5) as query:
            judged, holds = verify(query, Linf(eps), rows, samples=1)
            again = verify(query, Linf(eps), rows, samples=3)[0].forwards
            assert query.forwards == int(judged.forwards.sum() + again.sum())
        # The last falls short by more than any nudge; where the budget is finite nothing is nudged.
        assert holds.tolist() == [True] * 5 + [False] + [True] + [False] * 5
        assert judged.forwards.tolist() == [1, 2, 3, 4, 5, 5] + [1] * 6
        assert torch.equal(again, 3 * judged.forwards)
        expected = best[:, 0] * (1 + torch.cat([needed, 0 * needed]))
        torch.testing.assert_close(judged.best[:, 0], expected, rtol=1e-14, atol=0)

    def test_the_nearest_of_all_stages_and_runs(self):
        """Per row the smallest of all its adversarial looks, and the first stage that made it, in every norm."""
        stages, _ = cascade(polish=True, margins=False, minimum_norm=True, hits=0.3)
        actors = [(s.name, actor) for s in stages for actor in (s.attack, s.polish) if actor is not None]
        looks = torch.cat([actor.table.flatten(1) for _, actor in actors], 1)
        owners = [name for name, actor in actors for _ in range(actor.table[0].numel())]
        nearest = looks.where(looks > GAP, INF).amin(1)
        for threat in (Linf(INF), L2(INF)):
            found = run(stages, threat)
            assert {outcome.stage for outcome in found.values()} == {"a", "b", "c"}
            for i, outcome in found.items():
                assert outcome.verdict == "broken"
                assert outcome.distance == nearest[i]
                assert outcome.stage == owners[looks[i].tolist().index(nearest[i])]
                assert outcome.forwards == 1 + looks.shape[1] + 1
