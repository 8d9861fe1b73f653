"""Whole ONNX networks: real ones, what a module must be able to do, and every way in which a file can be wrong."""

import contextlib
import copy
import gzip
import pickle
import random
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers.onnx_graphs import check_gradient, node, save, truth
from helpers.shared import SHARED, needs_shared
from holdfast import Linf
from holdfast.certify import certify, output_bounds
from holdfast.errors import ModelError, SettingError
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


def test_a_clip_of_doubles_before_opset_11_has_the_limits_of_single_precision(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Clip", min=0.0)], (1, 2), opset=10, kind=TensorProto.DOUBLE)
    assert load_onnx(path)(torch.tensor([[1e300, 2.0]], dtype=torch.float64)).tolist() == [[2.0**128 - 2.0**104, 2.0]]


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
    text = message(save(tmp_path / "net.onnx", [node("Relu", "x", "r"), node("Hardmax", "r")], (1, 2)))
    assert "node 'Hardmax_y' (Hardmax)" in text
    assert "not supported" in text
    assert "Conv, " in text
    text = message(
        save(tmp_path / "net.onnx", [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], (1, 2))
    )
    assert "com.microsoft::Gelu" in text


UNSUPPORTED = [
    ([node("BatchNormalization", "x c c c c", training_mode=1)], (1, 2), "export in eval mode"),
    ([node("Dropout", "x r t")], (1, 2), "export in eval mode"),
    ([node("Shape", "x", "sh"), node("ReduceSum", "sh", "n"), node("Reshape", "x n")], ("N", 2),
     "on shapes that change"),
    ([node("Size", "x", "n"), node("Cast", "n", "f", to=1), node("Add", "x f")], ("N", 2), "integer type"),
    ([node("Shape", "x", "sh"), node("Cast", "sh", "n", to=1), node("Add", "x n")], ("N", 2), "integer type"),
    ([node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Add", "x h")], (1, 2), "mixes float and float16"),
    ([node("Cast", "x", "i", to=TensorProto.INT64), node("Relu", "i")], (1, 2), "not of floating point"),
    ([node("Add", "x d")], (1, 2), "mixes float and double"),
    ([node("Cast", "x", to=TensorProto.FLOAT8E4M3FN)], (1, 2), "are not supported"),
    ([node("Clip", min=0.0)], (1, 2), "no attribute 'min' in opset 19"),
    ([node("Softmax", beta=2.0)], (1, 2), "no attribute 'beta'"),
    ([node("LSTM", "x w w", hidden_size=1, activation_alpha=[1.0])], (1, 2), "'activation_alpha' is not supported"),
    ([node("LSTM", "x w4 r4", hidden_size=1, input_forget=1)], (2, 1, 1), "coupled"),
    ([node("Resize", "x roi s", coordinate_transformation_mode="tf_crop_and_resize")], (1, 1, 4, 4), "crop"),
    ([node("Resize", "x - half", antialias=1, mode="linear")], (1, 1, 4, 4), "antialias"),
    ([node("LayerNormalization", "x c", stash_type=10)], (1, 2), "statistics of any type"),
    ([node("MaxPool", kernel_shape=[2], auto_pad="VALID", pads=[1, 1])], (1, 1, 4), "both auto_pad and pads"),
    ([node("ReduceMean", "x axes")], (1, 2), "may not be of type float"),
    ([node("MaxPool", "x", "m i", kernel_shape=[2]), node("Cast", "i", to=1)], (1, 1, 4), "computed by no node"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "shape", "words"), UNSUPPORTED, ids=lambda v: v if isinstance(v, str) else None)
def test_unsupported_forms(tmp_path, nodes, shape, words):
    constants = {"c": f32(2), "d": np.ones(2), "r": np.float32(0.5), "t": np.array(True), "axes": f32(1)}
    constants |= {"w": f32(1, 4, 2), "w4": f32(1, 4, 1), "r4": f32(1, 4, 1), "roi": f32(8)}
    constants |= {"s": f32(4), "half": np.array([1, 1, 0.5, 0.5], np.float32)}
    assert words in message(save(tmp_path / "net.onnx", nodes, shape, opset=19, **constants))


def test_a_network_of_whole_numbers(tmp_path):
    nodes = [node("Cast", "x", "f", to=1), node("Mul", "f s", "m"), node("Add", "m o")]
    path = save(
        tmp_path / "net.onnx", nodes, ("N", 3), kind=TensorProto.UINT8, kind_out=1, s=np.float32(1 / 255), o=f32(3)
    )
    module = load_onnx(path)
    x = torch.tensor([[0, 7, 255], [1, 2, 3]], dtype=torch.uint8)
    torch.testing.assert_close(module(x), truth(path, x))
    assert module(x.float()).equal(module(x))
    assert module(x.long()).equal(module(x))
    assert module.input_dtype == torch.uint8
    for wrong in (x + 0.5, x.float() + 1):
        with pytest.raises(ModelError, match="whole numbers of type uint8"):
            module(wrong)


def test_an_embedding(tmp_path):
    nodes = [node("Gather", "table x", "e"), node("ReduceMean", "e", axes=[1], keepdims=0)]
    path = save(tmp_path / "net.onnx", nodes, ("N", 3), kind=TensorProto.INT64, kind_out=1, table=f32(5, 4))
    x = torch.tensor([[0, 4, 1], [-1, 2, 2]])
    torch.testing.assert_close(load_onnx(path)(x), truth(path, x))


def test_free_dimensions_are_given_sizes(tmp_path):
    nodes = [node("GlobalAveragePool", "x", "p"), node("Flatten", "p")]
    path = save(tmp_path / "net.onnx", nodes, ("N", 3, "H", "W"))
    assert "dimension 2 ('H') free" in message(path)
    for sizes in ({"H": 4, "W": 5}, {"2": 4, "3": 5}, {"H": 4, "3": 5}):
        assert load_onnx(path, sizes).input_shape == (3, 4, 5)
        assert load_model(path, sizes=sizes).input_shape == (3, 4, 5)
    for sizes, words in [
        ({"H": 4, "W": 0}, "size 0"), ({"H": 4, "W": 1.5}, "size 1.5"), ({"H": 4, "W": 5, "D": 1}, "dimension 'D'"),
        ({"1": 4, "H": 4, "W": 1}, "no free dimension '1'"),
    ]:  # fmt: skip
        with pytest.raises(SettingError, match=words):
            load_onnx(path, sizes)
    with pytest.raises(ModelError, match="GiB"):
        load_onnx(path, {"H": 10**9, "W": 10**9})
    with pytest.raises(SettingError, match="free dimensions of an ONNX file"):
        load_model(torch.nn.Identity(), sizes={"H": 4})


def test_casts_round_as_the_file_says(tmp_path):
    values = torch.tensor([[1e-12, 1.234567e5, 0.1, -70000.0]])
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        nodes = [node("Cast", "x", "h", to=kind), node("Cast", "h", to=TensorProto.FLOAT)]
        path = save(tmp_path / "net.onnx", nodes, (1, 4))
        assert load_onnx(path)(values).equal(truth(path, values))
    nodes = [
        node("Cast", "x", "d", to=TensorProto.DOUBLE),
        node("Mul", "d c", "m"),
        node("Cast", "m", to=TensorProto.FLOAT),
    ]
    path = save(tmp_path / "net.onnx", nodes, (1, 4), c=np.array([1 / 3, 1e-300, 3, 1e300]))
    module = load_onnx(path)
    assert module(values).equal(truth(path, values))
    wide = copy.deepcopy(module).half().double()  # what has a precision of its own keeps it
    assert wide(values.double()).float().equal(truth(path, values))
    assert wide(values.double()).dtype == torch.float64
    nodes = [node("Cast", "x", "h", to=10), node("MatMul", "h w", "m"), node("Cast", "m", to=1)]
    path = save(tmp_path / "net.onnx", nodes, (1, 4), w=f32(4, 3).astype(np.float16))
    module, x = load_onnx(path), torch.rand(2, 4)
    torch.testing.assert_close(module(x), truth(path, x, rows=1), rtol=2e-3, atol=2e-3)
    assert next(module.buffers()).dtype == torch.float32  # which tells what type the network takes
    assert copy.deepcopy(module).double()(x.double()).dtype == torch.float64


def test_numbers_of_labels_beside_scores(tmp_path):
    """As other libraries export a linear classifier: labels, and scores in a table by label."""
    classes = {"classlabels_ints": [0, 1, 2], "coefficients": f32(6).tolist(), "intercepts": f32(3).tolist()}
    domain = "ai.onnx.ml"
    scaler = helper.make_node("Scaler", ["x"], ["s"], domain=domain, offset=[0.1, 0.2], scale=[2.0, 3.0])
    for transform in ("NONE", "SOFTMAX", "LOGISTIC"):
        linear = helper.make_node(
            "LinearClassifier", ["s"], ["label", "p"], domain=domain, post_transform=transform, **classes
        )
        ends = [node("Identity", "p"), helper.make_node("Normalizer", ["p"], ["y"], domain=domain, norm="L1")]
        for end in ends:
            path = save(tmp_path / "net.onnx", [scaler, linear, end], ("N", 2), outputs=("label", "y"))
            model = onnx.load(path)
            model.opset_import.append(helper.make_opsetid(domain, 1))
            model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
            onnx.save(model, path)
            x = torch.rand(4, 2)
            torch.testing.assert_close(load_onnx(path)(x), truth(path, x, output=1))
    zipped = [scaler, linear, helper.make_node("ZipMap", ["p"], ["y"], domain=domain, classlabels_int64s=[0, 1, 2])]
    model.graph.ClearField("node")
    model.graph.node.extend(zipped)
    model.graph.output[1].CopyFrom(
        helper.make_value_info(
            "y", helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
        )
    )
    onnx.save(model, path)
    assert load_onnx(path)(x).shape == (4, 3)
    trees = helper.make_node("TreeEnsembleClassifier", ["x"], ["label", "y"], domain=domain)
    model.graph.ClearField("node")
    model.graph.node.append(trees)
    onnx.save(model, path)
    assert "'ai.onnx.ml::TreeEnsembleClassifier' is not supported" in message(path)


def test_a_linear_classifier_of_two_classes(tmp_path):
    domain, x = "ai.onnx.ml", torch.randn(5, 2)
    for transform in ("NONE", "LOGISTIC", "SOFTMAX"):
        linear = helper.make_node(
            "LinearClassifier", ["x"], ["label", "y"], domain=domain, classlabels_ints=[0, 1],
            coefficients=[0.3, -0.8, 0.1, 0.2], intercepts=[0.1, -0.1], post_transform=transform,
        )  # fmt: skip
        path = save(tmp_path / "net.onnx", [linear], ("N", 2), outputs=("label", "y"))
        model = onnx.load(path)
        model.opset_import.append(helper.make_opsetid(domain, 1))
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        onnx.save(model, path)
        torch.testing.assert_close(load_onnx(path)(x), truth(path, x, output=1))


class Net(torch.nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, torch.nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def attention(x, layer, last):
    return last(layer(x, x, x, need_weights=False)[0].flatten(1))


def gated(x, layer, last):
    return last(layer(x)[0][:, -1])


def mlp(activation):
    return torch.nn.Sequential(torch.nn.Linear(6, 8), activation, torch.nn.Linear(8, 3))


nn = torch.nn
EXPORTED = {
    "gelu": (lambda: mlp(nn.GELU()), (6,)),
    "gelu-tanh": (lambda: mlp(nn.GELU("tanh")), (6,)),
    "layer-norm": (lambda: mlp(nn.LayerNorm(8)), (6,)),
    "log-softmax": (lambda: nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)), (6,)),
    "power": (lambda: Net(lambda x, a: a(x) ** 2, nn.Linear(6, 3)), (6,)),
    "maximum": (lambda: Net(lambda x, a: torch.maximum(a(x), -a(x)), nn.Linear(6, 3)), (6,)),
    "hardsigmoid": (lambda: mlp(nn.Hardsigmoid()), (6,)),
    "hardswish": (lambda: mlp(nn.Hardswish()), (6,)),
    "silu": (lambda: mlp(nn.SiLU()), (6,)),
    "conv-transpose": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(162, 3)), (1, 4, 4)
    ),
    "upsample": (lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(64, 3)), (1, 4, 4)),
    "pixel-shuffle": (lambda: nn.Sequential(nn.PixelShuffle(2), nn.Flatten(), nn.Linear(16, 3)), (4, 2, 2)),
    "group-norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)), (4, 2, 2)),
    "attention": (lambda: Net(attention, nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 3)), (3, 4)),
    "lstm": (lambda: Net(gated, nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)), (5, 4)),
    "gru": (lambda: Net(gated, nn.GRU(4, 3, batch_first=True, bidirectional=True), nn.Linear(6, 3)), (5, 4)),
}  # fmt: skip


def exported(name, path, free):
    make, shape = EXPORTED[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.rand(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"dynamic_axes": {"x": {0: "N"}}} if free else {}
        torch.onnx.export(
            net, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"], **axes
        )
    return net, torch.rand(4, *shape)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_what_torch_exports(tmp_path, name, free):
    net, x = exported(name, tmp_path / "net.onnx", free)
    module = load_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(module(x), net(x), rtol=1e-4, atol=1e-5)
    assert module(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", EXPORTED)
def test_what_torch_exports_is_bounded(tmp_path, name):
    net, x = exported(name, tmp_path / "net.onnx", free=False)
    threat = Linf(0.01)
    ours = output_bounds(load_onnx(tmp_path / "net.onnx"), x, threat)
    if name in {"gru", "lstm"}:  # which torch exports in one piece, as ONNX does not hold them
        assert (ours.lower <= net(x)).all()
        assert (net(x) <= ours.upper).all()
        assert (ours.upper - ours.lower < 0.2).all()
        return
    theirs = output_bounds(net, x, threat)
    loose = 1.5 if name in {"gelu-tanh", "group-norm"} else 1.01  # parts are bounded there, and the whole in torch
    assert ours.lower.isfinite().all()
    assert ((ours.upper - ours.lower) <= loose * (theirs.upper - theirs.lower) + 1e-4).all()


def test_rows_of_a_network_for_one_row(tmp_path):
    """Attention exported for one row: its shapes name the sequence and the heads, and leave no room for others."""
    net, x = exported("attention", tmp_path / "net.onnx", free=False)
    module = load_onnx(tmp_path / "net.onnx")
    for rows in (1, 2, 4):
        torch.testing.assert_close(module(x[:rows]), net(x[:rows]), rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


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
    assert "type string" in message(save(path, [node("Identity")], (1, 2), kind=TensorProto.STRING))
    assert "no batch dimension" in message(save(path, [node("Relu")], (4,)))
    assert "dimension 2 ('H') free" in message(save(path, [node("Relu")], ("N", 3, "H")))


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


def test_a_network_of_half_numbers_is_bounded(tmp_path):
    rng = np.random.default_rng(0)
    w, c = rng.normal(size=(6, 3)).astype(np.float16), rng.normal(size=3).astype(np.float16)
    nodes = [node("Gemm", "x w c")]
    path = save(tmp_path / "half.onnx", nodes, ("N", 6), kind=TensorProto.FLOAT16, w=w, c=c)
    module, x = load_onnx(path), torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    y = module(x.half()).argmax(1)
    top = module(x.half()).float().topk(2).values
    for certificate, margin in zip(
        certify(module, x, y, Linf(1e-3), method="crown"), top[:, 0] - top[:, 1], strict=True
    ):
        assert margin - 0.1 < certificate.bound < margin


@pytest.mark.parametrize("attributes", [{"auto_pad": "SAME_UPPER"}, {"pads": [1, 1, 1, 1], "ceil_mode": 1}])
def test_pooling_with_uneven_padding_is_bounded(tmp_path, attributes):
    nodes = [node("MaxPool", "x", "p", kernel_shape=[3, 3], strides=[2, 2], **attributes), node("Flatten", "p")]
    module = load_onnx(save(tmp_path / "pool.onnx", nodes, ("N", 1, 6, 6)))
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    top = module(x).topk(2).values
    for certificate, margin in zip(
        certify(module, x, module(x).argmax(1), Linf(1e-3), method="ibp"), top[:, 0] - top[:, 1], strict=True
    ):
        assert abs(certificate.bound - (margin - 2e-3)) < 1e-5 or certificate.bound == 0
