import math

import pytest
import torch

from helpers.attacks import EPS, NORMS, check_attack, examples
from helpers.zoo import constant, convnet, mlp, random_linear, uniform
from holdfast.attacks import Problem, Rows
from holdfast.attacks.hopskipjump import HopSkipJump
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.query import Query


def test_shared():
    check_attack(HopSkipJump(queries=50, probes=5), "l2", forwards=50, backwards=0)


@pytest.mark.slow
def test_shared_in_linf(monkeypatch):
    # Few decisions find little inside 0.01, least of all those of a bfloat16 model, whose inputs are steps of 0.004.
    monkeypatch.setitem(EPS, "linf", 0.03)
    check_attack(HopSkipJump(queries=150, probes=8), "linf", forwards=150, backwards=0)


@pytest.mark.parametrize(("norm", "most"), [("l2", 1.02), ("linf", 1.03)])
def test_the_exact_distance_on_a_linear_model(norm, most):
    """Binary f(x) = w.x + b: the distance to the boundary is |f| / dual norm of w, away from the box."""
    model = random_linear(12, 2)
    x = 0.35 + 0.3 * uniform(10, 12, seed=5, dtype=torch.float64)
    y = model(x).argmax(1)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    logits = model(x).detach()
    exact = (logits[:, 1] - logits[:, 0]).abs() / (w.norm() if norm == "l2" else w.abs().sum())
    few, many = (HopSkipJump(queries=q)(model, x, y, threat=NORMS[norm]("inf")) for q in (200, 1500))
    assert few.success.all()
    assert many.success.all()
    assert (many.distance >= exact * (1 - 1e-9)).all()
    assert (many.distance <= most * exact).all(), many.distance / exact
    assert (few.distance / exact).mean() > 1.02
    assert (few.forwards == 202).all()
    assert (many.forwards == 1502).all()


@pytest.mark.parametrize("queries", [1, 2, 9, 40])
def test_not_one_query_more(queries):
    model = convnet()
    x, y = examples(model)
    for norm in ("l2", "linf"):
        result = HopSkipJump(queries=queries, probes=3, tries=5)(model, x, y, threat=NORMS[norm]("inf"))
        assert (result.forwards <= 1 + queries + result.success.long()).all()
        started = result.success & (result.distance > 0)
        assert (result.forwards[started] == 2 + queries).all()
        assert started.any() or queries < 9


def test_without_a_start_an_example_is_robust():
    x = uniform(4, 6)
    result = HopSkipJump(tries=7)(constant(), x, torch.ones(4).long(), threat=NORMS["l2"]("inf"))
    assert not result.success.any()
    assert (result.forwards == 8).all()
    model = random_linear(6, 3)
    model[1].bias.data[2] = -100.0
    x = uniform(4, 6, dtype=torch.float64)
    result = HopSkipJump(tries=7)(model, x, model(x).argmax(1), threat=NORMS["l2"]("inf"), target=torch.full((4,), 2))
    assert not result.success.any()
    assert (result.forwards == 8).all()


def published(model, x, y, index, norm, queries, probes, gamma=1.0):
    """The perturbations that HopSkipJump looks at for one input, by the paper's algorithms 1 and 2."""
    points, d = [], x.numel()

    def look(point):
        point = point.clip(-x, 1 - x)
        points.append(point)
        return int(model((x + point).expand(4, -1))[0].argmax()) != y

    def draws():
        return Draws(0, torch.tensor([index]), 0, len(points))

    def length(v):
        return float(v.abs().max() if norm == "linf" else v.norm())

    def shrunk(v, bound):
        return v.clip(-bound, bound) if norm == "linf" else bound * v

    def search():
        start = draws().uniform(d)[0] - x
        while not look(start):
            start = draws().uniform(d)[0] - x
        t = 0
        while True:
            t += 1
            reach = length(start)
            low, high = 0.0, reach if norm == "linf" else 1.0
            theta = gamma / d**2 * reach if norm == "linf" else gamma / (d * math.sqrt(d))
            while high - low > theta:
                middle = (low + high) / 2
                if look(shrunk(start, middle)):
                    high = middle
                else:
                    low = middle
            boundary = shrunk(start, high)
            # sqrt(d) theta distance in L2, and d theta distance in L-infinity
            radius = 0.1 if t == 1 else gamma * reach / d
            directions, decisions = [], []
            for _ in range(int(probes * math.sqrt(t))):
                u = 2 * draws().uniform(d)[0] - 1 if norm == "linf" else draws().normal(d)[0]
                decisions.append(1.0 if look(boundary + radius * u / u.norm()) else -1.0)
                directions.append((points[-1] - boundary) / radius)
            decisions, directions = torch.tensor(decisions, dtype=x.dtype), torch.stack(directions)
            mean = decisions.mean()
            weights = decisions if abs(mean) == 1 else decisions - mean
            normal = (weights[:, None] * directions).mean(0)
            normal = normal.sign() if norm == "linf" else normal / normal.norm()
            size = length(boundary) / math.sqrt(t)
            while not look(boundary + size * normal):
                size /= 2
            start = points[-1]

    class EnoughError(Exception):
        pass

    class Points(list):
        def append(self, point):
            super().append(point)
            if len(self) == queries:
                raise EnoughError

    points = Points()
    with pytest.raises(EnoughError):
        search()
    return torch.stack(points)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_whole_trace_is_that_of_the_paper(norm):
    model = mlp(5, 3, seed=2).double()
    x = uniform(6, 5, seed=4, dtype=torch.float64)
    y, index = model(x).argmax(1), torch.tensor([3, 0, 11, 5, 2, 8])
    attack, points, phases = HopSkipJump(queries=250, probes=6), [], set()
    with Query(model, batch_size=8) as query:
        problem = Problem(query, NORMS[norm]("inf"), Rows.fresh(NORMS[norm]("inf"), index, x, y), roams=True)
        state = attack.init(problem)
        while not attack.done(state).all():
            points.append(state.z)
            phases.add(tuple(state.phase.tolist()))
            state = attack.step(problem, state)
    assert any(len(set(some)) > 2 for some in phases)  # rows of one batch are in different phases
    assert (state.iteration > 3).sum() == 5  # one finds no start
    points = torch.stack(points, 1)
    for row in range(6):
        expected = published(model, x[row], int(y[row]), int(index[row]), norm, 250, 6)
        torch.testing.assert_close(points[row], expected, rtol=0, atol=1e-9)


def test_a_box_without_end_is_refused():
    model = random_linear(6, 2)
    x = uniform(4, 6, dtype=torch.float64)
    with pytest.raises(SettingError, match="hopskipjump starts from random inputs of the box"):
        HopSkipJump()(model, x, model(x).argmax(1), threat=NORMS["l2"]("inf", box=None))


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_other_norms_are_refused(norm):
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=f"not under {norm}:2: use square"):
        HopSkipJump()(model, x, y, threat=NORMS[norm](2))


@pytest.mark.parametrize("settings", [{"queries": 0}, {"probes": 0}, {"gamma": 0.0}, {"tries": 0}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="hopskipjump: "):
        HopSkipJump(**settings)
