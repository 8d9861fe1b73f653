"""What a count of votes says of a probability: one-sided bounds and a test of two classes, all exact.

Bounds: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26, 1934. What a library computes is moved outwards until the inequality that defines the bound holds for
:func:`holdfast.certify.smoothing.tails.binomial_tail`, which errs on the safe side. Quantiles of the normal law
likewise.
"""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal

import torch
from torch import Tensor

from holdfast.certify.smoothing.tails import binomial_tail, normal_cdf

__all__ = ["lower_bound", "lower_quantile", "tie_probability", "upper_bound", "upper_quantile"]

_TINY = 2.0**-64


def lower_bound(successes: Tensor, trials: int, alpha: float) -> Tensor:
    """``(N,)`` float64 lower bounds of probabilities; each lies above the truth with probability at most ``alpha``.

    Parameters
    ----------
    successes : Tensor
        ``(N,)`` int64, out of ``trials`` each.
    trials : int
        At least 1.
    alpha : float
        The chance of error allowed, inside (0, 1).
    """
    from scipy.special import betaincinv  # slow to import, so only where it is used

    def bound(count: float) -> float:
        if count == 0:
            return 0.0
        guess = float(betaincinv(count, trials - count + 1, alpha))
        start = guess if 0 < guess < 1 else math.nextafter(1, 0)
        return next(p for p in _shares(start) if binomial_tail(int(count), trials, p) <= Decimal(alpha))

    return _each(bound, successes.double())


def upper_bound(successes: Tensor, trials: int, alpha: float) -> Tensor:
    """``(N,)`` float64 upper bounds, each below the truth with probability at most ``alpha``; see `lower_bound`."""
    least = 1 - lower_bound(trials - successes, trials, alpha)
    return least.nextafter(torch.full_like(least, 2)).clamp_max(1)


def tie_probability(first: Tensor, second: Tensor) -> Tensor:
    """``(N,)`` p-values, or a little more, of the two-sided binomial test that two classes are equally likely.

    Parameters
    ----------
    first, second : Tensor
        ``(N,)`` int64 votes of either class, ``first`` the larger. Where neither has any, the value is 1.
    """
    return torch.tensor(
        [
            math.nextafter(min(1.0, 2 * float(binomial_tail(one, one + other, 0.5))), 2) if one else 1.0
            for one, other in zip(first.tolist(), second.tolist(), strict=True)
        ],
        dtype=torch.float64,
    ).clamp_max(1)


def lower_quantile(p: Tensor) -> Tensor:
    """Float64 ``z`` just below the standard normal quantile: ``Phi(z) <= p``, for ``p`` inside [0, 1]."""

    def quantile(chance: float) -> float:
        if not 0 < chance < 1:
            return math.copysign(math.inf, chance - 0.5)
        return next(z for z in _below(_quantile(chance)) if normal_cdf(z)[1] <= Decimal(chance))

    return _each(quantile, p)


def upper_quantile(p: Tensor) -> Tensor:
    """Float64 ``z`` just above the standard normal quantile: ``Phi(z) >= p``, for ``p`` inside [0, 1]."""

    def quantile(chance: float) -> float:
        if not 0 < chance < 1:
            return math.copysign(math.inf, chance - 0.5)
        return next(-z for z in _below(-_quantile(chance)) if normal_cdf(-z)[0] >= Decimal(chance))

    return _each(quantile, p)


def _quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _shares(p: float) -> Iterator[float]:
    """``p`` and smaller numbers, by shares that grow from a last place to a half."""
    share = 2.0**-52
    while True:
        yield p
        p *= 1 - share
        share = min(2 * share, 0.5)


def _below(z: float) -> Iterator[float]:
    """``z`` and smaller numbers, by steps that grow from a last place."""
    step = max(abs(z), _TINY) * 2.0**-52
    while True:
        yield z
        z -= step
        step *= 2


def _each(function: Callable[[float], float], values: Tensor) -> Tensor:
    """A function of numbers, computed once for each that occurs."""
    distinct, place = values.double().cpu().unique(return_inverse=True)
    return torch.tensor([function(value) for value in distinct.tolist()], dtype=torch.float64)[place]
