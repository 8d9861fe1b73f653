"""A network with its clamps and max pooling written in functions of one kink, which are what a search splits.

A maximum is ``max(a, b) = b + relu(a - b)``, and a clamp cuts its input off at one end after the other. The planes of
the operations themselves are tighter as long as nothing is split, so this is for searches that have begun.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from holdfast.certify.bounds.graph import Graph, Node
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import Kink, relu
from holdfast.certify.bounds.operations.linear import Monotone, Scale, Sum
from holdfast.certify.bounds.operations.pooling import MaxPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from holdfast.certify.bounds.graph import Interval, Operation

__all__ = ["in_kinks", "written"]


def written(graph: Graph, intervals: Sequence[Interval]) -> set[int]:
    """The nodes that :func:`in_kinks` writes in others: those that are not linear where these bounds hold."""
    return {number for number, node in enumerate(graph.nodes) if _bends(node, intervals[(*node.inputs, 0)[0]])}


def in_kinks(graph: Graph, intervals: Sequence[Interval]) -> tuple[Graph, list[int]]:
    """The same network, for inputs for which these bounds of its nodes hold.

    Returns
    -------
    graph : Graph
    places : list of int
        Where in it the nodes are.
    """
    chosen = written(graph, intervals)
    nodes, places = _rewritten(graph, chosen, intervals, intervals[0].lower)
    origin = None
    if graph.origin is not None:
        origin = Graph(_rewritten(graph.origin, chosen, intervals, intervals[0].lower.double())[0], graph.arithmetic)
    return Graph(nodes, graph.arithmetic, origin), places


def _ends(node: Node) -> tuple[float, float] | None:
    return node.operation.activation.ends if isinstance(node.operation, Elementwise) else None


def _bends(node: Node, x: Interval) -> bool:
    """Whether it is a clamp or a maximum, and anything but linear there."""
    if isinstance(node.operation, MaxPool):
        return bool(node.operation.undecided(x).any() and x.lower.isfinite().all())
    return any(bool(((x.lower < end) & (x.upper > end)).any()) for end in _ends(node) or ())


def _rewritten(
    graph: Graph, chosen: set[int], intervals: Sequence[Interval], like: Tensor
) -> tuple[tuple[Node, ...], list[int]]:
    steps, places = _Steps([], like), list[int]()
    for number, node in enumerate(graph.nodes):
        inputs, also = (tuple(places[i] for i in numbers) for numbers in (node.inputs, node.also))
        moved, ends = replace(node, inputs=inputs, also=also), _ends(node)
        if number not in chosen:
            steps.nodes.append(moved)
        elif isinstance(node.operation, MaxPool):
            steps.max_pool(moved, node.operation, intervals[node.inputs[0]])
        elif ends is not None:
            steps.clamp(moved, *ends, intervals[node.inputs[0]])
        places.append(len(steps.nodes) - 1)
    return tuple(steps.nodes), places


@dataclass(frozen=True, eq=False)
class _Steps:
    """The nodes so far, and a tensor of the precision and on the device of their constants."""

    nodes: list[Node]
    like: Tensor

    def add(self, node: Node, operation: Operation, *inputs: int, executed: bool = False) -> int:
        """A step on the way to a node's value, of the same shape."""
        self.nodes.append(Node(node.name, operation, inputs, node.shape, executed))
        return len(self.nodes) - 1

    def clamp(self, node: Node, low: float, high: float, x: Interval) -> None:
        """``low + max(x - low, 0)``, and of that ``high + min(x - high, 0)``; ends that no input is beyond are none."""
        (number,) = node.inputs
        assert isinstance(node.operation, Elementwise)
        # The network computes the clamp itself, and does no more than round its ends.
        rounded = bool(node.operation.activation.roundings)
        for end, kink, beyond in ((low, relu(), x.lower < low), (high, Kink(1.0, 0.0, 0), x.upper > high)):
            if bool(beyond.any()):
                number = self.add(node, self.shifted(node, -end), number)
                number = self.add(node, kink, number)
                number = self.add(node, self.shifted(node, end), number, executed=rounded)

    def shifted(self, node: Node, shift: float) -> Scale:
        shifts = self.like.new_full(node.shape, shift)
        return Scale(torch.ones_like(shifts), shifts, shifts.abs(), 1)

    def max_pool(self, node: Node, operation: MaxPool, x: Interval) -> None:
        """``max(a, b) = b + relu(a - b)`` in rounds, until of the inputs of each window one is left."""
        places, floor = operation.contenders(x), float(x.lower.amin()) - 1
        left = [
            self.add(node, Monotone(partial(_picked, places=column, floor=floor, shape=node.shape)), *node.inputs)
            for column in places.unbind(1)
        ]
        while len(left) > 1:
            pairs = list(zip(left[::2], left[1::2], strict=False))
            rest = left[2 * len(pairs) :]
            rises = [self.add(node, relu(), self.add(node, Sum((1, -1)), b, a)) for a, b in pairs]
            left = [self.add(node, Sum((1, 1)), a, rise) for (a, _), rise in zip(pairs, rises, strict=True)] + rest


def _picked(x: Tensor, places: Tensor, floor: float, shape: tuple[int, ...]) -> Tensor:
    """The entries of the flattened value at some places, and a constant where the place is -1."""
    picked = x.flatten(1)[:, places.clamp_min(0).to(x.device)]
    return torch.where(places.to(x.device) < 0, floor, picked).reshape(len(x), *shape)
