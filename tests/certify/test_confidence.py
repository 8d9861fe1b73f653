"""Bounds and the test of two classes against their definitions, by summing binomial probabilities."""

import pytest
import torch
from scipy import stats

from holdfast.certify.confidence import lower_bound, tie_probability, upper_bound


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
