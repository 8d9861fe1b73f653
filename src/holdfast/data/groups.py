"""Examples told apart by what a column of their table holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.arguments import as_list, shown
from holdfast.data.rows import RawColumns, RowSource
from holdfast.data.slices import Slice
from holdfast.data.source import columns_of
from holdfast.errors import DataError
from holdfast.words import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.data.source import Source

__all__ = ["Groups", "read_groups"]

# A result has a row for each.
_MOST = 50
_READ = 1024


@dataclass(frozen=True)
class Groups:
    """The group of each example.

    Parameters
    ----------
    column : str
        What tells them apart.
    names : tuple of str
        Of the groups, in the order of numbers or of words.
    of : dict
        By the position of an example, the place of its group among the names.
    """

    column: str
    names: tuple[str, ...]
    of: dict[int, int]


def read_groups(source: Source, group: Any = None) -> Groups | None:
    """The groups of a source's examples; None where nothing tells them apart.

    Parameters
    ----------
    source : Source
        The examples.
    group : str or sequence, optional
        A column of the table, whether it is a feature or not; or one value an example. By default the column that the
        source was opened with.

    Raises
    ------
    DataError
        When there is no such column, there are more groups than a result can list, or not one value an example.
    """
    whole, start, stop = _bounds(source)
    raw = whole.raw if isinstance(whole, RowSource) else None
    if group is None:
        group = None if raw is None else raw.group
        if group is None:
            return None
    if isinstance(group, str):
        return _named(group, _column(whole, raw, group)[start:stop], start)
    values = as_list(group if not hasattr(group, "to_numpy") else group.to_numpy())
    if values is None or len(values) != len(source):
        raise DataError(
            f"group: give the name of a column, or {len(source)} values, one an example; not {shown(group)}"
        )
    return _named("group", list(map(str, values)), start)


def _bounds(source: Source) -> tuple[Source, int, int]:
    return (source.source, source.start, source.stop) if isinstance(source, Slice) else (source, 0, len(source))


def _column(whole: Source, raw: RawColumns | None, name: str) -> Sequence[str]:
    """What a column holds, in all rows."""
    if raw is not None and name in raw.names:
        return raw.read(name)
    columns = columns_of(whole) or ()
    if name in columns:
        return [f"{value:g}" for batch in whole.batches(_READ) for value in batch.x[:, columns.index(name)].tolist()]
    words = [place for place, one in enumerate(columns) if one.startswith(f"{name}=")]
    if words:
        named = [columns[place].removeprefix(f"{name}=") for place in words]
        return [named[one] for batch in whole.batches(_READ) for one in batch.x[:, words].argmax(1).tolist()]
    known = raw.names if raw is not None else columns
    listed = f"its columns are {', '.join(known[:12])}" + (", ..." if len(known) > 12 else "")
    cure = listed if known else "its features have no names; from Python give group a value an example"
    raise DataError(f"{whole.name}: no column {name} to group by; {cure}")


def _named(column: str, values: Sequence[str], first: int) -> Groups:
    """The groups of examples whose positions count from ``first``."""
    found = set(values)
    if len(found) > _MOST:
        raise DataError(
            f"group: {column} holds {len(found)} different values; a result lists at most {_MOST} groups, so give a "
            "column of few values, such as ranges"
        )
    ordered = sorted(found)
    numbers = [number_of(text) for text in ordered]
    if None not in numbers:
        ordered.sort(key=lambda text: number_of(text) or 0.0)
    names = tuple(ordered)
    places = {name: place for place, name in enumerate(names)}
    return Groups(column, names, {first + row: places[text] for row, text in enumerate(values)})
