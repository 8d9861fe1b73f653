"""The rules of a table: its columns, its one-hot groups, and the relations between them."""

from collections import Counter
from dataclasses import dataclass, field, fields
from math import isinf
from typing import Any

from holdfast.errors import SettingError
from holdfast.threats.table.columns import Column, Group
from holdfast.threats.table.relations import Relation

__all__ = ["Rules"]


@dataclass(frozen=True)
class Rules:
    """What a row of a table may be, and how an adversary may change it.

    Every row other than the clean one must satisfy all rules. The clean row itself is always admissible, also where a
    relation does not hold of it: real data break relations here and there, and an adversary that does nothing breaks
    none.

    Parameters
    ----------
    columns : tuple of Column
        Every column of the data, in their order: column ``j`` is ``x[:, j]`` of inputs ``(N, d)``.
    groups : tuple of Group, optional
        One-hot groups that may change. Their columns are in no other group and have no settings of their own.
    relations : tuple of Relation, optional
        What holds between columns, whether these may move or not.
    source : str
        The file they were read from, empty where there is none.

    Raises
    ------
    SettingError
        When a name is not there, or there twice, or nothing may move.
    """

    columns: tuple[Column, ...]
    groups: tuple[Group, ...] = ()
    relations: tuple[Relation, ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise SettingError(f"rules: there are two columns {twice[0]!r}")
        known, taken = {column.name: column for column in self.columns}, dict[str, str]()
        for group in self.groups:
            for name in group.columns:
                if name not in known:
                    raise self.fault(group.line, f"group {group.name!r}: there is no column {name!r}")
                if name in taken:
                    raise self.fault(
                        group.line, f"column {name!r} is in two groups, {taken[name]!r} and {group.name!r}"
                    )
                if known[name] != Column(name):
                    raise self.fault(known[name].line, f"column {name!r} is of a group: set nothing for it alone")
                taken[name] = group.name
        for relation in self.relations:
            for name in relation.columns:
                if name not in known:
                    raise self.fault(relation.line, f"relation {relation.text!r}: there is no column {name!r}")
        if not self.groups and not any(column.moves for column in self.columns):
            raise self.fault(0, 'no column may move: give some of them move = "up", "down" or "both"')

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    def where(self, line: int) -> str:
        """How an error begins that is about a rule: with its file and line, where it has them."""
        if not self.source:
            return "rules"
        return f"{self.source}, line {line}" if line else self.source

    def fault(self, line: int, words: str) -> SettingError:
        """An error about the rule in that line."""
        return SettingError(f"{self.where(line)}: {words}")

    def to_dict(self) -> dict[str, Any]:
        """The rules in plain numbers, texts and lists; None for a bound that is not there."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and isinf(value) else value

        columns = [
            {setting.name: plain(getattr(column, setting.name)) for setting in fields(column) if setting.compare}
            for column in self.columns
        ]
        groups = [
            {
                "name": group.name,
                "columns": list(group.columns),
                "distance": group.distance,
                "cost": group.cost,
                "transitions": None
                if group.transitions is None
                else {start: list(ends) for start, ends in group.transitions},
            }
            for group in self.groups
        ]
        return {"columns": columns, "groups": groups, "relations": [relation.text for relation in self.relations]}
