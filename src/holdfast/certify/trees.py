"""Proofs for tree ensembles of scikit-learn: bounds over leaves first, and an exact search where those are too loose.

The search is a mixed-integer program (:mod:`holdfast.certify.milp.trees`). Its answer is trusted in neither direction:
a counterexample is put through the estimator's own ``predict``, and a proof is made again by a branch and bound whose
every part is bounded by multipliers in plain arithmetic (:func:`holdfast.certify.milp.solver.proved`).
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.arguments import ball_of, inputs, labels, real
from holdfast.certify.certificate import LEAVES, LOOSE, PROGRAM, TIE, TIMEOUT, Certificate
from holdfast.certify.milp.solver import proved, solve
from holdfast.certify.milp.trees import encode_trees
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models.trees import Ensemble, ask, read_trees
from holdfast.threats import Ball
from holdfast.threats.norm import column

__all__ = ["certify_trees"]

Array = NDArray[np.float64]

Verdict = Literal["certified", "broken", "undecided"]
_LARGEST = float(np.finfo(np.float32).max)


def certify_trees(model: Any, x: Any, y: Any, threat: Ball | str, *, seconds: float = 20.0) -> list[Certificate]:
    """Prove that no admissible change turns an example into a mistake of a tree ensemble, or find one that does.

    Exact: what is left open ran out of time, or is a tie up to the rounding of sums.

    Parameters
    ----------
    model : estimator
        A fitted ``DecisionTreeClassifier``, ``RandomForestClassifier``, ``ExtraTreesClassifier`` or
        ``GradientBoostingClassifier``. It is only asked for predictions.
    x : Tensor or array
        ``(N, d)`` inputs in float32 or float64, inside the threat's box.
    y : Tensor or array
        ``(N,)`` class numbers: positions in ``model.classes_``.
    threat : Ball
        An L-infinity ball: its set are the numbers of the type of ``x`` from ``x - eps`` to ``x + eps``, both rounded
        to nearest as ``x + z`` is, and inside the box. Or an L0 ball: so many features may be any number of the box.
    seconds : float
        How long the search may take, an example.

    Returns
    -------
    list of Certificate
        One for each example; ``bound`` is in the estimator's own scores: probabilities, or what boosting's
        ``decision_function`` gives.

    Raises
    ------
    SettingError
        When the threat is neither an L-infinity nor an L0 ball.
    ModelError
        When the model is of another kind, not fitted, or does not answer as its trees do.
    DataError
        When inputs, labels and budgets do not fit each other, the box or the model.

    References
    ----------
    Kantchelian, Tygar and Joseph, "Evasion and hardening of tree ensemble classifiers", ICML 2016 (arXiv 1509.07892).
    """
    seconds = real("seconds", seconds, positive=False)
    threat = ball_of(threat)
    if threat.norm not in ("linf", "l0"):
        raise SettingError(f"threat: trees are proved in linf and l0, not in {threat.norm}: give one such as Linf(0.1)")
    ensemble = read_trees(model)
    x = _points(x, ensemble.features)
    y = labels(y, len(x))
    if not len(x):
        return []
    classes = len(ensemble.constant)
    if len(wrong := ((y < 0) | (y >= classes)).nonzero()):
        raise DataError(
            f"example {int(wrong[0, 0])} has label {int(y[wrong[0, 0]])}, but the model knows classes 0 to "
            f"{classes - 1}: give positions in model.classes_"
        )
    trees = _Trees(model, ensemble)
    answers = trees.answers(x)
    trees.compare(x, answers)
    sets = _sets(threat, x)
    return [
        Certificate("broken", "clean pass", None, x[row].clone(), 0.0)
        if answers[row] != label
        else trees.certify(sets[row], label, seconds)
        for row, label in enumerate(y.tolist())
    ]


def _points(x: Any, features: int) -> Tensor:
    """Inputs that the trees can take."""
    points = inputs(x).cpu()
    if points.dtype not in (torch.float32, torch.float64):
        raise DataError(f"x: inputs of {points.dtype} are not taken: give float32 or float64")
    if points.shape[1:] != (features,):
        raise DataError(
            f"x has the shape {tuple(points.shape)}, but the model takes {features} features: give (N, {features})"
        )
    if len(wrong := (~(points.double().abs() <= _LARGEST)).nonzero()):
        raise DataError(
            f"example {int(wrong[0, 0])} has {float(points[tuple(wrong[0])]):g} as feature {int(wrong[0, 1])}: give "
            "finite numbers of float32; nothing is proved of missing values"
        )
    return points


@dataclass(frozen=True, eq=False)
class _Set:
    """What may be done to one input.

    Parameters
    ----------
    x, lower, upper : Tensor
        ``(d,)`` the input, and the smallest and largest admissible number of each feature, all of one type.
    changes : float
        How many features may change.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    changes: float

    @property
    def seen(self) -> tuple[Array, Array, Array]:
        """The same as trees see them: rounding to float32 keeps the order of numbers."""
        x, lower, upper = (end.float().double().numpy() for end in (self.x, self.lower, self.upper))
        return x, lower, upper

    def contains(self, x: Tensor) -> bool:
        """Whether ``x``, ``(d,)``, is in it."""
        return bool(((self.lower <= x) & (x <= self.upper)).all() and (x != self.x).sum() <= self.changes)

    def within(self, ranges: dict[int, tuple[float, float]]) -> Tensor:
        """An input of which trees see features in given ranges, ``low < x <= high``, as near to ``x`` as it may be."""
        found, seen = self.x.clone(), self.seen[0]
        for feature, (low, high) in ranges.items():
            if low < seen[feature] <= high:
                continue
            value = high if seen[feature] > high else float(np.nextafter(np.float32(low), np.float32(np.inf)))
            found[feature] = found.new_tensor(value).clamp(self.lower[feature], self.upper[feature])
        return found


def _sets(threat: Ball, x: Tensor) -> list[_Set]:
    """The set of each input ``(N, d)``.

    The sum of input and budget is taken in float64 and rounded once more: of two numbers of float32 that is their sum
    in float32 (Figueroa, "When is double rounding innocuous?", SIGNUM Newsletter 30, 1995).
    """
    if len(outside := (~threat.admits(x, x)).nonzero()):
        raise DataError(
            f"example {int(outside[0, 0])} lies outside the box {threat.box}: scale the data to it, or change it"
        )
    wide = x.double()
    budget = threat.budget(wide)
    counts = threat.norm == "l0"
    reach = column(torch.where(budget > 0, torch.inf, budget) if counts else budget, wide)
    low, high = threat.box.ends(x)
    # What the box's tolerance forgave is in the set; what float32 cannot hold the estimators refuse.
    lower = (wide - reach).to(x.dtype).maximum(low).minimum(x).clamp_min(-_LARGEST)
    upper = (wide + reach).to(x.dtype).minimum(high).maximum(x).clamp_max(_LARGEST)
    changes = budget.tolist() if counts else [np.inf] * len(x)
    return [_Set(*one) for one in zip(x, lower, upper, changes, strict=True)]


@dataclass(frozen=True, eq=False)
class _Trees:
    """An estimator, and what was read of it."""

    model: Any
    ensemble: Ensemble

    def answers(self, x: Tensor) -> NDArray[np.intp]:
        """``(N,)`` the class numbers that the estimator itself answers."""
        return np.asarray(np.searchsorted(self.model.classes_, ask(self.model.predict, x.numpy())))

    def compare(self, x: Tensor, answers: NDArray[np.intp]) -> None:
        """Hold what was read against what the estimator answers."""
        scores = self.ensemble.scores(x.numpy().astype(np.float32))
        for row, (score, answer) in enumerate(zip(scores, answers.tolist(), strict=True)):
            if (score[answer] - score < -self.ensemble.needed(answer)).any():
                raise ModelError(
                    f"model: of example {row} its trees say {int(score.argmax())} and its predict says {answer}: "
                    "nothing can be proved of a predict that does not follow the trees"
                )

    def certify(self, among: _Set, y: int, seconds: float) -> Certificate:
        """One example that is classified as ``y``."""
        began = time.perf_counter()
        ensemble = self.ensemble
        x, lower, upper = among.seen
        leaves = [
            [leaf for leaf in tree.reached(lower, upper) if leaf.changes(x) <= among.changes] for tree in ensemble.trees
        ]
        start = ensemble.constant[y] - ensemble.constant
        needed = ensemble.needed(y)
        least = start + np.sum([np.min([f.votes[y] - f.votes for f in tree], 0) for tree in leaves], 0)
        least[y], needed[y] = np.inf, 0
        rivals = np.flatnonzero(~(least >= needed))

        def found(verdict: Verdict, method: str, x_adv: Tensor | None = None, note: str = "") -> Certificate:
            bound = None if x_adv is not None else float((least - ensemble.rounding(y)).min()) / ensemble.share
            return Certificate(verdict, method, bound, x_adv, time.perf_counter() - began, note)

        if not len(rivals):
            return found("certified", LEAVES)
        encoding, until = encode_trees(leaves, x, among.changes), began + seconds
        note = ""
        for k in rivals[np.argsort(least[rivals])].tolist():
            lead = encoding.lead(y, k)
            minimum = solve(encoding.program, lead, seconds=until - time.perf_counter())
            tie = False
            if minimum.variables is not None:
                x_adv = among.within(encoding.ranges(minimum.variables))
                if among.contains(x_adv) and self.answers(x_adv[None])[0] != y:
                    return found("broken", PROGRAM, x_adv)
                scores = ensemble.scores(x_adv[None].float().numpy())[0]
                tie = bool(scores[y] - scores[k] < needed[k])
            # Sums on a lattice that are known to lie above one of its points are at the next.
            goal = float(needed[k] - 0.9 * ensemble.lattice - start[k])
            proof = -np.inf if tie else proved(encoding.program, lead, goal=goal, seconds=until - time.perf_counter())
            if proof >= goal:
                least[k] = needed[k]
            else:
                least[k] = max(least[k], proof + start[k])
                note = TIE if tie else TIMEOUT if time.perf_counter() > until else LOOSE
        return found("undecided", PROGRAM, note=note) if note else found("certified", PROGRAM)
