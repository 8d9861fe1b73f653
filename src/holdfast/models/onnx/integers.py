"""Operators on shapes: integers read from a tensor's shape on their way to another operator's arguments.

Exporters compute the target of a Reshape from the batch size with the same operators that compute on tensors. Here they
work on Python integers, one (a scalar) or a tuple of them (a vector), which under ``torch.export`` may be symbolic.
"""

from __future__ import annotations

import operator as python
from functools import partial
from typing import TYPE_CHECKING

from holdfast.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.onnx.node import Node, Rule

Ints = tuple[int, ...]


def _elementwise(function: Callable[[int, int], int], node: Node, a: int | Ints, b: int | Ints) -> int | Ints:
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return function(a, b)
    a, b = _vector(a), _vector(b)
    length = max(len(a), len(b))
    a, b = (v * length if len(v) == 1 else v for v in (a, b))
    return tuple(function(i, j) for i, j in zip(a, b, strict=True))


def _vector(value: int | Ints) -> Ints:
    return value if isinstance(value, tuple) else (value,)


def _identity(node: Node, value: int | Ints) -> int | Ints:
    return value


def _cast(node: Node, value: int | Ints) -> int | Ints:
    if node.get("to") not in {6, 7}:
        raise ModelError("a shape cast to anything but an integer type is not supported")
    return value


def _gather(node: Node, value: Ints, indices: int | Ints) -> int | Ints:
    return tuple(value[i] for i in indices) if isinstance(indices, tuple) else value[indices]


def _concat(node: Node, *values: Ints) -> Ints:
    return tuple(size for value in values for size in value)


def _slice(
    node: Node,
    value: Ints,
    starts: Ints | None = None,
    ends: Ints | None = None,
    axes: object = None,
    steps: Ints = (1,),
) -> Ints:
    (start,), (end,) = node.get("starts", starts), node.get("ends", ends)
    return value[start : end : steps[0]]


def _unsqueeze(node: Node, value: int, axes: object = None) -> Ints:
    if isinstance(value, tuple):
        raise ModelError("a shape cannot become a matrix")
    return (value,)


def _squeeze(node: Node, value: Ints, axes: object = None) -> int:
    (single,) = value
    return single


INTEGER_OPERATORS: dict[str, Rule] = {
    "Add": partial(_elementwise, python.add),
    "Sub": partial(_elementwise, python.sub),
    "Mul": partial(_elementwise, python.mul),
    "Div": partial(_elementwise, python.floordiv),  # sizes are not negative
    "Identity": _identity,
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
}
