"""What an adversary can do to a linear classifier, in closed form.

With logits ``W x + c`` and ``1/p + 1/q = 1``, the worst a perturbation of ``||d||_p <= eps`` does to the lead of
class ``y``
over class ``k`` is ``eps ||W_y - W_k||_q``, and the least over ``k`` of what remains is exact. Inside a box the same
holds with
the maximum of ``<W_k - W_y, d>`` over ball and box.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.threats import Ball

__all__ = ["Decision"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """Logits ``(N, K)`` of ``x`` ``(N, d)``: ``x weight^T + bias``; a tie is nobody's."""

    weight: Array
    bias: Array

    def logits(self, x: Any) -> Array:
        """``(N, K)``, also of sparse inputs."""
        return np.asarray(x @ self.weight.T + self.bias, np.float64)

    def leads(self, x: Any, y: NDArray[np.intp], eps: float, unit: Ball) -> Array:
        """``(N, K)`` the worst lead of class ``y`` over every other one, without a box; infinite over itself."""
        logits = self.logits(x)
        rows = np.arange(len(y))
        leads = logits[rows, y][:, None] - logits - eps * self.distances(unit)[y]
        leads[rows, y] = np.inf
        return leads

    def distances(self, unit: Ball) -> Array:
        """``(K, K)`` the dual norms of the differences of weights."""
        weight = torch.from_numpy(self.weight)
        return np.stack([unit.dual_norm(weight - row).numpy() for row in weight])

    def radius(self, x: Any, unit: Ball) -> Array:
        """``(N,)`` how far the prediction is from its nearest change; infinite where none can come."""
        y = self.logits(x).argmax(1)
        leads, slopes = self.leads(x, y, 0.0, unit), self.distances(unit)[y]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(slopes > 0, leads / slopes, np.inf).min(1))

    def worst(self, x: Array, y: NDArray[np.intp], ball: Ball) -> tuple[Array, Array]:
        """The worst perturbation inside ball and box, ``(N, d)``, and the lead that it leaves, ``(N,)``."""
        inputs, logits = torch.from_numpy(x), self.logits(x)
        rows = np.arange(len(y))
        least, found = np.full(len(y), np.inf), np.zeros_like(x)
        for k in range(len(self.bias)):
            towards = self.weight[k] - self.weight[y]
            move = ball.maximize(torch.from_numpy(towards), inputs).numpy()
            lead = np.where(y == k, np.inf, logits[rows, y] - logits[:, k] - (towards * move).sum(1))
            better = lead < least
            least[better], found[better] = lead[better], move[better]
        return found, least
