"""What an adversary can do to a linear classifier, in closed form, and what of it is proved.

With logits ``W x + c`` and ``1/p + 1/q = 1``, the worst a perturbation of ``||d||_p <= eps`` does to the lead of class
``y`` over class ``k`` is ``eps ||W_y - W_k||_q``, and the least over ``k`` of what remains is exact. Inside a box the
same holds with the maximum of ``<W_k - W_y, d>`` over ball and box.

What is proved is a statement about logits that are computed in float64, in any order of their sums: one of ``n`` terms
is off by at most ``gamma_n`` times the sum of the sizes of the terms, at ``x`` and wherever the adversary goes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.linear.support import dual_norm, most
from holdfast.rounding import gamma, unit
from holdfast.threats import Ball

__all__ = ["Decision"]

Array = NDArray[np.float64]

_UNIT, _TINY, _LARGEST = unit(torch.float64), float(np.finfo(np.float64).smallest_subnormal), np.finfo(np.float64).max
# Roundings of the few steps from logits and sizes to what is proved.
_FEW = 32


@dataclass(frozen=True)
class Decision:
    """Logits ``(N, K)`` of ``x`` ``(N, d)``: ``x weight^T + bias``; a tie is nobody's."""

    weight: Array
    bias: Array

    def logits(self, x: Any) -> Array:
        """``(N, K)``, also of sparse inputs."""
        return np.asarray(x @ self.weight.T + self.bias, np.float64)

    def margin(self, x: Any, y: NDArray[np.intp]) -> Array:
        """``(N,)`` the lead of class ``y`` over the nearest other one, as it is computed."""
        logits, rows = self.logits(x), np.arange(len(y))
        leads = logits[rows, y][:, None] - logits
        leads[rows, y] = np.inf
        return np.asarray(leads.min(1))

    def sure(self, x: Any, y: NDArray[np.intp], ball: Ball) -> NDArray[np.bool_]:
        """``(N,)`` whether class ``y`` is proved to lead wherever the ball goes, whatever the box."""
        return self._leading(x, y, ball, self._slopes(ball)[y] * float(ball.eps))

    def sure_inside(self, x: Array, y: NDArray[np.intp], ball: Ball) -> NDArray[np.bool_]:
        """``(N,)`` the same within ball and box."""
        return self._leading(x, y, ball, np.stack([most(ball, row - self.weight[y], x) for row in self.weight], 1))

    def radius(self, x: Any, ball: Ball) -> Array:
        """``(N,)`` how far the prediction is proved to stay as it is, in the norm of a ball whose size is not used.

        Infinite where it depends on no input.
        """
        logits, sizes, rows = self.logits(x), self._sizes(x), np.arange(x.shape[0])
        y, own = logits.argmax(1), dual_norm(ball, self.weight)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            leads = logits[rows, y][:, None] - logits - 2 * self._pairs(self._off(sizes), y)
            # For each unit of distance the lead falls by this much, and rounding may take so much more.
            slopes = self._slopes(ball)[y] + self._pairs(np.where(own > 0, self._off(own), 0.0)[None], y)
            radii = np.where(slopes > 0, leads * (1 - _FEW * _UNIT) / slopes, np.where(leads > 0, np.inf, 0.0))
            room = np.where(own > 0, (_LARGEST / 4 - sizes) / own, np.inf)
        radii[rows, y] = np.inf
        return np.asarray(np.fmax(np.minimum(radii.min(1), room.min(1)), 0.0))

    def worst(self, x: Array, y: NDArray[np.intp], ball: Ball) -> Array:
        """``(N, d)`` the worst inputs inside ball and box."""
        inputs, logits = torch.from_numpy(x), self.logits(x)
        rows = np.arange(len(y))
        least, found = np.full(len(y), np.inf), np.zeros_like(x)
        for k in range(len(self.bias)):
            towards = self.weight[k] - self.weight[y]
            move = ball.maximize(torch.from_numpy(towards), inputs).numpy()
            lead = np.where(y == k, np.inf, logits[rows, y] - logits[:, k] - (towards * move).sum(1))
            better = lead < least
            least[better], found[better] = lead[better], move[better]
        return ball.apply(inputs, torch.from_numpy(found)).numpy()

    def _leading(self, x: Any, y: NDArray[np.intp], ball: Ball, gains: Array) -> NDArray[np.bool_]:
        """Whether ``y`` leads every class by more than that can gain, ``(N, K)``, and than rounding may add to it."""
        logits, sizes, rows = self.logits(x), self._sizes(x), np.arange(len(y))
        away = sizes + float(ball.eps) * dual_norm(ball, self.weight)
        with np.errstate(invalid="ignore"):
            lost = self._pairs(self._off(sizes), y) + self._pairs(self._off(away), y)
            leads = (logits[rows, y][:, None] - logits) - gains - lost
        leads[rows, y] = np.inf
        # A comparison with what is no number is false.
        return np.asarray((leads > 0).all(1))

    def _sizes(self, x: Any) -> Array:
        """``(N, K)`` the sum of the sizes of all terms of a logit."""
        return np.asarray(abs(x) @ np.abs(self.weight).T + np.abs(self.bias), np.float64)

    def _off(self, sizes: Array) -> Array:
        """By how much a logit whose terms have these sizes may be off, with the rounding of the sizes themselves."""
        terms = self.weight.shape[1] + 1
        off = sizes * gamma(2 * terms + _FEW, _UNIT) + (2 * terms + _FEW) * _TINY
        # A sum that may overflow on the way may be anything.
        return np.where(sizes <= _LARGEST / 2, off, np.inf)

    def _slopes(self, ball: Ball) -> Array:
        """``(K, K)`` no less than the dual norms of the differences of weights."""
        share = 1 + gamma(self.weight.shape[1] + _FEW, _UNIT)
        return np.stack([dual_norm(ball, self.weight - row) for row in self.weight]) * share

    @staticmethod
    def _pairs(values: Array, y: NDArray[np.intp]) -> Array:
        """``(N, K)`` what class ``y`` and every other one have together."""
        own = np.broadcast_to(values, (len(y), values.shape[1]))
        return own[np.arange(len(y)), y][:, None] + values
