"""Projections and maximisers against solvers, brute force and optimality conditions."""

from fractions import Fraction
from itertools import combinations

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.threats import dual_of, inner, norm_of
from holdfast.threats import L0, L1, L2, Linf, l2

BALLS = {"linf": Linf, "l2": L2, "l1": L1}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def problems(d, seed, count=24):
    """Inputs, vectors, budgets of examples and a box of features in ``d`` dimensions, the degenerate ones included."""
    rng = np.random.default_rng([d, seed])
    lower, upper = -rng.random(d) * 2, rng.random(d) * 2
    upper[rng.random(d) < 0.1] = 0.0
    lower[rng.random(d) < 0.1] = 0.0
    # A third of all coordinates lies on a face of the box.
    x = (lower + (upper - lower) * np.clip(rng.random((count, d)) * 1.5 - 0.25, 0, 1)).clip(lower, upper)
    y = rng.normal(size=(count, d)) * 10 ** rng.uniform(-1, 1, (count, 1))
    y[0] = 0
    y[1:5] = rng.integers(-2, 3, (4, d))  # ties and zeros
    y[5] *= rng.random(d) < 0.3
    y[6] = 1.0
    eps = rng.random(count) * d**0.5
    eps[[1, 7]] = 0
    eps[[2, 8]] = 100
    eps[6] = 0.5
    return tuple(torch.as_tensor(v, dtype=torch.float64) for v in (x, y, eps, lower, upper))


def solve(norm, x, y, eps, lower, upper, linear=False):
    """The nearest points to ``y``, or the maximisers of ``<y, z>``, of all rows at once by a conic solver."""
    x, y, eps, lower, upper = (v.numpy() for v in (x, y, eps, lower, upper))
    z = cp.Variable(x.shape)
    goal = cp.Maximize(cp.sum(cp.multiply(y, z))) if linear else cp.Minimize(cp.sum_squares(z - y))
    ball = cp.norm(z, ORDER[norm], axis=1) <= eps
    cp.Problem(goal, [ball, z >= lower - x, z <= upper - x]).solve(solver=cp.CLARABEL)
    return torch.as_tensor(z.value)


def assert_in_set(norm, z, x, eps, lower, upper):
    assert bool((norm_of(norm, z) <= eps * (1 + 1e-11)).all())
    assert bool(((lower - x <= z) & (z <= upper - x)).all())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("d", [1, 2, 3, 7])
@pytest.mark.parametrize("norm", BALLS)
def test_project_is_the_nearest_point(norm, d, seed):
    x, y, eps, lower, upper = problems(d, seed)
    threat = BALLS[norm](eps, (lower, upper))
    z, best = threat.project(y, x), solve(norm, x, y, eps, lower, upper)
    assert_in_set(norm, z, x, eps, lower, upper)
    scale = 1 + y.abs().amax(1)
    assert bool((((z - y) ** 2).sum(1) <= ((best - y) ** 2).sum(1) + 1e-6 * scale**2).all())
    # The objective is strongly convex, so the minimisers themselves agree.
    assert bool(((z - best).abs().amax(1) <= 1e-3 * scale).all())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("d", [1, 2, 3, 7])
@pytest.mark.parametrize("norm", BALLS)
def test_maximize_reaches_the_value_of_a_conic_program(norm, d, seed):
    x, g, eps, lower, upper = problems(d, seed)
    z, best = BALLS[norm](eps, (lower, upper)).maximize(g, x), solve(norm, x, g, eps, lower, upper, linear=True)
    assert_in_set(norm, z, x, eps, lower, upper)
    torch.testing.assert_close(inner(g, z), inner(g, best), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("d", [50, 3072])
@pytest.mark.parametrize("norm", BALLS)
def test_project_satisfies_the_optimality_conditions(norm, d, scale, box):
    generator = torch.Generator().manual_seed(d)
    x = (torch.rand(4, d, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    y = torch.randn(4, d, generator=generator, dtype=torch.float64) * scale
    eps = {"linf": 0.3, "l2": 2.0, "l1": 12.0}[norm]
    threat = BALLS[norm](eps, box)
    z = threat.project(y, x)
    low, high = (0 - x, 1 - x) if box else (torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf))
    assert_in_set(norm, z, 0 * x, eps, low, high)
    inside = (low < z) & (z < high)
    for row in range(4):
        here, there = z[row], y[row]
        free = inside[row] & (here != 0) if norm == "l1" else inside[row]
        if norm == "linf":
            torch.testing.assert_close(here, there.clamp(-eps, eps).clamp(low[row], high[row]))
            continue
        if norm == "l2":
            # z = clip(y / (1 + mu)), mu >= 0, mu = 0 unless the ball binds.
            dual = (there[free] / here[free]).median() - 1
            expected = (there / (1 + dual)).clamp(low[row], high[row])
        else:
            # z = clip(soft(y, mu)), mu >= 0, mu = 0 unless the ball binds.
            dual = (there[free] - here[free]).abs()[here[free].abs().argmax()]
            expected = (there.sign() * (there.abs() - dual).clamp_min(0)).clamp(low[row], high[row])
        assert dual >= -1e-12
        assert float(dual) < 1e-9 or float(norm_of(norm, here[None])) == pytest.approx(eps, rel=1e-11)
        torch.testing.assert_close(here, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_box_retract_is_project_and_with_one_it_clips(norm, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 20, generator=generator, dtype=dtype), 2 * torch.randn(6, 20, generator=generator, dtype=dtype)
    free, boxed = BALLS[norm](0.9, None), BALLS[norm](0.9)
    nearest = free.project(y, x)
    torch.testing.assert_close(free.retract(y, x), nearest)
    torch.testing.assert_close(boxed.retract(y, x), torch.maximum(torch.minimum(nearest, 1 - x), -x))
    if norm != "linf":
        assert not torch.allclose(boxed.retract(y, x), boxed.project(y, x), atol=1e-3)


@pytest.mark.parametrize("size", [0.001, 1.0])
@pytest.mark.parametrize(("norm", "eps"), [("l1", 60.0), ("l2", 3.0)])
def test_an_image_in_float32_uses_the_budget_and_keeps_to_it(norm, eps, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 224, 224, generator=generator)
    y = size * torch.randn(x.shape, generator=generator)
    threat = BALLS[norm](eps)
    for z in (threat.project(y, x), threat.maximize(y, x)):
        length = norm_of(norm, z)
        assert bool((length <= eps * (1 + 1e-6)).all())
        spent = torch.minimum(norm_of(norm, y.clamp(-x, 1 - x)), torch.tensor(eps))
        assert bool((length >= spent * (1 - 1e-6)).all()) or size < 1
        assert bool(((-x <= z) & (z <= 1 - x)).all())
        assert bool(threat.admits(threat.apply(x, z), x).all())


@pytest.mark.parametrize("seed", range(40))
def test_l0_against_every_subset(seed):
    rng = np.random.default_rng(seed)
    d, k = int(rng.integers(1, 6)), int(rng.integers(0, 6))
    lower, upper = -rng.random(d), rng.random(d)
    x = rng.uniform(lower, upper).clip(lower, upper)
    y = rng.integers(-2, 3, d).astype(float) if seed % 4 == 0 else rng.normal(size=d) * 2
    faces, kept = np.where(y > 0, upper, lower) - x, y.clip(lower - x, upper - x)
    most, least = 0.0, (y**2).sum()
    for subset in combinations(range(d), min(k, d)):
        chosen = np.isin(np.arange(d), subset)
        most = max(most, (y * faces * chosen).sum())
        least = min(least, ((np.where(chosen, kept, 0) - y) ** 2).sum())
    x, y = torch.as_tensor(x)[None], torch.as_tensor(y)[None]
    threat = L0(k, (torch.as_tensor(lower), torch.as_tensor(upper)))
    z, best = threat.project(y, x), threat.maximize(y, x)
    assert float(((z - y) ** 2).sum()) == pytest.approx(least, abs=1e-12)
    assert float(inner(y, best)) == pytest.approx(most, abs=1e-12)
    for point in (z, best):
        assert int((point != 0).sum()) <= k
        assert bool(((torch.as_tensor(lower) - x <= point) & (point <= torch.as_tensor(upper) - x)).all())


def test_l0_projection_tells_large_values_apart():
    # Squares of these differ by less than their last place, or overflow.
    for pair in ([1e4, 1e4 + 3], [1e25, 2e25]):
        z = L0(1, (-1.0, 1.0)).project(torch.tensor([[*pair, 0.5]]), torch.zeros(1, 3))
        assert z.tolist() == [[0.0, 1.0, 0.0]]


# The root by bisection over logarithms, in a type whose squares do not overflow.
def bisect_l2(y, radius, lower, upper):
    y, lower, upper = (np.asarray(v, dtype=np.longdouble) for v in (y, lower, upper))
    low, high = np.longdouble(-120), np.longdouble(0)
    if np.sqrt((np.clip(y, lower, upper) ** 2).sum()) <= radius:
        return np.clip(y, lower, upper)
    for _ in range(90):
        middle = (low + high) / 2
        inside = np.sqrt((np.clip(10**middle * y, lower, upper) ** 2).sum()) <= radius
        low, high = (middle, high) if inside else (low, middle)
    return np.clip(10**low * y, lower, upper)


# The same for the threshold of L1.
def bisect_l1(y, radius, lower, upper):
    size = [Fraction(abs(float(v))) for v in y]
    room = [min(s, Fraction(float(u if v > 0 else -b))) for s, v, b, u in zip(size, y, lower, upper, strict=True)]
    radius = Fraction(float(radius))

    def shrunk(lam):
        return [min(max(s - lam, Fraction(0)), r) for s, r in zip(size, room, strict=True)]

    if sum(shrunk(Fraction(0))) <= radius:
        z = shrunk(Fraction(0))
    else:
        # The norm is linear between neighbouring kinks, so exact arithmetic finds its crossing exactly.
        kinks = sorted({Fraction(0), *size, *(s - r for s, r in zip(size, room, strict=True))})
        left = max(k for k in kinks if sum(shrunk(k)) >= radius)
        right = min(k for k in kinks if k > left) if left < kinks[-1] else left
        fall = sum(shrunk(left)) - sum(shrunk(right))
        lam = left + ((sum(shrunk(left)) - radius) * (right - left) / fall if fall else 0)
        z = shrunk(lam)
    return np.array([float(v) for v in z]) * np.sign(np.asarray(y, dtype=float))


wide = st.tuples(st.sampled_from([-1.0, 1.0]), st.floats(-30, 30)).map(lambda pair: pair[0] * 10 ** pair[1])
coordinate = st.tuples(wide | st.just(0.0) | st.floats(-3, 3), st.floats(0, 3), st.floats(0, 3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(coordinate, min_size=1, max_size=8), st.floats(1e-3, 5), st.sampled_from([torch.float32, torch.float64])
)
def test_any_range_of_values_projects_well(rows, radius, dtype):
    y, below, above = torch.tensor(rows, dtype=dtype).T
    x, radius = torch.zeros(1, len(y), dtype=dtype), float(torch.tensor(radius, dtype=dtype))
    room = 1e-5 if dtype == torch.float32 else 1e-12
    for ball, oracle in ((L2, bisect_l2), (L1, bisect_l1)):
        z = ball(radius, (-below, above)).project(y[None], x)
        expected = torch.as_tensor(np.asarray(oracle(y, radius, -below, above), dtype=float))
        torch.testing.assert_close(z[0].double(), expected, rtol=0, atol=room * 5)
        assert bool(((-below <= z) & (z <= above)).all())
        assert bool((norm_of(ball(1).norm, z) <= radius * (1 + room)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("box", [None, (-0.6, 0.6)])
@pytest.mark.parametrize("ball", [L2, L1])
def test_project_keeps_its_budget_at_every_scale(ball, box, scale, dtype):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(-3, 4, (40, 9), generator=generator).to(dtype)
    y[::2] += torch.rand(20, 9, generator=generator, dtype=dtype)
    threat = ball(1.3, box)
    for move in (threat.project, threat.retract):
        z = move(scale * y, torch.zeros_like(y))
        full = torch.full((40,), 1.3, dtype=torch.float64) if move == threat.project and scale > 1 else None
        length = norm_of(threat.norm, z)
        assert bool((length <= 1.3 * (1 + 1e-6)).all())
        if scale < 1:
            assert torch.equal(z, scale * y)
        elif box is None:
            torch.testing.assert_close(length, full if full is not None else length.clamp_min(1.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("base", "step"), [(1.5, 0.9), (2.0, 0.5), (4.0, 0.9), (10.0, 1.1), (1.2, 1.0)])
def test_newton_ends_on_sequences_made_to_be_slow(base, step, dtype, monkeypatch):
    i = torch.arange(150, dtype=torch.float64)
    y, room = (base**-i).to(dtype), (step**i).to(dtype)
    radius = float(norm_of("l2", room[None])) * 0.999
    rounds, length = [], l2._length
    monkeypatch.setattr(l2, "_length", lambda d: rounds.append(1) or length(d))
    z = L2(radius, (-room, room)).maximize(y[None], torch.zeros(1, 150, dtype=dtype))
    # Two norms a round, and a few around them; a coordinate a round would be 300.
    assert len(rounds) < 130
    assert float(norm_of("l2", z)) <= radius * (1 + 1e-6)
    g = y[None].double()
    best = bisect_multiple(g[0].numpy(), radius, room.double().numpy())
    torch.testing.assert_close(inner(g, z)[0], torch.tensor(best, dtype=torch.float64), rtol=1e-6, atol=0)


def bisect_multiple(g, radius, room):
    """The largest ``<g, z>`` in a symmetric box and an L2 ball, by bisection over the multiple of ``g``."""
    g, room = np.asarray(g, dtype=np.longdouble), np.asarray(room, dtype=np.longdouble)
    low, high = np.longdouble(-400), np.longdouble(400)
    for _ in range(120):
        middle = (low + high) / 2
        inside = np.sqrt((np.minimum(10**middle * g, room) ** 2).sum()) <= radius
        low, high = (middle, high) if inside else (low, middle)
    return float((g * np.minimum(10**low * g, room)).sum())


@pytest.mark.parametrize("ball", [Linf, L2, L1, L0])
def test_nan_gradients_do_not_hang_nor_spread_to_other_rows(ball):
    threat, x = ball(2), torch.full((3, 5), 0.5)
    g = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    clean = threat.maximize(g, x), threat.project(g, x)
    g[1] = torch.nan
    for got, want in zip((threat.maximize(g, x), threat.project(g, x)), clean, strict=True):
        assert torch.equal(got[::2], want[::2])


@pytest.mark.parametrize("ball", [Linf, L2, L1])
@pytest.mark.parametrize("eps", [0.3, 1.7])
def test_without_a_box_maximize_attains_hoelders_bound(ball, eps):
    g = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threat = ball(eps, None)
    z = threat.maximize(g, torch.zeros_like(g))
    torch.testing.assert_close(inner(g, z), eps * dual_of(threat.norm, g))
    torch.testing.assert_close(z, eps * threat.steepest(g))


def test_neighbours_do_not_change_a_projection():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 40, generator=generator) * torch.tensor([1e-2, 1.0, 5.0, 1e4, 1e9])[:, None]
    x = torch.rand(5, 40, generator=generator)
    for threat in (Linf(0.2), L2(1.0), L1(2.0), L0(3)):
        z, best = threat.project(y, x), threat.maximize(y, x)
        for row in range(5):
            one = slice(row, row + 1)
            assert torch.equal(threat.project(y[one], x[one]), z[one])
            assert torch.equal(threat.maximize(y[one], x[one]), best[one])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_a_step_is_as_long_as_it_is_asked_to_be_whatever_the_gradient(ball, scale):
    g = scale * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    threat, size = ball(0.9, None), torch.tensor([0.0, 0.25, 0.5, 7.0])
    z = threat.ascend(torch.zeros_like(g), torch.zeros_like(g), g, size)
    torch.testing.assert_close(z, size.clamp_max(0.9).reshape(4, 1, 1, 1) * threat.steepest(g))
    again = threat.ascend(z, torch.zeros_like(g), g, torch.full((4,), 0.1))
    torch.testing.assert_close(norm_of(threat.norm, again), torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0.0, [0, 0, 0, 0]),
        (1.0, [0, 0, 0.5, 0]),
        (1.5, [0, 0, 0.5, 0.25]),
        (2.0, [0, 0, 0.5, 0.25]),
        (9.0, [1, 0, 0.5, 0.25]),
    ],
)
def test_an_l0_step_moves_the_best_coordinates_to_their_bounds(size, expected, scale):
    # What they gain: 1, 0.5, 1.5 and 1.25.
    g, x = scale * torch.tensor([[1.0, -5.0, 3.0, 5.0]]), torch.tensor([[0.0, 0.1, 0.5, 0.75]])
    z = L0(3).ascend(torch.zeros_like(x), x, g, torch.tensor([size]))
    assert z.tolist() == [expected]


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-200, torch.float64), (1e200, torch.float64), (1e-40, torch.float32), (1e38, torch.float32)]
)
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_the_direction_survives_gradients_whose_squares_do_not(ball, scale, dtype):
    g = torch.tensor([[3.0, 0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64) / 4
    threat = ball(0.4)
    room = 1e-4 if scale == 1e-40 else 1e-6  # so small a float32 has few digits
    x = torch.full_like(g, 0.5).to(dtype)
    for method, arguments in ((threat.steepest, ()), (threat.maximize, (x,))):
        expected = method(g, *(a.double() for a in arguments)).to(dtype)
        torch.testing.assert_close(method((scale * g).to(dtype), *arguments), expected, rtol=room, atol=room)
