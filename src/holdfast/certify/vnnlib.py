"""Properties of networks in the VNN-LIB format, the one of the verification competition.

A file describes the *unsafe* inputs and outputs in a fragment of SMT-LIB. In version 1 (Demarchi et al., "Supporting
standardization of neural networks verification with VNN-LIB and CoCoNet", FoMLAS 2023) constants ``X_i`` stand for the
entries of the input in C order and ``Y_j`` for those of the output. In version 2 (Roy et al. 2026, "VNN-LIB 2.0:
rigorous foundations for neural network verification", arXiv 2605.07451) a network is declared with its tensors, whose
entries are ``X[0,1]``. Any formula of linear inequalities between inputs, outputs and numbers is read.

What an inequality says of each variable is gathered in rational arithmetic, before its numbers are read as the nearest
float64.
"""

from __future__ import annotations

import gzip
import io
import itertools
import math
import re
import zlib
from fractions import Fraction
from typing import TYPE_CHECKING

from holdfast.arguments import path_of
from holdfast.certify.formulas import FALSE, TRUE, AllOf, AnyOf, Formula, Limit, Row, Terms, TooManyError
from holdfast.certify.properties import Conjunction, Declared, Property, UnboundedError, UnsafeSet, property_of
from holdfast.certify.sexpressions import Expression, FaultError, Group, commands, head_of, shown
from holdfast.errors import DataError
from holdfast.threats.numbers import type_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Conjunction", "Declared", "Property", "UnsafeSet", "parse_vnnlib", "read_vnnlib"]

# The factors of variables by their numbers, and a constant: input i has the number i, output j the number -1 - j.
_Linear = tuple[dict[int, Fraction], Fraction]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CONSTANT = re.compile(r"([XY])_(0|[1-9]\d*)", re.ASCII)
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_INDEXED = re.compile(r"([A-Za-z]\w*)\[(\d+(?:,\d+)*)?\]", re.ASCII)
_QUOTED = re.compile(r'"[^"]+"')
_VERSION = re.compile(r"<2\.\d+>", re.ASCII)
_ELEMENTS = {"real", "float16", "bfloat16", "float32", "float64"}
_IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}
_OPPOSITE = {"<=": ">", ">": "<=", ">=": "<", "<": ">=", "=": "!=", "!=": "="}
_CONNECTIVES = {"and", "or", "not", "=>"}

_MOST_BYTES = 1 << 26
_MOST_VARIABLES = 1 << 20
_LONGEST_NUMBER = 1000
_LONGEST_EXACT = 1 << 14


def read_vnnlib(path: str | Path) -> Property:
    """Read a file, gzipped or not.

    Parameters
    ----------
    path
        The file: a regular one, of at most 64 MiB, unpacked.

    Returns
    -------
    Property

    Raises
    ------
    DataError
        If the file cannot be read, or as :func:`parse_vnnlib`.
    """
    path = path_of("property", path, DataError)
    try:
        # Opening a pipe would wait for a writer for ever.
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: cannot be read: it is no regular file; name a .vnnlib file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise DataError(f"{path}: more than {_MOST_BYTES >> 20} MiB of text; split the property")
        text = data.decode()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: neither text nor a complete gzip file ({error}); get the file again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, name: str = "property") -> Property:
    """Read the text of a file.

    Parameters
    ----------
    text : str
        In VNN-LIB, of version 1 or 2.
    name : str
        What errors call it.

    Returns
    -------
    Property

    Raises
    ------
    DataError
        If it is malformed, names an undeclared variable, is not linear, asks for what is not read, is too large, or
        leaves an input without a bound. The message names the line.
    """
    if not isinstance(text, str):
        raise DataError(f"{name}: a text is needed, not a {type_of(text)}")
    try:
        return _Reader().read(text)
    except FaultError as fault:
        line = text.count("\n", 0, fault.offset) + 1
        raise DataError(f"{name}, line {line}: {fault}") from None
    except TooManyError:
        raise DataError(f"{name}: too many combinations of alternatives to be looked at; split the property") from None


class _Reader:
    """The variables that a file has declared so far, by the place of their declaration, and what it asserts."""

    def __init__(self) -> None:
        self.variables: dict[str, int] = {}
        self.declared: dict[int, int] = {}
        self.tensors: dict[str, Declared] = {}
        self.asserted: list[Formula] = []

    def read(self, text: str) -> Property:
        for command in commands(text):
            head = head_of(command)
            if head in {"declare-const", "declare-fun"}:
                self._declare(command)
            elif head == "declare-network":
                self._network(command)
            elif head == "assert":
                if len(command.parts) != 2:
                    raise FaultError("assert takes one expression", command.offset)
                self.asserted.append(self._formula(command.parts[1], command, True))
            elif head == "vnnlib-version":
                version = command.parts[1] if len(command.parts) == 2 else None
                if not isinstance(version, str) or not _VERSION.fullmatch(version):
                    raise FaultError(
                        "a version that is not read; <2.0> is, and files without a version", command.offset
                    )
            elif head not in _IGNORED:
                raise FaultError(
                    f"unknown command '{shown(head)}'; declare-const, declare-network and assert are known",
                    command.offset,
                )
        if self.tensors:
            x, y = self.tensors.values()
            inputs, outputs, tensors = math.prod(x.shape), math.prod(y.shape), (x, y)
        else:
            inputs, outputs, tensors = self._count("X"), self._count("Y"), None
        try:
            return property_of(self.asserted, inputs, outputs, tensors)
        except UnboundedError as error:
            name = self._name(error.variable)
            raise FaultError(f"{name} has no {error.side} bound; assert one", self.declared[error.variable]) from None

    def _name(self, variable: int) -> str:
        if not self.tensors:
            return f"X_{variable}"
        tensor, places = next(iter(self.tensors.values())), list[int]()
        for size in reversed(tensor.shape):
            variable, place = divmod(variable, size)
            places.insert(0, place)
        return f"{tensor.name}[{','.join(map(str, places))}]" if places else tensor.name

    def _declare(self, command: Group) -> None:
        """A constant of version 1."""
        words = [part for part in command.parts if isinstance(part, str)]
        found = _CONSTANT.fullmatch(words[1]) if len(words) == 3 and words[2] == "Real" else None
        if found is None or len(found[2]) > len(str(_MOST_VARIABLES)):
            raise FaultError(
                "a declaration is (declare-const X_0 Real), with X_i for inputs, Y_j for outputs", command.offset
            )
        if words[1] in self.variables:
            raise FaultError(f"{words[1]} is declared twice", command.offset)
        if self.tensors:
            raise FaultError(f"{words[1]} is declared beside a network", command.offset)
        if len(self.variables) == _MOST_VARIABLES:
            raise FaultError(f"more than {_MOST_VARIABLES} variables", command.offset)
        variable = int(found[2]) if found[1] == "X" else -1 - int(found[2])
        self.variables[words[1]] = variable
        self.declared[variable] = command.offset

    def _count(self, kind: str) -> int:
        count = sum((variable >= 0) == (kind == "X") for variable in self.declared)
        if not count:
            raise FaultError(f"no variable {kind}_0 is declared", 0)
        for i in range(count):
            if f"{kind}_{i}" not in self.variables:
                raise FaultError(f"{count} variables {kind}_i are declared, but {kind}_{i} is not", 0)
        return count

    def _network(self, command: Group) -> None:
        """The network of version 2."""
        if self.tensors:
            raise FaultError("a second network; properties of one network are read", command.offset)
        if self.variables:
            raise FaultError("a network is declared beside constants", command.offset)
        name, *parts = command.parts[1:] or [""]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FaultError("a network is declared without a name", command.offset)
        kinds = list[str]()
        for part in parts:
            kinds.append(head_of(part))
            if kinds[-1] == "declare-hidden":
                raise FaultError("a hidden node is declared; properties of inputs and outputs are read", command.offset)
            if not isinstance(part, Group) or kinds[-1] not in {"declare-input", "declare-output"}:
                found = kinds[-1] or (part if isinstance(part, str) else "()")
                raise FaultError(f"'{shown(found)}' in a network; inputs and outputs are read", command.offset)
            tensor = self._tensor(part)
            if tensor.name in self.tensors:
                raise FaultError(f"{tensor.name} is declared twice", part.offset)
            self.tensors[tensor.name] = tensor
        if kinds != ["declare-input", "declare-output"]:
            raise FaultError("networks with one input, declared first, and one output are read", command.offset)
        self.declared = dict.fromkeys(range(math.prod(next(iter(self.tensors.values())).shape)), command.offset)

    def _tensor(self, part: Group) -> Declared:
        match part.parts[1:]:
            case [str(name), str(kind)]:
                found, node = _INDEXED.fullmatch(kind), None
            case [str(name), str(kind), str(quoted)] if _QUOTED.fullmatch(quoted):
                found, node = _INDEXED.fullmatch(kind), quoted[1:-1]
            case _:
                name, found, node = "", None, None
        if found is None or not _NAME.fullmatch(name):
            raise FaultError(
                'a tensor is declared as (declare-input X float32 [1,2]), or with its name in the network behind, "x"',
                part.offset,
            )
        element = "real" if found[1] == "Real" else found[1]
        if element not in _ELEMENTS:
            raise FaultError(
                f"{shown(name)} has elements of type {shown(element)}; real numbers and floats are read", part.offset
            )
        shape = tuple(_index(word, part.offset) for word in found[2].split(",")) if found[2] else ()
        if not 0 < math.prod(shape) <= _MOST_VARIABLES:
            raise FaultError(f"{shown(name)} is empty, or has more than {_MOST_VARIABLES} entries", part.offset)
        return Declared(name, element, shape, node)

    def _variable(self, word: str, offset: int) -> int | None:
        """The number of a variable; None for a word that names none."""
        if word in self.variables or not self.tensors:
            return self.variables.get(word)
        found = _INDEXED.fullmatch(word)
        name = found[1] if found else word
        if name not in self.tensors:
            return None
        tensor = self.tensors[name]
        places = [_index(place, offset) for place in found[2].split(",")] if found and found[2] else []
        if len(places) != len(tensor.shape) or any(p >= size for p, size in zip(places, tensor.shape, strict=True)):
            raise FaultError(f"'{shown(word)}' is no entry of {name}, which has shape {list(tensor.shape)}", offset)
        number = 0
        for place, size in zip(places, tensor.shape, strict=True):
            number = number * size + place
        self.variables[word] = number if name == next(iter(self.tensors)) else -1 - number
        return self.variables[word]

    def _formula(self, expression: Expression, around: Group, positive: bool) -> Formula:
        """A formula, or its negation, with the negations inside pushed into the inequalities."""
        if isinstance(expression, str):
            if expression in {"true", "false"}:
                return TRUE if (expression == "true") == positive else FALSE
            raise FaultError(f"'{shown(expression)}' where a formula is expected", around.offset)
        head, parts = head_of(expression), expression.parts[1:]
        relation = "=" if head == "==" else head
        if relation in _OPPOSITE:
            return self._comparison(relation if positive else _OPPOSITE[relation], expression)
        if head not in _CONNECTIVES:
            raise FaultError(
                f"'{shown(head) or '()'}' where and, or, not, => or a comparison is expected", expression.offset
            )
        if not parts:
            raise FaultError(f"an empty '{head}'", expression.offset)
        if head == "not":
            if len(parts) != 1:
                raise FaultError("'not' takes one formula", expression.offset)
            return self._formula(parts[0], expression, not positive)
        if head == "=>" and len(parts) < 2:
            raise FaultError("'=>' takes two formulas", expression.offset)
        # Of an implication, all but the last part are denied.
        signs = [positive != (head == "=>") for _ in parts[1:]] + [positive]
        inner = [self._formula(part, expression, sign) for part, sign in zip(parts, signs, strict=True)]
        return _joined(AllOf if (head == "and") == positive else AnyOf, inner)

    def _comparison(self, relation: str, expression: Group) -> Formula:
        if len(expression.parts) != 3:
            raise FaultError(f"'{relation}' compares two things", expression.offset)
        first, second = expression.parts[1:]
        if isinstance(first, str) and isinstance(second, str) and relation[0] in "<>":
            # Nearly all that large files consist of.
            for variable, number, side in ((first, second, 1.0), (second, first, -1.0)):
                place = self._variable(variable, expression.offset)
                if place is not None and _NUMBER.fullmatch(number):
                    sign = side if relation[0] == "<" else -side
                    limit = sign * _float(number, expression.offset)
                    return _inequality(((place, sign),), limit, len(relation) == 1)
        left, right = self._linear(first, expression), self._linear(second, expression)
        difference = _sum([left, _scaled(right, Fraction(-1))], expression.offset)
        if relation == "=":
            return _joined(AllOf, [_row(difference, side, False, expression.offset) for side in (1, -1)])
        if relation == "!=":
            return _joined(AnyOf, [_row(difference, side, True, expression.offset) for side in (1, -1)])
        return _row(difference, 1 if relation[0] == "<" else -1, len(relation) == 1, expression.offset)

    def _linear(self, expression: Expression, around: Group) -> _Linear:
        if isinstance(expression, str):
            variable = self._variable(expression, around.offset)
            if variable is not None:
                return {variable: Fraction(1)}, Fraction(0)
            if not _NUMBER.fullmatch(expression):
                word = shown(expression)
                raise FaultError(f"'{word}' is neither a number nor a declared variable", around.offset)
            # Of 0, which alone may have any exponent, Fraction would compute the power of ten.
            return {}, Fraction(expression) if _float(expression, around.offset) else Fraction(0)
        head, parts = head_of(expression), expression.parts[1:]
        if head not in {"+", "-", "*", "/"} or not parts:
            raise FaultError(
                f"'{shown(head) or '()'}' where a variable, a number, +, -, * or / is expected", expression.offset
            )
        inner = [self._linear(part, expression) for part in parts]
        if head == "+":
            return _sum(inner, expression.offset)
        if head == "-":
            first, *rest = inner if len(inner) > 1 else [({}, Fraction(0)), *inner]
            return _sum([first, *(_scaled(part, Fraction(-1)) for part in rest)], expression.offset)
        if head == "/":
            first, *rest = inner
            if len(inner) < 2 or any(factors or not constant for factors, constant in rest):
                raise FaultError("'/' divides by numbers other than 0", expression.offset)
            return _scaled(first, 1 / _product((constant for _, constant in rest), expression.offset))
        variables = [part for part in inner if part[0]]
        if len(variables) > 1:
            raise FaultError("a product of variables; properties that are linear are read", expression.offset)
        scale = _product((constant for factors, constant in inner if not factors), expression.offset)
        return _scaled(variables[0], scale) if variables else ({}, scale)


def _joined(kind: type[AllOf | AnyOf], parts: list[Formula]) -> Formula:
    """Parts together; what is of the same kind among them is taken apart."""
    flat = tuple(itertools.chain.from_iterable(part.parts if isinstance(part, kind) else (part,) for part in parts))
    return flat[0] if len(flat) == 1 else kind(flat)


def _row(difference: _Linear, side: int, strict: bool, offset: int) -> Formula:
    """That an expression, ``side`` times, is at most 0, or less."""
    factors, constant = _scaled(difference, Fraction(side))
    terms = tuple(sorted((variable, factor) for variable, factor in factors.items() if factor))
    if not terms:
        return TRUE if constant < 0 or (constant == 0 and not strict) else FALSE
    if len(terms) == 1 and terms[0][0] >= 0:
        ((variable, factor),) = terms
        sign = 1 if factor > 0 else -1
        return _inequality(((variable, float(sign)),), _nearest(-sign * constant / factor, offset), strict)
    numbers = tuple((variable, _nearest(factor, offset)) for variable, factor in terms)
    return _inequality(numbers, _nearest(-constant, offset), strict)


def _inequality(terms: Terms, bound: float, strict: bool) -> Row:
    if strict and len(terms) == 1 and terms[0][0] >= 0:
        # No float64 lies between the bound and its neighbour, so neither does an input that a network can be given.
        return Row(terms, Limit(math.nextafter(bound, -math.inf), False))
    return Row(terms, Limit(bound, strict))


def _float(word: str, offset: int) -> float:
    """The float64 nearest to a decimal number."""
    if len(word) > _LONGEST_NUMBER:
        raise FaultError(f"a number of {len(word)} characters; at most {_LONGEST_NUMBER} are read", offset)
    value = float(word)
    if math.isinf(value) or (value == 0 and any(digit in "123456789" for digit in re.split("[eE]", word)[0])):
        raise FaultError(f"{shown(word)} is too large or too small for a float64", offset)
    return value


def _nearest(number: Fraction, offset: int) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if math.isinf(value) or (number and not value):
        raise FaultError("a number of this inequality is too large or too small for a float64", offset)
    return value


def _index(word: str, offset: int) -> int:
    if len(word) > len(str(_MOST_VARIABLES)):
        raise FaultError(f"the index or size {shown(word)} is too large", offset)
    return int(word)


def _sum(parts: Iterable[_Linear], offset: int) -> _Linear:
    total, constant = dict[int, Fraction](), Fraction(0)
    for factors, number in parts:
        constant = _short(constant + number, offset)
        for variable, factor in factors.items():
            before = total.get(variable)
            total[variable] = factor if before is None else _short(before + factor, offset)
    return total, constant


def _scaled(linear: _Linear, scale: Fraction) -> _Linear:
    factors, constant = linear
    return {variable: scale * factor for variable, factor in factors.items()}, scale * constant


def _product(numbers: Iterable[Fraction], offset: int) -> Fraction:
    product = Fraction(1)
    for number in numbers:
        product = _short(product * number, offset)
    return product


def _short(number: Fraction, offset: int) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > _LONGEST_EXACT:
        raise FaultError(f"a number that takes more than {_LONGEST_EXACT} bits to be exact; round it", offset)
    return number
