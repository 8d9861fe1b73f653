"""Properties of networks in the VNN-LIB format, the one of the verification competition.

A file describes the *unsafe* inputs and outputs in a fragment of SMT-LIB: constants ``X_i`` for the entries of the
input in C order, ``Y_j`` for those of the output, and assertions that compare them (Demarchi et al., "Supporting
standardization of neural networks verification with VNN-LIB and CoCoNet", FoMLAS 2023). Read here is what the
competition uses and a little more: bounds on inputs, linear inequalities between outputs, any nesting of ``and`` and
``or``.
"""

from __future__ import annotations

import gzip
import itertools
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import DataError

__all__ = ["Conjunction", "Property", "UnsafeSet", "parse_vnnlib", "read_vnnlib"]

Vector = NDArray[np.float64]

_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_VARIABLE = re.compile(r"[XY]_\d+")
_IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}
_COMPARISONS = {"<=", ">=", "<", ">"}

# Far more than anybody writes by hand; what lies beyond is refused before it fills the memory.
_MOST_CASES = 1 << 16
_DEEPEST = 64


@dataclass(frozen=True, eq=False)
class Conjunction:
    """Outputs that satisfy ``R`` inequalities at once, ``matrix @ y <= bound``.

    Parameters
    ----------
    matrix : ndarray
        ``(R, K)`` float64.
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
    """One box of inputs, and what the outputs must not be there.

    Parameters
    ----------
    lower, upper : ndarray
        ``(n,)`` float64, finite, ``lower <= upper``.
    unsafe : tuple of Conjunction
        The outputs are unsafe where any of them holds.
    """

    lower: Vector
    upper: Vector
    unsafe: tuple[Conjunction, ...]


@dataclass(frozen=True, eq=False)
class Property:
    """What a VNN-LIB file says: the property holds (``unsat``) if no set of ``sets`` has a point.

    Parameters
    ----------
    inputs, outputs : int
        The numbers of entries of an input and of an output.
    sets : tuple of UnsafeSet
        Boxes that the file makes empty are left out: there may be none.
    """

    inputs: int
    outputs: int
    sets: tuple[UnsafeSet, ...]


def read_vnnlib(path: str | Path) -> Property:
    """Read a file, gzipped or not.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Property

    Raises
    ------
    DataError
        If the file cannot be read, or as :func:`parse_vnnlib`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: neither text nor a complete gzip file ({error}); get the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, name: str = "property") -> Property:
    """Read the text of a file.

    Parameters
    ----------
    text : str
        In VNN-LIB. Decimal numbers are read as the nearest float64.
    name : str
        What errors call it.

    Returns
    -------
    Property

    Raises
    ------
    DataError
        If it is malformed, names an undeclared variable, compares inputs with anything but numbers, or leaves an input
        without a bound. The message names the line.
    """
    try:
        return _Reader().read(text)
    except _FaultError as fault:
        line = text.count("\n", 0, fault.offset) + 1
        raise DataError(f"{name}, line {line}: {fault}") from None


class _FaultError(Exception):
    """What is wrong, and where in the text."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class _List(NamedTuple):
    """An expression in parentheses."""

    parts: list[Any]
    offset: int


class _Atom(NamedTuple):
    """A name or a number."""

    text: str
    offset: int


_Expression = _List | _Atom


class _Row(NamedTuple):
    """``<terms, y> <= bound``, or ``<``."""

    terms: tuple[tuple[int, float], ...]
    bound: float
    strict: bool


@dataclass
class _Case:
    """One conjunction of inequalities."""

    lower: dict[int, float] = field(default_factory=dict)
    upper: dict[int, float] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)

    def add(self, other: _Case) -> None:
        for i, value in other.lower.items():
            self.lower[i] = max(value, self.lower.get(i, -math.inf))
        for i, value in other.upper.items():
            self.upper[i] = min(value, self.upper.get(i, math.inf))
        self.rows += other.rows


def _expressions(text: str) -> list[_List]:
    """The top level of the text, in one pass over its tokens."""
    found: list[_List] = []
    stack: list[_List] = []
    for token in _TOKEN.finditer(text):
        word, offset = token[0], token.start()
        if word == "(":
            stack.append(_List([], offset))
            if len(stack) > _DEEPEST:
                raise _FaultError(f"parentheses nested more than {_DEEPEST} deep", offset)
        elif word == ")":
            if not stack:
                raise _FaultError("a ')' that closes nothing", offset)
            done = stack.pop()
            (stack[-1].parts if stack else found).append(done)
        elif word[0] != ";":
            if not stack:
                raise _FaultError(f"'{word}' stands outside parentheses", offset)
            stack[-1].parts.append(_Atom(word, offset))
    if stack:
        raise _FaultError("a '(' that is never closed", stack[0].offset)
    return found


def _head(expression: _Expression) -> str:
    first = expression.parts[0] if isinstance(expression, _List) and expression.parts else None
    return first.text if isinstance(first, _Atom) else ""


class _Reader:
    """The variables that a file has declared so far, by the place of their declaration, and what it asserts."""

    def __init__(self) -> None:
        self.declared: dict[str, int] = {}

    def read(self, text: str) -> Property:
        always, choices = _Case(), list[list[_Case]]()
        for command in _expressions(text):
            head = _head(command)
            if head in {"declare-const", "declare-fun"}:
                self._declare(command)
            elif head == "assert":
                if len(command.parts) != 2:
                    raise _FaultError("assert takes one expression", command.offset)
                cases = self._cases(command.parts[1])
                if len(cases) == 1:
                    always.add(cases[0])
                else:
                    choices.append(cases)
            elif head not in _IGNORED:
                raise _FaultError(f"unknown command '{head}'; declare-const and assert are known", command.offset)
        inputs, outputs = self._count("X"), self._count("Y")
        return Property(inputs, outputs, self._sets(always, _product(choices), inputs, outputs))

    def _declare(self, command: _List) -> None:
        words = [part.text for part in command.parts if isinstance(part, _Atom)]
        if len(words) != 3 or words[2] != "Real" or not _VARIABLE.fullmatch(words[1]):
            raise _FaultError(
                "a declaration is (declare-const X_0 Real), with X_i for inputs, Y_j for outputs", command.offset
            )
        if words[1] in self.declared:
            raise _FaultError(f"{words[1]} is declared twice", command.offset)
        self.declared[words[1]] = command.offset

    def _count(self, kind: str) -> int:
        names = [name for name in self.declared if name[0] == kind]
        if not names:
            raise _FaultError(f"no variable {kind}_0 is declared", 0)
        for i in range(len(names)):
            if f"{kind}_{i}" not in self.declared:
                raise _FaultError(f"{len(names)} variables {kind}_i are declared, but {kind}_{i} is not", 0)
        return len(names)

    def _cases(self, expression: _Expression) -> list[_Case]:
        """The disjunctive normal form of a formula."""
        head = _head(expression)
        if isinstance(expression, _Atom) or head not in {"and", "or", *_COMPARISONS}:
            found = head or (expression.text if isinstance(expression, _Atom) else "()")
            raise _FaultError(f"'{found}' where and, or, <= or >= is expected", expression.offset)
        parts = expression.parts[1:]
        if head in _COMPARISONS:
            return [self._comparison(head, expression)]
        if not parts:
            raise _FaultError(f"an empty '{head}'", expression.offset)
        inner = [self._cases(part) for part in parts]
        if head == "or":
            return [case for cases in inner for case in cases]
        return _product(inner, expression.offset)

    def _comparison(self, relation: str, expression: _List) -> _Case:
        if len(expression.parts) != 3:
            raise _FaultError(f"'{relation}' compares two things", expression.offset)
        left, right = (self._linear(part) for part in expression.parts[1:])
        if relation[0] == ">":
            left, right = right, left
        terms = {name: left.get(name, 0.0) - right.get(name, 0.0) for name in {**left, **right} if name}
        bound = right.get("", 0.0) - left.get("", 0.0)
        strict = len(relation) == 1
        inputs = [name for name in terms if name[0] == "X"]
        if not terms:
            raise _FaultError("two numbers are compared", expression.offset)
        if not inputs:
            row = _Row(tuple((int(name[2:]), factor) for name, factor in terms.items()), bound, strict)
            return _Case(rows=[row])
        factor = terms[inputs[0]]
        if len(terms) > 1 or factor == 0:
            raise _FaultError(
                f"{inputs[0]} is compared with another variable; inputs may be bounded by numbers", expression.offset
            )
        limit = bound / factor
        if strict:
            # No float64 lies between the limit and its neighbour, so neither does an input that a network can be given.
            limit = math.nextafter(limit, -math.copysign(math.inf, factor))
        index = int(inputs[0][2:])
        return _Case(upper={index: limit}) if factor > 0 else _Case(lower={index: limit})

    def _linear(self, expression: _Expression) -> dict[str, float]:
        """A linear expression as the factors of its variables; that of '' is its constant."""
        if isinstance(expression, _Atom):
            if expression.text in self.declared:
                return {expression.text: 1.0}
            if not _NUMBER.fullmatch(expression.text):
                raise _FaultError(f"'{expression.text}' is neither a number nor a declared variable", expression.offset)
            value = float(expression.text)
            if not math.isfinite(value):
                raise _FaultError(f"{expression.text} is too large for a float64", expression.offset)
            return {"": value}
        head, inner = _head(expression), [self._linear(part) for part in expression.parts[1:]]
        if head not in {"+", "-", "*"} or not inner:
            raise _FaultError(f"'{head or '()'}' where a variable, a number, +, - or * is expected", expression.offset)
        if head == "*":
            scales = [part.get("", 0.0) for part in inner if not any(part)]
            others = [part for part in inner if any(part)]
            if len(others) > 1:
                raise _FaultError("a product of variables; outputs may be combined linearly", expression.offset)
            scale = math.prod(scales)
            return {name: scale * factor for name, factor in (others[0] if others else {"": 1.0}).items()}
        signs = [1.0] + [-1.0 if head == "-" else 1.0] * (len(inner) - 1)
        if head == "-" and len(inner) == 1:
            signs = [-1.0]
        total: dict[str, float] = {}
        for sign, part in zip(signs, inner, strict=True):
            for name, factor in part.items():
                total[name] = total.get(name, 0.0) + sign * factor
        return total

    def _sets(self, always: _Case, cases: list[_Case], inputs: int, outputs: int) -> tuple[UnsafeSet, ...]:
        """Cases with the same box, together."""
        lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
        _bound(lower, upper, always)
        found: dict[bytes, tuple[Vector, Vector, list[Conjunction]]] = {}
        for case in cases:
            low, high = lower.copy(), upper.copy()
            _bound(low, high, case)
            for side, bounds in (("lower", low), ("upper", high)):
                unbounded = np.flatnonzero(np.isinf(bounds))
                if len(unbounded):
                    name = f"X_{unbounded[0]}"
                    raise _FaultError(f"{name} has no {side} bound; assert one", self.declared[name])
            if (low <= high).all():
                unsafe = found.setdefault(low.tobytes() + high.tobytes(), (low, high, []))[2]
                unsafe.append(_conjunction(always.rows + case.rows, outputs))
        return tuple(UnsafeSet(low, high, tuple(unsafe)) for low, high, unsafe in found.values())


def _product(choices: list[list[_Case]], offset: int = 0) -> list[_Case]:
    """What holds if one case of each choice does."""
    if math.prod(map(len, choices)) > _MOST_CASES:
        raise _FaultError(f"more than {_MOST_CASES} combinations of alternatives", offset)
    cases = []
    for combination in itertools.product(*choices):
        case = _Case()
        for part in combination:
            case.add(part)
        cases.append(case)
    return cases


def _bound(lower: Vector, upper: Vector, case: _Case) -> None:
    for i, value in case.lower.items():
        lower[i] = max(lower[i], value)
    for i, value in case.upper.items():
        upper[i] = min(upper[i], value)


def _conjunction(rows: list[_Row], outputs: int) -> Conjunction:
    matrix = np.zeros((len(rows), outputs))
    for r, row in enumerate(rows):
        for j, factor in row.terms:
            matrix[r, j] = factor
    return Conjunction(
        matrix, np.array([row.bound for row in rows]), np.array([row.strict for row in rows], dtype=bool)
    )
