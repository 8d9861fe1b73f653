"""The sequential tests: what they spend, computed by hand, and how often they are wrong when somebody tries."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from holdfast.certify.smoothing.sequential import plan

RUNS = 10_000


def too_often(wrong: int, alpha: float) -> bool:
    """Whether so many errors in `RUNS` would be a one in a million chance at the rate ``alpha``."""
    return stats.binom.sf(wrong - 1, RUNS, alpha) < 1e-6


def ever_rejected(steps, p: float, seed: int) -> np.ndarray:
    """``(RUNS,)`` the most thresholds rejected at any look: an adversary sees all counts and never gives up."""
    rng = np.random.default_rng(seed)
    level, successes, start = torch.zeros(2, RUNS, dtype=torch.int64), None, 0
    level, successes = level
    for look, stop in enumerate(steps.looks):
        successes = successes + torch.from_numpy(rng.binomial(stop - start, p, RUNS))
        level, _ = steps.judge(look, level, successes)
        start = stop
    return level.numpy()


def spent(p: float, looks: tuple[int, ...], accept: list[int]) -> float:
    """The probability that the count of a run at ``p`` is at any look at least what that look accepts, vote by vote."""
    mass, rejected, n = {0: 1.0}, 0.0, 0
    for stop, needed in zip(looks, accept, strict=True):
        for _ in range(stop - n):
            longer: dict[int, float] = {}
            for s, m in mass.items():
                longer[s] = longer.get(s, 0.0) + m * (1 - p)
                longer[s + 1] = longer.get(s + 1, 0.0) + m * p
            mass = longer
        n = stop
        rejected += sum(m for s, m in mass.items() if s >= needed)
        mass = {s: m for s, m in mass.items() if s < needed}
    return rejected


@pytest.mark.parametrize("samples", [30, 100, 300, 700])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_a_run_at_the_threshold_is_rejected_with_probability_alpha_at_most(p, alpha, samples):
    steps = plan((p,), samples, alpha)
    assert steps.looks[-1] == samples
    total = spent(p, steps.looks, steps.accept[:, 0].tolist())
    assert total <= alpha * (1 + 1e-9)
    # One more vote accepted at the last look would be too many: nothing is given away but what counts cannot split.
    looser = [*steps.accept[:-1, 0].tolist(), int(steps.accept[-1, 0]) - 1]
    assert spent(p, steps.looks, looser) > alpha


@pytest.mark.parametrize("alpha", [1e-300, 1e-20, 1 - 2.0**-53])
def test_what_is_too_rare_to_be_carried_along_is_spent_all_the_same(alpha):
    p, samples = 0.5, 1100
    steps = plan((p,), samples, alpha)
    accept = steps.accept[:, 0].tolist()
    # At one look alone no more than alpha; exactly, since the threshold is a half.
    for n, needed in zip(steps.looks, accept, strict=True):
        assert sum(math.comb(n, k) for k in range(needed, n + 1)) <= Fraction(alpha) * 2**n
    # The last look leaves little unspent.
    n, needed = samples, accept[-1] - 1
    if alpha < 0.5:
        assert sum(math.comb(n, k) for k in range(needed - 3, n + 1)) > Fraction(alpha) * 2**n


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_few_samples_are_a_plan_too(samples):
    steps = plan((0.5, 0.9), samples, 0.001)
    assert steps.looks == (samples,)
    assert (steps.accept == samples + 1).all()


@pytest.mark.parametrize("p", [0.5, 0.84, 0.97725, 0.99])
def test_false_statements_are_as_rare_as_stated_whoever_decides_when_to_stop(p):
    alpha = 0.05
    thresholds = tuple(0.5 * math.erfc(-z / math.sqrt(2)) for z in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5))
    steps = plan(thresholds, 5000, alpha)
    true = sum(threshold < p for threshold in thresholds)
    assert not too_often(int((ever_rejected(steps, p, seed=int(1000 * p)) > true).sum()), alpha)


def test_at_a_threshold_nearly_all_of_alpha_is_spent():
    wrong = int((ever_rejected(plan((0.5,), 5000, 0.05), 0.5, seed=1) > 0).sum())
    assert not too_often(wrong, 0.05)
    assert wrong > 0.04 * RUNS


def test_peeking_at_a_bound_for_a_fixed_number_of_samples_would_be_noticed():
    """The check above has power: the classical mistake is far outside."""
    steps = plan((0.5,), 5000, 0.05)
    rng = np.random.default_rng(2)
    successes, wrong, start = np.zeros(RUNS, dtype=int), np.zeros(RUNS, dtype=bool), 0
    for stop in steps.looks:
        successes += rng.binomial(stop - start, 0.5, RUNS)
        wrong |= stats.binom.sf(successes - 1, stop, 0.5) <= 0.05
        start = stop
    assert too_often(int(wrong.sum()), 0.05)


def test_what_more_votes_say_and_higher_thresholds_need():
    steps = plan((0.5, 0.69, 0.84, 0.93, 0.977), 20_000, 0.001)
    assert (steps.accept.diff(dim=1) >= 0).all()
    assert (steps.accept.diff(dim=0) >= 0).all()
    # Nobody gives up who has reached it, nor with every vote in favour; at the end everybody stops.
    looks = torch.tensor(steps.looks)
    assert (steps.resign[:-1, :-1] <= torch.minimum(looks[:-1, None], steps.accept[:-1])).all()
    assert (steps.resign[-1] > looks[-1]).all()
    assert (steps.resign[:, -1] > looks).all()
    for look, n in enumerate(steps.looks):
        _, going = steps.judge(look, torch.tensor([0]), torch.tensor([0]))
        assert not going.item() or n == steps.looks[0]


def test_a_level_once_reached_is_kept():
    steps = plan((0.5, 0.9), 1000, 0.05)
    level, _ = steps.judge(0, torch.tensor([0]), torch.tensor([90]))
    assert level.item() >= 1
    later, going = steps.judge(len(steps.looks) - 1, level, torch.tensor([0]))
    assert later.item() == level.item()
    assert not going.item()


def test_a_clear_answer_costs_little():
    steps = plan((0.5,), 100_000, 0.001)
    level, going = steps.judge(0, torch.tensor([0, 0]), torch.tensor([95, 10]))
    assert level.tolist() == [1, 0]
    assert not going.any()
