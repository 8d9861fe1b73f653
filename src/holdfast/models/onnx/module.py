"""A converted graph: steps in order, an environment of named values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from holdfast.errors import ModelError

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node, Rule, Value


@dataclass(frozen=True)
class Name:
    """An argument that is looked up in the environment; every other argument is itself."""

    value: str


@dataclass(frozen=True)
class Step:
    """One node, its rule, and where the rule's arguments come from."""

    node: Node
    rule: Rule
    arguments: tuple[Name | Value, ...]


def bind(values: dict[str, Value], node: Node, result: Value | list[Value]) -> None:
    """Write a node's result under its names; outputs that the rule does not make (a dropout's mask) stay unbound."""
    values.update(zip(node.outputs, result if isinstance(result, list) else [result], strict=False))


class OnnxModule(nn.Module):
    """An ONNX network as a module: ``forward`` takes one tensor (N, *input_shape) and returns one tensor (N, ...).

    The file's tensors are buffers, under their ONNX names with other characters than letters, digits and ``_`` replaced
    by ``_``: they follow ``.to`` and ``.double()`` and appear in ``state_dict``, and no optimizer trains them. Rows are
    independent and N is free, whatever batch size the file was exported with.

    Attributes
    ----------
    input_shape : tuple of int
        The shape of one example.
    opset : int
        The version of the ONNX operator set that the file names.
    """

    def __init__(
        self,
        steps: list[Step],
        constants: dict[str, Tensor],
        input_name: str,
        output_name: str,
        input_shape: tuple[int, ...],
        opset: int,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.opset = opset
        self._input, self._output = input_name, output_name
        self._steps = steps
        self._last_uses = _last_uses(steps, keep={output_name, *constants})
        self._constants: dict[str, str] = {}
        for name, tensor in constants.items():
            self._constants[name] = self._free_name(name)
            self.register_buffer(self._constants[name], tensor)

    def _free_name(self, name: str) -> str:
        clean = re.sub(r"\W", "_", name)
        clean = f"_{clean}" if clean[:1].isdigit() else clean
        while hasattr(self, clean):
            clean += "_"
        return clean

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise ModelError(f"the network takes inputs of shape ({wanted}), got {tuple(x.shape)}; reshape them")
        values: dict[str, Value] = {name: self.get_buffer(buffer) for name, buffer in self._constants.items()}
        values[self._input] = x
        for step, dead in zip(self._steps, self._last_uses, strict=True):
            arguments = [values[a.value] if isinstance(a, Name) else a for a in step.arguments]
            try:
                bind(values, step.node, step.rule(step.node, *arguments))
            except Exception as error:
                error.add_note(f"in ONNX {step.node}")
                raise
            for name in dead:
                del values[name]
        output = values[self._output]
        assert isinstance(output, Tensor)  # conversion has seen it
        return output

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}, opset={self.opset}, steps={len(self._steps)}"


def _last_uses(steps: list[Step], keep: set[str]) -> list[list[str]]:
    """Return, for every step, the values that no later step reads."""
    seen, uses = set(keep), []
    for step in reversed(steps):
        dead = {a.value for a in step.arguments if isinstance(a, Name)} - seen
        seen |= dead
        uses.append(sorted(dead))
    return uses[::-1]
