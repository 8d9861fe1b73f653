from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from holdfast import ModelError, load_model

X, Y = load_iris(return_X_y=True)


@pytest.mark.parametrize("name", ["model.joblib", "model.pkl", "model.PICKLE", "missing/model.joblib.gz"])
def test_pickles_are_never_read(tmp_path: Any, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / name)
    assert "a pickle, which runs whatever code is in it when it is read" in str(caught.value)
    assert "skops.io.dump(model, 'model.skops')" in str(caught.value)


def test_what_is_no_file_of_skops(tmp_path: Any) -> None:
    pytest.importorskip("skops")
    path = tmp_path / "model.skops"
    for content in (b"nonsense", b"PK\x03\x04nonsense"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.skops: not an estimator as skops saves it"):
            load_model(path)
    with pytest.raises(ModelError, match=r"other\.skops: no such file"):
        load_model(tmp_path / "other.skops")


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=0)),
        GradientBoostingClassifier(n_estimators=2, random_state=0),
    ],
)
def test_a_saved_model_is_the_same(tmp_path: Any, model: Any) -> None:
    io = pytest.importorskip("skops.io")
    io.dump(model.fit(X, Y), tmp_path / "model.skops")
    found, given = load_model(tmp_path / "model.skops"), load_model(model)
    with torch.no_grad():
        assert torch.equal(found(torch.as_tensor(X)), given(torch.as_tensor(X)))
    assert repr(found) == repr(given)
    assert repr(found) == repr(load_model(tmp_path / "model.skops"))


def test_types_that_are_not_known_need_trust(tmp_path: Any) -> None:
    io = pytest.importorskip("skops.io")
    model = make_pipeline(FunctionTransformer(np.linalg.norm, validate=False), LogisticRegression(max_iter=500))
    model.steps[-1][1].fit(X, Y)
    model.steps[0][1].func = _untouched
    io.dump(model, tmp_path / "model.skops")
    with pytest.raises(ModelError, match="which skops does not know to be harmless; if you trust this file, say so"):
        load_model(tmp_path / "model.skops")


def _untouched(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("left_child", 1000, "whose nodes lead nowhere"),
        ("right_child", 0, "whose nodes lead nowhere"),
        ("feature", 77, "that asks for a feature which there is not"),
        ("left_child", -1, "without leaves"),
    ],
)
def test_trees_that_are_none(tmp_path: Any, field: str, value: int, line: str) -> None:
    io = pytest.importorskip("skops.io")
    model = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, Y)
    state = model.tree_.__getstate__()
    state["nodes"][field][0] = value
    model.tree_.__setstate__(state)
    io.dump(model, tmp_path / "model.skops")
    with pytest.raises(ModelError, match=f"holds a tree {line}: it is damaged, or made to deceive"):
        load_model(tmp_path / "model.skops")
