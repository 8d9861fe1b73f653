"""The shortest moves to hyperplanes against solvers, brute force and closed forms."""

from itertools import combinations

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from helpers.threats import inner, norm_of
from holdfast.threats import L0, L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1}


def cases(d, seed, count=20):
    """Points in boxes, some bounds infinite, some touched; gradients with zeros and ties; gaps in and out of reach."""
    rng = np.random.default_rng([d, seed])
    lower, upper = -rng.random(d), rng.random(d)
    free = rng.random((2, d)) < 0.25
    x = rng.uniform(lower, upper, (count, d))
    z = rng.uniform(lower, upper, (count, d)) - x
    z = np.where(rng.random((count, d)) < 0.2, lower - x, np.where(rng.random((count, d)) < 0.2, upper - x, z))
    lower, upper = np.where(free[0], -np.inf, lower), np.where(free[1], np.inf, upper)
    grad = rng.normal(size=(count, d))
    grad[::3] = rng.integers(-2, 3, (len(grad[::3]), d))
    grad[0] = 0
    gap = rng.normal(size=count) * np.abs(grad).sum(1) * 10 ** rng.uniform(-2, 0.5, count)
    gap[[0, 1]] = 1.0, 0.0
    return [torch.as_tensor(v, dtype=torch.float64) for v in (x, z, grad, gap, lower, upper)]


def reach(grad, low, high):
    """The most that one example can gain inside the box."""
    return sum(max(g * a, g * b) if g else 0.0 for g, a, b in zip(grad, low, high, strict=True))


def shortest(norm, grad, gap, low, high):
    """The length of the shortest move by a solver."""
    d = len(grad)
    if norm == "l2":
        move = cp.Variable(d)
        bounds = [move[i] >= b for i, b in enumerate(low) if np.isfinite(b)]
        bounds += [move[i] <= b for i, b in enumerate(high) if np.isfinite(b)]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(move)), [grad @ move == gap, *bounds])
        return problem.solve(solver=cp.CLARABEL) ** 0.5
    if norm == "linf":
        cost, rows = np.r_[np.zeros(d), 1], np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
        bounds = [*zip(low, high, strict=True), (0, None)]
        return linprog(cost, rows, np.zeros(2 * d), np.r_[grad, 0][None], [gap], bounds).fun
    bounds = [*((0, max(b, 0)) for b in high), *((0, max(-b, 0)) for b in low)]
    return linprog(np.ones(2 * d), A_eq=np.r_[grad, -grad][None], b_eq=[gap], bounds=bounds).fun


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 6])
@pytest.mark.parametrize("norm", BALLS)
def test_the_shortest_move(norm, d, dtype):
    room = 1e-6 if dtype == torch.float64 else 1e-5
    met = missed = 0
    for seed in range(3):
        x, z, grad, gap, lower, upper = (v.to(dtype) for v in cases(d, seed))
        # The budget says nothing here.
        move = BALLS[norm](1e-3, (lower, upper)).to_plane(z, x, grad, gap)
        assert move.dtype == dtype
        low, high = (lower - x - z).double().clamp_max(0).numpy(), (upper - x - z).double().clamp_min(0).numpy()
        m, g, b = move.double().numpy(), grad.double().numpy(), gap.double().numpy()
        assert (m >= low - room).all()
        assert (m <= high + room).all()
        assert (m[g == 0] == 0).all()
        for i in range(len(m)):
            most = reach(np.sign(b[i]) * g[i], low[i], high[i])
            if abs(b[i]) > most:
                corner = np.where(b[i] * g[i] > 0, high[i], np.where(b[i] * g[i] < 0, low[i], 0))
                np.testing.assert_allclose(m[i], corner, rtol=room)
                missed += 1
            elif abs(b[i]) < 0.999 * most:
                assert g[i] @ m[i] == pytest.approx(b[i], rel=room, abs=room)
                length = float(norm_of(norm, move[i : i + 1]))
                assert length == pytest.approx(shortest(norm, g[i], b[i], low[i], high[i]), rel=5 * room, abs=room)
                met += 1
    assert met > 10
    assert missed > 3


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_fewest_coordinates(d):
    x, z, grad, gap, lower, upper = cases(d, 0)
    lower, upper = lower.clamp_min(-2), upper.clamp_max(2)
    move = L0(1, (lower, upper)).to_plane(z, x, grad, gap)
    low, high = (lower - x - z).clamp_max(0).numpy(), (upper - x - z).clamp_min(0).numpy()
    assert ((move.numpy() >= low - 1e-12) & (move.numpy() <= high + 1e-12)).all()
    for i in range(len(x)):
        g, b = grad[i].numpy() * np.sign(gap[i].item()), abs(gap[i].item())
        gains = [max(a * s, a * t) for a, s, t in zip(g, low[i], high[i], strict=True)]
        enough = [len(c) for k in range(d + 1) for c in combinations(gains, k) if sum(c) >= b]
        assert float(g @ move[i].numpy()) == pytest.approx(min(b, sum(gains)), rel=1e-9, abs=1e-12)
        assert int((move[i] != 0).sum()) == min(enough, default=sum(gain > 0 for gain in gains))


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("norm", BALLS)
def test_gradients_of_every_size(norm, scale):
    x, z, grad, gap, lower, upper = (v.float() for v in cases(50, 0))
    threat = BALLS[norm](1.0, (lower, upper))
    expected = threat.to_plane(z, x, grad, gap)
    torch.testing.assert_close(threat.to_plane(z, x, grad * scale, gap * scale), expected, rtol=1e-4, atol=1e-6)
    nowhere = BALLS[norm](1.0, None).to_plane(z, x, grad * scale, torch.full_like(gap, 3e38))
    assert nowhere.isfinite().all()
    assert bool((norm_of(norm, nowhere)[1:] > 0).all())
    for no_number in (torch.nan, torch.inf, -torch.inf):
        assert threat.to_plane(z, x, grad, torch.full_like(gap, no_number)).isfinite().all()
    assert not threat.to_plane(z, x, grad, torch.full_like(gap, torch.nan)).any()


@pytest.mark.parametrize("norm", [*BALLS, "l0"])
def test_images_are_flat_vectors(norm):
    x, z, grad, gap, lower, upper = cases(12, 1)
    make, bounds = {**BALLS, "l0": L0}[norm], (lower.clamp_min(-2), upper.clamp_max(2))
    flat = make(1, bounds).to_plane(z, x, grad, gap)
    assert bool((flat != 0).any(1)[2:].all())
    shaped = [v.reshape(-1, 3, 2, 2).contiguous(memory_format=torch.channels_last) for v in (z, x, grad)]
    moved = make(1, tuple(b.reshape(3, 2, 2) for b in bounds)).to_plane(*shaped, gap)
    torch.testing.assert_close(moved.reshape(-1, 12), flat, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", BALLS)
def test_many_coordinates_in_single_precision(norm):
    """As many as an image has: the gap is met, and no random move in the box that meets it is shorter."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.rand(2, 4, 3072, generator=generator)
    z = z - x
    grad = torch.randn(4, 3072, generator=generator) ** 5
    threat = BALLS[norm](1.0)
    for share in (1e-6, 1e-2, 0.5, 0.999):
        gap = share * inner(grad, torch.where(grad > 0, 1 - x - z, -x - z)).float()
        move = threat.to_plane(z, x, grad, gap)
        torch.testing.assert_close(inner(grad, move), gap.double(), rtol=1e-5, atol=0)
        assert bool((norm_of(norm, move) <= norm_of(norm, share * torch.where(grad > 0, 1 - x - z, -x - z))).all())
