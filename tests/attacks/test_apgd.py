from dataclasses import dataclass, field

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples, outcomes
from helpers.zoo import Wavy, convnet, random_linear, uniform
from holdfast.attacks import APGD, Problem, Rows
from holdfast.attacks.apgd import windows
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import dlr

OBJECTIVES = [{"objective": "ce"}, {"objective": "dlr"}, {"objective": "margin"}, {"objective": "dlr", "targets": 3}]
CHECKPOINTS = {
    5: [1, 2, 3, 4, 5],
    10: [2, 3, 4, 5, 6, 7, 8, 9, 10],
    20: [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
    50: [11, 21, 30, 38, 45, 51],
    100: [22, 41, 57, 70, 80, 87, 93, 99],
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: "-".join(map(str, s.values())))
def test_shared(norm, settings):
    runs = settings.get("targets", 1)
    check_attack(APGD(steps=6, **settings), norm, forwards=7 * runs, backwards=6 * runs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_never_helps_the_defender(norm):
    check_superset(APGD(steps=4), APGD(steps=4, restarts=3), norm, factor=0.7)
    for targets in (2, 4):
        few = APGD(steps=4, objective="dlr", targets=1)
        check_superset(few, APGD(steps=4, objective="dlr", targets=targets), norm, factor=0.7)


@pytest.mark.parametrize("steps", CHECKPOINTS)
def test_checkpoints(steps):
    length, shrink, least = windows(steps)
    ends = [length]
    while ends[-1] < steps:
        length = max(length - shrink, least)
        ends.append(ends[-1] + length)
    expected = CHECKPOINTS[steps]
    assert ends[: len(expected)] == expected
    assert all(end > steps for end in ends[len(expected) :])


@dataclass
class Trace:
    """What one example went through: the points looked at, their objectives, the step sizes, and the best point."""

    points: list[torch.Tensor] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    best_point: torch.Tensor | None = None


def published(model, x, y, start, eps, norm, steps, loss) -> Trace:
    """APGD on one example, from the paper's algorithm 1 and section 4.2 with the published code's roundings."""
    trace = Trace()

    # Points are held as changes of x, for those at a face of the ball to stay there exactly; and the model gets four
    # rows, because a comparison of equal objectives must not hang on how batches of other sizes are rounded.
    def look(change):
        point = (x + change).clip(0, 1).requires_grad_(True)
        value = loss(model(point.expand(4, -1)), torch.tensor([y]).expand(4))[0]
        (gradient,) = torch.autograd.grad(value, point)
        trace.points.append(point.detach())
        trace.values.append(value.item())
        return value.item(), gradient

    def onto_set(change):
        if norm == "linf":
            change = change.clip(-eps, eps)
        elif change.norm() > eps:
            change = change * (eps / change.norm())
        return change.clip(-x, 1 - x)

    eta, k = 2 * eps, max(int(0.22 * steps), 1)
    current = previous = start
    f, gradient = look(start)
    f_max, x_max, gradient_max = f, start, gradient
    trace.sizes.append(eta)
    trace.best.append(f_max)
    f_check, reduced_before, raised, since = f_max, True, 0, 0
    for i in range(steps):
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        z = onto_set(current + eta * direction)
        alpha = 1.0 if i == 0 else 0.75
        following = onto_set(current + alpha * (z - current) + (1 - alpha) * (current - previous))
        previous, current = current, following
        f_before = f
        f, gradient = look(current)
        raised += f > f_before
        since += 1
        if f > f_max:
            f_max, x_max, gradient_max = f, current, gradient
        if since == k:
            first = raised <= 0.75 * k
            second = not reduced_before and f_max <= f_check
            if first or second:
                eta /= 2
                current, gradient = x_max, gradient_max
            reduced_before, f_check, raised, since = first or second, f_max, 0, 0
            k = max(k - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        trace.sizes.append(eta)
        trace.best.append(f_max)
    trace.best_point = x + x_max
    return trace


def ours(attack, model, x, y, threat, index, batch_size=4) -> list[Trace]:
    """The same record of our attack, all rows at once, from its states."""
    traces = [Trace() for _ in x]
    with Query(model, batch_size=batch_size) as query:
        clean = query.bare_logits(x)
        problem = Problem(query, threat, Rows.fresh(threat, index, x, y, clean_logits=clean))
        state = attack.init(problem)
        while not attack.done(state).all():
            points = problem.threat.apply(problem.x, state.z)
            state = attack.step(problem, state)
            for row, trace in enumerate(traces):
                trace.points.append(points[row])
                trace.values.append(float(state.last_value[row]))
                trace.sizes.append(float(state.size[row]))
                trace.best.append(float(state.best_value[row]))
                trace.best_point = problem.threat.apply(problem.x, state.best)[row]
    return traces


def logsumexp_loss(logits, y):
    return logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize(("name", "loss"), [("ce", logsumexp_loss), ("dlr", dlr)])
@pytest.mark.parametrize("steps", [5, 10, 37, 100])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.4)])
def test_the_whole_trace_is_that_of_the_published_algorithm(norm, eps, steps, name, loss):
    model = Wavy()
    x = uniform(4, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    index = torch.tensor([5, 0, 17, 2])
    threat = NORMS[norm](eps)
    traces = ours(APGD(steps=steps, objective=name), model, x, y, threat, index)
    halvings = set()
    for row, trace in enumerate(traces):
        start = threat.sample_boundary(x, Draws(0, index))[row]
        expected = published(model, x[row], int(y[row]), start, eps, norm, steps, loss)
        assert trace.sizes == pytest.approx(expected.sizes, rel=1e-12)
        assert trace.values == pytest.approx(expected.values, rel=1e-9, abs=1e-12)
        assert trace.best == pytest.approx(expected.best, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(torch.stack(trace.points), torch.stack(expected.points), rtol=0, atol=1e-8)
        torch.testing.assert_close(trace.best_point, expected.best_point, rtol=0, atol=1e-8)
        halvings.add(tuple(trace.sizes))
    # Rows of one batch halve at different moments; else the comparison would not see a step size shared by all.
    assert len(halvings) > 1 or steps < 20


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_start_spends_the_whole_budget(norm):
    x = torch.full((3, 8), 0.5, dtype=torch.float64)
    (first, *_) = ours(APGD(steps=1), Wavy(), x, torch.tensor([0, 1, 2]), NORMS[norm](0.2), torch.arange(3))
    assert float(NORMS[norm](0.2).length(first.points[0][None] - x[:1])) == pytest.approx(0.2, rel=1e-12)


@dataclass(frozen=True)
class Recording(APGD):
    """APGD that notes every row's state after every step."""

    log: dict = field(default_factory=dict)

    def step(self, problem, state):
        rows, looked_at = problem.rows, state.z
        state = super().step(problem, state)
        names = (
            "iteration",
            "size",
            "window",
            "checkpoint",
            "rises",
            "halved",
            "best_value",
            "checked_value",
            "target",
        )
        for i, (index, run) in enumerate(zip(rows.index.tolist(), rows.run.tolist(), strict=True)):
            columns = [None if getattr(state, n) is None else getattr(state, n)[i].item() for n in names]
            self.log.setdefault((index, run), []).append((*columns, state.best[i].tolist(), looked_at[i].tolist()))
        return state


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_row_alone_is_the_row_in_a_batch(norm):
    model = Wavy()
    x = uniform(40, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = NORMS[norm]({"linf": 0.08, "l2": 0.15}[norm])
    together = Recording(steps=12, restarts=2, objective="dlr", targets=2)
    found = outcomes(together, model, threat, x, y)
    assert len({outcome.forwards for outcome in found.values()}) > 3  # rows left the batch at different times
    lengths = {len(steps) for steps in together.log.values()}
    assert 13 in lengths
    assert len(lengths) > 3
    for i in range(len(x)):
        alone = Recording(steps=12, restarts=2, objective="dlr", targets=2)
        outcomes(alone, model, threat, x, y, order=[i])
        assert alone.log == {key: steps for key, steps in together.log.items() if key[0] == i}


def test_targets_are_the_classes_next_in_the_clean_logits():
    model = convnet()
    x, y = examples(model)
    attack = Recording(steps=2, restarts=2, objective="dlr", targets=3)
    outcomes(attack, model, NORMS["linf"](1e-4), x, y)
    with torch.no_grad():
        logits = torch.cat([model(row) for row in x.split(1)])
    right = [i for i in range(len(x)) if int(logits[i].argmax()) == int(y[i])]
    assert {key[0] for key in attack.log} == set(right)
    for i in right:
        ranked = [k for k in logits[i].argsort(descending=True).tolist() if k != int(y[i])]
        runs = sorted(run for index, run in attack.log if index == i)
        assert runs == [0, 1, 2, 3, 4, 5]
        assert [int(attack.log[i, run][0][8]) for run in runs] == ranked[:3] * 2


@pytest.mark.parametrize("objective", ["ce", "dlr", "margin"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes, objective):
    model = random_linear(6, classes)
    x = uniform(10, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    attack = APGD(steps=5, objective=objective, targets=9)
    nothing = attack(model, x, y, threat=NORMS["linf"](1e-6))
    assert (nothing.forwards == 1 + 6 * (classes - 1)).all()
    assert nothing.objective.isfinite().all()
    assert attack(model, x, y, threat=NORMS["linf"](0.9)).success.all()


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_other_norms_are_refused(norm):
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=f"not under {norm}:2: use pgd"):
        APGD()(model, x, y, threat=NORMS[norm](2))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"targets": -1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="apgd: "):
        APGD(**settings)
