"""Robust linear regression as a scikit-learn estimator."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from holdfast.arguments import whole, yes_or_no
from holdfast.errors import SettingError
from holdfast.linear.design import Design
from holdfast.linear.losses import Squared
from holdfast.linear.settings import ball, budget, budgets, plain, positive, reading, warn_unless_certified, weighted
from holdfast.linear.solver import Problem, Solution, solve
from holdfast.threats.box import Bound, Box

__all__ = ["RobustRidge"]

Array = NDArray[np.float64]
BoxArgument = Box | tuple[Bound, Bound] | None


class RobustRidge(RegressorMixin, BaseEstimator):
    """Least squares on the worst case of every example.

    The worst squared error of ``w.x + b`` over ``||d||_p <= eps`` is ``(|y - w.x - b| + eps ||w||_q)^2`` with
    ``1/p + 1/q = 1`` (Ribeiro et al. 2023, 2310.10807), and

        ``sum_i s_i (|y_i - w.x_i - b| + eps ||w||_q)^2 + alpha ||w||_2^2``

    is solved exactly. With ``eps=0`` it is scikit-learn's ``Ridge`` with the same ``alpha``.

    Parameters
    ----------
    eps : float or str
        How far the adversary may move an input, in the units of ``X``.
    norm : {1, 2, numpy.inf}
        In which norm.
    alpha : float
        Strength of the further regularisation; 0 for none.
    fit_intercept : bool
        Whether there is a ``b``, which is never penalised.
    tol : float
        The certified gap at which to stop, as a share of the objective.
    max_iter : int
        Steps of the interior-point method at most.

    Attributes
    ----------
    coef_ : (d,) array
    intercept_ : float
    objective_ : float
        The value above.
    gap_ : float
        How far ``objective_`` lies above the minimum at most, from a point of the dual problem: up to the rounding of
        both values, which are computed in the precision of the data.
    n_iter_ : int
        Steps of the interior-point method.
    """

    def __init__(
        self,
        eps: float | str = 0.1,
        *,
        norm: float | str = np.inf,
        alpha: float = 1.0,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 200,
    ) -> None:
        self.eps = eps
        self.norm = norm
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to ``X`` ``(n, d)``, dense or sparse, and targets ``y`` ``(n,)``.

        Raises
        ------
        SettingError
            When a setting makes no sense.
        ValueError
            When the data cannot be used, as scikit-learn's estimators do.
        """
        return self._fit(X, y, sample_weight, None)

    def path(self, X: Any, y: Any, eps_grid: Sequence[float | str], sample_weight: Any = None) -> list[Self]:
        """Estimators fitted for each budget of ``eps_grid``, each starting from the one before."""
        fitted: list[Self] = []
        for eps in budgets(eps_grid):
            start = fitted[-1]._solution if fitted else None
            fitted.append(clone(self).set_params(eps=eps)._fit(X, y, sample_weight, start))
        return fitted

    def _fit(self, x: Any, y: Any, sample_weight: Any, start: Solution | None) -> Self:
        unit, eps = ball(self.norm), budget(self.eps)
        alpha, tol = positive("alpha", self.alpha, or_zero=True), positive("tol", self.tol)
        with reading():
            x, y = validate_data(
                self, plain(x), plain(y), accept_sparse="csr", dtype=(np.float64, np.float32), y_numeric=True
            )
            y = y.astype(np.float64)
            s = _check_sample_weight(plain(sample_weight), x, dtype=np.float64)
        x, y, s = weighted(x, y, s)
        mass = float(s.sum())
        if not np.isfinite(2 * alpha / mass):
            raise SettingError("alpha: too large beside the weights of examples for double precision")
        s = s / mass
        centre = float(s @ y)
        spread = float(np.sqrt(s @ (y - centre) ** 2)) or 1.0
        problem = Problem(
            Design(x),
            Squared(y, s, eps),
            unit,
            eps,
            spread,
            2 * alpha / mass,
            yes_or_no("fit_intercept", self.fit_intercept),
        )
        self._solution = solve(problem, tol, whole("max_iter", self.max_iter, 0), start)
        warn_unless_certified([self._solution], tol)
        self.coef_, self.intercept_ = self._solution.w, self._solution.b
        self.objective_, self.gap_ = mass * self._solution.objective, mass * self._solution.gap
        self.n_iter_ = max(1, self._solution.iterations)
        return self

    def _inputs(self, x: Any) -> Any:
        check_is_fitted(self)
        with reading():
            return validate_data(self, plain(x), accept_sparse="csr", dtype=np.float64, reset=False)

    def predict(self, X: Any) -> Array:
        """``(n,)`` of ``w.x + b``."""
        return np.asarray(self._inputs(X) @ self.coef_ + self.intercept_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination, as scikit-learn's estimators have it."""
        with reading():
            return float(super().score(X, plain(y), plain(sample_weight)))

    def worst_case(self, X: Any, y: Any, eps: float | str | None = None, box: BoxArgument = None) -> Array:
        """``(n, d)`` admissible inputs with the largest error, also inside a ``box``."""
        x = self._inputs(X)
        with reading():
            y = np.asarray(plain(y), np.float64)
        x = x.toarray() if sparse.issparse(x) else x
        threat = ball(self.norm, budget(self.eps if eps is None else eps), box)
        error, inputs = x @ self.coef_ + self.intercept_ - y, torch.from_numpy(x)
        towards = torch.from_numpy(self.coef_).expand(len(x), -1)
        up, down = threat.maximize(towards, inputs).numpy(), threat.maximize(-towards, inputs).numpy()
        rises = np.abs(error + up @ self.coef_) >= np.abs(error + down @ self.coef_)
        return threat.apply(inputs, torch.from_numpy(np.where(rises[:, None], up, down))).numpy()

    def robust_score(
        self,
        X: Any,
        y: Any,
        eps: float | str | None = None,
        box: BoxArgument = None,
    ) -> float:
        """The coefficient of determination on the worst inputs, as it is computed there: no bound."""
        return float(r2_score(plain(y), self.predict(self.worst_case(X, y, eps, box))))
