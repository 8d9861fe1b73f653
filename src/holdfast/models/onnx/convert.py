"""From an ONNX file to an :class:`~holdfast.models.onnx.module.OnnxModule`.

The graph is walked once, in its own order, with two batches of different sizes of which no more than shapes and types
are worked out. A node whose inputs are all known is computed at once and becomes a constant, and so is what is made of
shapes and does not change with the number of rows; every other node becomes a step. So what does not convert is
reported with its node's name, and what a node asks for is known before anything is allocated for it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from holdfast.arguments import path_of
from holdfast.errors import HoldfastError, ModelError, SettingError
from holdfast.limits import check_bytes
from holdfast.models.onnx.builder import Builder
from holdfast.models.onnx.fuse import fused
from holdfast.models.onnx.module import OnnxModule
from holdfast.models.onnx.node import quoted
from holdfast.models.onnx.read import needed_nodes, opsets, read_model
from holdfast.models.onnx.tensors import torch_type
from holdfast.words import one_line, plain, reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_ADVICE = "export it with a free batch dimension (dynamic_axes, or torch.export.Dim)"


def load_onnx(path: str | Path, sizes: Mapping[str, int] | None = None) -> OnnxModule:
    """Load an ONNX network as a module that takes any number of rows.

    A file exported for a fixed batch size runs for any other: the first dimension of every fixed Reshape is left free.
    That rows are then independent of one another is checked on random batches of two. Where the shapes of a file made
    for one row leave no room for others (attention often does), each row goes through the graph by itself.

    Whatever the file says is honoured or refused: an attribute, an input, a type or a cast that would be passed over
    makes another network of it. What a node would allocate is weighed before it is allocated.

    Parameters
    ----------
    path
        An ONNX file, gzipped or not, with one input (N, ...) of floating-point or whole numbers. Of several outputs one
        may be of floating point, (N, ...), and is taken: classifiers of other libraries give their labels beside it.
    sizes
        The sizes of dimensions that the file leaves free besides the batch, by their names in it, or by their places
        ``"1"``, ``"2"``, ... in the input's shape.

    Returns
    -------
    OnnxModule
        In evaluation mode, on the CPU, in the file's own types.

    Raises
    ------
    SettingError
        If a size is not a positive number, or belongs to no free dimension.
    ModelError
        If the file is not a readable ONNX network, if an operator or a form of it is not supported, if it has several
        inputs or outputs, if a dimension other than the batch is free, if it asks for more memory than a file may, if
        its rows cannot be told apart, or if the package ``onnx`` is missing.
    """
    path = path_of("model", path, ModelError)
    try:
        model, folder = read_model(path)
        with torch.no_grad():
            return _convert(model, folder, sizes or {})
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error
    except HoldfastError as error:
        named = str(error).startswith(f"{plain(path)}: ")
        raise ModelError(f"{error}" if named else f"{path}: {error}") from error.__cause__
    except Exception as error:  # a file can be wrong in more ways than are looked for
        raise ModelError(f"{path}: cannot be read ({reason(error)})") from error


def _convert(model: Any, folder: Path | None, sizes: Mapping[str, int]) -> OnnxModule:
    graph, versions = model.graph, opsets(model)
    initial = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    graph_input = _single([i for i in graph.input if i.name not in initial], "input")
    output = _output(graph)
    batch, shape, dtype = _input_type(graph_input, sizes)
    make = partial(_module, model, folder, versions, graph_input.name, output, shape, dtype)
    try:
        return make(batch, (2, 1) if batch is None else (batch, batch + 1))
    except HoldfastError as error:
        if batch != 1:
            raise
        fault = error
    try:
        return make(None, (1, 1))
    except HoldfastError:
        raise fault from None


def _module(
    model: Any, folder: Path | None, versions: dict[str, int], input_name: str, output: str, shape: tuple[int, ...],
    dtype: torch.dtype, batch: int | None, rows: tuple[int, int],
) -> OnnxModule:  # fmt: skip
    """The module of a graph, by its shapes in batches of the two sizes; if they are the same, it is run row by row."""
    first, second = (torch.empty(n, *shape, dtype=dtype, device="meta") for n in rows)
    builder = Builder(versions, batch, folder, {input_name: (first, second)})
    builder.take_tensors(model.graph)
    for proto in needed_nodes(model.graph, output):
        builder.add(proto)
    answer = builder.values.get(output)
    if answer is None:
        fixed = builder.is_constant(output)
        raise ModelError(
            f"output {quoted(output)} {'does not depend on the input' if fixed else 'is computed by no node'}"
        )
    by_row = rows[0] == rows[1]
    if not (isinstance(answer[0], torch.Tensor) and answer[0].is_floating_point()):
        raise ModelError(
            f"output {quoted(output)} is not of floating point; a classifier gives a number for each class"
        )
    if by_row and answer[0].shape[:1] != (1,):
        raise ModelError(f"output {quoted(output)} has no batch dimension; {_ADVICE}")
    module = OnnxModule(
        fused(builder.steps, output), builder.tensors, input_name, output, shape, dtype, versions[""], by_row=by_row
    ).eval()
    for example in _examples(shape, dtype):
        _check_rows(module, example)
    return module


def _examples(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Two rows as inputs mostly are, and two that reach into the ends of activations."""
    generator = torch.Generator().manual_seed(0)
    if not dtype.is_floating_point:
        return [torch.randint(0, 2, (2, *shape), generator=generator).to(dtype)]
    near, far = torch.rand(2, *shape, generator=generator), torch.randn(2, *shape, generator=generator)
    return [near.to(dtype), (10 * far).to(dtype)]


def _single(entries: list[Any], what: str) -> Any:
    if len(entries) != 1:
        names = ", ".join(quoted(entry.name) for entry in entries[:4])
        raise ModelError(
            f"the graph has {len(entries)} {what}s ({names}), and a classifier has one {what}; export one that does"
        )
    return entries[0]


def _output(graph: Any) -> str:
    """The name of the only output, or of the only one among several that can hold scores: labels are whole or text."""
    outputs = list(graph.output)
    if len(outputs) > 1:
        scores = [o for o in outputs if not o.type.HasField("tensor_type") or o.type.tensor_type.elem_type in _SCORES]
        outputs = scores if len(scores) == 1 else outputs
    return str(_single(outputs, "output").name)


_SCORES = {0, 1, 10, 11, 16}  # onnx.TensorProto.DataType: not given, float, float16, double, bfloat16


def _input_type(graph_input: Any, sizes: Mapping[str, int]) -> tuple[int | None, tuple[int, ...], torch.dtype]:
    """Return the batch size (None if free), the shape of one example, and the dtype of the graph's input."""
    name, kind = quoted(graph_input.name), graph_input.type.tensor_type
    dimensions = list(kind.shape.dim)
    if len(dimensions) < 2:
        raise ModelError(f"input {name} has no batch dimension; export the network with an input of shape (N, ...)")
    found = [d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in dimensions]
    unused = set(sizes)
    for place, (size, dimension) in enumerate(zip(found, dimensions, strict=True)):
        if place == 0 or size is not None:
            continue
        keys = {str(place), dimension.dim_param} & set(sizes)
        if not keys:
            called = f" ({quoted(dimension.dim_param)})" if dimension.dim_param else ""
            raise ModelError(
                f"input {name} leaves dimension {place}{called} free; only the batch may be, so give its size "
                f"(sizes={{'{place}': ...}}, --size {place}=...)"
            )
        found[place] = sizes[keys.pop()]
        unused -= {str(place), dimension.dim_param}
    if unused:
        raise SettingError(f"input {name} has no free dimension {quoted(sorted(unused)[0])} besides its batch")
    batch, shape = found[0], tuple(size for size in found[1:] if size is not None)
    if wrong := [size for size in shape if not isinstance(size, int) or isinstance(size, bool) or size < 1]:
        raise SettingError(
            f"input {name} cannot have a dimension of size {wrong[0]}; give a whole number of at least 1"
        )
    dtype = torch_type(kind.elem_type)
    check_bytes(2 * torch.Size(shape).numel() * dtype.itemsize, f"input {name} of shape {shape}")
    if batch is not None and batch >= 2**31:
        raise ModelError(f"input {name} has a batch of {batch} rows; {_ADVICE}")
    return batch, shape, dtype


def _check_rows(module: OnnxModule, x: Tensor) -> None:
    """Refuse a network in which the rows of a batch are not independent examples."""
    try:
        together, apart = module(x), torch.cat([module(x[:1]), module(x[1:])])
    except Exception as error:
        where = " ".join(getattr(error, "__notes__", []))
        raise ModelError(f"does not run: {one_line(error)[:300]} {where}; {_ADVICE}") from error
    tolerance = torch.finfo(together.dtype).eps ** 0.5
    scale = max(apart.abs().nan_to_num(0, 0, 0).max().item(), 1.0) if apart.numel() else 1.0
    if together.shape != apart.shape or not torch.allclose(
        together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    ):
        raise ModelError(f"a row's output depends on the other rows of its batch; {_ADVICE}")
