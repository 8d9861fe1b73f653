"""Interval bounds against corners, and what meets them."""

import itertools

import pytest
import torch
from torch import nn

from helpers.tiny import KINDS, points_of, random_region, tiny
from helpers.zoo import mlp, uniform
from holdfast import Linf, certify
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import interval_bounds, meet
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL


def test_a_layer_is_bounded_by_its_corners():
    """Of a linear layer and a monotone function, every end is attained at a corner."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()).double()
    x = uniform(2, 3, dtype=torch.float64)
    region = Region.around(Linf(0.2), x)
    corners = torch.stack(
        [
            torch.stack([pair[i] for pair, i in zip(zip(*ends, strict=True), choice, strict=True)])
            for ends in zip(region.lower, region.upper, strict=True)
            for choice in itertools.product([0, 1], repeat=3)
        ]
    )
    values = model(corners).detach().view(2, 8, 4)
    low, high = interval_bounds(capture(model, x), region)[-1]
    torch.testing.assert_close(low, values.amin(1))
    torch.testing.assert_close(high, values.amax(1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_larger_sets_have_larger_intervals(kind):
    net = tiny(kind, 11)
    x = uniform(2, *net.shape, dtype=torch.float64)
    graph = capture(net.model, x)
    small, large = (interval_bounds(graph, Region.around(Linf(eps), x)) for eps in (0.05, 0.1))
    for a, b in zip(small, large, strict=True):
        assert bool((a.lower >= b.lower - 1e-9).all()), net.label
        assert bool((a.upper <= b.upper + 1e-9).all()), net.label


def test_a_small_shift_survives_a_large_range():
    """The variance of a wide range plus a small number stays positive, and its root has an inverse."""
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4, eps=1e-3), nn.Linear(4, 3)).double()
    region = Region.box(torch.full((1, 2), -1e20).double(), torch.full((1, 2), 1e20).double())
    for low, high in interval_bounds(capture(model, region.center).within(REAL), region):
        assert bool(low.isfinite().all())
        assert bool(high.isfinite().all())


def test_softmax_stays_between_0_and_1():
    model = nn.Sequential(nn.Linear(2, 4), nn.Softmax(1), nn.Linear(4, 3)).double()
    x = uniform(1, 2, dtype=torch.float64)
    graph = capture(model, x)
    low, high = interval_bounds(graph, Region.around(Linf(1e4, None), x))[-2]
    assert float(low.min()) >= -1e-12
    assert float(high.max()) <= 1 + 1e-12


def test_what_is_known_is_met():
    net = tiny("mlp relu", 0)
    region = random_region(net.shape, 0)
    graph = capture(net.model, region.center)
    plain = interval_bounds(graph, region)
    value = graph.values(region.center)[1]
    found = interval_bounds(graph, region, {1: Interval(value, value)})
    assert bool((found[1].lower == value).all())
    assert bool((found[-1].lower >= plain[-1].lower - 1e-12).all())
    points = points_of(region, 10, torch.Generator().manual_seed(0))
    assert bool(
        (plain[-1].lower.unsqueeze(1) <= graph(points.flatten(0, 1)).unflatten(0, points.shape[:2]) + 1e-9).all()
    )


def test_meeting_ignores_what_is_no_number():
    nan = torch.tensor([torch.nan, 0.0])
    found = meet(Interval(nan, nan + 1), Interval(torch.tensor([1.0, -1.0]), torch.tensor([2.0, torch.nan])))
    assert found.lower.tolist() == [1.0, 0.0]
    assert found.upper.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_bounds_that_overflow_prove_nothing(method):
    net = mlp()
    with torch.no_grad():
        net[1].weight *= 1e20
        net[3].weight *= 1e17
    x = uniform(3, 6)
    y = net(x).argmax(1)
    found = certify(net, x, y, Linf(1e20, None), method=method)
    assert {(one.verdict, one.note) for one in found} == {("undecided", "no finite bound")}
