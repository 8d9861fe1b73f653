"""Linear bounds of a network over many small boxes: what a search that cuts its inputs asks for again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from holdfast.certify.crown import crown, lower_lines
from holdfast.certify.graph import Interval
from holdfast.certify.interval import interval_bounds
from holdfast.certify.operations.relu import ReLU, relu_planes
from holdfast.certify.region import Region
from holdfast.certify.rounding import Errors, gamma
from holdfast.certify.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.certify.graph import Graph

__all__ = ["BoxBounds", "Boxed", "GraphBounds", "LayerBounds", "box_bounds", "least"]

# Wider layers than this are better left to the rules of their operations than made into matrices.
_WIDEST = 1024
# In float64: half a unit in the last place, and how many times a number is rounded besides in sums, with the planes of
# ReLUs and the ends of boxes, at most.
_UNIT, _ERRORS = 2.0**-53, 8
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


def box_bounds(graph: Graph, lower: Tensor, upper: Tensor) -> BoxBounds:
    """The quickest way of bounding a network over parts of some boxes, ``(P, n)``."""
    return LayerBounds.of(graph, lower, upper) or GraphBounds(graph)


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
    weights, biases : tuple of Tensor
        ``(out, in)`` and ``(out,)`` of each map.
    radii : tuple of Tensor
        ``(out,)`` how far the network that runs may be off the map, and these numbers off its operations.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    radii: tuple[Tensor, ...]

    @classmethod
    def of(cls, graph: Graph, lower: Tensor, upper: Tensor) -> LayerBounds | None:
        """The network of a graph, over parts of some boxes; None for one that is not of this kind, or is wide."""
        nodes = graph.nodes[1:]
        if any(node.inputs != (i,) for i, node in enumerate(nodes)) or any(
            torch.Size(node.shape).numel() > _WIDEST for node in graph.nodes
        ):
            return None
        ends = [i for i, node in enumerate(nodes) if isinstance(node.operation, ReLU)]
        if not all(
            node.operation is not None and (node.operation.linear or isinstance(node.operation, ReLU)) for node in nodes
        ):
            return None
        shape = graph.nodes[0].shape
        region = Region.box(lower.unflatten(1, shape), upper.unflatten(1, shape))
        errors = Errors.of(graph, interval_bounds(graph, region), {})
        maps = [_affine_map(graph, end, errors) for end in (*ends, graph.output)]
        return cls(*zip(*maps, strict=True))

    def start(self, lower: Tensor, upper: Tensor) -> tuple[tuple[Interval, ...], Tensor]:
        found, interval = list[Interval](), Interval(lower, upper)
        # With slopes in [0, 1], no path through the network, forwards or back, carries more than the matrices of sizes
        # do; a sum of n products errs by n units in the last place of the sum of their sizes (Higham, "Accuracy and
        # stability of numerical algorithms", 2002, section 3.1).
        size = torch.maximum(lower.abs(), upper.abs()).amax(0)
        error = torch.zeros_like(size)
        for weight, bias, radius in zip(self.weights, self.biases, self.radii, strict=True):
            found.append(_affine(interval, weight, bias, radius))
            interval = Interval(found[-1].lower.relu(), found[-1].upper.relu())
            size = weight.abs() @ size + bias.abs() + radius
            error = weight.abs() @ error + _ERRORS * (weight.shape[1] + _ERRORS) * _UNIT * size
        return tuple(found[:-1]), error

    def bound(self, lower: Tensor, upper: Tensor, known: Sequence[Interval], matrix: Tensor) -> Boxed:
        planes, found = list[_Planes](), list[Interval]()
        interval = Interval(lower, upper)
        for number, (weight, bias, before) in enumerate(zip(self.weights, self.biases, known, strict=False)):
            interval = _affine(interval, weight, bias, self.radii[number])
            low, high = torch.fmax(interval.lower, before.lower), torch.fmin(interval.upper, before.upper)
            if number:
                self._refine(number, low, high, planes, lower, upper)
            found.append(Interval(low, high))
            slopes = relu_planes(low, high)
            planes.append(_Planes(slopes.lower, slopes.upper - slopes.lower, slopes.shift))
            interval = Interval(low.relu(), high.relu())
        rows, constant = matrix @ self.weights[-1], matrix @ self.biases[-1] - matrix.abs() @ self.radii[-1]
        weights = list[Tensor]()
        for number in range(len(planes) - 1, -1, -1):
            rows, shift = _through(rows, _Planes(*(plane.unsqueeze(1) for plane in planes[number])))
            low, high = found[number]
            weights.append(rows.abs().sum(1) * ((low < 0) & (high > 0)))
            constant = constant + shift + rows @ self.biases[number] - rows.abs() @ self.radii[number]
            rows = rows @ self.weights[number]
        return Boxed(rows, constant, tuple(found), tuple(reversed(weights)))

    def _refine(
        self, number: int, low: Tensor, high: Tensor, planes: list[_Planes], lower: Tensor, upper: Tensor
    ) -> None:
        """Backward bounds of the undecided neurons of a layer, written into ``low`` and ``high``."""
        center, radius = lower / 2 + upper / 2, upper / 2 - lower / 2
        signs = torch.tensor([1, -1], dtype=lower.dtype)
        undecided = ((low < 0) & (high > 0)).nonzero()
        for part in undecided.split(max(1, _CHUNK // max(map(len, self.biases)))):
            box, neuron = part.T
            # Each neuron and its negative.
            rows = signs[:, None, None] * self.weights[number][neuron]
            constant = signs[:, None] * self.biases[number][neuron] - self.radii[number][neuron]
            for before in range(number - 1, -1, -1):
                rows, shift = _through(rows, _Planes(*(plane[box] for plane in planes[before])))
                constant = constant + shift + rows @ self.biases[before] - rows.abs() @ self.radii[before]
                rows = rows @ self.weights[before]
            value = constant + torch.linalg.vecdot(rows, center[box]) - torch.linalg.vecdot(rows.abs(), radius[box])
            low[box, neuron] = torch.fmax(low[box, neuron], value[0])
            high[box, neuron] = torch.fmin(high[box, neuron], -value[1])

    def values(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            found.append(torch.addmm(bias, x, weight.T))
            x = found[-1].relu()
        return found, torch.addmm(self.biases[-1], x, self.weights[-1].T)


def _affine_map(graph: Graph, end: int, errors: Errors) -> tuple[Tensor, Tensor, Tensor]:
    """From the ReLU (or the input) before a node to it: a matrix, a constant, and what rounding may do to the value."""
    node = graph.nodes[end]
    size = torch.Size(node.shape).numel()
    rows = Rows.whole(torch.eye(size, dtype=torch.float64).unflatten(1, node.shape))
    constant, radius = torch.zeros(2, size, dtype=torch.float64)
    while node.operation is not None and not isinstance(node.operation, ReLU):
        if end in errors.radii:
            worst, slack = errors.radii[end].amax(0), errors.slack[end].amax()
            radius = radius + rows.full(node.shape).flatten(1).abs() @ worst.flatten() + slack
        (rows,), shift = node.operation.backward(rows, None, graph.inputs_of(node))
        constant = constant if shift is None else constant + shift
        (end,) = node.inputs
        node = graph.nodes[end]
    return rows.full(node.shape).flatten(1), constant, radius * (1 + 2.0**-30)


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
