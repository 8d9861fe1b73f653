"""One node of an ONNX graph as plain Python values, so that a converted module can be copied and pickled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# What flows between nodes. Shapes and indices are Python integers, never tensors: a shape that is read from a tensor
# and fed to Reshape then stays visible to torch.export and costs no copy between devices.
Value = Tensor | float | int | tuple[int, ...] | None
Rule = Callable[..., Any]


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
        return f"node '{self.name}' ({self.op})"

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where the node leaves it out."""
        return self.attributes.get(attribute, default)
