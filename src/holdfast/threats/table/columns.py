"""What an adversary may do to the columns of a table: one by one, and in one-hot groups."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from holdfast.errors import SettingError

__all__ = ["Column", "Group", "Kind", "Measure", "Move"]

Kind = Literal["real", "integer"]
Move = Literal["none", "up", "down", "both"]
# What one unit of the budget is in a column: a raw unit, the range or the standard deviation of the training data.
Measure = Literal["raw", "range", "std"]


@dataclass(frozen=True)
class Column:
    """One column of the table, in the raw units of the data: scalers are part of the model.

    Parameters
    ----------
    name : str
        As the data call it.
    kind : str
        ``"real"``, or ``"integer"`` for whole numbers.
    move : str
        ``"none"``, the default, for a column that stays as it is; ``"up"``, ``"down"`` or ``"both"``.
    lower, upper : float
        What values may be, both ends included; infinite where there is no bound.
    most : float
        How far the column may move, in raw units, whatever the budget.
    unit : float
        How many raw units one unit of the budget is: a change ``d`` counts as ``|d| / unit``.
    measure : str
        Where the unit comes from, for those who read it: ``"raw"``, the ``"range"`` or the standard deviation
        (``"std"``) of the column on training data.
    cost : float
        The price of one unit under a budget of costs.
    line : int
        Where the rules' file speaks of the column; 0 where there is none.

    Raises
    ------
    SettingError
        When a setting makes no sense.
    """

    name: str
    kind: Kind = "real"
    move: Move = "none"
    lower: float = -math.inf
    upper: float = math.inf
    most: float = math.inf
    unit: float = 1.0
    measure: Measure = "raw"
    cost: float = 1.0
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        place = f"column {self.name!r}"
        _word(place, "kind", self.kind, get_args(Kind))
        _word(place, "move", self.move, get_args(Move))
        _word(place, "unit", self.measure, get_args(Measure))
        for name in ("lower", "upper", "most", "unit", "cost"):
            object.__setattr__(self, name, _number(place, name, getattr(self, name)))
        if not self.lower <= self.upper:
            raise SettingError(f"{place}: the lower bound {self.lower:g} is above the upper bound {self.upper:g}")
        if self.kind == "integer" and math.ceil(self._end(self.lower)) > math.floor(self._end(self.upper)):
            raise SettingError(f"{place}: there is no whole number between {self.lower:g} and {self.upper:g}")
        if not 0 < self.unit < math.inf:
            raise SettingError(f"{place}: its unit must be a positive number of raw units, got {self.unit:g}")
        if self.most < 0:
            raise SettingError(f"{place}: most says how far it may move and must be at least 0, got {self.most:g}")
        if not 0 <= self.cost < math.inf:
            raise SettingError(f"{place}: its cost must be a number of at least 0, got {self.cost:g}")

    @property
    def moves(self) -> bool:
        """Whether the adversary may change it."""
        return self.move != "none"

    @staticmethod
    def _end(bound: float) -> float:
        # Beyond this every float is whole, and infinity has no whole number of its own.
        return min(max(bound, -(2.0**53)), 2.0**53)


@dataclass(frozen=True)
class Group:
    """Columns of which exactly one is 1 and the others are 0: a category. The adversary may choose another one.

    Parameters
    ----------
    name : str
        What the category is.
    columns : tuple of str
        The columns, two or more.
    distance : float
        What another category counts in the budget, whichever it is: as a change of so many units in one column. In L0
        it counts as one column.
    cost : float
        Its price under a budget of costs.
    transitions : tuple of pairs, optional
        ``(from, (to, ...))``, by columns: the only changes allowed. None allows all.
    line : int
        Where the rules' file speaks of it; 0 where there is none.

    Raises
    ------
    SettingError
        When a setting makes no sense.
    """

    name: str
    columns: tuple[str, ...]
    distance: float = 1.0
    cost: float = 1.0
    transitions: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        place = f"group {self.name!r}"
        if len(self.columns) < 2 or len(set(self.columns)) < len(self.columns):
            raise SettingError(f"{place}: a one-hot group has two or more columns, each named once")
        for name in ("distance", "cost"):
            object.__setattr__(self, name, _number(place, name, getattr(self, name)))
        if not 0 < self.distance < math.inf:
            raise SettingError(f"{place}: its distance must be a positive number, got {self.distance:g}")
        if not 0 <= self.cost < math.inf:
            raise SettingError(f"{place}: its cost must be a number of at least 0, got {self.cost:g}")
        for start, ends in self.transitions or ():
            for column in (start, *ends):
                if column not in self.columns:
                    raise SettingError(f"{place}: its transitions name {column!r}, which is none of its columns")

    def allows(self, start: str, end: str) -> bool:
        """Whether a row of the category ``start`` may become one of ``end``; what stays as it is always may."""
        return start == end or self.transitions is None or end in dict(self.transitions).get(start, ())


def _word(place: str, name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise SettingError(f"{place}: unknown {name} {value!r}: write one of {', '.join(words)}")


def _number(place: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise SettingError(f"{place}: {name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise SettingError(f"{place}: {name} is more than double precision can hold") from None
