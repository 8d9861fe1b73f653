"""Tiny ONNX graphs, and onnxruntime as the judge of what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from holdfast.models import OnnxModule, load_onnx

if TYPE_CHECKING:
    from pathlib import Path

Nodes = list[onnx.NodeProto]


def node(op: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """Make a node; names are split at spaces, and ``-`` stands for an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op}_{outputs.split()[0]}", **attributes)


def save(
    path: Path,
    nodes: Nodes,
    shape: tuple[int | str, ...],
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
    kind_out: int | None = None,
    **constants: Any,
) -> Path:
    """Write a graph from input ``x`` to ``outputs``; ``shape`` has the batch first."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind_out or kind, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def truth(model: Path | bytes, x: Tensor, rows: int | None = None, output: int = 0) -> Tensor:
    """Run onnxruntime, its optimisations off, on batches of ``rows`` (all of them together by default)."""
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: part.numpy()})[output] for part in x.split(rows or len(x))]
    return torch.from_numpy(np.concatenate(parts))


def check(
    tmp_path: Path,
    nodes: Nodes,
    shape: tuple[int, ...],
    *,
    free: bool = True,
    gradient: bool = True,
    seed: int = 0,
    opset: int = 13,
    **constants: Any,
) -> OnnxModule:
    """Compare with onnxruntime a graph on examples of ``shape``, exported for one row and for any number.

    ``free=False`` leaves out the second, for graphs which onnxruntime itself can only run with one row.
    """
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))
    fixed = save(tmp_path / "fixed.onnx", nodes, (1, *shape), opset, **constants)
    module = load_onnx(fixed)
    assert module.input_shape == shape
    assert module.opset == opset
    expected = truth(fixed, x, rows=1)
    assert module(x).shape == expected.shape
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(x[:1]), expected[:1], rtol=1e-5, atol=1e-5)
    if free:
        path = save(tmp_path / "free.onnx", nodes, ("N", *shape), opset, **constants)
        torch.testing.assert_close(load_onnx(path)(x), truth(path, x), rtol=1e-5, atol=1e-5)
    if gradient:
        check_gradient(module.double(), x[:2].double())
    return module


def check_gradient(module: OnnxModule, x: Tensor) -> None:
    """Compare the derivative along one direction with a central difference, in double precision."""
    generator = torch.Generator().manual_seed(1)
    x = x.clone().requires_grad_()
    y = module(x)
    weight = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert gradient.isfinite().all()
    direction, h = torch.randn(x.shape, generator=generator, dtype=x.dtype), 1e-7
    with torch.inference_mode():
        slope = ((module(x + h * direction) - module(x - h * direction)) * weight).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-5)
