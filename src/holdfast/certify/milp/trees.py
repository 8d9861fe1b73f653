"""A tree ensemble and a box of inputs as a mixed-integer linear program.

Kantchelian, Tygar and Joseph, "Evasion and hardening of tree ensemble classifiers", ICML 2016 (arXiv 1509.07892),
section 4: a variable that is 0 or 1 for each threshold inside the box, a continuous one for each leaf that can be
reached. Their constraint of each node is here one of each tree and threshold, which holds all leaves of the tree that
lie to one side of it (Mišić, "Optimization of tree ensembles", Operations Research 68, 2020, constraints 2c and 2d):
no weaker, and often stronger.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
from numpy.typing import NDArray

from holdfast.certify.milp.encoding import Affine, Program
from holdfast.models.trees import Leaf

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TreeEncoding", "encode_trees", "link", "merged"]

Array = NDArray[np.float64]
# A linear constraint: coefficients by variable, and the least that their sum may be.
_Row = tuple[dict[int, float], float]
_ANY = (-np.inf, np.inf)


@dataclass(frozen=True, eq=False)
class TreeEncoding:
    """A program together with what its variables stand for.

    Parameters
    ----------
    program : Program
        First a variable for each threshold, 1 where the input is below or at it; then one for each leaf; where changes
        are counted, one for each feature that has a threshold.
    thresholds : dict
        By feature, its thresholds in ascending order, as the variables have them.
    votes : ndarray
        ``(L, K)`` of the leaves.
    """

    program: Program
    thresholds: dict[int, list[float]]
    votes: Array

    def lead(self, y: int, k: int) -> Affine:
        """What the leaves give class ``y`` more than class ``k``."""
        start = sum(len(cuts) for cuts in self.thresholds.values())
        row = np.zeros((1, self.program.width))
        row[0, start : start + len(self.votes)] = self.votes[:, y] - self.votes[:, k]
        return Affine(scipy.sparse.csr_matrix(row), np.zeros(1))

    def ranges(self, variables: Array) -> dict[int, tuple[float, float]]:
        """By feature, the ``(low, high)`` between which a solution's inputs lie: ``low < x <= high``."""
        found, start = {}, 0
        for feature, cuts in self.thresholds.items():
            above = int((variables[start : start + len(cuts)] < 0.5).sum())
            found[feature] = ([-np.inf, *cuts][above], [*cuts, np.inf][above])
            start += len(cuts)
        return found


def encode_trees(trees: Sequence[Sequence[Leaf]], x: Array, changes: float) -> TreeEncoding:
    """Encode what inputs can make of some trees.

    Parameters
    ----------
    trees : sequence of sequences of Leaf
        Of each tree, the leaves that some of the inputs reach.
    x : ndarray
        ``(d,)`` an input.
    changes : float
        How many of its features may change; infinite where that is no matter.
    """
    own = [_cuts(leaves) for leaves in trees]
    thresholds = {f: sorted(set().union(*(mine.get(f, ()) for mine in own))) for f in sorted(set().union(*own))}
    place = {pair: n for n, pair in enumerate((f, cut) for f, cuts in thresholds.items() for cut in cuts)}
    votes = np.array([leaf.votes for leaves in trees for leaf in leaves])
    program = Program()
    program.variables(np.zeros(len(place)), np.ones(len(place)), integral=True)
    program.variables(np.zeros(len(votes)), np.ones(len(votes)))
    rows: list[_Row] = []
    for feature, ascending in thresholds.items():  # what is below one threshold is below the next
        rows += [({place[feature, high]: 1.0, place[feature, low]: -1.0}, 0.0) for low, high in pairwise(ascending)]
    start = len(place)
    for leaves, mine in zip(trees, own, strict=True):
        numbers = range(start, start + len(leaves))
        rows += [(dict.fromkeys(numbers, 1.0), 1.0), (dict.fromkeys(numbers, -1.0), -1.0)]
        for feature, cuts in mine.items():
            ranges = [leaf.ranges.get(feature, _ANY) for leaf in leaves]
            for cut in cuts:
                below = [n for n, (_, high) in zip(numbers, ranges, strict=True) if high <= cut]
                above = [n for n, (low, _) in zip(numbers, ranges, strict=True) if low >= cut]
                switch = place[feature, cut]
                rows += [
                    ({switch: 1.0} | dict.fromkeys(below, -1.0), 0.0),
                    ({switch: -1.0} | dict.fromkeys(above, -1.0), -1.0),
                ]
        start += len(leaves)
    if changes < len(thresholds):
        program.variables(np.zeros(len(thresholds)), np.ones(len(thresholds)))
        moved = range(start, start + len(thresholds))
        for n, (feature, ascending) in zip(moved, thresholds.items(), strict=True):
            for cut in ascending:  # a feature that crosses a threshold has moved
                switch = place[feature, cut]
                rows.append(({n: 1.0, switch: 1.0}, 1.0) if x[feature] <= cut else ({n: 1.0, switch: -1.0}, 0.0))
        rows.append((dict.fromkeys(moved, -1.0), -changes))
    program.at_least_zero(_affine(rows, program.width))
    return TreeEncoding(program, thresholds, votes)


def merged(trees: Sequence[Sequence[Leaf]]) -> list[list[Leaf]]:
    """The same sums with fewer trees: those that ask for one feature only, the same one, become a single tree.

    Of ensembles of stumps a tree a feature is left: where features move by themselves, the least of each adds up to
    the least of all.
    """
    asked = [frozenset(f for leaf in leaves for f in leaf.ranges) for leaves in trees]
    features = sorted({f for own in asked if len(own) == 1 for f in own})
    found = [list(leaves) for leaves, own in zip(trees, asked, strict=True) if len(own) != 1]
    for feature in features:
        group = [leaves for leaves, own in zip(trees, asked, strict=True) if own == {feature}]
        ends = sorted({end for leaves in group for leaf in leaves for end in leaf.ranges.get(feature, _ANY)})
        steps = []
        for low, high in pairwise(ends):
            parts = [part for leaves in group if (part := _at(leaves, feature, low, high)) is not None]
            if len(parts) == len(group):
                steps.append(Leaf(np.sum(parts, 0), {feature: (low, high)}))
        found.append(steps)
    return found


def _at(leaves: Sequence[Leaf], feature: int, low: float, high: float) -> Array | None:
    """What leaves give to inputs between two neighbouring ends; None where none is there."""
    for leaf in leaves:
        least, most = leaf.ranges.get(feature, _ANY)
        if least <= low and high <= most:
            return leaf.votes
    return None


def link(encoding: TreeEncoding, inputs: Affine, lower: Array, upper: Array, whole: NDArray[np.bool_]) -> None:
    """Tie the thresholds to variables for the inputs, ``d`` entries between bounds, some of them whole numbers.

    Of a feature's thresholds in ascending order those that lie below the input are the first ones. So two constraints
    a feature are enough, and no weaker than two for each threshold.
    """
    rows: list[_Row] = []
    start, places = 0, []
    for feature, cuts in encoding.thresholds.items():
        ascending = np.array(cuts)
        below = np.floor(ascending) if whole[feature] else ascending
        above = np.floor(ascending) + 1 if whole[feature] else np.nextafter(ascending, np.inf)
        numbers = range(start, start + len(cuts))
        # All that are 1 come after the first that is: upper - (the steps from it on) is that threshold.
        steps_down = np.diff(np.append(below, upper[feature]))
        steps_up = np.diff(np.append(lower[feature], above))
        rows.append((dict(zip(numbers, (-steps_down).tolist(), strict=True)), -float(upper[feature])))
        rows.append((dict(zip(numbers, steps_up.tolist(), strict=True)), float(lower[feature] + steps_up.sum())))
        places += [feature, feature]
        start += len(cuts)
    if rows:
        side = scipy.sparse.diags(np.tile([-1.0, 1.0], len(rows) // 2))
        encoding.program.at_least_zero(
            inputs.take(np.array(places)).apply(side) + _affine(rows, encoding.program.width)
        )


def _cuts(leaves: Sequence[Leaf]) -> dict[int, set[float]]:
    """By feature, the thresholds between leaves."""
    found: dict[int, set[float]] = {}
    for leaf in leaves:
        for feature, ends in leaf.ranges.items():
            found.setdefault(feature, set()).update(end for end in ends if np.isfinite(end))
    return found


def _affine(rows: list[_Row], width: int) -> Affine:
    """What must not be negative: of each row, its sum less its least value."""
    matrix = scipy.sparse.csr_matrix(
        (
            np.array([value for row, _ in rows for value in row.values()]),
            np.array([column for row, _ in rows for column in row], dtype=np.intp),
            np.cumsum([0, *(len(row) for row, _ in rows)]),
        ),
        shape=(len(rows), width),
    )
    return Affine(matrix, -np.array([floor for _, floor in rows]))
