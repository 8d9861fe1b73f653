"""Disjunctive normal forms: the same points as the formula, and no more of them than differ."""

import itertools
import random

import pytest

from holdfast.certify.formulas import FALSE, TRUE, AllOf, AnyOf, Limit, Row, TooManyError, alternatives


def at_most(bound, terms=((0, 1.0),), *, strict=False):
    return Row(terms, Limit(bound, strict))


def holds(formula, v) -> bool:
    if isinstance(formula, Row):
        value = sum(factor * v[variable] for variable, factor in formula.terms)
        return value < formula.limit.bound or (value == formula.limit.bound and not formula.limit.strict)
    return (all if isinstance(formula, AllOf) else any)(holds(part, v) for part in formula.parts)


TERMS = [((0, 1.0),), ((0, -1.0),), ((1, 1.0),), ((1, -1.0),), ((0, 1.0), (1, -1.0)), ((0, -1.0), (1, 1.0))]


def random_formula(rng: random.Random, depth: int):
    if not depth or rng.random() < 0.2:
        terms = rng.choice(TERMS)
        return at_most(float(rng.randint(-2, 2)), terms, strict=rng.random() < 0.5)
    parts = tuple(random_formula(rng, depth - 1) for _ in range(rng.randint(0 if depth < 3 else 1, 3)))
    return rng.choice([AllOf, AnyOf])(parts)


def test_random_formulas_hold_where_one_of_their_alternatives_does():
    rng, sizes = random.Random(0), 0
    grid = [(a / 2, b / 2) for a, b in itertools.product(range(-5, 6), repeat=2)]
    for _ in range(300):
        formulas = [random_formula(rng, 4) for _ in range(rng.randint(1, 2))]
        common, cases = alternatives(formulas, most=10_000, steps=1_000_000)
        shared = [Row(*item) for item in common.items()]
        sizes += len(cases)
        for v in grid:
            found = all(holds(row, v) for row in shared) and any(
                all(holds(Row(*item), v) for item in case.items()) for case in cases
            )
            assert found == all(holds(formula, v) for formula in formulas)
    assert sizes > 400


def test_the_common_part_is_not_repeated():
    common, cases = alternatives(
        [at_most(1.0), AnyOf((at_most(2.0, ((1, 1.0),)), at_most(-2.0, ((1, -1.0),)))), AnyOf((at_most(0.0),))],
        most=10, steps=1000,
    )  # fmt: skip
    assert common == {((0, 1.0),): Limit(0.0, False)}
    assert cases == [{((1, 1.0),): Limit(2.0, False)}, {((1, -1.0),): Limit(-2.0, False)}]


def test_nothing_and_everything():
    assert alternatives([], most=1, steps=1) == ({}, [{}])
    assert alternatives([TRUE, AnyOf((TRUE, FALSE))], most=1, steps=10) == ({}, [{}])
    assert alternatives([at_most(0.0), FALSE], most=1, steps=10)[1] == []
    assert alternatives([at_most(0.0), at_most(-1.0, ((0, -1.0),))], most=1, steps=10)[1] == []


def test_the_budget_is_kept():
    free = [AnyOf((at_most(0.0, ((i, 1.0),)), at_most(-1.0, ((i, -1.0),)))) for i in range(10)]
    assert len(alternatives(free, most=1024, steps=1 << 17)[1]) == 1024
    with pytest.raises(TooManyError):
        alternatives(free, most=1023, steps=1 << 17)
    with pytest.raises(TooManyError):
        alternatives(free, most=1024, steps=1 << 10)
