"""Bounds of tails against exact rational arithmetic, and against decimal arithmetic with more digits."""

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from holdfast.certify.smoothing.tails import binomial_tail, failures, normal_cdf, round_down, round_up

CLOSE = Fraction(1, 10**9)


def exact_tail(successes: int, trials: int, p: float) -> Fraction:
    chance = Fraction(p)
    terms = (math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes, trials + 1))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("p", [1e-300, 1e-9, 0.1, 0.5, 0.99, 1 - 2.0**-53])
@pytest.mark.parametrize("trials", [1, 2, 7, 30, 70])
def test_a_binomial_tail_is_never_below_the_exact_one_and_nearly_that(trials, p):
    for successes in {1, trials // 2 + 1, trials - 1 or 1, trials}:
        exact, got = exact_tail(successes, trials, p), Fraction(binomial_tail(successes, trials, p))
        assert exact <= got <= exact * (1 + CLOSE)


def test_long_tails_are_those_of_closed_forms_and_of_the_library():
    with localcontext(Context(prec=80, Emin=-(10**9))):
        for p in (0.9999, 0.5):
            exact = (10**7 * Decimal(p).ln()).exp()
            assert exact <= binomial_tail(10**7, 10**7, p) <= exact * (1 + Decimal("1e-12"))
    for successes, p in ((5_001_000, 0.5), (5_000_000, 0.4995), (9_999_000, 0.99985), (20, 1e-6), (5_000_000, 0.51)):
        expected = stats.binom.sf(successes - 1, 10**7, p)
        assert float(binomial_tail(successes, 10**7, p)) == pytest.approx(expected, rel=1e-8)


def test_certain_and_impossible_successes():
    assert binomial_tail(3, 10, 0.0) == 0
    assert binomial_tail(3, 10, 1.0) == 1


@pytest.mark.parametrize(("trials", "p", "window"), [(12, 0.5, (2, 9)), (40, 0.9, (0, 12)), (40, 0.999, (0, 3))])
def test_a_window_of_the_law_and_what_it_leaves_out(trials, p, window):
    low, high = window
    mass, error, outside = failures(trials, p, low, high)
    chance = Fraction(p)
    exact = [math.comb(trials, f) * (1 - chance) ** f * chance ** (trials - f) for f in range(trials + 1)]
    assert len(mass) == high - low + 1
    assert error < 1e-13
    for got, true in zip(mass.tolist(), exact[low : high + 1], strict=True):
        assert abs(Fraction(got) - true) <= Fraction(error) * true
    left_out = sum(exact[:low]) + sum(exact[high + 1 :])
    assert left_out <= Fraction(outside) <= 3 * left_out


@pytest.mark.parametrize("z", [1e-300, 1e-10, 0.3, 1.0, 2.5, 5.999, 6.0, 6.001, 8.0, 20.0, 38.0])
def test_the_normal_law_lies_between_its_bounds(z):
    """Against the same series with so many digits that it needs no other method far out."""
    with localcontext(Context(prec=700, Emin=-(10**6))):
        x, term, total, k = Decimal(z), Decimal(z), Decimal(z), 3
        while term > Decimal(10) ** -690:
            term *= x * x / k
            total, k = total + term, k + 2
        pi = 16 * arctan(5) - 4 * arctan(239)
        half = total * (-x * x / 2).exp() / (2 * pi).sqrt()
        below, above = normal_cdf(-z), normal_cdf(z)
        assert below[0] <= Decimal("0.5") - half <= below[1] <= below[0] * (1 + Decimal("1e-12"))
        assert above[0] <= Decimal("0.5") + half <= above[1] <= above[0] + Decimal("1e-30")


def arctan(inverse: int) -> Decimal:
    """Of ``1 / inverse``."""
    term = total = Decimal(1) / inverse
    k = 1
    while abs(term) > Decimal(10) ** -695:
        term /= -inverse * inverse
        k += 2
        total += term / k
    return total


def test_the_normal_law_at_its_ends_and_beside_the_library():
    assert normal_cdf(0.0) == (Decimal("0.5"), Decimal("0.5"))
    assert normal_cdf(math.inf) == (1, 1)
    assert normal_cdf(-math.inf) == (0, 0)
    for z in np.linspace(-9, 9, 37).tolist():
        assert float(normal_cdf(z)[0]) == pytest.approx(float(special.ndtr(z)), rel=1e-12)


def test_rounding_to_floats_goes_one_way():
    third = Decimal(1) / 3
    assert Decimal(round_down(third)) < third < Decimal(round_up(third))
    assert math.nextafter(round_down(third), 1) == round_up(third)
    assert round_down(Decimal("0.25")) == round_up(Decimal("0.25")) == 0.25
