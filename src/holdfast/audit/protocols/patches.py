"""Named cascades of attacks for patches."""

from collections.abc import Callable, Mapping

from holdfast.attacks import PatchPGD, PatchRS
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.engine import Stage
from holdfast.threats import Threat

__all__ = ["PROTOCOLS"]

# All places of images of up to 32 x 32 pixels.
_ALL = 1000


def quick(threat: Threat) -> EvaluationProtocol:
    """A first look: 100 places, and ten steps at the best four of them; up to 145 forwards and 41 backwards."""
    caveat = "quick looks at 100 places of each image and climbs at four: longer searches can lower its number"
    return cascade("quick", {"patch-pgd": PatchPGD(looks=100, climbs=4, steps=10)}, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """Every place of images of up to 32 x 32 pixels, away from the label and towards each of three classes."""
    caveat = (
        f"standard looks at {_ALL} places of each image, all of them in images of up to 32 x 32 pixels, four times, and "
        "climbs at the best: strong, and still an upper bound"
    )
    return cascade("standard", {"patch-pgd": PatchPGD(looks=_ALL), "patch-pgd-t": PatchPGD(looks=_ALL, targets=3)}, caveat)
