"""The walk through a graph: what each node is on two batches, and what is left to be done at every call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.onnx.integers import INTEGER_OPERATORS
from holdfast.models.onnx.module import Key, Name, Step
from holdfast.models.onnx.moves import reshape
from holdfast.models.onnx.node import Node, Operator, Rule, Value, quoted
from holdfast.models.onnx.operators import OPERATORS
from holdfast.models.onnx.read import MAX_NODES, read_attributes, renamed
from holdfast.models.onnx.schema import check_attributes, check_inputs, schema_of
from holdfast.models.onnx.tensors import read_sparse, read_tensor, torch_type
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Constants computed from others may take so many bytes, and so many times those that they are computed from.
_ROOM, _GROWTH = 2**28, 16
_SETTING = 4096  # entries of an input that says how to compute
# What two rows may take: bytes of all values together, and multiplications.
_VALUES, _PRODUCTS = 2**36, 2**40


@dataclass
class Builder:
    """What is known so far.

    Parameters
    ----------
    opsets : dict
        Versions of the operator sets, by domain.
    batch : int or None
        The batch size that the file is made for, None if it leaves it free.
    folder : Path or None
        Of external data.
    values : dict
        Of every value that depends on the input, what it is on two batches of different sizes. Tensors are on the
        device ``meta``: they have shapes and types and no entries.
    """

    opsets: dict[str, int]
    batch: int | None
    folder: Path | None
    values: dict[str, tuple[Value, Value]]
    constants: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[Key, Tensor] = field(default_factory=dict)  # the constants that steps use as tensors
    steps: list[Step] = field(default_factory=list)
    _stored: dict[str, Any] = field(default_factory=dict)  # protocol buffers of tensors, read when they are used
    _nodes: int = 0
    _read: int = 0  # bytes of constants in the file
    _computed: int = 0  # bytes of constants computed from others
    _values: int = 0  # bytes of everything that depends on the input, for two rows
    _products: int = 0  # multiplications, for two rows

    def take_tensors(self, graph: Any) -> None:
        """Note a graph's own tensors."""
        self._take([*graph.initializer, *graph.sparse_initializer])

    def _take(self, tensors: list[Any]) -> None:
        for tensor in tensors:
            name = tensor.values.name if hasattr(tensor, "values") else tensor.name
            if name in self._stored:
                raise ModelError(f"two tensors are named {quoted(name)}; export it again")
            self._stored[name] = tensor

    def is_constant(self, name: str) -> bool:
        return name in self.constants or name in self._stored

    def add(self, proto: Any) -> None:
        """Turn a node into constants or a step."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        name, opset = proto.name or next(iter(proto.output), ""), self.opsets.get(domain, 0)
        node = Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), {}, opset)
        try:
            if any(isinstance(word, bytes) for word in (domain, name, proto.op_type, *proto.input, *proto.output)):
                raise ModelError("one of its names is not UTF-8")
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise ModelError(f"the graph has more than {MAX_NODES} nodes")
            self._add(node, domain, proto)
        except Exception as error:  # whatever a rule raises on what it was not made for
            raise ModelError(f"{node}: {one_line(error)[:400]}") from error

    def _add(self, node: Node, domain: str, proto: Any) -> None:
        for name in node.outputs:
            if name and (name in self.values or self.is_constant(name)):
                raise ModelError(f"its output {quoted(name)} is computed twice")
        if missing := [n for n in node.inputs if n and n not in self.values and not self.is_constant(n)]:
            raise ModelError(f"its input {quoted(missing[0])} is computed by no node before it")
        if node.op == "If" and domain == "":
            self._branch(node, proto)
            return
        if node.op not in OPERATORS.get(domain, {}) or domain not in self.opsets:
            called = f" {quoted(f'{domain}::{node.op}')}" if domain else ""
            raise ModelError(
                f"the operator{called} is not supported; load the network from Python (file.py:factory) or as a .pt2 "
                f"export, or keep to {', '.join(sorted(OPERATORS['']))}"
            )
        operator, schema = OPERATORS[domain][node.op], schema_of(node.op, domain, node.opset)
        check_attributes(node, proto, operator, schema)
        node = replace(node, attributes=read_attributes(proto, self.folder))
        check_inputs(node, schema, [self._type(name) for name in node.inputs])
        if node.op == "CastLike":  # only the type of its second input counts, and that is known
            node = replace(node, inputs=node.inputs[:1], attributes={"like": self._type(node.inputs[1])})
        varying = [self.values[name][0] for name in node.inputs if name in self.values]
        if not varying:
            self._store(node, self._compute(node, operator, 0))
        elif any(isinstance(value, Tensor) for value in varying):
            self._add_step(node, operator)
        else:
            self._add_shape(node, operator)

    def _branch(self, node: Node, proto: Any) -> None:
        """A decision that is known beforehand: the nodes of the branch stand in its place."""
        (condition,) = node.inputs
        if condition in self.values:
            raise ModelError("its condition depends on the network's input; export the network without branches")
        branches = {attribute.name: attribute.g for attribute in proto.attribute}
        if branches.keys() != {"then_branch", "else_branch"}:
            raise ModelError("it has not two branches")
        branch = branches["then_branch" if self._constant(condition).item() else "else_branch"]
        if branch.sparse_initializer:
            raise ModelError("its branch has sparse tensors, which are not supported there")
        if len(branch.output) != len(node.outputs):
            raise ModelError(f"its branch gives {len(branch.output)} values for {len(node.outputs)} outputs")
        # another branch may use the same names
        own = {name for inner in branch.node for name in inner.output} | {tensor.name for tensor in branch.initializer}
        names = {name: f"{node.outputs[0]}/{name}" for name in own if name}
        tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in branch.initializer]
        for tensor in tensors:
            tensor.name = names[tensor.name]
        self._take(tensors)
        for inner in branch.node:
            self.add(renamed(inner, names))
        for source, name in zip(branch.output, node.outputs, strict=True):
            known = names.get(source.name, source.name)
            self.add(type(proto)(op_type="Identity", name=node.name, input=[known], output=[name]))

    # Constants

    def _constant(self, name: str) -> Tensor:
        if name not in self.constants:
            stored = self._stored[name]
            read = read_sparse if hasattr(stored, "values") else read_tensor
            self.constants[name] = read(stored, self.folder)
            self._read += self.constants[name].nbytes
            check_bytes(self._read, "the file's tensors together")
        return self.constants[name]

    def _type(self, name: str) -> torch.dtype | None:
        """The type of a tensor; sizes have none."""
        if not name:
            return None
        value = self.values[name][0] if name in self.values else self._constant(name)
        return value.dtype if isinstance(value, Tensor) else None

    def _known(self, node: Node, operator: Operator, example: int) -> list[Value]:
        """The inputs of a node that takes no tensor that depends on the network's input, on one of the two batches."""
        known: list[Value] = []
        for place, name in enumerate(node.inputs):
            value = None if not name else self.values[name][example] if name in self.values else self._constant(name)
            if place in operator.settings:
                known.append(_number(value, name) if isinstance(value, Tensor) else value)
            else:
                known.append(value if isinstance(value, Tensor | None) else torch.tensor(value, dtype=torch.int64))
        like = self._like(node)
        return known if like is None else [*known, torch.zeros((), dtype=like)]

    def _outline(self, node: Node, operator: Operator, example: int) -> list[Tensor]:
        """Shapes and types of what such a node gives."""
        known = [v.to("meta") if isinstance(v, Tensor) else v for v in self._known(node, operator, example)]
        return _tensors(operator.rule(node, *known), "meta")

    def _compute(self, node: Node, operator: Operator, example: int) -> list[Tensor]:
        """What it gives."""
        wanted = self._computed + sum(tensor.nbytes for tensor in self._outline(node, operator, example))
        limit = _ROOM + _GROWTH * self._read
        if wanted > limit:
            raise ModelError(
                f"constants computed from others take {wanted} bytes up to here, and may take {limit} in a file that "
                f"holds {self._read}; export the network with constants folded"
            )
        return _tensors(operator.rule(node, *self._known(node, operator, example)), "cpu")

    def _store(self, node: Node, found: Sequence[Tensor]) -> None:
        for name, tensor in zip(node.outputs, found, strict=False):
            if name:
                self.constants[name] = tensor.contiguous()
                self._computed += tensor.nbytes

    def _like(self, node: Node) -> torch.dtype | None:
        """The type of which an operator wants an empty tensor as its last input; None where it changes none."""
        wanted = None
        if node.op == "Cast":
            wanted = torch_type(node.get("to"))
        elif node.op == "CastLike":
            wanted = node.get("like")
        elif node.op == "ConstantOfShape":
            value: Tensor | None = node.get("value")
            return torch.float32 if value is None else value.dtype
        elif node.op == "Range":
            return self._type(node.inputs[0]) or torch.int64
        elif node.op in {"LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"}:
            return torch.float32
        return None if wanted is None or wanted == self._type(node.inputs[0]) else wanted

    # Steps

    def _add_shape(self, node: Node, operator: Operator) -> None:
        """A node that takes sizes, and no tensor that depends on the input: mostly all batches give the same."""
        outlines = [[tensor.shape for tensor in self._outline(node, operator, example)] for example in (0, 1)]
        if outlines[0] == outlines[1]:
            first, second = (self._compute(node, operator, example) for example in (0, 1))
            if all(map(torch.equal, first, second)):
                self._store(node, first)
                return
        moving = any(name in self.values and i not in operator.settings for i, name in enumerate(node.inputs))
        if moving and node.op not in INTEGER_OPERATORS:
            raise ModelError("the operator is not supported on shapes that change with the number of rows")
        self._add_step(node, INTEGER_OPERATORS[node.op] if moving else operator)

    def _add_step(self, node: Node, operator: Operator) -> None:
        rule, arguments = operator.rule, self._arguments(node, operator)
        first = self._run(0, node, rule, arguments)
        if node.op in {"Reshape", "Flatten"} and isinstance(first, Tensor):
            node, rule, arguments = self._keep_rows(node, rule, arguments, first.shape)
        try:
            second = self._run(1, node, rule, arguments)
        except Exception as error:
            raise ModelError(
                f"does not run on other batch sizes: {one_line(error)[:300]}; export it with a free batch dimension "
                "(dynamic_axes, or torch.export.Dim)"
            ) from error
        results = list(zip(_listed(first), _listed(second), strict=True))
        if not any(isinstance(a, Tensor) for a, _ in results) and all(a == b for a, b in results):
            self._store(node, _tensors(first, "cpu"))
            return
        self._weigh(node, arguments, [a for a, _ in results])
        self.values.update(
            (n, pair) for n, pair in zip(node.outputs, results, strict=False) if n and pair[0] is not None
        )
        self.steps.append(Step(node, rule, arguments))

    def _arguments(self, node: Node, operator: Operator) -> tuple[Name | Value, ...]:
        on_shapes = operator is INTEGER_OPERATORS.get(node.op)
        arguments: list[Name | Value] = []
        for place, name in enumerate(node.inputs):
            if not name:
                arguments.append(None)
                continue
            setting = place in operator.settings or on_shapes
            if name in self.values:
                if setting and isinstance(self.values[name][0], Tensor):
                    raise ModelError(f"its input {quoted(name)} depends on the network's input, and has to be known")
                if not setting and not isinstance(self.values[name][0], Tensor):
                    raise ModelError(f"its input {quoted(name)} counts rows, and a row may not depend on their number")
                arguments.append(Name(name))
            elif setting or (operator.scalars and self._constant(name).dim() == 0):
                arguments.append(_number(self._constant(name), name))
            else:
                self.tensors.setdefault(name, self._constant(name))
                arguments.append(Name(name))
        like = None if on_shapes else self._like(node)
        if like is not None:
            self.tensors.setdefault(like, torch.zeros((), dtype=like))
            arguments.append(Name(like))
        return tuple(arguments)

    def _run(self, example: int, node: Node, rule: Rule, arguments: tuple[Name | Value, ...]) -> Any:
        return rule(node, *(self._outlined(a, example) for a in arguments))

    def _outlined(self, argument: Name | Value, example: int) -> Value:
        """An argument on one of the two batches, as a tensor without entries where it is a tensor."""
        if not isinstance(argument, Name):
            return argument
        if argument.value in self.tensors:
            return self.tensors[argument.value].to("meta")
        assert isinstance(argument.value, str)
        return self.values[argument.value][example]

    def _weigh(self, node: Node, arguments: tuple[Name | Value, ...], results: list[Value]) -> None:
        """Refuse what takes too much on two rows, which is how a network is tried out."""
        rows = self.batch or 2
        for value in results:
            if isinstance(value, Tensor):
                bytes_ = 2 * -(-value.nbytes // rows)
                check_bytes(bytes_, f"a value of shape {str(tuple(value.shape))[:80]}")
                self._values += bytes_
                taken = [self._outlined(a, 0) for a in arguments]
                self._products += 2 * -(-value.numel() * _factors(node, taken) // rows)
            elif value is not None and any(abs(size) >= 2**63 for size in _vector(value)[: _SETTING + 1]):
                raise ModelError("a shape is beyond what 64 bits hold")
            elif value is not None and len(_vector(value)) > _SETTING:
                raise ModelError(f"a shape has more than {_SETTING} entries")
        if self._values > _VALUES or self._products > _PRODUCTS:
            raise ModelError(
                f"up to here two rows take {self._values} bytes of values and {self._products} multiplications, and a "
                f"network may take {_VALUES} and {_PRODUCTS}"
            )

    def _keep_rows(
        self, node: Node, rule: Rule, arguments: tuple[Name | Value, ...], shape: torch.Size
    ) -> tuple[Node, Rule, tuple[Name | Value, ...]]:
        """Leave the first dimension of a fixed shape free, so that any number of rows fits in.

        The rows lie in front, alone or flattened with what follows them; where they do not, the check of rows finds
        out.
        """
        if self.batch is None or not shape or any(isinstance(a, Name) for a in arguments[1:]):
            return node, rule, arguments
        x = self.values[node.inputs[0]][0]
        alone = shape[0] == self.batch and isinstance(x, Tensor) and x.shape[:1] == (self.batch,)
        target = (0 if alone else -1, *shape[1:])  # 0 is Reshape's "as many as before"
        return replace(node, attributes={}), reshape, (arguments[0], target)


def _number(value: Tensor, name: str) -> Value:
    """A constant as Python numbers."""
    if value.dim() == 0:
        number: float | int = value.item()
        return number
    if value.dim() > 1 or len(value) > _SETTING:
        raise ModelError(
            f"its input {quoted(name)} has the shape {tuple(value.shape)}, and should be a list of numbers"
        )
    return tuple(value.tolist())


def _listed(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def _vector(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tensors(result: Any, device: str) -> list[Tensor]:
    """Results as tensors, sizes among them."""
    results = _listed(result)
    if any(value is None for value in results):
        raise ModelError("it takes nothing that depends on the network's input, and is not computed beforehand")
    sizes = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.int64) for v in results]
    return [value.to(device) for value in sizes]


def _factors(node: Node, inputs: list[Value]) -> int:
    """How many products make one entry of the result."""
    second = inputs[1] if len(inputs) > 1 else None
    if node.op in {"Conv", "ConvTranspose"} and isinstance(second, Tensor):
        return second.numel() // max(second.shape[0], 1)
    if node.op in {"MatMul", "Gemm"} and isinstance(inputs[0], Tensor):
        return max(inputs[0].shape, default=1)
    return math.prod(node.get("kernel_shape", ()))
