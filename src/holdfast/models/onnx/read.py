"""From an ONNX file to its protocol buffer."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from holdfast.errors import ModelError
from holdfast.models.files import existing_file
from holdfast.models.onnx.node import quoted
from holdfast.models.onnx.tensors import read_sparse, read_tensor
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["MAX_NODES", "needed_nodes", "opsets", "read_attributes", "read_model", "renamed"]

MAX_NODES = 100_000  # of a graph, after its functions are written out
_OLDEST_OPSET = 7  # before it, arithmetic broadcast by an attribute; onnxruntime draws the line here too
_AGAIN = "export it again"
_LARGEST = 2**31 - 1  # bytes of a protocol buffer
_PIECE = 2**20


def read_model(path: Path) -> tuple[Any, Path | None]:
    """Read an ONNX file, gzipped or not.

    Returns
    -------
    onnx.ModelProto
        Without functions: their bodies stand in place of their calls.
    Path or None
        The folder of its external data; a gzipped file has none.

    Raises
    ------
    ModelError
        If it is not a readable ONNX network.
    """
    path = existing_file(path)
    try:
        import onnx
    except ImportError as error:
        raise ModelError("reading ONNX needs the package onnx: pip install 'holdfast[onnx]'") from error
    _check_size(path.stat().st_size)
    data = path.read_bytes()
    zipped = data[:2] == b"\x1f\x8b"
    if zipped:
        _check_size(sum(map(len, _inflated(data))))
        data = b"".join(_inflated(data))
    try:
        # external data are read one by one, when they are needed and only as far as they are
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises its own kinds
        raise ModelError(f"not a complete ONNX file ({one_line(error)[:160]}); {_AGAIN}") from error
    if not model.graph.node:
        raise ModelError(f"not an ONNX network: its graph has no nodes; {_AGAIN}")
    if model.functions:
        model = _without_functions(model)
    if len(model.graph.node) > MAX_NODES:
        raise ModelError(f"its graph has {len(model.graph.node)} nodes, and at most {MAX_NODES} are read")
    return model, None if zipped else path.parent


def opsets(model: Any) -> dict[str, int]:
    """The versions of the operator sets that a model uses, by their domains; ``""`` is ONNX's own.

    Raises
    ------
    ModelError
        If a set is named in two versions, or ONNX's own is older or newer than what can be read.
    """
    from onnx import defs

    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"the operator set {quoted(domain)} is named in two versions; {_AGAIN}")
    opset = found.setdefault("", 1)
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"opset {opset} is not supported, {_OLDEST_OPSET} is the oldest; "
            "raise it with onnx.version_converter.convert_version"
        )
    if opset > defs.onnx_opset_version():
        raise ModelError(
            f"opset {opset} is newer than what the installed package onnx knows ({defs.onnx_opset_version()}); "
            "upgrade it, or export the network for an older one"
        )
    return found


def needed_nodes(graph: Any, output: str) -> list[Any]:
    """The nodes that an output is made from, in their order; the others may be whatever they are.

    Raises
    ------
    ModelError
        If two nodes write the same value.
    """
    written = [name for node in graph.node for name in node.output if name]
    if len(set(written)) < len(written):
        twice = next(name for name, count in Counter(written).items() if count > 1)
        raise ModelError(f"two nodes compute {quoted(twice)}; {_AGAIN}")
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    return kept[::-1]


def _read_by(node: Any) -> Iterator[str]:
    """The values that a node reads, by itself or within the graphs that it holds."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            yield from _read_by(inner)
        if attribute.HasField("g"):
            yield from (output.name for output in attribute.g.output)


def renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of a node that reads and writes some values under other names, within the graphs that it holds too."""
    copy = type(node).FromString(node.SerializeToString())
    _rename(copy, names)
    return copy


def _rename(node: Any, names: Mapping[str, str]) -> None:
    for values in (node.input, node.output):
        values[:] = [names.get(name, name) for name in values]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename(inner, names)
            for output in attribute.g.output:
                output.name = names.get(output.name, output.name)


def read_attributes(proto: Any, folder: Path | None) -> dict[str, Any]:
    """A node's attributes as numbers, words, tuples of them, and tensors.

    Raises
    ------
    HoldfastError
        If one is of another kind, or its tensor cannot be read.
    """
    return {attribute.name: _attribute(attribute, folder) for attribute in proto.attribute}


def _attribute(attribute: Any, folder: Path | None) -> Any:
    kind = attribute.AttributeType.Name(attribute.type)
    if attribute.ref_attr_name:
        raise ModelError(f"its attribute {quoted(attribute.name)} stands for one of a function, and there is none")
    match kind:
        case "FLOAT":
            return attribute.f
        case "INT":
            return attribute.i
        case "STRING":
            return attribute.s.decode(errors="replace")
        case "TENSOR":
            return read_tensor(attribute.t, folder)
        case "SPARSE_TENSOR":
            return read_sparse(attribute.sparse_tensor, folder)
        case "FLOATS":
            return tuple(attribute.floats)
        case "INTS":
            return tuple(attribute.ints)
        case "STRINGS":
            return tuple(word.decode(errors="replace") for word in attribute.strings)
        case _:
            raise ModelError(f"its attribute {quoted(attribute.name)} is a {kind.lower()}, which is not supported")


def _check_size(count: int) -> None:
    if count > _LARGEST:
        raise ModelError(
            f"more than {_LARGEST / 2**30:.3g} GiB, unzipped, which no protocol buffer can have; {_AGAIN}, its "
            "weights as external data"
        )


def _inflated(data: bytes) -> Iterator[bytes]:
    """The content of a gzip file, a piece at a time, as far as a file may go."""
    count = 0
    while data:  # a file may have several members
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof and count <= _LARGEST:
            try:
                piece = inflate.decompress(data, _PIECE)
            except zlib.error as error:
                raise ModelError(f"not a complete ONNX file ({error}); {_AGAIN}") from error
            if not piece and not inflate.eof:
                raise ModelError(f"not a complete ONNX file (the gzip stream ends early); {_AGAIN}")
            count += len(piece)
            data = inflate.unconsumed_tail
            yield piece
        data = inflate.unused_data.lstrip(b"\0")


def _without_functions(model: Any) -> Any:
    """Write the bodies of a model's functions in place of their calls, once it is known how many nodes that makes."""
    from onnx import inliner

    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    if len(bodies) < len(model.functions):
        raise ModelError(f"two of its functions have one name; {_AGAIN}")
    counts: dict[Any, int | None] = {}

    def count(nodes: Any, depth: int) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            total += _called(key, depth) if key in bodies else 1
            total += sum(count(a.g.node, depth + 1) for a in node.attribute if a.HasField("g"))
            if total > MAX_NODES:
                raise ModelError(f"its functions make a graph of more than {MAX_NODES} nodes")
        return total

    def _called(key: Any, depth: int) -> int:
        if depth > 100 or counts.get(key, 0) is None:
            raise ModelError("its functions call one another without end")
        if key not in counts:
            counts[key] = None  # while it is being counted
            counts[key] = count(bodies[key].node, depth + 1)
        return counts[key] or 0

    count(model.graph.node, 0)
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        raise ModelError(f"its functions cannot be read ({one_line(error)[:160]}); {_AGAIN}") from error
