"""What is handed over from Python, as the code works with it: the same checks at every front door.

What :func:`holdfast.audit` takes, the other functions take too: arrays, lists and tables of numbers become tensors.
"""

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import DataError, HoldfastError, ModelError, SettingError
from holdfast.threats import Ball, Threat, parse_threat
from holdfast.threats.numbers import plain_tensor, type_of

__all__ = [
    "LARGEST",
    "LARGEST_SEED",
    "as_float",
    "as_list",
    "ball_of",
    "choice",
    "counts",
    "function_of",
    "inputs",
    "is_number",
    "labels",
    "module_of",
    "number",
    "one_input",
    "path_of",
    "real",
    "require_classes",
    "seed_of",
    "shown",
    "threat_of",
    "whole",
    "yes_or_no",
]

F = TypeVar("F", bound=Callable[..., Any])
W = TypeVar("W", bound=str)

LARGEST_SEED = 2**64 - 1
"""The largest seed that fits into the 64 bits of a generator."""
LARGEST = torch.finfo(torch.float32).max
"""The largest number that float32 can hold."""
_OF_A_THREAT = ("name", "nothing", "apply", "contains", "distance", "sample", "budget", "at")


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
    values = plain_tensor(x, name)
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
    values = plain_tensor(y, name)
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
    found = plain_tensor(values, name)
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
        raise ModelError(f"model: a torch.nn.Module is needed, not a {type_of(model)}; load_model makes one of a name")
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
        raise SettingError(f"threat: give one such as Linf(0.1) or 'linf:0.1', not a {type_of(threat)}")
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
        raise SettingError(f"threat: a norm ball such as Linf(0.1) is needed here, not a {type_of(threat)}")
    return ball


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from ``least`` on, up to ``most`` where that is given.

    Raises
    ------
    SettingError
        When it is none, or too small or large.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SettingError(f"{name}: a whole number is needed, not {shown(value)}")
    found = int(value)
    if found < least or (most is not None and found > most):
        above = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingError(f"{name}: a whole number {above} is needed, got {shown(found)}")
    return found


def real(name: str, value: Any, *, positive: bool = True) -> float:
    """A finite number, positive or at least 0.

    Raises
    ------
    SettingError
        When it is none.
    """
    found = as_float(value)
    if not (0 < found < math.inf or (found == 0 and not positive)):
        raise SettingError(f"{name}: a {'positive' if positive else 'non-negative'}, finite number is needed, "
                           f"got {shown(value)}")  # fmt: skip
    return found


def choice(name: str, value: Any, choices: Collection[W]) -> W:
    """One of some words.

    Raises
    ------
    SettingError
        When it is none of them.
    """
    found = next((word for word in choices if isinstance(value, str) and word == value), None)
    if found is None:
        raise SettingError(f"unknown {name} {shown(value)}: choose one of {', '.join(choices)}")
    return found


def yes_or_no(name: str, value: Any) -> bool:
    """A truth value, as Python or numpy have it.

    Raises
    ------
    SettingError
        When it is none.
    """
    if not isinstance(value, bool | np.bool_):
        raise SettingError(f"{name}: True or False is needed, not {shown(value)}")
    return bool(value)


def function_of(name: str, value: F) -> F:
    """What can be called.

    Raises
    ------
    SettingError
        When it cannot.
    """
    if not callable(value):
        raise SettingError(f"{name}: a function is needed, not {shown(value)}")
    return value


def seed_of(seed: Any) -> int:
    """A seed that fits into a generator.

    Raises
    ------
    SettingError
        When it does not.
    """
    return whole("seed", seed, 0, LARGEST_SEED)


def number(name: str, value: Any) -> float:
    """A number of either sign that float32 can hold.

    Raises
    ------
    SettingError
        When it is none.
    """
    found = as_float(value)
    if not abs(found) <= LARGEST:
        raise SettingError(f"{name}: a number of at most {LARGEST:.2g} in size is needed, got {shown(value)}")
    return found


def as_float(value: Any) -> float:
    """A number as Python has it, infinite where it is too large, and NaN of what is no number."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:  # Python's whole numbers have no end
        return math.inf if value > 0 else -math.inf


def as_list(values: Any) -> list[Any] | None:
    """What a tuple, list, array or tensor of one dimension holds, in Python's numbers where it can; None of others."""
    if isinstance(values, Tensor):
        try:
            values = plain_tensor(values, "")
        except DataError:
            return None
    if isinstance(values, Tensor | np.ndarray):
        plain = values.tolist()
        return plain if isinstance(plain, list) else None
    return list(values) if isinstance(values, list | tuple) else None


def path_of(name: str, path: Any, fault: type[HoldfastError] = SettingError) -> Path:
    """The path of a file or folder, as a name that the system can have.

    Raises
    ------
    HoldfastError
        Of the class ``fault``, when it is none.
    """
    try:
        found = Path(path)
        os.fsencode(found)
    except (TypeError, ValueError):
        raise fault(f"{name}: {shown(path)} is no path of a file or folder") from None
    if "\0" in str(found):
        raise fault(f"{name}: {shown(path)} is no path of a file or folder")
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is one real number, as Python or numpy has them."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as a message names it: short ones as they are, others by what they are."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a whole number of more than 20 digits"
    return repr(value)[:100] if isinstance(value, str | int | float | None) else f"a {type_of(value)}"
