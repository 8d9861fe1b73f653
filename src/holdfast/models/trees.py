"""Tree ensembles of scikit-learn as tables: nodes, thresholds, and what every leaf adds to the score of each class.

What is read are public attributes: ``tree_``, ``estimators_``, ``classes_``, ``learning_rate``. The trees compare
inputs in float32 with thresholds in float64, and sum leaves in float64; both are kept as they run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.errors import ModelError
from holdfast.rounding import gamma, unit
from holdfast.threats.numbers import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CONSTANT", "TAKEN", "Ensemble", "Leaf", "Tree", "ask", "read_trees"]

Array = NDArray[np.float64]

TAKEN = "DecisionTreeClassifier, RandomForestClassifier, ExtraTreesClassifier and GradientBoostingClassifier"
_UNIT, _TINY = unit(torch.float64), float(np.finfo(np.float64).smallest_subnormal)
# Lattices that votes may lie on, coarsest first: whole votes of pure leaves, and a few binary fractions.
_LATTICES = (1.0, 2.0**-10, 2.0**-20)
# Strategies of a DummyClassifier that answer the same to all inputs.
CONSTANT = ("prior", "most_frequent", "constant")
# What a sum may be, in steps of its lattice, so that neither it nor its quotients lose a step.
_STEPS = 2.0**50


@dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that inputs between some bounds reach.

    Parameters
    ----------
    votes : ndarray
        ``(K,)`` what it adds to the scores.
    ranges : dict
        By feature, the ``(low, high)`` between which its inputs lie, ``low < x <= high``, where that is narrower than
        the bounds.
    """

    votes: Array
    ranges: dict[int, tuple[float, float]]

    def changes(self, x: Array) -> int:
        """How many features of ``x``, ``(d,)``, must change at least for it to get here."""
        return sum(not low < x[feature] <= high for feature, (low, high) in self.ranges.items())


@dataclass(frozen=True, eq=False)
class Tree:
    """One tree: an input with ``x[feature] <= threshold`` goes left.

    Parameters
    ----------
    feature, left, right : ndarray
        ``(M,)``, of each node; ``left`` is -1 at leaves.
    threshold : ndarray
        ``(M,)`` the largest number of float32 below or at the node's threshold: inputs of float32 tell no difference.
    votes : ndarray
        ``(M, K)`` what leaves add to the scores.
    """

    feature: NDArray[np.intp]
    threshold: Array
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    votes: Array

    @cached_property
    def _nodes(self) -> list[tuple[int, float, int, int]]:
        """Feature, threshold, left and right of each node, as Python's own numbers: those are quick one by one."""
        columns = (self.feature, self.threshold, self.left, self.right)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def reached(self, lower: Array, upper: Array) -> list[Leaf]:
        """The leaves that inputs between ``lower`` and ``upper``, ``(d,)`` numbers of float32, reach."""
        nodes, least_of, most_of = self._nodes, lower.tolist(), upper.tolist()
        found: list[Leaf] = []
        open_: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
        while open_:
            node, ranges = open_.pop()
            f, cut, left, right = nodes[node]
            if left < 0:
                found.append(Leaf(self.votes[node], ranges))
                continue
            low, high = ranges.get(f, (-np.inf, np.inf))
            least, most = least_of[f], most_of[f]
            goes_left, goes_right = low < cut and least <= cut, cut < high and cut < most
            if goes_left:
                open_.append((left, ranges if most <= cut else ranges | {f: (low, min(high, cut))}))
            if goes_right:
                open_.append((right, ranges if cut < least else ranges | {f: (max(low, cut), high)}))
        return found


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Scores of ``K`` classes: a constant, and the sum of one leaf of every tree.

    Parameters
    ----------
    trees : sequence of Tree
        The trees.
    constant : ndarray
        ``(K,)``.
    features : int
        How many numbers an input has.
    share : float
        By what the estimator divides sums to make scores.
    first : bool
        Whether of classes that tie the first wins, or the last.
    exact : bool
        Whether nothing but leaves is summed.
    """

    trees: Sequence[Tree]
    constant: Array
    features: int
    share: float
    first: bool
    exact: bool

    @cached_property
    def reach(self) -> Array:
        """``(K,)`` what the sizes of a score's terms add up to at most."""
        sizes = [np.abs(tree.votes[tree.left < 0]).max(0) for tree in self.trees]
        return np.asarray(np.abs(self.constant) + np.sum(sizes, 0))

    @cached_property
    def lattice(self) -> float:
        """A number of which every score is a multiple, summed without rounding in any order; 0 where none is known."""
        if not self.exact:
            return 0.0
        if len(self.trees) == 1:
            return _TINY
        votes = np.concatenate([tree.votes[tree.left < 0].ravel() for tree in self.trees])
        fits = (
            step for step in _LATTICES if (votes / step % 1 == 0).all() and self.reach.max() < np.float64(_STEPS) * step
        )
        return next(fits, 0.0)

    def rounding(self, y: int) -> Array:
        """``(K,)`` what the lead of class ``y`` over each other one may be off by, whatever the order of summation.

        On a lattice sums are exact. Elsewhere a score is off by ``gamma_n`` times what the sizes of its ``n`` terms add
        up to (Higham, "Accuracy and stability of numerical algorithms", 2002, lemma 3.1): once where it runs, twice in
        the constant, which is a difference of two such sums, once in the difference of two classes and once in the
        sums of those here.
        """
        terms = len(self.trees) + 8
        size = 5 * gamma(terms, _UNIT) * (self.reach + self.reach[y]) + terms * _TINY
        return np.where(self.lattice > 0, 0.0, size)

    def needed(self, y: int) -> Array:
        """``(K,)`` by how much the sum of class ``y`` must exceed each other one for the estimator to answer ``y``.

        A class that loses ties must be ahead, also after the division by ``share``.
        """
        classes = np.arange(len(self.constant))
        loses = classes < y if self.first else classes > y
        ahead = self.lattice or gamma(4, _UNIT) * (self.reach + self.reach[y])
        return np.asarray(self.rounding(y) + np.where(loses, ahead, 0.0))

    def scores(self, x: NDArray[np.float32]) -> Array:
        """``(N, K)`` the sums of inputs ``(N, d)``."""
        return np.asarray(self.constant + np.sum([tree.votes[_leaves(tree, x)] for tree in self.trees], 0))


def read_trees(model: Any) -> Ensemble:
    """Read a fitted classifier of scikit-learn.

    Parameters
    ----------
    model : estimator
        One of :data:`TAKEN`.

    Raises
    ------
    ModelError
        When it is another one, was not fitted, knows one class only or several outputs, or starts its boosting from
        another model.
    """
    from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    single = isinstance(model, DecisionTreeClassifier)
    boosted = isinstance(model, GradientBoostingClassifier)
    if not (single or boosted or isinstance(model, RandomForestClassifier | ExtraTreesClassifier)):
        raise ModelError(f"model: a {type_of(model)} is not taken; taken are {TAKEN}")
    if not hasattr(model, "tree_" if single else "estimators_"):
        raise ModelError(f"model: the {type_of(model)} has not been fitted: call its fit first")
    if getattr(model, "n_outputs_", 1) != 1:
        raise ModelError(f"model: the {type_of(model)} answers {model.n_outputs_} questions at once: fit one for each")
    if len(model.classes_) < 2:
        raise ModelError(f"model: the {type_of(model)} knows one class only: there is nothing to prove")
    if boosted:
        return _boosted(model)
    trees = [model] if single else model.estimators_
    tables = [_tree(one.tree_, one.tree_.value[:, 0, :]) for one in trees]
    return Ensemble(tables, np.zeros(len(model.classes_)), model.n_features_in_, len(tables), first=True, exact=True)


def _boosted(model: Any) -> Ensemble:
    """Gradient boosting: with two classes there is one score, and the second class has it from 0 on."""
    from sklearn.dummy import DummyClassifier

    start = model.init_
    if not (isinstance(start, str) or (isinstance(start, DummyClassifier) and start.strategy in CONSTANT)):
        raise ModelError(f"model: boosting that starts from a {type_of(start)} is not taken: leave init as it is")
    stages = np.asarray(model.estimators_)
    binary = stages.shape[1] == 1
    classes = len(model.classes_)
    trees = []
    for number, one in ((k, tree.tree_) for stage in stages for k, tree in enumerate(stage)):
        votes = np.zeros((one.node_count, classes))
        votes[:, number + binary] = model.learning_rate * one.value[:, 0, 0]
        trees.append(_tree(one, votes))
    alone = Ensemble(trees, np.zeros(classes), model.n_features_in_, 1, first=not binary, exact=False)
    # What the start adds is what the trees do not.
    anywhere = np.zeros((1, model.n_features_in_), np.float32)
    score = np.zeros(classes)
    score[int(binary) :] = ask(model.decision_function, anywhere).ravel()
    found = replace(alone, constant=score - alone.scores(anywhere)[0])
    if not np.isfinite(found.reach).all():
        raise ModelError("model: the scores of the GradientBoostingClassifier overflow: lower its learning_rate")
    return found


def ask(method: Any, x: Any) -> Any:
    """What a method of an estimator says of an array, also where the estimator was fitted to a table with names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        return method(x)


def _tree(one: Any, votes: Array) -> Tree:
    exact = one.threshold.astype(np.float64)
    with np.errstate(over="ignore"):
        near = exact.astype(np.float32)
    floor = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)
    feature = np.maximum(one.feature, 0)  # leaves have none
    return Tree(feature, floor, one.children_left, one.children_right, np.ascontiguousarray(votes, np.float64))


def _leaves(tree: Tree, x: NDArray[np.float32]) -> NDArray[np.intp]:
    nodes = np.zeros(len(x), np.intp)
    rows = np.arange(len(x))
    while (inner := tree.left[nodes] >= 0).any():
        goes_left = x[rows, tree.feature[nodes]] <= tree.threshold[nodes]
        below = np.where(goes_left, tree.left[nodes], tree.right[nodes])
        nodes = np.where(inner, below, nodes)
    return cast("NDArray[np.intp]", nodes)
