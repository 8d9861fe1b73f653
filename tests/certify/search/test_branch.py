"""Branch and bound against mixed-integer programs and dense grids, and counterexamples that are hard to find."""

import time

import pytest
import torch
from torch import nn

from helpers.zoo import uniform
from holdfast import L1, L2, Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown, interval_planes
from holdfast.certify.bounds.margins import specification
from holdfast.certify.bounds.region import Region
from holdfast.certify.milp.solver import milp_margin
from holdfast.certify.search import branch
from holdfast.certify.search.branch import branch_and_bound
from holdfast.certify.search.domains import Problem


def network(seed, hidden=(10, 10), dtype=torch.float64):
    """2-10-10-2, with weights that make most neurons unstable."""
    torch.manual_seed(seed)
    layers, width = [], 2
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    model = nn.Sequential(*layers, nn.Linear(width, 2))
    for parameter in model.parameters():
        parameter.data *= 2.5 if parameter.dim() > 1 else 1
    return model.to(dtype)


def decide(model, x, y, threat, seconds=60.0, bounds=crown):
    """The proofs of all examples, and which counterexamples were offered."""
    graph, region = capture(model, x), Region.around(threat, x)
    problem = Problem(graph, region, bounds(graph, region), graph.output)
    rows = list(specification(y, 2, x.dtype))
    offsets = [x.new_zeros(len(row)) for row in rows]
    offered = []

    def judge(example, point):
        offered.append((example, point))
        one = point.unsqueeze(0)
        inside = bool(threat.admits(one, x[example : example + 1]).all())
        return inside and int(model(one).argmax(1)) != int(y[example])

    found = branch_and_bound(problem, rows, offsets, judge, seconds=seconds)
    proofs = sorted(found, key=lambda proof: proof.example)
    assert [proof.example for proof in proofs] == list(range(len(x)))
    return proofs, problem


def grid_minimum(model, region, example, y, threat, x, count=301):
    low, high = region.lower[example], region.upper[example]
    ticks = [torch.linspace(float(a), float(b), count, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*ticks)
    points = points[threat.admits(points, x[example].expand_as(points))]
    logits = model(points).detach()
    return float((logits[:, y] - logits[:, 1 - y]).min())


THREATS = [Linf(0.15), Linf(0.3, None), L2(0.25), L1(0.3)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_verdicts_are_those_of_a_grid_and_of_a_mixed_integer_program(seed, threat):
    model = network(seed)
    x = uniform(6, 2, seed=seed, dtype=torch.float64)
    y = model(x).argmax(1)
    proofs, problem = decide(model, x, y, threat)
    for proof in proofs:
        note = f"seed {seed}, example {proof.example}"
        label = int(y[proof.example])
        least = grid_minimum(model, problem.region, proof.example, label, threat, x)
        if proof.status == "proved":
            assert least > 0, f"{note}: proved, but {least} on the grid"
            assert proof.bound <= least + 1e-9, f"{note}: bound {proof.bound} above {least}"
            # Once before the first split, once with better hidden bounds: what comes after may have been clipped.
            assert proof.domains <= 2 or proof.bound <= 1e-9, note
        elif proof.status == "broken":
            point = proof.x.unsqueeze(0)
            assert int(model(point).argmax(1)) != label, note
            assert bool(threat.admits(point, x[proof.example : proof.example + 1])), note
        else:
            # All that may stay open is what is within rounding of the decision.
            assert abs(least) < 1e-2, f"{note}: open at {proof.bound}, least {least}"
        if threat.norm == "linf":
            one = torch.tensor([proof.example])
            intervals = [type(i)(i.lower[one], i.upper[one]) for i in problem.bounds.intervals]
            exact = milp_margin(problem.graph, problem.region.take(one), intervals, label, seconds=60)
            if abs(exact.upper) > 1e-4:
                assert proof.status == ("proved" if exact.upper > 0 else "broken"), f"{note}: {exact.upper}"
                assert proof.bound <= exact.upper + 1e-5, note


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_after_a_search_of_hidden_neurons_are_the_same(seed, monkeypatch):
    """Which is made at once here, and otherwise for what does not fall soon."""
    model = network(seed, (8, 6))
    x = uniform(6, 2, seed=seed, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = Linf(0.25)
    usual, _ = decide(model, x, y, threat)
    (better, share, _), last = branch._PHASES
    monkeypatch.setattr(branch, "_PHASES", ((better, share, 0.0), (last[0], 0.01, last[2])))
    proofs, problem = decide(model, x, y, threat)
    assert [proof.status for proof in proofs] == [proof.status for proof in usual]
    for proof in proofs:
        if proof.status == "proved":
            least = grid_minimum(model, problem.region, proof.example, int(y[proof.example]), threat, x)
            assert proof.bound <= least + 1e-9


def test_what_is_begun_anew_has_each_open_function_once(monkeypatch):
    """However many parts of it were open."""
    begun = []
    begin = branch._Search.begin
    monkeypatch.setattr(
        branch._Search,
        "begin",
        lambda self, examples: begun.append([len(rows) for _, rows, _ in examples]) or begin(self, examples),
    )
    (better, share, _), last = branch._PHASES
    monkeypatch.setattr(branch, "_PHASES", ((better, share, 0.1), (last[0], 0.01, last[2])))
    model = network(3, (24, 24))
    x = uniform(1, 2, seed=3, dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(0.5), x)
    problem = Problem(graph, region, crown(graph, region), graph.output)
    # Functions that can be negative, and a judge who will not have it: they are never decided.
    rows = [torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=x.dtype)]
    found = branch_and_bound(
        problem, rows, [x.new_zeros(2)], lambda n, p: False, seconds=1.0
    )  # fmt: skip
    (proof,) = found
    assert proof.status == "open"
    assert proof.domains > 20
    first, second, third = begun
    assert first == second == [2]
    assert third in ([1], [2])


def test_what_was_known_before_is_not_forgotten(monkeypatch):
    """Also where hidden bounds get no better and time is up after the new beginning."""
    known = []
    again = branch._again
    monkeypatch.setattr(branch, "_again", lambda work: known.append(work.bound()) or again(work))

    def loose(graph, region, bounds, deadline):
        time.sleep(1.0)
        return interval_planes(graph, region)

    (better, share, _), _ = branch._PHASES
    monkeypatch.setattr(branch, "_PHASES", ((better, share, 0.3), (loose, 1.0, torch.inf)))
    model = network(3, (64, 64))
    x = uniform(1, 2, seed=3, dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(0.5), x)
    problem = Problem(graph, region, crown(graph, region), graph.output)
    rows = [torch.tensor([[1.0, -1.0]], dtype=x.dtype)]
    (proof,) = branch_and_bound(problem, rows, [x.new_zeros(1)], lambda n, p: False, seconds=1.0)
    assert len(known) == 2
    assert known[0] < known[1]
    assert proof.bound >= known[1]


def test_verdicts_from_loose_bounds_are_the_same():
    """What intervals leave to be split is more, and comes out as before."""
    for seed in range(4):
        model = network(seed, (8,))
        x = uniform(4, 2, seed=seed, dtype=torch.float64)
        y = model(x).argmax(1)
        tight, loose = (decide(model, x, y, Linf(0.2), bounds=bounds)[0] for bounds in (crown, interval_planes))
        assert [proof.status for proof in tight] == [proof.status for proof in loose], f"seed {seed}"


def test_without_time_nothing_is_split():
    statuses = []
    for seed in range(6):
        model = network(seed)
        x = uniform(6, 2, seed=seed, dtype=torch.float64)
        y = model(x).argmax(1)
        proofs, problem = decide(model, x, y, Linf(0.2), seconds=0.0)
        later, _ = decide(model, x, y, Linf(0.2))
        for proof, final in zip(proofs, later, strict=True):
            statuses.append((proof.status, final.status))
            assert proof.domains <= 1
            assert proof.status in ("open", final.status)
            label = int(y[proof.example])
            if proof.status == "open":
                assert proof.bound <= grid_minimum(model, problem.region, proof.example, label, Linf(0.2), x)
    assert ("open", "proved") in statuses


def test_an_example_without_functions_is_proved():
    model = network(1)
    x = uniform(2, 2, dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(0.1), x)
    problem = Problem(graph, region, crown(graph, region), graph.output)
    nothing = [x.new_zeros(0, 2)] * 2
    found = branch_and_bound(
        problem, nothing, [x.new_zeros(0)] * 2, lambda n, p: True, seconds=1.0
    )  # fmt: skip
    assert [proof.status for proof in found] == ["proved"] * 2


class Spike(nn.Module):
    """``margin - height * relu(1 - |x - place| / width)``: wrong in a tiny part of the box only."""

    def __init__(self, place, width, dimensions=2):
        super().__init__()
        self.place, self.width = place, width
        self.inner = nn.Linear(dimensions, 2 * dimensions)
        self.outer = nn.Linear(2 * dimensions, 1)
        eye = torch.eye(dimensions)
        self.inner.weight.data = torch.cat([eye, -eye])
        self.inner.bias.data = torch.cat([-place, place])
        self.outer.weight.data = torch.full((1, 2 * dimensions), -1 / width)
        self.outer.bias.data = torch.ones(1)

    def forward(self, x):
        spike = self.outer(self.inner(x).relu()).relu()
        return torch.cat([0.5 - spike, torch.zeros_like(spike)], 1)


@pytest.mark.parametrize("width", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("seed", range(4))
def test_a_counterexample_of_tiny_volume_is_never_missed(width, seed):
    place = uniform(2, seed=seed) * 0.8 + 0.1
    model = Spike(place, width).double()
    x = torch.full((1, 2), 0.5).double()
    assert int(model(place.double().unsqueeze(0)).argmax(1)) == 1
    y = torch.zeros(1, dtype=torch.int64)
    (proof,), _ = decide(model, x, y, Linf(0.45), seconds=5.0)
    assert proof.status in ("broken", "open")
    if proof.status == "broken":
        assert int(model(proof.x.unsqueeze(0)).argmax(1)) == 1


def test_a_judge_that_refuses_is_believed():
    """No counterexample is reported that the judge did not accept, and none of them makes a proof."""
    model = network(2)
    x = uniform(4, 2, seed=2, dtype=torch.float64)
    y = 1 - model(x).argmax(1)
    graph, region = capture(model, x), Region.around(Linf(0.05), x)
    problem = Problem(graph, region, crown(graph, region), graph.output)
    rows = list(specification(y, 2, x.dtype))
    found = branch_and_bound(
        problem, rows, [x.new_zeros(1)] * 4, lambda n, p: False, seconds=0.5
    )  # fmt: skip
    assert {proof.status for proof in found} == {"open"}


def test_networks_without_relus_are_bounded_and_left_open():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = uniform(6, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    for threat, expected in ((Linf(1e-6), {"proved"}), (Linf(1.0), {"broken", "open", "proved"})):
        proofs, problem = decide(model, x, y, threat)
        assert {proof.status for proof in proofs} <= expected
        for proof in proofs:
            if proof.status == "proved":
                assert grid_minimum(model, problem.region, proof.example, int(y[proof.example]), threat, x) > 0


def test_single_precision():
    for seed in range(4):
        model = network(seed, dtype=torch.float32)
        x = uniform(4, 2, seed=seed)
        y = model(x).argmax(1)
        proofs, problem = decide(model, x, y, Linf(0.15))
        exact = network(seed)
        for proof in proofs:
            if proof.status == "proved":
                wide = problem.region.to(torch.float64)
                label = int(y[proof.example])
                assert grid_minimum(exact, wide, proof.example, label, Linf(0.16), x.double()) > 0, f"seed {seed}"
