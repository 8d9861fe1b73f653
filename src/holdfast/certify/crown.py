"""Backward linear bounds, known as CROWN.

A linear function of a node is carried back to the input, operation by operation: exactly through linear ones, and
through the better of two planes through the others (Zhang et al. 2018, "Efficient neural network robustness
certification with general activation functions", arXiv 1811.00866; for general graphs Xu et al. 2020, arXiv
2002.12920). What planes need to know, the bounds of nonlinear operations' inputs, is found in the same way, from the
input on; where intervals have decided the sign of a neuron there is nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.certify.graph import Interval
from holdfast.certify.interval import meet
from holdfast.certify.rows import Rows, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.certify.graph import Graph, Node
    from holdfast.certify.region import Region

__all__ = ["Bounds", "crown", "interval_planes", "lower_bounds", "propagate", "refined"]

# Numbers in the coefficients of the rows that go back together: more than a processor's cache holds makes it slower.
_CHUNK = {"cpu": 1 << 20}
_LARGE_CHUNK = 1 << 28
# Neurons of a feature map that go back together, so that their windows stay small.
_TILE_ROWS = 128


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of every node of a graph for every example.

    Parameters
    ----------
    intervals : list of Interval
        Of all nodes, ``(N, *shape)`` each.
    planes : dict
        Linear bounds of the nonlinear operations, by node.
    """

    intervals: list[Interval]
    planes: dict[int, Any]

    def take(self, rows: Tensor) -> Bounds:
        """Those of some examples."""
        intervals = [Interval(*(end[rows] for end in interval)) for interval in self.intervals]
        return Bounds(intervals, {number: taken(planes, rows) for number, planes in self.planes.items()})

    def to(self, dtype: torch.dtype) -> Bounds:
        """The same in another precision."""
        intervals = [Interval(*(end.to(dtype) for end in interval)) for interval in self.intervals]
        return Bounds(
            intervals, {number: _each(planes, lambda p: p.to(dtype)) for number, planes in self.planes.items()}
        )


def lower_bounds(
    graph: Graph,
    start: int,
    rows: Rows,
    planes: dict[int, Any],
    region: Region,
    watch: Callable[[int, Rows], None] = lambda number, rows: None,
) -> Tensor:
    """Lower bounds of linear functions of a node's value over the inputs of their examples.

    Parameters
    ----------
    graph : Graph
        The network.
    start : int
        The node.
    rows : Rows
        ``R`` linear functions of its value, in equal groups: ``R / N`` for each of ``N`` examples in turn.
    planes : dict
        Linear bounds of all nonlinear operations before it.
    region : Region
        The inputs.
    watch : callable
        Shown the coefficients of every node's value on the way.

    Returns
    -------
    Tensor
        ``(R,)``, differentiable with respect to the planes, the weights and the region.
    """
    pending, total = {start: rows}, rows.values.new_zeros(())
    for number in range(start, 0, -1):
        if number not in pending:
            continue
        node, rows = graph.nodes[number], pending.pop(number)
        assert node.operation is not None  # only the first node has none
        watch(number, rows)
        before, constant = node.operation.backward(rows, planes.get(number), graph.inputs_of(node))
        if constant is not None:
            total = total + constant
        for source, part in zip(node.inputs, before, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    rows = pending[0]
    watch(0, rows)
    return total + region.crop(rows.index()).minimum(rows.values)


def crown(graph: Graph, region: Region, known: dict[int, Interval] | None = None) -> Bounds:
    """Bounds of all nodes, those that planes depend on by backward bounds.

    Parameters
    ----------
    graph : Graph
        The network.
    region : Region
        Its inputs.
    known : dict, optional
        Intervals known otherwise, by node, such as those of a larger region.

    Returns
    -------
    Bounds
    """

    def refine(bounds: Bounds, number: int, mask: Tensor) -> Interval:
        return refined(graph, number, mask, bounds, region)

    return propagate(graph, region, refine, known)


def interval_planes(graph: Graph, region: Region, known: dict[int, Interval] | None = None) -> Bounds:
    """Bounds of all nodes by intervals alone: with one backward pass for the output they are CROWN-IBP.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks", arXiv 1906.06316.
    """
    return propagate(graph, region, lambda bounds, number, mask: bounds.intervals[number], known)


def propagate(
    graph: Graph,
    region: Region,
    refine: Callable[[Bounds, int, Tensor], Interval],
    known: dict[int, Interval] | None,
) -> Bounds:
    bounds = Bounds([], {})
    exact = _exact(graph, region)
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for number in node.inputs:
            readers.setdefault(number, []).append(node)
    for number, node in enumerate(graph.nodes):
        if node.operation is None:
            interval = Interval(region.lower, region.upper)
        else:
            inputs = [bounds.intervals[i] for i in node.inputs]
            planes = node.operation.relax(*inputs)
            if planes is not None:
                bounds.planes[number] = planes
            interval = node.operation.interval(*inputs)
        if known is not None and number in known:
            interval = meet(interval, known[number])
        bounds.intervals.append(interval)
        open_entries = [
            mask
            for reader in readers.get(number, [])
            if reader.operation is not None and (mask := reader.operation.undecided(interval)) is not None
        ]
        if open_entries and number not in exact:
            mask = torch.stack(open_entries).any(0)
            if bool(mask.any()):
                bounds.intervals[number] = meet(interval, refine(bounds, number, mask))
    return bounds


def _exact(graph: Graph, region: Region) -> set[int]:
    """The nodes whose intervals cannot be improved: one linear operation away from a box."""
    if region.norm != "linf":
        return {0}
    boxes, exact = {0}, {0}
    for number, node in enumerate(graph.nodes):
        if node.operation is None or not all(i in boxes for i in node.inputs) or len(node.inputs) > 1:
            continue
        if node.operation.linear:
            exact.add(number)
            if node.operation.separate:
                boxes.add(number)
    return exact


def refined(graph: Graph, number: int, mask: Tensor, bounds: Bounds, region: Region) -> Interval:
    """Backward bounds of some entries of a node's value, met with what is known of it.

    Parameters
    ----------
    graph, number
        The network and the node.
    mask : Tensor
        ``(N, *shape)`` bool, the entries.
    bounds : Bounds
        Of the nodes before it.
    region : Region
        The inputs.
    """
    lower, upper = (end.clone() for end in bounds.intervals[number])
    flat_lower, flat_upper = lower.flatten(1), upper.flatten(1)
    size = max(torch.Size(node.shape).numel() for node in graph.nodes[:number])
    most = _CHUNK.get(mask.device.type, _LARGE_CHUNK)
    for rows, examples, places in starts(graph.nodes[number].shape, mask, size, most, lower.dtype):
        part = region if len(examples) == len(region) else region.take(examples)
        planes = bounds.planes if part is region else {i: taken(p, examples) for i, p in bounds.planes.items()}
        found = lower_bounds(graph, number, rows, planes, part).unflatten(0, (len(examples), 2, -1))
        index = (examples.unsqueeze(1), places)
        flat_lower[index] = torch.fmax(flat_lower[index], found[:, 0])
        flat_upper[index] = torch.fmin(flat_upper[index], -found[:, 1])
    return Interval(flat_lower.view_as(lower), flat_upper.view_as(upper))


def taken(planes: Any, rows: Tensor) -> Any:
    """The planes of some examples."""
    return _each(planes, lambda part: part.index_select(0, rows))


def _each(planes: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(planes)(*(part if part is None else change(part) for part in planes))


def starts(
    shape: tuple[int, ...], mask: Tensor, size: int, most: int, dtype: torch.dtype
) -> Iterator[tuple[Rows, Tensor, Tensor]]:
    """Unit rows for the entries in a mask, as many as go back together.

    Parameters
    ----------
    shape, mask
        Of one example of the node's value, and ``(N, *shape)`` the entries.
    size : int
        How large the largest value on the way back is.
    most : int
        Numbers that the coefficients of the rows may hold.
    dtype : torch.dtype
        Their precision.

    Yields
    ------
    rows : Rows
        For each of ``M`` examples the unit rows of ``S`` entries, and after them their negatives.
    examples : Tensor
        ``(M,)`` which those are.
    places : Tensor
        ``(M, S)`` where in the flattened value the entries are. Where an example has fewer than ``S`` in the mask,
        others fill up.
    """
    for tile, inside, window in _tiles(shape, mask):
        flat = tile.flatten(1)
        counts = flat.sum(1)
        order = flat.byte().argsort(dim=1, descending=True, stable=True)
        width = flat.shape[1]
        largest, start = int(counts.max()), 0
        # How much of a layer before it an entry may see: all of it, or some times the window that it is in.
        reach = size if window is None else min(size, 16 * size * width // mask[0].numel())
        while start < largest:
            examples = (counts > start).nonzero()[:, 0]
            step = max(1, most // (2 * reach * len(examples)))
            chosen = order[examples, start : min(start + step, largest)]
            units = torch.zeros(len(examples), 2, chosen.shape[1], width, dtype=dtype, device=mask.device)
            units[:, 0].scatter_(2, chosen.unsqueeze(2), 1)
            units[:, 1].scatter_(2, chosen.unsqueeze(2), -1)
            values = units.reshape(-1, *tile.shape[1:])
            yield Rows(values, window), examples, inside.take(chosen)
            start += step


def _tiles(shape: tuple[int, ...], mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Window | None]]:
    """Parts of a mask, each with the places of its entries in the flattened value, and its window of a feature map.

    Neurons that lie together see nearly the same patch, and the smaller that is, the less there is to do.
    """
    places = torch.arange(mask[0].numel(), device=mask.device).reshape(shape)
    if len(shape) != 3:
        yield mask, places, None
        return
    side, count = 1, int(mask.sum())
    while side < max(shape[1:]) and count * side**2 < _TILE_ROWS * shape[1] * shape[2]:
        side *= 2
    for top in range(0, shape[1], side):
        for left in range(0, shape[2], side):
            bottom, right = min(top + side, shape[1]), min(left + side, shape[2])
            part = mask[:, :, top:bottom, left:right]
            if bool(part.any()):
                yield part, places[:, top:bottom, left:right], ((top, bottom), (left, right))
