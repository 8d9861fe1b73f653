"""From a module to a :class:`~holdfast.certify.bounds.graph.Graph`, through ``torch.export``."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from holdfast.certify.bounds import agreement
from holdfast.certify.bounds.exported import export, needed, result, rewritten, unwritten
from holdfast.certify.bounds.graph import Graph, Interval, Node
from holdfast.certify.bounds.rounding import Arithmetic
from holdfast.certify.bounds.rules.builder import Builder, Symbol
from holdfast.certify.bounds.rules.elementwise import cast
from holdfast.certify.bounds.rules.table import CASTS, LOGIC, RULES
from holdfast.errors import ModelError
from holdfast.models.borrow import borrowed, given_copies
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

__all__ = ["Program", "capture", "tensors", "trace"]

# How often torch is asked to write an operation in terms of simpler ones.
_DECOMPOSITIONS = 4


def capture(model: nn.Module, x: Tensor, within: Interval | None = None) -> Graph:
    """The graph of a network, as it computes in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` to one tensor ``(N, K)``; it is left as it was.
    x : Tensor
        At least one input, on the model's device and in its dtype.
    within : Interval, optional
        ``(M, *shape)`` ends of boxes that are to be certified: the graph is compared with the model there too.

    Returns
    -------
    Graph
        In the network's precision, float32 where that is a half one, and in its arithmetic; constants that are folded
        have been rounded once. It holds copies of the weights: what happens to the model afterwards does not reach it.

    Raises
    ------
    ModelError
        When the network cannot be exported (its control flow depends on values, its shapes on the data), when one of
        its operations has no rule, when it is no function of the input alone (random numbers, state, rows that depend
        on one another), or when the graph does not compute what the model does. The message names the operation.
    """
    program = trace(model, x, within)
    values = {name: value.detach().clone() for name, value in tensors(model).items()}
    graph = program.graph(values, torch.float64).within(Arithmetic.of(program.dtype))
    return graph.to(torch.float64 if program.dtype == torch.float64 else torch.float32)


def trace(model: nn.Module, x: Tensor, within: Interval | None = None) -> Program:
    """The operations of a network in evaluation mode, without its weights; arguments and errors as of :func:`capture`.

    To trace takes some ten milliseconds, to make a graph of it much less than one.
    """
    if not len(x):
        raise ModelError("a network is captured at an input, and none was given")
    x = x.detach()
    with borrowed(model, 0), given_copies(model):
        exported = unwritten(export(model, x[:1]))
        for _ in range(_DECOMPOSITIONS):
            unknown = {str(node.target) for node in _depending(exported) if _rule_name(node) not in RULES}
            if not unknown:
                break
            exported = rewritten(exported, unknown)
        program = Program(exported, tuple(x.shape[1:]), x.dtype)
        agreement.check(program.graph(tensors(model)), model, x, within)
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
        builder = Builder(self.dtype if dtype is None else dtype, self.dtype)
        found: dict[fx.Node, Any] = {}
        last, needs = result(self.exported), needed(self.exported)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and (node in needs or node.name in self.exported.graph_signature.user_inputs):
                found[node] = self._placeholder(node.name, builder, values)
            elif node.op == "call_function" and node in needs:
                found[node] = _call(node, found, builder, self.dtype)
        if not isinstance(found[last], Symbol):
            raise ModelError("the network's output does not depend on its input")
        return _ending_in(builder.nodes, found[last])

    def _placeholder(self, name: str, builder: Builder, values: Mapping[str, Tensor]) -> Any:
        signature = self.exported.graph_signature
        if name in signature.user_inputs:
            return builder.input((1, *self.shape))
        for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
            if name in names:
                return values[names[name]]
        if name in signature.inputs_to_lifted_tensor_constants:
            return self.exported.constants[signature.inputs_to_lifted_tensor_constants[name]]
        raise ModelError(f"the network takes a further input, '{name}'; bounds need a network of one input")


def _depending(program: ExportedProgram) -> list[fx.Node]:
    """The calls whose values depend on the network's input."""
    found = {node: None for node in program.graph.nodes if node.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found[node] = None
    return [node for node in found if node.op == "call_function"]


def _rule_name(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.")


def _call(node: fx.Node, values: dict[fx.Node, Any], builder: Builder, dtype: torch.dtype) -> Any:
    given: tuple[Any, Any] = fx.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    assert callable(node.target)
    dependent = [source for source in node.all_input_nodes if _has_symbol(values[source])]
    name, where = _rule_name(node), f"node '{node.name}' ({_rule_name(node)}){_source(node)}"
    if name not in RULES and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise ModelError(f"{where}: it draws random numbers")
    if not dependent:
        value = node.target(*given[0], **given[1])
        # What is in new memory is overwritten, or of no meaning.
        return value.zero_() if name.startswith(("empty", "new_empty")) else value
    numbers = _held(node, *given, _precision(node, dependent, dtype))
    args, kwargs = tree_map(partial(_in_precision, dtype=builder.dtype), numbers)
    if name not in RULES and name not in CASTS:
        raise ModelError(f"no bound is known for {where}; replace it, or certify by smoothing")
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) else value
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    try:
        if name in CASTS:
            assert isinstance(first, Tensor)
            source = given[0][0]
            if isinstance(source, Tensor):  # made of the type of what depends on the input
                return source.to(first.dtype)
            return cast(builder.at(node.name, node.target, shape), source, _type(node.args[0]), first.dtype)
        if isinstance(first, Tensor):
            _check_precision(node, dependent, first.dtype, dtype)
        return RULES[name](builder.at(node.name, node.target, shape), *args, **kwargs)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # a rule that was not written for such arguments, whatever it trips over
        said = one_line(error)[:100]
        raise ModelError(f"no bound is known for {where} with these arguments ({said}); replace it") from error


def _held(node: fx.Node, args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Arguments with their numbers as a network of this precision computes with them.

    Half precisions compute with numbers as float32 holds them, or as they do themselves: that is left to rounding.
    """
    if not isinstance(node.target, OpOverload) or dtype not in (torch.float32, torch.float64):
        return args, kwargs
    # Settings, such as the factor of a resampling, are read as they are.
    types = {argument.name: str(argument.type) for argument in node.target._schema.arguments}
    numbers = {name for name, kind in types.items() if "number" in kind or "Tensor" in kind}
    return (
        tuple(_rounded(value, dtype) if name in numbers else value for name, value in zip(types, args, strict=False)),
        {name: _rounded(value, dtype) if name in numbers else value for name, value in kwargs.items()},
    )


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, float):
        return float(torch.tensor(value, dtype=dtype))
    return _in_precision(value, dtype)


def _precision(node: fx.Node, dependent: list[fx.Node], dtype: torch.dtype) -> torch.dtype:
    """In which a node computes, in a network of this precision: some parts may be in a wider one."""
    wide = any(_type(value) == torch.float64 for value in (node, *dependent) if _has_type(value))
    return torch.float64 if wide else dtype


def _has_type(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _type(node: Any) -> torch.dtype:
    """Of the value of a node."""
    found: torch.dtype = node.meta["val"].dtype
    return found


def _check_precision(node: fx.Node, dependent: list[fx.Node], found: torch.dtype, dtype: torch.dtype) -> None:
    """Refuse what is not at least as precise as the network's own precision, of which bounds speak."""
    name = _rule_name(node)
    values = [value.meta.get("val") for value in node.all_input_nodes]
    sources = [value.dtype for value in values if isinstance(value, Tensor)]
    if name in LOGIC and set(sources) != {torch.bool}:
        raise ModelError("it takes numbers for true and false; compare them with 0")
    if not found.is_floating_point:
        # Others overflow soon, and the sum of two that are true is true.
        if found not in (torch.bool, torch.int32, torch.int64) or (found == torch.bool and name.startswith("add.")):
            raise ModelError(f"it computes in {found}; cast what depends on the network's input to {dtype} first")
    elif torch.promote_types(found, dtype) != found:
        raise ModelError(f"it computes in {found}, and the network in {dtype}")
    elif any(torch.promote_types(_type(source), found) != found for source in dependent if _has_type(source)):
        raise ModelError(f"it rounds to {found} on the way; cast what it reads")


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _has_symbol(value: Any) -> bool:
    return any(isinstance(part, Symbol) for part in (value if isinstance(value, list | tuple) else [value]))


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
