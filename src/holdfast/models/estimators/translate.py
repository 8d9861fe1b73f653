"""Pipelines of scikit-learn written out in torch, step by step, in their own arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.models.one_logit import OneLogit
from holdfast.models.trees import CONSTANT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["by_column", "log_odds", "translated"]

Array = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).tiny)

_ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


def translated(estimator: Any) -> nn.Module | None:
    """A fitted classifier as a module ``(N, d) -> (N, K)`` in float64; None where it is not one that is known here.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A linear classifier, an ``MLPClassifier`` or a ``DummyClassifier`` that always answers the same, after any
        number of ``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``, imputers that have nothing
        to impute, and choices of columns, one by one or in a ``ColumnTransformer``.
    """
    *steps, last = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    layers: list[nn.Module] = []
    for step in steps:
        written = _step(step)
        if written is None:
            return None
        layers += written
    head = _network(last) or _linear(last) or _constant(last)
    if head is None:
        return None
    body = nn.Sequential(*layers, *head).double()
    return OneLogit(body) if len(last.classes_) == 2 else body


def by_column(steps: Sequence[Any]) -> Callable[[Any, Any], Any] | None:
    """What steps make of numbers in given columns, bit for bit; None where one of them looks at several columns.

    The function takes an array of numbers, and one of the columns that they stand in.
    """
    written = [_step(step) for step in steps]
    layers = [layer for one in written for layer in one or () if isinstance(layer, Affine | Clip)]
    if None in written or len(layers) < sum(len(one or ()) for one in written):
        return None

    def apply(x: Any, columns: Any) -> Any:
        for layer in layers:
            x = layer.of_columns(torch.as_tensor(x), torch.as_tensor(columns)).numpy()
        return x

    return apply


class Affine(nn.Module):
    """``(x - before) / divisor * factor + after``, of which a step has what it has."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.parts = tuple(parts)
        for name, values in parts.items():
            self.register_buffer(name, torch.tensor(np.asarray(values, np.float64)))

    def forward(self, x: Tensor) -> Tensor:
        return self._through(x, slice(None))

    def of_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """The same of numbers ``(N,)``, each in a column of its own."""
        return self._through(x, columns)

    def _through(self, x: Tensor, columns: slice | Tensor) -> Tensor:
        for part in self.parts:
            value = getattr(self, part)[columns]
            match part:
                case "before":
                    x = x - value
                case "divisor":
                    x = x / value
                case "factor":
                    x = x * value
                case _:
                    x = x + value
        return x


class Clip(nn.Module):
    """Values held between two ends."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def of_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """The same of numbers in any columns."""
        return x.clamp(self.low, self.high)


class Beside(nn.Module):
    """Steps that each work on some of the columns, their results side by side."""

    def __init__(self, parts: Iterable[tuple[Sequence[int], nn.Module]]) -> None:
        super().__init__()
        chosen, steps = zip(*parts, strict=True)
        self.steps = nn.ModuleList(steps)
        for number, places in enumerate(chosen):
            self.register_buffer(f"places{number}", torch.tensor(list(places)))

    def forward(self, x: Tensor) -> Tensor:
        parts = [step(x.index_select(1, getattr(self, f"places{n}"))) for n, step in enumerate(self.steps)]
        return torch.cat(parts, 1)


def _step(step: Any) -> list[nn.Module] | None:
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_selection import SelectorMixin
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

    match step:
        case None | "passthrough" | FunctionTransformer(func=None):
            return []
        case StandardScaler():
            before = {"before": step.mean_} if step.with_mean else {}
            return [Affine(**before, **({"divisor": step.scale_} if step.with_std else {}))]
        case RobustScaler():
            before = {"before": step.center_} if step.with_centering else {}
            return [Affine(**before, **({"divisor": step.scale_} if step.with_scaling else {}))]
        case MinMaxScaler():
            return [Affine(factor=step.scale_, after=step.min_), *([Clip(*step.feature_range)] if step.clip else [])]
        case MaxAbsScaler():
            return [Affine(divisor=step.scale_), *([Clip(-1.0, 1.0)] if getattr(step, "clip", False) else [])]
        case SimpleImputer():
            whole = not step.add_indicator and len(step.statistics_) == len(step.get_feature_names_out())
            return [] if whole else None
        case SelectorMixin():
            return [Beside([(np.flatnonzero(step.get_support()).tolist(), nn.Identity())])]
        case Pipeline():
            inner = [_step(one) for _, one in step.steps]
            return None if None in inner else [layer for one in inner for layer in one or ()]
        case ColumnTransformer():
            return _beside(step)
    return None


def _beside(transformer: Any) -> list[nn.Module] | None:
    # Columns may be named in many ways; which ones are meant only this attribute tells.
    places = getattr(transformer, "_transformer_to_input_indices", None)
    if places is None or transformer.transformer_weights:
        return None
    parts = []
    for name, step, _ in transformer.transformers_:
        if not len(places[name]) or (isinstance(step, str) and step == "drop"):
            continue
        if (written := _step(step)) is None:
            return None
        parts.append((places[name], nn.Sequential(*written)))
    return [Beside(parts)] if parts else None


def _linear(model: Any) -> list[nn.Module] | None:
    """A classifier that compares linear scores."""
    if not hasattr(model, "coef_") or not hasattr(model, "intercept_"):
        return None
    weight = np.asarray(model.coef_, np.float64)
    weight = weight[None] if weight.ndim == 1 else weight
    if len(weight) != (1 if len(model.classes_) == 2 else len(model.classes_)):
        return None
    return [_layer(weight, np.broadcast_to(np.asarray(model.intercept_, np.float64), len(weight)))]


def _network(model: Any) -> list[nn.Module] | None:
    """A perceptron of several layers, up to its logits."""
    from sklearn.neural_network import MLPClassifier

    if not isinstance(model, MLPClassifier) or model.out_activation_ not in ("logistic", "softmax"):
        return None
    if model.n_outputs_ != (1 if len(model.classes_) == 2 else len(model.classes_)):
        return None
    layers: list[nn.Module] = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        layers += [_layer(np.transpose(weight), np.asarray(bias)), _ACTIVATIONS[model.activation]()]
    return layers[:-1]


def _constant(model: Any) -> list[nn.Module] | None:
    """A classifier that answers the same to every input: a layer of weights 0."""
    from sklearn.dummy import DummyClassifier

    if not isinstance(model, DummyClassifier) or model.strategy not in CONSTANT:
        return None
    anywhere = np.zeros((1, model.n_features_in_))
    bias = log_odds(np.asarray(model.predict_proba(anywhere), np.float64)).ravel()
    return [_layer(np.repeat(anywhere, len(bias), 0), bias)]


def log_odds(shares: Array) -> Array:
    """Logits of probabilities ``(N, K)``: their logarithms, of two classes the margin ``(N,)``, whose sign is exact.

    ``log(p / q)`` is ``2 artanh(p - q)``, as ``p + q = 1``.
    """
    if shares.shape[1] > 2:
        return np.log(np.maximum(shares, _LEAST))
    largest = np.nextafter(1.0, 0.0)
    return 2 * np.arctanh(np.clip(shares[:, 1] - shares[:, 0], -largest, largest))


def _layer(weight: Any, bias: Any) -> nn.Linear:
    # Nothing is drawn for weights that are replaced at once: the global generator stays as it was.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(weight.astype(float)), "bias": torch.tensor(bias.astype(float))})
    return layer
