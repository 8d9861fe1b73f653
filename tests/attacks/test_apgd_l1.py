import math
from dataclasses import dataclass, field

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples, outcomes, predict
from helpers.zoo import Wavy, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows, maximize
from holdfast.attacks.apgd_l1 import APGDL1, phases
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import dlr
from holdfast.threats import L1


@pytest.mark.parametrize("settings", [{"restarts": 2}, {"objective": "dlr", "targets": 2}])
def test_shared(settings):
    runs = settings.get("targets", 1) * settings.get("restarts", 1)
    check_attack(APGDL1(steps=6, **settings), "l1", forwards=9 * runs, backwards=6 * runs)


def test_more_never_helps_the_defender():
    check_superset(APGDL1(steps=5), APGDL1(steps=5, restarts=3), "l1", factor=0.7)
    few = APGDL1(steps=5, objective="dlr", targets=1)
    check_superset(few, APGDL1(steps=5, objective="dlr", targets=4), "l1", factor=0.7)


def test_phases():
    assert [phases(n) for n in (3, 4, 5, 10, 50, 100)] == [
        (1, 1, 1),
        (2, 2, 0),
        (2, 2, 1),
        (3, 3, 4),
        (15, 15, 20),
        (30, 30, 40),
    ]
    assert all(sum(phases(n)) == n and min(phases(n)) >= 0 for n in range(3, 400))


def nearest(change, x, radius):
    """The projection onto ball and box by bisection for its one multiplier."""

    def shrunk(by):
        return (change.sign() * (change.abs() - by).clip(0)).clip(-x, 1 - x)

    if shrunk(0.0).abs().sum() <= radius:
        return shrunk(0.0)
    low, high = 0.0, change.abs().max().item()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if shrunk(middle).abs().sum() > radius else (low, middle)
    return shrunk(high)


@dataclass
class Trace:
    """What one example went through, look by look; `moves` are the numbers of coordinates that steps changed."""

    points: list[torch.Tensor] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    supports: list[int] = field(default_factory=list)
    returns: int = 0


def published(model, x, y, noise, eps, steps, loss) -> Trace:
    """The paper's algorithm on one example, with the constants of the authors' code."""
    trace = Trace()

    def look(change):
        point = (x + change).clip(0, 1).requires_grad_(True)
        value = loss(model(point.expand(4, -1)), torch.tensor([y]).expand(4))[0]
        (gradient,) = torch.autograd.grad(value, point)
        trace.points.append(point.detach())
        trace.values.append(value.item())
        return value.item(), gradient

    def changed(change):
        return int((x + change != x).sum())

    lengths = [math.ceil(0.3 * steps - 1e-9)] * 2
    lengths.append(steps - sum(lengths))
    start = noise
    for radius, n in zip((3 * eps, 2 * eps, eps), lengths, strict=True):
        current = x_max = nearest(start, x, radius)
        f_max, gradient = look(current)
        gradient_max = gradient
        eta, support = radius, changed(current)
        every = max(int(0.04 * n), 1)
        trace.sizes.append(eta)
        trace.supports.append(support)
        for i in range(1, n + 1):
            count = min(max(math.ceil(support / 1.5 - 1e-9), 1), len(x))
            threshold = sorted(gradient.abs().tolist(), reverse=True)[count - 1]
            direction = torch.where(gradient.abs() >= threshold, gradient.sign(), 0)
            current = nearest(current + eta * direction / direction.abs().sum(), x, radius)
            f, gradient = look(current)
            if f > f_max:
                f_max, x_max, gradient_max = f, current, gradient
            if i % every == 0:
                now = changed(x_max)
                if now / support < 0.95:
                    eta, current, gradient = radius, x_max, gradient_max
                    trace.returns += 1
                else:
                    eta = max(eta / 1.5, radius / 10)
                support = now
            trace.sizes.append(eta)
            trace.supports.append(support)
        start = x_max
    return trace


def ours(attack, model, x, y, threat, index) -> list[Trace]:
    """The same record of our attack, all rows at once, from its states."""
    traces = [Trace() for _ in x]
    with Query(model, batch_size=4) as query:
        problem = Problem(query, threat, Rows.fresh(threat, index, x, y, clean_logits=query.bare_logits(x)), roams=True)
        state = attack.init(problem)
        sizes, supports = [state.size], [state.support]
        while not attack.done(state).all():
            points, before = problem.threat.apply(problem.x, state.z), problem.rows.forwards
            state = attack.step(problem, state)
            assert (problem.rows.forwards == before + 1).all()
            sizes.append(state.size)
            supports.append(state.support)
            objective = problem.objective(attack.objective)
            with torch.no_grad():
                values = objective(model(points))
            for row, trace in enumerate(traces):
                trace.points.append(points[row])
                trace.values.append(float(values[row]))
    for row, trace in enumerate(traces):
        trace.sizes = [float(size[row]) for size in sizes]
        trace.supports = [int(support[row]) for support in supports]
    return traces


@pytest.mark.parametrize(("name", "loss"), [("ce", torch.nn.CrossEntropyLoss(reduction="none")), ("dlr", dlr)])
@pytest.mark.parametrize("steps", [3, 4, 10, 37, 150])
def test_the_whole_trace_is_that_of_the_published_algorithm(steps, name, loss):
    model = Wavy(features=24)
    with torch.no_grad():
        model.inner.weight /= 4
    x, eps = uniform(4, 24, seed=1, dtype=torch.float64), 0.4
    x[:, ::5] = 1.0  # where the box cuts; at 0 a change of 1e-17 would count in one and not in the other
    y = model(x).argmax(1)
    index = torch.tensor([5, 0, 17, 2])
    noise = Draws(0, index).normal(24)
    traces = ours(APGDL1(steps=steps, objective=name), model, x, y, L1(eps), index)
    expected = [published(model, x[i], int(y[i]), noise[i], eps, steps, loss) for i in range(4)]
    first, second, _ = phases(steps)
    turns = {first + 1, first + second + 2}  # after the last look of a phase our state is that of the next
    for got, want in zip(traces, expected, strict=True):
        assert len(got.points) == steps + 3 == len(want.points)
        torch.testing.assert_close(torch.stack(got.points), torch.stack(want.points), rtol=0, atol=1e-7)
        assert got.values == pytest.approx(want.values, rel=1e-6, abs=1e-8)
        kept = [i for i in range(steps + 3) if i not in turns]
        # The state before look i is that of the published loop after look i - 1, but for the starts of phases.
        assert [got.sizes[i + 1] for i in kept if i + 1 not in turns] == pytest.approx(
            [want.sizes[i] for i in kept if i + 1 not in turns], rel=1e-12
        )
        assert [got.supports[i + 1] for i in kept if i + 1 not in turns] == [
            want.supports[i] for i in kept if i + 1 not in turns
        ]
    if steps > 30:  # both branches of the checkpoint were taken, at different moments in different rows
        assert len({trace.returns for trace in expected}) > 1


@pytest.mark.parametrize("eps", [0.3, 1.5])
def test_on_a_linear_model_it_comes_to_the_optimum(eps):
    model = random_linear(12, 2)
    x = uniform(6, 12, seed=3, dtype=torch.float64)
    y = 1 - model(x).argmax(1)
    y = 1 - y
    attack, threat = APGDL1(steps=100, objective="margin"), L1(eps)
    weight = model[1].weight
    grad = torch.stack([weight[1 - label] - weight[label] for label in y.tolist()]).detach()
    best = threat.maximize(grad, x)
    values = model(x + best).detach()
    expected = values.gather(1, 1 - y[:, None])[:, 0] - values.gather(1, y[:, None])[:, 0]
    with Query(model) as query:
        found = maximize(attack, query, threat, x, y)
    logits = model(found).detach()
    reached = logits.gather(1, 1 - y[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    assert ((found - x).abs().sum(1) <= eps + 1e-9).all()
    assert (reached <= expected + 1e-9).all()
    clean = model(x).detach()
    start = clean.gather(1, 1 - y[:, None])[:, 0] - clean.gather(1, y[:, None])[:, 0]
    assert ((reached - start) >= 0.98 * (expected - start)).all()
    result = attack(model, x, y, threat=threat)
    assert torch.equal(result.success, expected > 0)


@dataclass(frozen=True)
class Watching(APGDL1):
    """Notes how far every look was from the clean input, and whether it fooled the model."""

    log: list = field(default_factory=list)

    def step(self, problem, state):
        z = state.z
        state = super().step(problem, state)
        columns = (problem.rows.index, z.abs().flatten(1).sum(1), problem.fooled, problem.rows.found)
        self.log.extend(zip(*(column.tolist() for column in columns), strict=True))
        return state


def test_what_is_seen_outside_the_budget_does_not_count():
    model = convnet()
    x, y = examples(model)
    eps = 0.25
    attack = Watching(steps=10)
    result = attack(model, x, y, threat=L1(eps))
    outside = {index for index, length, fooled, _ in attack.log if fooled and length > 1.001 * eps}
    found = {index for index, _, _, found in attack.log if found}
    assert len(outside - found) >= 2  # some were fooled outside the budget and never inside
    assert found  # and some inside
    assert all(length <= 1.001 * eps for _, length, fooled, found in attack.log if found and fooled)
    assert {i for i in range(len(x)) if result.success[i]} == found | {3, 11}
    for i in outside - found:
        assert not result.success[i]
        assert 0 < float(result.distance[i]) <= eps * (1 + 1e-5)
    assert torch.equal(predict(model, result.x_adv) != y, result.success)


def test_the_search_leaves_the_budget_and_comes_back():
    model = convnet()
    x, y = examples(model)
    attack = Watching(steps=10)
    attack(model, x, y, threat=L1(1e-3))
    lengths = [length for index, length, *_ in attack.log if index == 0]
    assert lengths == pytest.approx([3e-3] * 4 + [2e-3] * 4 + [1e-3] * 5, rel=1e-4)


def test_training_gets_nothing_from_outside_the_budget():
    model = convnet()
    x, y = examples(model)
    with Query(model) as query:
        found = maximize(APGDL1(steps=10), query, L1(0.4), x, y)
    assert ((found - x).abs().flatten(1).sum(1) <= 0.4 + 1e-5).all()
    assert (found != x).flatten(1).any(1).all()


def test_targets_are_the_classes_next_in_the_clean_logits():
    model = convnet()
    x, y = examples(model)
    seen = {}

    @dataclass(frozen=True)
    class Noting(APGDL1):
        def step(self, problem, state):
            for index, run, target in zip(
                problem.rows.index.tolist(), problem.rows.run.tolist(), state.target.tolist(), strict=True
            ):
                seen.setdefault((index, run), target)
            return super().step(problem, state)

    outcomes(Noting(steps=4, restarts=2, objective="dlr", targets=9), model, L1(1e-4), x, y)
    with torch.no_grad():
        logits = torch.cat([model(row) for row in x.split(1)])
    for i in (0, 1, 7):
        ranked = [k for k in logits[i].argsort(descending=True).tolist() if k != int(y[i])]
        assert [seen[i, run] for run in range(8)] == ranked * 2


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_other_norms_are_refused(norm):
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=f"works in l1 only, not under {norm}:2: use apgd"):
        APGDL1()(model, x, y, threat=NORMS[norm](2))


@pytest.mark.parametrize("settings", [{"steps": 2}, {"restarts": 0}, {"targets": -1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="apgd-l1: "):
        APGDL1(**settings)
