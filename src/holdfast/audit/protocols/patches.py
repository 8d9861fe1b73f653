"""Named cascades of attacks for patches."""

from collections.abc import Callable, Mapping

from holdfast.attacks import PatchPGD, PatchRS
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.engine import Attack, Stage
from holdfast.threats import Threat

__all__ = ["PROTOCOLS"]

# All places of images of up to 32 x 32 pixels.
_ALL = 1000


def quick(threat: Threat) -> EvaluationProtocol:
    """One run of :class:`~holdfast.attacks.PatchPGD`: 100 places, and ten steps at the best four of them."""
    caveat = "quick looks at 100 places of each image and climbs at four: longer searches can lower its robust accuracy"
    return cascade("quick", {"patch-pgd": PatchPGD(looks=100, climbs=4, steps=10)}, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """All places of images of up to 32 x 32 pixels, again towards each of three classes; then a random search.

    :class:`~holdfast.attacks.PatchPGD` looks at up to 1,000 places and makes ten steps at the best 32, away from the
    label and then towards the three next classes; :class:`~holdfast.attacks.PatchRS` has 3,000 queries.
    """
    caveat = (
        f"standard looks at up to {_ALL:,} places of each image, all of them up to 32 x 32 pixels, and climbs at the "
        "best 32: strong, and still an upper bound"
    )
    attacks: dict[str, Attack] = {
        "patch-pgd": PatchPGD(_ALL),
        "patch-pgd-t": PatchPGD(_ALL, targets=3),
        "patch-rs": PatchRS(3000),
    }
    return cascade("standard", attacks, caveat)


def fast(threat: Threat) -> EvaluationProtocol:
    """Most of what ``standard`` finds, for about a tenth of its passes.

    200 places, eight steps at the best six; then, where the margin has come down to 40 % of the clean one, the same
    towards each of two classes, with steps at four.
    """
    caveat = (
        "fast looks at 200 places of each image, and again where margins are low: confirm with standard what matters"
    )
    towards = Stage("patch-pgd-t", PatchPGD(looks=200, climbs=4, steps=8, targets=2), margins=(0.4,))
    stages = (Stage("patch-pgd", PatchPGD(looks=200, climbs=6, steps=8)), towards)
    return EvaluationProtocol("fast", stages, caveat)


def blackbox(threat: Threat) -> EvaluationProtocol:
    """:class:`~holdfast.attacks.PatchRS`, 5,000 queries."""
    caveat = "blackbox knows no gradient: an attacker who has the model can do more"
    return cascade("blackbox", {"patch-rs": PatchRS()}, caveat)


PROTOCOLS: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": quick,
    "fast": fast,
    "standard": standard,
    "blackbox": blackbox,
}
