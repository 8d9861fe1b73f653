"""Rows of numbers as the table that a pipeline was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import ModelError
from holdfast.threats.numbers import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Feed", "feeder"]


@dataclass(frozen=True, eq=False)
class Feed:
    """Makes what an estimator takes of rows ``(N, d)``.

    Parameters
    ----------
    names : tuple of str or None
        The columns that the estimator was fitted to, in its order; None where it was fitted to an array.
    words : dict
        Of those that hold words, by name: the places of their features, and the words.
    places : dict
        Of those that hold numbers, by name: the place of the feature.
    """

    names: tuple[str, ...] | None
    words: dict[str, tuple[list[int], NDArray[Any]]]
    places: dict[str, int]

    @property
    def plain(self) -> bool:
        """Whether the features are the estimator's own, in its order."""
        return self.names is None or [self.places.get(name) for name in self.names] == list(range(len(self.names)))

    def __call__(self, rows: NDArray[np.float64]) -> Any:
        if self.names is None:
            return rows
        try:
            import pandas as pd
        except ImportError:
            if self.words:
                raise ModelError(
                    "the model was fitted to a table of words, which needs pandas; install it with: pip install pandas"
                ) from None
            return rows[:, [self.places[name] for name in self.names]]
        return pd.DataFrame({name: self._column(rows, name) for name in self.names})

    def _column(self, rows: NDArray[np.float64], name: str) -> Any:
        if name in self.words:
            places, words = self.words[name]
            return words[rows[:, places].argmax(1)]
        return rows[:, self.places[name]]


def feeder(estimator: Any, columns: Sequence[str] | None) -> Feed:
    """How to feed rows with these columns to an estimator.

    Raises
    ------
    ModelError
        When it was fitted to other columns.
    """
    names = getattr(estimator, "feature_names_in_", None)
    count = getattr(estimator, "n_features_in_", None)
    fitted = None if names is None else tuple(map(str, names))
    if columns is None or fitted is None:
        if columns is not None and count not in (None, len(columns)):
            raise ModelError(
                f"model: the {type_of(estimator)} was fitted to {count} columns, but the data have {len(columns)}: "
                "give the data that it was fitted to"
            )
        return Feed(fitted, {}, {} if fitted is None else {name: place for place, name in enumerate(fitted)})
    if fitted == tuple(columns):
        return Feed(fitted, {}, {name: place for place, name in enumerate(fitted)})
    places = {name: place for place, name in enumerate(columns) if name in fitted}
    words = {}
    for name in fitted:
        own = [place for place, one in enumerate(columns) if one.startswith(f"{name}=")]
        if name not in places and own:
            words[name] = own, np.array([columns[place].removeprefix(f"{name}=") for place in own], object)
    unknown = [name for name in fitted if name not in places and name not in words]
    used = set(places.values()).union(*(own for own, _ in words.values()))
    if unknown or len(used) < len(columns):
        odd = unknown[0] if unknown else next(name for place, name in enumerate(columns) if place not in used)
        where = "the data do not have" if unknown else "the data have beside its own"
        raise ModelError(
            f"model: the {type_of(estimator)} was fitted to {len(fitted)} columns, and {odd!r} is one that {where}: "
            "give the data that it was fitted to, column by column"
        )
    return Feed(fitted, words, places)
