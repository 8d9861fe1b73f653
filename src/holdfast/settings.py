"""Settings given by name, as text or numbers, for a dataclass that has them as fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from holdfast.arguments import LARGEST, as_float, is_number, shown
from holdfast.errors import SettingError

__all__ = ["build", "check", "names", "read"]


@dataclass(frozen=True)
class _Kind:
    """What a setting may be: in words, as a test, and as Python has it, whatever numpy's numbers it came as."""

    words: str
    fits: Callable[[Any], bool]
    plain: Callable[[Any], Any]


def check(settings: Any, name: str) -> None:
    """Refuse a dataclass of settings where a number, word or choice is something else than its field says.

    Numbers of other kinds become those of the fields: numpy's wrap around, and whole ones may be larger than torch's.

    Parameters
    ----------
    settings : dataclass
        As it was made from Python, where nothing else looks at types.
    name : str
        What a user calls it.

    Raises
    ------
    SettingError
        Naming the first that does not fit.
    """
    for setting, hint in _hints(settings.__class__).items():
        value = getattr(settings, setting)
        kinds = _kinds(hint)
        if not kinds:
            continue
        kind = next((kind for kind in kinds if kind.fits(value)), None)
        if kind is None:
            wanted = " or ".join(kind.words for kind in kinds)
            raise SettingError(f"{name}: {setting} must be {wanted}, got {shown(value)}")
        object.__setattr__(settings, setting, kind.plain(value))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _is_whole(value: Any) -> bool:
    # Products of two such numbers, as of steps and restarts, fit into int64.
    return is_number(value) and isinstance(value, Integral) and abs(value) < 10**9


def _kinds(hint: Any) -> list[_Kind]:
    """What a plain setting may be; nothing for one that is no number or word."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return [kind for part in parts for kind in part] if all(parts) else []
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return [_Kind(f"one of {', '.join(map(str, choices))}", lambda v: isinstance(v, str) and v in choices, str)]
    return _PLAIN.get(hint, [])


_PLAIN: dict[Any, list[_Kind]] = {
    int: [_Kind("a whole number of at most 9 digits", _is_whole, int)],
    float: [_Kind("a number that single precision can hold", lambda v: abs(as_float(v)) <= LARGEST, float)],
    bool: [_Kind("True or False", lambda v: isinstance(v, bool | np.bool_), bool)],
    str: [_Kind("a word", lambda v: isinstance(v, str), str)],
    type(None): [_Kind("None", lambda v: v is None, lambda v: v)],
}


def build(kind: type, name: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """Make a frozen dataclass of settings.

    Parameters
    ----------
    kind : type
        The dataclass.
    name : str
        What a user calls it.
    settings : mapping
        Fields by name, as numbers or as text that reads as what the field is annotated with.
    given
        Fields that are not a user's to set, as they are.

    Raises
    ------
    SettingError
        When there is no such setting, or a value does not fit.
    """
    return kind(**given, **read(kind, name, settings, *given))


def read(kind: type, name: str, settings: Mapping[str, Any], *given: str) -> dict[str, Any]:
    """Settings as values of the fields' types; parameters and errors are those of :func:`build`."""
    known = names(kind, *given)
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise SettingError(f"{name} has no setting {unknown[0]!r}: its settings are {', '.join(known) or 'none'}")
    hints = get_type_hints(kind)
    values = {}
    for key, value in settings.items():
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise SettingError(f"{name}: setting {key!r}: {error.errors()[0]['msg']}") from None
    return values


def names(kind: type, *given: str) -> list[str]:
    """The settings of such a dataclass, without those that are ``given``."""
    return [field.name for field in fields(kind) if field.init and field.name not in given]
