"""Counterexamples at the edge: what lies in a box, what satisfies an inequality, without tolerance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.onnx_graphs import node, save, truth
from helpers.vnnlib import text
from holdfast import DataError
from holdfast.certify.properties import Declared
from holdfast.certify.search.witness import admitting, inward, is_counterexample, outward, replayer, written
from holdfast.certify.vnnlib import parse_vnnlib
from holdfast.models import load_onnx

BOX = ([0.1, 0.2], [0.3, 0.2])  # neither 0.1 nor 0.2 nor 0.3 is a float32


def test_boxes_in_float32():
    numbers = torch.tensor([0.1, 0.2, 0.3, 0.5, -0.1, 1e-40, 1e30], dtype=torch.float64)
    low, high = inward(numbers, numbers, torch.float32)
    below, above = outward(numbers, numbers, torch.float32)
    assert torch.equal(low, above)
    assert torch.equal(high, below)
    assert bool((below.double() <= numbers).all())
    assert bool((above.double() >= numbers).all())
    assert torch.equal(below.double() == numbers, numbers == 0.5)
    # Neighbours: nothing lies between them.
    assert torch.equal(below.nextafter(torch.tensor(torch.inf)) == above, numbers != 0.5)


def test_what_stands_for_a_box_is_the_nearest_number():
    # Fixed between two numbers, between them but not fixed, with a number inside, and a number itself.
    lower, upper = [0.1, 0.1, 0.1, 0.5, 1e-50], [0.1, 0.1000000001, 0.3, 0.5, 1e-50]
    (box,) = admitting(parse_vnnlib(text(lower, upper, "true", 1)), torch.float32).sets
    near = float(torch.tensor(0.1))
    np.testing.assert_array_equal(box.lower, [near, 0.1, 0.1, 0.5, 0.0])
    np.testing.assert_array_equal(box.upper, [near, near, 0.3, 0.5, 0.0])
    (same,) = admitting(parse_vnnlib(text(lower, upper, "true", 1)), torch.float64).sets
    np.testing.assert_array_equal([same.lower, same.upper], [lower, upper])


@settings(max_examples=200, deadline=None)
@given(st.floats(-4e38, 4e38), st.floats(0, 2e-6) | st.just(0.0))
def test_every_box_holds_a_number_and_no_bound_moves_past_a_neighbour(low, width):
    high = low + abs(low) * width
    prop = parse_vnnlib(text([low], [high], "true", 1))
    try:
        (box,) = admitting(prop, torch.float32).sets
    except DataError:
        assert abs(low) > torch.finfo(torch.float32).max
        return
    ends = torch.tensor([[low], [high]], dtype=torch.float64)
    inside = inward(torch.tensor(box.lower), torch.tensor(box.upper), torch.float32)
    assert bool(inside[0] <= inside[1])
    below, above = outward(*ends, torch.float32)
    assert bool((below.double() <= torch.tensor(box.lower)) & (torch.tensor(box.upper) <= above.double()))
    if low < high:
        assert box.lower <= low
        assert box.upper >= high


def test_an_input_one_step_outside_is_none():
    prop = parse_vnnlib(text([0.1], [0.3], "(<= Y_0 0)", 1))
    y = torch.tensor([0.0])
    low, high = inward(*torch.tensor([[0.1], [0.3]], dtype=torch.float64), torch.float32)
    for inside, step in ((low, -torch.inf), (high, torch.inf)):
        assert is_counterexample(prop, inside, y)
        assert not is_counterexample(prop, inside.nextafter(torch.tensor(step)), y)


@pytest.mark.parametrize("strict", [False, True])
def test_an_output_one_step_beyond_is_none(strict):
    prop = parse_vnnlib(text([0], [1], f"({'<' if strict else '<='} Y_0 Y_1)", 2))
    x, edge = torch.tensor([0.5]), torch.tensor(0.7)
    above, below = edge.nextafter(torch.tensor(1.0)), edge.nextafter(torch.tensor(0.0))
    assert is_counterexample(prop, x, torch.stack([below, edge]))
    assert is_counterexample(prop, x, torch.stack([edge, edge])) != strict
    assert not is_counterexample(prop, x, torch.stack([above, edge]))


def test_inputs_and_outputs_are_compared_exactly():
    prop = parse_vnnlib(text([0, 0], [1, 1], "(and (<= (+ Y_0 X_1) 1) (< X_0 X_1))", 1))
    assert prop.read == (0, 1)
    x, y = torch.tensor([0.25, 0.5]), torch.tensor([0.5])
    assert is_counterexample(prop, x, y)
    assert not is_counterexample(prop, x, y.nextafter(torch.tensor(1.0)))
    assert not is_counterexample(prop, torch.tensor([0.5, 0.5]), y)


def test_sums_are_not_rounded():
    prop = parse_vnnlib(text([0], [1], "(<= (+ Y_0 Y_1 Y_2) 0)", 3))
    y = torch.tensor([1e30, 1e-30, -1e30])  # in float64 the sum in this order is 0
    assert float(np.sum(y.double().numpy())) == 0
    assert not is_counterexample(prop, torch.tensor([0.5]), y)


def test_no_number_is_no_counterexample():
    prop = parse_vnnlib(text([0], [1], "(or (<= Y_0 0) (>= Y_0 0))", 1))
    assert is_counterexample(prop, torch.tensor([0.5]), torch.tensor([1.0]))
    assert not is_counterexample(prop, torch.tensor([0.5]), torch.tensor([torch.nan]))
    assert not is_counterexample(prop, torch.tensor([torch.nan]), torch.tensor([1.0]))


def test_onnxruntime_has_the_last_word_on_onnx_files(tmp_path):
    constants = {"w": np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)}
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "m"), node("Relu", "m", "y")]
    path = save(tmp_path / "net.onnx", nodes, (1, 2, 3), **constants)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = truth(path, x.unsqueeze(0)).flatten()
    # The module is another one on purpose: its answer must not be what comes out.
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    assert torch.equal(replayer(wrong, path)(x), expected)
    torch.testing.assert_close(replayer(load_onnx(path))(x), expected)


def test_a_plain_replay_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    x = torch.ones(3)
    first, second = replayer(model)(x), replayer(model)(x)
    assert torch.equal(first, second)
    assert model.training
    assert int(model[0].num_batches_tracked) == 0


def test_results_are_written_with_all_digits():
    x, y = torch.tensor([[0.1], [-2.0]]), torch.tensor([1e-20])
    assert written(x, y) == "((X_0 0.10000000149011612)\n (X_1 -2.0)\n (Y_0 9.999999682655225e-21))"
    tensors = Declared("A", "float32", (2, 1)), Declared("B", "real", ())
    assert written(x, y, tensors) == ("A float32 [2,1]\n0.10000000149011612\n-2.0\nB real []\n9.999999682655225e-21")
