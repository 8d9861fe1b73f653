from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import NORMS, assert_same, examples, outcomes
from helpers.zoo import Answering, Counting, convnet, mlp, nan_logits, uniform
from holdfast.attacks import APGD, FGSM, PGD, Outcome, Rows, Stage, craft, drive, maximize
from holdfast.data import Batch
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Linf

NEVER = (0, 99)


@dataclass(frozen=True)
class State:
    iteration: Tensor
    length: Tensor


@dataclass(frozen=True)
class Scripted:
    """Breaks example i in the run and at the iteration that ``script(i)`` names, and notes whom it sees when."""

    script: dict[int, tuple[int, int]] = field(default_factory=dict)
    length: int = 3
    restarts: int = 1
    reach: float = 0.3
    log: list[tuple[int, int, int]] = field(default_factory=list)
    name = "scripted"
    knowledge = "score"
    minimum_norm = False

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts

    def init(self, problem) -> State:
        zero = torch.zeros_like(problem.rows.index)
        return State(zero, zero + self.length)

    def step(self, problem, state: State) -> State:
        seen = zip(problem.rows.index.tolist(), problem.rows.run.tolist(), state.iteration.tolist(), strict=True)
        z = torch.zeros_like(problem.x)
        for i, key in enumerate(seen):
            self.log.append(key)
            if self.script.get(key[0], NEVER) == key[1:]:
                z[i] = self.reach
        problem.evaluate(z, lambda logits: margin(logits, problem.rows.y))
        return State(state.iteration + 1, state.length)

    def done(self, state: State) -> Tensor:
        return state.iteration >= state.length


class Threshold(nn.Module):
    """Class 1 from 0.5 on."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1)


def data(count: int) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1), 0.4), torch.zeros(count, dtype=torch.int64)


def run(stages, count, model=None, **settings) -> dict[int, Outcome]:
    return outcomes(stages, model or Threshold(), Linf(0.3), *data(count), **settings)


def test_each_stage_sees_what_those_before_it_left():
    stages = [
        Scripted(dict.fromkeys(range(0, 40, 2), (0, 1))),
        Scripted(dict.fromkeys(range(0, 40, 5), (1, 0)), restarts=2),
        Scripted(dict.fromkeys(range(0, 40, 3), (2, 2)), restarts=3),
    ]
    found = run(stages, 41)
    seen = [{i: [entry[1:] for entry in stage.log if entry[0] == i] for i in range(41)} for stage in stages]
    for i in range(41):
        breaker = None if i == 40 else next((s for s, d in ((0, 2), (1, 5), (2, 3)) if i % d == 0), None)
        outcome = found[i]
        assert outcome.stage == (None if breaker is None else str(breaker))
        assert outcome.verdict == ("robust" if breaker is None else "broken")
        assert outcome.x_adv.tolist() == pytest.approx([0.4 if breaker is None else 0.7])
        for number, stage in enumerate(stages):
            whole = [(r, t) for r in range(stage.restarts) for t in range(3)]
            if breaker is None or number < breaker:
                assert seen[number][i] == whole
            elif number == breaker:
                assert seen[number][i] == whole[: whole.index(stage.script[i]) + 1]
            else:
                assert seen[number][i] == []
        assert outcome.forwards == 1 + sum(len(one[i]) for one in seen) + (breaker is not None)
        assert outcome.backwards == 0


def test_no_stages_is_the_clean_prediction():
    x, y = data(5)
    y[2] = 1
    found = outcomes([], Threshold(), Linf(0.3), x, y)
    assert [found[i].verdict for i in range(5)] == ["robust", "robust", "misclassified", "robust", "robust"]
    assert all(outcome.forwards == 1 for outcome in found.values())


def test_outcomes_say_what_they_are():
    x, y = data(3)
    y[1] = 1
    found = outcomes(Scripted({0: (0, 0)}), Threshold(), Linf(0.3), x, y)
    assert [found[i].verdict for i in range(3)] == ["broken", "misclassified", "robust"]
    assert [found[i].clean_prediction for i in range(3)] == [0, 0, 0]
    assert [found[i].label for i in range(3)] == [0, 1, 0]
    assert [found[i].distance for i in range(3)] == pytest.approx([0.3, 0.0, 0.0])
    assert found[0].objective == pytest.approx(0.4)
    assert found[1].objective != found[1].objective
    assert found[2].objective == pytest.approx(-0.2)
    assert [found[i].stage for i in range(3)] == ["0", None, None]


@pytest.mark.parametrize("source", [1, 16, 300])
def test_batches_stay_full(source):
    counting = Counting(Threshold())
    generator = torch.Generator().manual_seed(0)
    moments = torch.randint(0, 12, (300,), generator=generator).tolist()
    stages = [Scripted({i: (0, t) for i, t in enumerate(moments)}, length=9), Scripted({}, length=5)]
    found = run(stages, 300, counting, batch_size=16, source=source)
    spent = sum(outcome.forwards for outcome in found.values())
    # Clean passes come as the source reads; every other call is nearly full until the stream ends.
    clean = -(-300 // source) * -(-source // 16)
    assert counting.calls - clean <= 1.2 * (spent - 300) / 16 + 8


def test_memory_is_bounded_by_the_batch_not_by_the_data():
    count, size, source = 5000, 32, 16
    pulled = decided = most = 0

    def stream() -> Iterator[Batch]:
        nonlocal pulled
        for index in torch.arange(count).split(source):
            pulled += len(index)
            yield Batch(index, *data(len(index)))

    stages = [
        Scripted(dict.fromkeys(range(0, count, 3), (0, 1))),
        Scripted(dict.fromkeys(range(0, count, 4), (1, 0)), restarts=2),
        Scripted({}),
    ]
    with Query(Threshold(), batch_size=size) as query:
        named = [Stage(str(number), stage) for number, stage in enumerate(stages)]
        for some in drive(query, Linf(0.3), named, stream()):
            decided += len(some)
            most = max(most, pulled - decided)
    assert decided == count
    # A batch at work and less than another waiting in each stage, the claims, and what was read last.
    assert most <= (2 * len(stages) + 1) * size + source


def test_outcomes_fall_while_the_stream_runs():
    pulled = []

    def stream() -> Iterator[Batch]:
        for index in torch.arange(64).split(8):
            pulled.append(len(index))
            yield Batch(index, *data(len(index)))

    with Query(Threshold(), batch_size=8) as query:
        steps = drive(query, Linf(0.3), [Stage("a", Scripted())], stream())
        first = next(some for some in steps if some)
        assert len(pulled) == 1
        assert len(first) == 8


class Liar(nn.Module):
    """Answers wrongly whenever a gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if x.requires_grad else self.net(x)


class LayoutLiar(Liar):
    """Answers wrongly to images in channels-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if x.stride(1) == 1 else self.net(x)


@pytest.mark.parametrize(("lie", "claims"), [(Liar, 5), (LayoutLiar, 6)])
def test_claims_that_are_not_true_do_not_count(lie, claims):
    model = lie()
    x, y = examples(model.net)
    y = model.net(x).argmax(1)
    result = PGD(steps=5, restarts=3)(model, x, y, threat=Linf(1e-5), batch_size=7)
    assert not result.success.any()
    # A clean forward pass refutes each claim, and the run goes on; Liar is honest at its last look, without a gradient.
    assert (result.forwards == 1 + 3 * (6 + claims)).all()
    assert (result.backwards == 3 * 5).all()


def test_leaving_the_ball_is_no_success():
    cheat = Scripted({i: (i % 2, 0) for i in range(9)}, restarts=2, reach=0.5)
    honest = Scripted(dict.fromkeys(range(0, 9, 3), (0, 1)))
    found = run([cheat, honest], 10)
    for i, outcome in found.items():
        assert outcome.verdict == ("broken" if i % 3 == 0 and i < 9 else "robust")
        assert outcome.stage in ("1", None)
    # A refuted claim costs a pass and nothing else: the steps of both runs, and those of the next stage.
    assert found[1].forwards == 1 + (3 + 3 + 1) + 3


class TestBudget:
    @pytest.mark.parametrize("budget", [0, 1, 2, 5, 6, 7, 11, 100])
    def test_is_never_exceeded(self, budget):
        moments = {0: (0, 0), 1: (0, 2), 2: (1, 0), 3: (1, 2)}
        stages = [Scripted(moments, restarts=2), Scripted({4: (0, 0), 5: (1, 2)}, restarts=2)]
        found = run(stages, 9, max_forwards=budget)
        spent = Counter(index for stage in stages for index, _, _ in stage.log)
        need = {0: 1, 1: 3, 2: 4, 3: 6, 4: 7, 5: 12}
        for i in range(9):
            broken = need.get(i, 999) <= budget
            assert found[i].verdict == ("broken" if broken else "robust" if budget > 12 else "undecided"), i
            assert spent[i] == min(budget, need.get(i, 12))
            assert found[i].forwards == 1 + spent[i] + broken

    def test_of_nothing_attacks_nothing(self):
        model = convnet()
        x, y = examples(model)
        found = outcomes(PGD(), model, Linf(0.05), x, y, max_forwards=0)
        assert Counter(outcome.verdict for outcome in found.values()) == {"undecided": 22, "misclassified": 2}
        for i, outcome in found.items():
            assert torch.equal(outcome.x_adv, x[i])
            assert (outcome.forwards, outcome.backwards) == (1, 0)

    @pytest.mark.parametrize("budget", [1, 4, 9, 15])
    def test_of_real_attacks(self, budget):
        model = convnet()
        x, y = examples(model)
        attacks = [APGD(steps=4, objective="dlr"), PGD(steps=4, restarts=2)]
        whole = outcomes(attacks, model, Linf(0.01), x, y)
        found = outcomes(attacks, model, Linf(0.01), x, y, max_forwards=budget)
        for i, outcome in found.items():
            claimed = outcome.verdict == "broken"
            assert outcome.forwards - 1 - claimed <= budget
            if claimed or outcome.verdict == "misclassified":
                assert_same({i: outcome}, whole)
            elif whole[i].verdict == "broken":
                assert whole[i].forwards - 2 > budget
                assert (outcome.verdict, outcome.forwards) == ("undecided", 1 + budget)


class TestErrors:
    def setup_method(self):
        self.model = convnet()
        self.x, self.y = examples(self.model)

    @pytest.mark.parametrize("label", [-1, 5])
    def test_label(self, label):
        self.y[17] = label
        with pytest.raises(DataError, match=f"example 17 has label {label}, but the model knows classes 0 to 4"):
            outcomes(FGSM(), self.model, Linf(0.01), self.x, self.y)

    @pytest.mark.parametrize("target", [-1, 5])
    def test_target(self, target):
        wanted = self.y.clone() * 0
        wanted[12] = target
        with pytest.raises(DataError, match="example 12 has a target class outside 0 to 4"):
            craft(FGSM(), self.model, self.x, self.y, threat=Linf(0.01), target=wanted)

    @pytest.mark.parametrize("value", [1.5, -0.1, torch.nan, torch.inf])
    def test_input(self, value):
        self.x[13, 1, 2, 2] = value
        with pytest.raises(DataError, match=r"example 13 has values .* outside the box"):
            outcomes(FGSM(), self.model, Linf(0.01), self.x, self.y)

    def test_input_without_a_box(self):
        self.x[13, 1, 2, 2] = torch.nan
        with pytest.raises(DataError, match="example 13 has values from nan"):
            outcomes(FGSM(), self.model, Linf(0.01, box=None), self.x, self.y)

    def test_logits(self):
        x = 0.8 * uniform(9, 6)
        x[7, 0] = 0.95
        with pytest.raises(ModelError, match="NaN or infinite logits for clean example 7"):
            outcomes(FGSM(), nan_logits(), Linf(0.01), x, torch.zeros(9, dtype=torch.int64))

    def test_nan_found_by_the_attack_is_a_success(self):
        def answer(model, x):
            logits = model.logits(x) * 0 + torch.stack([2 - x[:, 0], x[:, 1], x[:, 2]], 1)
            return logits.where(x[:, :1] <= 0.9, torch.nan)

        x = 0.8 * uniform(9, 6)
        x[:, 0] = 0.85
        # Of logits that are all NaN the first is the largest by torch's rule: the label.
        result = FGSM()(Answering(answer), x, torch.zeros(9, dtype=torch.int64), threat=Linf(0.1))
        assert (result.x_adv[:, 0] > 0.9).all()
        assert result.success.all()

    def test_what_was_decided_before_stands(self):
        self.y[20] = 7
        got = []

        def consume():
            batches = [Batch(i, self.x[i], self.y[i]) for i in torch.arange(24).split(4)]
            with Query(self.model, batch_size=4) as query:
                for some in drive(query, Linf(0.01), [Stage("fgsm", FGSM())], batches):
                    got.extend(some)

        with pytest.raises(DataError, match="example 20"):
            consume()
        assert len(got) >= 12
        self.y[20] = 0
        expected = outcomes(FGSM(), self.model, Linf(0.01), self.x, self.y, batch_size=4)
        assert_same({o.index: Outcome(**{**vars(o), "stage": o.stage and "0"}) for o in got}, expected)

    def test_of_the_source_pass_through(self):
        def stream() -> Iterator[Batch]:
            yield Batch(torch.arange(4), self.x[:4], self.y[:4])
            raise OSError("the disk is gone")

        with Query(self.model, batch_size=4) as query, pytest.raises(OSError, match="the disk is gone"):
            list(drive(query, Linf(0.01), [Stage("fgsm", FGSM())], stream()))

    def test_budgets(self):
        with pytest.raises(DataError, match="example 23 has no budget: eps holds only 5"):
            craft(FGSM(), self.model, self.x, self.y, threat=Linf(torch.full((5,), 0.1)))

    @pytest.mark.parametrize("form", ["integers", "labels", "float labels"])
    def test_of_form(self, form):
        x, y = self.x, self.y
        x, y = {"integers": (x.byte(), y), "labels": (x, y[:5]), "float labels": (x, y.float())}[form]
        with pytest.raises(DataError, match=r"floating point numbers|y must hold 24 class numbers"):
            craft(FGSM(), self.model, x, y, threat=Linf(0.1))

    def test_batch_size(self):
        with pytest.raises(SettingError, match="at least 1 row, got -3"):
            craft(FGSM(), self.model, self.x, self.y, threat=Linf(0.1), batch_size=-3)


def test_empty_batches_are_passed_over():
    x, y = data(4)
    none = Batch(torch.arange(0), x[:0], y[:0])
    batches = [none, Batch(torch.arange(4), x, y), none]
    with Query(Threshold(), batch_size=3) as query:
        found = [o for some in drive(query, Linf(0.3), [Stage("a", Scripted())], batches) for o in some]
    assert sorted(o.index for o in found) == [0, 1, 2, 3]


def test_indexes_need_not_start_at_zero_nor_be_in_order():
    model = convnet()
    x, y = examples(model)
    index = torch.tensor([1_000_000, 7, 4_294_967_295, 12])
    with Query(model, batch_size=4) as query:
        batches = [Batch(index, x[:4], y[:4])]
        found = {o.index: o for some in drive(query, Linf(0.01), [Stage("0", PGD(steps=3))], batches) for o in some}
    assert sorted(found) == sorted(index.tolist())
    at_home = outcomes(PGD(steps=3), model, Linf(0.01), x, y, batch_size=4)
    # Other positions, other noise: the start depends on the index.
    assert any(not torch.equal(found[int(i)].x_adv, at_home[k].x_adv) for k, i in enumerate(index))


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_every_start_has_noise_of_its_own(attack):
    model = convnet()
    x, y = examples(model)
    starts = {}

    @dataclass(frozen=True)
    class Watch(attack):
        key: tuple[int, int] = (0, 0)

        def init(self, problem):
            state = super().init(problem)
            for i, restart, z in zip(problem.rows.index.tolist(), problem.rows.run.tolist(), state.z, strict=True):
                starts[*self.key, restart, i] = tuple(z.flatten().tolist())
            return state

    for seed in (0, 1):
        stages = [Watch(steps=1, restarts=2, key=(seed, number)) for number in (0, 1)]
        outcomes(stages, model, Linf(1e-4), x, y, seed=seed)
    assert len(starts) == 2 * 2 * 2 * 22
    assert len(set(starts.values())) == len(starts)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_does_not_leave_the_box(norm):
    model = mlp()
    lower, upper = 0.1 + 0.3 * uniform(6, seed=1), 0.6 + 0.37 * uniform(6, seed=2)
    x = lower + (upper - lower) * uniform(200, 6)
    result = PGD(steps=4)(model, x, model(x).argmax(1), threat=NORMS[norm](5.0, box=(lower, upper)))
    assert ((result.x_adv == lower) | (result.x_adv == upper)).any()
    assert ((result.x_adv >= lower) & (result.x_adv <= upper)).all()


def test_a_later_stage_starts_its_own_record():
    model = convnet()
    x, y = examples(model)
    found = outcomes([APGD(steps=3), APGD(steps=3, objective="dlr")], model, Linf(1e-4), x, y)
    for outcome in found.values():
        if outcome.verdict == "robust":
            # DLR of a correct example is negative; the cross-entropy that the first stage raised is not.
            assert outcome.objective < 0


class TestMaximize:
    def test_is_one_run_that_nobody_leaves(self):
        model = Counting(convnet())
        x, y = examples(model.model)
        with Query(model, batch_size=24) as query:
            x_adv = maximize(PGD(steps=4, restarts=3), query, Linf(0.05), x, y)
            assert (query.forwards, query.backwards) == (24 * 5, 24 * 4)
        assert model.calls == 5
        assert (x_adv - x).abs().amax() <= 0.05 + 1e-6
        losses = [nn.functional.cross_entropy(model.model(inputs), y) for inputs in (x, x_adv)]
        assert losses[1] > losses[0] + 0.02

    def test_attacks_clean_mistakes_too(self):
        model = convnet()
        x, y = examples(model)
        with Query(model, batch_size=24) as query:
            x_adv = maximize(PGD(steps=4), query, Linf(0.05), x, y)
        assert ((x_adv - x).flatten(1).abs().amax(1) > 0.01).all()

    def test_gives_plain_tensors_for_training(self):
        model = Answering(lambda m, x: m.logits(x))
        x, y = uniform(4, 6), torch.tensor([0, 1, 2, 0])
        with Query(model, batch_size=4) as query:
            x_adv = maximize(FGSM(), query, Linf(0.05), x, y)
        assert not x_adv.is_inference()
        nn.functional.cross_entropy(model(x_adv), y).backward()
        assert model.head.weight.grad.abs().sum() > 0
