"""The L-infinity norm: every coordinate may move by the budget. Its dual is the L1 norm."""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.norm import each, random_length

name: Final = "linf"


def length(d: Tensor) -> Tensor:
    return d.abs().amax(each(d)) if d.numel() else d.new_zeros(len(d))


def dual(g: Tensor) -> Tensor:
    return g.abs().sum(each(g))


def steepest(g: Tensor) -> Tensor:
    return g.sign()


def step(g: Tensor, size: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return size * g.sign()


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return project(radius * g.sign(), radius, lower, upper)


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Ball and box are both boxes, so clipping to one and then the other is the exact projection onto both.
    return d.clamp(torch.maximum(lower, -radius), torch.minimum(upper, radius))


retract = project


def sphere(rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
    u = 2 * rng.uniform(like.shape[1:].numel()) - 1
    return radius * (u / u.abs().amax(1, keepdim=True)).to(like.dtype).reshape(like.shape)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    return (random_length(rng, like) * sphere(rng, radius, like)).clamp(lower, upper)
