"""Settings given by name, as text or numbers, for a dataclass that has them as fields."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from holdfast.arguments import is_number
from holdfast.errors import SettingError

__all__ = ["build", "check", "names", "read"]


def check(settings: Any, name: str) -> None:
    """Refuse a dataclass of settings where a number, word or choice is something else than its field says.

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
        if kinds and not any(fits(value) for _, fits in kinds):
            wanted = " or ".join(what for what, _ in kinds)
            raise SettingError(f"{name}: {setting} must be {wanted}, got {_shown(value)}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _kinds(hint: Any) -> list[tuple[str, Callable[[Any], bool]]]:
    """What a plain setting may be, in words and as a test; nothing for one that is no number or word."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return [kind for part in parts for kind in part] if all(parts) else []
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return [(f"one of {', '.join(map(str, choices))}", lambda v: isinstance(v, str) and v in choices)]
    return _PLAIN.get(hint, [])


_PLAIN: dict[Any, list[tuple[str, Callable[[Any], bool]]]] = {
    int: [("a whole number", lambda v: is_number(v) and isinstance(v, Integral))],
    float: [("a number", is_number)],
    bool: [("True or False", lambda v: isinstance(v, bool))],
    str: [("a word", lambda v: isinstance(v, str))],
    type(None): [("None", lambda v: v is None)],
}


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


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
