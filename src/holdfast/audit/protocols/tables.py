"""Cascades for rows of tables: constrained APGD where the model has a gradient, then a search of what survives it."""

from collections.abc import Callable, Mapping

from holdfast.attacks import APGD, Evolution
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.threats import Threat

__all__ = ["PROTOCOLS"]


def quick(threat: Threat) -> EvaluationProtocol:
    """A first look: APGD on the margin with 20 steps from 2 starts, then 100 queries of evolution.

    APGD under rules is CAPGD: Simonetto, Ghamizi and Cordy, "Constrained adaptive attack: effective adversarial attack
    against deep neural networks for tabular data", NeurIPS 2024, arXiv:2406.00775. The published one mends equalities
    after each step and is fined for other relations; here each step ends at a row that obeys all rules.
    """
    caveat = "quick is a first look: longer attacks can lower its robust accuracy"
    return _climbed_and_searched("quick", APGD(steps=20, restarts=2, objective="margin"), 100, caveat)


def fast(threat: Threat) -> EvaluationProtocol:
    """Nearly what ``standard`` finds, for a tenth of its passes: APGD with 30 steps from 3 starts, then 200 queries."""
    caveat = "fast searches for a tenth of the passes of standard: confirm with standard what matters"
    return _climbed_and_searched("fast", APGD(steps=30, restarts=3, objective="margin"), 200, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """Constrained APGD on cross-entropy and on the margin, then evolution for the survivors.

    100 steps from 5 starts each, and two runs of 1,000 queries. The order is that of CAA (the paper above): a gradient
    attack first, and the search, MOEVA there, for what it leaves.
    """
    climbs = {"apgd-ce": APGD(restarts=5), "apgd-margin": APGD(restarts=5, objective="margin")}
    search = {"evolution": Evolution(queries=1000, restarts=2)}
    caveat = "standard climbs and searches among the rows that obey the rules: an upper bound"
    return cascade("standard", {**climbs, **search}, caveat)


def blackbox(threat: Threat) -> EvaluationProtocol:
    """Evolution alone, for trees, pipelines and attackers without gradients: 5 runs of 1,000 queries."""
    caveat = "blackbox knows no gradient: an attacker who has the model can do more"
    return cascade("blackbox", {"evolution": Evolution(queries=1000, restarts=5)}, caveat)


def _climbed_and_searched(name: str, climb: APGD, queries: int, caveat: str) -> EvaluationProtocol:
    return cascade(name, {"apgd": climb, "evolution": Evolution(queries=queries)}, caveat)


PROTOCOLS: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": quick,
    "fast": fast,
    "standard": standard,
    "blackbox": blackbox,
}
