"""Operations that are linear in what depends on the input: bounds pass through them exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.rounding import Rounding, dot, gamma, largest, nonzero, outwards, summed, unit
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    Shapes = tuple[tuple[int, ...], ...]

__all__ = ["Dense", "Monotone", "Scale", "Sum", "Weighted"]


def transpose(function: Callable[..., Tensor], rows: Rows, shape: tuple[int, ...], shapes: Shapes) -> list[Tensor]:
    """The transpose of a linear function, by its vector-Jacobian product."""
    values = rows.full(shape)
    zeros = tuple(values.new_zeros(len(values), *one) for one in shapes)
    pull = torch.func.vjp(function, *zeros)[1]
    return list(pull(values))


def constant(rows: Rows, bias: Tensor) -> Tensor:
    """``(R,)`` float64, what a constant ``(*shape)`` adds to each row."""
    return dot(rows.values.flatten(1), rows.cut(bias[None]).flatten())


@dataclass(frozen=True, eq=False)
class Dense:
    """``x W^T + b`` on the last dimension; ``weight`` is ``(out, in)``."""

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    weight: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def interval(self, x: Interval) -> Interval:
        middle = functional.linear(x.lower / 2 + x.upper / 2, self.weight, self.bias)
        radius = functional.linear(x.upper / 2 - x.lower / 2, self.weight.abs())
        return Interval(middle - radius, middle + radius)

    def rounding(self, planes: None, x: Interval) -> Rounding:
        size = functional.linear(largest(x), self.weight.abs(), None if self.bias is None else self.bias.abs())
        out, terms = self.weight.shape
        own = max(out, 0 if self.bias is None else summed(size[0].numel()))
        live = functional.linear(nonzero(largest(x)), nonzero(self.weight))
        return Rounding(size, live + 1, own + 8, terms + 8)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        values = rows.values if rows.window is None else rows.full((*shapes[0][:-1], len(self.weight)))
        before = Rows.whole(values @ self.weight)
        if self.bias is None:
            return (before,), None
        shared = self.bias.expand(values.shape[1:])
        return (before,), constant(Rows(values, None), shared) if values.dim() > 2 else values @ self.bias


@dataclass(frozen=True, eq=False)
class Scale:
    """``factor * x + shift``, both constants of the shape of one example.

    Parameters
    ----------
    factor, shift : Tensor
    size : Tensor
        What the sizes of the terms add up to that the shift is made of.
    roundings : int
        How many the network makes on the way to the value; 0 where it is exact.
    """

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = True
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    factor: Tensor
    shift: Tensor
    size: Tensor
    roundings: int

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift

    def interval(self, x: Interval) -> Interval:
        # Of the ends themselves: a small shift must not get lost between a large middle and a large radius. The sign of
        # the factor alone says which end is which, since ends may be functions in the place of numbers.
        a, b, rising = self.apply(x.lower), self.apply(x.upper), self.factor >= 0
        low, high = torch.where(rising, a, b), torch.where(rising, b, a)
        if not self.roundings:
            return Interval(low, high)
        share = 4 * unit(low.dtype)
        near, far = (share * (end.abs() * self.factor.abs() + self.size) for end in x)
        return Interval(low - torch.where(rising, near, far), high + torch.where(rising, far, near))

    def rounding(self, planes: None, x: Interval) -> Rounding | None:
        if not self.roundings:
            return None
        size = largest(x) * self.factor.abs() + self.size
        return Rounding(size, self.roundings, summed(size[0].numel()) + 8)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        return (Rows(rows.values * rows.cut(self.factor[None]), rows.window),), constant(rows, self.shift)


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of values of one shape, each taken with its sign."""

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = True

    signs: tuple[int, ...]

    def apply(self, *inputs: Tensor) -> Tensor:
        first, second = (x if sign > 0 else -x for sign, x in zip(self.signs, inputs, strict=True))
        return first + second

    def interval(self, *inputs: Interval) -> Interval:
        ends = [x if sign > 0 else Interval(-x.upper, -x.lower) for sign, x in zip(self.signs, inputs, strict=True)]
        return outwards(ends[0].lower + ends[1].lower, ends[0].upper + ends[1].upper)

    def rounding(self, planes: None, *inputs: Interval) -> Rounding:
        return Rounding(largest(inputs[0]) + largest(inputs[1]), 1, 2)

    def relax(self, *inputs: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        return tuple(rows if sign > 0 else Rows(-rows.values, rows.window) for sign in self.signs), None


@dataclass(frozen=True, eq=False)
class Monotone:
    """A linear function with no negative coefficient, such as a sum, a mean or a move of values, plus a constant.

    Parameters
    ----------
    function : callable
        Of the inputs ``(N, *shape)``, rows independent of one another.
    separate : bool
        Whether it does no more than move values to other places.
    terms : int
        How many numbers are summed at most, each with a coefficient of its own.
    """

    linear: ClassVar[bool] = True
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    function: Callable[..., Tensor]
    separate: bool = False
    terms: int = 1
    _spreads: dict[Shapes, tuple[int, bool]] = field(default_factory=dict, init=False)

    def apply(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper = (self.function(*ends) for ends in zip(*inputs, strict=True))
        if self.terms == 1:
            return Interval(lower, upper)
        share = gamma(self.terms + 8, unit(lower.dtype))
        low, high = (share * self.function(*map(torch.abs, ends)).abs() for ends in zip(*inputs, strict=True))
        return Interval(lower - low, upper + high)

    def rounding(self, planes: None, *inputs: Interval) -> Rounding | None:
        if self.separate:
            return None
        fan, shifted = self._spread(tuple(tuple(x.lower.shape[1:]) for x in inputs), inputs[0].lower)
        if self.terms == fan == 1 and not shifted:
            return None
        size = self.function(*map(largest, inputs)).abs()
        executed = self.terms + 1 if self.terms > 1 else 0
        return Rounding(size, executed, max(fan, summed(size[0].numel())) + 8, 2 * shifted)

    def _spread(self, shapes: Shapes, like: Tensor) -> tuple[int, bool]:
        """How many entries of the value an entry of an input goes into, at most, and whether constants are added."""
        if shapes not in self._spreads:
            with torch.no_grad():
                zeros = [like.new_zeros(1, *shape) for shape in shapes]
                bias = self.function(*zeros)
                ones = Rows(torch.ones_like(bias), None)
                pulled = transpose(self.function, ones, tuple(bias.shape[1:]), shapes)
            fan = math.ceil(max(float(part.max()) for part in pulled) * self.terms)
            self._spreads[shapes] = (fan, bool(bias.any()))
        return self._spreads[shapes]

    def relax(self, *inputs: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        bias = self.function(*(rows.values.new_zeros(1, *shape) for shape in shapes))[0]
        before = transpose(self.function, rows, tuple(bias.shape), shapes)
        return tuple(map(Rows.whole, before)), constant(rows, bias) if bool(bias.any()) else None


@dataclass(frozen=True, eq=False)
class Weighted:
    """A function that is linear in the input and in a constant weight, such as any convolution or matrix product.

    Parameters
    ----------
    function : callable
        Of the input ``(N, *shape)`` and the weight.
    weight : Tensor
        The constant.
    bias : Tensor or None
        Added to the value, of the shape of one example of it.
    terms : tuple of int
        How many products are summed for an entry of the value, and for one of the transpose, at most.
    transposed : callable or None
        The transpose, of a value and the weight, where there is a quicker one than torch's derivative.
    """

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    function: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    terms: tuple[int, int]
    transposed: Callable[[Tensor, Tensor], Tensor] | None = None

    def apply(self, x: Tensor) -> Tensor:
        value = self.function(x, self.weight)
        return value if self.bias is None else value + self.bias

    def interval(self, x: Interval) -> Interval:
        middle = self.apply(x.lower / 2 + x.upper / 2)
        radius = self.function(x.upper / 2 - x.lower / 2, self.weight.abs())
        return Interval(middle - radius, middle + radius)

    def rounding(self, planes: None, x: Interval) -> Rounding:
        size = self.function(largest(x), self.weight.abs())
        size = size if self.bias is None else size + self.bias.abs()
        forward, back = self.terms
        live = self.function(nonzero(largest(x)), nonzero(self.weight))
        return Rounding(size, live + 1, max(back, summed(size[0].numel())) + 8, forward + 8)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        shape = tuple(self.function(rows.values.new_zeros(1, *shapes[0]), self.weight).shape[1:])
        if self.transposed is None:
            (before,) = transpose(lambda x: self.function(x, self.weight), rows, shape, shapes)
        else:
            # Padding of a transposed convolution's output may make room for more than the input.
            inside = tuple(slice(length) for length in shapes[0])
            before = self.transposed(rows.full(shape), self.weight)[:, *inside]
        return (Rows.whole(before),), None if self.bias is None else constant(rows, self.bias)
