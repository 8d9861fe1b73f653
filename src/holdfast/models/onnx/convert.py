"""From an ONNX file to an :class:`~holdfast.models.onnx.module.OnnxModule`.

The graph is walked once, in its own order, on an example batch. A node whose inputs are all known is computed at once
and becomes a constant; every other node becomes a step, run on the example as soon as it is made, so that what does not
convert is reported with its node's name and the shapes of all values are known along the way.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.models.files import existing_file, one_line
from holdfast.models.onnx.integers import INTEGER_OPERATORS
from holdfast.models.onnx.module import Name, OnnxModule, Step, bind
from holdfast.models.onnx.node import Node, Rule, Value
from holdfast.models.onnx.operators import OPERATORS
from holdfast.models.onnx.windows import WINDOW_OPERATORS

if TYPE_CHECKING:
    from pathlib import Path


Array = np.ndarray[Any, Any]

_OPERATORS = {**OPERATORS, **WINDOW_OPERATORS}
_DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}  # by the numbers of onnx.TensorProto.DataType
_OLDEST_OPSET = 7  # before it, arithmetic broadcast by an attribute; onnxruntime draws the line here too


def load_onnx(path: str | Path) -> OnnxModule:
    """Load an ONNX network as a module that takes any number of rows.

    A file exported for a fixed batch size runs for any other: the first dimension of every fixed Reshape is left free.
    That rows are then independent of one another is checked on a random batch of two.

    Parameters
    ----------
    path
        An ONNX file, gzipped or not, with one floating-point input (N, ...) and one output (N, ...).

    Returns
    -------
    OnnxModule
        In evaluation mode, on the CPU, in the file's own dtype.

    Raises
    ------
    ModelError
        If the file is not a readable ONNX network, if an operator or a form of it is not supported, if it has several
        inputs or outputs, if a dimension other than the batch is free, if its rows cannot be told apart, or if the
        package ``onnx`` is missing.
    """
    path = existing_file(path)
    model = _read(path)
    try:
        with torch.no_grad():
            return _convert(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def _read(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ModelError(f"{path}: reading ONNX needs the package onnx: pip install 'holdfast[onnx]'") from error
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        model = onnx.load_from_string(gzip.decompress(path.read_bytes())) if zipped else onnx.load(path)
    except Exception as error:  # protobuf and the loader of external data each raise their own kinds
        raise ModelError(f"{path}: not a complete ONNX file ({one_line(error)[:160]}); export it again") from error
    if not model.graph.node:
        raise ModelError(f"{path}: not an ONNX network: its graph has no nodes; export it again")
    return model


def _convert(model: Any) -> OnnxModule:
    from onnx import numpy_helper

    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"opset {opset} is not supported, {_OLDEST_OPSET} is the oldest; "
            "raise it with onnx.version_converter.convert_version"
        )
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    graph_input = _single([i for i in model.graph.input if i.name not in constants], "input")
    output = _single(list(model.graph.output), "output").name
    batch, shape, dtype = _input_type(graph_input)

    builder = _Builder(opset, batch, constants, {graph_input.name: _example(batch or 2, shape, dtype)})
    for proto in model.graph.node:
        builder.add(proto)
    if output not in builder.values:
        fixed = output in builder.constants
        raise ModelError(f"output '{output}' {'does not depend on the input' if fixed else 'is computed by no node'}")
    module = OnnxModule(builder.steps, builder.tensors, graph_input.name, output, shape, opset).eval()
    _check_rows(module, _example(2, shape, dtype))
    return module


def _example(rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _single(entries: list[Any], what: str) -> Any:
    if len(entries) != 1:
        names = ", ".join(f"'{entry.name}'" for entry in entries[:4])
        raise ModelError(
            f"the graph has {len(entries)} {what}s ({names}), and a classifier has one {what}; export one that does"
        )
    return entries[0]


def _input_type(graph_input: Any) -> tuple[int | None, tuple[int, ...], torch.dtype]:
    """Return the batch size (None if free), the shape of one example, and the dtype of the graph's input."""
    from onnx import TensorProto

    name, kind = graph_input.name, graph_input.type.tensor_type
    sizes = [d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in kind.shape.dim]
    if len(sizes) < 2:
        raise ModelError(f"input '{name}' has no batch dimension; export the network with an input of shape (N, ...)")
    batch, *rest = sizes
    shape = tuple(size for size in rest if size is not None)
    if len(shape) < len(rest):
        raise ModelError(f"input '{name}' leaves dimension {rest.index(None) + 1} free; only the batch may be")
    if kind.elem_type not in _DTYPES:
        raise ModelError(
            f"input '{name}' is of type {TensorProto.DataType.Name(kind.elem_type).lower()}; "
            "export the network with an input of type float, double or float16"
        )
    return batch, shape, _DTYPES[kind.elem_type]


def _read_node(proto: Any, opset: int) -> Node:
    from onnx import helper

    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            attributes[attribute.name] = value.decode()
        elif isinstance(value, int | float):
            attributes[attribute.name] = value
        elif hasattr(value, "__iter__"):  # tensors are attributes of constants only, which onnx itself computes
            attributes[attribute.name] = tuple(value)
    op = proto.op_type if proto.domain in {"", "ai.onnx"} else f"{proto.domain}::{proto.op_type}"
    name = proto.name or next(iter(proto.output), "")
    return Node(op, name, tuple(proto.input), tuple(proto.output), attributes, opset)


def _fold(proto: Any, opset: int, constants: dict[str, Array]) -> list[Array]:
    """Compute a node of known inputs with the reference implementation of the onnx package."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output]
    graph = helper.make_graph([proto], "constant", [], outputs)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    return [np.asarray(value) for value in evaluator.run(None, {name: constants[name] for name in proto.input if name})]


@dataclass
class _Builder:
    """What is known so far: of every value that depends on the input, what it is on the example batch."""

    opset: int
    batch: int | None
    constants: dict[str, Array]
    values: dict[str, Value]
    tensors: dict[str, Tensor] = field(default_factory=dict)  # the constants that steps use as tensors
    steps: list[Step] = field(default_factory=list)

    def add(self, proto: Any) -> None:
        """Turn a node into constants or a step."""
        node = _read_node(proto, self.opset)
        try:
            if missing := [name for name in node.inputs if name and name not in {**self.constants, **self.values}]:
                raise ModelError(f"its input '{missing[0]}' is computed by no node before it")
            if any(name in self.values for name in node.inputs):
                self._add_step(node)
            else:
                self.constants.update(zip(node.outputs, _fold(proto, self.opset, self.constants), strict=False))
        except Exception as error:  # whatever a rule raises on what it was not made for
            raise ModelError(f"{node}: {one_line(error)}") from error

    def _add_step(self, node: Node) -> None:
        rule = self._rule(node)
        arguments = tuple(self._argument(node, i, name) for i, name in enumerate(node.inputs))
        known = {**self.tensors, **self.values}
        result = rule(node, *(known[a.value] if isinstance(a, Name) else a for a in arguments))
        bind(self.values, node, result)
        if node.op in {"Reshape", "Flatten"} and isinstance(result, Tensor):
            node, rule, arguments = self._keep_rows(node, rule, arguments, result.shape)
        self.steps.append(Step(node, rule, arguments))

    def _rule(self, node: Node) -> Rule:
        on_shapes = not any(isinstance(self.values.get(name), Tensor) for name in node.inputs)
        table = INTEGER_OPERATORS if on_shapes else _OPERATORS
        if node.op not in table:
            raise ModelError(
                f"the operator is not supported{' on shapes' if on_shapes else ''}; load the network from Python "
                f"(file.py:factory) or as a .pt2 export, or keep to {', '.join(sorted(table))}"
            )
        return table[node.op]

    def _argument(self, node: Node, position: int, name: str) -> Name | Value:
        if name in self.values:
            return Name(name)
        if not name:
            return None
        array = self.constants[name]
        picks = node.op == "Gather" and position == 1  # indices into a tensor must lie on the tensor's device
        on_shape = isinstance(self.values.get(node.inputs[0]), tuple)
        if array.ndim == 0:
            scalar: int | float = array.item()
            return scalar
        if array.ndim == 1 and array.dtype.kind in "iub" and (on_shape or not picks):
            return tuple(array.tolist())
        self.tensors.setdefault(name, torch.from_numpy(array.copy()))
        return Name(name)

    def _keep_rows(
        self, node: Node, rule: Rule, arguments: tuple[Name | Value, ...], shape: torch.Size
    ) -> tuple[Node, Rule, tuple[Name | Value, ...]]:
        """Leave the first dimension of a fixed shape free, so that any number of rows fits in.

        The rows lie in front, alone or flattened with what follows them; where they do not, :func:`_check_rows` finds
        out.
        """
        if self.batch is None or not shape or any(isinstance(a, Name) for a in arguments[1:]):
            return node, rule, arguments
        x = self.values[node.inputs[0]]
        alone = shape[0] == self.batch and isinstance(x, Tensor) and x.shape[0] == self.batch
        target = (0 if alone else -1, *shape[1:])  # 0 is Reshape's "as many as before"
        return replace(node, attributes={}), OPERATORS["Reshape"], (arguments[0], target)


def _check_rows(module: OnnxModule, x: Tensor) -> None:
    """Refuse a network in which the rows of a batch are not independent examples."""
    advice = "export it with a free batch dimension (dynamic_axes, or torch.export.Dim)"
    try:
        together, apart = module(x), torch.cat([module(x[:1]), module(x[1:])])
    except Exception as error:
        where = " ".join(getattr(error, "__notes__", []))
        raise ModelError(f"does not run on other batch sizes: {one_line(error)} {where}; {advice}") from error
    tolerance = torch.finfo(x.dtype).eps ** 0.5
    scale = max(apart.abs().max().item(), 1.0) if apart.numel() else 1.0
    if together.shape != apart.shape or not torch.allclose(
        together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    ):
        raise ModelError(f"a row's output depends on the other rows of its batch; {advice}")
