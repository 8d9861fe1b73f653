"""What is handed over from Python, as the code works with it: the same checks at every front door.

What :func:`holdfast.audit` takes, the other functions take too: arrays, lists and tables of numbers become tensors.
"""

import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import DataError, ModelError, SettingError
from holdfast.threats import Ball, Threat, parse_threat

__all__ = [
    "LARGEST_SEED",
    "as_list",
    "ball_of",
    "counts",
    "inputs",
    "is_number",
    "labels",
    "module_of",
    "one_input",
    "path_of",
    "real",
    "require_classes",
    "threat_of",
    "whole",
]

# The largest seed that fits into the 64 bits of a generator.
LARGEST_SEED = 2**64 - 1
_OF_A_THREAT = ("name", "apply", "project", "contains", "distance", "budget", "at")


def inputs(x: Any, name: str = "x") -> Tensor:
    """``(N, *shape)`` inputs as a tensor of floating type, cut off from any graph of gradients.

    Raises
    ------
    DataError
        When they are no real floating point numbers, or not one row an example.
    """
    values = one_input(x, name)
    if values.dim() < 2 or 0 in values.shape[1:]:
        raise DataError(f"{name} has the shape {tuple(values.shape)}: give one row an example, (N, ...)")
    return values


def one_input(x: Any, name: str = "x") -> Tensor:
    """Like :func:`inputs`, of any shape."""
    values = _tensor(x, name)
    if not values.is_floating_point():
        raise DataError(f"{name}: inputs are {values.dtype}: give floating point numbers (images divided by 255)")
    return values


def labels(y: Any, count: int, name: str = "y") -> Tensor:
    """``(N,)`` class numbers of ``N = count`` inputs, in int64.

    Raises
    ------
    DataError
        When they are no whole numbers, or not one for each input.
    """
    values = _tensor(y, name)
    if values.shape != (count,) or values.is_floating_point() or values.is_complex():
        raise DataError(
            f"{name} must hold {count} class numbers, one an input; got {values.dtype} {tuple(values.shape)}"
        )
    return values.long()


def counts(values: Any, name: str) -> Tensor:
    """Whole numbers of any shape, in int64.

    Raises
    ------
    DataError
        When they are none.
    """
    found = _tensor(values, name)
    if found.is_floating_point() or found.is_complex():
        raise DataError(f"{name}: whole numbers are needed, got {found.dtype}")
    return found.long()


def require_classes(logits: Tensor, y: Tensor) -> Tensor:
    """The logits ``(N, K)``, once each of the labels ``(N,)`` is known for one of their classes.

    Raises
    ------
    DataError
        At the first that is none.
    """
    wrong = ((y < 0) | (y >= logits.shape[-1])).nonzero()
    if len(wrong):
        place = int(wrong[0, 0])
        raise DataError(f"example {place} has label {int(y[place])}, but the model knows classes 0 to "
                        f"{logits.shape[-1] - 1}")  # fmt: skip
    return logits


def module_of(model: Any) -> nn.Module:
    """A model that can be called.

    Raises
    ------
    ModelError
        When it is none.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: a torch.nn.Module is needed, not a {_kind(model)}; load_model makes one of a name")
    return model


def threat_of(threat: Any) -> Threat:
    """A threat, also where it is written as text.

    Raises
    ------
    SettingError
        When it is none.
    """
    if isinstance(threat, str):
        return parse_threat(threat)
    if isinstance(threat, type) or not all(hasattr(threat, name) for name in _OF_A_THREAT):
        raise SettingError(f"threat: give one such as Linf(0.1) or 'linf:0.1', not a {_kind(threat)}")
    allowed: Threat = threat
    return allowed


def ball_of(threat: Any) -> Ball:
    """A threat that is a norm ball, also where it is written as text.

    Raises
    ------
    SettingError
        When it is none.
    """
    ball = threat_of(threat)
    if not isinstance(ball, Ball):
        raise SettingError(f"threat: a norm ball such as Linf(0.1) is needed here, not a {_kind(threat)}")
    return ball


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from ``least`` on, up to ``most`` where that is given.

    Raises
    ------
    SettingError
        When it is none, or too small or large.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SettingError(f"{name}: a whole number is needed, not {_shown(value)}")
    number = int(value)
    if number < least or (most is not None and number > most):
        above = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingError(f"{name}: a whole number {above} is needed, got {number}")
    return number


def real(name: str, value: Any, *, positive: bool = True) -> float:
    """A finite number, positive or at least 0.

    Raises
    ------
    SettingError
        When it is none.
    """
    number = float(value) if is_number(value) else math.nan
    if not (0 < number < math.inf or (number == 0 and not positive)):
        raise SettingError(f"{name}: a {'positive' if positive else 'non-negative'}, finite number is needed, "
                           f"got {_shown(value)}")  # fmt: skip
    return number


def as_list(values: Any) -> list[Any] | None:
    """What a tuple, list, array or tensor of one dimension holds, in Python's numbers where it can; None of others."""
    if isinstance(values, Tensor | np.ndarray):
        plain = values.tolist()
        return plain if isinstance(plain, list) else None
    return list(values) if isinstance(values, list | tuple) else None


def path_of(name: str, path: Any) -> Path:
    """The path of a file or folder, as a name that the system can have.

    Raises
    ------
    SettingError
        When it is none.
    """
    try:
        found = Path(path)
        os.fsencode(found)
    except (TypeError, ValueError):
        raise SettingError(f"{name}: {_shown(path)} is no path of a file or folder") from None
    if "\0" in str(found):
        raise SettingError(f"{name}: {_shown(path)} is no path of a file or folder")
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is one real number, as Python or numpy has them."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_nested or values.layout != torch.strided or values.is_meta or values.is_quantized:
            raise DataError(f"{name}: a plain tensor of numbers is needed; call to_dense() or dequantize() on it first")
        return values.detach()
    try:
        if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
            return torch.stack(list(values)).detach()
        array = np.asarray(values)
    except Exception as error:  # an object of the user's may raise anything while it is read
        raise DataError(f"{name}: a {_kind(values)} that does not read as an array: {_reason(error)}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: a {_kind(values)} of {array.dtype} is no tensor or array of real numbers")
    # numpy knows precisions, byte orders and names of types that torch does not.
    size = min(array.dtype.itemsize, 8)
    kind = array.dtype if array.dtype.kind == "b" else np.dtype(f"{array.dtype.kind}{size}")
    return torch.tensor(np.ascontiguousarray(array, kind).reshape(array.shape))


def _kind(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else f"a {_kind(value)}"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
