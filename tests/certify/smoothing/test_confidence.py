"""Bounds and the test of two classes against their definitions, by summing binomial probabilities."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from scipy import special, stats

from holdfast.certify.smoothing.confidence import (
    lower_bound,
    lower_quantile,
    tie_probability,
    upper_bound,
    upper_quantile,
)
from holdfast.certify.smoothing.tails import normal_cdf


@pytest.mark.parametrize(("trials", "alpha"), [(1, 0.05), (20, 0.05), (100, 0.001), (100_000, 0.001)])
def test_at_the_lower_bound_so_many_successes_have_probability_alpha(trials, alpha):
    successes = torch.tensor(sorted({1, trials // 2 + 1, trials - 1, trials} - {0}))
    for s, bound in zip(successes.tolist(), lower_bound(successes, trials, alpha).tolist(), strict=True):
        assert stats.binom.sf(s - 1, trials, bound) == pytest.approx(alpha, rel=1e-6)


def test_unanimous_votes_have_the_closed_form():
    assert lower_bound(torch.tensor([1000]), 1000, 0.001).item() == pytest.approx(0.001**0.001, rel=1e-12)
    assert lower_bound(torch.tensor([0]), 1000, 0.001).item() == 0
    assert upper_bound(torch.tensor([0]), 1000, 0.001).item() == pytest.approx(1 - 0.001**0.001, rel=1e-9)
    assert upper_bound(torch.tensor([1000]), 1000, 0.001).item() == 1


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_bounds_are_wrong_no_more_often_than_stated_and_no_tighter_bound_would_be(alpha):
    counts = torch.arange(13)
    lower, upper = lower_bound(counts, 12, alpha), upper_bound(counts, 12, alpha)
    worst = [0.0, 0.0]
    for p in torch.linspace(0.001, 0.999, 2001, dtype=torch.float64).tolist():
        mass = torch.from_numpy(stats.binom.pmf(counts.numpy(), 12, p))
        worst[0] = max(worst[0], float(mass[lower > p].sum()))
        worst[1] = max(worst[1], float(mass[upper < p].sum()))
    assert all(0.95 * alpha < wrong <= alpha + 1e-12 for wrong in worst)


def test_the_test_of_two_classes_is_the_two_sided_binomial_one():
    for first in range(1, 30):
        for second in range(first + 1):
            expected = stats.binomtest(first, first + second, 0.5).pvalue
            got = tie_probability(torch.tensor([first]), torch.tensor([second]))
            assert got.item() == pytest.approx(expected, rel=1e-9)
    assert tie_probability(torch.tensor([0]), torch.tensor([0])).item() == 1


def tail(successes: int, trials: int, p: Fraction) -> Fraction:
    terms = (math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("alpha", [1e-300, 1e-30, 0.001, 0.05, 0.5])
@pytest.mark.parametrize("trials", [1, 3, 20, 41])
def test_the_defining_inequality_holds_in_rational_arithmetic(trials, alpha):
    counts = torch.arange(1, trials + 1)
    bounds = zip(lower_bound(counts, trials, alpha).tolist(), upper_bound(counts, trials, alpha).tolist(), strict=True)
    for count, (lower, upper) in zip(counts.tolist(), bounds, strict=True):
        # The library, asked for 1e-300, is far above some bounds: then what is found lies below by up to a half.
        more = Fraction(lower) * (Fraction(1_000_001, 1_000_000) if alpha > 1e-300 else 2)
        assert tail(count, trials, Fraction(lower)) <= Fraction(alpha) < tail(count, trials, more)
        assert count == trials or tail(trials - count, trials, 1 - Fraction(upper)) <= Fraction(alpha)
    assert all(0 < lower < 1 for lower in lower_bound(counts, trials, alpha).tolist())


def test_a_chance_of_error_near_1_still_gives_a_bound_below_1():
    for trials in (1, 10, 10**5):
        lower = lower_bound(torch.tensor([trials]), trials, 1 - 2.0**-53).item()
        assert 0 < lower < 1
        if trials < 100:
            assert Fraction(lower) ** trials <= 1 - Fraction(1, 2**53)


@pytest.mark.parametrize("alpha", [1e-300, 0.001])
def test_ten_million_votes_are_bounded_at_once_and_sharply(alpha):
    trials = 10**7
    counts = torch.tensor([1, 10, trials // 2, trials - 1000, trials])
    found = lower_bound(counts, trials, alpha)
    expected = special.betaincinv(counts.double().numpy(), (trials - counts + 1).double().numpy(), alpha)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=0)
    assert (found <= torch.from_numpy(expected)).all()


def test_a_p_value_is_no_smaller_than_the_exact_one():
    for first, second in ((1, 0), (5, 3), (17, 2), (40, 40), (60, 1)):
        exact = min(Fraction(1), 2 * tail(first, first + second, Fraction(1, 2)))
        got = tie_probability(torch.tensor([first]), torch.tensor([second])).item()
        assert exact <= Fraction(got) <= exact * (1 + Fraction(1, 10**9))


def test_quantiles_are_on_their_side_of_the_law():
    p = torch.tensor([1e-300, 1e-17, 0.001, 0.3, 0.5, 0.7, 0.999, 1 - 1e-12, 1 - 2.0**-53], dtype=torch.float64)
    lower, upper = lower_quantile(p), upper_quantile(p)
    for chance, low, high in zip(p.tolist(), lower.tolist(), upper.tolist(), strict=True):
        assert normal_cdf(low)[1] <= Decimal(chance) <= normal_cdf(high)[0]
    torch.testing.assert_close(lower, torch.special.ndtri(p), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(upper, torch.special.ndtri(p), rtol=1e-14, atol=1e-15)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert lower_quantile(ends).tolist() == upper_quantile(ends).tolist() == [-math.inf, math.inf]
