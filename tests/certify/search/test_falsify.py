"""The attack on properties: finds what is there, tries nothing outside, and leaves the model alone."""

import math
import time

import torch
from torch import nn

from helpers.vnnlib import least_excess, relu_network, text
from holdfast.certify.questions import Questions
from holdfast.certify.search.falsify import falsify
from holdfast.certify.search.witness import inward, is_counterexample
from holdfast.certify.vnnlib import parse_vnnlib


def search(model, prop, shape=None, seconds=math.inf, seed=0):
    shape = shape or (prop.inputs,)

    def accept(x):
        with torch.no_grad():
            return is_counterexample(prop, x.flatten(), model(x.unsqueeze(0)).flatten())

    deadline = time.monotonic() + seconds
    return falsify(
        model, Questions.of(prop), shape, torch.float32, accept, deadline=deadline, rounds=range(8), seed=seed
    )


def test_finds_nearly_the_worst_input():
    found = 0
    for seed in range(5):
        model = relu_network((3, 10, 10, 2), seed)
        worst = least_excess(model, [-1] * 3, [1] * 3, [[1, -1]], [0])
        reached = search(model, parse_vnnlib(text([-1] * 3, [1] * 3, f"(<= (- Y_0 Y_1) {worst + 0.01:.6f})", 2)))
        beyond = search(model, parse_vnnlib(text([-1] * 3, [1] * 3, f"(<= (- Y_0 Y_1) {worst - 0.01:.6f})", 2)))
        assert beyond is None
        found += reached is not None
    assert found >= 4


def test_several_inequalities_and_boxes_at_once():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    boxes = "(or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 3)))"
    body = f"(assert {boxes})(assert (<= Y_1 -0.9))(assert (>= Y_0 2.9))"
    prop = parse_vnnlib(text([-5, -1], [5, 1], "(<= Y_0 9)", 2) + body)
    x = search(model, prop)
    assert x is not None
    assert bool((x >= torch.tensor([2.9, -1])).all() and (x <= torch.tensor([3, -0.9])).all())


def test_the_box_has_no_tolerance():
    lower, upper = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    asked: list[torch.Tensor] = []
    questions = Questions.of(parse_vnnlib(text([0.1], [0.3], "(or (<= Y_0 0.1) (>= Y_0 0.3))", 1)))
    model = nn.Identity()

    def refuse(x):
        asked.append(x)
        return False

    assert falsify(model, questions, (1,), torch.float32, refuse, deadline=math.inf, rounds=range(8)) is None
    assert asked == []  # both ends of the box lie between two float32 numbers, so nothing in it is unsafe
    questions = Questions.of(parse_vnnlib(text([0.1], [0.3], "(or (<= Y_0 0.11) (>= Y_0 0.29))", 1)))
    assert falsify(model, questions, (1,), torch.float32, refuse, deadline=math.inf, rounds=range(8)) is None
    low, high = inward(lower, upper, torch.float32)
    assert min(asked) == low
    assert all(bool((low <= x).all() and (x <= high).all()) for x in asked)


def test_a_box_without_a_float32_is_not_searched():
    prop = parse_vnnlib(text([0.1], [0.1], "(<= Y_0 9)", 1))
    assert search(nn.Linear(1, 1), prop) is None


def test_the_seed_decides_and_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Flatten(), relu_network((4, 8, 2), 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    prop = parse_vnnlib(text([-1] * 4, [1] * 4, "(<= Y_0 Y_1)", 2))
    found = [search(model, prop, (2, 2), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_time_no_search():
    prop = parse_vnnlib(text([0], [1], "(<= Y_0 9)", 1))
    assert search(nn.Identity(), prop, seconds=-1) is None
