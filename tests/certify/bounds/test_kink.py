"""Functions with one kink: planes that never cross them, and than which none are better."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.tiny import Fn
from helpers.zoo import uniform
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import Bounds, lower_bounds
from holdfast.certify.bounds.forward import forward_bounds
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.kink import Kink, kink_planes, relu
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rows import Rows

# Convex and concave, rising, falling and both.
SLOPES = [
    (0.0, 1.0), (0.01, 1.0), (-1.0, 1.0), (-0.4, 1.0), (1.7, 1.0), (1.0, 0.0), (1.0, -2.0), (-0.5, -0.1), (3.0, 3.0),
]  # fmt: skip
slopes = pytest.mark.parametrize(("below", "above"), SLOPES, ids=str)


def random_intervals(count, dtype=torch.float64):
    """Of all scales and signs; some a point, some symmetric, some that end at 0."""
    generator = torch.Generator().manual_seed(0)
    middle, radius = torch.randn(2, count, generator=generator, dtype=torch.float64)
    radius = (radius * 10 ** (4 * torch.rand(count, generator=generator, dtype=torch.float64) - 2)).abs()
    lower, upper = ((middle + side * radius).to(dtype) for side in (-1, 1))
    lower[::7] = -upper[::7].abs()
    upper[::7] = -lower[::7]
    upper[::11] = lower[::11]
    lower[::13], upper[::17] = 0, 0
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


def value(x, below, above):
    return torch.where(x > 0, x * above, x * below)


@slopes
def test_no_planes_are_better(below, above):
    """At the middle none are higher or lower than the chord and the function, and the interval is attained."""
    x = Interval(*random_intervals(3000))
    operation, middle = Kink(below, above), (x.lower + x.upper) / 2
    planes = operation.relax(x)
    sides = [planes.lower * middle, planes.upper * middle + planes.shift]
    chord, under = (value(x.lower, below, above) + value(x.upper, below, above)) / 2, value(middle, below, above)
    best = [under, chord] if above >= below else [-under, -chord]
    for side, truth in zip(sides, best, strict=True):
        torch.testing.assert_close(side, truth, rtol=1e-12, atol=1e-300)
    ends = torch.stack([value(end.clamp(*x), below, above) for end in (x.lower, x.upper, torch.zeros_like(middle))])
    torch.testing.assert_close(operation.interval(x), Interval(ends.amin(0), ends.amax(0)), rtol=0, atol=0)
    torch.testing.assert_close(operation.apply(middle), under, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@slopes
def test_no_rounding_takes_a_plane_across(below, above, dtype):
    """In rational arithmetic, with the slopes as the precision holds them."""
    x = Interval(*random_intervals(400, dtype))
    below, above = (float(torch.tensor(slope, dtype=dtype)) for slope in (below, above))
    operation = Kink(below, above)
    planes = operation.relax(x)
    sign = Fraction(int(operation.sign))
    parts = (*x, planes.lower, planes.upper, planes.shift)
    for low, high, under, over, shift in zip(*([Fraction(v) for v in part.tolist()] for part in parts), strict=True):
        for point in {low, high, max(low, min(high, Fraction(0)))}:
            truth = sign * Fraction(above if point > 0 else below) * point
            assert under * point <= truth <= over * point + shift


def test_absolute_values_of_a_symmetric_interval_are_not_negative():
    end = torch.tensor([[0.3, 2.0]])
    planes = Kink(-1.0, 1.0, 0).relax(Interval(-end, end))
    assert planes.lower.tolist() == [[0, 0]]


def test_a_relu_has_the_planes_of_the_paper():
    lower, upper = torch.tensor([[-1.0, -3.0, -2.0, 1.0]]), torch.tensor([[3.0, 1.0, -1.0, 2.0]])
    planes = kink_planes(lower, upper)
    assert planes.lower.tolist() == [[1, 0, 0, 1]]
    assert planes.upper.tolist() == [[0.75, 0.25, 0, 1]]
    torch.testing.assert_close(planes.shift, torch.tensor([[0.75, 0.75, 0.0, 0.0]]))


def test_infinite_ends_and_zeros():
    for x in (-torch.inf, -0.0, 0.0, torch.inf):
        x = torch.tensor([[x]])
        assert float(relu().apply(x)) == float(x.relu())
        assert float(Kink(0.0, 0.5).apply(x)) == float(0.5 * x.relu())
        assert float(Kink(-1.0, 1.0, 0).apply(x)) == float(x.abs())
    found = Kink(0.0, 0.5).interval(Interval(torch.tensor([-torch.inf]), torch.tensor([torch.inf])))
    assert [float(end) for end in found] == [0, torch.inf]


# A slope for each of three channels: convex, linear and concave.
CHANNELS = torch.tensor([-0.3, 1.0, 1.6], dtype=torch.float64)


def channels(shape):
    """A network that is a PReLU of its input, and the slopes of its values."""
    model = nn.PReLU(3, dtype=torch.float64)
    model.weight.data = CHANNELS
    return Fn(lambda x, inner: inner(x).flatten(1), model), CHANNELS.view(-1, *[1] * (len(shape) - 1)).expand(shape)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("method", ["backward", "forward"])
def test_slopes_of_channels(shape, method):
    model, weight = channels(shape)
    x = 4 * uniform(5, *shape, dtype=torch.float64) - 2
    region = Region.box(x - 0.7, x + 1.1)
    graph = capture(model, x)
    torch.testing.assert_close(graph(x), functional.prelu(x, CHANNELS).flatten(1))
    points = torch.stack([region.lower, region.upper, torch.zeros_like(x).clamp(region.lower, region.upper)])
    values = value(points, weight, torch.tensor(1.0).double()).flatten(2)
    if method == "forward":
        low, high = forward_bounds(graph, region).intervals[-1]
    else:
        bounds = Bounds.of(graph, [Interval(region.lower, region.upper)] + [None] * (len(graph.nodes) - 1))
        rows = torch.eye(x[0].numel(), dtype=x.dtype)
        rows = torch.cat([rows, -rows]).repeat(5, 1)
        found = lower_bounds(graph, graph.output, Rows.whole(rows), bounds.planes, bounds.errors, region)
        low, high = found.view(5, 2, -1).unbind(1)
        high = -high
    # The planes of one value have their extremes at its ends, where the chord is exact; the others may be off.
    assert bool((low <= values.amin(0) + 1e-12).all() and (high >= values.amax(0) - 1e-12).all())
    chord = (weight > 1).flatten().expand_as(low)
    torch.testing.assert_close(torch.where(chord, low, high), torch.where(chord, values.amin(0), values.amax(0)))


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize(("below", "above"), [(0.0, 1.0), (0.01, 1.0), (0.3, 0.7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_a_radius_of_the_input_costs(below, above, dtype, pushed):
    """The sizes of the coefficients that come out, times the radius: never less, and hardly more."""
    kink = Kink(below, above)
    assert kink.carries
    lower, upper = (end.to(dtype).reshape(2, 3, 50) for end in random_intervals(300))
    planes = kink_planes(lower, upper, below, above)
    if pushed:
        planes = planes._replace(push=uniform(2, 3, 50, seed=1).to(dtype) - 0.5)
    rows = Rows.whole(2 * uniform(8, 3, 50, seed=2).to(dtype) - 1)
    radius = uniform(2, 3, 50, seed=3).to(dtype)
    (before,), total, lost = kink.through(rows, planes, ((3, 50),), radius)
    (plain,), same = kink.backward(rows, planes, ((3, 50),))
    assert torch.equal(before.values, plain.values)
    assert torch.equal(total, same)
    exact = (before.values.double().abs().unflatten(0, (2, 4)) * radius.double().unsqueeze(1)).flatten(2).sum(2)
    assert bool((lost >= exact).all())
    if not pushed:  # else the two parts are bounded one by one
        torch.testing.assert_close(lost, exact, rtol=1e-3, atol=0)


def test_kinks_whose_slopes_change_signs_carry_no_radius():
    assert not any(Kink(below, above).carries for below, above in SLOPES if min(below, above) < 0 or below > above)
    assert not Kink(torch.zeros(3), 1.0).carries
