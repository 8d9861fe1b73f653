"""What a count of votes says of a probability: one-sided bounds and a test of two classes, all exact.

Bounds: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26, 1934.
"""

import torch
from torch import Tensor

__all__ = ["lower_bound", "tie_probability", "upper_bound"]


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

    s = successes.double().clamp_min(1).numpy()  # betaincinv has no value at 0, where the bound is 0
    return torch.where(successes > 0, torch.from_numpy(betaincinv(s, trials - s + 1, alpha)), 0.0)


def upper_bound(successes: Tensor, trials: int, alpha: float) -> Tensor:
    """``(N,)`` float64 upper bounds, each below the truth with probability at most ``alpha``; see `lower_bound`."""
    return 1 - lower_bound(trials - successes, trials, alpha)


def tie_probability(first: Tensor, second: Tensor) -> Tensor:
    """``(N,)`` p-values of the two-sided binomial test that two classes are equally likely.

    Parameters
    ----------
    first, second : Tensor
        ``(N,)`` int64 votes of either class, ``first`` the larger. Where neither has any, the value is 1.
    """
    from scipy.special import betainc

    total = first + second
    larger = first.double().clamp_min(1).numpy()
    tail = betainc(larger, second.double().numpy() + 1, 0.5)  # P(Binomial(total, 1/2) >= first)
    return torch.where(total > 0, torch.from_numpy(2 * tail).clamp_max(1), 1.0)
