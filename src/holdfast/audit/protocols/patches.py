"""Named cascades of attacks for patches."""

from collections.abc import Callable, Mapping

from holdfast.attacks import PatchPGD, PatchRS
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.engine import Attack, Stage
from holdfast.threats import Threat

__all__ = ["PROTOCOLS"]

# All that is shown at all places of images of up to 32 x 32 pixels.
_ALL = 3072


def quick(threat: Threat) -> EvaluationProtocol:
    """One run of :class:`~holdfast.attacks.PatchPGD`: 100 looks, and ten steps at the best four places."""
    caveat = "quick shows 100 patches and climbs at four places: longer searches can lower its robust accuracy"
    return cascade("quick", {"patch-pgd": PatchPGD(looks=100, climbs=4, steps=10)}, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """All places of images of up to 32 x 32 pixels, again towards each of three classes; then a random search.

    :class:`~holdfast.attacks.PatchPGD` looks up to 3,072 times and makes ten steps at the best 32 places, away from the
    label and then towards the three next classes; :class:`~holdfast.attacks.PatchRS` has 3,000 queries.
    """
    caveat = (
        "standard looks at all places of images of up to 32 x 32 pixels, and climbs at the best 32: strong, and still "
        "an upper bound"
    )
    attacks: dict[str, Attack] = {
        "patch-pgd": PatchPGD(_ALL),
        "patch-pgd-t": PatchPGD(_ALL, targets=3),
        "patch-rs": PatchRS(3000),
    }
    return cascade("standard", attacks, caveat)


def fast(threat: Threat) -> EvaluationProtocol:
    """What ``standard`` finds, but for a few, for a tenth of its passes: effort where the margin comes down.

    100 looks, and six steps at the best place; then, where the margin has come down to 70 % of the clean one, 500 looks
    and eight steps at the best 14.
    """
    caveat = "fast looks closely where margins are low: confirm with standard what matters"
    stages = (
        Stage("patch-pgd", PatchPGD(looks=100, climbs=1, steps=6)),
        Stage("patch-pgd-2", PatchPGD(looks=500, climbs=14, steps=8), margins=(0.7,)),
    )
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
