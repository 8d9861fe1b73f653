"""Randomised smoothing within an audit: what the model's smoothed version is certified for.

The smoothed classifier is another one than the model that the attacks break: it answers as the model does most often
under noise. What is certified of it is no lower end of the model's bracket, and is told apart from it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from holdfast.arguments import is_number
from holdfast.audit.interval import clopper_pearson
from holdfast.audit.result import SmoothedResult
from holdfast.audit.store import RunStore
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.data import Batch
from holdfast.errors import SettingError
from holdfast.threats import Ball, Threat

__all__ = ["SmoothingPlan", "certify_smoothed", "summarise_smoothed"]

ALPHA = 0.001

# A root, a difference and two products.
_ROUNDED_UP = 1 + 2.0**-50


@dataclass(frozen=True)
class SmoothingPlan:
    """What is asked about the smoothed classifier.

    Parameters
    ----------
    sigma : float
        The scale of the Gaussian noise.
    alpha : float
        The chance that a certificate is false.
    radius : float
        The L2 radius within which every admissible change lies.
    """

    sigma: float
    alpha: float
    radius: float

    @classmethod
    def of(cls, sigma: float | None, threat: Threat, shape: tuple[int, ...]) -> Self:
        """The plan for a threat to inputs of a shape.

        Raises
        ------
        SettingError
            When there is no noise, or no L2 ball holds what the threat allows.
        """
        if not is_number(sigma) or not 0 < sigma < math.inf:
            raise SettingError("sigma: smoothing needs the positive, finite scale of its noise, such as 0.25")
        return cls(float(sigma), ALPHA, _reach(threat, math.prod(shape)))

    def to_dict(self) -> dict[str, Any]:
        """Everything that the certificates depend on."""
        return asdict(self)


def _reach(threat: Threat, dimensions: int) -> float:
    """The length of the longest admissible change."""
    if not isinstance(threat, Ball) or not isinstance(threat.eps, float) or math.isinf(threat.eps):
        raise SettingError(
            f"certify: smoothing certifies L2 radii, and {threat.name} is not a norm ball with one finite budget"
        )
    if threat.norm == "l0":
        upper, lower = (torch.as_tensor(end).double() for end in (threat.box.upper, threat.box.lower))
        return math.sqrt(min(threat.eps, dimensions)) * float((upper - lower).max()) * _ROUNDED_UP
    return threat.eps * math.sqrt(dimensions) * _ROUNDED_UP if threat.norm == "linf" else threat.eps


def certify_smoothed(
    smoothed: Smoothed, plan: SmoothingPlan, batches: Iterable[Batch], store: RunStore, report: Callable[[], None]
) -> None:
    """Certify the examples of which the store knows nothing yet, a batch at a time."""
    known = {index for (index,) in store.select("SELECT idx FROM smoothed")}
    for batch in batches:
        left = torch.tensor([index not in known for index in batch.index.tolist()], dtype=torch.bool)
        if not bool(left.any()):
            continue
        index = batch.index[left]
        found = smoothed.certify(batch.x[left], radii=(0.0, plan.radius), alpha=plan.alpha, index=index)
        prediction = [
            None if abstained else label
            for label, abstained in zip(found.prediction.tolist(), found.abstained.tolist(), strict=True)
        ]
        columns = (index.tolist(), prediction, found.radius.tolist(), found.samples.tolist())
        store.insert("smoothed", list(zip(*columns, strict=True)))
        report()


def summarise_smoothed(store: RunStore, plan: SmoothingPlan, confidence: float) -> SmoothedResult:
    """What the store holds of the smoothed classifier."""
    ((total, correct, certified, abstained, samples),) = store.select(
        "SELECT count(*), sum(prediction IS label), sum(prediction IS label AND radius >= ?), sum(prediction IS NULL), "
        "sum(samples) FROM smoothed JOIN examples USING (idx)",
        plan.radius,
    )
    return SmoothedResult(
        sigma=plan.sigma,
        alpha=plan.alpha,
        radius=plan.radius,
        accuracy=correct / total,
        certified_accuracy=certified / total,
        interval=clopper_pearson(certified, total, confidence),
        abstained=abstained,
        samples=samples,
        statement=(
            f"the smoothed classifier (noise of sigma {plan.sigma:g}), not the model itself: with confidence "
            f"{1 - plan.alpha:.1%} for each certified example, its answer is the label within L2 distance "
            f"{plan.radius:.4g}, which holds the threat's set"
        ),
    )
