"""Named cascades for images that are turned, moved and resized, and for those that a norm ball follows."""

from collections.abc import Callable, Mapping

from holdfast.attacks import APGD, AnnealedPGD, Grid, RefinedGrid
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade
from holdfast.engine import Attack, Stage
from holdfast.threats import Threat

__all__ = ["AND_BALL", "PROTOCOLS"]

_CAVEAT = "a grid and searches from its worst points leave gaps between what they look at: only a proof closes them"

# Its points are none of the published grid's but for the corners.
_BETWEEN = RefinedGrid(rotations=24, translations=4, scales=4, keep=20)


def quick(threat: Threat) -> EvaluationProtocol:
    """The corners and a coarse grid between them, searched around; then a few gradient runs."""
    attacks: dict[str, Attack] = {
        "grid": RefinedGrid(rotations=7, translations=3, scales=3, keep=3, rounds=3),
        "pgd": AnnealedPGD(steps=9, step_size=0.3, restarts=3, start="random"),
    }
    return cascade("quick", attacks, _CAVEAT)


def fast(threat: Threat) -> EvaluationProtocol:
    """What ``standard`` finds, but for a few, for about a tenth of its passes: effort where the margin has come down.

    Every image is looked at in the corners and half-way between them, around the worst of these, and on from there by
    gradient ascent. Those whose margin has come down to a fifth of the clean one go through a coarse grid, and those
    who are then down to a twentieth through the published one, likewise.
    """
    on = AnnealedPGD(steps=9, step_size=0.1, start="best")
    stages = (
        Stage("corners", RefinedGrid(rotations=5, translations=3, scales=3, keep=3, rounds=2), on),
        Stage("coarse", RefinedGrid(rotations=12, translations=4, scales=4, keep=6, rounds=4), on, margins=(0.2,)),
        Stage("grid", RefinedGrid(keep=20), on, margins=(0.05,)),
    )
    caveat = "fast spends its effort where margins are low: confirm with standard what matters"
    return EvaluationProtocol("fast", stages, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """The published grid and one between its points, searched on around their worst; ascent from there and anywhere.

    The grid is that of Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape of spatial robustness",
    ICML 2019, arXiv:1712.02779, with 31 angles and 5 moves along each axis, and 5 sizes where the threat allows some.
    Whatever it breaks is broken here.
    """
    on = AnnealedPGD(steps=20, step_size=0.1, start="best")
    stages = (
        Stage("grid", RefinedGrid(keep=20), on),
        Stage("between", _BETWEEN, on),
        Stage("pgd", AnnealedPGD(steps=20, step_size=0.3, restarts=20, start="random")),
    )
    return EvaluationProtocol("standard", stages, _CAVEAT)


def blackbox(threat: Threat) -> EvaluationProtocol:
    """The published grid, from classes alone; then one between its points, searched around by scores."""
    attacks: dict[str, Attack] = {
        "grid": Grid(),
        "between": _BETWEEN,
    }
    return cascade("blackbox", attacks, "blackbox knows no gradient: an attacker who has the model can do more")


PROTOCOLS: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": quick,
    "fast": fast,
    "standard": standard,
    "blackbox": blackbox,
}


def _and_ball(
    name: str, grid: RefinedGrid, steps: int, restarts: int, targets: int
) -> Callable[[Threat], EvaluationProtocol]:
    """Moves first, then gradient ascent in moves and perturbation together, from the worst move and from anywhere."""

    def protocol(threat: Threat) -> EvaluationProtocol:
        stages = (
            Stage("grid", grid, AnnealedPGD(steps=steps, step_size=1.0, start="best")),
            Stage("apgd-ce", APGD(steps=steps, restarts=restarts)),
            Stage("apgd-t", APGD(steps=steps, objective="dlr", targets=targets)),
        )
        return EvaluationProtocol(name, stages, _CAVEAT)

    return protocol


AND_BALL: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": _and_ball("quick", RefinedGrid(7, 3, 3, keep=3, rounds=2), 20, 1, 3),
    "fast": _and_ball("fast", RefinedGrid(12, 3, 3, keep=5, rounds=3), 20, 2, 5),
    "standard": _and_ball("standard", RefinedGrid(keep=20), 100, 5, 9),
    "blackbox": blackbox,
}
