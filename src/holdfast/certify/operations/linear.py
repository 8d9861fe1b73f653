"""Operations that are linear in what depends on the input: bounds pass through them exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.graph import Interval
from holdfast.certify.rows import Rows

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
    """``(R,)`` what a constant ``(*shape)`` adds to each row."""
    return rows.values.flatten(1) @ rows.cut(bias[None]).flatten()


@dataclass(frozen=True, eq=False)
class Dense:
    """``x W^T + b`` on the last dimension; ``weight`` is ``(out, in)``."""

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False

    weight: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def interval(self, x: Interval) -> Interval:
        middle = functional.linear((x.lower + x.upper) / 2, self.weight, self.bias)
        radius = functional.linear((x.upper - x.lower) / 2, self.weight.abs())
        return Interval(middle - radius, middle + radius)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        values = rows.values if rows.window is None else rows.full((*shapes[0][:-1], len(self.weight)))
        before = Rows.whole(values @ self.weight)
        if self.bias is None:
            return (before,), None
        return (before,), (values @ self.bias).flatten(1).sum(1) if values.dim() > 2 else values @ self.bias


@dataclass(frozen=True, eq=False)
class Scale:
    """``factor * x + shift``, both constants of the shape of one example."""

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    factor: Tensor
    shift: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift

    def interval(self, x: Interval) -> Interval:
        # Of the ends themselves: a small shift must not get lost between a large middle and a large radius.
        a, b = self.apply(x.lower), self.apply(x.upper)
        return Interval(torch.minimum(a, b), torch.maximum(a, b))

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

    signs: tuple[int, ...]

    def apply(self, *inputs: Tensor) -> Tensor:
        first, second = (x if sign > 0 else -x for sign, x in zip(self.signs, inputs, strict=True))
        return first + second

    def interval(self, *inputs: Interval) -> Interval:
        ends = [x if sign > 0 else Interval(-x.upper, -x.lower) for sign, x in zip(self.signs, inputs, strict=True)]
        return Interval(ends[0].lower + ends[1].lower, ends[0].upper + ends[1].upper)

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
    """

    linear: ClassVar[bool] = True

    function: Callable[..., Tensor]
    separate: bool = False

    def apply(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.function(*(x.lower for x in inputs)), self.function(*(x.upper for x in inputs)))

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
    transposed : callable or None
        The transpose, of a value and the weight, where there is a quicker one than torch's derivative.
    """

    linear: ClassVar[bool] = True
    separate: ClassVar[bool] = False

    function: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    transposed: Callable[[Tensor, Tensor], Tensor] | None = None

    def apply(self, x: Tensor) -> Tensor:
        value = self.function(x, self.weight)
        return value if self.bias is None else value + self.bias

    def interval(self, x: Interval) -> Interval:
        middle = self.apply((x.lower + x.upper) / 2)
        radius = self.function((x.upper - x.lower) / 2, self.weight.abs())
        return Interval(middle - radius, middle + radius)

    def relax(self, x: Interval) -> None:
        return None

    def undecided(self, x: Interval) -> None:
        return None

    def backward(self, rows: Rows, planes: None, shapes: Shapes) -> tuple[tuple[Rows, ...], Tensor | None]:
        shape = tuple(self.function(rows.values.new_zeros(1, *shapes[0]), self.weight).shape[1:])
        if self.transposed is None:
            (before,) = transpose(lambda x: self.function(x, self.weight), rows, shape, shapes)
        else:
            before = self.transposed(rows.full(shape), self.weight)
        return (Rows.whole(before),), None if self.bias is None else constant(rows, self.bias)
