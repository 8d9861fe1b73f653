"""Tables that are in Python already: pandas frames, and whatever else has columns with names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.data.columns import Columns, Seen, choose_features, feature_names
from holdfast.data.convert import as_array
from holdfast.data.rows import RawColumns, RowSource, read_arrays
from holdfast.errors import DataError
from holdfast.threats.numbers import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from holdfast.data.columns import Column
    from holdfast.data.source import Source

__all__ = ["from_frame", "is_frame"]

_NUMBERS = "biuf"  # numpy's kinds


def is_frame(value: object) -> bool:
    """Whether a value is a table with names of columns, such as a pandas DataFrame."""
    return hasattr(value, "columns") and hasattr(value, "shape") and hasattr(value, "__getitem__")


def from_frame(
    frame: Any,
    label: Any,
    *,
    use: Sequence[str] = (),
    drop: Sequence[str] = (),
    group: str | None = None,
    name: str = "frame",
) -> Source:
    """Make a source of a table with names of columns.

    Parameters
    ----------
    frame : DataFrame
        Of pandas, or anything whose ``columns`` are names and whose ``frame[name]`` reads as an array.
    label : str, Series or array
        The column of classes, or ``(N,)`` labels that are no column.
    use, drop : sequence of str
        The columns that are features, all by default, and some that are none.
    group : str, optional
        A column that is no feature but by which results are told apart.
    name : str
        What to call it in a result.

    Returns
    -------
    Source
        Columns as :func:`~holdfast.data.csv.load_csv` reads them: numbers, and words one by one.

    Raises
    ------
    DataError
        Where there is no such column, a value is missing or not finite, or a column holds too many different words.
    """
    if not is_frame(frame):
        raise DataError(f"{name}: a {type_of(frame)} has no columns with names; give a pandas DataFrame")
    held = {str(one): one for one in frame.columns}
    column = label if isinstance(label, str) else None
    try:
        names = feature_names(map(str, frame.columns))
        chosen = choose_features(names, column, use, drop, group)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    if not len(frame):
        raise DataError(f"{name}: the table is empty; give at least one example")
    labels = as_array(label) if column is None else _values(frame, held[column])
    if labels.shape != (len(frame),):
        raise DataError(f"{name}: labels of shape {labels.shape} for {len(frame)} rows; give one a row")
    features = {one: _values(frame, held[one]) for one in chosen}
    seen = [(_seen(Seen(one), values, name), values) for one, values in features.items()]
    classes = _seen(Seen.label(column or "label"), labels.astype(object), name).as_label()
    columns = Columns(tuple(one.as_feature() for one, _ in seen), classes)
    x = np.concatenate(
        [_encoded(column, values, name) for column, (_, values) in zip(columns.features, seen, strict=True)], 1
    )
    y = classes.codes(_texts(labels.astype(object)), lambda row: _where(name, row))
    return RowSource(
        name,
        x.shape[1:],
        columns.classes,
        len(x),
        partial(read_arrays, x, y),
        columns=columns.names,
        raw=RawColumns(names, lambda one: _texts(_values(frame, held[one]).astype(object)), group),
    )


def _values(frame: Any, name: Any) -> NDArray[Any]:
    return np.asarray(frame[name])


def _texts(values: NDArray[Any]) -> list[str]:
    return [str(value).strip() for value in values.tolist()]


def _where(name: str, row: int) -> str:
    return f"{name}, row {row}"


def _seen(seen: Seen, values: NDArray[Any], name: str) -> Seen:
    """What a column holds; numbers are looked at together."""
    if values.dtype.kind in _NUMBERS and np.isfinite(values).all():
        return seen
    for row, text in enumerate(_texts(values)):
        seen.add(text, partial(_where, name, row))
    return seen


def _encoded(column: Column, values: NDArray[Any], name: str) -> NDArray[np.float64]:
    if values.dtype.kind in _NUMBERS:
        return values.astype(np.float64)[:, None]
    return column.encode(_texts(values), partial(_where, name))
