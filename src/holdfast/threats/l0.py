"""The L0 "norm": how many coordinates change. The box alone bounds by how much.

It is no norm, and its balls are not convex. The convex hull of the vectors with one coordinate of size at most one is
the unit L1 ball, and that is what its ``dual`` and ``steepest`` speak of; ``maximize`` and ``project`` are exact for
the set itself.
"""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats import l1
from holdfast.threats.norm import column, each, room_along, safe_divide, whole_box

name: Final = "l0"

cut = whole_box
dual = l1.dual
steepest = l1.steepest


def length(d: Tensor) -> Tensor:
    return (d != 0).sum(each(d)).to(d.dtype)


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    best = torch.where(g > 0, upper.expand_as(g), torch.where(g < 0, lower.expand_as(g), torch.zeros_like(g)))
    return _keep_best(best, g * best, radius)


def ascend(z: Tensor, g: Tensor, size: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Of the coordinates then changed, those that gain most stay; the nearest point would keep the largest changes.
    moved = z + maximize(g, size, lower - z, upper - z)
    still = column(dual(g), g) == 0
    return torch.where(still, z, _keep_best(moved, g * moved, radius))


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Keeping coordinate i costs (d - clip)^2 and dropping it d^2: keep those where the difference is largest, written
    # as a product because the squares of a large d would cancel or overflow.
    clipped = d.clamp(lower, upper)
    return _keep_best(clipped, clipped * (2 * d - clipped), radius)


retract = project


def to_plane(g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # The coordinates that gain most are the fewest.
    room = room_along(g, lower, upper)
    gain = l1.spend(g.abs() * room, g.abs() * room, gap)
    return safe_divide(gain, g.abs()).to(g.dtype).minimum(room).copysign(g)


def sphere(rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
    # Coordinates chosen at random, each as far to a random side as the box will let it.
    count = like.shape[1:].numel()
    side = (torch.inf * (rng.uniform(count, lane=2) - 0.5)).to(like.dtype).reshape(like.shape)
    return _keep_best(side, rng.uniform(count).reshape(like.shape), radius)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    # Coordinates chosen at random, each moved to a random place of its box.
    count = like.shape[1:].numel()
    place = lower + (upper - lower) * rng.uniform(count, lane=1).to(like.dtype).reshape(like.shape)
    return _keep_best(place, rng.uniform(count).reshape(like.shape), radius)


def _keep_best(d: Tensor, gain: Tensor, radius: Tensor) -> Tensor:
    """``d`` with all but ``radius`` coordinates, rounded up, set to 0: those of the largest gain stay."""
    rank = gain.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
    return torch.where(rank < radius.reshape(-1, 1), d.flatten(1), 0).reshape(d.shape)
