"""Tables in text files of separated values, read as a stream: never held whole."""

from __future__ import annotations

import csv
import gzip
import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.data.columns import Column, Columns, Seen, choose_features, feature_names
from holdfast.data.rows import RawColumns, RowSource
from holdfast.data.stored import naming
from holdfast.errors import DataError
from holdfast.files import check_file, writable_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from holdfast.data.source import Source

__all__ = ["load_csv"]

_SEPARATORS = (",", ";", "\t")
_LONGEST = 2**22  # characters of a line
_PIECE = 4096  # rows that are looked at together


def load_csv(
    path: Path,
    label: str,
    *,
    use: Sequence[str] = (),
    drop: Sequence[str] = (),
    group: str | None = None,
    header: bool = True,
    like: Path | None = None,
) -> Source:
    """Open a table whose rows are examples and whose columns have names.

    Parameters
    ----------
    path : Path
        Values separated by commas, semicolons or tabs, whichever the first line has most of; UTF-8, gzipped if the
        name ends in ``.gz``. Spaces around values do not count.
    label : str
        The column of classes: its different values, in the order of numbers or of words.
    use, drop : sequence of str
        The columns that are features, all by default, and some that are none.
    group : str, optional
        A column that is no feature but by which results are told apart.
    header : bool
        Whether the first line holds the names, where a second ``NAME`` is called ``NAME.1``; else columns are called
        ``0``, ``1`` and so on.
    like : Path, optional
        Another such file, of the training examples, with the same columns: its words and classes are those of this
        file too.

    Returns
    -------
    Source
        Inputs ``(D,)``. A column of numbers is a feature; of one that holds words each word is, as ``NAME=WORD``, 1
        where it stands and 0 elsewhere, in the order of the words.

    Raises
    ------
    DataError
        A file that is broken, ragged or no text, a column that is not there, a value that is missing or not finite, or
        a column of more than 256 different words.
    """
    file = _opened(path, header)
    features = file.features(label, use, drop, group)
    if like is None:
        count, columns = _look(file, features, label)
    else:
        trained = _opened(like, header)
        columns = _look(trained, trained.features(label, features, (), None), label)[1]
        count = sum(len(rows) for _, rows in file.pieces(_PIECE))
    return RowSource(
        writable_name(path.name.removesuffix(".gz").rpartition(".")[0] or path.name),
        (len(columns.names),),
        columns.classes,
        count,
        partial(_read, file, columns),
        columns=columns.names,
        raw=RawColumns(file.names, file.column, group),
    )


@dataclass(frozen=True, eq=False)
class _File:
    """A file of separated values, and what its first line says."""

    path: Path
    header: bool
    separator: str
    names: tuple[str, ...]

    def features(self, label: str, use: Sequence[str], drop: Sequence[str], group: str | None) -> tuple[str, ...]:
        """The columns that are features."""
        with _about(self.path):
            return choose_features(self.names, label, use, drop, group)

    def column(self, name: str) -> list[str]:
        """What a column holds, in all rows."""
        place = self.names.index(name)
        return [row[place] for _, rows in self.pieces(_PIECE) for row in rows]

    def pieces(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[list[int], list[list[str]]]]:
        """The rows ``[start, stop)``, ``size`` at a time, and the number of each one's line."""
        numbers: list[int] = []
        rows: list[list[str]] = []
        for position, (number, row) in enumerate(self._rows()):
            if stop is not None and position >= stop:
                break
            if position >= start:
                numbers.append(number)
                rows.append(row)
            if len(rows) == size:
                yield numbers, rows
                numbers, rows = [], []
        if rows:
            yield numbers, rows

    def where(self, numbers: Sequence[int], place: int) -> str:
        """A row, for errors."""
        return f"{self.path}, line {numbers[place]}"

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        rows = _parsed(self.path, self.separator)
        if self.header:
            next(rows, None)
        for number, row in rows:
            if len(row) != len(self.names):
                raise DataError(
                    f"{self.path}, line {number}: {len(row)} values where there are {len(self.names)} columns; mend or "
                    "drop that line"
                )
            yield number, row


def _opened(path: Path, header: bool) -> _File:
    check_file(path, DataError)
    with _lines(path) as lines:
        first = next(lines, "")
    separator = max(_SEPARATORS, key=first.count)
    row = next(_parsed(path, separator), (0, []))[1]
    if not row:
        raise DataError(f"{path}: is empty; a line of names and a line an example are needed")
    if not header:
        return _File(path, header, separator, tuple(map(str, range(len(row)))))
    with _about(path):
        return _File(path, header, separator, feature_names(_apart(row)))


def _apart(names: Sequence[str]) -> list[str]:
    """The names of columns, those that stand there before with a number."""
    return [f"{name}.{before}" if name and (before := names[:place].count(name)) else name
            for place, name in enumerate(names)]  # fmt: skip


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with its columns."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _parsed(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the number of its last line."""
    with _lines(path) as lines:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, [value.strip() for value in row]
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; is a quote left open?") from error


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
    with naming(str(path)), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        try:
            # Line breaks inside quotes are values.
            yield _short(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not text in UTF-8; save it as UTF-8") from error


def _short(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Lines, none of which is longer than a line can be."""
    number = 0
    while line := text.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise DataError(f"{path}, line {number}: more than {_LONGEST} characters; is it a table?")
        yield line


def _look(file: _File, features: Sequence[str], label: str) -> tuple[int, Columns]:
    """How many rows there are, and what the columns hold."""
    seen = [Seen(name) for name in features]
    classes = Seen.label(label)
    places = [(file.names.index(one.name), one) for one in (*seen, classes)]
    count = 0
    for numbers, rows in file.pieces(_PIECE):
        count += len(rows)
        for number, row in zip(numbers, rows, strict=True):
            for place, one in places:
                one.add(row[place], partial(file.where, (number,), 0))
    if not count:
        raise DataError(f"{file.path}: no line after that of the names; give at least one example")
    return count, Columns(tuple(one.as_feature() for one in seen), classes.as_label())


def _read(
    file: _File, columns: Columns, size: int, start: int, stop: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for numbers, rows in file.pieces(size, start, stop):
        where = partial(file.where, numbers)
        texts = list(zip(*rows, strict=True))

        def held(column: Column, texts: list[tuple[str, ...]] = texts) -> tuple[str, ...]:
            return texts[file.names.index(column.name)]

        x = np.concatenate([column.encode(held(column), where) for column in columns.features], 1)
        yield x, columns.label.codes(held(columns.label), where)
