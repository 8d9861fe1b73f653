"""Settings given by name, as text or numbers, for a dataclass that has them as fields."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from holdfast.errors import SettingError

__all__ = ["build", "names", "read"]


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
