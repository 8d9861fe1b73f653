"""A converted graph: steps in order, an environment of named values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.models.onnx.tensors import type_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.onnx.node import Node, Rule, Value

# A value of the graph; or a type, which stands for an empty tensor of it.
Key = str | torch.dtype


@dataclass(frozen=True)
class Name:
    """An argument that is looked up in the environment; every other argument is itself."""

    value: Key


@dataclass(frozen=True)
class Step:
    """One node, its rule, and where the rule's arguments come from."""

    node: Node
    rule: Rule
    arguments: tuple[Name | Value, ...]


def bind(values: dict[Key, Value], node: Node, result: Value | list[Value]) -> None:
    """Write a node's result under its names; outputs that the rule does not make (a dropout's mask) stay unbound."""
    results = result if isinstance(result, list) else [result]
    values.update((name, value) for name, value in zip(node.outputs, results, strict=False) if value is not None)


class OnnxModule(nn.Module):
    """An ONNX network as a module: ``forward`` takes one tensor (N, *input_shape) and returns one tensor (N, ...).

    The file's tensors are buffers, under their ONNX names with other characters than letters, digits and ``_`` replaced
    by ``_``: they follow ``.to`` and ``.double()`` and appear in ``state_dict``, and no optimizer trains them. Rows are
    independent and N is free, whatever batch size the file was exported with.

    A network made for one row whose shapes leave no room for more (``by_row``) is run on each row by itself, at once.

    Only what has the type of the network's input follows ``.double()`` and its like. A network that computes a part in
    another precision goes on doing so, since what it rounds there is part of what it computes.

    Attributes
    ----------
    input_name, output_name : str
        What the file calls the input and the output.
    input_shape : tuple of int
        The shape of one example.
    input_dtype : torch.dtype
        The type of its entries in the file. A network of whole numbers takes them in any type.
    opset : int
        The version of the ONNX operator set that the file names.
    """

    def __init__(
        self,
        steps: list[Step],
        constants: dict[Key, Tensor],
        input_name: str,
        output_name: str,
        input_shape: tuple[int, ...],
        input_dtype: torch.dtype,
        opset: int,
        *,
        by_row: bool = False,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.input_dtype = input_dtype
        self.opset = opset
        self._by_row = by_row
        self.input_name, self.output_name = input_name, output_name
        self._steps = steps
        self._last_uses = _last_uses(steps, keep={output_name, *constants})
        self._constants: dict[Key, str] = {}
        precision = main_type(input_dtype)
        types = {tensor.dtype for tensor in constants.values() if tensor.is_floating_point()} or {torch.float32}
        if types != {precision}:  # the first buffer tells which type the network's inputs have
            constants = {precision: torch.zeros((), dtype=precision), **constants}
        for name, tensor in constants.items():
            self._constants[name] = self._free_name(name if isinstance(name, str) else f"type_{type_name(name)}")
            self.register_buffer(self._constants[name], tensor)
        self._fixed = [
            self._constants[name]
            for name, tensor in constants.items()
            if tensor.is_floating_point() and tensor.dtype != precision
        ]

    def _free_name(self, name: str) -> str:
        clean = re.sub(r"\W", "_", name)[:200]
        clean = f"_{clean}" if not clean or clean[0].isdigit() else clean
        while hasattr(self, clean):
            clean += "_"
        return clean

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move buffers; those of another precision keep it."""
        before = {name: self.get_buffer(name) for name in self._fixed}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            self._buffers[name] = tensor.to(self.get_buffer(name).device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise ModelError(f"the network takes inputs of shape ({wanted}), got {tuple(x.shape)}; reshape them")
        x = x if self.input_dtype.is_floating_point else self._whole(x)
        if x.shape[0] == 0:  # into which a shape with a free dimension cannot be read
            return self._run(x.new_zeros(1, *x.shape[1:]))[:0]
        if not self._by_row or x.shape[0] == 1:
            return self._run(x)
        rows: Tensor = torch.func.vmap(self._run)(x.unsqueeze(1)).squeeze(1)
        return rows

    def _run(self, x: Tensor) -> Tensor:
        values: dict[Key, Value] = {name: self.get_buffer(buffer) for name, buffer in self._constants.items()}
        values[self.input_name] = x
        for step, dead in zip(self._steps, self._last_uses, strict=True):
            arguments = [values[a.value] if isinstance(a, Name) else a for a in step.arguments]
            try:
                bind(values, step.node, step.rule(step.node, *arguments))
            except Exception as error:
                error.add_note(f"in ONNX {step.node}")
                raise
            for name in dead:
                del values[name]
        output = values[self.output_name]
        assert isinstance(output, Tensor)  # conversion has seen it
        return output

    def _whole(self, x: Tensor) -> Tensor:
        whole = x.to(self.input_dtype)
        if x.dtype != self.input_dtype and not torch.equal(whole.to(x.dtype), x):
            raise ModelError(f"the network takes whole numbers of type {type_name(self.input_dtype)}, got others")
        return whole

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}, opset={self.opset}, steps={len(self._steps)}"


def main_type(input_dtype: torch.dtype) -> torch.dtype:
    """The floating-point type in which a network computes, by the type of its input."""
    return input_dtype if input_dtype.is_floating_point else torch.float32


def _last_uses(steps: list[Step], keep: set[Key]) -> list[list[Key]]:
    """Return, for every step, the values that no later step reads."""
    seen, uses = set(keep), []
    for step in reversed(steps):
        dead = {a.value for a in step.arguments if isinstance(a, Name)} - seen
        seen |= dead
        uses.append(sorted(dead, key=str))
    return uses[::-1]
