"""Trees are compared with the estimator's own answer to one input of every cell of thresholds: all there is to ask."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from holdfast import L0, DataError, HoldfastError, Linf, ModelError, SettingError
from holdfast.certify import certify_trees
from holdfast.certify import trees as front
from holdfast.certify.milp.solver import Minimum

CUBE = (0.0, 1.0)
ESTIMATORS = {
    "tree": DecisionTreeClassifier(max_depth=4, random_state=0),
    "weighted tree": DecisionTreeClassifier(max_depth=3, class_weight={0: 1.0, 1: 7.3, 2: 0.4}, random_state=0),
    "extra tree": ExtraTreeClassifier(max_depth=4, random_state=0),
    "forest": RandomForestClassifier(8, max_depth=3, random_state=0),
    "pure forest": RandomForestClassifier(4, random_state=3),
    "weighted forest": RandomForestClassifier(5, max_depth=3, class_weight="balanced_subsample", random_state=1),
    "extra trees": ExtraTreesClassifier(6, max_depth=3, random_state=0),
    "stumps": ExtraTreesClassifier(8, max_depth=1, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=4, max_depth=2, learning_rate=0.7, random_state=0),
    "boosting from zero": GradientBoostingClassifier(n_estimators=3, max_depth=3, init="zero", random_state=0),
}


def sample(classes: int, features: int, dtype: type = np.float64, count: int = 80) -> tuple[Any, NDArray[np.intp]]:
    rng = np.random.default_rng(classes)
    x = rng.uniform(size=(count, features)).astype(dtype)
    score = x @ np.array([1.0, -0.7, 0.4, 0.2])[:features] + 0.3 * np.sin(9 * x[:, 0]) + 0.1 * rng.normal(size=count)
    return x, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


class Cells:
    """The answers of an estimator in every cell of its thresholds, in float32."""

    def __init__(self, model: Any) -> None:
        parts = [model] if hasattr(model, "tree_") else np.ravel(model.estimators_)
        cuts: list[set[np.float32]] = [set() for _ in range(model.n_features_in_)]
        for part in parts:
            for f, t in zip(part.tree_.feature, part.tree_.threshold, strict=True):
                if f >= 0:
                    below = np.float32(t)
                    cuts[f].add(np.nextafter(below, np.float32(-9)) if float(below) > t else below)
        self.cuts = [np.sort(np.array(list(c), np.float32)) for c in cuts]
        ends = [np.append(c, np.float32(2)) for c in self.cuts]  # the last number of each cell
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*ends, indexing="ij")], 1)
        shape = [len(e) for e in ends]
        self.answers = np.searchsorted(model.classes_, model.predict(grid)).reshape(shape)
        scores = model.decision_function(grid) if hasattr(model, "decision_function") else model.predict_proba(grid)
        scores = np.stack([0 * scores, scores], 1) if scores.ndim == 1 else scores
        best = np.sort(scores, 1)
        self.ties = ((best[:, -1] - best[:, -2]) < 1e-12).reshape(shape)
        self.rounds = len(parts) > 1 and not (scores * len(parts) % 1 == 0).all()

    def changed(self, x: NDArray[Any], y: int, most: int) -> bool:
        """Whether all answers are right that changing so many features gives."""
        own = [np.searchsorted(c, np.float32(a)) for c, a in zip(self.cuts, x, strict=True)]
        moved = sum(axis != place for axis, place in zip(np.indices(self.answers.shape), own, strict=True))
        return bool((self.answers[moved <= most] == y).all())

    def __call__(self, x: NDArray[Any], y: int, eps: float) -> tuple[bool, bool]:
        """Whether all answers in a set are right, and whether rounding may decide some of them."""
        low, high = ((x.astype(np.float64) + side * eps).astype(x.dtype).clip(0, 1) for side in (-1, 1))
        box = tuple(
            slice(np.searchsorted(c, np.float32(a)), np.searchsorted(c, np.float32(b)) + 1)
            for c, a, b in zip(self.cuts, low, high, strict=True)
        )
        return bool((self.answers[box] == y).all()), bool(self.rounds and self.ties[box].any())


def check(model: Any, x: NDArray[Any], y: NDArray[np.intp], eps: NDArray[np.float64]) -> None:
    threat, cells = Linf(torch.from_numpy(eps), box=CUBE), Cells(model)
    found = certify_trees(model, x, y, threat)
    for row, certificate in enumerate(found):
        robust, tie = cells(x[row], int(y[row]), float(eps[row]))
        if certificate.verdict == "undecided":
            assert tie, (row, eps[row], certificate)
            assert certificate.note == front.TIE
            continue
        assert certificate.verdict == ("certified" if robust else "broken"), (row, eps[row], certificate)
        if certificate.verdict == "certified":
            assert certificate.bound is not None
            assert certificate.bound >= 0
            continue
        x_adv = certificate.x_adv
        assert x_adv is not None
        assert model.predict(x_adv.numpy()[None])[0] != model.classes_[y[row]]
        assert x_adv.dtype == torch.from_numpy(x).dtype
        assert threat.at(torch.tensor([row])).admits(x_adv[None], torch.from_numpy(x[row : row + 1])).all()
        low, high = ((x[row].astype(np.float64) + s * eps[row]).astype(x.dtype) for s in (-1, 1))
        assert (low <= x_adv.numpy()).all()
        assert (x_adv.numpy() <= high).all()
    assert sum(certificate.verdict == "undecided" for certificate in found) < len(found) / 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_cell_agrees(name: str, classes: int, dtype: type) -> None:
    x, y = sample(classes, 3, dtype)
    model = ESTIMATORS[name]
    if "weighted tree" in name and classes == 2:
        model = DecisionTreeClassifier(max_depth=3, class_weight={0: 1.0, 1: 7.3}, random_state=0)
    model.fit(x[:60], y[:60])
    rng = np.random.default_rng(1)
    check(model, x, y, rng.choice([0.0, 1e-7, 0.01, 0.05, 0.12, 0.4], len(x)))


@pytest.mark.parametrize("name", ["tree", "pure forest", "forest", "boosting"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_budgets_that_end_at_a_threshold(name: str, dtype: type) -> None:
    x, y = sample(2, 2, dtype)
    model = ESTIMATORS[name].fit(x[:60], y[:60])
    y = np.searchsorted(model.classes_, model.predict(x))
    cells, rng = Cells(model), np.random.default_rng(2)
    rows, budgets = [], []
    for row in rng.choice(len(x), 10, replace=False):
        feature = rng.integers(2)
        cut = float(rng.choice(cells.cuts[feature]))
        exact = abs(cut - float(x[row, feature]))
        half = float(np.spacing(np.float32(cut))) / 2
        for eps in (exact, np.nextafter(exact, 9), np.nextafter(exact, 0), exact + half, exact + 2 * half):
            rows.append(row)
            budgets.append(float(eps))
            rows.append(row)
            budgets.append(float(np.nextafter(eps, 9)))
    check(model, x[rows], y[rows], np.array(budgets))


@pytest.mark.parametrize("name", ["tree", "pure forest", "boosting", "stumps"])
def test_changes_of_a_few_features(name: str) -> None:
    x, y = sample(3, 4)
    model = ESTIMATORS[name].fit(x[:60], y[:60])
    cells = Cells(model)
    most = np.random.default_rng(3).integers(0, 5, len(x))
    threat = L0(torch.from_numpy(most.astype(float)), box=CUBE)
    for row, found in enumerate(certify_trees(model, x, y, threat)):
        assert found.verdict == ("certified" if cells.changed(x[row], int(y[row]), most[row]) else "broken")
        if found.x_adv is not None:
            assert (found.x_adv.numpy() != x[row]).sum() <= most[row]
            assert model.predict(found.x_adv.numpy()[None])[0] != y[row]


def test_a_single_feature() -> None:
    x, y = sample(3, 1)
    model = DecisionTreeClassifier(random_state=0).fit(x[:60], y[:60])
    check(model, x, y, np.full(len(x), 0.02))


def stump() -> DecisionTreeClassifier:
    model = DecisionTreeClassifier().fit([[0.25], [0.75]], [0, 1])
    assert model.tree_.threshold[0] == 0.5
    return model


@pytest.mark.parametrize(
    ("dtype", "eps", "verdict"),
    [
        (np.float64, 0.25, "certified"),
        (np.float64, 0.25 + 2**-25, "certified"),  # 0.5 + 2^-25 is read as 0.5, to even
        (np.float64, 0.25 + 2**-25 + 2**-53, "broken"),
        (np.float32, 0.25 + 2**-25, "certified"),
        (np.float32, 0.25 + 2**-24, "broken"),
    ],
)
def test_what_float32_makes_of_the_last_number_counts(dtype: type, eps: float, verdict: str) -> None:
    (found,) = certify_trees(stump(), np.array([[0.25]], dtype), [0], Linf(eps))
    assert found.verdict == verdict


def test_ties_go_as_the_estimator_decides_them() -> None:
    # Two whole votes, one each in the middle: the first class wins.
    model = RandomForestClassifier(2, bootstrap=False, max_features=1, random_state=0)
    model.fit([[0.0, 0.0], [1.0, 1.0]], [0, 1])
    features = {int(tree.tree_.feature[0]) for tree in model.estimators_}
    assert features == {0, 1}
    x = np.array([[0.25, 0.25], [0.75, 0.75], [0.25, 0.75]])
    threat = Linf(torch.tensor([0.1, 0.1, 0.1]))
    assert [c.verdict for c in certify_trees(model, x, [0, 1, 0], threat)] == ["certified"] * 3
    crossed = certify_trees(model, np.array([[0.45, 0.75], [0.75, 0.55]]), [0, 1], Linf(0.1))
    assert [c.verdict for c in crossed] == ["broken", "broken"]
    (tie,) = certify_trees(model, np.array([[0.25, 0.55]]), [0], Linf(0.1))
    assert (tie.verdict, tie.bound) == ("certified", 0.0)


def test_a_solver_that_lies_proves_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(2, 3)
    model = RandomForestClassifier(8, max_depth=3, random_state=0).fit(x, y)
    x, y, threat = x[:30], y[:30], Linf(0.1)
    honest = certify_trees(model, x, y, threat)
    assert {"certified", "broken"} <= {c.verdict for c in honest if c.method == front.PROGRAM}

    def optimist(program: Any, *_: Any, **__: Any) -> Minimum:
        return Minimum("optimal", 1e3, 1e3, None)

    def pessimist(program: Any, *_: Any, **__: Any) -> Minimum:
        return Minimum("optimal", -1e3, -1e3, np.ones(program.width))

    monkeypatch.setattr(front, "solve", optimist)
    for truth, told in zip(honest, certify_trees(model, x, y, threat), strict=True):
        assert told.verdict == ("undecided" if truth.method == "mixed-integer programming" and truth.verdict == "broken"
                                else truth.verdict)  # fmt: skip
    monkeypatch.setattr(front, "solve", pessimist)
    for truth, told in zip(honest, certify_trees(model, x, y, threat), strict=True):
        assert told.verdict in (truth.verdict, "undecided")


def test_without_time_bounds_over_leaves_are_what_there_is() -> None:
    x, y = sample(2, 3)
    model = RandomForestClassifier(8, max_depth=3, random_state=0).fit(x, y)
    quick, full = (certify_trees(model, x, y, Linf(0.1), seconds=s) for s in (0.0, 20.0))
    assert {c.note for c in quick if c.verdict == "undecided"} == {"timeout"}
    for one, other in zip(quick, full, strict=True):
        assert one.verdict in (other.verdict, "undecided")
        if one.verdict == "undecided":
            assert one.bound is not None
            assert one.bound < 0


@pytest.mark.parametrize("kind", [RandomForestClassifier, GradientBoostingClassifier])
def test_bounds_lie_below_every_margin_that_is_seen(kind: Any) -> None:
    x, y = sample(3, 3)
    model = kind(n_estimators=6, max_depth=2, random_state=0).fit(x, y)
    score = model.predict_proba if kind is RandomForestClassifier else model.decision_function
    rng = np.random.default_rng(0)
    for row, found in enumerate(certify_trees(model, x[:40], y[:40], Linf(0.03), seconds=0.0)):
        if found.bound is None:
            continue
        near = score((x[row] + rng.uniform(-0.03, 0.03, size=(500, 3))).clip(0, 1))
        margin = near[:, y[row]] - np.delete(near, y[row], 1).max(1)
        assert found.bound <= margin.min() + 1e-12


def test_breast_cancer_closes() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = ((x - x.min(0)) / np.ptp(x, 0))[order], y[order]
    model = RandomForestClassifier(10, max_depth=4, random_state=0).fit(x[:400], y[:400])
    found = certify_trees(model, x[400:], y[400:], Linf(0.1))
    assert {c.verdict for c in found} == {"certified", "broken"}
    assert {front.LEAVES, front.PROGRAM} <= {c.method for c in found if c.verdict == "certified"}
    assert max(c.seconds for c in found) < 20


def test_classes_by_name_and_estimators_of_tables_with_names() -> None:
    x, y = sample(2, 2)
    model = DecisionTreeClassifier(max_depth=3).fit(x, np.array(["no", "yes"])[y])
    model.feature_names_in_ = np.array(["age", "dose"], dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certify_trees(model, x, y, Linf(0.05))
    plain = certify_trees(DecisionTreeClassifier(max_depth=3).fit(x, y), x, y, Linf(0.05))
    assert [c.verdict for c in found] == [c.verdict for c in plain]
    assert {c.verdict for c in found} == {"certified", "broken"}


def test_no_box_and_no_budget() -> None:
    everywhere = certify_trees(stump(), np.array([[0.25], [-1e30]]), [0, 0], Linf("inf", box=None))
    assert [c.verdict for c in everywhere] == ["broken", "broken"]
    assert certify_trees(stump(), np.zeros((0, 1)), np.zeros(0, int), Linf(0.1)) == []
    (nowhere,) = certify_trees(stump(), np.array([[0.5]]), [0], Linf(0.0))
    assert nowhere.verdict == "certified"


GOOD = np.array([[0.25]])


@pytest.mark.parametrize(
    ("model", "x", "y", "threat", "error", "words"),
    [
        (LogisticRegression(), GOOD, [0], "linf:0.1", ModelError, "a LogisticRegression is not taken; taken are Dec"),
        (HistGradientBoostingClassifier(), GOOD, [0], "linf:0.1", ModelError, "is not taken; taken are"),
        (AdaBoostClassifier(), GOOD, [0], "linf:0.1", ModelError, "is not taken"),
        (RandomForestClassifier(), GOOD, [0], "linf:0.1", ModelError, "has not been fitted"),
        (DecisionTreeClassifier().fit(GOOD, [3]), GOOD, [0], "linf:0.1", ModelError, "knows one class only"),
        (DecisionTreeClassifier().fit(GOOD, [[0, 1]]), GOOD, [0], "linf:0.1", ModelError, "2 questions at once"),
        (
            GradientBoostingClassifier(init=DecisionTreeClassifier(), n_estimators=1).fit([[0.1], [0.9]], [0, 1]),
            GOOD, [0], "linf:0.1", ModelError, "starts from a DecisionTreeClassifier",
        ),
        (
            GradientBoostingClassifier(init=DummyClassifier(strategy="uniform"), n_estimators=1).fit(
                [[0.1], [0.9]], [0, 1]
            ),
            GOOD, [0], "linf:0.1", ModelError, "starts from a DummyClassifier",
        ),
        (stump(), GOOD, [0], "l2:0.1", SettingError, "not in l2"),
        (stump(), GOOD, [2], "linf:0.1", DataError, "knows classes 0 to 1: give positions in model.classes_"),
        (stump(), GOOD, ["no"], "linf:0.1", DataError, "y: "),
        (stump(), GOOD, [0, 1], "linf:0.1", DataError, "1 class numbers"),
        (stump(), [[0.25, 0.5]], [0], "linf:0.1", DataError, "the model takes 1 features"),
        (stump(), [[float("nan")]], [0], "linf:0.1", DataError, "nothing is proved of missing values"),
        (stump(), [[1e39]], [0], Linf(0.1, box=None), DataError, "give finite numbers of float32"),
        (stump(), [[2.0]], [0], "linf:0.1", DataError, "lies outside the box"),
        (stump(), np.array([[1]]), [0], "linf:0.1", DataError, "give floating point numbers"),
        (stump(), GOOD.astype(np.float16), [0], "linf:0.1", DataError, "float32 or float64"),
        (stump(), GOOD, [0], Linf(torch.tensor([0.1, 0.2])), DataError, "2 budgets for 1 examples"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(model: Any, x: Any, y: Any, threat: Any, error: type[HoldfastError], words: str) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")) as raised:
        certify_trees(model, x, y, threat)
    assert "\n" not in str(raised.value)


def test_scores_that_overflow_are_refused() -> None:
    model = GradientBoostingClassifier(n_estimators=2).fit([[0.1], [0.9]], [0, 1])
    model.learning_rate = 1.7e308
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ModelError, match="overflow"):
        certify_trees(model, GOOD, [0], Linf(0.1))


def test_a_predict_of_its_own_is_refused() -> None:
    class Contrary(DecisionTreeClassifier):  # type: ignore[misc]
        def predict(self, X: Any, check_input: bool = True) -> Any:  # noqa: N803
            return 1 - super().predict(X, check_input)

    with pytest.raises(ModelError, match="does not follow the trees"):
        certify_trees(Contrary().fit([[0.25], [0.75]], [0, 1]), GOOD, [1], Linf(0.1))
