"""What an audit is asked to prove."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from holdfast.audit.protocols import endless
from holdfast.certify.certificate import METHODS, Method
from holdfast.certify.certify import Certifier
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball, Threat
from holdfast.threats.budget import parse_budget

__all__ = ["CertificationPlan"]


@dataclass(frozen=True)
class CertificationPlan:
    """How the lower end of the bracket is found.

    Parameters
    ----------
    method : str
        One of :data:`holdfast.certify.METHODS`.
    seconds : float
        How long branch and bound may take, an example.
    budgets : tuple of float
        Budgets below the threat's own at which to say how much is certified.
    threat : Ball
        What the proofs are about.
    """

    method: Method
    seconds: float
    budgets: tuple[float, ...]
    threat: Ball

    @classmethod
    def of(cls, method: str, seconds: float, budgets: Sequence[float | str], threat: Threat) -> Self | None:
        """The plan as a user writes it; None where nothing is to be proved of the model itself.

        Raises
        ------
        SettingError
            When there is no such method, the threat has no finite budget, or a number makes no sense.
        """
        if method in ("none", "smoothing"):
            if budgets:
                raise SettingError(
                    "certify_budgets: a certified curve needs proofs; choose ibp, crown or more with certify"
                )
            return None
        if method not in METHODS:
            raise SettingError(f"certify: unknown method {method!r}; choose none, {', '.join(METHODS)} or smoothing")
        if not 0 < seconds < math.inf:
            raise SettingError(f"certify_seconds: a proof needs a positive, finite time an example, got {seconds:g}")
        if not isinstance(threat, Ball):
            raise SettingError(f"certify: there are proofs for norm balls only, not for {threat.name}")
        if endless(threat):
            raise SettingError(f"certify: a proof needs a finite budget, but the threat is {threat.name}")
        return cls(method, float(seconds), _smaller(budgets, threat), threat)

    def certifier(self, model: nn.Module, query: Query, x: Tensor) -> Certifier:
        """What proves something of a model, normalisation included, that takes inputs like ``x``."""
        inputs = query.prepare(x).contiguous()
        return Certifier.of(model, inputs, self.method, seconds=self.seconds, logits=query.bare_logits)

    def to_dict(self) -> dict[str, Any]:
        """Everything that verdicts depend on, the threat aside."""
        return {"method": self.method, "seconds": self.seconds, "budgets": self.budgets}


def _smaller(budgets: Sequence[float | str], threat: Ball) -> tuple[float, ...]:
    """Budgets in rising order, each of them below the threat's."""
    found = []
    for budget in budgets:
        eps = parse_budget(budget)
        if not isinstance(threat.eps, float) or not isinstance(eps, float):
            raise SettingError("certify_budgets: a certified curve needs one budget for all examples")
        if not 0 < eps < threat.eps:
            raise SettingError(
                f"certify_budgets: {eps:g} does not lie between 0 and the threat's budget {threat.eps:g}; budgets of a "
                "certified curve are smaller than that of the audit"
            )
        if threat.norm == "l0" and eps % 1:
            raise SettingError(f"certify_budgets: an L0 budget counts coordinates, so {eps:g} must be a whole number")
        found.append(eps)
    return tuple(sorted(set(found)))
