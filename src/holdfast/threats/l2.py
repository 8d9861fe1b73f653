"""The L2 norm: the Euclidean length of the change. It is its own dual."""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.norm import climb, column, each, random_length, safe_divide, whole_box

name: Final = "l2"

cut = whole_box


def length(d: Tensor) -> Tensor:
    return _length(d).to(d.dtype)


dual = length


def steepest(g: Tensor) -> Tensor:
    # Scaling by the largest entry first keeps squares of tiny and of huge gradients away from 0 and infinity.
    scaled = safe_divide(g, column(g.abs().amax(each(g)), g))
    return safe_divide(scaled, column(length(scaled), g))


def ascend(z: Tensor, g: Tensor, size: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return project(z + size * steepest(g), radius, lower, upper)


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # By the optimality conditions the maximiser is a clipped multiple of g: the largest one that the ball allows.
    return _clipped_multiple(steepest(g), radius, lower, upper)


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # min |z - d|^2 has z = clip(d / (1 + mu)): again a clipped multiple of d, unless the box alone brings it inside.
    clipped = d.clamp(lower, upper)
    # What an earlier projection left on the sphere is inside, whichever way it was rounded, and stays as it is.
    inside = column(_length(clipped), d) <= radius * (1 + 2 * torch.finfo(d.dtype).eps)
    if bool(inside.all()):
        return clipped
    return torch.where(inside, clipped, _clipped_multiple(d, radius, lower, upper))


def retract(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    norm = column(_length(d), d)
    return (d * safe_divide(torch.minimum(norm, radius), norm).to(d.dtype)).clamp(lower, upper)


def to_plane(g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # By the optimality conditions the shortest move is a clipped multiple of g.
    return climb(g, g, gap, lower, upper)


def sphere(rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
    u = rng.normal(like.shape[1:].numel())
    return radius * (u / column(length(u), u)).to(like.dtype).reshape(like.shape)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    return (random_length(rng, like) * sphere(rng, radius, like)).clamp(lower, upper)


def _length(d: Tensor) -> Tensor:
    """The norms in float64, where the squares of float32 numbers neither overflow nor vanish."""
    norm: Tensor = torch.linalg.vector_norm(d, dim=each(d), dtype=torch.float64)
    return norm


def _clipped_multiple(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``clip(s d)`` with the ``s`` that gives it norm ``radius`` (or every coordinate at its bound, if that is less).

    ``|clip(s d)|^2`` is concave and piecewise linear in ``s^2``, so Newton's method started below the root climbs to
    it without overshooting and ends exactly, once no further coordinate reaches its bound. Every round but the last
    two fixes another coordinate, so it ends: after 5 rounds on random inputs, 174 on the slowest sequence we know.
    """
    size, room, target = d.abs(), torch.where(d < 0, -lower, upper), radius.double()
    # Where only the tiniest coordinates are free, an infinite multiple would make NaN of the zeros.
    most = torch.finfo(d.dtype).max
    s = safe_divide(target, column(_length(d), d)).clamp_max(most)
    while True:
        at_bound = s.to(d.dtype) * size >= room
        fixed = column(_length(torch.where(at_bound, room, 0)), d)
        free = column(_length(torch.where(at_bound, 0, size)), d)
        # The root of fixed^2 + s^2 free^2 = target^2; where nothing is free, nothing is left to gain.
        root = safe_divide(((target - fixed) * (target + fixed)).clamp_min(0).sqrt(), free).clamp_max(most)
        larger = (free > 0) & (root > s)
        if not bool(larger.any()):
            return (s.to(d.dtype) * d).clamp(lower, upper)
        s = torch.where(larger, root, s)
