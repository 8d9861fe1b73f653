"""Planes above and below nonlinear functions: never crossed, and as low as any plane can be at the middle."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from holdfast.certify.bounds.relaxations import ACTIVATIONS, clamp, elu, gelu, max_pool, mish, power, silu, softplus
from holdfast.errors import ModelError

# Each function with its reference and a range in which it can be told from its limits.
REFERENCES = {
    "clamp": (clamp(-0.5, 1.0), lambda x: x.clamp(-0.5, 1.0), -2, 3),
    "clamp below": (clamp(-math.inf, 1.0), lambda x: x.clamp(max=1.0), -2, 3),
    "sigmoid": (ACTIVATIONS["sigmoid"], torch.sigmoid, -8, 8),
    "tanh": (ACTIVATIONS["tanh"], torch.tanh, -4, 4),
    "gelu": (gelu(), functional.gelu, -5, 5),
    "gelu tanh": (gelu("tanh"), lambda x: functional.gelu(x, approximate="tanh"), -5, 5),
    "silu": (silu(), functional.silu, -9, 9),
    "exp": (ACTIVATIONS["exp"], torch.exp, -4, 3),
    "log": (ACTIVATIONS["log"], torch.log, 0.01, 5),
    "sqrt": (ACTIVATIONS["sqrt"], torch.sqrt, 0, 5),
    "reciprocal": (ACTIVATIONS["reciprocal"], torch.reciprocal, 0.05, 5),
    "square": (ACTIVATIONS["square"], torch.square, -3, 3),
    "cube": (power(3), lambda x: x**3, -2, 2),
    "fourth power": (power(4), lambda x: x**4, -2, 2),
    "elu": (elu(), functional.elu, -5, 2),
    "elu shallow": (elu(0.4), lambda x: functional.elu(x, 0.4), -5, 2),
    "elu falling": (elu(-0.5), lambda x: functional.elu(x, -0.5), -5, 2),
    "selu": (elu(1.6732632423543772, 1.0507009873554805), functional.selu, -5, 2),
    "celu": (elu(0.3, 1.0, 1 / 0.3), lambda x: torch.where(x > 0, x, 0.3 * torch.expm1(x / 0.3)), -3, 2),
    "softplus": (softplus(), functional.softplus, -6, 6),
    "softplus jumping": (softplus(1.0), lambda x: functional.softplus(x, 1.0, 1.0), -3, 3),
    "mish": (mish(), functional.mish, -9, 6),
    "logsigmoid": (ACTIVATIONS["logsigmoid"], functional.logsigmoid, -6, 6),
    "hardswish": (ACTIVATIONS["hardswish"], functional.hardswish, -5, 5),
    "erf": (ACTIVATIONS["erf"], torch.erf, -3, 3),
    "atan": (ACTIVATIONS["atan"], torch.atan, -6, 6),
    "log1p": (ACTIVATIONS["log1p"], torch.log1p, -0.95, 5),
    "expm1": (ACTIVATIONS["expm1"], torch.expm1, -4, 3),
    "sin": (ACTIVATIONS["sin"], torch.sin, -9, 12),
    "cos": (ACTIVATIONS["cos"], torch.cos, -12, 9),
    "power 1.5": (power(1.5), lambda x: x**1.5, 0, 4),
    "power 0.3": (power(0.3), lambda x: x**0.3, 0.01, 4),
    "power -2": (power(-2), lambda x: x**-2, 0.1, 4),
    "power -0.75": (power(-0.75), lambda x: x**-0.75, 0.1, 4),
}
KINKS = torch.tensor([-3.0, -0.5, 0.0, 1.0, math.nextafter(1.0, 2.0), 3.0], dtype=torch.float64)
functions = pytest.mark.parametrize("name", REFERENCES)


def intervals(name, count, dtype=torch.float64, seed=0):
    """Random intervals in the function's range: wide, narrow, one-sided and crossing; some a single point."""
    _, _, start, end = REFERENCES[name]
    generator = torch.Generator().manual_seed(seed)
    ends = start + (end - start) * torch.rand(2, count, generator=generator, dtype=torch.float64)
    width = 10 ** (-7 * torch.rand(count, generator=generator, dtype=torch.float64))
    ends[1] = torch.where(torch.arange(count) % 2 == 0, ends[1], ends[0] + width * (ends[1] - ends[0]))
    ends[1, ::17] = ends[0, ::17]
    lower, upper = ends.to(dtype).sort(0).values
    return lower, upper


def grid(lower, upper, points=801):
    """Points of each interval in float64, its ends and the functions' kinks among them."""
    low, high = lower.double().unsqueeze(-1), upper.double().unsqueeze(-1)
    inner = low + (high - low) * torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.cat([inner, KINKS.expand(*low.shape[:-1], len(KINKS)), high], -1).clamp(low, high).sort(-1).values


def sides(planes, x):
    """The lower and the upper plane at ``x``, worked out in float64."""
    k, b, s, t = (plane.double().unsqueeze(-1) for plane in planes)
    return k * x + b, s * x + t


def check_sound(activation, lower, upper):
    x = grid(lower, upper)
    value, (below, above) = activation.function(x), sides(activation.relax(lower, upper), x)
    noise = 2e-15 * (value.abs() + below.abs().maximum(above.abs()) + x.abs() * 1e-3 + 1e-300)
    assert bool((below <= value + noise).all()), activation.name
    assert bool((above >= value - noise).all()), activation.name
    low, high = activation.interval(lower, upper)
    assert bool((low.double().unsqueeze(-1) <= value).all())
    assert bool((high.double().unsqueeze(-1) >= value).all())


def envelope(value, x, middle):
    """The smallest concave function above the values, at the middle: ``min_k max_x f(x) - k (x - middle)``."""
    rise = value.diff() / x.diff().clamp_min(1e-300)
    low, high = (bound.unsqueeze(-1) for bound in (rise.amin(-1), rise.amax(-1)))
    for _ in range(80):
        k = (low + high) / 2
        beyond = x.gather(-1, (value - k * (x - middle)).argmax(-1, keepdim=True)) > middle
        low, high = torch.where(beyond, k, low), torch.where(beyond, high, k)
    return (value - high * (x - middle)).amax(-1)


@functions
def test_the_functions_are_those_of_torch(name):
    activation, reference, start, end = REFERENCES[name]
    x = torch.linspace(start, end, 1001, dtype=torch.float64)
    torch.testing.assert_close(activation.function(x), reference(x), rtol=1e-13, atol=1e-14)
    inside = x[1:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(reference(inside).sum(), inside)
    smooth = (inside.detach().unsqueeze(-1) != KINKS).all(-1)
    torch.testing.assert_close(activation.slope(inside.detach())[smooth], slope[smooth], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@functions
def test_no_point_of_the_function_is_beyond_its_planes(name, dtype):
    check_sound(REFERENCES[name][0], *intervals(name, 1000, dtype))


@functions
def test_no_plane_is_better_at_the_middle(name):
    activation = REFERENCES[name][0]
    lower, upper = intervals(name, 300, seed=1)
    keep = upper - lower > 1e-3
    lower, upper = lower[keep], upper[keep]
    x, middle = grid(lower, upper), ((lower + upper) / 2).unsqueeze(-1)
    value, (below, above) = activation.function(x), sides(activation.relax(lower, upper), middle)
    # The envelopes of the points on the grid are below and above those of the function by the square of its step.
    spread = value.amax(-1) - value.amin(-1)
    room = 6e-5 * spread + 1e-12
    assert bool((above[:, 0] <= envelope(value, x, middle) + room).all())
    assert bool((below[:, 0] >= -envelope(-value, x, middle) - room).all())
    low, high = activation.interval(lower, upper)
    torch.testing.assert_close(low, value.amin(-1), rtol=1e-12, atol=4e-5)
    torch.testing.assert_close(high, value.amax(-1), rtol=1e-12, atol=4e-5)


@functions
def test_a_worse_plane_would_not_pass(name):
    """The slopes are sealed by where the function turns: without that the planes would cross it."""
    activation = REFERENCES[name][0]
    blind = replace(activation, peaks=lambda k: (), valleys=lambda k: ())
    with pytest.raises(AssertionError):
        check_sound(replace(blind, slope=lambda x: activation.slope(x) + 0.3), *intervals(name, 1000))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(REFERENCES)),
    st.floats(-1e4, 1e4, width=32),
    st.floats(0, 1e4, width=32),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_interval(name, start, width, dtype):
    activation = REFERENCES[name][0]
    if activation.start > -torch.inf:
        start = abs(start) + 1e-3
    if name in ("exp", "expm1"):
        start = min(start, 80.0)
        width = min(width, 80.0 - start)
    lower = torch.tensor([start], dtype=dtype)
    check_sound(activation, lower, lower + width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@functions
def test_far_from_where_anything_happens(name, dtype):
    """Where a function is almost a line, it still has a side: down to the smallest numbers, and up to large ones."""
    activation = REFERENCES[name][0]
    generator = torch.Generator().manual_seed(0)
    ends = 10 ** (-12 + 15 * torch.rand(2, 500, generator=generator, dtype=torch.float64))
    ends = ends * torch.tensor([[1.0], [1.5]]) * torch.where(torch.arange(500) % 3 == 0, -1.0, 1.0)
    ends[0, ::5] *= -1
    ends[:, 1::7] = torch.tensor([[-60.0], [-50.0]])
    ends[:, 2::7] = torch.tensor([[-60.0], [-39.0]])
    if activation.start > -torch.inf:
        ends = ends.abs()
    lower, upper = ends.clamp(-1e3, 80.0 if "exp" in name else 1e3).to(dtype).sort(0).values
    check_sound(activation, lower, upper)


@functions
def test_extremes_give_no_nan(name):
    activation = REFERENCES[name][0]
    ends = torch.tensor([-torch.inf, -3e38, -1e20, -1.0, -0.0, 0.0, 1e-40, 1.0, 1e20, 3e38, torch.inf])
    pairs = torch.stack([torch.stack([a, b]) for a, b in product(ends, ends) if a <= b], 1)
    lower, upper = pairs
    planes, interval = activation.relax(lower, upper), activation.interval(lower, upper)
    assert not any(bool(bound.isnan().any()) for bound in (*planes, *interval))
    assert bool(planes.lower_slope.isfinite().all() & planes.upper_slope.isfinite().all())
    undefined = lower < activation.start
    assert bool((interval[1][undefined] == torch.inf).all())
    assert bool((planes.lower_intercept[undefined] == -torch.inf).all())
    usual = (pairs.abs().amax(0) < 1e3) & (lower > activation.start + 1e-3)
    ends = [end[usual].requires_grad_() for end in pairs]
    bounds = (*activation.relax(*ends), *activation.interval(*ends))
    grads = torch.autograd.grad(sum(bound.sum() for bound in bounds), ends)
    assert not any(bool(grad.isnan().any()) for grad in grads)


@functions
def test_gradients_are_those_of_finite_differences(name):
    activation = REFERENCES[name][0]
    lower, upper = intervals(name, 30, seed=2)
    keep = (upper - lower > 0.3) & (lower > activation.start + 0.1)
    lower, upper = (bound[keep].clone().requires_grad_() for bound in (lower, upper))
    # Touching points are found to about 1e-8, and the differences of what they determine are no better.
    assert torch.autograd.gradcheck(activation.relax, (lower, upper), eps=1e-5, atol=2e-3, rtol=2e-3)


def test_a_line_through_the_end_touches_where_it_should():
    """The cube above [-1, 2] is touched from (-1, -1) at 1/2; its slope there is 3/4."""
    planes = power(3).relax(torch.tensor([-1.0, -2.0]).double(), torch.tensor([2.0, 1.0]).double())
    torch.testing.assert_close(planes.lower_slope[0], torch.tensor(0.75).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(planes.lower_intercept[0], torch.tensor(-0.25).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(planes.upper_slope[1], torch.tensor(0.75).double(), rtol=1e-9, atol=0)


def test_an_unknown_gelu():
    with pytest.raises(ModelError, match="must be 'none' or 'tanh'"):
        gelu("fast")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_planes_of_the_maximum(k, dtype):
    generator = torch.Generator().manual_seed(k)
    lower = torch.randn(2000, k, generator=generator, dtype=torch.float64).to(dtype)
    width = torch.rand(2000, k, generator=generator, dtype=torch.float64).to(dtype)
    upper = lower + width * (torch.rand(2000, 1, generator=generator, dtype=torch.float64) * 3).to(dtype)
    upper[::5, 0] = lower[::5, 0]
    if k > 1:
        # Windows in the padding.
        lower[::7, -1] = upper[::7, -1] = torch.finfo(dtype).min
    low_k, low_b, high_k, high_b = (plane.double() for plane in max_pool(lower, upper))
    low, high = lower.double(), upper.double()
    # The maximum is convex: above any box, it is the corners that matter.
    corners = torch.tensor(list(product([0.0, 1.0], repeat=k)), dtype=torch.float64)[:, None]
    draws = torch.rand(50, 1, k, generator=generator, dtype=torch.float64)
    x = low + (high - low) * torch.cat([corners, draws])
    value, noise = x.amax(-1), 1e-12
    above = (high_k * x).sum(-1) + high_b
    assert bool((above >= value - noise).all())
    assert bool(((low_k * x).sum(-1) + low_b <= value).all())
    middle, best = low / 2 + high / 2, low.amax(-1, keepdim=True)
    found = (high_k * middle).sum(-1) + high_b
    simple = best[:, 0] + (high - best).clamp_min(0).sum(-1) / 2
    assert bool((found <= torch.minimum(simple, high.amax(-1)) + 1e-6).all())
    assert k < 3 or bool((found < torch.minimum(simple, high.amax(-1)) - 1e-3).any())
    second = high.topk(2, -1).values[:, -1] if k > 1 else torch.full_like(best[:, 0], -torch.inf)
    winner = high.argmax(-1)
    certain = (low.argmax(-1) == winner) & (best[:, 0] >= second)
    assert bool(certain.any())
    assert bool((high_k[certain].argmax(-1) == winner[certain]).all())
    assert bool((high_b[certain] == 0).all() & (high_k[certain].sum(-1) == 1).all())


def test_planes_of_the_maximum_are_differentiable():
    generator = torch.Generator().manual_seed(0)
    lower = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    upper = lower + torch.rand(30, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(max_pool, (lower.requires_grad_(), upper.requires_grad_()), atol=1e-4)
