"""Resize and its forerunner Upsample, one dimension after another.

Every mode but ``nearest`` is linear in the entries of a dimension, so a dimension is resized by a matrix; ``nearest``
picks entries. Formulas are those of the operator's text (https://onnx.ai/onnx/operators/onnx__Resize.html).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from holdfast.models.onnx.node import Node

Ints = tuple[int, ...]
Floats = tuple[float, ...]

_COORDINATES = {
    "align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn",
}  # fmt: skip
_ROUNDINGS: dict[str, Callable[..., Any]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda origins: np.floor(origins + 0.5),
    "round_prefer_floor": lambda origins: np.ceil(origins - 0.5),
}
_MODES = {"cubic", "linear", "nearest"}


@dataclass(frozen=True)
class _Manner:
    """How a dimension is resized."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool


@dataclass(frozen=True)
class _Step:
    """From ``length`` entries to ``target`` of them."""

    length: int
    target: int
    scale: float


def _resize(
    node: Node, x: Tensor, roi: Floats | None = None, scales: Floats | None = None, sizes: Ints | None = None
) -> Tensor:
    if node.opset < 11:  # where the scales were the second input, and coordinates were not shifted
        manner = _manner(node, "asymmetric", "floor")
        return _resized(node, x, _steps(x, range(x.dim()), roi, None, "stretch"), manner)
    manner = _manner(node, node.get("coordinate_transformation_mode", "half_pixel"), None)
    axes = node.get("axes", tuple(range(x.dim())))
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    return _resized(node, x, _steps(x, axes, scales, sizes, policy), manner)


def _upsample(node: Node, x: Tensor, scales: Floats | None = None) -> Tensor:
    scales = node.get("scales", scales)
    return _resized(node, x, _steps(x, range(x.dim()), scales, None, "stretch"), _manner(node, "asymmetric", "floor"))


def _manner(node: Node, coordinates: str, rounding: str | None) -> _Manner:
    rounding = rounding or node.get("nearest_mode", "round_prefer_floor")
    mode = node.get("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)
    for word, known in ((mode, _MODES), (coordinates, _COORDINATES), (rounding, _ROUNDINGS.keys())):
        if word not in known:
            raise ModelError(f"resizing by '{word[:40]}' is not supported: {', '.join(sorted(known))} are")
    cubic, outside = node.get("cubic_coeff_a", -0.75), bool(node.get("exclude_outside", 0))
    return _Manner(mode, coordinates, rounding, cubic, outside)


def _steps(x: Tensor, axes: Ints | range, scales: Floats | None, sizes: Ints | None, policy: str) -> dict[int, _Step]:
    """What becomes of each dimension that is named."""
    scales, sizes = scales or None, sizes or None  # an empty input is one left out
    given = scales if sizes is None else sizes
    if given is None or (scales is not None and sizes is not None):
        raise ModelError("it takes scales or sizes, one of the two")
    if len(given) != len(axes) or any(not -x.dim() <= axis < x.dim() for axis in axes):
        raise ModelError(f"it has {len(given)} scales or sizes for the axes {tuple(axes)} of {x.dim()} dimensions")
    lengths = [x.shape[axis] for axis in axes]
    if sizes is None:
        assert scales is not None
        if any(not (math.isfinite(scale) and scale > 0) for scale in scales):
            raise ModelError(f"its scales {scales} are not positive numbers")
        targets = [math.floor(length * scale) for length, scale in zip(lengths, scales, strict=True)]
    else:
        if any(size < 0 for size in sizes):
            raise ModelError(f"its sizes {sizes} make no sense")
        targets, scales = list(sizes), tuple(size / length for size, length in zip(sizes, lengths, strict=True))
        if policy != "stretch":
            chosen = {"not_larger": min, "not_smaller": max}.get(policy)
            if chosen is None:
                raise ModelError(f"its keep_aspect_ratio_policy '{policy[:40]}' is not known")
            scale = chosen(scales)
            scales = (scale,) * len(axes)
            targets = [math.floor(length * scale + 0.5) for length in lengths]
    return {
        axis % x.dim(): _Step(length, target, scale)
        for axis, length, target, scale in zip(axes, lengths, targets, scales, strict=True)
    }


def _resized(node: Node, x: Tensor, steps: dict[int, _Step], manner: _Manner) -> Tensor:
    if manner.mode != "nearest" and not x.is_floating_point():
        raise ModelError("interpolation between whole numbers is not supported")
    for axis, step in steps.items():
        if step.target == step.length and step.scale == 1:
            continue
        if axis == 0:
            raise ModelError("it resizes the first dimension, which holds the examples")
        # of these, the specification's reference and onnxruntime have readings of their own
        if node.get("antialias", 0) and step.scale < 1:
            raise ModelError("making smaller with antialias is not supported")
        if manner.coordinates == "align_corners" and step.target != step.length * step.scale:
            raise ModelError(
                f"align_corners is not supported where {step.length} entries become {step.target} by rounding"
            )
        check_bytes(step.length * step.target * 8, f"resizing {step.length} entries to {step.target}")
        if manner.mode == "nearest":
            places = torch.from_numpy(_nearest(step, manner)).to(x.device)
            x = x.index_select(axis, places)
        else:
            matrix = torch.from_numpy(_matrix(step, manner)).to(x)
            x = torch.matmul(x.movedim(axis, -1), matrix.T).movedim(-1, axis)
    return x


def _origins(step: _Step, coordinates: str, precision: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
    """Where in the original each new entry lies."""
    i = np.arange(step.target, dtype=precision)
    if coordinates == "align_corners":
        return i * (step.length - 1) / (step.target - 1) if step.target > 1 else 0 * i
    if coordinates == "asymmetric":
        return i / step.scale
    if coordinates == "tf_half_pixel_for_nn":
        return (i + 0.5) / step.scale
    if coordinates == "pytorch_half_pixel" and step.target <= 1:
        return 0 * i
    if coordinates == "half_pixel_symmetric":
        shrunk = step.target / (step.scale * step.length)  # a fractional target was cut off on both sides alike
        return step.length / 2 * (1 - shrunk) + (i + 0.5) / step.scale - 0.5
    return (i + 0.5) / step.scale - 0.5


@lru_cache(maxsize=64)
def _nearest(step: _Step, manner: _Manner) -> NDArray[np.int64]:
    exact, executed = (
        np.clip(_ROUNDINGS[manner.rounding](_origins(step, manner.coordinates, precision)), 0, step.length - 1)
        for precision in (np.float64, np.float32)
    )
    if not np.array_equal(exact, executed):
        raise ModelError("it takes other entries in float32 than in exact arithmetic; choose another scale")
    places: NDArray[np.int64] = exact.astype(np.int64)
    return places


@lru_cache(maxsize=64)
def _matrix(step: _Step, manner: _Manner) -> NDArray[np.float64]:
    """The weights ``(target, length)`` of the original's entries in the new ones."""
    origins = _origins(step, manner.coordinates)
    reach = 2 if manner.mode == "cubic" else 1
    first = np.floor(origins).astype(np.int64)
    matrix = np.zeros((step.target, step.length))
    rows = np.arange(step.target)
    for offset in range(-reach + 1, reach + 1):
        places = first + offset
        distance = np.abs(origins - places)
        weights = _cubic(distance, manner.cubic) if manner.mode == "cubic" else np.maximum(1 - distance, 0.0)
        inside = (places >= 0) & (places < step.length)
        weights = np.where(inside, weights, 0.0) if manner.exclude_outside else weights
        np.add.at(matrix, (rows, np.clip(places, 0, step.length - 1)), weights)
    total = matrix.sum(1, keepdims=True)
    normalised: NDArray[np.float64] = matrix / np.where(total == 0, 1.0, total)
    return normalised


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


RESIZING: dict[str, Operator] = {
    # extrapolation belongs to tf_crop_and_resize alone, which is refused, and so do the regions
    "Resize": operator(
        _resize,
        "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value "
        "keep_aspect_ratio_policy mode nearest_mode",
        1,
        2,
        3,
    ),
    "Upsample": operator(_upsample, "mode scales", 1),
}
