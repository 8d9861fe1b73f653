"""How sure a share can be."""

from scipy import stats

__all__ = ["clopper_pearson"]


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided binomial interval of a proportion (Clopper and Pearson, Biometrika 26, 1934).

    Returns
    -------
    tuple of float
        Lower and upper end; ``(0, 1)`` where there were no trials.
    """
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)
