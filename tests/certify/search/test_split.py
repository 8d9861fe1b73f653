"""Branch and bound over inputs against mixed-integer programs, and bounds of boxes against sampling and one another."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from helpers.vnnlib import least_excess, relu_network, text
from helpers.zoo import seeded
from holdfast.certify.bounds.capture import capture
from holdfast.certify.questions import Questions
from holdfast.certify.search.boxes import GraphBounds, LayerBounds, box_bounds, least
from holdfast.certify.search.split import split_inputs
from holdfast.certify.search.witness import is_counterexample
from holdfast.certify.vnnlib import parse_vnnlib


def captured(model, shape):
    return capture(model.double(), torch.zeros(1, *shape, dtype=torch.float64)).to(torch.float64)


def search(model, prop, seconds=20.0, accept=None):
    graph = captured(model, (prop.inputs,))

    def replay(x):
        with torch.no_grad():
            return is_counterexample(prop, x, model(x.double()))

    deadline = time.monotonic() + seconds
    return split_inputs(graph, Questions.of(prop), torch.float32, accept or replay, deadline, lambda until: None)


ROWS = [
    ("(<= (- Y_0 Y_1) {0})", [[1, -1, 0]]),
    ("(and (<= (- Y_0 Y_1) {0}) (<= (- Y_0 Y_2) {0}))", [[1, -1, 0], [1, 0, -1]]),
    ("(and (<= (- Y_0 Y_1) {0}) (>= (+ Y_0 Y_2) {0}))", [[1, -1, 0], [-1, 0, -1]]),
]


@pytest.mark.parametrize("case", range(len(ROWS)))
def test_verdicts_are_those_of_a_mixed_integer_program(case):
    formula, matrix = ROWS[case]
    verdicts = {True: 0, False: 0}
    for seed in range(1, 12, 2):
        model = relu_network((2, 8, 8, 3), seed)
        lower, upper = [-1.0, -0.5], [1.0, 0.75]
        level = (seed - 6) / 2
        bound = [level if row[0] > 0 else -level for row in matrix]
        truth = least_excess(model, lower, upper, matrix, bound)
        if abs(truth) < 1e-4:
            continue
        outcome = search(model, parse_vnnlib(text(lower, upper, formula.format(level), 3)))
        assert outcome.proved == (truth > 0)
        assert (outcome.x is not None) == (truth < 0)
        if outcome.proved:
            assert outcome.bound == 0
        verdicts[truth > 0] += 1
    assert min(verdicts.values()) > 0


def test_close_to_the_truth_on_both_sides():
    for seed in range(3):
        model = relu_network((3, 10, 10, 2), seed)
        truth = least_excess(model, [-1] * 3, [1] * 3, [[1, -1]], [0])
        below = search(model, parse_vnnlib(text([-1] * 3, [1] * 3, f"(<= (- Y_0 Y_1) {truth - 1e-3!r})", 2)))
        above = search(model, parse_vnnlib(text([-1] * 3, [1] * 3, f"(<= (- Y_0 Y_1) {truth + 1e-3!r})", 2)))
        assert below.proved
        assert above.x is not None


class Spike(nn.Module):
    """1 everywhere but in a cross-polytope of radius 1/1000 around one point, where it falls to -1."""

    def __init__(self, center):
        super().__init__()
        self.shift = nn.Linear(len(center), 2 * len(center))
        with torch.no_grad():
            self.shift.weight.copy_(torch.cat([torch.eye(len(center)), -torch.eye(len(center))]))
            self.shift.bias.copy_(torch.cat([-torch.tensor(center), torch.tensor(center)]))
        self.total = nn.Linear(2 * len(center), 1)
        nn.init.constant_(self.total.weight, -2000.0)
        nn.init.constant_(self.total.bias, 2.0)

    def forward(self, x):
        return 1 - self.total(self.shift(x).relu()).relu()


def test_a_counterexample_of_tiny_volume_is_found():
    outcome = search(Spike([0.3217, -0.5511, 0.1234]), parse_vnnlib(text([-1] * 3, [1] * 3, "(<= Y_0 0)", 1)))
    assert not outcome.proved
    assert outcome.x is not None


def test_a_refused_counterexample_is_never_a_proof():
    prop = parse_vnnlib(text([-1] * 2, [1] * 2, "(<= Y_0 0)", 1))
    outcome = search(Spike([0.25, 0.25]), prop, seconds=1.0, accept=lambda x: False)
    assert not outcome.proved
    assert outcome.x is None
    assert outcome.bound <= -0.9


class Absorbed(nn.Module):
    """The identity, except in arithmetic that rounds: what is added is lost beside 2^60."""

    def forward(self, x):
        return (x + 2.0**60).relu() - 2.0**60


def test_what_rounding_makes_positive_is_no_proof():
    # The output reaches -100, but in float64 it is 0 for all of these inputs.
    outcome = search(Absorbed(), parse_vnnlib(text([-100], [100], "(<= Y_0 -50)", 1)), seconds=1.0)
    assert not outcome.proved


def test_no_time_is_no_verdict_and_the_bound_holds_at_any_time():
    model = relu_network((4, 12, 12, 2), 1)
    truth = least_excess(model, [-1] * 4, [1] * 4, [[1, -1]], [0])
    prop = parse_vnnlib(text([-1] * 4, [1] * 4, f"(<= (- Y_0 Y_1) {truth - 1e-5!r})", 2))
    reached = [search(model, prop, seconds=seconds) for seconds in (-1.0, 0.05, 0.3)]
    assert (reached[0].proved, reached[0].x, reached[0].bound) == (False, None, -math.inf)
    assert reached[0].bound <= reached[1].bound <= reached[2].bound + 1e-9 <= 1e-5 + 2e-6


def test_a_flat_box_that_cannot_be_cut_ends_as_neither():
    # The only input has a value on the boundary, which room for rounding cannot tell from beyond.
    prop = parse_vnnlib(text([0.5], [0.5], "(<= Y_0 0.5)", 1))
    outcome = search(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), Shifted()), prop, accept=lambda x: False)
    assert not outcome.proved
    assert outcome.note != ""


def test_a_point_is_a_box():
    point = parse_vnnlib(text([0.5, 0.25], [0.5, 0.25], "(>= Y_0 0.5)", 2))
    outcome = search(nn.Identity(), point)
    assert outcome.x is not None
    assert outcome.x.tolist() == [0.5, 0.25]
    assert search(nn.Identity(), parse_vnnlib(text([0.5, 0.25], [0.5, 0.25], "(>= Y_1 0.5)", 2))).proved


class Shifted(nn.Module):
    def forward(self, x):
        return x * 0 + 0.5


def boxes(count, size, seed, width=0.5):
    generator = torch.Generator().manual_seed(seed)
    center = 2 * torch.rand(count, size, generator=generator, dtype=torch.float64) - 1
    radius = width * torch.rand(count, size, generator=generator, dtype=torch.float64)
    return center - radius, center + radius


NETWORKS = {
    "layers": (relu_network((3, 12, 12, 2), 5), (3,), True),
    "convolution": (
        seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))),
        (1, 3, 3),
        True,
    ),
    "sigmoid": (seeded(lambda: nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 2))), (3,), False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_at_samples(name):
    model, shape, layered = NETWORKS[name]
    graph = captured(model, shape)
    size = math.prod(shape)
    lower, upper = boxes(50, size, 0)
    network = box_bounds(graph)
    assert isinstance(network, LayerBounds) == layered
    matrix = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known, error = network.start(lower, upper)
    found = network.bound(lower, upper, known, matrix)
    share = torch.rand(200, 50, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    share[:100] = share[:100].round()
    x = lower + share * (upper - lower)
    hidden, outputs = network.values(x.flatten(0, 1))
    torch.testing.assert_close(outputs, graph(x.flatten(0, 1).unflatten(1, shape)))
    assert bool((error > 0).all() and (error < 1e-10).all()) if layered else bool((error == 0).all())
    value = (matrix @ outputs.unflatten(0, (200, 50)).unsqueeze(3)).squeeze(3)
    plane = (found.slope @ x.unsqueeze(3)).squeeze(3) + found.constant
    assert bool((value >= plane - 1e-12).all())
    assert bool((plane >= least(found.slope, lower, upper) + found.constant - 1e-12).all())
    for interval, inner in zip(found.known, hidden, strict=True):
        inner = inner.flatten(1).unflatten(0, (200, 50))
        assert bool((interval.lower.flatten(1) <= inner + 1e-12).all())
        assert bool((inner <= interval.upper.flatten(1) + 1e-12).all())


def test_matrices_and_rules_of_operations_agree():
    for seed in range(5):
        graph = captured(relu_network((4, 10, 10, 3), seed), (4,))
        lower, upper = boxes(40, 4, seed)
        layers, rules = LayerBounds.of(graph), GraphBounds(graph)
        assert layers is not None
        matrix = torch.eye(3, dtype=torch.float64).expand(40, 3, 3)
        known, _ = layers.start(lower, upper)
        mine, theirs = layers.bound(lower, upper, known, matrix), rules.bound(lower, upper, known, matrix)
        for a, b in zip(mine.known, theirs.known, strict=True):
            # Of a neuron whose sign is decided, one side may find more than the other: it does not matter.
            undecided = (a.lower < 0) & (a.upper > 0)
            assert torch.equal(undecided, (b.lower < 0) & (b.upper > 0))
            torch.testing.assert_close(a.lower[undecided], b.lower[undecided])
            torch.testing.assert_close(a.upper[undecided], b.upper[undecided])
        torch.testing.assert_close(mine.slope, theirs.slope)
        torch.testing.assert_close(mine.constant, theirs.constant)
        torch.testing.assert_close(mine.weight, theirs.weight)


def test_halves_are_no_looser_than_the_whole():
    lower, upper = boxes(30, 3, 4)
    network = box_bounds(captured(relu_network((3, 12, 12, 2), 2), (3,)))
    matrix = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64).expand(30, 1, 2)
    whole = network.bound(lower, upper, network.start(lower, upper)[0], matrix)
    middle = torch.cat([((lower + upper) / 2)[:, :1], upper[:, 1:]], 1)
    half = network.bound(lower, middle, whole.known, matrix)
    for inner, outer in zip(half.known, whole.known, strict=True):
        assert bool((inner.lower >= outer.lower).all())
        assert bool((inner.upper <= outer.upper).all())


def test_questions_of_different_length_stay_what_they_are():
    prop = parse_vnnlib(text([0, 0], [1, 1], "(or (<= Y_0 0.5) (and (<= Y_0 1) (<= Y_1 0.25) (>= Y_1 0)))", 2))
    questions = Questions.of(prop)
    y = torch.tensor([[0.75, 0.5]], dtype=torch.float64).expand(2, 2)
    np.testing.assert_allclose(questions.excess(y).amax(1), [0.25, 0.25])


def test_the_error_that_is_allowed_for_covers_cancellation():
    # Two large neurons cancel, and what is left is amplified: intervals see none of that size at the output.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer, weight, bias in (
            (model[0], [[1.0], [1.0]], [2.0**40] * 2),
            (model[2], [[1.0, -1.0]], [1.0]),
            (model[4], [[2.0**10]], [0.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    ends = torch.tensor([[0.0]]).double(), torch.tensor([[0.1]]).double()
    _, error = box_bounds(captured(model, (1,))).start(*ends)
    assert float(error) > 2.0**10 * 2.0**41 * 2.0**-53


def test_a_box_between_two_neighbouring_numbers_is_not_dropped():
    # No float64 lies strictly between the ends, and both are unsafe: refused, they must not end as a proof.
    low = 1.0
    high = float(np.nextafter(low, 2))
    prop = parse_vnnlib(text([low], [high], "(>= Y_0 1)", 1))
    outcome = search(nn.Sequential(nn.Linear(1, 1), Copied()), prop, accept=lambda x: False)
    assert not outcome.proved


class Copied(nn.Module):
    def forward(self, x):
        return x * 0 + 2
