"""What the adversary raises, under its public name; see :mod:`holdfast.tasks.objectives`."""

from holdfast.tasks.objectives import (
    ObjectiveName,
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)

__all__ = [
    "ObjectiveName",
    "cross_entropy",
    "dlr",
    "kl_divergence",
    "margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]
