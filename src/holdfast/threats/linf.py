"""The L-infinity norm: every coordinate may move by the budget. Its dual is the L1 norm."""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.norm import climb, each

name: Final = "linf"


def length(d: Tensor) -> Tensor:
    return d.abs().amax(each(d)) if d.numel() else d.new_zeros(len(d))


def dual(g: Tensor) -> Tensor:
    return g.abs().sum(each(g))


def cut(radius: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    # The ball is a box too; what is left of both is all that its functions need.
    return torch.maximum(lower, -radius), torch.minimum(upper, radius)


def steepest(g: Tensor) -> Tensor:
    return g.sign()


def ascend(z: Tensor, g: Tensor, size: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.addcmul(z, g.sign(), size).clamp_(lower, upper)


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return project(radius * g.sign(), radius, lower, upper)


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return d.clamp(lower, upper)


retract = project


def to_plane(g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Whatever the longest coordinate has to move, the others may as well.
    return climb(g.sign(), g, gap, lower, upper)


def sphere(rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
    u = 2 * rng.uniform(like.shape[1:].numel()) - 1
    return radius * (u / u.abs().amax(1, keepdim=True)).to(like.dtype).reshape(like.shape)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    # This ball is a cube, whose coordinates are independent.
    u = 2 * rng.uniform(like.shape[1:].numel()) - 1
    return (radius * u.to(like.dtype).reshape(like.shape)).clamp(lower, upper)
