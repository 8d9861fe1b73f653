"""Cascades for sets of which no more is known than what every set offers."""

from collections.abc import Callable, Mapping

from holdfast.attacks import APGD, WorstOfK
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.threats import Climbable, Threat

__all__ = ["PROTOCOLS"]

_CAVEAT = "the set is one that no attack has been made for: {} draws from it, and climbs where it can"


def _drawn(name: str, k: int, restarts: int) -> Callable[[Threat], EvaluationProtocol]:
    def protocol(threat: Threat) -> EvaluationProtocol:
        climbing = {"apgd-ce": APGD(steps=50, restarts=restarts)} if restarts and isinstance(threat, Climbable) else {}
        return cascade(name, {"worst-of-k": WorstOfK(k), **climbing}, _CAVEAT.format(name))

    return protocol


PROTOCOLS: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": _drawn("quick", 50, 1),
    "fast": _drawn("fast", 100, 2),
    "standard": _drawn("standard", 1000, 10),
    "blackbox": _drawn("blackbox", 1000, 0),
}
