"""The matrix of inputs, dense or sparse, as a solver asks for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Design", "Gram"]

Array = NDArray[np.float64]

_CHUNK = 2**22  # entries of the rows that are weighted at a time, so that no second matrix of inputs is made


@dataclass(frozen=True)
class Design:
    """``(n, d)`` inputs; single precision is kept for products, sums over chunks are in double."""

    x: Any

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.x.shape
        return n, d

    def times(self, w: Array) -> Array:
        """``(n,)`` of ``x w``."""
        return np.asarray(self.x @ w.astype(self.x.dtype), np.float64)

    def gather(self, v: Array) -> Array:
        """``(d,)`` of ``x^T v``, or ``(k, d)`` for the rows of ``v`` ``(k, n)``."""
        return np.asarray(v.astype(self.x.dtype) @ self.x, np.float64)

    def spread(self, weight: Array) -> Array:
        """``(d,)`` the standard deviations of the columns, for weights that sum to 1."""
        squares = self.x.multiply(self.x) if sparse.issparse(self.x) else self.x * self.x
        mean, second = self.gather(weight), Design(squares).gather(weight)
        return np.sqrt(np.maximum(second - mean**2, 0))

    def gram(self, weight: Array) -> Array:
        """``(d, d)`` of ``x^T diag(weight) x``, for weights of at least 0."""
        n, d = self.shape
        root = np.sqrt(np.maximum(weight, 0)).astype(self.x.dtype)
        if sparse.issparse(self.x):
            rows = sparse.diags_array(root) @ self.x
            return np.asarray((rows.T @ rows).toarray(), np.float64)
        total = np.zeros((d, d))
        chunk = max(_CHUNK // d, 1)
        for start in range(0, n, chunk):
            rows = self.x[start : start + chunk] * root[start : start + chunk, None]
            total += rows.T @ rows
        return total


class Gram:
    """``x^T diag(v) x`` for weights ``v`` that change from step to step, summed anew only when they changed enough."""

    def __init__(self, design: Design) -> None:
        n, d = design.shape
        self.design, self.matrix, self.weights = design, np.zeros((d, d)), np.zeros(n)

    def follow(self, weights: Array, stale: float) -> None:
        """Take up new weights, of at least 0, unless they are within the share ``stale`` of those at hand."""
        if np.abs(weights - self.weights).sum() > stale * self.weights.sum():
            self.matrix, self.weights = self.design.gram(weights), weights
