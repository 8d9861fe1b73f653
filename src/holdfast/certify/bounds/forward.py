"""Forward linear bounds: every neuron between two linear functions of the network's input.

They are looser than backward ones and cost a pass for every input, so they are for networks of few inputs, where one
pass serves all neurons (Xu et al. 2020, "Automatic perturbation analysis for scalable certified robustness and beyond",
arXiv 2002.12920, section 3.2; Dvijotham et al. and Zhang et al. 2018 for the planes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.bounds.crown import Bounds
from holdfast.certify.bounds.graph import Interval, Operation
from holdfast.certify.bounds.interval import meet, settled
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.rounding import gamma, unit

if TYPE_CHECKING:
    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.region import Region

__all__ = ["forward_bounds"]

# Roundings of what takes a few steps.
_FEW = 8


class Between(NamedTuple):
    """Two linear functions of the input below and above a value: ``coefficients @ x + constants``.

    Parameters
    ----------
    coefficients : Interval
        ``(N, d, *shape)`` each.
    constants : Interval
        ``(N, *shape)`` each.
    """

    coefficients: Interval
    constants: Interval


def forward_bounds(graph: Graph, region: Region) -> Bounds:
    """Bounds of all nodes, each met with what intervals say.

    Operations that are neither linear nor of one variable (maxima and products) are bounded by intervals, and what
    follows them starts from there.

    Parameters
    ----------
    graph : Graph
        The network.
    region : Region
        Its inputs.

    Returns
    -------
    Bounds
    """
    bounds = Bounds.none()
    found: list[Between] = []
    reach = torch.maximum(region.lower.abs(), region.upper.abs()).flatten(1)
    for number, node in enumerate(graph.nodes):
        if node.operation is None:
            found.append(_input(region))
            bounds.intervals.append(Interval(region.lower, region.upper))
            continue
        inputs, between = [bounds.intervals[i] for i in node.inputs], [found[i] for i in node.inputs]
        planes = node.operation.relax(*inputs)
        if planes is not None:
            bounds.planes[number] = planes
        radius = bounds.errors.add(graph, number, bounds.intervals, planes)
        interval = settled(node.operation.interval(*inputs), radius)
        through, room = _through(node.operation, planes, between, interval, reach)
        if graph.arithmetic is not None:
            room = room if radius is None else room + radius
            through = Between(
                through.coefficients, Interval(through.constants.lower - room, through.constants.upper + room)
            )
        found.append(through)
        bounds.intervals.append(meet(interval, _concrete(through, region, reach)))
    return bounds


def _input(region: Region) -> Between:
    count, shape = len(region), region.lower.shape[1:]
    unit = torch.eye(shape.numel(), dtype=region.lower.dtype, device=region.lower.device)
    unit = unit.reshape(1, -1, *shape).expand(count, -1, *shape)
    zeros = torch.zeros_like(region.lower)
    return Between(Interval(unit, unit), Interval(zeros, zeros))


def _through(
    operation: Operation, planes: Any, inputs: list[Between], interval: Interval, reach: Tensor
) -> tuple[Between, Tensor]:
    """The functions of a value, and ``(N, *shape)`` what rounding may have done to them."""
    count, width = inputs[0].coefficients.lower.shape[:2]
    if operation.linear:
        # Of functions in the place of numbers, interval arithmetic does the same: the middle goes through the weights,
        # and half of the distance through their sizes.
        constants = operation.interval(*(between.constants for between in inputs))
        columns = [Interval(*(end.flatten(0, 1) for end in between.coefficients)) for between in inputs]
        zeros = [Interval(*(torch.zeros_like(end[:1]) for end in column)) for column in columns]
        # What an operation adds whatever its inputs are is in the constants already.
        shift = operation.interval(*zeros).lower
        moved = operation.interval(*columns)
        sizes = [_size(between, reach) for between in inputs]
        rounding = operation.rounding(None, *(Interval(-size, size) for size in sizes))
        room = torch.zeros_like(constants.lower)
        if rounding is not None:
            # The shift has been there, and gone, in every coefficient.
            times = 1 + reach.sum(1).reshape(-1, *[1] * (rounding.size.dim() - 1))
            room = rounding.size * times * gamma(rounding.own + _FEW, unit(rounding.size.dtype))
        return Between(Interval(*((end - shift).unflatten(0, (count, width)) for end in moved)), constants), room
    if isinstance(operation, Kink | Elementwise):
        below, low, above, high = _slopes(operation, planes)
        size = torch.maximum(below.abs(), above.abs()) * _size(inputs[0], reach) + torch.maximum(low.abs(), high.abs())
        return _between_planes(inputs[0], below, low, above, high), size * gamma(_FEW, unit(size.dtype))
    nothing = torch.zeros_like(interval.lower).unsqueeze(1).expand(count, width, *interval.lower.shape[1:])
    return Between(Interval(nothing, nothing), interval), torch.zeros_like(interval.lower)


def _size(between: Between, reach: Tensor) -> Tensor:
    """``(N, *shape)`` what the sizes of the functions' terms add up to at most."""
    coefficients, constants = (torch.maximum(*map(torch.abs, part)) for part in between)
    terms = torch.einsum("nd,nd...->n...", reach, coefficients)
    return (terms + constants) * (1 + gamma(reach.shape[1] + _FEW, unit(reach.dtype)))


def _slopes(operation: Kink | Elementwise, planes: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slope and constant of the lower plane, and of the upper one."""
    if isinstance(operation, Elementwise):
        return planes.lower_slope, planes.lower_intercept, planes.upper_slope, planes.upper_intercept
    lower, upper, shift, _ = planes
    nothing, convex = torch.zeros_like(shift), torch.as_tensor(operation.sign > 0, device=shift.device)
    return (
        torch.where(convex, lower, -upper),
        torch.where(convex, nothing, -shift),
        torch.where(convex, upper, -lower),
        torch.where(convex, shift, nothing),
    )


def _between_planes(x: Between, below: Tensor, low: Tensor, above: Tensor, high: Tensor) -> Between:
    return Between(
        _scaled(x.coefficients, below.unsqueeze(1), above.unsqueeze(1)),
        Interval(*map(torch.add, _scaled(x.constants, below, above), (low, high))),
    )


def _scaled(part: Interval, below: Tensor, above: Tensor) -> Interval:
    """The lower end times one slope and the upper end times the other; a negative slope turns them round."""
    return Interval(
        below.clamp_min(0) * part.lower + below.clamp_max(0) * part.upper,
        above.clamp_min(0) * part.upper + above.clamp_max(0) * part.lower,
    )


def _concrete(between: Between, region: Region, reach: Tensor) -> Interval:
    """The least and the largest value that the functions have on the region."""
    shape = region.lower.shape[1:]
    room = _size(between, reach) * gamma(_FEW, unit(reach.dtype))
    ends = []
    for sign, part, constant in zip((1, -1), between.coefficients, between.constants, strict=True):
        rows = sign * part.flatten(2).transpose(1, 2).reshape(-1, *shape)
        ends.append(sign * (region.minimum(rows).reshape(constant.shape) - room) + constant)
    return Interval(*ends)
