"""What rounding may do, against rational arithmetic, other orders of summation, and the networks that run."""

from fractions import Fraction

import pytest
import torch

from helpers.orders import barely_proved, drawn, exactly, in_some_order, mlp, traced
from helpers.tiny import KINDS, Fn, tiny
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.forward import forward_bounds
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.operations.kink import kink_planes
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL, Arithmetic, dot, down, gamma, outwards, summed, unit


def exact(values):
    return [Fraction(value) for value in values.tolist()]


@pytest.mark.parametrize("count", [1, 7, 64, 127, 128, 500, 3001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_are_off_by_no_more_than_they_say(count, dtype):
    generator = torch.Generator().manual_seed(count)
    for scale in (1e-12, 1.0, 1e12):
        a, b = (torch.randn(count, generator=generator, dtype=dtype) * scale for _ in range(2))
        b[: count // 2] = -b[count - count // 2 :].flip(0)  # so that much cancels
        a[: count // 2] = a[count - count // 2 :].flip(0)
        terms = [x * y for x, y in zip(exact(a), exact(b), strict=True)]
        share = Fraction(gamma(summed(count), unit(dtype)))
        assert abs(Fraction(float(dot(a, b))) - sum(terms)) <= share * sum(map(abs, terms))


@pytest.mark.parametrize("count", [1, 127, 128, 500])
def test_sums_of_numbers_alone(count):
    values = torch.arange(2.0 * count).reshape(2, count)
    assert torch.equal(dot(values, torch.ones(())), values.double().sum(1))


def test_rounding_down_and_outwards():
    values = torch.tensor([0.1, -0.1, 1e-300, -1e-300, 1e300, -1e300, 0.0, 0.5], dtype=torch.float64)
    for value, found in zip(values.tolist(), down(values, torch.float32).tolist(), strict=True):
        assert found <= value
    assert down(values, torch.float32)[-1] == 0.5
    values.requires_grad_()
    assert torch.autograd.grad(down(values, torch.float32)[:4].sum(), values)[0].tolist() == [1.0] * 4 + [0.0] * 4
    low, high = outwards(*torch.tensor([[0.1, 0.0], [0.1, 0.0]]))
    assert bool((low < torch.tensor([0.1, 0.0])).all() and (high > torch.tensor([0.1, 0.0])).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_chord_of_a_relu_lies_above_both_ends(dtype):
    generator = torch.Generator().manual_seed(0)
    lower, upper = (10 ** (-40 + 60 * torch.rand(3000, generator=generator, dtype=torch.float64)) for _ in range(2))
    lower, upper = -lower.to(dtype), upper.to(dtype)
    lower[:5], upper[5:10] = -torch.finfo(dtype).tiny / 8, torch.finfo(dtype).tiny / 8
    planes = kink_planes(lower.unsqueeze(0), upper.unsqueeze(0))
    for low, high, slope, shift in zip(*map(exact, (lower, upper, planes.upper[0], planes.shift[0])), strict=True):
        assert slope * low + shift >= 0
        assert slope * high + shift >= max(high, 0)


def runs(model, x):
    """The same network on the same inputs by other kernels: alone, in a batch, in another layout."""
    with torch.no_grad():
        yield model(x)
        yield torch.cat([model(one.unsqueeze(0)) for one in x])
        yield model(x.repeat(7, *[1] * (x.dim() - 1)))[-len(x) :]
        if x.dim() == 4:
            yield model(x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_answers_is_within_its_bounds_at_a_point(kind):
    """In float32, with nothing allowed for: an input's own answer lies within the bounds of that one input."""
    sharp = False
    for seed in range(2):
        net = tiny(kind, seed)
        model = net.model.float()
        for scale in (1.0, 1e3):
            x = scale * (torch.rand(3, *net.shape, generator=torch.Generator().manual_seed(seed)) - 0.5)
            graph, region = capture(model, x), Region.box(x, x)
            found = {
                "ibp": interval_bounds(graph, region)[-1],
                "crown": crown(graph, region).intervals[-1],
                "forward": forward_bounds(graph, region).intervals[-1],
                "float64": interval_bounds(graph.to(torch.float64), region.to(torch.float64))[-1],
            }
            ideal = interval_bounds(graph.to(torch.float64).within(REAL), region.to(torch.float64))[-1]
            for answer in runs(model, x):
                known = answer.isfinite()
                for name, (low, high) in found.items():
                    note = f"{net.label}, scale {scale}, {name}"
                    assert bool((~known | ((low <= answer) & (answer <= high))).all()), note
                sharp |= not bool(((ideal.lower <= answer) & (answer <= ideal.upper)).all())
    assert sharp or kind in ("abs", "moved"), "no answer has left the bounds of real arithmetic: the test shows nothing"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(-0.3, 0.4),
        lambda x: torch.nn.functional.pad(x, (1, 1), value=0.1),
        lambda x: x.masked_fill(torch.tensor([True, False, True]), 0.7),
        lambda x: torch.where(x > 0.1, 0.7, x - 1),
        lambda x: torch.where(x > 0.1, x, x.square()),
        lambda x: x.index_fill(1, torch.tensor([1]), 0.1),
        lambda x: torch.cat([x, torch.full_like(x, 0.1)], 1),
        lambda x: torch.nn.functional.softplus(x, 1.0, 0.1),
        lambda x: torch.nn.functional.threshold(x, 0.1, 0.7),
    ],
)
def test_numbers_that_float32_does_not_hold(function):
    """Whatever they are put into, and whatever they are compared with, in bounds that are computed in float64."""
    model = Fn(function)
    x = torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.2, -0.9]])
    graph = capture(model, x).to(torch.float64)
    for low, high in (
        interval_bounds(graph, Region.box(x.double(), x.double()))[-1],
        crown(graph, Region.box(x.double(), x.double())).intervals[-1],
    ):
        answer = model(x).double()
        assert bool(((low <= answer) & (answer <= high)).all())


def broken_by(model, region, generator):
    """How many of some runs of a network answer class 1: corners and other inputs, in several orders of summation."""
    corners = torch.rand(64, *region.lower.shape[1:], generator=generator)
    corners[:32] = corners[:32].round()
    x = torch.lerp(region.lower, region.upper, corners).clamp(region.lower, region.upper)
    wrong = 0
    for fused in (False, True):
        for _ in range(4):
            logits = in_some_order(model, x, generator, fused)
            wrong += int((~(logits[:, 0] > logits[:, 1])).sum())
    return wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [0.0, 3.0, 10.0])
def test_no_order_of_summation_breaks_what_is_barely_proved(spread, dtype):
    """Networks whose bound is as little above 0 as their last bias allows, in other orders and with fused products."""
    model, generator = mlp((2, 5, 4, 2)), torch.Generator().manual_seed(0)
    program, tried, fooled = traced(model, 2), 0, 0
    for _ in range(25):
        drawn(model, generator, spread)
        center = torch.randn(1, 2, generator=generator)
        # So little room that the bounds of real arithmetic are almost exact.
        region = Region.box(center - 1e-6 * center.abs(), center + 1e-6 * center.abs())
        if barely_proved(program, model, region, Arithmetic.of(torch.float32), dtype):
            tried += 1
            assert broken_by(model, region, generator) == 0
            values = exactly(model, region.lower[0])
            assert values[0] > values[1]
        if dtype == torch.float64 and barely_proved(program, model, region, REAL, dtype):
            fooled += broken_by(model, region, generator) > 0
            values = exactly(model, region.lower[0])
            assert values[0] > values[1]
    assert tried > 10
    assert fooled > 2 or dtype == torch.float32, "proofs about real arithmetic hold in float32 too: nothing is shown"
