"""Better bounds of hidden neurons: against samples, and a neuron's search against all inputs of a small network."""

import time

import pytest
import torch
from torch import nn

from helpers.tiny import points_of, random_region, tiny, tolerance
from helpers.zoo import uniform
from holdfast import L2, Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.region import Region
from holdfast.certify.search import hidden
from holdfast.certify.search.hidden import searched, tightened

WITH_RELU = ["mlp relu", "convolution", "residual", "residual_convolution", "max_pool", "concatenated", "attention"]


def soon(seconds):
    return time.perf_counter() + seconds


@pytest.mark.parametrize("kind", WITH_RELU)
def test_no_input_leaves_what_a_search_found(kind):
    for seed in range(3):
        net, generator = tiny(kind, seed), torch.Generator().manual_seed(seed)
        region = random_region(net.shape, seed)
        graph = capture(net.model, region.center)
        bounds = crown(graph, region)
        slack = tolerance(graph, bounds.intervals)
        better = searched(graph, region, bounds, soon(0.3))
        points = points_of(region, 1000, generator)
        with torch.no_grad():
            values = graph.values(points.flatten(0, 1))
        for number, value in enumerate(values):
            value = value.unflatten(0, points.shape[:2])
            (low, high), (lower, upper) = better.intervals[number], bounds.intervals[number]
            note = f"{net.label}, {region.norm}, node {graph.nodes[number].name}"
            assert bool((low <= value.amin(1) + slack).all()), note
            assert bool((high >= value.amax(1) - slack).all()), note
            assert bool((low >= lower - slack).all() and (high <= upper + slack).all()), note


def wide(seed, dtype=torch.float64, widths=(8, 6)):
    """2-8-6-2 with large weights: single planes lose much on it."""
    torch.manual_seed(seed)
    first, second = widths
    layers = nn.Linear(2, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)
    model = nn.Sequential(*layers).to(dtype)
    for parameter in model.parameters():
        parameter.data *= 2.5
    x = uniform(2, 2, seed=seed, dtype=dtype) * 0.5 + 0.25
    return capture(model, x), x


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.4)], ids=str)
@pytest.mark.parametrize("seed", [2, 4, 6, 10])
def test_a_search_that_ends_knows_the_second_layer(seed, threat):
    """Its range over a grid, and the sign of every neuron that has but one; optimised slopes know less."""
    graph, x = wide(seed)
    region = Region.around(threat, x)
    (second,) = {node.inputs[0] for node in graph.nodes if str(node.operation).startswith("Kink")} - {1}
    bounds = crown(graph, region)
    slopes, found = tightened(graph, region, bounds, 5), searched(graph, region, bounds, torch.inf)
    ticks = torch.linspace(0, 1, 201, dtype=torch.float64)
    gaps = torch.zeros(2)
    for example in range(2):
        points = torch.cartesian_prod(ticks, ticks)
        points = points[threat.admits(points, x[example].expand_as(points))]
        values = graph.values(points)[second]
        least, most = values.amin(0), values.amax(0)
        low, high = (end[example] for end in found.intervals[second])
        asked = (bounds.intervals[second].lower[example] < 0) & (bounds.intervals[second].upper[example] > 0)
        assert bool((low <= least + 1e-9).all() and (high >= most - 1e-9).all()), f"seed {seed}"
        # The grid is coarse by its step times what the network can grow along it.
        allowed = 0.05 * (most - least)
        assert bool((low >= torch.minimum(least - allowed, -allowed))[asked].all()), f"seed {seed}: {low} {least}"
        assert bool((high <= torch.maximum(most + allowed, allowed))[asked].all()), f"seed {seed}: {high} {most}"
        for k, known in enumerate((slopes, found)):
            low, high = (end[example] for end in known.intervals[second])
            gaps[k] += float(((high - low) - (most - least))[asked].sum())
    assert gaps[1] < 0.25 * gaps[0], f"seed {seed}: {gaps}"


def test_single_precision_is_within_its_widening():
    """What rounding does to bounds with multipliers is less than what all bounds are widened by."""
    for seed in range(3):
        graph, x = wide(seed)
        single = Region.around(Linf(0.3), x.float())
        region = single.to(torch.float64)
        rough = graph.to(torch.float32)
        found = searched(rough, single, crown(rough, single), torch.inf)
        points = points_of(region, 20000, torch.Generator().manual_seed(seed))
        for (low, high), value in zip(found.intervals, graph.values(points.flatten(0, 1)), strict=True):
            value = value.unflatten(0, points.shape[:2])
            assert bool((low <= value.amin(1)).all() and (high >= value.amax(1)).all()), f"seed {seed}"


def test_memory_ends_a_search(monkeypatch):
    """Which would go on for very long: what was found until then counts, and more memory finds more."""
    graph, x = wide(2, widths=(60, 60))
    region = Region.around(Linf(0.3), x)
    bounds = crown(graph, region)
    widths = []
    for held in (0, 1 << 20, 1 << 22):
        monkeypatch.setattr(hidden, "_HELD", held)
        found = searched(graph, region, bounds, torch.inf)
        widths.append(sum(float((upper - lower).sum()) for lower, upper in found.intervals))
    assert widths[0] > widths[1] > widths[2]


def test_without_time_nothing_changes():
    graph, x = wide(0)
    region = Region.around(Linf(0.3), x)
    bounds = crown(graph, region)
    for late in (searched(graph, region, bounds, soon(-1)), tightened(graph, region, bounds, 5, soon(-1))):
        for before, after in zip(bounds.intervals, late.intervals, strict=True):
            torch.testing.assert_close(before, after)
