"""How sure a share can be."""

__all__ = ["clopper_pearson"]


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided binomial interval of a proportion (Clopper and Pearson, Biometrika 26, 1934).

    Returns
    -------
    tuple of float
        Lower and upper end, quantiles of beta distributions; ``(0, 1)`` where there were no trials.
    """
    from scipy.special import betaincinv  # half of what importing holdfast would cost, so only where it is used

    tail = (1 - confidence) / 2
    failures = trials - successes
    lower = 0.0 if successes == 0 else float(betaincinv(successes, failures + 1, tail))
    upper = 1.0 if failures == 0 else float(betaincinv(successes + 1, failures, 1 - tail))
    return lower, upper
