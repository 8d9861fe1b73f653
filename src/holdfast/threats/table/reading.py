"""Rules of a table in a TOML file.

::

    norm = "linf"                  # or l2, l1, l0, cost
    eps = 0.1                      # in units of each column
    relations = [
        "dst_bytes <= 3*src_bytes + 10",
        "num_root > 0 -> logged_in >= 1",
    ]

    [columns]                      # every column of the data, in order
    src_bytes = { kind = "integer", move = "up", bounds = [0, 1e9], unit = "range", range = [0, 54540] }
    dst_bytes = { kind = "integer", move = "both", most = 500, unit = "std", std = 2210.5, cost = 2 }
    num_root = { kind = "integer" }
    logged_in = {}                 # stays as it is
    "flag=S0" = {}
    "flag=SF" = {}

    [groups]                       # one-hot
    flag = { columns = "flag=*", distance = 0.1, transitions = { "flag=S0" = ["flag=SF"] } }
"""

import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from holdfast.errors import SettingError
from holdfast.files import read_text
from holdfast.threats.budget import parse_budget
from holdfast.threats.table.columns import Column, Group
from holdfast.threats.table.relations import Relation, parse_relation
from holdfast.threats.table.rules import Rules
from holdfast.threats.table.spending import TableNorm
from holdfast.threats.table.table import Table

__all__ = ["read_table"]

_TOP = ("norm", "eps", "relations", "columns", "groups")
_COLUMN = ("kind", "move", "bounds", "most", "unit", "range", "std", "cost")
_GROUP = ("columns", "distance", "cost", "transitions")

_Path = tuple[str, ...]
# Statements of more lines than this are looked at only where one may end.
_LONG = 50


def read_table(path: str | Path) -> Table:
    """The threat that a file of rules describes.

    Raises
    ------
    SettingError
        When the file cannot be read, or a rule makes no sense; the message names the rule's line.
    """
    text = read_text(Path(path), SettingError)
    return _Reader(str(path), text).table()


class _Reader:
    """A file of rules, and where in it everything stands."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        try:
            self.content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise SettingError(f"{source}: not a file in TOML: {error}") from None
        self.lines = dict(_lines(text))

    def line(self, path: _Path) -> int:
        """Where ``path`` stands, or the nearest thing around it that has a line; 0 where nothing has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def fault(self, path: _Path, words: str) -> SettingError:
        """An error about what stands at ``path``."""
        line = self.line(path)
        return SettingError(f"{self.source}{f', line {line}' if line else ''}: {words}")

    def table(self) -> Table:
        content = self.content
        self.known((), content, _TOP)
        for key in ("norm", "eps", "columns"):
            if key not in content:
                raise SettingError(f"{self.source}: there is no {key}: {_MISSING[key]}")
        columns = tuple(self.column(name, entry) for name, entry in self.entries("columns"))
        names = [column.name for column in columns]
        groups = tuple(self.group(name, entry, names) for name, entry in self.entries("groups"))
        rules = Rules(columns, groups, tuple(self.relations()), source=self.source)
        norm, eps = content["norm"], content["eps"]
        if norm not in get_args(TableNorm):
            raise self.fault(("norm",), f"unknown norm {norm!r}: write one of {', '.join(get_args(TableNorm))}")
        if isinstance(eps, bool) or not isinstance(eps, int | float | str):
            raise self.fault(("eps",), f"eps must be one number, got {eps!r}")
        try:
            budget = parse_budget(eps)
        except SettingError as error:
            raise self.fault(("eps",), str(error)) from None
        return Table(rules, norm, budget, path=self.source)

    def known(self, path: _Path, entry: dict[str, Any], keys: tuple[str, ...]) -> None:
        unknown = next((key for key in entry if key not in keys), None)
        if unknown is None:
            return
        what = " ".join(path) or "the file"
        misplaced = bool(path) and unknown in _TOP
        cure = "write it above the first [table]" if misplaced else f"there are {', '.join(keys)}"
        raise self.fault((*path, unknown), f"unknown key {unknown!r} in {what}: {cure}")

    def entries(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        section = self.content.get(key, {})
        if not isinstance(section, dict):
            raise self.fault((key,), f"{key} must be a section [{key}] with one line for each")
        for name, entry in section.items():
            if not isinstance(entry, dict):
                raise self.fault((key, name), f"{name!r} in [{key}] must be settings between braces, such as {{}}")
            yield name, entry

    def column(self, name: str, entry: dict[str, Any]) -> Column:
        path = ("columns", name)
        self.known(path, entry, _COLUMN)
        settings: dict[str, Any] = {key: entry[key] for key in ("kind", "move", "most", "cost") if key in entry}
        if "bounds" in entry:
            settings["lower"], settings["upper"] = self.pair(path, entry, "bounds")
        unit = entry.get("unit", "raw")
        if unit == "range":
            low, high = self.pair(path, entry, "range")
            settings |= {"unit": high - low, "measure": "range"}
        elif unit == "std":
            settings |= {"unit": self.needed(path, entry, "std"), "measure": "std"}
        elif isinstance(unit, str) and unit != "raw":
            raise self.fault(
                (*path, "unit"),
                f"column {name!r}: unknown unit {unit!r}: write raw, range, std, or a number of raw units",
            )
        elif unit != "raw":
            settings["unit"] = unit
        for measure in ("range", "std"):
            if measure in entry and unit != measure:
                raise self.fault((*path, measure), f'column {name!r}: {measure} is used only with unit = "{measure}"')
        try:
            return Column(name, **settings, line=self.line(path))
        except SettingError as error:
            raise self.fault(path, str(error)) from None

    def needed(self, path: _Path, entry: dict[str, Any], key: str) -> Any:
        if key not in entry:
            raise self.fault(path, f'column {path[-1]!r}: unit = "{key}" needs {key}, as measured on training data')
        return entry[key]

    def pair(self, path: _Path, entry: dict[str, Any], key: str) -> tuple[float, float]:
        value = self.needed(path, entry, key)
        numbers = isinstance(value, list) and all(
            isinstance(end, int | float) and not isinstance(end, bool) for end in value
        )
        if not numbers or len(value) != 2:
            raise self.fault((*path, key), f"column {path[-1]!r}: {key} must be two numbers [low, high], got {value!r}")
        return value[0], value[1]

    def group(self, name: str, entry: dict[str, Any], names: list[str]) -> Group:
        path = ("groups", name)
        self.known(path, entry, _GROUP)
        columns = entry.get("columns", [])
        if isinstance(columns, str):
            pattern = columns
            columns = [column for column in names if fnmatchcase(column, pattern)]
            if len(columns) < 2:
                raise self.fault(path, f"group {name!r}: {len(columns)} columns are called {pattern!r}: two are needed")
        self.words(path, columns, "columns")
        settings: dict[str, Any] = {key: entry[key] for key in ("distance", "cost") if key in entry}
        if "transitions" in entry:
            if not isinstance(entry["transitions"], dict):
                raise self.fault(path, f"group {name!r}: transitions must be {{ from = [to, ...], ... }}")
            for ends in entry["transitions"].values():
                self.words(path, ends, "transitions")
            settings["transitions"] = tuple((start, tuple(ends)) for start, ends in entry["transitions"].items())
        try:
            return Group(name, tuple(columns), **settings, line=self.line(path))
        except SettingError as error:
            raise self.fault(path, str(error)) from None

    def words(self, path: _Path, value: Any, key: str) -> None:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.fault(path, f"group {path[-1]!r}: {key} must list names of columns, got {value!r}")

    def relations(self) -> Iterator[Relation]:
        texts = self.content.get("relations", [])
        if not isinstance(texts, list):
            raise self.fault(("relations",), "relations must be a list of texts, one relation each")
        for number, text in enumerate(texts):
            path = ("relations", str(number))
            if not isinstance(text, str):
                raise self.fault(path, f"a relation must be a text, got {text!r}")
            try:
                yield parse_relation(text, self.line(path))
            except SettingError as error:
                raise self.fault(path, str(error)) from None


_MISSING = {
    "norm": 'write norm = "linf", or l2, l1, l0, cost',
    "eps": "write the budget, such as eps = 0.1",
    "columns": "write a section [columns] with a line for every column of the data, in order",
}


def _lines(text: str) -> Iterator[tuple[_Path, int]]:
    """Where each key stands, by its path from the top: ``("columns", "age")``; items of lists by their number.

    A statement is the fewest lines that are TOML by themselves, so that texts and lists over many lines are one.
    """
    section: _Path = ()
    pending, start = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if not pending:
            start = number
        pending += line + "\n"
        if number - start > _LONG and not line.partition("#")[0].rstrip().endswith(("]", "}", '"', "'")):
            continue  # in the middle of a long list, which would be read again with each of its lines
        try:
            statement = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        first = pending.lstrip()
        if first.startswith("["):
            section = tuple(_only(statement))
            yield section, start
        elif statement:
            for path in _paths(statement):
                yield (*section, *path), start
            yield from _items(section, statement, pending, start)
        pending = ""


def _only(statement: Any) -> Iterator[str]:
    """The names of a header, from the outermost to the innermost."""
    while statement:
        if isinstance(statement, list):
            statement = statement[0]
            continue
        ((name, statement),) = statement.items()
        yield name


def _paths(value: Any) -> Iterator[_Path]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (name,)
            for path in _paths(inner):
                yield (name, *path)


def _items(section: _Path, statement: dict[str, Any], text: str, start: int) -> Iterator[tuple[_Path, int]]:
    """The lines of the texts in a list that has more than one."""
    for name, value in statement.items():
        if not isinstance(value, list):
            continue
        lines, place = text.split("\n"), 0
        for number, item in enumerate(value):
            while place < len(lines) - 1 and not (isinstance(item, str) and item in lines[place]):
                place += 1
            if place == len(lines) - 1 and not (isinstance(item, str) and item in lines[place]):
                return
            yield (*section, name, str(number)), start + place
            # The next one may stand in the same line.
            lines[place] = lines[place].replace(item, "", 1)
