"""Minima of linear functions over boxes and balls, against solvers, enumeration, closed forms and sampling."""

from itertools import combinations

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from helpers.threats import random_admissible
from holdfast.certify.bounds.region import Region
from holdfast.errors import DataError
from holdfast.threats import L0, L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def solved(norm, a, low, high, eps):
    """``min <a, delta>`` for ``low <= delta <= high`` and ``|delta| <= eps``, by a solver or by trying every subset."""
    d = len(a)
    if norm == "l0":
        gains = [max(-g * s, -g * t) for g, s, t in zip(a, low, high, strict=True)]
        return -max(sum(chosen) for k in range(int(eps) + 1) for chosen in combinations(gains, k))
    if norm == "linf":
        return linprog(a, bounds=list(zip(low.clip(-eps), high.clip(max=eps), strict=True))).fun
    if norm == "l1":
        bounds = [*((0, max(b, 0)) for b in high), *((0, max(-b, 0)) for b in low)]
        return linprog(np.r_[a, -a], np.ones((1, 2 * d)), [eps], bounds=bounds).fun
    move = cp.Variable(d)
    bounds = [move[i] >= b for i, b in enumerate(low) if np.isfinite(b)]
    bounds += [move[i] <= b for i, b in enumerate(high) if np.isfinite(b)]
    return cp.Problem(cp.Minimize(a @ move), [cp.norm(move, 2) <= eps, *bounds]).solve(solver=cp.CLARABEL)


def cases(norm, seed, d, count=12):
    """Inputs in boxes, some at a face, some bounds infinite; rows with zeros and ties; budgets small to ample."""
    rng = np.random.default_rng([seed, d])
    lower, upper = -rng.random(d), rng.random(d)
    x = rng.uniform(lower, upper, (count, d))
    x = np.where(rng.random((count, d)) < 0.2, lower, np.where(rng.random((count, d)) < 0.2, upper, x))
    if norm != "l0":
        lower = np.where(rng.random(d) < 0.2, -np.inf, lower)
    eps = rng.integers(0, d + 1, count) if norm == "l0" else 10 ** rng.uniform(-2, 1, count)
    a = rng.normal(size=(count, d))
    a[::3] = rng.integers(-1, 2, (len(a[::3]), d))
    a[1] = 0
    x, eps, a, lower, upper = (torch.as_tensor(v, dtype=torch.float64) for v in (x, eps, a, lower, upper))
    return BALLS[norm](eps, (lower, upper)), x, a


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("norm", BALLS)
def test_the_minimum_is_that_of_a_solver(norm, d):
    threat, x, a = cases(norm, 0, d)
    region = Region.around(threat, x)
    found, point = region.minimum(a), region.minimiser(a)
    lower, upper = (b.numpy() - x.numpy() for b in (threat.box.lower, threat.box.upper))
    for i in range(len(x)):
        expected = solved(norm, a[i].numpy(), lower[i], upper[i], float(threat.eps[i])) + float(a[i] @ x[i])
        assert float(found[i]) == pytest.approx(expected, abs=2e-7)
        assert float(a[i] @ point[i]) == pytest.approx(float(found[i]), abs=1e-11)
    assert bool(threat.admits(point, x).all())
    assert bool(((region.lower <= point) & (point <= region.upper)).all())


@pytest.mark.parametrize("norm", BALLS)
def test_no_point_of_the_set_is_lower_and_the_box_around_it_is_tight(norm):
    threat, x, a = cases(norm, 1, 6)
    region = Region.around(threat, x)
    points = x + random_admissible(threat, x, 3000, torch.Generator().manual_seed(0))
    assert bool(((points * a).sum(2) >= region.minimum(a) - 1e-12).all())
    assert bool(((region.lower - 1e-12 <= points) & (points <= region.upper + 1e-12)).all())
    for i in range(x.shape[1]):
        axis = torch.zeros_like(x)
        axis[:, i] = 1
        torch.testing.assert_close(region.minimum(axis), region.lower[:, i])
        torch.testing.assert_close(-region.minimum(-axis), region.upper[:, i])


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_without_a_box_the_minimum_is_the_dual_norm(norm, dual):
    generator = torch.Generator().manual_seed(0)
    x, a = (torch.randn(20, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    eps = torch.rand(20, generator=generator, dtype=torch.float64)
    expected = (a * x).flatten(1).sum(1) - eps * a.flatten(1).norm(p=dual, dim=1)
    torch.testing.assert_close(Region.around(BALLS[norm](eps, None), x).minimum(a), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", BALLS)
def test_rows_of_any_example_in_any_number(norm):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 30, 30, generator=generator, dtype=torch.float64)
    threat = BALLS[norm](torch.tensor([0.0, 1.0, 2.0, 30.0]))
    region = Region.around(threat, x)
    of = torch.randint(4, (211,), generator=generator)
    a = torch.randn(211, 3, 30, 30, generator=generator, dtype=torch.float64)
    found = region.minimum(a, of)
    alone = torch.cat([region.take(of[i : i + 1]).minimum(a[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(found, alone)
    torch.testing.assert_close(region.take(of).minimum(a), found)
    torch.testing.assert_close((a * region.minimiser(a, of)).sum((1, 2, 3)), found)
    # Sums of 2700 numbers of about 1.
    single = region.to(torch.float32).minimum(a.float(), of)
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=0.1)
    assert bool((single.double() <= found).all())
    grouped = a[:200].view(4, 50, 3, 30, 30)
    expected = torch.stack([region.minimum(grouped[:, i]) for i in range(50)], 1).flatten()
    torch.testing.assert_close(region.minimum(a[:200]), expected)
    points = (a[:200] * region.minimiser(a[:200])).sum((1, 2, 3))
    torch.testing.assert_close(points, expected)
    assert region.minimum(a[:0], of[:0]).shape == (0,)
    assert len(region.take(of)) == 211
    window = (slice(None), slice(3, 8), slice(20, 30))
    padded = torch.zeros_like(a)
    padded[:, *window] = a[:, *window]
    torch.testing.assert_close(region.crop(window).minimum(a[:, *window], of), region.minimum(padded, of))


@pytest.mark.parametrize("norm", BALLS)
def test_gradients_are_those_of_finite_differences(norm):
    threat, x, a = cases(norm, 2, 5)
    region = Region.around(BALLS[norm](threat.eps.clamp(0.3) if norm != "l0" else threat.eps, threat.box), x)
    generator = torch.Generator().manual_seed(3)
    # No ties, and nothing at a face of its box, where one-sided slopes differ.
    a = torch.randn(a.shape, generator=generator, dtype=torch.float64)
    room = 0.1 + torch.rand(2, *x.shape, generator=generator, dtype=torch.float64)
    lower, upper = region.center - room[0], region.center + room[1]

    def minimum(a, lower, upper, center, eps):
        return Region(lower, upper, center, norm, eps).minimum(a)

    inputs = tuple(t.clone().requires_grad_() for t in (a, lower, upper, region.center))
    assert torch.autograd.gradcheck(lambda *t: minimum(*t, region.eps), inputs, eps=1e-7, atol=1e-6)
    if norm in ("l2", "l1"):
        eps = region.eps.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda e: minimum(a, lower, upper, x, e), (eps,), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", BALLS)
def test_nothing_is_nan(norm, dtype):
    x = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.4, 1.0]], dtype=dtype)
    for eps in (0.0, 1.0, torch.inf):
        region = Region.around(BALLS[norm](eps), x)
        for scale in (0.0, 1e-30, 1.0, 1e30):
            a = torch.tensor([[1.0, -2.0, 0.0], [1.0, 1.0, 1.0]], dtype=dtype) * scale
            a.requires_grad_()
            found = region.minimum(a)
            (grad,) = torch.autograd.grad(found.sum(), a)
            assert bool(found.isfinite().all())
            assert bool(grad.isfinite().all())
            if eps == torch.inf:
                torch.testing.assert_close(found, a.clamp(max=0).sum(1), rtol=1e-5, atol=2e-5 * scale + 1e-37)
            if eps == 0:
                torch.testing.assert_close(found, (a * x).sum(1), rtol=1e-5, atol=2e-5 * scale + 1e-37)


def test_an_unbounded_coordinate_that_may_change_has_no_minimum():
    x = torch.zeros(1, 3)
    region = Region(x - torch.inf, x + torch.inf, x, "l0", torch.tensor([1.0]))
    assert -1e-37 < float(region.minimum(torch.tensor([[0.0, 0.0, 0.0]]))) <= 0
    assert float(region.minimum(torch.tensor([[0.0, 1.0, -1.0]]))) == -torch.inf


def test_boxes_of_any_bounds():
    lower, upper = torch.tensor([[0.0, -1.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    region = Region.box(lower, upper)
    a = torch.tensor([[1.0, -2.0], [-1.0, 1.0]])
    torch.testing.assert_close(region.minimum(a), torch.tensor([-2.0, 0.0]), rtol=1e-5, atol=1e-5)
    assert region.minimiser(a).tolist() == [[0.0, 1.0], [2.0, 2.0]]
    assert region.center.tolist() == [[0.5, 0.0], [2.0, 3.5]]


def test_empty_and_unbounded_sets_are_refused():
    with pytest.raises(DataError, match="example 1 lies outside the box"):
        Region.around(Linf(0.1), torch.tensor([[0.5], [1.3]]))
    with pytest.raises(DataError, match="example 0 has an empty set"):
        Region.box(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    with pytest.raises(DataError, match="example 0 has an unbounded set"):
        Region.around(L2("inf", None), torch.tensor([[0.5]]))
    with pytest.raises(DataError, match="example 0 has an unbounded set"):
        Region.box(torch.tensor([[0.0]]), torch.tensor([[torch.inf]]))
    # What rounding left outside belongs to the set.
    region = Region.around(Linf(0.0), torch.tensor([[1.0 + 5e-7]]))
    assert region.lower.item() == region.upper.item() == region.center.item() > 1
