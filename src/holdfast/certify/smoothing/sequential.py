"""Counting votes no longer than the answer needs: a group-sequential test for each radius that is asked about.

To certify a radius is to reject that the top class's probability is at most some threshold. Each threshold has a test
of its own, which looks at the count at numbers of samples fixed beforehand and rejects when the count is too large.
Alpha is spent over the looks (Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70,
1983): what a look may spend is a function of the samples so far, and what it does spend is computed exactly, by
carrying the distribution of the count among runs not yet rejected from look to look. The chance that a run at the
threshold is *ever* rejected is therefore at most alpha, whoever decides when to stop and whatever they have seen.
Rounding errors, and what is too rare to be carried along, are bounded and counted as spent.

Several thresholds cost no more than one: they are rejected from the lowest up, and a statement is false only if the
first one that is true has been rejected. Giving up costs nothing at all, since a smaller radius is never a false
statement; it happens when the next threshold has become too unlikely to be worth the samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.certify.smoothing.tails import failures

__all__ = ["Plan", "plan"]

_FIRST, _GROWTH = 100, 1.2

# What is spent before the last look is lost to the last, which alone decides the examples close to a threshold.
_EARLY = 0.4

# How large a chance it takes to go on; see `_resignations`.
_PATIENCE = 1.5

# What is not carried along is counted as spent: a look, about this share of alpha, so many standard deviations away and
# more, with room for skewness.
_NEGLIGIBLE = 1e-15
_DEVIATIONS, _ROOM = 9.0, 20

_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class Plan:
    """When to stop, decided before the first sample.

    Parameters
    ----------
    looks : tuple of int
        Numbers of samples at which the count is looked at, rising.
    accept : Tensor
        ``(L, J)`` int64, the successes that reject each of ``J`` rising thresholds at each look; rising in ``J``.
    resign : Tensor
        ``(L, J + 1)`` int64, the successes below which the next threshold, the one with as many rejected below it, is
        given up. The last column is for nothing left to reach.
    """

    looks: tuple[int, ...]
    accept: Tensor
    resign: Tensor

    def judge(self, look: int, level: Tensor, successes: Tensor) -> tuple[Tensor, Tensor]:
        """What is known after a look.

        Parameters
        ----------
        look : int
            Which look it is.
        level : Tensor
            ``(N,)`` int64, how many thresholds were rejected before.
        successes : Tensor
            ``(N,)`` int64, the count so far.

        Returns
        -------
        tuple of Tensor
            ``(N,)`` int64 how many thresholds are rejected now, and ``(N,)`` bool whether to go on.
        """
        level = torch.maximum(level, torch.searchsorted(self.accept[look], successes, right=True))
        return level, successes >= self.resign[look][level]


@lru_cache(maxsize=64)
def plan(thresholds: tuple[float, ...], samples: int, alpha: float) -> Plan:
    """The looks and the counts at which to stop.

    Parameters
    ----------
    thresholds : tuple of float
        Probabilities to reject, rising, inside (0, 1).
    samples : int
        The most samples to take, at least 1.
    alpha : float
        The chance of a false statement, inside (0, 1).
    """
    looks = _looks(samples)
    accept = np.stack([_rejections(p, looks, alpha) for p in thresholds], axis=1)
    # Higher thresholds need more successes but for the granularity of counts; to ask for more is always valid.
    accept = np.maximum.accumulate(accept, axis=1)
    resign = np.full((len(looks), len(thresholds) + 1), samples + 1)
    resign[:-1, :-1] = _resignations(np.array(looks[:-1])[:, None], np.array(thresholds), accept[-1], samples)
    return Plan(looks, torch.from_numpy(accept), torch.from_numpy(resign))


def _looks(samples: int) -> tuple[int, ...]:
    looks, n = [], float(_FIRST)
    while n < samples:
        looks.append(int(n))
        n *= _GROWTH
    return (*looks, samples)


def _rejections(p: float, looks: tuple[int, ...], alpha: float) -> NDArray[np.int64]:
    """The smallest counts that reject ``p`` at each look; one more than there are samples where none may.

    The law of failures among runs at the threshold that are not rejected yet: ``mass[i]`` is the probability of
    ``least + i`` of them, up to a relative error of ``error``; ``unseen`` is the mass that was left out.
    """
    mass, least, spent, before = np.ones(1), 0, 0.0, 0
    error, unseen = 0.0, 0.0
    negligible = _NEGLIGIBLE * min(alpha, 1e-3)
    deviations = max(_DEVIATIONS, (-2 * np.log(max(negligible, np.finfo(float).tiny))) ** 0.5)
    counts = []
    for n in looks:
        new = n - before
        mean, room = new * (1 - p), deviations * (new * p * (1 - p)) ** 0.5 + _ROOM * (deviations / _DEVIATIONS) ** 2
        lowest, highest = max(0, int(mean - room)), min(new, int(mean + room) + 1)
        law, off, outside = failures(new, p, lowest, highest)
        error += off + _UNIT * (2 * min(len(mass), len(law)) + 8)
        unseen += outside
        mass = np.convolve(mass, law)
        least, before = least + lowest, n
        allowed = alpha * (1.0 if n == looks[-1] else _EARLY * (n / looks[-1]) ** 0.5)
        # What earlier looks could not spend, since counts come in whole numbers, is still there.
        ever = (spent + mass.cumsum()) * (1 + error + 2 * _UNIT * len(mass)) + unseen
        rejected = int(np.searchsorted(ever, allowed, side="right"))
        counts.append(n - least - rejected + 1 if rejected else n + 1)
        spent += float(mass[:rejected].sum())
        mass, least = mass[rejected:], least + rejected
        kept = int((mass[::-1].cumsum()[::-1] > negligible).sum())
        # Products below the smallest normal number have lost their digits.
        unseen += 2 * float(mass[kept:].sum()) + len(mass) * np.finfo(float).tiny
        mass = mass[:kept]
    return np.array(counts, dtype=np.int64)


def _resignations(
    n: NDArray[np.int64], thresholds: NDArray[np.float64], target: NDArray[np.int64], samples: int
) -> NDArray[np.int64]:
    """``(L, J)``: the smallest counts after ``n`` samples with which it is worth going on to ``target`` at the end.

    An example goes on while its chance exceeds ``patience * information * t (1 - t)``, ``t`` the share of the samples
    taken. The form in ``t`` is that of the optimal rule, found by dynamic programming for a random walk with unknown
    drift: soon after the start the next look costs little, and shortly before the end little remains to be saved. The
    information is that of one sample about ``Phi^-1(p)``, its square root: where it is small, near 1, many examples of
    a data set lie within one standard error of the threshold, and losing those would show.
    """
    from scipy.special import betaincc, ndtri

    t = n / samples
    density = np.exp(-0.5 * ndtri(thresholds) ** 2) / np.sqrt(2 * np.pi)
    worth = _PATIENCE * density / np.sqrt(thresholds * (1 - thresholds)) * t * (1 - t)

    def chance(successes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of reaching the target: the posterior's (from Jeffreys' prior) share of successes in the samples to come.

        Its law is beta-binomial, here a beta distribution of nearly the same mean and variance.
        """
        mean, size = (successes + 0.5) / (n + 1), n * (1 - t)
        needed = (target - successes) / (samples - n)
        inside = betaincc(mean * size, (1 - mean) * size, needed.clip(0, 1))
        return np.where(needed > 1, 0.0, inside)

    low, high = np.full(worth.shape, -1), np.broadcast_to(n, worth.shape) + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        going = chance(middle.clip(0, n)) >= worth
        wide = high - low > 1
        low, high = np.where(wide & ~going, middle, low), np.where(wide & going, middle, high)
    return high
