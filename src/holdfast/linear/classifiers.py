"""Robust linear classifiers as scikit-learn estimators."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from holdfast.arguments import whole, yes_or_no
from holdfast.errors import SettingError
from holdfast.linear.decision import Decision
from holdfast.linear.design import Design
from holdfast.linear.losses import Hinge, Logistic, Loss
from holdfast.linear.settings import (
    ball,
    budget,
    budgets,
    class_weights,
    plain,
    positive,
    reading,
    warn_if_separable,
    warn_unless_certified,
    weighted,
)
from holdfast.linear.solver import Problem, Solution, solve
from holdfast.threats.box import Bound, Box

__all__ = ["RobustLinearClassifier", "RobustLinearSVC", "RobustLogisticRegression"]

Array = NDArray[np.float64]
Labels = NDArray[Any]
BoxArgument = Box | tuple[Bound, Bound] | None


class RobustLinearClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier fitted to the worst case: what :class:`RobustLogisticRegression` and others have in common.

    For labels ``y`` in {-1, 1}, perturbations ``||d||_p <= eps`` and ``1/p + 1/q = 1`` the worst case of a loss that
    does
    not rise with the margin is ``loss(y (w.x + b) - eps ||w||_q)``, so that

        ``||w||_2^2 / 2 + C sum_i s_i loss(y_i (w.x_i + b) - eps ||w||_q)``

    is solved exactly: the dual norm stays inside the loss. More than two classes are fitted one against the rest.

    Attributes
    ----------
    coef_ : (1, d) or (K, d) array
    intercept_ : (1,) or (K,) array
    classes_ : (K,) array
    objective_ : float
        The value above, summed over the problems of one class against the rest.
    gap_ : float
        How far ``objective_`` lies above the minimum at most, from a point of the dual problem: up to the rounding of
        both values, which are computed in the precision of the data.
    n_iter_ : int
        Steps of the interior-point method, of the problem that took most.
    """

    _loss: Callable[[Array, Array, float], Loss]

    def __init__(
        self,
        eps: float | str = 0.1,
        *,
        norm: float | str = np.inf,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        tol: float = 1e-6,
        max_iter: int = 200,
    ) -> None:
        self.eps = eps
        self.norm = norm
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to ``X`` ``(n, d)``, dense or sparse, and labels ``y`` ``(n,)``.

        Raises
        ------
        SettingError
            When a setting makes no sense.
        ValueError
            When the data cannot be used, as scikit-learn's estimators do.
        """
        return self._fit(X, y, sample_weight, [])

    def path(self, X: Any, y: Any, eps_grid: Sequence[float | str], sample_weight: Any = None) -> list[Self]:
        """Estimators fitted for each budget of ``eps_grid``, each starting from the one before."""
        fitted: list[Self] = []
        for eps in budgets(eps_grid):
            start = fitted[-1]._solutions if fitted else []
            fitted.append(clone(self).set_params(eps=eps)._fit(X, y, sample_weight, start))
        return fitted

    def _fit(self, x: Any, y: Any, sample_weight: Any, start: list[Solution]) -> Self:
        unit, eps = ball(self.norm), budget(self.eps)
        strength, tol = positive("C", self.C), positive("tol", self.tol)
        with reading():
            x, y = validate_data(self, plain(x), plain(y), accept_sparse="csr", dtype=(np.float64, np.float32))
            check_classification_targets(y)
            s = _check_sample_weight(plain(sample_weight), x, dtype=np.float64)
        x, y, s = weighted(x, y, s)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 classes; the data hold only one class")
        x, codes, s = weighted(x, codes, s * class_weights(self.class_weight, self.classes_, y)[codes])
        if len(left := np.unique(codes)) < len(self.classes_):
            gone = self.classes_[np.setdiff1d(np.arange(len(self.classes_)), left)[0]]
            raise SettingError(f"class_weight: leaves the class {gone} no example with a weight; give it one above 0")
        # All that the solver sees is divided by the sum of weights: it works with averages.
        mass = float(s.sum()) * (strength if np.isfinite(strength) else 1.0)
        if not 0 < mass < np.inf or not np.isfinite(1 / mass):
            raise SettingError("C: too large or small beside the weights of examples and classes for double precision")
        design, s = Design(x), s / s.sum()
        ridge = 1 / mass if np.isfinite(strength) else 0.0
        wanted = range(len(self.classes_)) if len(self.classes_) > 2 else (1,)
        self._solutions = []
        for number, k in enumerate(wanted):
            loss = self._loss(np.where(codes == k, 1.0, -1.0), s, eps)
            problem = Problem(design, loss, unit, eps, 1.0, ridge, yes_or_no("fit_intercept", self.fit_intercept))
            self._solutions.append(
                solve(problem, tol, whole("max_iter", self.max_iter, 0), start[number] if start else None)
            )
        warn_unless_certified(self._solutions, tol)
        warn_if_separable(self._solutions)
        self.coef_ = np.stack([solution.w for solution in self._solutions])
        self.intercept_ = np.array([solution.b for solution in self._solutions])
        self.objective_ = mass * sum(solution.objective for solution in self._solutions)
        self.gap_ = mass * sum(solution.gap for solution in self._solutions)
        self.n_iter_ = max(1, *(solution.iterations for solution in self._solutions))
        return self

    def _decision(self) -> Decision:
        """Logits of every class; with two classes those of the first are 0."""
        check_is_fitted(self)
        if len(self.classes_) > 2:
            return Decision(self.coef_, self.intercept_)
        return Decision(np.vstack((0 * self.coef_, self.coef_)), np.r_[0.0, self.intercept_])

    def _inputs(self, x: Any) -> Any:
        check_is_fitted(self)
        with reading():
            return validate_data(self, plain(x), accept_sparse="csr", dtype=np.float64, reset=False)

    def _labelled(self, x: Any, y: Any) -> tuple[Any, NDArray[np.intp]]:
        """Inputs, and labels as positions in ``classes_``."""
        x = self._inputs(x)
        with reading():
            y = np.asarray(plain(y))
        codes = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        if len(y) != x.shape[0] or not np.array_equal(self.classes_[codes], y):
            raise ValueError(f"y: needs one of the {len(self.classes_)} fitted classes for each of {x.shape[0]} inputs")
        return x, codes

    def decision_function(self, X: Any) -> Array:
        """``(n,)`` of ``w.x + b`` for two classes, ``(n, K)`` for more."""
        logits = self._decision().logits(self._inputs(X))
        return logits if len(self.classes_) > 2 else logits[:, 1]

    def predict(self, X: Any) -> Labels:
        """``(n,)`` labels."""
        best = self._decision().logits(self._inputs(X)).argmax(1)
        return np.asarray(self.classes_[best])

    def margin(self, X: Any, y: Any) -> Array:
        """``(n,)`` the lead of the true class over the nearest other one, ``y (w.x + b)`` for two classes."""
        x, codes = self._labelled(X, y)
        return self._decision().margin(x, codes)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of inputs whose label is predicted, as scikit-learn's estimators have it."""
        with reading():
            return float(super().score(X, plain(y), plain(sample_weight)))

    def certified_radius(self, X: Any) -> Array:
        """``(n,)`` how far the prediction is proved to stay the same, in ``norm`` and without a box.

        The distance to the nearest input with another prediction, ``|w.x + b| / ||w||_q`` for two classes and the
        least over pairs for more, less what rounding may do to a decision that is computed in float64, in whatever
        order its sum is taken (Higham 2002, section 3.1): a few units in the last place of the terms of that sum.
        """
        return self._decision().radius(self._inputs(X), ball(self.norm))

    def worst_case(self, X: Any, y: Any, eps: float | str | None = None, box: BoxArgument = None) -> Array:
        """``(n, d)`` admissible inputs with the least lead of the true class, also inside a ``box``."""
        x, codes = self._labelled(X, y)
        x = x.toarray() if sparse.issparse(x) else x
        return self._decision().worst(x, codes, ball(self.norm, budget(self.eps if eps is None else eps), box))

    def robust_score(
        self,
        X: Any,
        y: Any,
        eps: float | str | None = None,
        box: BoxArgument = None,
    ) -> float:
        """The share of inputs that no admissible perturbation makes misclassified; a tie counts as broken.

        Exact, and proved: an example counts only where its label holds for every float64 input in the set and every
        order of summation, so that one whose worst lead is within rounding of 0 does not.
        """
        x, codes = self._labelled(X, y)
        threat = ball(self.norm, budget(self.eps if eps is None else eps), box)
        if box is None:
            return float(self._decision().sure(x, codes, threat).mean())
        x = x.toarray() if sparse.issparse(x) else x
        return float(self._decision().sure_inside(x, codes, threat).mean())


class RobustLogisticRegression(RobustLinearClassifier):
    """Logistic regression on the worst case of every example: ``log(1 + exp(-(y (w.x + b) - eps ||w||_q)))``.

    With ``eps=0`` and two classes it is scikit-learn's ``LogisticRegression`` with the same ``C``.

    Parameters
    ----------
    eps : float or str
        How far the adversary may move an input, in the units of ``X``.
    norm : {1, 2, numpy.inf}
        In which norm.
    C : float
        Inverse strength of the further regularisation ``||w||_2^2 / 2``; ``numpy.inf`` for none.
    fit_intercept : bool
        Whether there is a ``b``, which is never penalised.
    class_weight : dict, "balanced" or None
        As for scikit-learn's classifiers.
    tol : float
        The certified gap at which to stop, as a share of the objective.
    max_iter : int
        Steps of the interior-point method at most.

    See Also
    --------
    RobustLinearClassifier : the methods, and what is fitted.
    """

    _loss = Logistic

    def predict_proba(self, X: Any) -> Array:
        """``(n, K)`` probabilities of clean inputs; for more than two classes those of one against the rest, scaled."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack((expit(-scores), expit(scores)), 1)
        share = expit(scores)
        return np.asarray(share / share.sum(1, keepdims=True))


class RobustLinearSVC(RobustLinearClassifier):
    """A linear support vector machine on the worst case of every example: ``max(0, 1 - y (w.x + b) + eps ||w||_q)``.

    With ``eps=0`` and two classes it is scikit-learn's ``SVC(kernel="linear")`` with the same ``C``: the hinge is
    not squared and
    the intercept not penalised. Parameters and methods are those of :class:`RobustLogisticRegression`, without
    probabilities.
    """

    _loss = Hinge
