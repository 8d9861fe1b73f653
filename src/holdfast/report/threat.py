"""What the adversary was allowed, in a few words."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["allowed", "in_units"]


def allowed(threat: Mapping[str, Any]) -> str:
    """The set that a result is about: ``"linf within 0.1, inside [0, 1]"``, or ``"rotate:30deg, inside [0, 1]"``."""
    name, norm = threat.get("name", ""), threat.get("norm", "")
    if not norm:
        return f"{name or 'a set of its own'}{_inside(threat)}"
    eps = [math.inf if one is None else one for one in _listed(threat["eps"])]
    budget = f"{min(eps):g}" if len(eps) == 1 else f"{min(eps):g} to {max(eps):g}, one an example"
    within = f"{norm} {'at any distance' if eps == [math.inf] else f'within {budget}'}"
    is_ball = not name or name.startswith(f"{norm}:")  # the oldest results have no names
    return f"{within if is_ball else f'{name}, {within}'}{_inside(threat)}"


def in_units(distance: float, threat: Mapping[str, Any]) -> str:
    """A distance in the units of the budget."""
    return f"{distance:.4g} in {threat['norm']}" if "norm" in threat else f"{distance:.4g} of the budget"


def _inside(threat: Mapping[str, Any]) -> str:
    bounds = threat.get("box")
    if bounds is None:
        return ""
    if all(isinstance(bound, float) for bound in bounds):
        return f", inside [{bounds[0]:g}, {bounds[1]:g}]"
    return ", inside bounds of its own for each feature"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
