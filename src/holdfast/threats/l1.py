"""The L1 norm: the sum of all changes. Its dual is the L-infinity norm."""

from typing import Final

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.norm import column, each, random_length, room_along, safe_divide, whole_box

name: Final = "l1"

cut = whole_box


def length(d: Tensor) -> Tensor:
    return d.abs().sum(each(d))


def dual(g: Tensor) -> Tensor:
    return g.abs().amax(each(g)) if g.numel() else g.new_zeros(len(g))


def steepest(g: Tensor) -> Tensor:
    flat = g.flatten(1)
    top = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).reshape(g.shape)


def maximize(g: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # A linear program over a simplex with capacities: fill coordinates in the order of |g| until the budget ends.
    # An unbounded coordinate can take the whole budget, and infinities would spoil the running sum.
    room = room_along(g, lower, upper).minimum(radius)
    return spend(g.abs(), room, radius.flatten()).to(g.dtype) * g.sign()


def ascend(z: Tensor, g: Tensor, size: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # One coordinate at a time, as the plain steepest step would go, gets stuck at the first that meets the box; the
    # best admissible move of the same length spends what that coordinate cannot take on the next ones.
    return project(z + maximize(g, size, lower - z, upper - z), radius, lower, upper)


def project(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # What is inside the ball once it is clipped is projected by that alone, and needs no sorting. Rows as far outside
    # as rounding may have put them stay where they are.
    clipped = d.clamp(lower, upper)
    room = 1 + 2 * torch.finfo(d.dtype).eps
    far = (clipped.abs().sum(each(d), dtype=torch.float64) > room * radius.flatten()).nonzero()[:, 0]
    if not len(far):
        return clipped
    low, high = (bound.expand_as(d)[far] for bound in (lower, upper))
    return clipped.index_copy(0, far, _shrink(d[far], radius[far], low, high))


def _shrink(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Exact projection onto ball and box (Croce and Hein, "Mind the box", ICML 2021, section 3).

    ``z = sign(d) min(max(|d| - lam, 0), room)`` for the ``lam`` at which its L1 norm is the radius. That norm is
    piecewise linear and decreasing in ``lam`` with kinks at ``|d| - room`` (the coordinate leaves the box's face) and
    ``|d|`` (it reaches 0): sort them, sum the slopes, and solve in the segment that holds the radius.
    """
    flat, (low, high) = d.flatten(1), (b.expand_as(d).flatten(1) for b in (lower, upper))
    size, sign = flat.abs().double(), flat.sign()
    target = radius.reshape(-1, 1).double().expand(len(flat), 1)
    room = torch.where(sign > 0, high, torch.where(sign < 0, -low, 0.0)).double().minimum(size).minimum(target)
    size = _relative(size, room, target)
    kinks, order = torch.cat([size - room, size], 1).sort(1)
    slope = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1).gather(1, order).cumsum(1)
    drops = slope[:, :-1] * kinks.diff(dim=1)
    norms = room.sum(1, keepdim=True) + torch.cat([torch.zeros_like(target), drops.cumsum(1)], 1)
    # The last kink whose norm is still at least the radius starts the segment.
    segment = ((norms >= target).sum(1, keepdim=True) - 1).clamp_min(0)
    rate = slope.gather(1, segment)
    excess = norms.gather(1, segment) - target
    lam = kinks.gather(1, segment) + torch.where(rate < 0, excess / -rate.clamp_max(-1), 0.0)
    lam = torch.where(norms[:, :1] <= target, kinks[:, :1], lam)
    z = torch.minimum((size - lam).clamp_min(0), room).to(d.dtype) * sign
    return z.reshape(d.shape)


def _relative(size: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """The sizes, in rows with one above a thousand budgets relative to where ``lam`` is, lest rounding swallow those.

    When the ``m`` largest are the first whose rooms add up to the radius, ``lam`` is at most the ``m``-th size and at
    least that less the radius; coordinates further off than a radius are at their bounds or at 0 in any case.
    """
    far = size.amax(1, keepdim=True) > 1e3 * target if size.numel() else torch.zeros_like(target, dtype=torch.bool)
    if not bool(far.any()):
        return size
    largest, order = size.sort(1, descending=True)
    full = (room.gather(1, order).cumsum(1) < target).sum(1, keepdim=True)
    near = (size - largest.gather(1, full.clamp_max(size.shape[1] - 1))).clamp(-target, target)
    return torch.where(far, near, size)


def to_plane(g: Tensor, gap: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    room = room_along(g, lower, upper)
    gain = spend(g.abs(), (g.abs() * room).minimum(column(gap, g)), gap)
    return safe_divide(gain, g.abs()).to(g.dtype).minimum(room).copysign(g)


def spend(price: Tensor, cost: Tensor, budget: Tensor) -> Tensor:
    """What coordinates get of the ``(N,)`` budget, those of the highest price taking their whole cost first."""
    order = price.flatten(1).argsort(dim=1, descending=True, stable=True)
    wanted = cost.flatten(1).gather(1, order).double()
    left = (budget.unsqueeze(1) - (wanted.cumsum(1) - wanted)).clamp_min(0)
    return torch.zeros_like(wanted).scatter(1, order, wanted.minimum(left)).reshape(cost.shape)


def retract(d: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    unbounded = torch.full_like(d, torch.inf)
    return project(d, radius, -unbounded, unbounded).clamp(lower, upper)


def sphere(rng: Draws, radius: Tensor, like: Tensor) -> Tensor:
    # Exponentials with random signs, scaled to length 1, are uniform on the sphere.
    count = like.shape[1:].numel()
    magnitude, sign = -rng.uniform(count).log(), (rng.uniform(count, lane=2) - 0.5).sign()
    return radius * (sign * magnitude / magnitude.sum(1, keepdim=True)).to(like.dtype).reshape(like.shape)


def sample(rng: Draws, radius: Tensor, lower: Tensor, upper: Tensor, like: Tensor) -> Tensor:
    return (random_length(rng, like) * sphere(rng, radius, like)).clamp(lower, upper)
