"""The L2 norm: the Euclidean length of the change. It is its own dual."""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.norm import column, each, random_length, safe_divide

name: Final = "l2"

# Newton's steps below stop by themselves, in our measurements after at most 12; the bound is for the pathological.
_NEWTON_STEPS = 100


def length(d: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(d, dim=each(d))
    return norm


dual = length


def steepest(g: Tensor) -> Tensor:
    # Scaling by the largest entry first keeps squares of tiny and of huge gradients away from 0 and infinity.
    scaled = safe_divide(g, column(g.abs().amax(each(g)), g))
    return safe_divide(scaled, column(length(scaled), g))


def step(g: Tensor, size: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return size * steepest(g)


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # By the optimality conditions the maximiser is a clipped multiple of g: the largest one that the ball allows.
    return _clipped_multiple(steepest(g), radius, lower, upper)


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # min |z - d|^2 has z = clip(d / (1 + mu)): again a clipped multiple of d, unless the box alone brings it inside.
    clipped = d.clamp(lower, upper)
    inside = column(length(clipped), d) <= radius
    if bool(inside.all()):
        return clipped
    return torch.where(inside, clipped, _clipped_multiple(d, radius, lower, upper))


def retract(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    norm = column(length(d), d)
    return (d * safe_divide(torch.minimum(norm, radius), norm)).clamp(lower, upper)


def direction(rng: Draws, like: Tensor) -> Tensor:
    u = rng.normal(like.shape[1:].numel())
    return (u / column(length(u), u)).to(like.dtype).reshape(like.shape)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    return (radius * random_length(rng, like) * direction(rng, like)).clamp(lower, upper)


def _clipped_multiple(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``clip(s d)`` with the ``s`` that gives it norm ``radius`` (or every coordinate at its bound, if that is less).

    ``|clip(s d)|^2`` is concave and piecewise linear in ``s^2``, so Newton's method started below the root climbs to
    it without overshooting and ends exactly, once no further coordinate reaches its bound.
    """
    square, squared_radius = d.square(), radius.square()
    bound = torch.where(d > 0, upper, torch.where(d < 0, lower, torch.zeros_like(d)))
    s = safe_divide(radius, column(length(d), d))
    for _ in range(_NEWTON_STEPS):
        at_bound = (s * d).abs() >= bound.abs()
        fixed = column(torch.where(at_bound, bound, 0).square().sum(each(d)), d)
        free = column(torch.where(at_bound, 0, square).sum(each(d)), d)
        root = safe_divide((squared_radius - fixed).clamp_min(0), free).sqrt()
        larger = torch.where(free > 0, torch.maximum(root, s), s)
        if torch.equal(larger, s):
            break
        s = larger
    z = (s * d).clamp(lower, upper)
    # Rounding may leave it a little long; shrinking towards the centre stays in the box.
    norm = column(length(z), z)
    return z * torch.where(norm > radius, safe_divide(radius, norm), 1)
