"""What is proved of linear classifiers, against rational arithmetic and other orders of summation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse

from holdfast.linear import RobustLinearSVC
from holdfast.linear.decision import Decision
from holdfast.linear.settings import ball
from holdfast.linear.support import dual_norm, most

NORMS = (1, 2, np.inf)


def fitted(weight, bias):
    """An estimator with these weights, whose labels are 0, 1 and so on."""
    weight = np.asarray(weight, float)
    d, classes = weight.shape[1], max(2, len(weight))
    model = RobustLinearSVC(0).fit(np.eye(max(d, classes))[:, :d], np.arange(max(d, classes)) % classes)
    model.coef_, model.intercept_ = weight, np.asarray(bias, float)
    return model


def lead(weight, bias, x, y):
    """In rational numbers, the least lead of a class."""
    logits = [
        sum((Fraction(w) * Fraction(v) for w, v in zip(row, x, strict=True)), Fraction(c))
        for row, c in zip(weight.tolist(), bias.tolist(), strict=True)
    ]
    return min(logits[y] - other for k, other in enumerate(logits) if k != y)


def orders(weight, bias, x, rng, count=20):
    """``(count, K)`` logits, their terms summed in random orders."""
    terms = np.concatenate([weight * x, bias[:, None]], 1)
    return np.array([[sum(rng.permutation(row).tolist()) for row in terms] for _ in range(count)])


def test_what_another_order_of_the_sum_undoes_is_not_proved():
    """1e16 + 1 - 1e16 - 0.5 is 0.5, 0, -0.5 or 1.5 in float64."""
    weight, x = np.array([[1e16, 1.0, -1e16]]), np.array([[1.0, 1.0, 1.0]])
    model = fitted(weight, [-0.5])
    sums = {sum(order) for order in itertools.permutations([1e16, 1.0, -1e16, -0.5])}
    assert min(sums) < 0 < max(sums)
    assert lead(np.vstack([0 * weight, weight]), np.array([0, -0.5]), x[0], 1) == Fraction(1, 2)
    for given in (x, sparse.csr_matrix(x)):
        assert model.robust_score(given, [1], 0) == model.robust_score(given, [0], 0) == 0
        assert model.robust_score(given, [1], 0, box=(0, 1)) == 0
        assert model.certified_radius(given)[0] == 0
    plain = fitted([[1.0, 1.0, -1.0]], [-0.5])
    assert plain.robust_score(x, [1], 0.16) == 1
    assert plain.certified_radius(x)[0] == pytest.approx(0.5 / 3, rel=1e-14)


def test_a_tie_is_nobodys_and_a_hair_beyond_is_proved():
    model = fitted([[1.0, 1.0]], [0.0])
    x = np.array([[0.5, 0.25]])
    assert model.robust_score(x, [1], 0.375) == 0
    assert model.robust_score(x, [1], 0.375 * (1 - 1e-13)) == 1
    assert 0.375 * (1 - 1e-13) <= model.certified_radius(x)[0] < 0.375
    # In the box the adversary has only one coordinate.
    assert model.robust_score(x, [1], 2.0, box=(np.array([-1.0, 0.25]), 1)) == 0
    assert model.robust_score(x, [1], 2.0, box=(np.array([-0.2, 0.25]), 1)) == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("boxed", [False, True])
def test_no_order_and_no_rational_contradicts_what_is_proved_by_a_hair(norm, boxed):
    rng, proved = np.random.default_rng(0), 0
    box = (-1.0, 1.0) if boxed else None
    for trial in range(24):
        d, classes, spread = rng.integers(1, 7), rng.integers(2, 5), [0, 5, 10][trial % 3]
        scale = 10 ** rng.uniform(-spread, spread, (1, d))
        weight, bias = rng.normal(size=(classes, d)) * scale, rng.normal(size=classes)
        if d > 1 and trial % 2:
            weight[:, 0] = -weight[:, 1] * (1 + 1e-9 * rng.normal(size=classes))
        x = rng.uniform(-1, 1, (1, d)) if boxed else rng.normal(size=(1, d)) / scale
        decision = Decision(weight, bias)
        y = decision.logits(x).argmax(1)

        def sure(eps, decision=decision, x=x, y=y):
            threat = ball(norm, eps, box)
            return bool((decision.sure_inside if boxed else decision.sure)(x, y, threat)[0])

        if not sure(0.0):
            continue
        low, high = 0.0, 1e-12
        while sure(high) and high < 1e30:
            low, high = high, 4 * high
        if high >= 1e30:  # nothing in the box is misclassified
            continue
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sure(middle) else (low, middle)
        proved += 1
        if not boxed:
            assert decision.radius(x, ball(norm))[0] == pytest.approx(low, rel=1e-9)
        worst = decision.worst(x, y, ball(norm, low, box))[0]
        # What rounding put outside goes back inside.
        for share in (1.0, 1 - 2**-52, 1 - 2**-50, 1 - 2**-46):
            moved = x[0] + (worst - x[0]) * share
            change = [abs(Fraction(a) - Fraction(b)) for a, b in zip(moved.tolist(), x[0].tolist(), strict=True)]
            size = {1: sum(change), 2: sum(c * c for c in change), np.inf: max(change)}[norm]
            if size > (Fraction(low) ** 2 if norm == 2 else Fraction(low)):
                continue
            assert lead(weight, bias, moved, int(y[0])) > 0
            assert (orders(weight, bias, moved, rng).argmax(1) == y[0]).all()
    assert proved > 8


@pytest.mark.parametrize("norm", NORMS)
def test_little_is_given_away(norm):
    """Beside the closed form in rational numbers, whose error in the size of the terms is 1e-13."""
    rng = np.random.default_rng(1)
    weight, bias, x = rng.normal(size=(4, 30)), rng.normal(size=4), rng.normal(size=(50, 30))
    decision = Decision(weight, bias)
    y = decision.logits(x).argmax(1)
    order = {1: np.inf, 2: 2, np.inf: 1}[norm]
    for i, radius in enumerate(decision.radius(x, ball(norm))):
        others = [k for k in range(4) if k != y[i]]
        leads = [(weight[y[i]] - weight[k]) @ x[i] + bias[y[i]] - bias[k] for k in others]
        expected = min(a / np.linalg.norm(weight[y[i]] - weight[k], order) for a, k in zip(leads, others, strict=True))
        assert radius == pytest.approx(expected, rel=1e-11)


def gained(norm, g, lower, upper, eps):
    """In rational numbers, the most that ``<g, z>`` can be in L-infinity and L1."""
    room = [Fraction(u) if a > 0 else -Fraction(low) for a, low, u in zip(g, lower, upper, strict=True)]
    sizes, left, total = [abs(Fraction(a)) for a in g], Fraction(eps), Fraction(0)
    for i in sorted(range(len(g)), key=lambda i: -sizes[i]):
        step = min(room[i], Fraction(eps) if norm == np.inf else left)
        left -= step
        total += sizes[i] * step
    return total


@pytest.mark.parametrize("norm", NORMS)
def test_the_most_that_a_box_leaves(norm):
    rng = np.random.default_rng(2)
    for trial in range(200):
        d, eps = int(rng.integers(1, 9)), float(10 ** rng.uniform(-3, 1))
        x = rng.uniform(-1, 1, (1, d))
        x[rng.random((1, d)) < 0.3] = 1.0
        g = rng.normal(size=(1, d)) * 10 ** rng.uniform(-[0, 8][trial % 2], [0, 8][trial % 2], (1, d))
        g[:, : d // 2] = np.round(g[:, : d // 2])  # some are 0, some are level
        threat = ball(norm, eps, (-1.0, 1.0))
        found = float(most(threat, g, x)[0])
        z = threat.maximize(torch.from_numpy(g), torch.from_numpy(x)).numpy()
        assert found == pytest.approx(float((g * z).sum()), rel=1e-12, abs=1e-300)
        if norm != 2:
            low, high = ([Fraction(end) - Fraction(v) for v in x[0].tolist()] for end in (-1.0, 1.0))
            assert Fraction(found) >= gained(norm, g[0].tolist(), low, high, eps)
        else:
            moves = rng.normal(size=(500, d))
            moves = np.clip(moves / np.linalg.norm(moves, axis=1, keepdims=True) * eps, -1 - x, 1 - x)
            assert (moves @ g[0]).max() <= found


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_numbers_at_the_ends_of_the_scale():
    assert dual_norm(ball(2), np.array([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0]])) == pytest.approx(
        [5e-200, 5e200, 0]
    )
    tiny = fitted([[1e-200, 1e-200]], [0.0])
    assert tiny.robust_score([[1e-200, 0.0]], [1], 0) == 0  # the product vanishes
    assert tiny.robust_score([[1.0, 1.0]], [1], 0.5) == 1
    huge = fitted([[1e300, -1e300]], [1.0])
    assert huge.certified_radius([[1e10, 1e10]])[0] == 0
    assert huge.robust_score([[1e7, 1e-10]], [1], 0.0) == 1
    # The same whatever the input, as long as nothing overflows.
    constant = fitted([[0.0, 0.0]], [1.0])
    assert constant.certified_radius([[1.0, 2.0]])[0] == math.inf
    assert constant.robust_score([[1.0, 2.0]], [1], 1e30) == 1
