"""The settings that the estimators share, read when they are fitted."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from holdfast.arguments import as_float, as_list, shown
from holdfast.errors import DataError, HoldfastError, SettingError
from holdfast.linear.solver import Solution
from holdfast.threats import L1, L2, Ball, Linf
from holdfast.threats.box import Bound, Box
from holdfast.threats.budget import parse_budget
from holdfast.threats.numbers import plain_tensor
from holdfast.words import reason

__all__ = [
    "ball",
    "budget",
    "budgets",
    "class_weights",
    "plain",
    "positive",
    "reading",
    "warn_if_separable",
    "warn_unless_certified",
    "weighted",
]

_BALLS = {"1": L1, "2": L2, "inf": Linf}


def ball(norm: Any, eps: float = 1.0, box: Box | tuple[Bound, Bound] | None = None) -> Ball:
    """The perturbations of ``eps`` in the norm 1, 2 or inf."""
    name = norm if isinstance(norm, str) else f"{as_float(norm):g}"
    if name not in _BALLS:
        raise SettingError(f"norm: {shown(norm)} is not a norm of perturbations; use 1, 2 or numpy.inf")
    return _BALLS[name](eps, box)


def budget(eps: Any) -> float:
    """A finite budget, at least 0."""
    value = parse_budget(eps)
    if not isinstance(value, float) or not math.isfinite(value):
        raise SettingError(f"eps: a linear model is fitted for one finite budget, not {shown(eps)}")
    return value


def positive(name: str, value: Any, or_zero: bool = False) -> float:
    """A number above 0, or at least 0; it may be infinite."""
    number = as_float(value)
    if not (number > 0 or (or_zero and number == 0)):
        raise SettingError(f"{name}: needs a number {'of at least' if or_zero else 'above'} 0, got {shown(value)}")
    return number


def class_weights(given: Any, classes: Any, y: Any) -> Any:
    """``(K,)`` what each class's examples count for, finite numbers of at least 0.

    Parameters
    ----------
    given : dict, "balanced" or None
        As for scikit-learn's classifiers.
    classes, y : array
        ``(K,)`` and ``(n,)`` labels.
    """
    if not (given is None or isinstance(given, dict) or (isinstance(given, str) and given == "balanced")):
        raise SettingError(f"class_weight: give a dict from classes to numbers, 'balanced' or None, not {shown(given)}")
    if isinstance(given, dict) and not all(0 <= as_float(weight) < math.inf for weight in given.values()):
        raise SettingError("class_weight: the weight of a class is a finite number of at least 0")
    try:
        return compute_class_weight(given, classes=classes, y=y)
    except ValueError as error:
        raise SettingError(f"class_weight: {error}") from error


def budgets(grid: Any) -> list[Any]:
    """Budgets to fit for, one after the other."""
    listed = as_list(grid)
    if listed is None:
        raise SettingError(f"eps_grid: a list of budgets is needed, not {shown(grid)}")
    return listed


def plain(values: Any) -> Any:
    """Data as scikit-learn reads them: a tensor, which may be part of a graph of gradients, as an array."""
    return plain_tensor(values, "data").cpu().numpy() if isinstance(values, Tensor) else values


@contextmanager
def reading() -> Iterator[None]:
    """Read data as scikit-learn does, by its errors: objects of the user's may raise anything else meanwhile.

    Raises
    ------
    DataError
        When they did.
    """
    try:
        yield
    except (ValueError, TypeError, HoldfastError):
        raise
    except Exception as error:
        raise DataError(f"data: what was given does not read as numbers: {reason(error)}") from error


def warn_unless_certified(solutions: list[Solution], tol: float) -> None:
    """Say so when a gap is larger than was asked for; nothing is left to certify where the objective vanished."""
    worst = max(0.0 if s.vanished else s.gap / max(s.objective, np.finfo(float).tiny) for s in solutions)
    if worst > tol:
        warnings.warn(
            f"the certified gap is {worst:.1e} of the objective, not {tol:.1e}: raise max_iter, scale the features, "
            "or regularise",
            ConvergenceWarning,
            stacklevel=4,
        )


def warn_if_separable(solutions: list[Solution]) -> None:
    """Say so when the weights of a classifier grew until its loss was nothing, but not 0."""
    if any(s.vanished and s.objective > 0 for s in solutions):
        warnings.warn(
            "the data can be separated with room for eps and C hardly bounds the weights: the loss falls to 0 as they "
            "grow; set a smaller C",
            ConvergenceWarning,
            stacklevel=4,
        )


def weighted(x: Any, y: Any, s: Any) -> tuple[Any, Any, Any]:
    """The examples that have a weight: without one an example plays no part.

    Raises
    ------
    ValueError
        When none has.
    """
    kept = s > 0
    if not kept.any():
        raise ValueError("sample_weight: no example has a weight above 0")
    return (x, y, s) if kept.all() else (x[kept], y[kept], s[kept])
