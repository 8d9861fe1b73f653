"""Threats as a user types them."""

from collections.abc import Callable

from holdfast.errors import SettingError
from holdfast.threats.ball import L0, L1, L2, BoxArgument, Linf
from holdfast.threats.patch import parse_patch
from holdfast.threats.threat import Threat

__all__ = ["parse_threat"]

_FAMILIES: dict[str, Callable[..., Threat]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0, "patch": parse_patch}


def parse_threat(spec: str, box: BoxArgument = (0.0, 1.0)) -> Threat:
    """Read ``"NORM:BUDGET"``, such as ``"linf:8/255"``, ``"l2:0.5"``, ``"l1:12"`` or ``"l0:10"``; or ``"patch:5x5"``.

    ``"l2:inf"`` asks for the nearest adversarial input.

    Raises
    ------
    SettingError
        When the threat is unknown or its budget makes no sense.
    """
    if not isinstance(spec, str):
        raise SettingError(f"threat: write NORM:BUDGET, such as linf:8/255, not a {type(spec).__name__}")
    norm, colon, budget = spec.partition(":")
    make = _FAMILIES.get(norm.strip().lower())
    if make is None or not colon:
        raise SettingError(f"unknown threat {spec!r}: write NORM:BUDGET with NORM one of {', '.join(_FAMILIES)}")
    return make(budget.strip(), box)
