"""Modules of estimators are held against the estimators themselves."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris, make_classification
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC

from holdfast import Model, ModelError, SettingError, load_model
from holdfast.models import Query
from holdfast.models.estimators.estimator import Classifier, as_classifier
from holdfast.models.estimators.translate import log_odds

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
TWO = Y > 0
HEADS = {
    "logistic": LogisticRegression(max_iter=500),
    "svm": LinearSVC(max_iter=100_000),
    "ridge": RidgeClassifier(),
    "constant": DummyClassifier(),
    "commonest": DummyClassifier(strategy="most_frequent"),
    "relu": MLPClassifier((8,), max_iter=2000, random_state=0),
    "tanh": MLPClassifier((6, 5), "tanh", max_iter=2000, random_state=0),
    "sigmoid": MLPClassifier((8,), "logistic", max_iter=2000, random_state=0),
}
SCALERS = {
    "standard": StandardScaler(),
    "mean": StandardScaler(with_std=False),
    "scale": StandardScaler(with_mean=False),
    "range": MinMaxScaler((-1, 2)),
    "clipped": MinMaxScaler(clip=True),
    "largest": MaxAbsScaler(),
    "robust": RobustScaler(),
    "quartiles": RobustScaler(with_centering=False),
    "none": "passthrough",
    "two": make_pipeline(SimpleImputer(), StandardScaler(), MinMaxScaler()),
    "best": make_pipeline(RobustScaler(), SelectKBest(k=2)),
    "columns": make_column_transformer(
        (StandardScaler(), [2, 0]), (MaxAbsScaler(), slice(3, 4)), remainder="passthrough"
    ),
    "dropped": make_column_transformer((StandardScaler(), [3, 1]), ("drop", [0]), remainder="passthrough"),
}
ASKED = {
    "forest": RandomForestClassifier(9, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=4, random_state=0),
    "histograms": HistGradientBoostingClassifier(max_iter=4),
    "stumps": AdaBoostClassifier(n_estimators=4, random_state=0),
    "neighbours": KNeighborsClassifier(3),
    "bayes": GaussianNB(),
    "kernel": SVC(),
    "kernel without ties": SVC(break_ties=True),
    "kernel of pairs": SVC(decision_function_shape="ovo"),
    "votes": VotingClassifier([("a", GaussianNB()), ("b", KNeighborsClassifier()), ("c", RidgeClassifier())]),
    "calibrated": CalibratedClassifierCV(LinearSVC(max_iter=100_000), cv=3),
    "squares": make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=1000)),
}


def fitted(*steps: Any, y: Any = NAMES) -> Any:
    return make_pipeline(*(one if isinstance(one, str) else clone(one) for one in steps)).fit(X, y)


def logits_of(model: Classifier, x: Any = X) -> Any:
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def near() -> Any:
    """Points all over the data's range, and beyond."""
    return np.random.default_rng(0).uniform(-3, 12, (300, 4))


@pytest.mark.parametrize("y", [NAMES, TWO], ids=["three", "two"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_written_out_answer_as_the_estimator_does(head: str, y: Any) -> None:
    model = fitted(StandardScaler(), HEADS[head], y=y)
    found = as_classifier(model)
    assert found.differentiable
    assert found.classes == tuple(map(str, model.classes_))
    x = near()
    logits = logits_of(found, x)
    assert logits.dtype == np.float64
    assert np.array_equal(model.classes_[logits.argmax(1)], model.predict(x))
    margin = logits[:, 1] if y is TWO else logits
    if y is TWO:
        assert (logits[:, 0] == 0).all()
    if hasattr(model, "decision_function"):
        np.testing.assert_allclose(margin, model.decision_function(x), rtol=1e-10, atol=1e-12)
    else:
        shares = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(
            shares / shares.sum(1, keepdims=True), model.predict_proba(x), rtol=1e-10, atol=1e-14
        )


@pytest.mark.parametrize("scaler", SCALERS)
def test_scalers_are_computed_bit_for_bit(scaler: str) -> None:
    model = fitted(SCALERS[scaler], LogisticRegression(max_iter=500))
    found = as_classifier(model)
    assert found.differentiable
    x, (*layers, _) = near(), found.body
    with torch.no_grad():
        scaled = torch.nn.Sequential(*layers)(torch.as_tensor(x)).numpy()
    assert np.array_equal(scaled, model[:-1].transform(x))
    assert np.array_equal(model.classes_[logits_of(found, x).argmax(1)], model.predict(x))


@pytest.mark.parametrize("y", [NAMES, TWO], ids=["three", "two"])
@pytest.mark.parametrize("head", ASKED)
def test_others_are_asked(head: str, y: Any) -> None:
    model = fitted(ASKED[head], y=y)
    found = as_classifier(model)
    assert not found.differentiable
    x = near()
    logits = logits_of(found, x)
    assert logits.shape == (300, len(model.classes_))
    assert np.isfinite(logits).all()
    assert np.array_equal(model.classes_[logits.argmax(1)], model.predict(x))
    alone = np.concatenate([logits_of(found, row[None]) for row in x[:5]])
    np.testing.assert_allclose(alone, logits[:5], rtol=1e-12)


def test_gradients_are_those_of_the_estimator() -> None:
    model = fitted(MinMaxScaler(), HEADS["tanh"], y=TWO)
    x = torch.as_tensor(X[:5]).requires_grad_()
    (grad,) = torch.autograd.grad(as_classifier(model)(x)[:, 1].sum(), x)
    for feature in range(4):
        odds = []
        for side in (-1, 1):
            moved = X[:5].copy()
            moved[:, feature] += side * 1e-4
            shares = model.predict_proba(moved)
            odds.append(np.log(shares[:, 1] / shares[:, 0]))
        np.testing.assert_allclose(grad[:, feature].numpy(), (odds[1] - odds[0]) / 2e-4, rtol=1e-5, atol=1e-7)


def test_the_margin_of_two_probabilities_keeps_its_sign() -> None:
    half = 0.5
    below, above = np.nextafter(half, 0), np.nextafter(half, 1)
    shares = np.array([[half, half], [half, below], [below, half], [above, half], [0, 1], [1, 0], [0.25, 0.75]])
    found = log_odds(shares)
    assert np.sign(found).tolist() == [0, -1, 1, -1, 1, -1, 1]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-1], np.log(3), rtol=1e-14)
    assert np.isfinite(log_odds(np.array([[0.0, 0.0, 1.0]]))).all()


def test_thresholds_of_their_own() -> None:
    from sklearn.model_selection import FixedThresholdClassifier

    model = FixedThresholdClassifier(LogisticRegression(C=0.01), threshold=0.9).fit(X, TWO)
    assert np.array_equal(logits_of(as_classifier(model)).argmax(1), model.predict(X))
    assert not np.array_equal(model.estimator_.predict(X), model.predict(X))


def test_queries_take_them() -> None:
    for head in (ASKED["forest"], HEADS["relu"]):
        model = fitted(StandardScaler(), head)
        with Query(load_model(model)) as query:
            assert query.dtype == torch.float64
            logits = query.bare_logits(torch.as_tensor(X).float())
        assert np.array_equal(model.classes_[logits.argmax(1)], model.predict(X.astype(np.float32)))


def test_what_is_no_classifier() -> None:
    for model, line in (
        (
            LogisticRegression(),
            r"the LogisticRegression is no fitted classifier: it has no classes_; call its fit first",
        ),
        (make_pipeline(StandardScaler(), GaussianNB()), r"the Pipeline is no fitted classifier"),
        (LinearRegression().fit(X, Y), r"the LinearRegression is no fitted classifier"),
        (KNeighborsClassifier().fit(X, np.stack([Y, Y], 1)), r"the KNeighborsClassifier answers several questions"),
        (DummyClassifier(strategy="uniform").fit(X, Y), r"of strategy 'uniform' draws its answers at random: fit one"),
        (RandomForestClassifier(1).fit(X, 0 * Y), r"the RandomForestClassifier knows one class only"),
    ):
        with pytest.raises(ModelError, match=line):
            load_model(model)
    with pytest.raises(ModelError, match=r"a fitted classifier has no use for w\.pt; leave it out"):
        load_model(GaussianNB().fit(X, Y), "w.pt")
    with pytest.raises(SettingError, match=r"^mean, std, positive: a classifier of scikit-learn"):
        Model(GaussianNB().fit(X, Y), mean=(1.0,)).load()
    with pytest.raises(ModelError, match=r"^model: a \w+ is no kind of model"):
        load_model(GaussianNB)


def test_columns_are_those_it_was_fitted_to() -> None:
    model = GaussianNB().fit(X, Y)
    with pytest.raises(ModelError, match="was fitted to 4 columns, but the data have 3"):
        as_classifier(model, ["a", "b", "c"])
    model.feature_names_in_ = np.array(["a", "b", "c", "d"], object)
    assert as_classifier(model, ["a", "b", "c", "d"]) is not None
    with pytest.raises(ModelError, match="fitted to 4 columns, and 'd' is one that the data do not have"):
        as_classifier(model, ["a", "b", "c", "e"])
    with pytest.raises(ModelError, match="fitted to 4 columns, and 'e' is one that the data have beside its own"):
        as_classifier(model, ["a", "b", "c", "d", "e"])
    turned = as_classifier(model, ["d", "b", "c", "a"])
    del model.feature_names_in_
    assert np.array_equal(logits_of(turned, X[:, ::-1][:, [0, 2, 1, 3]]), logits_of(as_classifier(model), X))


def test_pipelines_over_tables_of_words() -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"protocol": rng.choice(["tcp", "udp"], 80), "rate": rng.normal(size=80)})
    y = ((table["protocol"] == "tcp") ^ (table["rate"] > 0)).to_numpy()
    encode = make_column_transformer((OneHotEncoder(), ["protocol"]), (StandardScaler(), ["rate"]))
    model = make_pipeline(encode, RandomForestClassifier(9, random_state=0)).fit(table, y)
    x = np.stack([table["protocol"] == "tcp", table["protocol"] == "udp", table["rate"]], 1).astype(float)
    found = as_classifier(model, ["protocol=tcp", "protocol=udp", "rate"])
    assert np.array_equal(logits_of(found, x).argmax(1), model.predict(table))


def test_factories_may_make_them(tmp_path: Any) -> None:
    (tmp_path / "make.py").write_text(
        "from sklearn.datasets import load_iris\nfrom sklearn.naive_bayes import GaussianNB\n"
        "def bayes():\n    return GaussianNB().fit(*load_iris(return_X_y=True))\n"
    )
    assert isinstance(load_model(f"{tmp_path}/make.py:bayes"), Classifier)


def test_the_same_model_has_the_same_name() -> None:
    def make(seed: int) -> Pipeline:
        return fitted(StandardScaler(), RandomForestClassifier(5, random_state=seed))

    assert repr(as_classifier(make(0))) == repr(as_classifier(make(0)))
    assert repr(as_classifier(make(0))) != repr(as_classifier(make(1)))


def test_no_random_number_is_drawn():
    x, y = make_classification(60, 4, random_state=0)
    before = torch.random.get_rng_state()
    for model in (LogisticRegression(), MLPClassifier((3,), max_iter=20, random_state=0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            as_classifier(model.fit(x, y))
    assert torch.equal(torch.random.get_rng_state(), before)
