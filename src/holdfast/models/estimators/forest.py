"""Tree ensembles behind scalers, with their thresholds where inputs before scaling cross them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import ModelError
from holdfast.models.estimators.estimator import Classifier, last_step
from holdfast.models.estimators.translate import by_column
from holdfast.models.trees import Ensemble, Tree, read_trees

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["read_forest"]

# What an unsigned number of 64 bits is read from: the numbers of float64 in their own order.
_SIGN = np.uint64(1 << 63)


def read_forest(model: Classifier) -> Ensemble:
    """Read the trees of a classifier; their thresholds are for inputs ``x`` of float64, which go left where ``x <= t``.

    A scaler before them, and the rounding to float32 inside, never turn the order of two inputs round. So for every
    threshold there is a largest input that stays below it, found by bisection over the numbers of float64.

    Raises
    ------
    ModelError
        When it is no ensemble of trees that is known, or there is another step before it.
    """
    ensemble = read_trees(last_step(model.estimator))
    steps = getattr(model.estimator, "steps", [])[:-1]
    before = by_column([step for _, step in steps])
    if before is None or not model.feed.plain:
        raise ModelError(f"model: before the trees of a {model.kind} only scalers are taken")
    return replace(ensemble, trees=[_raw(tree, before) for tree in ensemble.trees])


def _raw(tree: Tree, before: Callable[[Any, Any], Any]) -> Tree:
    cuts = tree.threshold.copy()
    inner = tree.left >= 0
    feature, threshold = tree.feature[inner], tree.threshold[inner]

    def goes_left(x: NDArray[np.float64]) -> NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(before(x, feature).astype(np.float32) <= threshold)

    cuts[inner] = _last(goes_left, len(feature))
    return replace(tree, threshold=cuts)


def _last(holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]], count: int) -> NDArray[np.float64]:
    """The last number of which something holds that holds up to some number and not beyond; by 64 halvings."""
    low, high = (np.full(count, _key(np.float64(end))) for end in (-np.inf, np.inf))
    while (high - low > 1).any():
        middle = low + (high - low) // np.uint64(2)
        below = holds(_number(middle))
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return _number(low)


def _key(x: np.float64) -> np.uint64:
    bits = x.view(np.uint64)
    return ~bits if bits & _SIGN else bits | _SIGN


def _number(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float64)
