"""The graph under construction, the symbols in it, and what rules of every kind ask of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Node, Operation
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.linear import Monotone
from holdfast.certify.bounds.relaxations import Activation, Steps
from holdfast.errors import ModelError

__all__ = [
    "LEVEL",
    "Builder",
    "Shape",
    "Symbol",
    "among",
    "applied",
    "by_channel",
    "check_constant",
    "check_dims",
    "example_shape",
    "is_applied",
    "pick",
    "reshaped",
    "terms_of",
    "turn",
    "turned_last",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Symbol:
    """A value that depends on the network's input.

    Parameters
    ----------
    node : int
        Its node in the graph.
    shape : tuple of int
        Its shape in the exported program. The node's is the same without a leading 1, which is the batch.
    """

    node: int
    shape: Shape


def example_shape(shape: Shape) -> Shape:
    """The shape of one example of a value; a single number has one dimension."""
    return (shape[1:] if shape[:1] == (1,) else shape) or (1,)


@dataclass(frozen=True)
class Builder:
    """The graph so far.

    Parameters
    ----------
    dtype : torch.dtype
        The precision of the graph's constants.
    network : torch.dtype
        That of the network.
    nodes : list of Node
        In topological order.
    name : str
        What the nodes added next come from.
    target : callable
        The operation that they come from.
    shape : tuple of int
        The shape of its value in the exported program, or of the first of several.
    executed : bool
        Whether the network that runs computes the values of the nodes added next, and not only what comes of them.
    """

    dtype: torch.dtype
    network: torch.dtype
    nodes: list[Node] = field(default_factory=list)
    name: str = ""
    target: Callable[..., Any] = torch.clone
    shape: Shape = ()
    executed: bool = True

    def at(self, name: str, target: Callable[..., Any], shape: Shape) -> "Builder":
        """The same graph, while another operation is turned into nodes."""
        return replace(self, name=name, target=target, shape=shape)

    def between(self) -> "Builder":
        """The same graph, for steps that the network does not make one by one."""
        return replace(self, executed=False)

    def input(self, shape: Shape) -> Symbol:
        """Add the network's input."""
        self.nodes.append(Node("input", None, (), example_shape(shape)))
        return Symbol(0, shape)

    def add(
        self,
        operation: Operation,
        *inputs: Symbol,
        shape: Shape | None = None,
        error: Callable[..., Tensor] | None = None,
        also: Sequence[Symbol] = (),
    ) -> Symbol:
        """Add a node; its shape is that of the exported value unless it is given."""
        shape = self.shape if shape is None else shape
        reads, further = (tuple(symbol.node for symbol in symbols) for symbols in (inputs, also))
        self.nodes.append(Node(self.name, operation, reads, example_shape(shape), self.executed, error, further))
        return Symbol(len(self.nodes) - 1, shape)

    def move(
        self, function: Callable[..., Tensor], *inputs: Symbol, shape: Shape | None = None, terms: int = 1
    ) -> Symbol:
        """Add a linear operation without negative coefficients, given as it acts on exported values.

        It sums at most that many terms.
        """
        shape = self.shape if shape is None else shape
        shapes = tuple(symbol.shape for symbol in inputs)
        each = partial(_each, function=function, shapes=shapes, shape=example_shape(shape))
        return self.add(Monotone(each, terms=terms), *inputs, shape=shape)

    def reshaped(self, x: Symbol, shape: Shape) -> Symbol:
        """The same numbers in another shape."""
        if example_shape(x.shape) == example_shape(shape):
            return Symbol(x.node, shape)
        return self.add(Monotone(partial(reshaped, shape=example_shape(shape)), separate=True), x, shape=shape)

    def broadcast(self, x: Symbol, shape: Shape) -> Symbol:
        return x if x.shape == shape else self.move(partial(torch.broadcast_to, size=shape), x, shape=shape)

    def constant(self, value: Tensor | float, shape: Shape) -> Tensor:
        """A constant, broadcast to the shape of an exported value, as one example of it."""
        tensor = torch.as_tensor(value, dtype=self.dtype)
        return tensor.expand(shape).reshape(example_shape(shape)).contiguous()


def _each(*inputs: Tensor, function: Callable[..., Tensor], shapes: tuple[Shape, ...], shape: Shape) -> Tensor:
    """The function of each example by itself."""
    whole = [x.reshape(len(x), *exported) for x, exported in zip(inputs, shapes, strict=True)]
    return reshaped(torch.func.vmap(function)(*whole), shape)


def reshaped(x: Tensor, shape: Shape) -> Tensor:
    """The numbers of each example in another shape."""
    return x.reshape(len(x), *shape)


def applied(builder: Builder, activation: Activation | Steps, x: Symbol) -> Symbol:
    """A function of each number alone."""
    return builder.add(Elementwise(activation), x, shape=x.shape)


def is_applied(builder: Builder, name: str, y: Symbol, x: Symbol) -> bool:
    """Whether a value is an activation of another one."""
    node = builder.nodes[y.node]
    known = isinstance(node.operation, Elementwise) and node.operation.activation.name == name
    return known and node.inputs == (x.node,) and y.shape == x.shape


# A level that the network does not hold is compared with as a number so many of its epsilons away.
LEVEL = 2


def terms_of(builder: Builder, *constants: Any) -> int:
    """1 where nothing is rounded that is put among values, and more where the network does not hold one of them."""
    numbers = [torch.as_tensor(value, dtype=torch.float64) for value in constants if value is not None]
    return 1 if all(torch.equal(number, number.to(builder.network).double()) for number in numbers) else 2


def check_constant(*weights: Any) -> None:
    """Refuse weights that depend on the network's input."""
    if any(isinstance(weight, Symbol) for weight in weights):
        raise ModelError("its weight depends on the network's input")


def by_channel(values: Tensor, shape: Shape) -> Tensor:
    """A number for each channel, to be broadcast to a value of the program."""
    return values.reshape(-1, *[1] * (len(shape) - 2))


def turn(builder: Builder, x: Symbol, source: int, destination: int) -> Symbol:
    """The value with one dimension at another place."""
    order = list(range(len(x.shape)))
    order.insert(destination % len(order), order.pop(source))
    if order == list(range(len(order))):
        return x
    return builder.move(partial(torch.permute, dims=order), x, shape=tuple(x.shape[i] for i in order))


def turned_last(builder: Builder, x: Symbol, dims: Sequence[int]) -> tuple[Symbol, int]:
    """The value with some dimensions behind all others, in their order, and how many numbers they hold together."""
    inner = sorted(dim % len(x.shape) for dim in dims)
    order = [dim for dim in range(len(x.shape)) if dim not in inner] + inner
    shape = tuple(x.shape[dim] for dim in order)
    turned = builder.move(partial(torch.permute, dims=order), x, shape=shape)
    return turned, math.prod(x.shape[dim] for dim in inner)


def among(inputs: Sequence[Tensor], places: Sequence[Any]) -> list[Tensor]:
    """Inputs in order, one for each place that is None, and the constants of the other places in their type."""
    given, dtype, device = iter(inputs), inputs[0].dtype, inputs[0].device
    return [next(given) if place is None else torch.as_tensor(place, dtype=dtype, device=device) for place in places]


def pick(x: Tensor, places: Tensor) -> Tensor:
    """The numbers at some places of the last dimension."""
    return x[..., places.to(x.device)]


def check_dims(x: Symbol, dims: Sequence[int]) -> None:
    """Refuse to work along the batch."""
    if x.shape[:1] == (1,) and any(dim % len(x.shape) == 0 for dim in dims):
        raise ModelError("it works along the batch; bounds need independent rows")
