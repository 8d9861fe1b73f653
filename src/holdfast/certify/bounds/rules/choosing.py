"""Comparisons, the logic of masks, and what is chosen by them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.choice import Above, Choice
from holdfast.certify.bounds.operations.kink import relu
from holdfast.certify.bounds.operations.linear import Scale, Sum
from holdfast.certify.bounds.operations.product import Product
from holdfast.certify.bounds.rounding import gamma, largest
from holdfast.certify.bounds.rules.arithmetic import affine, multiply, negate, subtract
from holdfast.certify.bounds.rules.builder import LEVEL, Builder, Symbol, among, terms_of

__all__ = [
    "compare",
    "conjunction",
    "disjunction",
    "equal",
    "fixed",
    "hardshrink",
    "masked_fill",
    "negation",
    "sign",
    "threshold",
    "where",
]


def compare(falling: bool, reached: bool, builder: Builder, a: Any, b: Any) -> Symbol:
    """Whether ``a > b`` (``falling``: ``a < b``), as 1 or 0; equality counts where ``reached``."""
    if not isinstance(a, Symbol):
        a, b, falling = b, a, not falling
    ideal = builder.between()
    if isinstance(b, Symbol):  # numbers compare as their difference does with 0
        a, b = subtract(ideal, a, b), 0.0
    x = builder.broadcast(a, builder.shape)
    level = builder.constant(b, builder.shape).double()
    if falling:
        x, level = negate(ideal, x), -level
    margin = level.abs() * LEVEL * torch.finfo(builder.network).eps * (level != level.to(builder.network))
    return builder.add(Above(level, reached, margin), x)


def equal(same: bool, builder: Builder, a: Any, b: Any) -> Symbol:
    """Whether two numbers are equal, or are not: at least and not above, both as 1 or 0."""
    reached, above = (compare(False, at, builder, a, b) for at in (True, False))
    found = builder.add(Sum((1, -1)), reached, above)
    return found if same else negation(builder, found)


def sign(builder: Builder, x: Any) -> Symbol:
    """Whether it is above 0, less whether it is below."""
    above, below = compare(False, False, builder, x, 0.0), compare(True, False, builder, x, 0.0)
    return builder.add(Sum((1, -1)), above, below)


def negation(builder: Builder, x: Any) -> Symbol:
    """``1 - x`` of what is 1 or 0."""
    return affine(builder, x, -1.0, 1.0)


def conjunction(builder: Builder, a: Any, b: Any) -> Symbol:
    """The product of what is 1 or 0."""
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return builder.add(Product(), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    return multiply(builder, a, b)


def disjunction(builder: Builder, a: Any, b: Any) -> Symbol:
    """Not that neither is."""
    neither = [negation(builder, x) if isinstance(x, Symbol) else ~x for x in (a, b)]
    return negation(builder, conjunction(builder, *neither))


def where(builder: Builder, condition: Any, a: Any, b: Any) -> Symbol:
    """One value or the other, by a constant mask or by a condition that depends on the input."""
    if not isinstance(condition, Symbol):
        places = [None if isinstance(value, Symbol) else value for value in (a, b)]
        symbols = [value for value in (a, b) if isinstance(value, Symbol)]
        return builder.move(partial(_chosen, mask=condition, places=places), *symbols, terms=terms_of(builder, *places))
    bent = _bent(builder, condition, a, b)
    if bent is not None:
        return bent
    values = []
    for value in (a, b):
        if not isinstance(value, Symbol):  # 0 times anything, and a shift
            value = fixed(builder.between(), condition, value)
        values.append(builder.broadcast(value, builder.shape))
    return builder.add(Choice(), builder.broadcast(condition, builder.shape), *values)


def _chosen(*inputs: Tensor, mask: Tensor, places: list[Any]) -> Tensor:
    """The one value or the other by a constant mask."""
    a, b = among(inputs, places)
    return torch.where(mask.to(a.device), a, b)


def fixed(builder: Builder, like: Symbol, value: Any) -> Symbol:
    """A constant, as a value that depends on the input in form."""
    constant = torch.as_tensor(value, dtype=builder.dtype)
    return builder.move(partial(_filled, value=constant), like, shape=builder.shape)


def _filled(x: Tensor, value: Tensor) -> Tensor:
    return torch.where(torch.ones_like(x, dtype=torch.bool), value.to(x), x)


def masked_fill(builder: Builder, x: Any, mask: Any, value: Any) -> Symbol:
    """A value, and another one where a mask says so."""
    return where(builder, mask, value, x)


def hardshrink(builder: Builder, x: Any, room: float = 0.5) -> Symbol:
    """``x`` outside ``[-room, room]``, and 0 inside."""
    above, below = compare(False, False, builder, x, room), compare(True, False, builder, x, -room)
    return where(builder, above, x, where(builder, below, x, 0.0))


def threshold(builder: Builder, x: Any, level: float, value: float) -> Symbol:
    """``x`` above a level, and a constant elsewhere."""
    return where(builder, compare(False, False, builder, x, level), x, value)


@dataclass(frozen=True, eq=False)
class _Line:
    """``factor * x + shift`` of the value of a node, or a constant; how it is rounded, a :class:`Scale` knows."""

    root: int | None
    factor: Tensor
    shift: Tensor
    size: Tensor
    roundings: int


def _line(builder: Builder, value: Any) -> _Line:
    """A value as a linear function of another one, as far back as it is one."""
    zero = builder.constant(0.0, builder.shape)
    if not isinstance(value, Symbol):
        constant = builder.constant(value, builder.shape)
        return _Line(None, zero, constant, constant.abs(), 1)
    line = _Line(value.node, zero + 1, zero, zero, 0)
    while isinstance(operation := builder.nodes[line.root or 0].operation, Scale):
        line = _Line(
            builder.nodes[line.root or 0].inputs[0],
            line.factor * operation.factor,
            line.factor * operation.shift + line.shift,
            line.factor.abs() * operation.size + line.size,
            line.roundings + operation.roundings,
        )
    return line


def _bent(builder: Builder, condition: Symbol, a: Any, b: Any) -> Symbol | None:
    """A choice between two linear functions that meet where the condition changes: ``b + slope * relu(t - level)``.

    Where they miss each other by rounding alone, that is an error of the value; where they miss it by more, or are not
    functions of what the condition tests, this is None.
    """
    tested = builder.nodes[condition.node]
    symbols = [value for value in (condition, a, b) if isinstance(value, Symbol)]
    if not isinstance(tested.operation, Above) or any(symbol.shape != builder.shape for symbol in symbols):
        return None
    level = tested.operation.level
    test = _line(builder, Symbol(tested.inputs[0], builder.shape))
    first, second = _line(builder, a), _line(builder, b)
    if any(line.root not in (None, test.root) for line in (first, second)) or bool((test.factor == 0).any()):
        return None
    slope = (first.factor - second.factor) / test.factor
    gap = first.shift - second.shift - slope * (test.shift - level)
    reach = first.size + second.size + slope.abs() * (test.size + level.abs())
    if bool((gap.abs() > 1e-6 * reach).any()):
        return None
    ideal, x = builder.between(), Symbol(test.root or 0, builder.shape)
    above = ideal.add(relu(), affine(ideal, x, test.factor, test.shift - level), shape=builder.shape)
    parts = affine(ideal, x, second.factor, second.shift), affine(ideal, above, slope, 0.0)
    lines = ((first, 1.0), (second, 1.0), (test, slope.abs()))
    missed = gap.abs() + 1e-15 * reach, slope.abs() * level.abs() * (level != level.to(builder.network))
    return builder.add(Sum((1, 1)), *parts, error=partial(_bending, lines=lines, missed=missed), also=[x])


def _bending(
    unit: float, first: Interval, second: Interval, x: Interval, *,
    lines: tuple[tuple[_Line, Tensor | float], ...], missed: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """What rounding does to two lines, to the test between them and to its level, and how far apart they meet."""
    reach = largest(x)
    total = missed[0].to(reach) + 2 * unit * missed[1].to(reach)
    for line, share in lines:
        size = reach * line.factor.abs().to(reach) + line.size.to(reach)
        total = total + size * torch.as_tensor(share).to(reach) * (2 * gamma(line.roundings + 2, unit))
    return total.expand(first.lower.shape)
