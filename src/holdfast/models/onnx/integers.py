"""Operators on shapes: integers read from a tensor's shape on their way to another operator's settings.

Exporters compute the target of a Reshape from the batch size with the same operators that compute on tensors. Only what
does depend on the batch size gets here: it is worked out in Python integers, one (a scalar) or a tuple of them (a
vector), which under ``torch.export`` may be symbolic.
"""

from __future__ import annotations

import operator as python
from functools import partial
from typing import TYPE_CHECKING

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.onnx.node import Node

Ints = tuple[int, ...]


def _elementwise(function: Callable[[int, int], int], node: Node, a: int | Ints, b: int | Ints) -> int | Ints:
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return function(a, b)
    a, b = _spread(a, b)
    return tuple(function(i, j) for i, j in zip(a, b, strict=True))


def _vector(value: int | Ints) -> Ints:
    return value if isinstance(value, tuple) else (value,)


def _spread(*values: int | Ints) -> list[Ints]:
    vectors = [_vector(value) for value in values]
    length = max(map(len, vectors))
    return [v * length if len(v) == 1 else v for v in vectors]


def _divide(a: int, b: int) -> int:
    """Towards zero. A size that depends on the batch is not negative, and only a divisor can be."""
    return a // b if b > 0 else -(a // -b)


def _identity(node: Node, value: int | Ints) -> int | Ints:
    return value


def _cast(node: Node, value: int | Ints) -> int | Ints:
    if node.get("to") not in {6, 7}:
        raise ModelError("a cast of the number of rows to anything but an integer type is not supported")
    return value


def _gather(node: Node, value: Ints, indices: int | Ints) -> int | Ints:
    return tuple(value[i] for i in indices) if isinstance(indices, tuple) else value[indices]


def _concat(node: Node, *values: Ints) -> Ints:
    return tuple(size for value in values for size in value)


def _slice(
    node: Node,
    value: Ints,
    starts: int | Ints | None = None,
    ends: int | Ints | None = None,
    axes: object = None,
    steps: int | Ints | None = None,
) -> Ints:
    starts, ends = node.get("starts", starts), node.get("ends", ends)
    ((start,), (end,), (step,)) = (_vector(v) for v in (starts, ends, 1 if steps is None else steps))
    return value[start:end:step]


def _unsqueeze(node: Node, value: int, axes: object = None) -> Ints:
    if isinstance(value, tuple):
        raise ModelError("a shape cannot become a matrix")
    return (value,)


def _squeeze(node: Node, value: Ints, axes: object = None) -> int:
    (single,) = value
    return single


def _reshape(node: Node, value: int | Ints, shape: int | Ints) -> int | Ints:
    vector = _vector(value)
    if shape == ():
        (single,) = vector
        return single
    if len(_vector(shape)) != 1 or _vector(shape)[0] not in {-1, len(vector)}:
        raise ModelError("a shape cannot become a matrix")
    return vector


def _where(node: Node, condition: int | Ints, a: int | Ints, b: int | Ints) -> Ints:
    return tuple(i if choice else j for choice, i, j in zip(*_spread(condition, a, b), strict=True))


INTEGER_OPERATORS: dict[str, Operator] = {
    "Add": operator(partial(_elementwise, python.add)),
    "Cast": operator(_cast, "to saturate round_mode"),
    "Concat": operator(_concat, "axis"),
    "Div": operator(partial(_elementwise, _divide)),
    "Gather": operator(_gather, "axis"),
    "Identity": operator(_identity),
    "Mul": operator(partial(_elementwise, python.mul)),
    "Reshape": operator(_reshape, "allowzero"),
    "Slice": operator(_slice, "starts ends axes"),
    "Squeeze": operator(_squeeze, "axes"),
    "Sub": operator(partial(_elementwise, python.sub)),
    "Unsqueeze": operator(_unsqueeze, "axes"),
    "Where": operator(_where),
}
