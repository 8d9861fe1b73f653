"""Rules to begin with, written from training data."""

import json
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.errors import DataError, SettingError

__all__ = ["draft"]


def draft(x: Tensor, names: Sequence[str], unit: str = "range") -> str:
    """The text of a rules file in which every column stays as it is, for a person to say which may move.

    Columns of whole numbers are marked, and each unit is measured on the rows given; columns called ``NAME=VALUE``
    that are one-hot together become the group ``NAME``.

    Parameters
    ----------
    x : Tensor
        ``(N, d)`` rows of training data.
    names : sequence of str
        What the columns are called.
    unit : str
        ``"range"`` or ``"std"``.

    Raises
    ------
    DataError
        When rows and names do not fit, or a number is none.
    SettingError
        When the unit is another.
    """
    if unit not in ("range", "std"):
        raise SettingError(f"unit: write range or std, not {unit!r}")
    if x.dim() != 2 or x.shape[1] != len(names) or not len(x):
        raise DataError(f"x: rows of {len(names)} columns are needed, one for each name, not {tuple(x.shape)}")
    x = x.double()
    if not bool(x.isfinite().all()):
        raise DataError("x: every number must be finite, to measure a unit by")
    groups = _groups(x, names)
    grouped = {name for members in groups.values() for name in members}
    lines = ['norm = "linf"', "eps = 0.1", "relations = [", "]", "", "[columns]"]
    for column, name in zip(x.unbind(1), names, strict=True):
        lines.append(f"{_key(name)} = {{{'' if name in grouped else _measured(column, unit)}}}")
    if groups:
        lines += ["", "[groups]"]
        lines += [f"{_key(name)} = {{ columns = {json.dumps(members)} }}" for name, members in groups.items()]
    return "\n".join(lines) + "\n"


def _measured(column: Tensor, unit: str) -> str:
    low, high = (float(end) for end in column.aminmax())
    kind = "integer" if bool((column == column.round()).all()) else "real"
    if low == high:
        return f' kind = "{kind}" '
    measure = f"[{low!r}, {high!r}]" if unit == "range" else repr(float(column.std(correction=0)))
    return f' kind = "{kind}", unit = "{unit}", {unit} = {measure} '


def _groups(x: Tensor, names: Sequence[str]) -> dict[str, list[str]]:
    """Names of groups with their columns, those of which every row has exactly one 1."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if "=" in name:
            found.setdefault(name.partition("=")[0], []).append(place)
    result = {}
    for name, places in found.items():
        part = x[:, torch.tensor(places)]
        if len(places) > 1 and bool(((part == 0) | (part == 1)).all() and (part.sum(1) == 1).all()):
            result[name] = [names[place] for place in places]
    return result


def _key(name: str) -> str:
    """A name as TOML writes it before an equals sign."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
