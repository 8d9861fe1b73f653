"""Backward linear bounds, known as CROWN.

A linear function of a node is carried back to the input, operation by operation: exactly through linear ones, and
through the better of two planes through the others (Zhang et al. 2018, "Efficient neural network robustness
certification with general activation functions", arXiv 1811.00866; for general graphs Xu et al. 2020, arXiv
2002.12920). What planes need to know, the bounds of nonlinear operations' inputs, is found in the same way, from the
input on; where intervals have decided the sign of a neuron there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import meet, settled
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.rounding import Errors, down
from holdfast.certify.bounds.rows import Rows, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.region import Region

__all__ = [
    "MEMORY",
    "Bounds",
    "LowerLines",
    "Undecided",
    "crown",
    "interval_planes",
    "least",
    "lower_bounds",
    "lower_lines",
    "propagate",
    "refined",
    "tiles",
]

Undecided = Callable[[Interval], Tensor]

# Bytes that the coefficients of the rows that go back together may take at one node; a few times that is held at once.
MEMORY = 1 << 29
# More than a processor's cache holds makes it slower.
_CACHE = {"cpu": 1 << 22}
# Neurons of a feature map that go back together, so that their windows stay small.
_TILE_ROWS = 64


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of every node of a graph for every example.

    Parameters
    ----------
    intervals : list of Interval
        Of all nodes, ``(N, *shape)`` each.
    planes : dict
        Linear bounds of the nonlinear operations, by node.
    errors : Errors
        What linear functions of the nodes' values lose to rounding.
    """

    intervals: list[Interval]
    planes: dict[int, Any]
    errors: Errors

    @classmethod
    def none(cls) -> Bounds:
        """To begin with."""
        return cls([], {}, Errors.none())

    @classmethod
    def of(cls, graph: Graph, intervals: list[Interval]) -> Bounds:
        """With planes and errors for given intervals."""
        planes = {
            number: node.operation.relax(*(intervals[i] for i in node.inputs))
            for number, node in enumerate(graph.nodes)
            if node.operation is not None and not node.operation.linear
        }
        return cls(intervals, planes, Errors.of(graph, intervals, planes))

    def take(self, rows: Tensor) -> Bounds:
        """Those of some examples."""
        intervals = [Interval(*(end[rows] for end in interval)) for interval in self.intervals]
        planes = {number: taken(planes, rows) for number, planes in self.planes.items()}
        return Bounds(intervals, planes, self.errors.take(rows))

    def to(self, graph: Graph, dtype: torch.dtype) -> Bounds:
        """The same intervals for the network in another precision that holds them, with planes and errors of that."""
        return Bounds.of(graph, [Interval(*(end.to(dtype) for end in interval)) for interval in self.intervals])


@dataclass(frozen=True, eq=False)
class LowerLines:
    """Linear functions of the network's input below others: ``<rows, x> + constant``.

    Parameters
    ----------
    rows : Rows
        ``R`` of them.
    constant : Tensor
        ``(R,)`` float64; what rounding may do anywhere is taken from it.
    lost : Tensor
        ``(R,)`` float64, how much that was.
    """

    rows: Rows
    constant: Tensor
    lost: Tensor


def lower_lines(
    graph: Graph,
    start: int,
    rows: Rows,
    planes: dict[int, Any],
    errors: Errors,
    watch: Callable[[int, Rows], None] = lambda number, rows: None,
    until: int = 0,
) -> LowerLines:
    """Linear functions of a node's value, from below by linear functions of the input, or of a node before it.

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
    errors : Errors
        What rounding costs, at the node and before it.
    watch : callable
        Shown the coefficients of every node's value on the way.
    until : int
        The node at which to stop, if all paths lead through it.

    Returns
    -------
    LowerLines
        Differentiable with respect to the planes and the weights.
    """
    pending = {start: rows}
    total = rows.values.new_zeros(len(rows.values), dtype=torch.float64)
    lost = torch.zeros_like(total)
    for number in range(start, -1, -1):
        if number not in pending:
            continue
        node, rows = graph.nodes[number], pending.pop(number)
        watch(number, rows)
        counted = number != start and (number in errors.included or _carrier(graph, number) is not None)
        share = None if counted else errors.lost(number, rows)
        if share is not None:
            lost = lost + share
        if number == until or node.operation is None:
            break
        shapes, carrier = graph.inputs_of(node), _carrier(graph, node.inputs[0])
        before: tuple[Rows, ...]
        constant: Tensor | None
        if carrier is not None and node.inputs[0] in errors.radii:
            radius, slack = errors.at(node.inputs[0])
            before, constant, share = carrier.through(rows, planes[number], shapes, radius)
            lost = lost + (share + slack.unsqueeze(1)).flatten()
        else:
            before, constant = node.operation.backward(rows, planes.get(number), shapes)
        if constant is not None:
            total = total + constant
        for source, part in zip(node.inputs, before, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    return LowerLines(rows, total - lost, lost)


def _carrier(graph: Graph, number: int) -> Kink | None:
    """The only reader of a node, if a backward pass through it can count by itself what the node's radius costs."""
    readers = graph.readers[number]
    operation = graph.nodes[readers[0]].operation if len(readers) == 1 else None
    return operation if isinstance(operation, Kink) and operation.carries else None


def lower_bounds(
    graph: Graph,
    start: int,
    rows: Rows,
    planes: dict[int, Any],
    errors: Errors,
    region: Region,
    watch: Callable[[int, Rows], None] = lambda number, rows: None,
) -> Tensor:
    """Lower bounds of linear functions of a node's value over the inputs of their examples.

    Parameters
    ----------
    graph, start, rows, planes, errors, watch
        As :func:`lower_lines` takes them.
    region : Region
        The inputs.

    Returns
    -------
    Tensor
        ``(R,)``, differentiable with respect to the planes, the weights and the region.
    """
    return least(lower_lines(graph, start, rows, planes, errors, watch), region)


def least(lines: LowerLines, region: Region) -> Tensor:
    """``(R,)`` the least values of linear functions over the inputs of their examples."""
    rows = lines.rows
    found = lines.constant + region.crop(rows.index()).minimum(rows.values)
    # Where an overflow has left infinity or no number, nothing is known.
    return down(torch.where(found < torch.inf, found, -torch.inf), rows.values.dtype)


def crown(graph: Graph, region: Region, known: dict[int, Interval] | None = None, *, memory: int = MEMORY) -> Bounds:
    """Bounds of all nodes, those that planes depend on by backward bounds.

    Parameters
    ----------
    graph : Graph
        The network.
    region : Region
        Its inputs.
    known : dict, optional
        Intervals known otherwise, by node, such as those of a larger region.
    memory : int
        Bytes that coefficients may take at one node, unless a single row needs more.

    Returns
    -------
    Bounds
    """

    def refine(bounds: Bounds, number: int, undecided: Undecided) -> Interval:
        return refined(graph, number, undecided, bounds, region, memory=memory)

    return propagate(graph, region, refine, known)


def interval_planes(graph: Graph, region: Region, known: dict[int, Interval] | None = None) -> Bounds:
    """Bounds of all nodes by intervals alone: with one backward pass for the output they are CROWN-IBP.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks", arXiv 1906.06316.
    """
    return propagate(graph, region, lambda bounds, number, undecided: bounds.intervals[number], known)


def propagate(
    graph: Graph,
    region: Region,
    refine: Callable[[Bounds, int, Undecided], Interval],
    known: dict[int, Interval] | None,
) -> Bounds:
    """Bounds of all nodes, from the input on.

    Parameters
    ----------
    graph, region, known
        As :func:`crown` takes them.
    refine : callable
        Given what is known so far, a node that planes depend on, and which entries of an interval of it are worth
        bounding better: a better interval.
    """
    bounds = Bounds.none()
    exact = _exact(graph, region)
    for number, node in enumerate(graph.nodes):
        if node.operation is None:
            interval = Interval(region.lower, region.upper)
            bounds.errors.add(graph, number, [interval])
        else:
            inputs = [bounds.intervals[i] for i in node.inputs]
            planes = node.operation.relax(*inputs)
            if planes is not None:
                bounds.planes[number] = planes
            radius = bounds.errors.add(graph, number, bounds.intervals, planes)
            interval = settled(node.operation.interval(*inputs), radius)
        if known is not None and number in known:
            interval = meet(interval, known[number])
        bounds.intervals.append(interval)
        undecided = _undecided(graph, number)
        # What is asked of a ReLU's value was asked of its input: no plane says more than the bounds of that.
        if undecided is not None and number not in exact and not isinstance(node.operation, Kink):
            bounds.intervals[number] = meet(interval, refine(bounds, number, undecided))
    return bounds


def _undecided(graph: Graph, number: int) -> Undecided | None:
    """Which entries of a value those who read it would have bounded better; None where all of them are linear."""
    asking = []
    for reader in graph.readers[number]:
        operation = graph.nodes[reader].operation
        if operation is not None and not operation.linear:
            behind = _undecided(graph, reader) if isinstance(operation, Kink) else None
            asking.append((operation, behind))
    if not asking:
        return None

    def undecided(interval: Interval) -> Tensor:
        masks = []
        for operation, behind in asking:
            masks.append(operation.undecided(interval))
            if behind is not None:
                masks.append(behind(operation.interval(interval)))
        return torch.stack([mask for mask in masks if mask is not None]).any(0)

    return undecided


def _exact(graph: Graph, region: Region) -> set[int]:
    """The nodes whose intervals cannot be improved: one linear operation away from a box."""
    if region.norm != "linf" or region.swept is not None:
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


def refined(
    graph: Graph, number: int, undecided: Undecided, bounds: Bounds, region: Region, *, memory: int = MEMORY
) -> Interval:
    """Backward bounds of some entries of a node's value, met with what is known of it.

    For many neurons one bound settles their sign and the other is never needed, so the likelier one is found first.

    Parameters
    ----------
    graph, number
        The network and the node.
    undecided : callable
        Which entries of an interval are worth bounding better.
    bounds : Bounds
        Of the nodes before it.
    region : Region
        The inputs.
    memory : int
        As :func:`crown` takes it.
    """
    interval = bounds.intervals[number]
    likely = torch.where(interval.lower + interval.upper < 0, -1, 1)
    for side in (likely, -likely):
        mask = undecided(interval)
        if bool(mask.any()):
            interval = _one_side(graph, number, mask, side, interval, bounds, region, memory)
    return interval


def _one_side(
    graph: Graph,
    number: int,
    mask: Tensor,
    side: Tensor,
    interval: Interval,
    bounds: Bounds,
    region: Region,
    memory: int,
) -> Interval:
    """An interval with the lower bounds of entries whose side is 1 and the upper bounds of those whose side is -1."""
    lower, upper = (end.flatten(1).clone() for end in interval)
    size = max(torch.Size(node.shape).numel() for node in graph.nodes[:number])
    for rows, examples, places in starts(mask, side.to(lower.dtype), size, memory):
        part = region if len(examples) == len(region) else region.take(examples)
        planes = bounds.planes if part is region else {i: taken(p, examples) for i, p in bounds.planes.items()}
        errors = bounds.errors if part is region else bounds.errors.take(examples)
        found = lower_bounds(graph, number, rows, planes, errors, part).unflatten(0, (len(examples), -1))
        index = (examples.unsqueeze(1), places)
        # What was bounded to fill up depends on the other examples, and must not change this one's bounds.
        asked, positive = mask.flatten(1)[index], side.flatten(1)[index] > 0
        lower[index] = torch.where(asked & positive, torch.fmax(lower[index], found), lower[index])
        upper[index] = torch.where(asked & ~positive, torch.fmin(upper[index], -found), upper[index])
    return Interval(lower.view_as(mask), upper.view_as(mask))


def taken(planes: Any, rows: Tensor) -> Any:
    """The planes of some examples."""
    return _each(planes, lambda part: part.index_select(0, rows))


def _each(planes: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(planes)(*(part if part is None else change(part) for part in planes))


def starts(mask: Tensor, side: Tensor, size: int, memory: int) -> Iterator[tuple[Rows, Tensor, Tensor]]:
    """Unit rows for the entries in a mask, as many as go back together.

    Parameters
    ----------
    mask : Tensor
        ``(N, *shape)`` the entries.
    side : Tensor
        ``(N, *shape)`` the coefficient of each, 1 or -1.
    size : int
        How large the largest value on the way back is.
    memory : int
        Bytes that the coefficients of the rows may take, unless one row needs more.

    Yields
    ------
    rows : Rows
        For each of ``M`` examples the rows of ``S`` entries.
    examples : Tensor
        ``(M,)`` which those are.
    places : Tensor
        ``(M, S)`` where in the flattened value the entries are. Where an example has fewer than ``S`` in the mask,
        others fill up.
    """
    sides = side.flatten(1)
    quick = _CACHE.get(mask.device.type, memory) // side.element_size()
    most = max(1, memory // side.element_size() // size)
    for tile, inside, window in tiles(mask):
        flat = tile.flatten(1)
        counts = flat.sum(1)
        order = flat.byte().argsort(dim=1, descending=True, stable=True)
        width = flat.shape[1]
        largest, start = int(counts.max()), 0
        # How much of a layer before it an entry may see: all of it, or some times the window that it is in.
        reach = size if window is None else min(size, 16 * size * width // mask[0].numel())
        while start < largest:
            examples = (counts > start).nonzero()[:, 0]
            # Examples with fewer entries are filled up: rows that nobody asked for cost less than another pass.
            step = max(1, min(quick // (reach * len(examples)), most // len(examples)))
            for part in examples.split(most):
                chosen = order[part, start : min(start + step, largest)]
                places = inside.take(chosen)
                units = torch.zeros(*chosen.shape, width, dtype=side.dtype, device=mask.device)
                units.scatter_(2, chosen.unsqueeze(2), sides[part.unsqueeze(1), places].unsqueeze(2))
                yield Rows(units.reshape(-1, *tile.shape[1:]), window), part, places
            start += step


def tiles(mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Window | None]]:
    """Parts of a mask, each with the places of its entries in the flattened value, and its window of a feature map.

    Neurons that lie together see nearly the same patch, and the smaller that is, the less there is to do.
    """
    shape = mask.shape[1:]
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
