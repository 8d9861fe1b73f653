"""Rules as tensors: columns by position, comparisons with whole coefficients where all they compare is whole."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from holdfast.threats.table.relations import Comparison, Sense
from holdfast.threats.table.rules import Rules

__all__ = ["Choices", "Layout", "Lines", "layout_of"]

# What two numbers that should be equal may differ by, as a share of what went into them: float32 rows are rounded.
TOLERANCE = 1e-6
_SENSES: tuple[Sense, ...] = ("<", "<=", "=", ">=", ">")


@dataclass(frozen=True, eq=False)
class Choices:
    """A one-hot group.

    Parameters
    ----------
    columns : Tensor
        ``(k,)`` int64 positions.
    allowed : Tensor
        ``(k, k)`` bool, whether a row of one category may become one of the other.
    distance, cost : float
        What another category counts in the budget.
    """

    columns: Tensor
    allowed: Tensor
    distance: float
    cost: float

    def to(self, device: torch.device) -> Self:
        """The same group on a device."""
        return replace(self, columns=self.columns.to(device), allowed=self.allowed.to(device))


@dataclass(frozen=True, eq=False)
class Lines:
    """Linear comparisons, ``R`` of them with at most ``K`` terms.

    Parameters
    ----------
    columns, coefficients : Tensor
        ``(R, K)`` positions and coefficients of the terms; spare ones have the coefficient 0.
    sense : Tensor
        ``(R,)`` positions in ``< <= = >= >``.
    bound : Tensor
        ``(R,)`` the right-hand sides.
    exact : Tensor
        ``(R,)`` bool: all columns are whole numbers, and so are the coefficients.
    """

    columns: Tensor
    coefficients: Tensor
    sense: Tensor
    bound: Tensor
    exact: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def to(self, device: torch.device) -> Self:
        """The same comparisons on a device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def values(self, rows: Tensor) -> Tensor:
        """``(N, R)`` the left-hand sides at rows ``(N, d)``, in float64."""
        return (rows[:, self.columns] * self.coefficients).sum(2)

    def sizes(self, rows: Tensor) -> Tensor:
        """``(N, R)`` what went into each comparison, all of it counted positive."""
        return (rows[:, self.columns] * self.coefficients).abs().sum(2) + self.bound.abs()

    def hold(self, rows: Tensor) -> Tensor:
        """``(N, R)`` bool: exactly between whole numbers, else to a millionth, which strict ones do not forgive."""
        size = self.sizes(rows)
        return self._compare(rows, torch.where(self.exact, 0.0, TOLERANCE * size), -self.blur * size)

    def may_hold(self, rows: Tensor) -> Tensor:
        """``(N, R)`` bool, all those that hold, and of sums of real numbers what rounding cannot tell from it."""
        blur = self.blur * self.sizes(rows)
        return self._compare(rows, blur, blur)

    @property
    def blur(self) -> Tensor:
        """``(R,)`` the share of its size by which float64 may be off a comparison; 0 where nothing is rounded."""
        plain = (self.coefficients != 0).sum(1) <= 1
        plain &= (self.coefficients.abs().frexp().mantissa % 0.5 == 0).all(1)
        return 2.0**-50 * (~(self.exact | plain)).double()

    def _compare(self, rows: Tensor, slack: Tensor, strict: Tensor) -> Tensor:
        excess = self.values(rows) - self.bound
        outcomes = (excess < strict, excess <= slack, excess.abs() <= slack, excess >= -slack, excess > -strict)
        result = torch.zeros_like(excess, dtype=torch.bool)
        for number, outcome in enumerate(outcomes):
            result |= outcome & (self.sense == number)
        return result

    def target(self, rows: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, R)`` twice: the closed interval in which each left-hand side is to lie, for those who seek rows.

        The next whole number stands in for a strict bound, between real numbers one a millionth away.
        """
        size = self.sizes(rows) + (unit[self.columns] * self.coefficients).abs().sum(1)
        bound, whole = self.bound.expand_as(size), self.exact
        margin = TOLERANCE * size
        below = torch.where(whole, bound.ceil() - 1, bound - margin)
        above = torch.where(whole, bound.floor() + 1, bound + margin)
        at_most = torch.where(whole, bound.floor(), bound)
        at_least = torch.where(whole, bound.ceil(), bound)
        less, less_equal, equal, more_equal, more = (self.sense == number for number in range(len(_SENSES)))
        lower = torch.where(more, above, torch.where(more_equal, at_least, torch.where(equal, bound, -torch.inf)))
        upper = torch.where(less, below, torch.where(less_equal, at_most, torch.where(equal, bound, torch.inf)))
        return lower, upper


@dataclass(frozen=True, eq=False)
class Layout:
    """The rules as tensors, ``d`` columns and ``R`` relations.

    Parameters
    ----------
    whole : Tensor
        ``(d,)`` bool, columns of whole numbers: integers, and members of groups.
    integer : Tensor
        ``(d,)`` bool, those of them in no group.
    up, down : Tensor
        ``(d,)`` bool, which way a column may go by itself.
    lower, upper, most : Tensor
        ``(d,)`` bounds of values and of changes; those of integers are whole.
    unit, cost : Tensor
        ``(d,)`` what the budget counts.
    groups : tuple of Choices
        The one-hot groups.
    relations : Lines
        What must hold.
    guards : Lines
        The guards of the relations, as many; one that has none has a guard ``0 = 0``.
    """

    whole: Tensor
    integer: Tensor
    up: Tensor
    down: Tensor
    lower: Tensor
    upper: Tensor
    most: Tensor
    unit: Tensor
    cost: Tensor
    groups: tuple[Choices, ...]
    relations: Lines
    guards: Lines

    @property
    def moves(self) -> Tensor:
        """``(d,)`` bool, the columns that may move by themselves."""
        return self.up | self.down

    @property
    def guarded(self) -> Tensor:
        """``(R,)`` bool, the relations that have a guard."""
        return (self.guards.coefficients != 0).any(1)

    def to(self, device: torch.device) -> Self:
        """The same layout on a device."""
        if self.whole.device == device:
            return self
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        groups = tuple(group.to(device) for group in parts.pop("groups"))
        return replace(self, groups=groups, **{name: part.to(device) for name, part in parts.items()})

    def satisfied(self, rows: Tensor) -> Tensor:
        """``(N, R)`` bool, which relations rows ``(N, d)`` of float64 satisfy."""
        return self.relations.hold(rows) | ~self.guards.may_hold(rows)


def layout_of(rules: Rules) -> Layout:
    """The rules as tensors."""
    position = {name: number for number, name in enumerate(rules.names)}
    grouped = {name for group in rules.groups for name in group.columns}
    columns = rules.columns
    integer = [column.kind == "integer" for column in columns]
    whole = [is_integer or column.name in grouped for is_integer, column in zip(integer, columns, strict=True)]
    names = {column.name for column, is_whole in zip(columns, whole, strict=True) if is_whole}

    def numbers(name: str) -> Tensor:
        return torch.tensor([getattr(column, name) for column in columns], dtype=torch.float64)

    def flags(values: list[bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool)

    integers = flags(integer)
    lower, upper, most = numbers("lower"), numbers("upper"), numbers("most")
    relations = rules.relations
    return Layout(
        whole=flags(whole),
        integer=integers,
        up=flags([column.move in ("up", "both") for column in columns]),
        down=flags([column.move in ("down", "both") for column in columns]),
        lower=torch.where(integers, lower.ceil(), lower),
        upper=torch.where(integers, upper.floor(), upper),
        most=torch.where(integers, most.floor(), most),
        unit=numbers("unit"),
        cost=numbers("cost"),
        groups=tuple(
            Choices(
                torch.tensor([position[name] for name in group.columns]),
                flags([group.allows(start, end) for start in group.columns for end in group.columns]).reshape(
                    len(group.columns), -1
                ),
                group.distance,
                group.cost,
            )
            for group in rules.groups
        ),
        relations=_lines([relation.comparison for relation in relations], position, names),
        guards=_lines([relation.guard or Comparison((), "=", 0.0) for relation in relations], position, names),
    )


def _lines(comparisons: list[Comparison], position: dict[str, int], whole: set[str]) -> Lines:
    exact = [set(comparison.columns) <= whole for comparison in comparisons]
    comparisons = [
        comparison.whole() if is_exact and comparison.terms else comparison
        for comparison, is_exact in zip(comparisons, exact, strict=True)
    ]
    width = max((len(comparison.terms) for comparison in comparisons), default=0)
    columns = torch.zeros(len(comparisons), width, dtype=torch.int64)
    coefficients = torch.zeros(len(comparisons), width, dtype=torch.float64)
    for number, comparison in enumerate(comparisons):
        for place, (name, coefficient) in enumerate(comparison.terms):
            columns[number, place], coefficients[number, place] = position[name], coefficient
    return Lines(
        columns,
        coefficients,
        torch.tensor([_SENSES.index(comparison.sense) for comparison in comparisons], dtype=torch.int64),
        torch.tensor([comparison.bound for comparison in comparisons], dtype=torch.float64),
        torch.tensor(exact, dtype=torch.bool),
    )
