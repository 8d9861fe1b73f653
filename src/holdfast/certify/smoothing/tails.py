"""Tails of the binomial and of the normal law, with bounds that hold whatever is rounded on the way.

Libraries compute these to about fifteen digits, by methods whose errors nobody states. Here the one factor that is
large or small, and the only one that needs logarithms, is taken with 50 decimal digits (:mod:`decimal` rounds its
logarithms and exponentials correctly); what remains are sums of positive terms, whose rounding errors can be counted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["binomial_tail", "failures", "normal_cdf", "round_down", "round_up"]

_DIGITS = 50
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")

# Of numbers that took at most 10^4 operations with so many digits, cancellation of 10 digits included.
_WIDENED = Decimal("1e-34")
_LAST = Decimal("1e-49")

# Below, factorials are computed; above, so many terms of Stirling's series leave less than 1e-19.
_STIRLING = 64
_BERNOULLI = ((1, 12), (-1, 360), (1, 1260), (-1, 1680))
_TRUNCATED = Decimal("1e-18")

_UNIT = 2.0**-53
_CHUNK = 1 << 12


def binomial_tail(successes: int, trials: int, p: float) -> Decimal:
    """An upper bound of ``P(Binomial(trials, p) >= successes)``.

    The first term times ``1 + r_0 + r_0 r_1 + ...``, where ``r_i`` is the quotient of two terms that follow each other.
    The quotients fall, so that a geometric series bounds what is left out.

    Parameters
    ----------
    successes : int
        From 1 to ``trials``.
    trials : int
        At least 1.
    p : float
        Inside [0, 1].
    """
    if p <= 0 or p >= 1:
        return Decimal(1 if p >= 1 else 0)
    with _digits():
        odds = float(Decimal(p) / (1 - Decimal(p)))
        first = _mass(successes, trials, p)
    rest, done = trials - successes, 0
    total = last = 1.0
    left_out = 0.0
    while done < rest:
        i = np.arange(done, min(done + _CHUNK, rest), dtype=np.float64)
        with np.errstate(over="ignore"):
            terms = last * np.cumprod((rest - i) / (successes + 1 + i) * odds)
            total, last, done = total + float(terms.sum()), float(terms[-1]), done + len(terms)
        quotient = (rest - done) / (successes + 1 + done) * odds
        left_out = 2 * last * quotient / (1 - quotient) if quotient < 1 else math.inf
        if left_out <= _UNIT * total:
            break
    if not math.isfinite(total + left_out):
        return Decimal(1)
    # A quotient takes three roundings and a product of them one more; then one a sum.
    return first * Decimal((total + left_out) * (1 + 8 * _UNIT * (done + 2)))


def failures(trials: int, p: float, low: int, high: int) -> tuple[NDArray[np.float64], float, float]:
    """The law of the number of failures, in a window about its mode.

    Parameters
    ----------
    trials : int
        At least 1.
    p : float
        The probability of success, inside (0, 1).
    low, high : int
        The window's ends, from 0 to ``trials``, with the mode between them.

    Returns
    -------
    tuple
        ``(high - low + 1,)`` probabilities of ``low`` to ``high`` failures; the largest relative error of any of them;
        and a bound of the mass outside.
    """
    with _digits():
        odds = float((1 - Decimal(p)) / Decimal(p))
        mode = min(max(int((trials + 1) * (1 - p)), low), high)
        centre = float(_mass(trials - mode, trials, p))
    up = np.arange(mode, high, dtype=np.float64)
    down = np.arange(mode, low, -1, dtype=np.float64)
    above = np.cumprod((trials - up) / (up + 1) * odds)
    below = np.cumprod(down / (trials - down + 1) / odds)
    mass = centre * np.concatenate([below[::-1], [1.0], above])
    error = 4 * _UNIT * (len(mass) + 2)
    falling, rising = low / (trials - low + 1) / odds, (trials - high) / (high + 1) * odds
    outside = sum(
        float(end) * quotient / (1 - quotient) if quotient < 1 else 1.0
        for end, quotient in ((mass[0], falling), (mass[-1], rising))
    )
    return mass, error, outside * (1 + 2 * error)


@lru_cache(maxsize=4096)
def normal_cdf(z: float) -> tuple[Decimal, Decimal]:
    """Bounds of the standard normal distribution function, nearly equal.

    Up to 6 by the series ``1/2 + density (z + z^3/3 + z^5/(3 5) + ...)``; beyond, by two convergents of Laplace's
    continued fraction ``density / (z + 1/(z + 2/(z + ...)))`` for the tail, between which it lies.
    """
    if z == 0:
        return Decimal("0.5"), Decimal("0.5")
    if math.isinf(z):
        return (Decimal(1), Decimal(1)) if z > 0 else (Decimal(0), Decimal(0))
    with _digits():
        x = abs(Decimal(z))
        density = (-x * x / 2).exp() / (2 * _PI).sqrt()
        if x <= 6:
            term = total = x
            k = 3
            while term > total * Decimal(10) ** -_DIGITS or x * x > k:
                term *= x * x / k
                total += term
                k += 2
            tails = [Decimal("0.5") - density * total] * 2
        else:
            tails = [density / _laplace(x, depth) for depth in (100, 101)]
        low, high = min(tails) * (1 - _WIDENED), max(tails) * (1 + _WIDENED)
        return (low, high) if z < 0 else (1 - high - _LAST, 1 - low + _LAST)


def round_up(value: Decimal) -> float:
    """The smallest float that is no less."""
    nearest = float(value)
    return nearest if Decimal(nearest) >= value else math.nextafter(nearest, math.inf)


def round_down(value: Decimal) -> float:
    """The largest float that is no more."""
    return -round_up(value.copy_negate())


def _laplace(x: Decimal, depth: int) -> Decimal:
    value = x
    for k in range(depth, 0, -1):
        value = x + k / value
    return value


def _mass(successes: int, trials: int, p: float) -> Decimal:
    """``P(Binomial(trials, p) = successes)``, rounded up by a share of at most 1e-16."""
    chance = Decimal(p)
    logarithm = _log_factorial(trials) - _log_factorial(successes) - _log_factorial(trials - successes) + 4 * _TRUNCATED
    if successes:
        logarithm += successes * chance.ln()
    if successes < trials:
        logarithm += (trials - successes) * (1 - chance).ln()
    return logarithm.exp()


@lru_cache(maxsize=4096)
def _log_factorial(n: int) -> Decimal:
    """``ln n!``, off by at most `_TRUNCATED`."""
    with _digits():
        if n < _STIRLING:
            return Decimal(math.factorial(n)).ln()
        x = Decimal(n)
        series = sum(Decimal(a) / (b * x ** (2 * i + 1)) for i, (a, b) in enumerate(_BERNOULLI))
        return x * x.ln() - x + (2 * _PI * x).ln() / 2 + series


@contextmanager
def _digits() -> Iterator[None]:
    with localcontext(Context(prec=_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX)):
        yield
