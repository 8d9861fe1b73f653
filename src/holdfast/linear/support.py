"""The most a linear function can gain within a ball and a box, from above."""

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.rounding import gamma, unit
from holdfast.threats import Ball

__all__ = ["dual_norm", "most"]

Array = NDArray[np.float64]

_UNIT, _TINY = unit(torch.float64), float(np.finfo(np.float64).smallest_subnormal)
# Roundings of a term beside those of the sum that it is in.
_FEW = 16


def dual_norm(ball: Ball, g: Array) -> Array:
    """``(N,)`` the dual norms of the rows of ``g``, ``(N, d)``, at a scale at which no square vanishes or overflows.

    Off by at most ``gamma_(d + 8)`` relatively.
    """
    scale = np.abs(g).max(1)
    scaled = g / np.where(scale > 0, scale, 1.0)[:, None]
    return np.asarray(scale * ball.dual_norm(torch.from_numpy(scaled)).numpy())


def most(ball: Ball, g: Array, x: Array) -> Array:
    """No less than ``<g, z>`` for any admissible change ``z``.

    Whatever ``h``, a linear function gains at most what ``h`` gains in the ball and ``g - h`` in the box, and no more
    for the best ``h`` (Rockafellar, "Convex analysis", 1970, corollary 16.4.1): so that no step towards that needs to
    be exact. No term is negative, and all are off by few roundings.

    Parameters
    ----------
    ball : Ball
        In linf, l2 or l1, with one finite budget, and its box.
    g, x : array
        ``(N, d)`` each.

    Returns
    -------
    array
        ``(N,)``
    """
    eps = float(ball.eps)
    lower, upper = (end.clamp(-eps, eps).numpy() for end in ball.box.around(torch.from_numpy(x)))
    h = {"linf": _none, "l2": _multiple, "l1": _level}[ball.norm](ball, g, x, lower, upper)
    rest = g - h
    gains = np.where(rest > 0, rest * upper, rest * lower).sum(1) + eps * dual_norm(ball, h)
    terms = g.shape[1] + _FEW
    return np.asarray(gains * (1 + gamma(terms, _UNIT)) + terms * _TINY)


def _none(ball: Ball, g: Array, x: Array, lower: Array, upper: Array) -> Array:
    """In L-infinity the ball is part of the box by now."""
    return np.zeros_like(g)


def _multiple(ball: Ball, g: Array, x: Array, lower: Array, upper: Array) -> Array:
    """In L2 a multiple of the best change, which is the one that ``g`` itself is where the box leaves it free."""
    z = ball.maximize(torch.from_numpy(g), torch.from_numpy(x)).numpy()
    free = (lower < z) & (z < upper)
    length, slope = (np.linalg.norm(np.where(free, values, 0.0), axis=1) for values in (z, g))
    share = np.divide(slope, length, out=np.zeros_like(length), where=length > 0)
    return np.where(free, g, np.clip(share[:, None] * z, np.minimum(g, 0), np.maximum(g, 0)))


def _level(ball: Ball, g: Array, x: Array, lower: Array, upper: Array) -> Array:
    """In L1 what is not above the level at which the budget ends, when the largest coordinates are filled first."""
    sizes, room = np.abs(g), np.where(g > 0, upper, -lower)
    order = np.argsort(-sizes, axis=1, kind="stable")
    filled = np.take_along_axis(room, order, 1).cumsum(1) < float(ball.eps)
    # The largest size that is not filled, or 0.
    level = np.where(filled, 0.0, np.take_along_axis(sizes, order, 1)).max(1, keepdims=True)
    return np.clip(g, -level, level)
