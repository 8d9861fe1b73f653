"""Formulas of linear inequalities, and the conjunctions that they are made of.

Formulas have no negation: it has been pushed into the inequalities. The disjunctive normal form is enumerated depth
first, with what solvers of propositional formulas do to keep it small (Davis, Logemann and Loveland 1962, "A machine
program for theorem-proving"): inequalities that must hold go first, alternatives that they contradict are dropped, and
choices that they have already made are not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FALSE", "TRUE", "AllOf", "AnyOf", "Facts", "Formula", "Limit", "Row", "TooManyError", "alternatives"]

Terms = tuple[tuple[int, float], ...]


class Limit(NamedTuple):
    """``<= bound``, or ``< bound``."""

    bound: float
    strict: bool


class Row(NamedTuple):
    """``<terms, v> <= bound``, or ``<``: factors of some variables by their numbers."""

    terms: Terms
    limit: Limit


@dataclass(frozen=True)
class AllOf:
    """Holds where all parts do."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class AnyOf:
    """Holds where any part does."""

    parts: tuple[Formula, ...]


Formula = Row | AllOf | AnyOf
TRUE, FALSE = AllOf(()), AnyOf(())


class TooManyError(Exception):
    """There are more conjunctions than can be enumerated."""


class Facts:
    """A conjunction of inequalities: for every linear function the tightest limit.

    Parameters
    ----------
    base : mapping, optional
        Inequalities that are shared with other conjunctions, and not copied.
    """

    def __init__(self, base: Mapping[Terms, Limit] | None = None, own: dict[Terms, Limit] | None = None) -> None:
        self.base = base or {}
        self.own = own or {}

    def copy(self) -> Facts:
        return Facts(self.base, dict(self.own))

    def limit(self, terms: Terms) -> Limit | None:
        return self.own.get(terms) or self.base.get(terms)

    def imply(self, row: Row) -> bool:
        """Whether an inequality says nothing new."""
        known = self.limit(row.terms)
        return known is not None and (known.bound, not known.strict) <= (row.limit.bound, not row.limit.strict)

    def exclude(self, row: Row) -> bool:
        """Whether an inequality contradicts what is known of the same function."""
        known = self.limit(tuple((variable, -factor) for variable, factor in row.terms))
        if known is None:
            return False
        least, most = -known.bound, row.limit.bound
        return most < least or (most == least and (known.strict or row.limit.strict))

    def add(self, row: Row) -> None:
        """Take in an inequality that is neither implied nor excluded."""
        self.own[row.terms] = row.limit


def alternatives(
    formulas: Sequence[Formula], *, most: int, steps: int
) -> tuple[Mapping[Terms, Limit], list[Mapping[Terms, Limit]]]:
    """Conjunctions one of which holds wherever all formulas do, and nowhere else.

    Parameters
    ----------
    formulas : sequence of Formula
        What must hold.
    most, steps : int
        How many conjunctions there may be, and how many inequalities may be looked at in their search.

    Returns
    -------
    common : mapping
        What holds in all of them: for every linear function the tightest limit.
    cases : list of mapping
        What each says besides.

    Raises
    ------
    TooManyError
        If that does not suffice.
    """
    search = _Search(steps)
    common = Facts()
    choices = search.settled(common, list(formulas))
    if choices is None:
        return {}, []
    found: dict[frozenset[tuple[Terms, Limit]], Mapping[Terms, Limit]] = {}
    for facts in search.run(Facts(common.own), choices):
        found.setdefault(frozenset(facts.own.items()), facts.own)
        if len(found) > most:
            raise TooManyError
    return common.own, list(found.values())


class _Search:
    """The enumeration, and what is left of its budget."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def run(self, facts: Facts, choices: list[AnyOf]) -> Iterator[Facts]:
        """Depth first: what waits is no more than the choices of one path."""
        stack = [(facts, choices, iter(choices[0].parts if choices else (TRUE,)))]
        while stack:
            facts, choices, parts = stack[-1]
            part = next(parts, None)
            if part is None:
                stack.pop()
                continue
            self._step(1 + len(facts.own))
            here = facts.copy()
            rest = self.settled(here, [part, *choices[1:]])
            if rest:
                stack.append((here, rest, iter(rest[0].parts)))
            elif rest is not None:
                yield here

    def settled(self, facts: Facts, formulas: list[Formula]) -> list[AnyOf] | None:
        """Add to facts what must hold; the choices that remain, or None if nothing can."""
        while True:
            choices = list[AnyOf]()
            if not all(self._assert(facts, formula, choices) for formula in formulas):
                return None
            before, formulas = len(choices), [self._narrowed(facts, choice) for choice in choices]
            # What had one alternative left is no choice any more, and may settle others.
            choices = [formula for formula in formulas if isinstance(formula, AnyOf) and len(formula.parts) > 1]
            if len(choices) == before:
                return choices

    def _assert(self, facts: Facts, formula: Formula, choices: list[AnyOf]) -> bool:
        if isinstance(formula, AllOf):
            return all(self._assert(facts, part, choices) for part in formula.parts)
        if isinstance(formula, AnyOf):
            choices.append(formula)
            return bool(formula.parts)
        self._step()
        if facts.exclude(formula):
            return False
        if not facts.imply(formula):
            facts.add(formula)
        return True

    def _narrowed(self, facts: Facts, choice: AnyOf) -> Formula:
        """A choice without the alternatives that are excluded; no choice at all if one of them is implied."""
        parts = list[Formula]()
        for part in choice.parts:
            truth = self._truth(facts, part)
            if truth:
                return TRUE
            if truth is None:
                parts.append(part)
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _truth(self, facts: Facts, formula: Formula) -> bool | None:
        """What facts say of a formula; None where that is open, or takes more than a look at its inequalities."""
        if isinstance(formula, Row):
            self._step()
            return False if facts.exclude(formula) else True if facts.imply(formula) else None
        stop = isinstance(formula, AnyOf)
        truths = set[bool | None]()
        for part in formula.parts:
            truth = self._truth(facts, part)
            if truth is stop:
                return stop
            truths.add(truth)
        return None if None in truths else not stop

    def _step(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise TooManyError
