"""Operators of the domain ``ai.onnx.ml`` that linear models and their pipelines are exported with.

They give floats whatever they take. Labels are left out: what a classifier is asked for here is its scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node


def _linear(node: Node, x: Tensor, like: Tensor, outputs: int) -> Tensor:
    coefficients, intercepts = node.get("coefficients", ()), node.get("intercepts", ())
    features = x.shape[-1]
    if x.dim() != 2 or not outputs or len(coefficients) != outputs * features or len(intercepts) not in {0, outputs}:
        raise ModelError(
            f"its {len(coefficients)} coefficients and {len(intercepts)} intercepts do not suit {features} features "
            f"and {outputs} outputs"
        )
    weight = like.new_tensor(coefficients).reshape(outputs, features)
    return functional.linear(x.to(like.dtype), weight, like.new_tensor(intercepts) if intercepts else None)


def _linear_classifier(node: Node, x: Tensor, like: Tensor) -> list[Tensor | None]:
    labels = node.get("classlabels_ints") or node.get("classlabels_strings") or ()
    rows = len(node.get("coefficients", ())) // max(x.shape[-1], 1)
    scores = _linear(node, x, like, rows)
    transform = node.get("post_transform", "NONE")
    if transform not in {"LOGISTIC", "NONE", "SOFTMAX"}:
        raise ModelError(f"its post_transform '{transform[:20]}' is not supported: NONE, LOGISTIC and SOFTMAX are")
    if rows != len(labels):
        raise ModelError(f"it has coefficients for {rows} classes and {len(labels)} labels")
    if transform == "NONE":
        return [None, scores]
    return [None, torch.sigmoid(scores) if transform == "LOGISTIC" else torch.softmax(scores, 1)]


def _linear_regressor(node: Node, x: Tensor, like: Tensor) -> Tensor:
    if node.get("post_transform", "NONE") != "NONE":
        raise ModelError("its post_transform is not supported: only NONE is")
    return _linear(node, x, like, node.get("targets", 1))


def _scaler(node: Node, x: Tensor, like: Tensor) -> Tensor:
    offset, scale = node.get("offset", (0.0,)), node.get("scale", (1.0,))
    if {len(offset), len(scale)} - {1, x.shape[-1]}:
        raise ModelError(f"its {len(offset)} offsets and {len(scale)} scales do not suit {x.shape[-1]} features")
    return (x.to(like.dtype) - like.new_tensor(offset)) * like.new_tensor(scale)


def _normalizer(node: Node, x: Tensor, like: Tensor) -> Tensor:
    x = x.to(like.dtype)
    norm = node.get("norm", "MAX")
    if norm not in {"L1", "L2", "MAX"}:
        raise ModelError(f"its norm '{norm[:20]}' is not known")
    if norm == "MAX":
        return x / x.amax(-1, keepdim=True)
    size = x.abs().sum(-1, keepdim=True) if norm == "L1" else x.square().sum(-1, keepdim=True).sqrt()
    return torch.where(size == 0, x, x / size)


def _zip_map(node: Node, x: Tensor) -> Any:
    """A table of scores by their labels; here it stays the scores."""
    return x


CLASSIC: dict[str, Operator] = {
    "LinearClassifier": operator(
        _linear_classifier,
        "classlabels_ints classlabels_strings coefficients intercepts multi_class post_transform",
    ),
    "LinearRegressor": operator(_linear_regressor, "coefficients intercepts post_transform targets"),
    "Normalizer": operator(_normalizer, "norm"),
    "Scaler": operator(_scaler, "offset scale"),
    "ZipMap": operator(_zip_map, "classlabels_int64s classlabels_strings"),
}
