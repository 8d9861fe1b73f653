"""What an attack is told, what is counted, and what is remembered of its looks."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import predict
from helpers.zoo import Answering, Counting, constant, convnet, mlp, uniform
from holdfast.attacks import PGD, Rows
from holdfast.data import Batch
from holdfast.engine import Guide, Stage, drive
from holdfast.engine.problem import Problem
from holdfast.engine.rows import join, take
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy, margin, targeted_margin
from holdfast.threats import L2, Linf

N, CLASSES = 7, 5


@pytest.fixture
def model():
    return Counting(convnet())


def ask(model: nn.Module, threat, look, target=None, **settings):
    """What ``look`` returns of a problem with the model's own labels, and the problem."""
    x = uniform(N, 3, 6, 6)
    y = predict(model, x)
    with Query(model, batch_size=N) as query:
        clean = query.bare_logits(x)
        rows = Rows.fresh(Linf(0.1), torch.arange(N), x, y, target=target, clean_logits=clean)
        problem = Problem(query, threat, rows, **settings)
        before = query.forwards, query.backwards
        answer = look(problem)
        problem.spent = query.forwards - before[0], query.backwards - before[1]
    return answer, problem


def moves(scale: float = 0.02) -> Tensor:
    return scale * (2 * uniform(N, 3, 6, 6, seed=4) - 1)


class TestJacobian:
    def test_is_that_of_autograd(self, model):
        answer, problem = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves()))
        plain = convnet()
        for i in range(N):
            row = problem.threat.apply(problem.x, moves())[i : i + 1]
            expected = torch.autograd.functional.jacobian(plain, row)[0, :, 0]
            torch.testing.assert_close(answer.grad[i], expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(answer.logits[i], plain(row)[0].detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(answer.values, margin(answer.logits, problem.rows.y))
        assert problem.spent == (N, CLASSES * N)
        assert problem.rows.forwards.tolist() == [1] * N
        assert problem.rows.backwards.tolist() == [CLASSES] * N

    def test_its_value_is_the_adversarys(self, model):
        target = torch.arange(N) % CLASSES
        answer, _ = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves()), target=target)
        assert torch.equal(answer.values, targeted_margin(answer.logits, target))

    def test_counts_where_it_is_needed(self, model):
        needed = torch.arange(N) % 2 == 0
        _, problem = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves(), needed))
        assert problem.rows.forwards.tolist() == [1] * N
        assert problem.rows.backwards.tolist() == [CLASSES, 0] * 3 + [CLASSES]

    def test_is_left_out_where_nobody_needs_it(self, model):
        none = torch.zeros(N, dtype=torch.bool)
        answer, problem = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves(), none))
        whole, _ = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves()))
        assert answer.grad.shape == whole.grad.shape
        assert not answer.grad.any()
        assert torch.equal(answer.logits, whole.logits)
        assert problem.spent == (N, 0)
        assert not problem.rows.backwards.any()

    def test_of_samples_is_their_mean(self):
        model = Counting(Shaken())
        answer, problem = ask(model, Linf(0.1), lambda problem: problem.jacobian(moves(0.01)), samples=4)
        singles = [ask(Shaken(turn), Linf(0.1), lambda problem: problem.jacobian(moves(0.01)))[0] for turn in range(4)]
        for name in ("logits", "values", "grad"):
            expected = torch.stack([getattr(single, name) for single in singles]).mean(0)
            torch.testing.assert_close(getattr(answer, name), expected)
        assert problem.rows.forwards.tolist() == [4] * N
        assert problem.rows.backwards.tolist() == [4 * CLASSES] * N
        assert problem.spent == (4 * N, 4 * CLASSES * N)


class Shaken(nn.Module):
    """A model whose weights differ from call to call, by turns of four."""

    def __init__(self, turn: int | None = None) -> None:
        super().__init__()
        self.net = convnet()
        self.turn = turn
        self.calls = -1

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.requires_grad
        turn = self.turn if self.turn is not None else max(self.calls, 0) % 4
        return self.net(x) * (1 + turn) + turn


class Line(nn.Module):
    """Two logits of one feature; no number from ``wild`` on."""

    def __init__(self, wild: float = math.inf) -> None:
        super().__init__()
        self.wild = wild

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1).where(x < self.wild, torch.nan)


def looks(threat, *choices: float, objective=margin, model=None, clean: float = 0.25, **settings) -> Problem:
    """A problem of one row of one feature after some looks; the model changes its mind at one half."""
    y = torch.zeros(1, dtype=torch.int64)
    with Query(model or Line(), batch_size=1) as query:
        rows = Rows.fresh(
            Linf(0.1), torch.tensor([0]), torch.full((1, 1), clean), y, clean_logits=torch.tensor([[0.25, -0.25]])
        )
        problem = Problem(query, threat, rows, **settings)
        for z in choices:
            problem.evaluate(torch.full((1, 1), z), lambda logits: objective(logits, y))
    return problem


def seen(problem: Problem) -> tuple[bool, float, float, float]:
    rows = problem.rows
    return rows.found.item(), rows.best.item(), rows.value.item(), rows.margin.item()


class TestRecord:
    def test_the_best_before_and_after_success(self):
        assert seen(looks(Linf(0.5), 0.125, 0.1875, 0.0)) == (False, 0.1875, -0.125, -0.125)
        assert seen(looks(Linf(0.5), 0.125, 0.375, 0.0, 0.3125)) == (True, 0.375, 0.25, 0.25)

    def test_of_an_attack_that_roams_only_what_is_admissible(self):
        roaming = {"roams": True}
        assert seen(looks(Linf(0.25), 0.5, **roaming)) == (False, 0.0, -math.inf, -math.inf)
        assert seen(looks(Linf(0.25), 0.125, 0.5, 0.0, **roaming)) == (False, 0.125, -0.25, -0.25)
        assert seen(looks(Linf(0.375), 0.125, 0.5, 0.3125, 0.375, **roaming)) == (True, 0.375, 0.25, 0.25)

    def test_without_a_budget_the_nearest(self):
        found = looks(Linf(math.inf), 0.125, 0.5, 0.3125, 0.75, 0.1875, roams=True)
        assert found.nearest.item()
        # The highest margin is that of another choice than the nearest.
        assert seen(found) == (True, 0.3125, -0.3125, 1.0)

    def test_margins_whatever_is_raised(self):
        # An objective that falls as the margin rises keeps other choices, and the margin is that of them all.
        problem = looks(Linf(0.5), 0.125, 0.1875, 0.0, objective=lambda logits, y: -cross_entropy(logits, y))
        assert seen(problem)[1] == 0.0
        assert seen(problem)[3] == -0.125

    @pytest.mark.parametrize("roams", [False, True])
    def test_logits_that_are_no_numbers_do_not_poison_the_margin(self, roams):
        choices = [0.125, 0.6, 0.1875]
        for number in range(4):
            mixed = [*choices[:number], 0.6, *choices[number:]]
            problem = looks(Linf(0.7), *mixed, model=Line(wild=0.75), roams=roams)
            assert problem.rows.found
            assert seen(problem)[3] == -0.125

    def test_margins_towards_a_target(self):
        target = torch.tensor([1] * N)
        _, problem = ask(convnet(), Linf(0.1), lambda p: p.evaluate(moves(), p.objective("ce")), target=target)
        with Query(convnet(), batch_size=N) as query:
            logits = query.bare_logits(problem.threat.apply(problem.x, moves()))
        torch.testing.assert_close(problem.rows.margin, targeted_margin(logits, target))
        torch.testing.assert_close(problem.rows.clean_margin, targeted_margin(problem.rows.clean_logits, target))

    def test_of_rows_apart(self, model):
        """Each row keeps its own record of two looks."""
        first, second = moves(0.2), moves(0.2).flip(0)

        def both(problem):
            return [problem.evaluate(z, problem.objective("ce")) for z in (first, second)]

        (one, two), problem = ask(model, L2(10.0), both)
        alone = [ask(model, L2(10.0), lambda p, z=z: p.decide(z))[0] for z in (first, second)]
        hits = torch.stack(alone)
        later = (two > one) & (hits[0] == hits[1]) | (hits[1] & ~hits[0])
        assert torch.equal(problem.rows.best, torch.where(later[:, None, None, None], second, first))
        assert torch.equal(problem.rows.value, torch.where(later, two, one))
        assert torch.equal(problem.rows.found, hits.any(0))
        assert later.any()
        assert not later.all()


class TestFooled:
    def test_is_about_the_last_look_wherever_it_was(self):
        for roams in (False, True):
            assert looks(Linf(0.125), 0.125, 0.5, roams=roams).fooled.item()
            assert not looks(Linf(0.125), 0.5, 0.125, roams=roams).fooled.item()
        assert not looks(Linf(0.125)).fooled.item()

    def test_decide_tells_the_same_for_one_forward(self, model):
        z = moves(0.2)
        told, problem = ask(model, Linf(0.5), lambda problem: problem.decide(z))
        assert torch.equal(told, predict(model.model, problem.threat.apply(problem.x, z)) != problem.rows.y)
        assert told.any()
        assert not told.all()
        assert torch.equal(problem.fooled, told)
        assert problem.spent == (N, 0)
        assert torch.equal(problem.rows.found, told)

    def test_towards_a_target_it_takes_that_class(self, model):
        z = moves(0.2)
        target = torch.full((N,), 2)
        told, problem = ask(model, Linf(0.5), lambda problem: problem.decide(z), target=target)
        assert torch.equal(told, predict(model.model, problem.threat.apply(problem.x, z)) == 2)

    def test_of_samples_is_what_most_of_them_say(self):
        """Of five passes, as many are wrong as the row's number says."""

        def votes(model, x):
            turn = (model.calls - 2) % 5
            wrong = torch.arange(len(x)) > turn
            return torch.stack([~wrong, wrong, wrong & False], 1).float() * 2

        x, y = uniform(6, 6), torch.zeros(6, dtype=torch.int64)
        with Query(Answering(votes), batch_size=6) as query:
            problem = Problem(query, Linf(0.1), Rows.fresh(Linf(0.1), torch.arange(6), x, y), samples=5)
            query.model.calls = 1
            told = problem.decide(torch.zeros_like(x))
        assert told.tolist() == [False, False, False, True, True, True]
        # The margins are those of the mean.
        torch.testing.assert_close(problem.rows.margin, 2 * (2 * torch.arange(6.0) / 5 - 1))


def test_a_flat_model_has_a_jacobian_of_zero():
    x, y = uniform(4, 6), torch.ones(4, dtype=torch.int64)
    with Query(constant(), batch_size=4) as query:
        rows = Rows.fresh(Linf(0.1), torch.arange(4), x, y, clean_logits=query.bare_logits(x))
        answer = Problem(query, Linf(0.1), rows).jacobian(torch.zeros_like(x))
    assert answer.grad.shape == (4, 3, 6)
    assert not answer.grad.any()


class TestRows:
    """Dataclasses of tensors, and of such dataclasses."""

    @dataclass(frozen=True)
    class Inner:
        a: Tensor
        b: Tensor | None

    @dataclass(frozen=True)
    class Outer:
        inner: object
        c: Tensor
        other: object = None

    def outer(self, start: int, count: int):
        a = torch.arange(start, start + count)
        return self.Outer(self.Inner(a, None), torch.stack([a, -a], 1))

    @pytest.mark.parametrize("which", [torch.tensor([True, False, True, True]), torch.tensor([0, 2, 3])])
    def test_take(self, which):
        some = take(self.outer(10, 4), which)
        assert some.inner.a.tolist() == [10, 12, 13]
        assert some.c.tolist() == [[10, -10], [12, -12], [13, -13]]
        assert some.inner.b is None
        assert some.other is None

    def test_join(self):
        both = join(self.outer(10, 2), self.outer(20, 1))
        assert both.inner.a.tolist() == [10, 11, 20]
        assert both.c[:, 1].tolist() == [-10, -11, -20]
        assert both.inner.b is None
        assert join(both, replace(both, inner=None)).inner is None


class TestGuide:
    """A stand-in is followed; the model alone says what fools it."""

    def test_gives_values_and_gradients_and_no_verdict(self):
        model, other = mlp(seed=0), mlp(seed=1)
        x, y = uniform(4, 6), torch.zeros(4, dtype=torch.int64)
        z = 0.01 * torch.ones_like(x)
        with Query(model, batch_size=4) as query, Query(other, batch_size=4) as stand_in:
            rows = Rows.fresh(Linf(0.1), torch.arange(4), x, y, clean_logits=query.bare_logits(x))
            stand_in.bare_logits(x)
            problem = Problem(query, Linf(0.1), rows, guide=Guide(stand_in, passes=3))
            answer = problem.gradient(z, problem.objective("ce"))
            expected = stand_in.gradient(problem.threat.apply(x, z), problem.objective("ce"))
            assert torch.equal(answer.grad, expected.grad)
            assert torch.equal(answer.values, expected.values)
            assert torch.equal(answer.logits, query.logits(problem.threat.apply(x, z)))
            assert torch.equal(problem.fooled, answer.logits.argmax(1) != y)
            assert (problem.rows.forwards.tolist(), problem.rows.backwards.tolist()) == ([4] * 4, [3] * 4)
            problem.evaluate(z, problem.objective("ce"))
            assert (problem.rows.forwards.tolist(), problem.rows.backwards.tolist()) == ([5] * 4, [3] * 4)
            jacobian = problem.jacobian(z)
            assert torch.equal(jacobian.grad, stand_in.jacobian(problem.threat.apply(x, z))[1])
            assert torch.equal(jacobian.logits, answer.logits)

    def test_breaks_what_a_false_gradient_hides(self):
        class Flipped(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                return x.clone()

            @staticmethod
            def backward(context, grad):
                return -grad

        net = nn.Sequential(nn.Linear(6, 3))
        hidden = Answering(lambda model, x: net(Flipped.apply(x)))
        x = uniform(20, 6)
        y = predict(net, x)
        batch = Batch(torch.arange(20), x, y)
        with Query(hidden, batch_size=20) as query, Query(net, batch_size=20) as truth:

            def broken(asked: Query, stage: Stage) -> int:
                outcomes = (o for some in drive(asked, Linf(0.2), [stage], [batch]) for o in some)
                return sum(outcome.verdict == "broken" for outcome in outcomes)

            assert broken(query, Stage("pgd", PGD())) < broken(truth, Stage("pgd", PGD()))
            assert broken(query, Stage("pgd", PGD(), guide=Guide(truth))) == broken(truth, Stage("pgd", PGD()))
