"""Threats as a user types them."""

from collections.abc import Callable, Mapping
from itertools import takewhile

from holdfast.errors import SettingError
from holdfast.threats.ball import L0, L1, L2, Ball, BoxArgument, Linf
from holdfast.threats.patch import parse_patch
from holdfast.threats.spatial import MOVES, parse_spatial
from holdfast.threats.table import read_table
from holdfast.threats.threat import Threat

__all__ = ["parse_threat"]

_BALLS: Mapping[str, Callable[..., Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
_OTHERS: Mapping[str, Callable[..., Threat]] = {"patch": parse_patch}


def parse_threat(spec: str, box: BoxArgument = (0.0, 1.0)) -> Threat:
    """Read ``"NORM:BUDGET"``, such as ``"linf:8/255"``, ``"l2:0.5"``, ``"l1:12"`` or ``"l0:10"``; or another set.

    ``"l2:inf"`` asks for the nearest adversarial input. ``"rotate:30deg,shift:3px,scale:0.1"`` moves images; at its end
    may stand a ball, ``"rotate:30deg,linf:0.1"``. ``"patch:5x5"`` is a rectangle that shows anything.
    ``"table:FILE"`` reads a file of rules, which have bounds of their own: ``box`` says nothing of them.

    Raises
    ------
    SettingError
        When the threat is unknown or its budget makes no sense.
    """
    if not isinstance(spec, str):
        raise SettingError(f"threat: write NORM:BUDGET, such as linf:8/255, not a {type(spec).__name__}")
    name, colon, rest = spec.partition(":")
    if _key(name) in MOVES:
        return _moves(spec, box)
    if _key(name) == "table" and rest.strip():
        return read_table(rest.strip())
    make = {**_BALLS, **_OTHERS}.get(_key(name))
    if make is None or not colon:
        raise SettingError(f"unknown threat {spec!r}: write NORM:BUDGET with NORM one of {', '.join(_BALLS)}, "
                           "rotate:30deg,shift:3px, patch:5x5 or table:FILE")  # fmt: skip
    return make(rest.strip(), box)


def _moves(spec: str, box: BoxArgument) -> Threat:
    """Moves of images, and the ball that may follow."""
    words = spec.split(",")
    moves = list(takewhile(lambda word: _key(word) not in _BALLS, words))
    spatial = parse_spatial(moves, box)
    if len(moves) == len(words):
        return spatial
    norm, _, budget = ",".join(words[len(moves) :]).partition(":")
    return spatial.then(_BALLS[_key(norm)](budget.strip(), box))


def _key(word: str) -> str:
    return word.partition(":")[0].strip().lower()
