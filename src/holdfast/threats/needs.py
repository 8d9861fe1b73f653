"""What an algorithm needs of a threat, said in one line where it is not there."""

from typing import TypeVar

from torch import Tensor

from holdfast.errors import SettingError
from holdfast.threats.ball import Ball
from holdfast.threats.patch import Patch
from holdfast.threats.threat import Climbable, Gridded, Scalable, Threat

__all__ = ["needs_ball", "needs_climbing", "needs_grid", "needs_patch", "scaled"]

T = TypeVar("T", bound=Threat)

_NORMS = ("linf", "l2", "l1", "l0")


def needs_ball(who: str, threat: Threat, instead: str, norms: tuple[str, ...] = _NORMS) -> Ball:
    """The threat, if it is a ball in one of some norms.

    Raises
    ------
    SettingError
        When it is not; ``instead`` names what to use then.
    """
    if not isinstance(threat, Ball) or threat.norm not in norms:
        where = "norm balls" if norms == _NORMS else ", ".join(norms)
        raise SettingError(f"{who} works in {where} only, not under {threat.name}: use {instead} there")
    return threat


def needs_climbing(who: str, threat: Threat, instead: str = "worst-of-k") -> Climbable:
    """The threat, if a gradient leads from choice to choice in it.

    Raises
    ------
    SettingError
        When it does not; ``instead`` names what to use then.
    """
    if not isinstance(threat, Climbable):
        raise SettingError(
            f"{who} climbs from choice to choice, which {threat.name} has no steps for: use {instead} there"
        )
    return threat


def needs_grid(who: str, threat: Threat) -> Gridded:
    """The threat, if a grid spans it.

    Raises
    ------
    SettingError
        When none does.
    """
    if not isinstance(threat, Gridded):
        raise SettingError(f"{who} looks through a grid of moves, and {threat.name} has none: use worst-of-k there")
    return threat


def needs_patch(who: str, threat: Threat) -> Patch:
    """The threat, if it is a patch.

    Raises
    ------
    SettingError
        When it is none.
    """
    if not isinstance(threat, Patch):
        raise SettingError(f"{who} moves a patch over images, and {threat.name} is none: use worst-of-k there")
    return threat


def scaled(threat: T, share: float | Tensor) -> T:
    """The threat with its budgets multiplied by ``share``, one number or ``(N,)``.

    Raises
    ------
    SettingError
        When there are no smaller and larger ones of its kind.
    """
    if isinstance(share, float) and share == 1.0:
        return threat
    if not isinstance(threat, Scalable):
        raise SettingError(f"{threat.name} has no budget to scale: train against the whole of it from the start")
    return threat.scaled(share)
