"""Linear classifiers as torch modules."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

import holdfast
from holdfast.errors import ModelError
from holdfast.linear import RobustLinearSVC, RobustLogisticRegression, as_module

SCALERS = (
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    RobustScaler(),
    RobustScaler(with_centering=False, unit_variance=True),
    RobustScaler(with_scaling=False),
    MinMaxScaler((-2, 3)),
    MaxAbsScaler(),
    "passthrough",
)


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_the_layer_is_the_pipeline_in_input_units(load):
    x, y = load(return_X_y=True)
    for last in (RobustLinearSVC(0.05), LogisticRegression()):
        for scaler in SCALERS:
            pipeline = make_pipeline(MaxAbsScaler(), scaler, last).fit(x, y)
            logits = as_module(pipeline)(torch.from_numpy(x)).detach().numpy()
            scores = pipeline.decision_function(x)
            assert (logits if scores.ndim == 2 else logits[:, 1]) == pytest.approx(scores, rel=1e-8, abs=1e-8)
            assert logits.shape == (len(x), len(np.unique(y)))


def test_an_audit_in_input_units_is_exact_and_honours_the_box():
    x, y = load_iris(return_X_y=True)
    box = (torch.from_numpy(x.min(0)), torch.from_numpy(x.max(0)))
    pipeline = make_pipeline(StandardScaler(), RobustLogisticRegression(0.05)).fit(x, y)
    layer, threat = as_module(pipeline), holdfast.Linf(0.2, box=box)
    result = holdfast.audit(
        layer, (torch.from_numpy(x), torch.from_numpy(y)), threat, protocol="quick", certify="crown"
    )
    # In closed form: for every wrong class each coordinate goes to the end of its interval that helps it.
    weight, logits = layer.weight.detach().numpy(), layer(torch.from_numpy(x)).detach().numpy()
    low, high = np.maximum(x - 0.2, x.min(0)) - x, np.minimum(x + 0.2, x.max(0)) - x
    robust = np.ones(len(x), bool)
    for k in range(3):
        towards = weight[k] - weight[y]
        lead = logits[np.arange(len(y)), y] - logits[:, k] - np.maximum(towards * low, towards * high).sum(1)
        robust &= (lead > 0) | (y == k)
    assert 0.3 < robust.mean() < 0.95
    assert result.robust_accuracy == pytest.approx(robust.mean())
    assert result.certified_accuracy == pytest.approx(robust.mean())


def test_what_is_no_linear_layer_is_refused():
    x, y = load_iris(return_X_y=True)
    for model, match in (
        (make_pipeline(PCA(), RobustLogisticRegression()).fit(x, y), "PCA"),
        (make_pipeline(MinMaxScaler(clip=True), RobustLogisticRegression()).fit(x, y), "clip=True"),
        (make_pipeline(StandardScaler(), RobustLogisticRegression()), "RobustLogisticRegression"),
        (LinearRegression().fit(x, y), "LinearRegression"),
    ):
        with pytest.raises(ModelError, match=match):
            as_module(model)
