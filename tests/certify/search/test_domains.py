"""Bounds of domains: multipliers against linear programs and samples, slopes against CROWN."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny import random_region, row_bounds, tiny
from helpers.zoo import mlp, uniform
from holdfast import Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.region import Region
from holdfast.certify.milp.solver import lp_bound
from holdfast.certify.search.domains import Domains, Problem, bound_domains
from holdfast.certify.search.hidden import tightened


def problem_of(seed, hidden=8, eps=0.4):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    for parameter in model.parameters():
        parameter.data *= 2 if parameter.dim() > 1 else 1
    model.double()
    x = uniform(1, 2, seed=seed, dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(eps, None), x)
    return Problem(graph, region, crown(graph, region), graph.output)


def signed(problem, neurons, signs, multiplier, rows):
    """A domain with given signs, and the slopes of CROWN."""
    whole = Domains.whole(problem, torch.zeros(len(rows), dtype=torch.int64), rows)
    count, sign = len(neurons), torch.tensor([signs]).double()
    lower, upper = whole.lower.clone(), whole.upper.clone()
    lower[:, neurons] = torch.where(sign > 0, lower[:, neurons].clamp_min(0), lower[:, neurons])
    upper[:, neurons] = torch.where(sign < 0, upper[:, neurons].clamp_max(0), upper[:, neurons])
    return Domains(
        whole.example, rows, torch.tensor([neurons]).expand(len(rows), -1), sign.expand(len(rows), -1),
        torch.ones(len(rows), count).double(), torch.full((len(rows), count), multiplier).double(), whole.slopes,
        lower, upper,
    )  # fmt: skip


def inputs_of_relus(problem, x):
    """``(P, U)`` what the unstable neurons are given."""
    values = problem.graph.values(x)
    given = [values[problem.graph.nodes[number].inputs[0]].flatten(1) for number in problem.places]
    return torch.cat(given, 1).index_select(1, problem.unstable)


@pytest.mark.parametrize("seed", range(30))
def test_signs_and_multipliers_bound_what_is_in_the_domain(seed):
    problem = problem_of(seed)
    generator = torch.Generator().manual_seed(seed)
    count = len(problem.unstable)
    if not count:
        pytest.skip("all neurons are stable")
    depth = min(3, count)
    neurons = torch.randperm(count, generator=generator)[:depth].tolist()
    # Signs that a point of the set has, so that the domain is not empty.
    low, high = problem.region.lower, problem.region.upper
    x = low + torch.rand(20_000, 2, generator=generator, dtype=torch.float64) * (high - low)
    given = inputs_of_relus(problem, x)[:, neurons]
    signs = torch.where(given[0] >= 0, 1.0, -1.0)
    inside = x[(given * signs >= 0).all(1)]
    rows = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    truth = (problem.graph(inside) @ rows.T).amin(0)

    places = {}
    for neuron, sign in zip(neurons, signs.tolist(), strict=True):
        flat = int(problem.unstable[neuron])
        for number, place in problem.places.items():
            if place.start <= flat < place.stop:
                places.setdefault(number, torch.zeros(place.stop - place.start))[flat - place.start] = sign
    exact = torch.tensor(
        [lp_bound(problem.graph, problem.region, problem.bounds.intervals, places, row).bound for row in rows]
    )
    for multiplier in (0.0, 0.3, 2.0):
        domains = signed(problem, neurons, signs.tolist(), multiplier, rows)
        fixed, better = (bound_domains(problem, domains, steps) for steps in (0, 30))
        for found in (fixed, better):
            assert bool((found.bound <= truth + 1e-9).all()), f"seed {seed}: above a value in the domain"
            assert bool((found.bound <= exact + 1e-6).all()), f"seed {seed}: above the linear program's minimum"
            assert bool((found.domains.multiplier >= 0).all())
            assert bool(((found.domains.slopes >= 0) & (found.domains.slopes <= 1)).all())
            torch.testing.assert_close(bound_domains(problem, found.domains, 0).bound, found.bound, rtol=0, atol=10)
        assert bool((better.bound >= fixed.bound - 1e-9).all())


@pytest.mark.parametrize("seed", range(8))
def test_optimised_multipliers_come_near_the_linear_program(seed):
    """With every unstable neuron split nothing is relaxed, and the dual has no gap."""
    problem = problem_of(seed, hidden=4, eps=0.3)
    x = problem.region.center
    signs = torch.where(inputs_of_relus(problem, x)[0] >= 0, 1.0, -1.0).tolist()
    neurons = list(range(len(signs)))
    if not neurons:
        pytest.skip("all neurons are stable")
    rows = torch.eye(3).double()
    places = {}
    for neuron, sign in zip(neurons, signs, strict=True):
        flat = int(problem.unstable[neuron])
        for number, place in problem.places.items():
            if place.start <= flat < place.stop:
                places.setdefault(number, torch.zeros(place.stop - place.start))[flat - place.start] = sign
    found = bound_domains(problem, signed(problem, neurons, signs, 0.1, rows), 400).bound
    exact = torch.tensor(
        [lp_bound(problem.graph, problem.region, problem.bounds.intervals, places, row).bound for row in rows]
    )
    assert bool((found <= exact + 1e-6).all())
    start = bound_domains(problem, signed(problem, neurons, signs, 0.0, rows), 0).bound
    assert bool((found >= exact - 0.5 * (exact - start) - 0.05).all()), (seed, found, exact, start)


def test_multipliers_of_0_change_nothing():
    """A domain with multipliers of 0 is bounded as the network with the neurons' bounds cut."""
    problem = problem_of(3)
    rows = torch.eye(3).double()
    for sign in (1.0, -1.0):
        found = bound_domains(problem, signed(problem, [0], [sign], 0.0, rows), 0).bound
        intervals = problem.bounds.intervals
        flat = int(problem.unstable[0])
        number, place = next((n, p) for n, p in problem.places.items() if p.start <= flat < p.stop)
        before = problem.graph.nodes[number].inputs[0]
        low, high = (end.clone() for end in intervals[before])
        entry = flat - place.start
        if sign > 0:
            low[0, entry] = 0
        else:
            high[0, entry] = 0
        planes = dict(problem.bounds.planes)
        planes[number] = problem.graph.nodes[number].operation.relax(type(intervals[before])(low, high))
        bounds = replace(problem.bounds, planes=planes)
        expected = row_bounds(problem.graph, bounds, problem.region, rows.unsqueeze(0))[0]
        torch.testing.assert_close(found, expected)


def test_the_least_input_is_in_the_set_and_coefficients_are_seen():
    model = mlp()
    x = uniform(3, 6)
    graph, region = capture(model, x), Region.around(Linf(0.1), x)
    problem = Problem(graph, region, crown(graph, region), graph.output)
    rows = torch.randn(3, 4)
    found = bound_domains(problem, Domains.whole(problem, torch.arange(3), rows), 3)
    assert bool((found.x >= region.lower).all())
    assert bool((found.x <= region.upper).all())
    expected = (rows @ model[3].weight).index_select(1, problem.unstable).detach()
    torch.testing.assert_close(found.coefficients, expected)


@pytest.mark.parametrize("kind", ["mlp sigmoid", "mlp relu", "residual", "attention", "max_pool"])
def test_any_network_can_be_optimised(kind):
    """Also one without a ReLU, or one whose ReLUs are all stable, or that ends in one."""
    for seed in range(4):
        net = tiny(kind, seed)
        region = random_region(net.shape, seed)
        graph = capture(nn.Sequential(net.model, nn.ReLU()), region.center)
        bounds = tightened(graph, region, crown(graph, region), 3)
        problem = Problem(graph, region, bounds, graph.output)
        rows = torch.eye(3).double().repeat(2, 1)
        found = bound_domains(problem, Domains.whole(problem, torch.arange(2).repeat_interleave(3), rows), 3).bound
        assert bool((found.view(2, 3) <= graph(region.center) + 1e-9).all()), net.label
        assert bool((found >= row_bounds(graph, bounds, region, rows.view(2, 3, 3)).flatten() - 1e-9).all()), net.label


def test_a_window_is_bounded_as_the_whole_map():
    """With no more neurons to be optimised than it sees."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 2)
    ).double()
    x = uniform(2, 1, 9, 9, dtype=torch.float64)
    graph, region = capture(nn.Sequential(model, nn.Flatten()), x), Region.around(Linf(0.3), x)
    (node,) = (number for number, node in enumerate(graph.nodes) if node.shape == (2, 3, 3))
    bounds = crown(graph, region)
    rows = torch.randn(2, 2, 1, 2, dtype=torch.float64)
    full = nn.functional.pad(rows, (1, 0, 2, 0))
    part, whole = (Problem(graph, region, bounds, node, window) for window in (((2, 3), (1, 3)), None))
    found, expected = (
        bound_domains(problem, Domains.whole(problem, torch.arange(2), functions), 5).bound
        for problem, functions in ((part, rows), (whole, full))
    )
    torch.testing.assert_close(found, expected)
    assert 0 < len(part.unstable) < 0.7 * len(whole.unstable)
