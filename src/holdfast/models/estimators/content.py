"""A short name for what an estimator holds: the same in every process, and after it was saved and read."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from holdfast.threats.numbers import type_of

__all__ = ["content"]


def content(estimator: Any) -> str:
    """A digest of an estimator: of its type, its settings and what it has learned, down to the last number."""
    total = hashlib.sha256()
    _add(total, estimator, set())
    return total.hexdigest()[:16]


def _add(total: Any, value: Any, above: set[int]) -> None:
    """Take a value in; ``above`` are those that it is part of, lest a circle have no end."""
    total.update(f"{type_of(value)}:".encode())
    if id(value) in above:
        return
    above = above | {id(value)}
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        total.update(repr(value).encode())
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            total.update(repr(key).encode())
            _add(total, value[key], above)
    elif isinstance(value, set | frozenset):
        total.update(repr(sorted(map(repr, value))).encode())
    elif isinstance(value, list | tuple):
        for part in value:
            _add(total, part, above)
    elif isinstance(value, np.ndarray):
        total.update(f"{value.shape}{value.dtype}".encode())
        if value.dtype.names:  # what lies between the fields is not the array's
            for name in value.dtype.names:
                _add(total, value[name], above)
        elif value.dtype == object:
            _add(total, value.ravel().tolist(), above)
        else:
            total.update(np.ascontiguousarray(value).tobytes())
    elif callable(value) and hasattr(value, "__qualname__"):
        total.update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        _add(total, _state(value), above)


def _state(value: Any) -> Any:
    """What an object would be pickled with; of those that cannot be, what they look like."""
    try:
        state = value.__getstate__()
    except Exception:  # what somebody else's object raises
        state = None
    if state is None:
        return vars(value) if hasattr(value, "__dict__") else re.sub(r"0x[0-9a-f]+", "", repr(value))
    return state
