"""A network as a graph of operations with one small rule each: what every bound is computed on."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from holdfast.certify.rows import Rows

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
    """

    @property
    def linear(self) -> bool: ...

    @property
    def separate(self) -> bool: ...

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
    """One step: an operation on the values of earlier nodes; None for the network's input."""

    name: str
    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order: the first is the input, the last the output ``(N, K)``."""

    nodes: tuple[Node, ...]

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

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
        """The same network in another precision."""
        return Graph(
            tuple(
                node if node.operation is None else replace(node, operation=_cast(node.operation, dtype))
                for node in self.nodes
            )
        )


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
