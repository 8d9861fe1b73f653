"""What the ONNX specification says of a node, and whether a node keeps to it.

Whatever is in a node means something. An attribute or an input that the operator does not have in the file's opset, or
has and holdfast does not honour, is refused, since to pass it over would make another network of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Node, Operator, quoted
from holdfast.models.onnx.tensors import type_name

if TYPE_CHECKING:
    import torch

__all__ = ["check_attributes", "check_inputs", "schema_of"]


def schema_of(op: str, domain: str, version: int) -> Any:
    """The operator's schema (onnx.defs.OpSchema) in a version of its operator set.

    Raises
    ------
    ModelError
        If there is no such operator in it.
    """
    from onnx import defs

    try:
        schema = defs.get_schema(op, version, domain)
    except defs.SchemaError:
        schema = None
    if schema is None or schema.deprecated:
        raise ModelError(f"opset {version} has no such operator; export the network again")
    return schema


def check_attributes(node: Node, proto: Any, operator: Operator, schema: Any) -> None:
    """Refuse attributes that the operator does not have, that are of another type, that lack, or are not honoured."""
    for attribute in proto.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise ModelError(f"it has no attribute {quoted(attribute.name)} in opset {node.opset}")
        if attribute.type != known.type.value:
            raise ModelError(f"its attribute {quoted(attribute.name)} is of the wrong type")
        if attribute.name not in operator.attributes:
            raise ModelError(f"its attribute {quoted(attribute.name)} is not supported; export the network without it")
    names = [attribute.name for attribute in proto.attribute]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ModelError(f"its attribute {quoted(repeated[0])} is given twice")
    if missing := [name for name, known in schema.attributes.items() if known.required and name not in names]:
        raise ModelError(f"its attribute {quoted(missing[0])} is missing")


def check_inputs(node: Node, schema: Any, types: list[torch.dtype | None]) -> None:
    """Refuse too few or too many inputs, and types that do not belong together.

    Parameters
    ----------
    types
        Of the inputs; None for one that is left out or is a shape.
    """
    if not schema.min_input <= len(types) <= schema.max_input:
        raise ModelError(
            f"it takes {schema.min_input} to {schema.max_input} inputs in opset {node.opset}, {len(types)} are given"
        )
    if len(node.outputs) > schema.max_output:
        raise ModelError(f"it has {schema.max_output} outputs in opset {node.opset}, {len(node.outputs)} are named")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    bound: dict[str, torch.dtype] = {}
    for place, (name, dtype) in enumerate(zip(node.inputs, types, strict=True)):
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        if not name and formal.option.name == "Single":
            raise ModelError(f"its input {place + 1}, {quoted(formal.name)}, is left out")
        if dtype is None:
            continue
        if f"tensor({type_name(dtype)})" not in allowed.get(formal.type_str, [formal.type_str]):
            raise ModelError(f"its input {quoted(name)} may not be of type {type_name(dtype)} in opset {node.opset}")
        if not formal.is_homogeneous:
            continue
        if bound.setdefault(formal.type_str, dtype) != dtype:
            raise ModelError(
                f"it mixes {type_name(bound[formal.type_str])} and {type_name(dtype)} (its input {quoted(name)}), "
                "which ONNX does not convert by itself"
            )
