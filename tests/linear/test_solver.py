"""The objectives against a general convex solver, and against what is known of them in closed form."""

import cvxpy as cp
import numpy as np
import pytest

from holdfast.linear import RobustLinearSVC, RobustLogisticRegression, RobustRidge

NORMS = (1, 2, np.inf)
DUAL = {1: "inf", 2: 2, np.inf: 1}
KINDS = {"logistic": RobustLogisticRegression, "hinge": RobustLinearSVC, "squared": RobustRidge}


def robust_loss(kind, f, y, slack):
    if kind == "logistic":
        return cp.logistic(slack - cp.multiply(y, f))
    if kind == "hinge":
        return cp.pos(1 - cp.multiply(y, f) + slack)
    return cp.square(cp.abs(y - f) + slack)


def least_objective(kind, x, y, s, eps, norm, strength, intercept):
    """The minimum by cvxpy, of the objective as it is written down; ``strength`` is C, or alpha."""
    w, b = cp.Variable(x.shape[1]), cp.Variable() if intercept else 0.0
    loss = s @ robust_loss(kind, x @ w + b, y, eps * cp.norm(w, DUAL[norm]))
    if kind == "squared":
        total = loss + strength * cp.sum_squares(w)
    else:
        total = loss if strength == np.inf else strength * loss + cp.sum_squares(w) / 2
    problem = cp.Problem(cp.Minimize(total))
    try:
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    except cp.SolverError:  # it cannot reach that on every problem
        problem.solve(solver=cp.CLARABEL)
    return problem.value


def objective(kind, model, x, y, s, eps, norm, strength):
    """The same value of a fitted model, written down once more."""
    w, b = model.coef_.ravel(), float(np.ravel(model.intercept_)[0])
    slack, f = eps * np.linalg.norm(w, {1: np.inf, 2: 2, np.inf: 1}[norm]), x @ w + b
    if kind == "squared":
        return s @ (np.abs(y - f) + slack) ** 2 + strength * w @ w
    m = y * f - slack
    loss = s @ (np.logaddexp(0, -m) if kind == "logistic" else np.maximum(0, 1 - m))
    return loss if strength == np.inf else strength * loss + w @ w / 2


def random_problem(kind, rng):
    n, d = int(rng.integers(15, 40)), int(rng.integers(2, 8))
    x = rng.normal(size=(n, d)) * rng.uniform(0.3, 3, d)
    y = x @ rng.normal(size=d) + rng.normal(size=n) * 2 + rng.normal()
    if kind != "squared":
        y = np.where(y > np.median(y), 1.0, -1.0)
    eps = float(rng.choice([0.02, 0.1, 0.4]))
    strength = float(rng.choice([0.0, 0.1, 3.0]) if kind == "squared" else rng.choice([0.1, 3.0, np.inf]))
    if strength == np.inf:
        # Data that can be separated robustly have no minimum without further regularisation: these cannot.
        x, y = np.vstack((x, x)), np.r_[y, np.where(rng.random(n) < 0.6, y, -y)]
        y[n], y[n + 1] = -y[0], -y[1]
        n = 2 * n
    return x, y, rng.uniform(0.5, 2, n), eps, strength, bool(rng.integers(2))


@pytest.mark.parametrize("kind", KINDS)
def test_objectives_agree_with_a_general_convex_solver(kind):
    rng = np.random.default_rng(0)
    for number in range(50):
        norm = NORMS[number % 3]
        x, y, s, eps, strength, intercept = random_problem(kind, rng)
        reference = least_objective(kind, x, y, s, eps, norm, strength, intercept)
        name = "alpha" if kind == "squared" else "C"
        model = KINDS[kind](eps, norm=norm, fit_intercept=intercept, tol=1e-8, **{name: strength})
        model.fit(x, y, sample_weight=s)
        mine = objective(kind, model, x, y, s, eps, norm, strength)
        assert mine == pytest.approx(reference, rel=1e-6, abs=1e-6), (number, norm, eps, strength)
        assert model.objective_ == pytest.approx(mine, rel=1e-9), number
        # The certificate holds: the minimum lies in between, and close.
        assert model.objective_ - model.gap_ <= reference + 1e-7 * abs(reference) + 1e-7, number
        assert model.gap_ <= 1e-8 * model.objective_ or model.objective_ < 1e-6, number


@pytest.mark.parametrize("norm", NORMS)
def test_a_gap_is_certified_wherever_the_method_stops(norm):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 6)), rng.choice([-1.0, 1.0], 40)
    for kind, model in KINDS.items():
        best = model(0.05, norm=norm, tol=1e-9).fit(x, y).objective_
        for steps in (1, 2):
            with pytest.warns(UserWarning, match="certified gap"):
                early = model(0.05, norm=norm, max_iter=steps, tol=1e-9).fit(x, y)
            assert early.objective_ - early.gap_ <= best * (1 + 1e-9), (kind, steps)
            assert early.objective_ >= best * (1 - 1e-9), (kind, steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_weights_are_exactly_zero_above_the_threshold_and_not_below(kind, norm):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 5))
    y = np.where(x[:, 0] + rng.normal(size=60) > 0, 1.0, -1.0)
    y[:30], y[30:] = 1.0, -1.0
    x[:30, 0] += 1
    # With w = 0 and balanced classes every example pulls alike; the pull's norm must not exceed eps times its weight.
    threshold = np.linalg.norm(y @ x / len(y), norm)
    if kind == "squared":
        threshold = np.linalg.norm((y - y.mean()) @ x, norm) / np.abs(y - y.mean()).sum()
    above = KINDS[kind](1.001 * threshold, norm=norm, tol=1e-8).fit(x, y)
    below = KINDS[kind](0.98 * threshold, norm=norm, tol=1e-9).fit(x, y)
    assert not above.coef_.any()
    assert below.coef_.any()


def test_weights_that_l_infinity_switches_off_are_exactly_zero():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 20))
    y = np.where(x[:, :2].sum(1) + 0.3 * rng.normal(size=200) > 0, 1.0, -1.0)
    for model in (RobustLogisticRegression, RobustLinearSVC, RobustRidge):
        assert set(np.flatnonzero(model(0.3, tol=1e-8).fit(x, y).coef_)) == {0, 1}


def test_single_precision_and_sparse_inputs_give_the_same_model():
    from scipy import sparse

    rng = np.random.default_rng(4)
    x = rng.normal(size=(80, 6)) * (rng.random((80, 6)) < 0.5)
    y = np.where(x[:, 0] + 0.5 * rng.normal(size=80) > 0, 1, 0)
    for kind, model in KINDS.items():
        dense = model(0.1, norm=2, tol=1e-8).fit(x, y)
        thin = model(0.1, norm=2, tol=1e-8).fit(sparse.csr_array(x), y)
        single = model(0.1, norm=2).fit(x.astype(np.float32), y)
        assert thin.coef_ == pytest.approx(dense.coef_, abs=1e-6), kind
        assert single.objective_ == pytest.approx(dense.objective_, rel=1e-5), kind
