"""What it costs rows of a table to cross thresholds of trees.

The cheapest row between two thresholds of a column is the one nearest to the clean row, so what a column spends at
least is a staircase in the thresholds that lie between it and where it was, and linear in the variables that say which
of them it crossed, in any norm (Kantchelian, Tygar and Joseph, ICML 2016, arXiv:1509.07892, section 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
from numpy.typing import NDArray

from holdfast.certify.milp.encoding import Affine, constant
from holdfast.certify.milp.rules import SPENT, prices_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.certify.milp.rules import Rows
    from holdfast.certify.milp.trees import TreeEncoding
    from holdfast.models.trees import Leaf

__all__ = ["affordable", "charge", "nearest"]

Array = NDArray[np.float64]

# A few products and a sum of some hundred terms.
_ROUNDING = 1e-12


def affordable(leaves: Sequence[Leaf], rows: Rows) -> list[Leaf]:
    """The leaves that the budget can pay the way to."""
    bound = _bound(rows)
    return [leaf for leaf in leaves if _fare(leaf, rows) <= bound]


def charge(encoding: TreeEncoding, row: Affine, rows: Rows) -> None:
    """Add what the thresholds that are crossed cost, together with other categories: no more than the budget."""
    bound = _bound(rows)
    if not np.isfinite(bound):
        return
    weights = np.zeros(encoding.program.width)
    free, start = bound, 0
    for feature, cuts in encoding.thresholds.items():
        places = np.arange(start, start + len(cuts))
        start += len(cuts)
        ascending = np.array(cuts)
        beyond = ascending >= rows.x[feature]
        ahead = [_toll(rows, feature, cut, np.inf) for cut in ascending[beyond]]
        behind = [_toll(rows, feature, -np.inf, cut) for cut in ascending[~beyond][::-1]]
        # Crossed upwards where the variable is 0, downwards where it is 1.
        steps = np.diff(ahead, prepend=0.0)
        weights[places[beyond]] -= steps
        free -= float(steps.sum())
        weights[places[~beyond][::-1]] += np.diff(behind, prepend=0.0)
    total = Affine(scipy.sparse.csr_matrix(weights[None]), np.zeros(1))
    for group, price in zip(rows.here.layout.groups, prices_of(rows.here), strict=True):
        places = group.columns.numpy()
        own = np.array([places[int(rows.x[places].argmax())]])
        total = total + price ** _power(rows) * (constant(np.ones(1)) - row.take(own))
    encoding.program.at_least_zero(constant(np.array([free])) - total)


def nearest(ranges: dict[int, tuple[float, float]], row: Array, rows: Rows) -> Array:
    """The clean row with the columns of ``ranges`` moved just into them, and the categories of ``row``."""
    found = rows.x.copy()
    for feature, (low, high) in ranges.items():
        least = _above(rows, feature, low)
        most = np.floor(high) if rows.whole[feature] else high
        found[feature] = min(max(rows.x[feature], least), most)
    for group in rows.here.layout.groups:
        places = group.columns.numpy()
        found[places] = row[places]
    return found


def _above(rows: Rows, feature: int, cut: float) -> float:
    """The least number of a column above a threshold."""
    return float(np.floor(cut) + 1 if rows.whole[feature] else np.nextafter(cut, np.inf))


def _toll(rows: Rows, feature: int, low: float, high: float) -> float:
    """What a column spends at least to get to ``low < x <= high``, to the power of the norm."""
    here = rows.here
    if not (here.charged[feature] and here.layout.moves[feature]):
        return 0.0
    x, most = rows.x[feature], np.floor(high) if rows.whole[feature] else high
    change = max(_above(rows, feature, low) - x, x - most, 0.0)
    change = max(change * (1 - rows.room[feature]) - rows.blur[feature], 0.0)
    if here.norm == "l0":
        return float(change > 0)
    return float((change / float(here.scale[feature]) * (1 - _ROUNDING)) ** _power(rows))


def _fare(leaf: Leaf, rows: Rows) -> float:
    """What a row spends at least to get to a leaf, to the power of the norm."""
    found = sum(_toll(rows, feature, *ends) for feature, ends in leaf.ranges.items())
    for group, price in zip(rows.here.layout.groups, prices_of(rows.here), strict=True):
        places = group.columns.tolist()
        own = places[int(rows.x[places].argmax())]
        left = leaf.ranges.get(own, (0.0, 1.0))[1] < 1
        if left or any(leaf.ranges.get(place, (-1.0, 1.0))[0] >= 0 for place in places if place != own):
            found += price ** _power(rows)
    return found


def _bound(rows: Rows) -> float:
    """What may be spent; infinite where the bounds of columns hold all that there is of the budget."""
    if rows.here.norm == "linf":
        return np.inf
    return float((float(rows.here.budget[0]) * SPENT) ** _power(rows) * (1 + _ROUNDING))


def _power(rows: Rows) -> int:
    return 2 if rows.here.norm == "l2" else 1
