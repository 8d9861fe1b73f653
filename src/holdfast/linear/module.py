"""A fitted linear classifier as a torch module, in the units of the inputs it is given."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from torch import nn

from holdfast.errors import ModelError

__all__ = ["as_module"]

Array = NDArray[np.float64]


def as_module(model: Any) -> nn.Linear:
    """Turn a fitted linear classifier, or a pipeline of scalers that ends with one, into one linear layer.

    Scalers are folded into the weights, so that the layer takes inputs before scaling. A ball and a box in these
    units are
    balls of another shape after scaling; nothing of that has to be approximated. Folding rounds the weights, so that
    what is proved of the layer is about the layer.

    Parameters
    ----------
    model : estimator or Pipeline
        Anything with ``coef_`` and ``intercept_``, scikit-learn's own included, after any number of
        ``StandardScaler``, ``RobustScaler``, ``MinMaxScaler`` and ``MaxAbsScaler``, without ``clip``.

    Returns
    -------
    nn.Linear
        In double precision, ``(N, d)`` to logits ``(N, K)`` in the order of ``classes_``. With two classes the logits
        of the first are 0.

    Raises
    ------
    ModelError
        When a step is no such scaler, or the last one no linear classifier.
    """
    *steps, last = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    if not all(hasattr(last, name) for name in ("coef_", "intercept_", "classes_")):
        raise ModelError(
            f"{type(last).__name__} is no fitted linear classifier: it needs coef_, intercept_ and classes_"
        )
    weight = np.asarray(last.coef_, np.float64)
    bias = np.broadcast_to(np.asarray(last.intercept_, np.float64), len(weight))
    if len(weight) == 1:
        weight, bias = np.vstack((0 * weight, weight)), np.r_[0.0, bias]
    for step in reversed(steps):
        if step in (None, "passthrough"):
            continue
        factor, shift = _scaling(step)
        bias = bias + weight @ shift
        weight = weight * factor
    layer = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(np.ascontiguousarray(bias))})
    return layer


def _scaling(step: Any) -> tuple[Array, Array]:
    """What a scaler multiplies each feature by, and then adds to it."""
    known = isinstance(step, (StandardScaler, RobustScaler, MinMaxScaler, MaxAbsScaler))
    if not known or not hasattr(step, "n_features_in_") or getattr(step, "clip", False):
        raise ModelError(
            f"{step} cannot be folded into a linear layer: use a fitted StandardScaler, RobustScaler, MinMaxScaler or "
            "MaxAbsScaler that does not clip"
        )
    none = np.zeros(step.n_features_in_)
    if isinstance(step, MinMaxScaler):
        return none + step.scale_, none + step.min_
    factor = none + 1 if step.scale_ is None else 1 / step.scale_
    if isinstance(step, StandardScaler) and step.with_mean:
        return factor, -step.mean_ * factor
    if isinstance(step, RobustScaler) and step.with_centering:
        return factor, -step.center_ * factor
    return factor, none
