"""Linear bounds of a network over many small boxes: what a search that cuts its inputs asks for again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.certify.bounds.crown import crown, lower_lines
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.operations.kink import Kink, kink_planes
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import Errors, gamma
from holdfast.certify.bounds.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.certify.bounds.graph import Graph, Node

__all__ = ["BoxBounds", "Boxed", "GraphBounds", "LayerBounds", "box_bounds", "least"]

# Wider layers than this are better left to the rules of their operations than made into matrices.
_WIDEST = 1024
# In float64: half a unit in the last place, and how many times a number is rounded besides in sums, with the planes of
# ReLUs and the ends of boxes, at most.
_UNIT, _ERRORS = 2.0**-53, 8
# What radii are multiplied by: more than what a few sums in float64 take away.
_AMPLE = 1 + 2.0**-30
# Numbers in the coefficients that go back together: more than a processor's cache holds makes it slower.
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Boxed:
    """What was found for ``M`` boxes and ``R`` functions of the output on each.

    Parameters
    ----------
    slope, constant : Tensor
        ``(M, R, n)`` and ``(M, R)``: on its box a function is at least ``<slope, x> + constant``.
    known : tuple of Interval
        ``(M, *shape)`` bounds of the values that nonlinear operations read.
    weight : tuple of Tensor
        ``(M, *shape)`` for each of those, the sum over the functions of the sizes of its coefficients; 0 where tighter
        bounds would change nothing.
    """

    slope: Tensor
    constant: Tensor
    known: tuple[Interval, ...]
    weight: tuple[Tensor, ...]


class BoxBounds(Protocol):
    """A network that can be bounded box by box. Inputs are flat, ``(M, n)``."""

    def start(self, lower: Tensor, upper: Tensor) -> tuple[tuple[Interval, ...], Tensor]:
        """Interval bounds of what nonlinear operations read, and ``(K,)`` how far rounding may move an output's bounds.

        Both hold for all boxes inside these.
        """
        ...

    def bound(self, lower: Tensor, upper: Tensor, known: Sequence[Interval], matrix: Tensor) -> Boxed:
        """CROWN bounds of the functions ``matrix``, ``(M, R, K)``; ``known`` holds for larger boxes."""
        ...

    def values(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What nonlinear operations read, ``(N, *shape)`` each, and the output ``(N, K)``."""
        ...


def box_bounds(graph: Graph) -> BoxBounds:
    """The quickest way of bounding a network."""
    return LayerBounds.of(graph) or GraphBounds(graph)


def least(slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``(M, R)`` the least values of linear functions ``(M, R, n)`` over boxes ``(M, n)``, or less."""
    center, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
    radius = radius + gamma(lower.shape[1] + _ERRORS, _UNIT) * (center.abs() + radius)
    value: Tensor = (slope @ center.unsqueeze(2) - slope.abs() @ radius.unsqueeze(2)).squeeze(2)
    return value


@dataclass(frozen=True, eq=False)
class GraphBounds:
    """Any network, by the rules of its operations."""

    graph: Graph

    @property
    def read(self) -> list[int]:
        """The nodes that nonlinear operations read."""
        nonlinear = [node for node in self.graph.nodes if node.operation is not None and not node.operation.linear]
        return sorted({i for node in nonlinear for i in node.inputs})

    def region(self, lower: Tensor, upper: Tensor) -> Region:
        shape = self.graph.nodes[0].shape
        return Region.box(lower.unflatten(1, shape), upper.unflatten(1, shape))

    def start(self, lower: Tensor, upper: Tensor) -> tuple[tuple[Interval, ...], Tensor]:
        intervals = interval_bounds(self.graph, self.region(lower, upper))
        return tuple(intervals[i] for i in self.read), lower.new_zeros(self.graph.nodes[-1].shape)

    def bound(self, lower: Tensor, upper: Tensor, known: Sequence[Interval], matrix: Tensor) -> Boxed:
        region, read = self.region(lower, upper), self.read
        bounds = crown(self.graph, region, dict(zip(read, known, strict=True)))
        seen: dict[int, Tensor] = {}

        def watch(number: int, rows: Rows) -> None:
            if number in read or number == 0:
                seen[number] = rows.full(self.graph.nodes[number].shape).unflatten(0, matrix.shape[:2])

        rows = Rows.whole(matrix.flatten(0, 1))
        lines = lower_lines(self.graph, self.graph.output, rows, bounds.planes, bounds.errors, watch)
        slope = seen[0].flatten(2)
        found = tuple(bounds.intervals[i] for i in read)
        weight = tuple(
            seen[i].abs().sum(1) * self._undecided(i, interval) for i, interval in zip(read, found, strict=True)
        )
        return Boxed(slope, lines.constant.view(matrix.shape[:2]), found, weight)

    def _undecided(self, number: int, interval: Interval) -> Tensor:
        readers = [node.operation for node in self.graph.nodes if number in node.inputs and node.operation is not None]
        masks = [mask for reader in readers if (mask := reader.undecided(interval)) is not None]
        return torch.stack(masks).any(0)

    def values(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        values = self.graph.values(x.unflatten(1, self.graph.nodes[0].shape))
        return [values[i] for i in self.read], values[-1]


class _Planes(NamedTuple):
    """``lower * z <= relu(z) <= (lower + gap) * z + shift``."""

    lower: Tensor
    gap: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class LayerBounds:
    """A network of affine maps with a ReLU after each but the last, as plain matrices.

    The rules of operations bound as many neurons of every box as the box with the most undecided ones has. In small
    boxes most neurons are decided; here each box has as many rows as it needs.

    Parameters
    ----------
    graph : Graph
        The network that it is made from.
    weights, biases : tuple of Tensor
        ``(out, in)`` and ``(out,)`` of each map.
    spreads, rests : tuple of Tensor
        ``(out, in)`` and ``(out,)``: how far the network that runs may be off the map, and these numbers off its
        operations, is at most ``spread @ |x| + rest``.
    """

    graph: Graph
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    spreads: tuple[Tensor, ...]
    rests: tuple[Tensor, ...]

    @classmethod
    def of(cls, graph: Graph) -> LayerBounds | None:
        """The network of a graph; None for one that is not of this kind, or is wide."""
        nodes = graph.nodes[1:]
        if any(node.inputs != (i,) for i, node in enumerate(nodes)) or any(
            torch.Size(node.shape).numel() > _WIDEST for node in graph.nodes
        ):
            return None
        ends = [i for i, node in enumerate(nodes) if isinstance(node.operation, Kink) and node.operation.plain]
        if not all(i in ends or (node.operation is not None and node.operation.linear) for i, node in enumerate(nodes)):
            return None
        maps = [_affine_map(graph, end) for end in (*ends, graph.output)]
        return cls(graph, *zip(*maps, strict=True))

    def start(self, lower: Tensor, upper: Tensor) -> tuple[tuple[Interval, ...], Tensor]:
        found, interval = list[Interval](), Interval(lower, upper)
        # With slopes in [0, 1], no path through the network, forwards or back, carries more than the matrices of sizes
        # do; a sum of n products errs by n units in the last place of the sum of their sizes (Higham, "Accuracy and
        # stability of numerical algorithms", 2002, section 3.1).
        size = torch.maximum(lower.abs(), upper.abs()).amax(0)
        error = torch.zeros_like(size)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            radius = self._radius(number, interval)
            found.append(_affine(interval, weight, bias, radius))
            interval = Interval(found[-1].lower.relu(), found[-1].upper.relu())
            size = weight.abs() @ size + bias.abs() + radius.amax(0)
            error = weight.abs() @ error + _ERRORS * (weight.shape[1] + _ERRORS) * _UNIT * size
        if _overflowing(self.graph, lower, upper):
            error = torch.full_like(error, torch.inf)
        return tuple(found[:-1]), error

    def bound(self, lower: Tensor, upper: Tensor, known: Sequence[Interval], matrix: Tensor) -> Boxed:
        planes, found, radii = list[_Planes](), list[Interval](), list[Tensor]()
        interval = Interval(lower, upper)
        for number, (weight, bias, before) in enumerate(zip(self.weights, self.biases, known, strict=False)):
            radii.append(self._radius(number, interval))
            interval = _affine(interval, weight, bias, radii[number])
            low, high = torch.fmax(interval.lower, before.lower), torch.fmin(interval.upper, before.upper)
            if number:
                self._refine(number, low, high, planes, radii, lower, upper)
            found.append(Interval(low, high))
            slopes = kink_planes(low, high)
            planes.append(_Planes(slopes.lower, slopes.upper - slopes.lower, slopes.shift))
            interval = Interval(low.relu(), high.relu())
        rows, constant = matrix @ self.weights[-1], matrix @ self.biases[-1]
        constant = constant - _lost(matrix, self._radius(-1, interval))
        weights = list[Tensor]()
        for number in range(len(planes) - 1, -1, -1):
            rows, shift = _through(rows, _Planes(*(plane.unsqueeze(1) for plane in planes[number])))
            low, high = found[number]
            weights.append(rows.abs().sum(1) * ((low < 0) & (high > 0)))
            constant = constant + shift + rows @ self.biases[number] - _lost(rows, radii[number])
            rows = rows @ self.weights[number]
        return Boxed(rows, constant, tuple(found), tuple(reversed(weights)))

    def _refine(
        self,
        number: int,
        low: Tensor,
        high: Tensor,
        planes: list[_Planes],
        radii: list[Tensor],
        lower: Tensor,
        upper: Tensor,
    ) -> None:
        """Backward bounds of the undecided neurons of a layer, written into ``low`` and ``high``."""
        center, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
        signs = torch.tensor([1, -1], dtype=lower.dtype)
        undecided = ((low < 0) & (high > 0)).nonzero()
        for part in undecided.split(max(1, _CHUNK // max(map(len, self.biases)))):
            box, neuron = part.T
            # Each neuron and its negative.
            rows = signs[:, None, None] * self.weights[number][neuron]
            constant = signs[:, None] * self.biases[number][neuron] - radii[number][box, neuron]
            for before in range(number - 1, -1, -1):
                rows, shift = _through(rows, _Planes(*(plane[box] for plane in planes[before])))
                constant = constant + shift + rows @ self.biases[before]
                constant = constant - torch.linalg.vecdot(rows.abs(), radii[before][box])
                rows = rows @ self.weights[before]
            value = constant + torch.linalg.vecdot(rows, center[box]) - torch.linalg.vecdot(rows.abs(), radius[box])
            low[box, neuron] = torch.fmax(low[box, neuron], value[0])
            high[box, neuron] = torch.fmin(high[box, neuron], -value[1])

    def _radius(self, number: int, x: Interval) -> Tensor:
        """``(M, out)`` how far a map's value may be off for inputs between bounds."""
        return torch.addmm(self.rests[number], torch.maximum(x.lower.abs(), x.upper.abs()), self.spreads[number].T)

    def values(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            found.append(torch.addmm(bias, x, weight.T))
            x = found[-1].relu()
        return found, torch.addmm(self.biases[-1], x, self.weights[-1].T)


def _overflowing(graph: Graph, lower: Tensor, upper: Tensor) -> bool:
    """Whether a sum of the network that runs may leave the numbers of its precision."""
    shape = graph.nodes[0].shape
    intervals = interval_bounds(graph, Region.box(lower.unflatten(1, shape), upper.unflatten(1, shape)))
    return not all(bool(radius.isfinite().all()) for radius in Errors.of(graph, intervals, {}).radii.values())


def _affine_map(graph: Graph, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the ReLU (or the input) before a node to it: a matrix, a constant, and what rounding may do to the value.

    That is as :class:`LayerBounds` has it. The sizes of terms are linear functions of those of the inputs, as values
    are of the inputs themselves.
    """
    chain = []
    node = graph.nodes[end]
    while node.operation is not None and not isinstance(node.operation, Kink):
        chain.append(node)
        node = graph.nodes[node.inputs[0]]
    count = torch.Size(node.shape).numel()
    # Every unit vector, and last of all 0.
    units = torch.cat([torch.eye(count, dtype=torch.float64), torch.zeros(1, count, dtype=torch.float64)])
    size, radii = units.unflatten(1, node.shape), list[Tensor]()
    for step in reversed(chain):
        size, radius = _sized(graph, step, size)
        radii.append(radius.flatten(1))
    out = torch.Size(graph.nodes[end].shape).numel()
    rows = Rows.whole(torch.eye(out, dtype=torch.float64).unflatten(1, graph.nodes[end].shape))
    constant, spread = torch.zeros(out, dtype=torch.float64), torch.zeros(count + 1, out, dtype=torch.float64)
    for step, radius in zip(chain, reversed(radii), strict=True):
        assert step.operation is not None  # the input is in no chain
        spread = spread + radius @ rows.full(step.shape).flatten(1).abs().T
        (rows,), shift = step.operation.backward(rows, None, graph.inputs_of(step))
        constant = constant if shift is None else constant + shift
    # Enough for the few sums that led here.
    spread, rest = (spread[:-1] - spread[-1]).clamp_min(0) * _AMPLE, spread[-1] * _AMPLE
    return rows.full(node.shape).flatten(1), constant, spread.T, rest


def _sized(graph: Graph, node: Node, size: Tensor) -> tuple[Tensor, Tensor]:
    """What the sizes of the terms of a node's value add up to, and its radius, for inputs of such sizes."""
    arithmetic, operation = graph.arithmetic, node.operation
    assert arithmetic is not None  # proofs are about one
    assert operation is not None
    found = operation.rounding(None, Interval(-size, size))
    if found is None:
        value = operation.interval(Interval(-size, size))
        return torch.maximum(value.lower.abs(), value.upper.abs()), torch.zeros_like(value.lower)
    # Where no input is 0, as many terms as there can be.
    full = operation.rounding(None, Interval(*torch.ones_like(size).expand(2, *size.shape)))
    executed = float(torch.as_tensor(full.executed).max()) if full is not None and node.executed else 0.0
    share = gamma(found.own + _ERRORS, _UNIT) + gamma(executed, arithmetic.unit)
    return found.size, found.size * share + executed * arithmetic.tiny


def _lost(rows: Tensor, radius: Tensor) -> Tensor:
    """``(M, R)`` what functions ``(M, R, out)`` lose to a radius ``(M, out)``."""
    lost: Tensor = (rows.abs() @ radius.unsqueeze(2))[..., 0]
    return lost


def _affine(x: Interval, weight: Tensor, bias: Tensor, error: Tensor) -> Interval:
    middle = torch.addmm(bias, x.lower / 2 + x.upper / 2, weight.T)
    radius = (x.upper / 2 - x.lower / 2) @ weight.abs().T + error
    return Interval(middle - radius, middle + radius)


def _through(rows: Tensor, planes: _Planes) -> tuple[Tensor, Tensor]:
    """Rows through ReLUs: the lower plane where a coefficient is positive, the upper one where it is negative."""
    negative = rows.clamp_max(0)
    before: Tensor = (rows * planes.lower).addcmul_(negative, planes.gap)
    shift: Tensor = torch.linalg.vecdot(negative, planes.shift)
    return before, shift
