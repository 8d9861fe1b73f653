"""One node of an ONNX graph as plain Python values, and what is known of an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# What flows between nodes. Shapes and indices are Python integers, never tensors: a shape that is read from a tensor
# and fed to Reshape then stays visible to torch.export and costs no copy between devices.
Value = Tensor | float | int | tuple[float, ...] | tuple[int, ...] | None
Rule = Callable[..., Any]

_SHOWN = 80  # characters of a name in a message


@dataclass(frozen=True)
class Node:
    """An operator with its attributes, and the names of the values it reads and writes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def __str__(self) -> str:
        return f"node {quoted(self.name)} ({self.op[:_SHOWN]})"

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where the node leaves it out."""
        return self.attributes.get(attribute, default)


@dataclass(frozen=True)
class Operator:
    """How an operator is computed.

    Parameters
    ----------
    rule : callable
        Called as ``rule(node, *inputs)``; an input left out is None. It returns the first output, or a list of the
        first ones.
    attributes : frozenset of str
        What the rule honours, or what cannot change the outputs that it makes. A node with any other is refused.
    settings : tuple of int
        The places of inputs that say how to compute (axes, shapes, limits). They have to be known without the network's
        input, up to the number of rows, and reach the rule as Python numbers and tuples of them.
    scalars : bool
        A constant of no dimension reaches the rule as a Python number.
    """

    rule: Rule
    attributes: frozenset[str] = frozenset()
    settings: tuple[int, ...] = ()
    scalars: bool = False


def operator(rule: Rule, attributes: str = "", *settings: int, scalars: bool = False) -> Operator:
    """An operator whose honoured attributes are written in one string."""
    return Operator(rule, frozenset(attributes.split()), settings, scalars)


def quoted(name: str | bytes) -> str:
    """A name from a file as messages show it: the beginning of a long one, and nothing that is not printable.

    A name that is not UTF-8 comes as bytes.
    """
    name = name.decode(errors="backslashreplace") if isinstance(name, bytes) else name
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    return f"'{''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)}'"
