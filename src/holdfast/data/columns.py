"""What the columns of a table hold: numbers, or words of which each becomes a column of zeros and ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdfast.errors import DataError
from holdfast.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["ABSENT", "Column", "Columns", "Seen", "choose_features", "feature_names"]

ABSENT = frozenset({"", "na", "n/a", "nan", "nat", "null", "none", "<na>", "#n/a"})
"""What stands where a value is missing, in lower case."""

# More different words are names, dates or texts, and a column for each of them is hardly meant.
_MOST_CATEGORIES, _MOST_CLASSES = 256, 1000
_INFINITE = ("inf", "infinity")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
        As the table has it.
    categories : tuple of str or None
        Its words, sorted; None where it holds numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features that are made of it: its own, or ``NAME=WORD`` for each word."""
        return (self.name,) if self.categories is None else tuple(f"{self.name}={word}" for word in self.categories)

    def encode(self, texts: Sequence[str], where: Callable[[int], str]) -> NDArray[np.float64]:
        """``(N, features)`` numbers of ``N`` texts.

        Parameters
        ----------
        texts : sequence of str
            What the table holds.
        where : callable
            The place of a text, for the error.

        Raises
        ------
        DataError
            A text that is no number, or none of the categories.
        """
        if self.categories is None:
            numbers = [number_of(text) for text in texts]
            if None in numbers:
                place = numbers.index(None)
                raise DataError(
                    f"{where(place)}, column {self.name}: {texts[place]!r} is no number; mend or drop that row"
                )
            return np.array(numbers, np.float64)[:, None]
        return np.asarray(self.codes(texts, where)[:, None] == np.arange(len(self.categories)), np.float64)

    def codes(self, texts: Sequence[str], where: Callable[[int], str]) -> NDArray[np.int64]:
        """``(N,)`` the place of each text among the categories, like :meth:`encode`."""
        assert self.categories is not None
        places = {word: place for place, word in enumerate(self.categories)}
        found = [places.get(text, -1) for text in texts]
        if -1 in found:
            place = found.index(-1)
            raise DataError(
                f"{where(place)}, column {self.name}: {texts[place]!r} is none of the {len(places)} values that are "
                f"known ({_few(self.categories)}); mend or drop that row"
            )
        return np.array(found, np.int64)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are features, which one is the label, and what each holds.

    Parameters
    ----------
    features : tuple of Column
        In the table's order.
    label : Column
        Its categories are the classes.
    """

    features: tuple[Column, ...]
    label: Column

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all features, words taken apart."""
        return tuple(name for column in self.features for name in column.features)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.label.categories or ()


@dataclass
class Seen:
    """What was seen of a column while a table was read through.

    Parameters
    ----------
    name : str
        The column.
    most : int
        So many different values are remembered.
    """

    name: str
    most: int = _MOST_CATEGORIES
    values: dict[str, None] = field(default_factory=dict)
    # The first value that is no number, the first without letters and digits, and where.
    word: tuple[str, str] | None = None
    sign: tuple[str, str] | None = None
    numbers: bool = False
    crowded: bool = False

    @classmethod
    def label(cls, name: str) -> Seen:
        """For the column of labels, whose every value is a class."""
        return cls(name, _MOST_CLASSES)

    def add(self, text: str, where: Callable[[], str]) -> None:
        """One more value.

        Raises
        ------
        DataError
            A missing value, or a number that is not finite.
        """
        if text in self.values:
            return
        if text.lower() in ABSENT:
            raise _missing(self.name, text, where())
        if text.lower().lstrip("+-") in _INFINITE:
            raise DataError(f"{where()}, column {self.name}: {text} is not finite; mend or drop that row")
        if number_of(text) is not None:
            self.numbers = True
        else:
            self.word = self.word or (text, where())
            if not any(map(str.isalnum, text)):
                self.sign = self.sign or (text, where())
        if len(self.values) < self.most:
            self.values[text] = None
        else:
            self.crowded = True

    def as_feature(self) -> Column:
        """The column as a feature.

        Raises
        ------
        DataError
            More different words than are taken apart, or a mark such as ``?`` among numbers.
        """
        if self.word is None:
            return Column(self.name)
        if self.sign is not None and self.numbers:
            raise _missing(self.name, *self.sign)
        if self.crowded:
            text, where = self.word
            raise DataError(
                f"{where}, column {self.name}: {text!r} is no number, and the column holds more than {self.most} "
                f"different values; leave it out with drop={self.name}, or turn it into numbers or fewer words"
            )
        return Column(self.name, tuple(sorted(self.values)))

    def as_label(self) -> Column:
        """The column as labels: its values in the order of numbers, or of words.

        Raises
        ------
        DataError
            More classes than are taken.
        """
        if self.crowded:
            raise DataError(
                f"column {self.name}, the label, holds more than {self.most} different values; name one that holds "
                "classes, not measurements"
            )
        if self.word is None:
            return Column(self.name, tuple(sorted(self.values, key=lambda text: (number_of(text) or 0.0, text))))
        return Column(self.name, tuple(sorted(self.values)))


def choose_features(
    names: Sequence[str], label: str | None, use: Sequence[str], drop: Sequence[str], group: str | None
) -> tuple[str, ...]:
    """Which columns of a table are features: those to use, or all, but the label and what is set aside.

    Raises
    ------
    DataError
        A column that is not there or asked for twice, or none that is left.
    """
    for name in (*([] if label is None else [label]), *use, *drop, *([] if group is None else [group])):
        if name not in names:
            raise DataError(f"no column {name}; the columns are {_few(names, 12)}")
    aside = {*drop, *(name for name in (label, group) if name is not None)}
    if label is not None and label in (*use, *drop, group):
        raise DataError(f"column {label} is the label; leave it out of use, drop and group")
    if both := [name for name in use if name in aside]:
        raise DataError(f"column {both[0]} is to be used and set aside; name it once")
    chosen = tuple(name for name in names if name not in aside and (not use or name in use))
    if not chosen:
        raise DataError("no column is left for a feature; leave fewer out")
    return chosen


def _missing(name: str, text: str, where: str) -> DataError:
    said = f" ({text})" if text else ""
    return DataError(
        f"{where}, column {name}: the value is missing{said}; fill it in, or drop that row or column: nothing can be "
        "proved of missing values"
    )


def feature_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of columns, once they are known to differ.

    Raises
    ------
    DataError
        A name that is empty, or there twice.
    """
    listed = tuple(names)
    if "" in listed:
        raise DataError(
            f"column {listed.index('') + 1} has no name: name it, or leave it out of the file (of pandas, by "
            "to_csv(..., index=False))"
        )
    if len(set(listed)) < len(listed):
        twice = next(name for place, name in enumerate(listed) if name in listed[:place])
        raise DataError(f"two columns are called {twice}: give each a name of its own")
    return listed


def _few(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")
