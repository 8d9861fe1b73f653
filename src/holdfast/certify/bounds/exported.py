"""A network's operations as ``torch.export`` gives them, written so that none changes a value in place."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import OutputKind

from holdfast.errors import ModelError
from holdfast.words import reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.export import ExportedProgram

__all__ = ["export", "needed", "result", "rewritten", "unwritten"]

# What hands on its very input unless it is told to train: whoever writes into the one writes into the other.
_DROPOUT = {
    f"aten.{name}{ending}.default"
    for name in ("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout")
    for ending in ("", "_")
}

# Copies, as which torch may describe what they copy.
_COPIES = {"aten.lift_fresh_copy.default"}


def export(model: nn.Module, x: Tensor) -> ExportedProgram:
    """What a network in evaluation mode does to one input ``(1, *shape)``.

    Raises
    ------
    ModelError
        When torch cannot say: control flow depends on values, or the network's own code fails.
    """
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(model, (x,), strict=False)
    except Exception as error:  # tracing runs the model's own code, and raises whatever that raises
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                "the network normalises by the statistics of the batch, which ties the rows together; let its batch "
                "normalisation track running statistics"
            ) from error
        raise ModelError(
            f"the network cannot be captured: {reason(error)}; its control flow and shapes must not depend on values"
        ) from error


def result(program: ExportedProgram) -> fx.Node:
    """The one value that a network returns."""
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    if kinds.count(OutputKind.USER_OUTPUT) != 1:
        count = kinds.count(OutputKind.USER_OUTPUT)
        raise ModelError(f"the network returns {count} values; bounds need one tensor (N, K)")
    returned = program.graph.output_node().args[0]
    assert isinstance(returned, list | tuple)
    value = returned[kinds.index(OutputKind.USER_OUTPUT)]
    if not isinstance(value, fx.Node):
        raise ModelError("the network's output does not depend on its input")
    return value


def needed(program: ExportedProgram) -> set[fx.Node]:
    """The nodes that the returned value is computed from."""
    found, pending = set[fx.Node](), [result(program)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def rewritten(program: ExportedProgram, operations: set[str]) -> ExportedProgram:
    """The same program without changes in place, and with some operations in terms of simpler ones.

    Raises
    ------
    ModelError
        When torch finds no such program.
    """
    table = torch.export.default_decompositions()
    for target in [target for target in table if str(target) not in operations]:
        del table[target]
    try:
        with _quiet():
            simpler: ExportedProgram = program.run_decompositions(table)
            return simpler
    except Exception as error:  # whatever its passes raise
        raise ModelError(f"the network cannot be captured: {reason(error)}") from error


def unwritten(program: ExportedProgram) -> ExportedProgram:
    """The same function of the input, in operations that change no value in place.

    Most networks overwrite what nobody reads again, such as the sum that a ReLU is applied to: there the operation that
    makes a new value says the same. Where the value is read again under another name, as a view or as what it is a
    view of, torch writes the whole program anew.

    Raises
    ------
    ModelError
        When what a call leaves behind is read by the next one, or when torch finds no such program.
    """
    _leave_out_identities(program)
    writes = {node: _written(node) for node in program.graph.nodes}
    if not any(writes.values()):
        return program
    names = _names(program)
    needs = needed(program)
    relevant = [
        node for node, values in writes.items() if any(name in needs for value in values for name in names[value])
    ]
    for node in relevant:
        for value in writes[node]:
            _refuse_state(program, names[value])
    plain = {node: _plain(node) for node in relevant}
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    read_again = any(
        order[name] < order[node] < order[user]
        for node in relevant
        for value in writes[node]
        for name in names[value]
        for user in name.users
    )
    if read_again or None in plain.values():
        _leave_out_aliases(program)
        return rewritten(program, set())
    for node, target in plain.items():
        assert target is not None
        node.target = target
    return program


def _leave_out_identities(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        target = str(node.target)
        if target == "aten.detach_.default" or (target in _DROPOUT and not all(node.args[1:])):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _leave_out_aliases(program: ExportedProgram) -> None:
    """Leave out what hands on its input though torch does not say so, such as ``type_as``.

    Elsewhere torch, when it writes a program anew, would take the two for different values.
    """
    for node in program.graph.nodes:
        if not isinstance(node.target, OpOverload) or _written(node) or str(node.target) in _COPIES:
            continue
        if any(value.alias_info is not None for value in node.target._schema.returns):
            continue
        source = next((value for value in node.all_input_nodes if _memory(node) & _memory(value)), None)
        if source is None:
            continue
        if _geometry(node) != _geometry(source):
            raise ModelError(
                f"node '{node.name}' ({str(node.target).removeprefix('aten.')}): its value shares memory with its "
                "input, and what shares memory is changed in place; work on a copy"
            )
        node.replace_all_uses_with(source)
        program.graph.erase_node(node)
    program.graph_module.recompile()


def _geometry(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return (node,)
    return value.dtype, value.shape, value.stride(), value.storage_offset()


def _written(node: fx.Node) -> list[fx.Node]:
    """The values that a node changes in place."""
    if not isinstance(node.target, OpOverload):
        return []
    found: list[fx.Node] = []
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            fx.map_arg(value, found.append)
    return found


def _names(program: ExportedProgram) -> dict[fx.Node, list[fx.Node]]:
    """For each node, all nodes that stand for the same memory, the one that it belongs to first."""
    names: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        memory = _memory(node)
        source = next((value for value in node.all_input_nodes if memory & _memory(value)), None)
        if _written(node):
            (source, *_) = _written(node)
        names[node] = [] if source is None or str(node.target) in _COPIES else names[source]
        names[node].append(node)
    return names


def _memory(node: fx.Node) -> set[int]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return {part.untyped_storage()._cdata for part in values if isinstance(part, Tensor)}


def _refuse_state(program: ExportedProgram, names: Sequence[fx.Node]) -> None:
    """Refuse to let a network change what it is made of."""
    owner = names[0]
    signature = program.graph_signature
    if owner.op != "placeholder" or owner.name in signature.user_inputs:
        return
    kinds = (
        ("parameter", signature.inputs_to_parameters),
        ("buffer", signature.inputs_to_buffers),
        ("constant", signature.inputs_to_lifted_tensor_constants),
    )
    kind, name = next(((kind, known[owner.name]) for kind, known in kinds if owner.name in known), ("part", owner.name))
    raise ModelError(
        f"the network changes its {kind} '{name}' in place whenever it is run, and reads it; bounds need a function of "
        "the input alone"
    )


def _plain(node: fx.Node) -> OpOverload | None:
    """The operation that makes a new value of what a node writes in place, where there is one with that meaning."""
    assert isinstance(node.target, OpOverload)
    name, overload = node.target._schema.name.removeprefix("aten::"), node.target._overloadname
    target = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
    if not name.endswith("_") or not isinstance(target, OpOverload) or len(_written(node)) != 1:
        return None
    if [(a.name, str(a.type)) for a in target._schema.arguments] != [
        (a.name, str(a.type)) for a in node.target._schema.arguments
    ]:
        return None
    # In place, a value keeps its precision, whatever it is combined with.
    types = {value.meta["val"].dtype for value in node.all_input_nodes if isinstance(value.meta.get("val"), Tensor)}
    return target if len({kind for kind in types if kind.is_floating_point}) <= 1 else None


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
