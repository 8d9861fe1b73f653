"""From a module to a :class:`~holdfast.certify.graph.Graph`, through ``torch.export``."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from holdfast.certify.graph import Graph, Node
from holdfast.certify.rounding import Arithmetic
from holdfast.certify.rules import RULES, Builder, Symbol
from holdfast.errors import ModelError
from holdfast.models.borrow import borrowed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.export import ExportedProgram

__all__ = ["Program", "capture", "tensors", "trace"]

# How often torch is asked to write an operation in terms of simpler ones.
_DECOMPOSITIONS = 4
# The batch on which a graph is compared with its model.
_ROWS = 5


def capture(model: nn.Module, x: Tensor) -> Graph:
    """The graph of a network, as it computes in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` to one tensor ``(N, K)``; it is left as it was.
    x : Tensor
        At least one input, on the model's device and in its dtype.

    Returns
    -------
    Graph
        In the network's precision and arithmetic, constants that are folded having been rounded once. It holds copies
        of the weights: what happens to the model afterwards does not reach it.

    Raises
    ------
    ModelError
        When the network cannot be exported (its control flow depends on values, its shapes on the data), when one of
        its operations has no rule, or when the rows of a batch are not independent. The message names the operation.
    """
    program = trace(model, x)
    values = {name: value.detach().clone() for name, value in tensors(model).items()}
    return program.graph(values, torch.float64).within(Arithmetic.of(program.dtype)).to(program.dtype)


def trace(model: nn.Module, x: Tensor) -> Program:
    """The operations of a network in evaluation mode, without its weights; arguments and errors as of :func:`capture`.

    To trace takes some ten milliseconds, to make a graph of it much less than one.
    """
    x = x.detach()
    with borrowed(model, 0):
        exported = _export(model, x[:1])
        for _ in range(_DECOMPOSITIONS):
            unknown = {str(node.target) for node in _depending(exported) if _rule_name(node) not in RULES}
            if not unknown:
                break
            exported = _decompose(exported, unknown)
        program = Program(exported, tuple(x.shape[1:]), x.dtype)
        _check(program.graph(tensors(model)), model, x)
    return program


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's own parameters and buffers, under every name that each of them has."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


@dataclass(frozen=True, eq=False)
class Program:
    """A network without its weights: what graphs are made from.

    Parameters
    ----------
    exported : ExportedProgram
        Its operations, as torch exports them for a batch of one.
    shape : tuple of int
        Of an input.
    dtype : torch.dtype
        The precision of the network.
    """

    exported: ExportedProgram
    shape: tuple[int, ...]
    dtype: torch.dtype

    def graph(self, values: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Graph:
        """The network with parameters and buffers of these values, by their names in the model.

        Bounds on it are differentiable with respect to them. What is made of several, such as a folded normalisation,
        is made here, so one graph serves one set of values and one pass of gradients.

        Parameters
        ----------
        values : dict
            Parameters and buffers.
        dtype : torch.dtype, optional
            The precision of the graph's constants, if it is not the network's own. What the network computes from
            constants alone is what it computes, in its own precision.
        """
        signature = self.exported.graph_signature
        if len(signature.user_outputs) != 1:
            raise ModelError(f"the network returns {len(signature.user_outputs)} values; bounds need one tensor (N, K)")
        builder = Builder(self.dtype if dtype is None else dtype)
        found: dict[fx.Node, Any] = {}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                found[node] = self._placeholder(node.name, builder, values)
            elif node.op == "call_function":
                found[node] = _call(node, found, builder)
            elif node.op == "output":
                (last,) = fx.map_arg(node.args[0], lambda argument: found[argument])
                if not isinstance(last, Symbol):
                    raise ModelError("the network's output does not depend on its input")
                return _ending_in(builder.nodes, last)
        raise ModelError("the network has no output")

    def _placeholder(self, name: str, builder: Builder, values: Mapping[str, Tensor]) -> Any:
        signature = self.exported.graph_signature
        if name in signature.user_inputs:
            return builder.input((1, *self.shape))
        for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
            if name in names:
                return values[names[name]]
        if name in signature.inputs_to_lifted_tensor_constants:
            # A copy, since a program may work in place on its constants.
            return self.exported.constants[signature.inputs_to_lifted_tensor_constants[name]].clone()
        raise ModelError(f"the network takes a further input, '{name}'; bounds need a network of one input")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells standard error of a network that it cannot export: the exception says it too."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _export(model: nn.Module, x: Tensor) -> ExportedProgram:
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(model, (x,), strict=False)
    except Exception as error:  # tracing runs the model's own code, and raises whatever that raises
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the network cannot be captured: {type(error).__name__}: {reason}; its control flow and shapes must not "
            "depend on values"
        ) from error


def _decompose(program: ExportedProgram, unknown: set[str]) -> ExportedProgram:
    """Have torch write operations without a rule in terms of simpler ones."""
    table = torch.export.default_decompositions()
    for target in [target for target in table if str(target) not in unknown]:
        del table[target]
    with _quiet():
        simpler: ExportedProgram = program.run_decompositions(table)
    return simpler


def _depending(program: ExportedProgram) -> list[fx.Node]:
    """The calls whose values depend on the network's input."""
    found = {node: None for node in program.graph.nodes if node.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found[node] = None
    return [node for node in found if node.op == "call_function"]


def _rule_name(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.")


def _call(node: fx.Node, values: dict[fx.Node, Any], builder: Builder) -> Any:
    given: tuple[Any, Any] = fx.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    assert callable(node.target)
    symbols: list[Symbol] = []
    fx.map_arg((node.args, node.kwargs), lambda argument: _collect(values[argument], symbols))
    if not symbols:
        return node.target(*given[0], **given[1])
    args, kwargs = tree_map(partial(_in_precision, dtype=builder.dtype), given)
    name = _rule_name(node)
    if name not in RULES:
        where = f"node '{node.name}' ({name}){_source(node)}"
        raise ModelError(f"no bound is known for {where}; replace it, or certify by smoothing")
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) else value
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    try:
        return RULES[name](builder.at(node.name, node.target, shape), *args, **kwargs)
    except ModelError as error:
        raise ModelError(f"node '{node.name}' ({name}){_source(node)}: {error}") from error


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _collect(value: Any, symbols: list[Symbol]) -> Any:
    symbols.extend(part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, Symbol))
    return value


def _source(node: fx.Node) -> str:
    """Which module of the model the node comes from, where torch knows."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return f" in module '{paths[-1]}'" if paths else ""


def _ending_in(nodes: list[Node], last: Symbol) -> Graph:
    """The part of a list of nodes that one of them depends on, that one last."""
    needed, pending = set[int](), [last.node]
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            pending.extend((*nodes[number].inputs, *nodes[number].also))
    order = sorted(needed | {0})
    place = {number: i for i, number in enumerate(order)}

    def moved(node: Node) -> Node:
        reads, further = (tuple(place[i] for i in numbers) for numbers in (node.inputs, node.also))
        return replace(node, inputs=reads, also=further)

    return Graph(tuple(moved(nodes[number]) for number in order))


def _check(graph: Graph, model: nn.Module, x: Tensor) -> None:
    """Refuse a graph that computes anything but what the model does."""
    rows = x[torch.arange(_ROWS, device=x.device) % len(x)]
    # Halves of inputs are as good as others, and differ from them.
    rows = torch.cat([rows[:2], rows[2:] * 0.5])
    fault = (
        "the captured graph does not compute what the model does: rows of a batch may depend on one another, or the "
        "model draws random numbers"
    )
    try:
        with torch.no_grad():
            expected, found = model(rows), graph(rows)
    except RuntimeError as error:
        raise ModelError(f"{fault} ({' '.join(str(error).split())[:100]})") from error
    if expected.dim() != 2:
        raise ModelError(f"the network returns a tensor of shape {tuple(expected.shape)}; bounds need logits (N, K)")
    scale = max(float(expected.abs().nan_to_num().max()), 1.0)
    tolerance = 1e3 * torch.finfo(expected.dtype).eps * scale
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise ModelError(fault)
