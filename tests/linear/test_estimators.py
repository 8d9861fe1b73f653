"""Robust linear models as scikit-learn estimators."""

import itertools
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from holdfast.errors import SettingError
from holdfast.linear import RobustLinearSVC, RobustLogisticRegression, RobustRidge

NORMS = (1, 2, np.inf)
BOX = (-0.6, 0.9)


@pytest.fixture(scope="module")
def two():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    return x, np.where(x[:, 0] - 0.5 * x[:, 1] + 0.7 * rng.normal(size=80) > 0, "yes", "no")


@pytest.fixture(scope="module")
def three():
    x, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.mark.parametrize("model", [RobustLogisticRegression(), RobustLinearSVC(), RobustRidge()], ids=str)
def test_scikit_learns_own_checks_pass(model):
    check_estimator(model)


def test_without_a_budget_they_are_scikit_learns(two, three):
    x, y = two
    logistic = RobustLogisticRegression(0, C=0.3, tol=1e-10, class_weight="balanced").fit(x, y)
    peer = LogisticRegression(C=0.3, tol=1e-10, class_weight="balanced").fit(x, y)
    assert logistic.coef_ == pytest.approx(peer.coef_, abs=1e-4)
    assert logistic.intercept_ == pytest.approx(peer.intercept_, abs=1e-4)
    assert logistic.predict_proba(x) == pytest.approx(peer.predict_proba(x), abs=1e-4)
    svc, peer = RobustLinearSVC(0, C=0.3, tol=1e-10).fit(x, y), SVC(kernel="linear", C=0.3, tol=1e-8).fit(x, y)
    assert svc.coef_ == pytest.approx(peer.coef_, abs=1e-4)
    assert svc.decision_function(x) == pytest.approx(peer.decision_function(x), abs=1e-3)
    target = x[:, 0] + x[:, 2] ** 2
    ridge, peer = RobustRidge(0, alpha=2.0, tol=1e-10).fit(x, target), Ridge(alpha=2.0).fit(x, target)
    assert ridge.coef_ == pytest.approx(peer.coef_, abs=1e-4)
    assert ridge.intercept_ == pytest.approx(peer.intercept_, abs=1e-4)
    x, y = three
    many = RobustLogisticRegression(0, tol=1e-10).fit(x, y)
    rest = OneVsRestClassifier(LogisticRegression(tol=1e-8)).fit(x, y)
    assert many.coef_ == pytest.approx(np.vstack([e.coef_ for e in rest.estimators_]), abs=1e-3)
    assert (many.predict(x) == rest.predict(x)).all()


def corners(norm, d):
    """The vertices of the unit ball; for L2 many points of its surface."""
    if norm == 1:
        return np.vstack((np.eye(d), -np.eye(d)))
    if norm == 2:
        points = np.random.default_rng(0).normal(size=(1000, d))
        return points / np.linalg.norm(points, axis=1, keepdims=True)
    return np.array(list(itertools.product((-1.0, 1.0), repeat=d)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("data", ["two", "three"])
def test_the_worst_case_is_the_best_attack(norm, data, request):
    x, y = request.getfixturevalue(data)
    eps = 0.3
    for model in (RobustLogisticRegression(0.1, norm=norm).fit(x, y), RobustLinearSVC(0.1, norm=norm).fit(x, y)):
        worst = model.worst_case(x, y, eps)
        assert np.linalg.norm(worst - x, norm, axis=1).max() <= eps * (1 + 1e-12)
        least = np.min([model.margin(x + eps * corner, y) for corner in corners(norm, x.shape[1])], axis=0)
        found = model.margin(worst, y)
        if norm == 2:  # no sampled direction is worse, and the best of many is nearly as bad
            assert (found <= least + 1e-9).all()
            assert least == pytest.approx(found, abs=0.05)
        else:
            assert found == pytest.approx(least, abs=1e-9)
        assert model.robust_score(x, y, eps) == np.mean(found > 0)
        assert model.robust_score(x, y, 0) == model.score(x, y)


def test_the_worst_case_stays_in_the_box(two):
    x, y = two
    x = np.clip(x, *BOX)
    model = RobustLogisticRegression(0.1).fit(x, y)
    worst = model.worst_case(x, y, 0.5, box=BOX)
    assert worst.min() >= BOX[0]
    assert worst.max() <= BOX[1]
    moved = [np.clip(x + 0.5 * corner, *BOX) for corner in corners(np.inf, x.shape[1])]
    assert model.margin(worst, y) == pytest.approx(np.min([model.margin(m, y) for m in moved], axis=0), abs=1e-9)
    assert model.robust_score(x, y, 0.5, box=BOX) == np.mean(model.margin(worst, y) > 0)
    assert model.robust_score(x, y, 0.5, box=BOX) >= model.robust_score(x, y, 0.5)


@pytest.mark.parametrize("norm", NORMS)
def test_predictions_change_just_beyond_the_certified_radius(norm, three):
    x, y = three
    model = RobustLogisticRegression(0.1, norm=norm).fit(x, y)
    predicted, radius = model.predict(x), model.certified_radius(x)
    for share, same in ((1 - 1e-6, True), (1 + 1e-6, False)):
        for i in range(0, len(x), 10):
            one = slice(i, i + 1)
            moved = model.worst_case(x[one], predicted[one], float(share * radius[i]))
            assert (model.margin(moved, predicted[one])[0] > 0) == same


@pytest.mark.parametrize("norm", NORMS)
def test_the_worst_case_of_a_regression_is_the_best_attack(norm, two):
    x, _ = two
    y = x[:, 0] + np.sin(x[:, 1])
    model = RobustRidge(0.1, norm=norm).fit(x, y)
    error = np.abs(model.predict(model.worst_case(x, y, 0.3)) - y)
    slope = np.linalg.norm(model.coef_, {1: np.inf, 2: 2, np.inf: 1}[norm])
    assert error == pytest.approx(np.abs(model.predict(x) - y) + 0.3 * slope, abs=1e-9)
    assert model.robust_score(x, y, 0.3) < model.robust_score(x, y, 0) == model.score(x, y)


def test_robust_training_wins_where_it_was_trained(two):
    x, y = two
    losses = {}
    for eps in (0.0, 0.3):
        model = RobustLogisticRegression(eps, C=np.inf).fit(x, y)
        worst = model.worst_case(x, y, 0.3)
        losses[eps] = -np.log(model.predict_proba(worst)[np.arange(len(y)), (y == "yes").astype(int)]).mean()
    assert losses[0.3] < losses[0.0]


def test_a_path_is_the_fits_one_by_one(two):
    x, y = two
    for model in (RobustLogisticRegression(norm=2, tol=1e-8), RobustLinearSVC(tol=1e-8), RobustRidge(tol=1e-8)):
        target = (y == "yes").astype(float)
        grid = np.linspace(0.05, 0.1, 6)
        path = model.path(x, target, grid)
        alone = [type(model)(**{**model.get_params(), "eps": eps}).fit(x, target) for eps in grid]
        for one, other in zip(path, alone, strict=True):
            assert one.eps == other.eps
            assert one.objective_ == pytest.approx(other.objective_, rel=3e-8)


def test_they_work_in_pipelines_and_searches(two):
    x, y = two
    grid = {"robustlogisticregression__eps": [0.0, 0.1], "robustlogisticregression__norm": [1, np.inf]}
    found = GridSearchCV(make_pipeline(StandardScaler(), RobustLogisticRegression()), grid, cv=3).fit(x, y)
    assert found.best_score_ > 0.7


def test_separable_data_without_regularisation_are_named_as_the_cause():
    x = np.array([[-2.0], [-1.5], [1.5], [2.0]])
    with pytest.warns(ConvergenceWarning) as caught:
        RobustLogisticRegression(1.0, C=np.inf).fit(x, [0, 0, 1, 1])
    assert [("separated" in str(w.message), "C" in str(w.message), w.filename) for w in caught] == [
        (True, True, __file__)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RobustLogisticRegression(1.6, C=np.inf).fit(x, [0, 0, 1, 1])  # no room for eps
        assert RobustLinearSVC(1.0, C=np.inf).fit(x, [0, 0, 1, 1]).objective_ == pytest.approx(0)
        assert RobustRidge(0.0, alpha=0).fit(x, x[:, 0]).coef_ == pytest.approx(1)


@pytest.mark.parametrize(
    "settings", [{"eps": -1}, {"eps": "inf"}, {"eps": None}, {"norm": 3}, {"norm": "two"}, {"C": 0}, {"tol": -1}]
)
def test_settings_without_sense_are_refused(settings, two):
    with pytest.raises(SettingError, match=next(iter(settings))):
        RobustLogisticRegression(**settings).fit(*two)
