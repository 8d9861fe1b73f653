"""Properties of networks: boxes of inputs, and the linear inequalities that no point of them may satisfy at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from holdfast.certify.formulas import Formula, Limit, Row, Terms, TooManyError, alternatives

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Conjunction", "Declared", "Property", "UnboundedError", "UnsafeSet", "property_of"]

Vector = NDArray[np.float64]

# Budgets, beyond the largest files of the competition; more is refused before it fills the memory.
_MOST_CASES, _MOST_STEPS = 1 << 17, 1 << 21
_MOST_NUMBERS = 1 << 27
# How often relations between inputs are gone through for bounds that were not asserted.
_PASSES = 8


@dataclass(frozen=True, eq=False)
class Conjunction:
    """Points that satisfy ``R`` inequalities at once, ``matrix @ v <= bound``.

    Parameters
    ----------
    matrix : ndarray
        ``(R, K + r)`` float64: ``v`` is the output with the inputs behind it that the property reads.
    bound : ndarray
        ``(R,)`` float64.
    strict : ndarray
        ``(R,)`` bool: which of them say ``<``. A proof may treat them all as ``<=``; a counterexample may not.
    """

    matrix: Vector
    bound: Vector
    strict: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class UnsafeSet:
    """One box of inputs, and what must not be there.

    Parameters
    ----------
    lower, upper : ndarray
        ``(n,)`` float64, finite, ``lower <= upper``.
    unsafe : tuple of Conjunction
        A point of the box is unsafe where any of them holds.
    """

    lower: Vector
    upper: Vector
    unsafe: tuple[Conjunction, ...]


@dataclass(frozen=True)
class Declared:
    """A tensor as a file declares it.

    Parameters
    ----------
    name : str
        What the file calls it.
    element : str
        ``"real"`` or a floating type, as ``"float32"``.
    shape : tuple of int
        With the dimension of the batch, if the file gives one.
    node : str, optional
        What the network's own file calls it, if the property says so.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    node: str | None = None


@dataclass(frozen=True, eq=False)
class Property:
    """What a VNN-LIB file says: the property holds (``unsat``) if no set of ``sets`` has a point.

    Parameters
    ----------
    inputs, outputs : int
        The numbers of entries of an input and of an output.
    sets : tuple of UnsafeSet
        Boxes that the file makes empty are left out: there may be none.
    read : tuple of int
        The ``r`` inputs that inequalities mention other than as bounds of a box.
    tensors : tuple of Declared, optional
        The input and the output as version 2 declares them; None in version 1, which knows neither shapes nor types.
    """

    inputs: int
    outputs: int
    sets: tuple[UnsafeSet, ...]
    read: tuple[int, ...] = ()
    tensors: tuple[Declared, Declared] | None = None


class UnboundedError(Exception):
    """An input that has no bound on one side."""

    def __init__(self, variable: int, side: str) -> None:
        super().__init__(f"input {variable} has no {side} bound")
        self.variable, self.side = variable, side


def property_of(
    formulas: Sequence[Formula], inputs: int, outputs: int, tensors: tuple[Declared, Declared] | None = None
) -> Property:
    """The points at which all formulas hold, box by box.

    Parameters
    ----------
    formulas : sequence of Formula
        Of variables numbered so that input ``i`` is ``i`` and output ``j`` is ``-1 - j``. An inequality of one input
        alone has the factor 1 or -1, and is not strict.
    inputs, outputs, tensors
        See :class:`Property`.

    Returns
    -------
    Property

    Raises
    ------
    TooManyError
        If the disjunctive normal form is too large.
    UnboundedError
        If an input has no bound, neither of its own nor by relations to others.
    """
    common, cases = alternatives(formulas, most=_MOST_CASES, steps=_MOST_STEPS)
    bounds, rows = _parted(common)
    lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    _narrow(lower, upper, bounds)
    parted = [_parted(case) for case in cases]
    mentioned = {variable for _, more in [([], rows), *parted] for row in more for variable, _ in row.terms}
    read = tuple(sorted(variable for variable in mentioned if variable >= 0))
    column = {-1 - j: j for j in range(outputs)} | {variable: outputs + place for place, variable in enumerate(read)}
    boxes: dict[tuple[Row, ...], tuple[Vector, Vector]] = {}
    unsafe: dict[tuple[Row, ...], list[Conjunction]] = {}
    size = 0
    for own, more in parted:
        together, key = [*rows, *more], tuple(sorted(own))
        size += len(together) * len(column) + 2 * inputs * (key not in boxes)
        if size > _MOST_NUMBERS:
            raise TooManyError
        if key not in boxes:
            boxes[key] = lower.copy(), upper.copy()
            _narrow(*boxes[key], own)
        if not all(np.isfinite(end).all() for end in boxes[key]):
            # Where relations stand in for bounds, they belong to the box.
            ends, key = boxes[key], tuple(sorted([*own, *more]))
            boxes[key] = _completed(*ends, together)
        unsafe.setdefault(key, []).append(_conjunction(together, column))
    sets = (UnsafeSet(*boxes[key], tuple(conjunctions)) for key, conjunctions in unsafe.items())
    return Property(inputs, outputs, tuple(box for box in sets if (box.lower <= box.upper).all()), read, tensors)


def _parted(facts: Mapping[Terms, Limit]) -> tuple[list[Row], list[Row]]:
    """Bounds of inputs, and the other inequalities."""
    bounds, rows = list[Row](), list[Row]()
    for terms, limit in facts.items():
        (bounds if len(terms) == 1 and terms[0][0] >= 0 else rows).append(Row(terms, limit))
    return bounds, rows


def _narrow(lower: Vector, upper: Vector, bounds: Iterable[Row]) -> None:
    for ((variable, factor),), limit in bounds:
        if factor > 0:
            upper[variable] = min(upper[variable], limit.bound)
        else:
            lower[variable] = max(lower[variable], -limit.bound)


def _completed(lower: Vector, upper: Vector, rows: list[Row]) -> tuple[Vector, Vector]:
    """The box with bounds that follow from relations between inputs in place of missing ones, rounded outwards."""
    low, high = lower.copy(), upper.copy()
    relations = [row for row in rows if all(variable >= 0 for variable, _ in row.terms)]
    for _ in range(_PASSES):
        for terms, limit in relations:
            near = [float((low if factor > 0 else high)[variable]) for variable, factor in terms]
            least = [
                None if math.isinf(end) else Fraction(factor) * Fraction(end)
                for (_, factor), end in zip(terms, near, strict=True)
            ]
            total = sum((part for part in least if part is not None), Fraction(0))
            for (variable, factor), part in zip(terms, least, strict=True):
                far = high if factor > 0 else low
                # All others must be bounded where they make their terms least.
                if math.isinf(far[variable]) and least.count(None) == (part is None):
                    end = (Fraction(limit.bound) - total + (part or 0)) / Fraction(factor)
                    far[variable] = _at_least(end) if factor > 0 else -_at_least(-end)
    for side, ends in (("lower", low), ("upper", high)):
        if len(unbounded := np.flatnonzero(np.isinf(ends))):
            raise UnboundedError(int(unbounded[0]), side)
    return low, high


def _at_least(number: Fraction) -> float:
    """The least float64 that is no smaller."""
    try:
        value = float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    return value if math.isinf(value) or Fraction(value) >= number else math.nextafter(value, math.inf)


def _conjunction(rows: list[Row], column: Mapping[int, int]) -> Conjunction:
    matrix = np.zeros((len(rows), len(column)))
    for r, row in enumerate(rows):
        for variable, factor in row.terms:
            matrix[r, column[variable]] = factor
    return Conjunction(
        matrix,
        np.array([row.limit.bound for row in rows]),
        np.array([row.limit.strict for row in rows], dtype=bool),
    )
