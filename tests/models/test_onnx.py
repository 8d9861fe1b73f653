"""Whole ONNX networks: real ones, what a module must be able to do, and every way in which a file can be wrong."""

import contextlib
import copy
import gzip
import pickle
import random
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers.onnx_graphs import check_gradient, node, save, truth
from helpers.shared import SHARED, needs_shared
from holdfast.errors import ModelError
from holdfast.models import OnnxModule, load_model, load_onnx

REAL = sorted((SHARED / "models").glob("*.onnx")) + sorted((SHARED / "vnncomp").glob("[!a]*/*.onnx*"))
REAL += sorted((SHARED / "vnncomp" / "acasxu").glob("*.onnx"))[::15]
RNG = np.random.default_rng(0)


def f32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def small_cnn(path, batch=1):
    """conv, batch norm, relu, pool, reshape with the batch size written in, gemm."""
    nodes = [
        node("Conv", "x conv.weight", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a s b m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "p target", "f"),
        node("Gemm", "f 0.weight 0.bias", transB=1),
    ]
    constants = {"conv.weight": f32(4, 2, 3, 3), "s": f32(4), "b": f32(4), "m": f32(4), "v": np.abs(f32(4))}
    constants |= {"0.weight": f32(3, 64), "0.bias": f32(3), "target": np.array([1 if batch == "N" else batch, 64])}
    return save(path, nodes, (batch, 2, 8, 8), **constants)


def message(path):
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# --- real networks


@needs_shared
@pytest.mark.parametrize("path", REAL, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_real_networks_equal_onnxruntime(path):
    module = load_onnx(path)
    x = torch.rand(5, *module.input_shape, generator=torch.Generator().manual_seed(0))
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    torch.testing.assert_close(module(x), truth(data, x, rows=1), rtol=1e-5, atol=1e-5)
    check_gradient(module.double(), x[:2].double())


@needs_shared
@pytest.mark.parametrize(
    ("network", "weights", "factory", "mean", "std"),
    [
        (
            "resnet_2b.onnx",
            "abcrown_resnet2b.pth",
            "cifar_resnet2b",
            (0.4914, 0.4822, 0.4465),
            (0.2471, 0.2435, 0.2616),
        ),
        ("cifar_base_kw.onnx", "oval21_cifar_base_kw.pth", "cifar_base_kw", (0.485, 0.456, 0.406), (0.225,) * 3),
    ],
)
def test_twins_in_pytorch(network, weights, factory, mean, std):
    models = SHARED / "models"
    twin = load_model(f"{models / 'nets.py'}:{factory}", models / weights)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(load_onnx(models / network)(normalised), twin(x), rtol=1e-5, atol=1e-5)


# --- what a module can do


@pytest.mark.parametrize("batch", [1, 4])
def test_any_number_of_rows(tmp_path, batch):
    path = small_cnn(tmp_path / "net.onnx", batch)
    x = torch.rand(8, 2, 8, 8)
    module = load_onnx(path)
    for rows in (1, 3, 8):
        torch.testing.assert_close(module(x[:rows]), truth(path, x, rows=batch)[:rows], rtol=1e-5, atol=1e-5)
    assert module(x[:0]).shape == (0, 3)


def test_exports_with_a_free_batch(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    x = torch.rand(5, 2, 8, 8)
    for strict in (False, True):
        program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
        torch.testing.assert_close(program.module()(x), module(x))


def test_exports_a_shape_computed_from_the_batch_size(tmp_path):
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Unsqueeze", "n zeros", "ns"),
        node("Concat", "ns rest", "target", axis=0),
        node("Reshape", "x target"),
    ]
    numbers = {"zero": np.int64(0), "zeros": np.array([0]), "rest": np.array([-1])}
    module = load_onnx(save(tmp_path / "net.onnx", nodes, ("N", 2, 3), **numbers))
    x = torch.rand(5, 2, 3)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program.module()(x).equal(x.flatten(1))


def test_moves_casts_and_copies(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    x = torch.rand(3, 2, 8, 8)
    expected = module(x)
    assert not module.training
    assert not list(module.parameters())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin(x).equal(expected)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), expected)
    with torch.inference_mode():
        assert module(x).equal(expected)
    wide = copy.deepcopy(module).double()
    assert wide(x.double()).dtype == torch.float64
    torch.testing.assert_close(wide(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        copy.deepcopy(module).to(torch.bfloat16)(x.bfloat16()).float(), expected, rtol=0.1, atol=0.3
    )
    assert copy.deepcopy(module).to("meta")(x.to("meta")).shape == expected.shape


def test_constants_are_buffers_under_clean_names(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    names = set(dict(module.named_buffers()))
    assert {"conv_weight", "_0_weight", "_0_bias"} < names
    assert set(module.state_dict()) == names
    clash = save(
        tmp_path / "clash.onnx",
        [node("Add", "x a.b", "c"), node("Add", "c a/b")],
        (1, 2),
        **{"a.b": f32(2), "a/b": f32(2)},
    )
    assert len(dict(load_onnx(clash).named_buffers())) == 2


def test_a_double_network_stays_double(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Add", "x c")], (1, 2), kind=TensorProto.DOUBLE, c=np.array([0.1, 1 / 3]))
    assert load_onnx(path)(torch.zeros(1, 2, dtype=torch.float64))[0].tolist() == [0.1, 1 / 3]


def test_an_unused_constant_and_a_gzipped_file(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Relu")], (1, 2), unused=f32(3))
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(path.read_bytes()))
    module = load_onnx(tmp_path / "net.onnx.gz")
    assert isinstance(module, OnnxModule)
    assert not list(module.buffers())


def test_values_are_freed_after_their_last_use(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    assert module._last_uses == [["x"], ["a"], ["n"], ["r"], ["p"], ["f"]]


# --- what can be wrong


def test_a_wrong_input_shape_is_named(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"\(N, 2, 8, 8\), got \(3, 128\)"):
        module(torch.rand(3, 128))


def test_an_error_while_running_names_the_node(tmp_path):
    module = load_onnx(small_cnn(tmp_path / "net.onnx"))
    with pytest.raises(RuntimeError) as caught:
        module(torch.rand(1, 2, 8, 8, dtype=torch.float64))
    assert "node 'Conv_a' (Conv)" in caught.value.__notes__[0]


def test_unsupported_operator(tmp_path):
    text = message(save(tmp_path / "net.onnx", [node("Relu", "x", "r"), node("Erf", "r")], (1, 2)))
    assert "node 'Erf_y' (Erf)" in text
    assert "not supported" in text
    assert "Conv, " in text
    text = message(
        save(tmp_path / "net.onnx", [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], (1, 2))
    )
    assert "com.microsoft::Gelu" in text


def test_unsupported_forms(tmp_path):
    cases = [
        ([node("AveragePool", kernel_shape=[2, 2], dilations=[2, 2])], (1, 1, 5, 5), "dilations"),
        ([node("BatchNormalization", "x c c c c", training_mode=1)], (1, 2), "export in eval mode"),
        (
            [node("Cast", "x", "i", to=TensorProto.INT64), node("Cast", "i", to=TensorProto.FLOAT)],
            (1, 2),
            "floating type",
        ),
        ([node("Shape", "x", "s"), node("ReduceSum", "s", "n"), node("Add", "x n")], (1, 2), "on shapes"),
        ([node("Shape", "x", "s"), node("Cast", "s", "n", to=1), node("Add", "x n")], (1, 2), "integer type"),
    ]
    for nodes, shape, words in cases:
        assert words in message(save(tmp_path / "net.onnx", nodes, shape, opset=19, c=f32(2)))


def test_rows_that_are_mixed(tmp_path):
    text = message(save(tmp_path / "net.onnx", [node("Softmax", axis=0)], ("N", 3)))
    assert "depends on the other rows" in text
    assert "free batch dimension" in text
    text = message(
        save(tmp_path / "net.onnx", [node("Transpose", "x", "t"), node("MatMul", "t w")], (1, 3), w=f32(1, 2))
    )
    assert "'MatMul_y' (MatMul)" in text
    assert "free batch dimension" in text
    text = message(save(tmp_path / "net.onnx", [node("Squeeze")], (1, 3)))
    assert "free batch dimension" in text


def test_several_inputs_or_outputs(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Relu", "x", "y"), node("Tanh", "x", "z")], (1, 2), outputs=("y", "z"))
    assert "2 outputs ('y', 'z')" in message(path)
    model = onnx.load(save(path, [node("Relu")], (1, 2)))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 2)))
    onnx.save(model, path)
    assert "2 inputs ('x', 'mask')" in message(path)


def test_input_types_and_shapes(tmp_path):
    path = tmp_path / "net.onnx"
    assert "type int64" in message(save(path, [node("Identity")], (1, 2), kind=TensorProto.INT64))
    assert "no batch dimension" in message(save(path, [node("Relu")], (4,)))
    assert "dimension 2 free" in message(save(path, [node("Relu")], ("N", 3, "H")))


def test_broken_graphs(tmp_path):
    path = tmp_path / "net.onnx"
    assert "opset 6 is not supported" in message(save(path, [node("Relu")], (1, 2), opset=6))
    assert "'missing' is computed by no node before it" in message(save(path, [node("Add", "x missing")], (1, 2)))
    assert "does not depend on the input" in message(save(path, [node("Relu", "c")], (1, 2), c=f32(2)))
    assert "computed by no node" in message(save(path, [node("Relu", "x", "z")], (1, 2)))
    assert "'MatMul_y' (MatMul)" in message(save(path, [node("MatMul", "x w")], (1, 2), w=f32(3, 2)))
    path.write_bytes(b"\x08\x03no such thing")
    assert "not a complete ONNX file" in message(path)
    path.write_bytes(save(path, [node("Relu")], (1, 2)).read_bytes()[:-20])
    assert "not a complete ONNX file" in message(path)
    onnx.save(onnx.ModelProto(), path)
    path.write_bytes(path.read_bytes() + b"\x08\x08")
    assert "no nodes" in message(path)


def test_damage_anywhere_is_a_model_error(tmp_path):
    path = small_cnn(tmp_path / "net.onnx")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole[: rng.randrange(8, len(whole) + 1)])
        for _ in range(rng.randrange(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ModelError):  # damage to a number alone leaves a network
            load_onnx(path)


def test_without_the_onnx_package(tmp_path, monkeypatch):
    path = save(tmp_path / "net.onnx", [node("Relu")], (1, 2))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'holdfast[onnx]'" in message(path)
