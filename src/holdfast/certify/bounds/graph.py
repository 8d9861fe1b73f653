"""A network as a graph of operations with one small rule each: what every bound is computed on."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from holdfast.certify.bounds.rounding import Arithmetic, Rounding
    from holdfast.certify.bounds.rows import Rows

__all__ = ["Graph", "Interval", "Node", "Operation"]

T = TypeVar("T")


class Interval(NamedTuple):
    """Bounds of a node's value, elementwise: two tensors ``(N, *shape)``."""

    lower: Tensor
    upper: Tensor


class Operation(Protocol):
    """What a node does to its inputs, each ``(N, *shape)``.

    Parameters
    ----------
    linear : bool
        Whether it is linear, up to a constant: then its backward pass is exact, and it relaxes to None.
    separate : bool
        Whether, besides, each entry of its value depends on one entry of the input and no two on the same one.
    relative : bool
        Whether its backward pass makes each coefficient of its one input by a single product.
    adds : bool
        Whether its value is the sum of its inputs, but for their signs.
    """

    @property
    def linear(self) -> bool: ...

    @property
    def separate(self) -> bool: ...

    @property
    def relative(self) -> bool: ...

    @property
    def adds(self) -> bool: ...

    @property
    def apply(self) -> Callable[..., Tensor]:
        """The operation itself."""
        ...

    @property
    def interval(self) -> Callable[..., Interval]:
        """Given intervals of all inputs, one that holds the value."""
        ...

    @property
    def relax(self) -> Callable[..., Any]:
        """Given intervals of all inputs, linear bounds that hold there, in whatever form ``backward`` reads them."""
        ...

    @property
    def rounding(self) -> Callable[..., Rounding | None]:
        """Given intervals of all inputs, how it rounds; None where nothing is rounded."""
        ...

    def undecided(self, x: Interval) -> Tensor | None:
        """``(N, *shape)`` bool, the entries of an input of which tighter bounds would make for tighter planes.

        None for linear operations.
        """
        ...

    def backward(
        self, rows: Rows, planes: Any, shapes: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[Rows, ...], Tensor | None]:
        """Lower bounds of linear functions of the value, as linear functions of the inputs, and constants ``(R,)``.

        Planes of ``N`` examples serve ``R`` rows in equal groups, ``R / N`` for each example in turn; ``shapes`` are
        those of one example of each input.
        """
        ...


@dataclass(frozen=True, eq=False)
class Node:
    """One step: an operation on the values of earlier nodes; None for the network's input.

    Parameters
    ----------
    name, operation, inputs, shape
        What it comes from, what it does, the nodes that it reads, and the shape of one example of its value.
    executed : bool
        Whether the network that runs computes this very value; what stands between its steps here is not rounded.
    error : callable, optional
        By how much the network's arithmetic may move the value besides, where it gets there in a way of its own: given
        its unit roundoff, and intervals of the inputs and of the nodes in ``also``.
    also : tuple of int
        Further nodes that the error depends on.
    """

    name: str
    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    executed: bool = True
    error: Callable[..., Tensor] | None = None
    also: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order: the first is the input, the last the output ``(N, K)``.

    Parameters
    ----------
    nodes : tuple of Node
    arithmetic : Arithmetic or None
        In which the network runs that bounds speak of; None where they leave rounding out of account, their own too.
    origin : Graph, optional
        The network before its constants were rounded to another precision.
    """

    nodes: tuple[Node, ...]
    arithmetic: Arithmetic | None = None
    origin: Graph | None = None

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, those that read it; one that reads it twice is there twice."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for source in node.inputs:
                found[source].append(number)
        return tuple(map(tuple, found))

    def values(self, x: Tensor) -> list[Tensor]:
        """The values of all nodes at inputs ``(N, *shape)``."""
        found: list[Tensor] = []
        for node in self.nodes:
            found.append(x if node.operation is None else node.operation.apply(*(found[i] for i in node.inputs)))
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output at inputs ``(N, *shape)``."""
        return self.values(x)[-1]

    def inputs_of(self, node: Node) -> tuple[tuple[int, ...], ...]:
        """The shapes of what a node reads."""
        return tuple(self.nodes[i].shape for i in node.inputs)

    def to(self, dtype: torch.dtype) -> Graph:
        """The same network in another precision, its constants rounded but once."""
        origin = self if self.origin is None else self.origin
        nodes = tuple(
            node if node.operation is None else replace(node, operation=_cast(node.operation, dtype))
            for node in origin.nodes
        )
        return Graph(nodes, self.arithmetic, origin)

    def within(self, arithmetic: Arithmetic | None) -> Graph:
        """The same network, run in another arithmetic."""
        origin = None if self.origin is None else replace(self.origin, arithmetic=arithmetic)
        return replace(self, arithmetic=arithmetic, origin=origin)


def _cast(value: T, dtype: torch.dtype) -> T:
    """A frozen dataclass with its floating-point tensors in another precision, and its caches empty."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    tensors = {
        field.name: found.to(dtype)
        for field in fields(value)
        if isinstance(found := getattr(value, field.name), Tensor) and found.is_floating_point()
    }
    return replace(value, **tensors)
