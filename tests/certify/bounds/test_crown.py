"""Backward bounds against samples, closed forms, enumeration, and one another."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny import (
    CLASSES,
    KINDS,
    check_bounds,
    check_exact_at_a_point,
    points_of,
    random_region,
    row_bounds,
    tiny,
)  # fmt: skip
from helpers.zoo import convnet, uniform
from holdfast import L0, L1, L2, Linf
from holdfast.certify.bounds import crown as module
from holdfast.certify.bounds.capture import capture, tensors, trace
from holdfast.certify.bounds.crown import crown, interval_planes, lower_bounds, refined
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rows import Rows


@pytest.mark.parametrize("kind", list(KINDS))
def test_bounds_of_random_networks_hold(kind):
    for seed in range(3):
        net = tiny(kind, seed)
        check_bounds(net, random_region(net.shape, seed), seed, samples=250)


@pytest.mark.parametrize("kind", list(KINDS))
def test_bounds_in_single_precision_hold(kind):
    net = tiny(kind, 100, torch.float32)
    check_bounds(net, random_region(net.shape, 100, torch.float32), 100, samples=250)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_bounds_of_many_random_networks_hold(kind):
    for seed in range(1000, 1009):
        dtype = torch.float64 if seed % 3 else torch.float32
        net = tiny(kind, seed, dtype)
        check_bounds(net, random_region(net.shape, seed, dtype), seed, samples=200)


@pytest.mark.parametrize("kind", list(KINDS))
def test_bounds_of_a_point_are_its_values(kind):
    net = tiny(kind, 7)
    check_exact_at_a_point(net, uniform(2, *net.shape, seed=7, dtype=torch.float64))


def output_bounds(graph, region):
    rows = torch.eye(CLASSES, dtype=region.lower.dtype).expand(len(region), -1, -1)
    return row_bounds(graph, crown(graph, region), region, rows)


@pytest.mark.parametrize("kind", ["mlp relu", "residual_convolution", "max_pool", "concatenated_channels", "attention"])
def test_bounds_do_not_depend_on_the_batch_nor_on_chunks(kind, monkeypatch):
    for seed in range(3):
        net = tiny(kind, seed)
        region = random_region(net.shape, seed, count=4)
        graph = capture(net.model, region.center)
        together = output_bounds(graph, region)
        apart = torch.cat([output_bounds(graph, region.take(torch.tensor([i]))) for i in range(4)])
        torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-9, msg=net.label)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CACHE", {"cpu": 1})
            patch.setattr(module, "_TILE_ROWS", 1)
            torch.testing.assert_close(output_bounds(graph, region), together, rtol=1e-9, atol=1e-9, msg=net.label)


@pytest.mark.parametrize("kind", ["mlp relu", "residual_convolution", "max_pool"])
def test_coefficients_fit_into_the_memory_allowed(kind):
    net = tiny(kind, 0)
    region = random_region(net.shape, 0, count=4)
    graph = capture(net.model, region.center)
    rows = Rows.whole(torch.eye(CLASSES, dtype=torch.float64).repeat(4, 1))
    largest, held = 8 * max(math.prod(node.shape) for node in graph.nodes), []

    def bounds(memory):
        bounds = crown(graph, region, memory=memory)
        return lower_bounds(graph, graph.output, rows, bounds.planes, bounds.errors, region)

    honest = module.lower_bounds

    def counting(*arguments):
        return honest(*arguments, watch=lambda number, rows: held.append(8 * rows.values.numel()))

    whole = bounds(1 << 29)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "lower_bounds", counting)
        for memory in (largest, 3 * largest):
            held.clear()
            torch.testing.assert_close(bounds(memory), whole, rtol=1e-9, atol=1e-9, msg=net.label)
            assert largest / 16 < max(held) <= memory


@pytest.mark.parametrize(
    ("threat", "dual"),
    [
        (Linf(0.3, None), lambda w: 0.3 * w.abs().sum(1)),
        (L2(0.3, None), lambda w: 0.3 * w.square().sum(1).sqrt()),
        (L1(0.3, None), lambda w: 0.3 * w.abs().amax(1)),
    ],
    ids=["linf", "l2", "l1"],
)
def test_bounds_of_a_linear_network_are_the_dual_norm(threat, dual):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 3)).double()
    x = uniform(5, 2, 3, dtype=torch.float64)
    weight = (model[2].weight @ model[1].weight).detach()
    graph = capture(model, x)
    found = output_bounds(graph, Region.around(threat, x))
    torch.testing.assert_close(found, model(x).detach() - dual(weight))


def test_bounds_of_a_linear_network_in_the_box():
    model = nn.Sequential(nn.Linear(4, 3)).double()
    x = uniform(3, 4, dtype=torch.float64)
    weight = model[0].weight.detach()
    gain = torch.maximum(weight * (0 - x.unsqueeze(1)), weight * (1 - x.unsqueeze(1)))
    lowest = torch.minimum(weight * (0 - x.unsqueeze(1)), weight * (1 - x.unsqueeze(1)))
    assert bool((gain >= 0).all())
    found = output_bounds(capture(model, x), Region.around(L0(2), x))
    torch.testing.assert_close(found, model(x).detach() + lowest.topk(2, largest=False).values.sum(2))


def test_one_layer_of_relus_by_hand():
    """``relu(x) - relu(y)`` for ``x`` in [-1, 3] and ``y`` in [-2, 2].

    The lower plane of the first is ``x``, as 3 > 1, so the least of it is -1; the second is at most ``(y + 2) / 2``,
    which reaches 2.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    model[0].weight.data, model[0].bias.data = torch.eye(2), torch.zeros(2)
    model[2].weight.data, model[2].bias.data = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [0.0, 1.0]]), torch.zeros(3)
    region = Region.box(torch.tensor([[-1.0, -2.0]]), torch.tensor([[3.0, 2.0]]))
    # -relu(x) is at least -3/4 (x + 1); relu(y), with -l = u, has the plane 0.
    found = output_bounds(capture(model, region.center), region)
    torch.testing.assert_close(found, torch.tensor([[-3.0, -3.0, 0.0]]), rtol=1e-5, atol=1e-5)


def exact_minimum(model, region, row):
    """``min <row, network>`` over a box of one input dimension, at the ends and at every kink."""
    first = model[0]
    low, high = float(region.lower), float(region.upper)
    kinks = [-b / w for w, b in zip(first.weight[:, 0].tolist(), first.bias.tolist(), strict=True) if w]
    points = torch.tensor([low, high, *(k for k in kinks if low < k < high)], dtype=torch.float64).unsqueeze(1)
    return float((model(points) @ row).min())


@pytest.mark.parametrize("seed", range(20))
def test_the_exact_minimum_of_one_input_bounds_the_bounds(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    region = Region.box(*(torch.full((1, 1), end).double() for end in (-1.0, 0.8)))
    graph = capture(model, region.center)
    row = torch.randn(3).double()
    truth = exact_minimum(model, region, row)
    bound = float(row_bounds(graph, crown(graph, region), region, row.view(1, 1, 3)))
    assert bound <= truth + 1e-12, f"seed {seed}"
    # Where all neurons are stable there is nothing to lose.
    small = Region.box(region.center, region.center + 1e-9)
    exact = float(row_bounds(graph, crown(graph, small), small, row.view(1, 1, 3)))
    assert exact == pytest.approx(exact_minimum(model, small, row), abs=1e-12)


def test_neurons_of_a_deep_network_are_bounded_better_than_by_intervals():
    model = convnet().double()
    x = uniform(2, 3, 6, 6, dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(0.1), x)
    plain, full = interval_bounds(graph, region), crown(graph, region).intervals
    last = graph.nodes[-2].inputs[0]
    assert float((full[last].upper - full[last].lower).sum()) < 0.9 * float(
        plain[last].upper.sub(plain[last].lower).sum()
    )
    rows = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    by_planes = row_bounds(graph, interval_planes(graph, region), region, rows)
    assert float((row_bounds(graph, crown(graph, region), region, rows) - by_planes).mean()) > 0.03


def test_nothing_is_gained_by_bounding_the_value_of_a_relu():
    """Bounds of its input say as much, where its readers ask for them."""
    for kind in ("residual_convolution", "max_pool"):
        net = tiny(kind, 1)
        region = random_region(net.shape, 2, count=3)
        graph = capture(net.model, region.center)
        bounds = crown(graph, region)
        for number, node in enumerate(graph.nodes):
            if isinstance(node.operation, Kink):
                found = refined(graph, number, lambda interval: torch.ones_like(interval.lower).bool(), bounds, region)
                kept, asked = bounds.intervals[number], bounds.intervals[node.inputs[0]]
                sought = (asked.lower < 0) & (asked.upper > 0)
                torch.testing.assert_close(found.lower[sought], kept.lower[sought], rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(found.upper[sought], kept.upper[sought], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", ["one", "none of the first", "all"])
def test_any_entries_can_be_refined(mask):
    net = tiny("residual_convolution", 3)
    region = random_region(net.shape, 1, count=3)
    graph = capture(net.model, region.center)
    bounds = crown(graph, region)
    number = next(i for i, node in enumerate(graph.nodes) if i > 2 and len(node.shape) == 3)
    loose = interval_bounds(graph, region)[number]
    chosen = torch.zeros_like(loose.lower, dtype=torch.bool)
    if mask == "one":
        chosen[1].view(-1)[-1] = True
    else:
        chosen[0 if mask == "all" else 1 :] = True
    partial = replace(bounds, intervals=[*bounds.intervals[:number], loose, *bounds.intervals[number + 1 :]])
    found = refined(graph, number, lambda interval: chosen, partial, region)
    everything = refined(graph, number, lambda interval: torch.ones_like(chosen), partial, region)
    torch.testing.assert_close(found.lower[chosen], everything.lower[chosen])
    torch.testing.assert_close(found.upper[chosen], everything.upper[chosen])
    assert bool((found.lower >= loose.lower).all())


def test_what_is_known_is_used():
    net = tiny("mlp relu", 4)
    region = random_region(net.shape, 0)
    graph = capture(net.model, region.center)
    known = dict(enumerate(crown(graph, region).intervals))
    for bounds in (crown(graph, region, known), interval_planes(graph, region, known)):
        for number, (low, high) in known.items():
            assert bool((bounds.intervals[number].lower >= low).all())
            assert bool((bounds.intervals[number].upper <= high).all())


@pytest.mark.parametrize(
    "name", ["mlp relu", "mlp tanh", "convolution", "batch_norm", "attention", "layer_norm", "max_pool"]
)
def test_bounds_are_differentiable_with_respect_to_the_weights(name):
    """The derivative along a random direction against a central difference."""
    net = tiny(name, 2)
    region = random_region(net.shape, 1)
    net.model.requires_grad_(True)
    rows = torch.randn(2, 2, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    program = trace(net.model, region.center)

    def bound():
        graph = program.graph(tensors(net.model))
        return row_bounds(graph, interval_planes(graph, region), region, rows).sum()

    parameters = list(net.model.parameters())
    grads = torch.autograd.grad(bound(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    for parameter, grad in zip(parameters, grads, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
            ends.append(float(bound().detach()))
            with torch.no_grad():
                parameter -= step * direction
        slope = (ends[0] - ends[1]) / 2e-6
        found = 0.0 if grad is None else float((grad * direction).sum())
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-5 * (1 + abs(ends[0]))), name


def test_the_input_may_be_read_by_anything():
    """Bounds from the input on, and rows that start at any node."""
    net = tiny("products", 0)
    region = random_region(net.shape, 2)
    graph = capture(net.model, region.center)
    bounds = crown(graph, region)
    points = points_of(region, 100, torch.Generator().manual_seed(0))
    values = graph.values(points.flatten(0, 1))
    for number, node in enumerate(graph.nodes):
        size = math.prod(node.shape)
        unit = torch.eye(size, dtype=torch.float64).unflatten(1, node.shape).repeat(2, *[1] * len(node.shape))
        found = lower_bounds(graph, number, Rows.whole(unit), bounds.planes, bounds.errors, region).view(2, -1)
        least = values[number].flatten(1).unflatten(0, points.shape[:2]).amin(1)
        assert bool((found <= least + 1e-9).all())


def test_bounds_do_not_depend_on_the_other_examples():
    """Though rows go back together, and those of one example may fill up what another one needs."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    model = nn.Sequential(*layers).double()
    x = uniform(3, 1, 8, 8, dtype=torch.float64)
    region = Region.around(Linf(torch.tensor([0.01, 0.05, 0.2], dtype=torch.float64)), x)
    graph = capture(model, x)
    together = crown(graph, region).intervals
    for example in range(3):
        alone = crown(graph, region.take(torch.tensor([example]))).intervals
        for (low, high), (lower, upper) in zip(alone, together, strict=True):
            torch.testing.assert_close(low[0], lower[example])
            torch.testing.assert_close(high[0], upper[example])
