"""Relations between columns, one line each: ``dst_bytes <= 3*src_bytes + 10``, ``num_root > 0 -> logged_in >= 1``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, isfinite, lcm
from typing import Literal, cast

from holdfast.errors import SettingError

__all__ = ["Comparison", "Relation", "Sense", "parse_relation"]

Sense = Literal["<", "<=", "=", ">=", ">"]

# Names with other characters than these stand between backticks.
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d][\w.]*)|`(?P<quoted>[^`]+)`"
    r"|(?P<sign>->|<=|>=|==|[-+*/<>=]))"
)
_FORM = "write such as a <= 3*b + 10, or a > 0 -> b >= 1"


@dataclass(frozen=True)
class Comparison:
    """A linear comparison ``sum_j coefficient_j * column_j  SENSE  bound``.

    Parameters
    ----------
    terms : tuple of (str, float)
        Columns, each named once, with their coefficients, none of them 0.
    sense : str
        ``"<"``, ``"<="``, ``"="``, ``">="`` or ``">"``.
    bound : float
        The number on the other side.
    """

    terms: tuple[tuple[str, float], ...]
    sense: Sense
    bound: float

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it speaks of."""
        return tuple(column for column, _ in self.terms)

    def whole(self) -> "Comparison":
        """The same comparison with whole coefficients that have no common divisor, numbers read as decimals.

        Between whole numbers, every sum is then exact as long as it stays below 2**53. The bound stays a fraction
        where it is one.
        """
        numbers = [Fraction(repr(coefficient)) for _, coefficient in self.terms]
        scale = Fraction(lcm(*(n.denominator for n in numbers)), 1)
        scale /= gcd(*(int(n * scale) for n in numbers))
        terms = tuple((column, float(n * scale)) for (column, _), n in zip(self.terms, numbers, strict=True))
        return Comparison(terms, self.sense, float(Fraction(repr(self.bound)) * scale))


@dataclass(frozen=True)
class Relation:
    """What every row must satisfy: a comparison, or one that must hold where another, the guard, does.

    Parameters
    ----------
    text : str
        As a person writes it.
    comparison : Comparison
        What must hold.
    guard : Comparison, optional
        Where it must hold; everywhere without one.
    line : int
        Where it stands in the rules' file; 0 where there is none.
    """

    text: str
    comparison: Comparison
    guard: Comparison | None = None
    line: int = field(default=0, compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it speaks of, each named once, in the order of the text."""
        guards = self.guard.columns if self.guard is not None else ()
        return tuple(dict.fromkeys(guards + self.comparison.columns))


def parse_relation(text: str, line: int = 0) -> Relation:
    """Read ``LEFT SENSE RIGHT`` or ``LEFT SENSE RIGHT -> LEFT SENSE RIGHT``.

    Both sides of a comparison are sums of numbers, columns and multiples ``3*a`` (or ``a*3``, ``a/3``) of columns;
    SENSE is ``<``, ``<=``, ``=`` (or ``==``), ``>=`` or ``>``. A name with other characters than letters, digits,
    underscores and dots stands between backticks: ```protocol=tcp` = 1``.

    Parameters
    ----------
    text : str
        The relation.
    line : int, optional
        Where it stands, for those who print it.

    Raises
    ------
    SettingError
        When it cannot be read, saying where.
    """
    parts = list(_split(text))
    if len(parts) > 2:
        raise _unreadable(text, "it has more than one arrow")
    comparisons = [_comparison(text, tokens) for tokens in parts]
    return Relation(text, comparisons[-1], comparisons[0] if len(comparisons) == 2 else None, line)


_Token = tuple[str, str]  # the kind, and the text


def _split(text: str) -> Iterator[list[_Token]]:
    """The tokens between arrows."""
    tokens: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, f"nothing can begin with {text[position:].strip()[:20]!r}")
        position = match.end()
        kind = str(match.lastgroup)
        if match[kind] == "->":
            yield tokens
            tokens = []
        else:
            tokens.append(("name" if kind == "quoted" else kind, match[kind]))
    yield tokens


def _comparison(text: str, tokens: list[_Token]) -> Comparison:
    senses = [i for i, (_, word) in enumerate(tokens) if word in ("<", "<=", "=", "==", ">=", ">") and _ == "sign"]
    if len(senses) != 1:
        raise _unreadable(text, "each side of an arrow is one comparison, with one of < <= = >= >")
    (middle,) = senses
    left, right = _sum(text, tokens[:middle]), _sum(text, tokens[middle + 1 :])
    # Columns to the left, the number to the right, each summed exactly before it becomes a float.
    totals = {name: left.get(name, Fraction(0)) - right.get(name, Fraction(0)) for name in (left | right)}
    bound = -totals.pop(None, Fraction(0))
    terms = tuple((str(name), _float(text, total)) for name, total in totals.items() if total)
    if not terms:
        raise _unreadable(text, "there is no column in a comparison")
    sense = cast("Sense", tokens[middle][1].replace("==", "="))
    return Comparison(terms, sense, _float(text, bound))


def _sum(text: str, tokens: list[_Token]) -> dict[str | None, Fraction]:
    """The coefficient of each column of a sum, under None what is added."""
    totals: dict[str | None, Fraction] = {}
    position = 0
    while position < len(tokens) or not totals:
        factor, column = Fraction(1), None
        signs = 0
        while tokens[position : position + 1] in ([("sign", "+")], [("sign", "-")]):
            factor *= -1 if tokens[position][1] == "-" else 1
            position, signs = position + 1, signs + 1
        if signs > 1 or (totals and not signs):
            raise _unreadable(text, "terms are joined by one + or -")
        operation = "*"
        while True:
            kind, word = tokens[position] if position < len(tokens) else ("end", "")
            if kind == "number":
                number = Fraction(word)
                if operation == "/" and not number:
                    raise _unreadable(text, "it divides by 0")
                factor = factor * number if operation == "*" else factor / number
            elif kind == "name" and operation == "*" and column is None:
                column = word
            else:
                raise _unreadable(text, "a term is a number, a column, or a multiple of one")
            position += 1
            if tokens[position : position + 1] not in ([("sign", "*")], [("sign", "/")]):
                break
            operation = tokens[position][1]
            position += 1
        totals[column] = totals.get(column, Fraction(0)) + factor
    return totals


def _float(text: str, number: Fraction) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = float("inf")
    if not isfinite(value) or (number and not value):
        raise _unreadable(text, "it has a number that double precision cannot hold")
    return value


def _unreadable(text: str, why: str) -> SettingError:
    return SettingError(f"relation {text!r} cannot be read, since {why}: {_FORM}")
