"""Networks written in functions of one kink, and complete verification of everything that is piecewise linear."""

from random import Random

import pytest
import torch
from torch import nn

from helpers.tiny import Fn, random_region
from helpers.zoo import uniform
from holdfast import L1, L2, Linf, certify
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.region import Region
from holdfast.certify.distance import exact_distance
from holdfast.certify.milp.solver import milp_margin
from holdfast.certify.search.domains import Problem
from holdfast.certify.search.kinks import in_kinks, written


def prelu(*slopes):
    layer = nn.PReLU(len(slopes))
    layer.weight.data = torch.tensor(slopes)
    return layer


def pooled(pool, *shape):
    return nn.Sequential(nn.Unflatten(1, shape), pool, nn.Flatten(), nn.LazyLinear(6))


# Each maps six values to six.
OPERATIONS = {
    "relu": lambda: nn.ReLU(),
    "leaky": lambda: nn.LeakyReLU(0.25),
    "leaky falling": lambda: nn.LeakyReLU(-0.4),
    "leaky steep": lambda: nn.LeakyReLU(1.8),
    "prelu": lambda: prelu(-0.3, 0.1, 1.0, 1.4, 0.0, 2.0),
    "abs": lambda: Fn(torch.abs),
    "clamp": lambda: Fn(lambda x: x.clamp(-0.3, 0.4)),
    "clamp below": lambda: Fn(lambda x: x.clamp(min=-0.2)),
    "clamp above": lambda: Fn(lambda x: x.clamp(max=0.3)),
    "clamp to a point": lambda: Fn(lambda x: x + x.clamp(0.5, 0.1)),
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "relu6": lambda: Fn(lambda x: nn.functional.relu6(x + 5.9)),
    "maximum": lambda: Fn(lambda x: torch.maximum(x, x.flip(1) * 0.5)),
    "minimum": lambda: Fn(lambda x: torch.minimum(x, 0.3 - x)),
    "max pool": lambda: pooled(nn.MaxPool2d(2, 1, 1), 1, 2, 3),
    "max pool dilated": lambda: pooled(nn.MaxPool2d(2, 1, dilation=(1, 2), ceil_mode=True), 1, 2, 3),
    "max pool 1d": lambda: pooled(nn.MaxPool1d(3, 2, 1), 1, 6),
}
operations = pytest.mark.parametrize("name", OPERATIONS)


def network(seed, *names, inputs=2, dtype=torch.float64):
    """With weights that put most neurons on both pieces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, 6)]
        for name in names:
            layers += [OPERATIONS[name](), nn.Linear(6, 6)]
        model = nn.Sequential(*layers[:-1], nn.Linear(6, 3))
        model(torch.zeros(2, inputs))
        for parameter in model.parameters():
            parameter.data *= 1.8 if parameter.dim() > 1 else 1
    return model.to(dtype).eval()


def grid(x, eps, count):
    ticks = [torch.linspace(float(v - eps), float(v + eps), count, dtype=x.dtype) for v in x]
    return torch.cartesian_prod(*ticks).view(-1, len(x))


def least_margin(model, x, y, eps):
    with torch.no_grad():
        logits = model(grid(x, eps, 4001 if len(x) == 1 else 121))
    return float((logits[:, y] - logits.index_fill(1, torch.tensor([y]), -torch.inf).amax(1)).min())


def robust_radius(model, x, y, margin=0.01):
    """How far, on a grid, the margin stays above a small one."""
    low, high = 0.0, 1.5
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if least_margin(model, x, y, middle) > margin else (low, middle)
    return low


@operations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_network_stays_the_same(name, dtype):
    for seed in range(3):
        model = network(seed, name, name, dtype=dtype)
        region = random_region((2,), seed, dtype)
        graph = capture(model, region.center)
        before = crown(graph, region)
        other, places = in_kinks(graph, before.intervals)
        changed = [i for i in range(len(places)) if other.nodes[places[i]].operation is not graph.nodes[i].operation]
        assert set(changed) == written(graph, before.intervals)
        assert not any(isinstance(other.nodes[places[i]].operation, MaxPool | Elementwise) for i in changed)
        points = region.lower + torch.rand(50, *region.lower.shape, dtype=dtype) * (region.upper - region.lower)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        for number, value in enumerate(graph.values(points.flatten(0, 1))):
            again = other.values(points.flatten(0, 1))[places[number]]
            torch.testing.assert_close(again, value, rtol=tolerance, atol=tolerance)
        wide = in_kinks(graph.to(torch.float64), [Interval(*(end.double() for end in i)) for i in before.intervals])[0]
        found = other.to(torch.float64)(points.double().flatten(0, 1))
        torch.testing.assert_close(found, wide(points.double().flatten(0, 1)), rtol=1e-12, atol=1e-12)
        known = dict(zip(places, before.intervals, strict=True))
        for number, interval in enumerate(before.intervals):
            low, high = interval_bounds(other, region, known)[places[number]]
            assert bool((low >= interval.lower).all() and (high <= interval.upper).all())


def test_ends_that_are_not_reached_and_inputs_that_cannot_win_are_left_out():
    model = Fn(lambda x: nn.functional.max_pool1d(x.clamp(-9, 0.5).unsqueeze(1), 2).flatten(1))
    region = Region.box(torch.tensor([[0.0, 2.0, 0.0, 0.1]]), torch.tensor([[1.0, 3.0, 0.4, 0.3]]))
    graph = capture(model, region.center)
    other, _ = in_kinks(graph, interval_bounds(graph, region))
    kinks = [node.operation for node in other.nodes if isinstance(node.operation, Kink)]
    # The upper end of the clamp, and of two pairs the one in which either may be the larger.
    assert [(kink.below, kink.above) for kink in kinks] == [(1, 0), (0, 1)]
    small = Region.box(torch.tensor([[0.0, 0.3, 0.0, 0.3]]), torch.tensor([[0.1, 0.4, 0.2, 0.4]]))
    same, places = in_kinks(graph, interval_bounds(graph, small))
    assert places == list(range(len(graph.nodes)))
    assert [node.operation for node in same.nodes] == [node.operation for node in graph.nodes]
    problem = Problem(graph, small, crown(graph, small), graph.output)
    assert problem.in_kinks() is problem
    assert not problem.splits


@operations
def test_complete_verification_decides(name):
    """Just inside of where a class changes, and beyond it."""
    for seed in range(3):
        inputs = 1 + seed % 2
        model = network(seed, name, "relu" if seed == 2 else name, inputs=inputs, dtype=torch.float32)
        x = uniform(1, inputs, seed=seed)
        y = model(x).argmax(1)
        radius = robust_radius(model, x[0], int(y))
        for eps in (0.97 * radius, 1.3 * radius + 0.02):
            if eps < 1e-3:
                continue
            note, least = f"seed {seed}, eps {eps}", least_margin(model, x[0], int(y), eps)
            (found,) = certify(model, x, y, Linf(eps, None), method="complete", seconds=30)
            assert found.verdict == ("certified" if least > 0 else "broken") or abs(least) < 1e-3, f"{note}: {found}"
            if found.verdict == "certified":
                assert least > 0, note
                assert found.bound <= least + 1e-5, note


@operations
def test_mixed_integer_programs_agree(name):
    model = network(1, name, name)
    x = uniform(1, 2, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    for eps in (0.1, 0.4):
        graph, region = capture(model, x), Region.around(Linf(eps, None), x)
        found = milp_margin(graph, region, crown(graph, region).intervals, int(y), seconds=60)
        least = least_margin(model, x[0], int(y), eps)
        assert found.status == "optimal"
        assert found.lower <= least + 1e-6
        assert found.upper >= least - 0.05
        point = torch.from_numpy(found.variables[:2].copy())[None]
        others = model(point)[0].index_fill(0, y, -torch.inf).amax()
        assert float(model(point)[0, y] - others) == pytest.approx(found.upper, abs=1e-5)


@pytest.mark.parametrize("name", ["prelu", "clamp", "hardtanh", "hardsigmoid", "max pool", "leaky steep"])
@pytest.mark.parametrize("threat", [Linf(1.0), L1(2.0)], ids=str)
def test_exact_distances(name, threat):
    model = network(3, name, dtype=torch.float32)
    x = uniform(3, 2, seed=3)
    y = model(x).argmax(1)
    for place, found in enumerate(exact_distance(model, x, y, threat)):
        points = torch.cartesian_prod(*[torch.linspace(0, 1, 401)] * 2)
        wrong = points[model(points).argmax(1) != y[place]]
        if not len(wrong):
            assert found.lower == found.upper == torch.inf or found.x_adv is None
            continue
        change = (wrong - x[place]).abs()
        nearest = float((change.amax(1) if threat.norm == "linf" else change.sum(1)).min())
        assert found.status == "exact"
        assert found.lower <= nearest + 1e-6
        assert found.upper >= nearest - 0.01


@pytest.mark.parametrize("threat", [L1(0.3, None), L2(0.2, None)], ids=str)
def test_other_sets(threat):
    """Points of an L2 ball are decided without linear programs."""
    model = network(5, "clamp", "leaky")
    x = uniform(4, 2, seed=5, dtype=torch.float64)
    y = model(x).argmax(1)
    for place, found in enumerate(certify(model, x, y, threat, method="complete", seconds=20)):
        points = grid(x[place], float(threat.eps), 201)
        points = points[threat.admits(points, x[place].expand_as(points))]
        changes = bool((model(points).argmax(1) != y[place]).any())
        assert found.verdict == ("broken" if changes else "certified"), place


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_mixtures_are_decided(seed):
    r = Random(seed)
    names = [r.choice(sorted(OPERATIONS)) for _ in range(r.choice([1, 2, 2]))]
    inputs, dtype = r.choice([1, 2]), r.choice([torch.float32, torch.float64])
    model = network(seed, *names, inputs=inputs, dtype=dtype)
    x = uniform(1, inputs, seed=seed, dtype=dtype)
    y = model(x).argmax(1)
    for eps in (0.95 * robust_radius(model, x[0], int(y)), 0.3):
        if eps < 1e-3:
            continue
        least = least_margin(model, x[0], int(y), eps)
        (found,) = certify(model, x, y, Linf(eps, None), method="complete", seconds=30)
        note = f"{names}, eps {eps}, least {least}: {found}"
        assert found.verdict == ("certified" if least > 0 else "broken") or abs(least) < 1e-3, note
        assert found.verdict != "certified" or found.bound <= least + 1e-5, note
