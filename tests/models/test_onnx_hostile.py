"""ONNX files made to break a reader: each is refused in one line, before anything large is allocated."""

import contextlib
import gzip
import os
import random
import resource
import time

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from helpers.onnx_graphs import node, save
from holdfast.errors import HoldfastError, ModelError
from holdfast.models import load_onnx

INT_MAX = 2**63 - 1


def ints(*values):
    return np.array(values, dtype=np.int64)


def model(nodes, shape=(1, 2), **constants):
    """A model in memory; ``constants`` are arrays or ready TensorProtos."""
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(name, dims, kind=TensorProto.FLOAT, **fields):
    proto = TensorProto(name=name, data_type=kind, **fields)
    proto.dims.extend(dims)
    return proto


def with_constant(proto):
    return model([node("Add", "x c")], c=proto)


def doubling(op):
    join = {"Concat": {"axis": 0}}.get(op, {})
    last, nodes = "c", []
    for i in range(60):
        nodes.append(node(op, f"{last} {last}", f"d{i}", **join))
        last = f"d{i}"
    return model([*nodes, node("ReduceSum", last, "s", keepdims=0), node("Add", "x s")], c=np.ones(2, np.float32))


def shape_doubling(op):
    last, nodes = "s", [node("Shape", "x", "s")]
    for i in range(60):
        nodes.append(node(op, f"{last} {last}", f"d{i}", **({"axis": 0} if op == "Concat" else {})))
        last = f"d{i}"
    return model([*nodes, node("Reshape", f"x {last}")], ("N", 2))


def external(location, **entries):
    proto = tensor("c", [2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    return with_constant(proto)


def sparse(dims, values, indices):
    made = model([node("Add", "x c")])
    proto = SparseTensorProto(
        values=numpy_helper.from_array(np.array(values, np.float32), "c"),
        indices=numpy_helper.from_array(ints(*indices)),
    )
    proto.dims.extend(dims)
    made.graph.sparse_initializer.append(proto)
    return made


def functions(calls, depth, cyclic=False):
    made = model([helper.make_node("f0", ["x"], ["y"], domain="own")])
    made.opset_import.append(helper.make_opsetid("own", 1))
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for level in range(depth):
        names = [f"v{i}" for i in range(calls)]
        target = f"f{(level + 1) % depth if cyclic else level + 1}"
        own = level + 1 < depth or cyclic
        body = [
            helper.make_node(target if own else "Relu", [a], [b], domain="own" if own else "")
            for a, b in zip(["x", *names], [*names, "y"], strict=False)
        ]
        made.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], body, opset))
    return made


def renamed(change):
    made = model([node("Add", "x c", "a"), node("Relu", "a")], c=np.ones(2, np.float32))
    change(made)
    return made


def set_dim(made, place, value):
    made.graph.input[0].type.tensor_type.shape.dim[place].dim_value = value


SHAPES = {
    "a tensor of an absurd shape": lambda: with_constant(tensor("c", [10**9, 10**9])),
    "a tensor whose size overflows": lambda: with_constant(tensor("c", [2**32, 2**32, 2**32], raw_data=b"")),
    "a tensor of a negative shape": lambda: with_constant(tensor("c", [-1, 2], float_data=[1, 2])),
    "a tensor of a thousand dimensions": lambda: with_constant(tensor("c", [1] * 1000, float_data=[1])),
    "too few raw bytes": lambda: with_constant(tensor("c", [2], raw_data=b"1234567")),
    "too many raw bytes": lambda: with_constant(tensor("c", [2], raw_data=b"123456789")),
    "too few values": lambda: with_constant(tensor("c", [3], float_data=[1, 2])),
    "values in another field": lambda: with_constant(tensor("c", [2], TensorProto.DOUBLE, float_data=[1, 2])),
    "an unknown type": lambda: with_constant(tensor("c", [2], 99, raw_data=b"12345678")),
    "no type": lambda: with_constant(tensor("c", [2], 0, raw_data=b"12345678")),
    "text": lambda: with_constant(tensor("c", [2], TensorProto.STRING, string_data=[b"a", b"b"])),
    "values out of range": lambda: with_constant(tensor("c", [1], TensorProto.INT8, int32_data=[1000])),
    "an attribute of an absurd shape": lambda: model(
        [node("Constant", "", "c", value=tensor("v", [10**9, 10**9])), node("Add", "x c")]
    ),
    "an input of an absurd shape": lambda: model([node("Relu")], (1, 10**6, 10**6, 10**6)),
    "a batch of an absurd size": lambda: renamed(lambda made: set_dim(made, 0, INT_MAX)),
    "an input of 2^63 - 1": lambda: renamed(lambda made: set_dim(made, 1, INT_MAX)),
}
GROWTH = {
    "ConstantOfShape": lambda: model([node("ConstantOfShape", "s", "c"), node("Add", "x c")], s=ints(10**6, 10**6)),
    "ConstantOfShape of a negative shape": lambda: model(
        [node("ConstantOfShape", "s", "c"), node("Add", "x c")], s=ints(-1)
    ),
    "Expand of a constant": lambda: model(
        [node("Expand", "c s", "e"), node("ReduceSum", "e", "r", keepdims=0), node("Add", "x r")],
        c=np.float32(1), s=ints(10**6, 10**6),
    ),
    "Expand": lambda: model([node("Expand", "x s")], s=ints(10**6, 10**6, 1, 2)),
    "Tile of a constant": lambda: model(
        [node("Tile", "c s", "e"), node("Add", "x e")], c=np.ones(2, np.float32), s=ints(10**12)
    ),
    "Tile": lambda: model([node("Tile", "x s")], s=ints(1, 10**12)),
    "Tile beyond 64 bits": lambda: model([node("Tile", "x s")], (1, 1024), s=ints(1, INT_MAX)),
    "Range": lambda: model(
        [node("Range", "a b d", "r"), node("Add", "x r")], a=np.int64(0), b=np.int64(10**14), d=np.int64(1)
    ),
    "Range by nothing": lambda: model(
        [node("Range", "a b d", "r"), node("Add", "x r")], a=np.float32(0), b=np.float32(1), d=np.float32(0)
    ),
    "Resize": lambda: model([node("Resize", "x - s")], (1, 1, 4, 4), s=np.array([1, 1, 1e6, 1e6], np.float32)),
    "Resize linear": lambda: model(
        [node("Resize", "x - - s", mode="linear")], (1, 1, 4, 4), s=ints(1, 1, 10**9, 10**9)
    ),
    "Resize by NaN": lambda: model([node("Resize", "x - s")], (1, 1, 4), s=np.array([1, 1, np.nan], np.float32)),
    "Pad": lambda: model([node("Pad", "x p")], p=ints(0, 0, 0, 10**12)),
    "Pad by edges": lambda: model([node("Pad", "x p", mode="edge")], p=ints(0, 0, 0, 10**12)),
    "MaxPool with pads": lambda: model(
        [node("MaxPool", kernel_shape=[10**9], pads=[10**9, 10**9], strides=[10**9])], (1, 100, 8)
    ),
    "AveragePool with pads": lambda: model(
        [node("AveragePool", kernel_shape=[10**9], pads=[10**8, 10**9 - 1], strides=[10**9])], (1, 100, 8)
    ),
    "Conv with pads": lambda: model(
        [node("Conv", "x w", pads=[10**9, 10**9])], (1, 1, 8), w=np.ones((64, 1, 3), np.float32)
    ),
    "ConvTranspose with strides": lambda: model(
        [node("ConvTranspose", "x w", strides=[10**10])], (1, 1, 8), w=np.ones((1, 1, 3), np.float32)
    ),
    "a convolution of everything with everything": lambda: model(
        [node("Expand", "x s", "e"), node("ConstantOfShape", "k", "w"), node("Conv", "e w")],
        (1, 1, 1, 1), s=ints(1, 1, 8192, 8192), k=ints(1, 1, 4096, 4096),
    ),
    "an outer product": lambda: model(
        [node("Expand", "x s", "e"), node("Transpose", "e", "t", perm=[0, 2, 1]), node("MatMul", "t e")],
        (1, 1, 1), s=ints(1, 1, 10**6),
    ),
    "a window of channels": lambda: model([node("LRN", size=10**9)], (1, 3, 4, 4)),
    "doublings by Concat": lambda: doubling("Concat"),
    "doublings of a shape": lambda: shape_doubling("Concat"),
    "squares of a shape": lambda: shape_doubling("Mul"),
    "many steps of a recurrence": lambda: model(
        [node("RNN", "x w r", hidden_size=1)], (10**6, 1, 1), w=np.ones((1, 1, 1), np.float32),
        r=np.ones((1, 1, 1), np.float32),
    ),
}  # fmt: skip
GRAPHS = {
    "a cycle": lambda: model([node("Add", "x b", "a"), node("Add", "a x", "b"), node("Add", "a b")]),
    "an order upside down": lambda: model([node("Relu", "a"), node("Relu", "x", "a")]),
    "a value computed twice": lambda: model([node("Relu", "x", "y"), node("Tanh", "x", "y")]),
    "a constant computed": lambda: model([node("Relu", "x", "c"), node("Add", "x c")], c=np.ones(2, np.float32)),
    "the input computed": lambda: model([node("Tanh", "c", "x"), node("Add", "x c")], c=np.ones(2, np.float32)),
    "two tensors of one name": lambda: renamed(lambda made: made.graph.initializer.append(made.graph.initializer[0])),
    "no inputs": lambda: renamed(lambda made: made.graph.ClearField("input")),
    "no outputs": lambda: renamed(lambda made: made.graph.ClearField("output")),
    "an input without a type": lambda: renamed(lambda made: made.graph.input[0].ClearField("type")),
    "no operator sets": lambda: renamed(lambda made: made.ClearField("opset_import")),
    "an operator set from the future": lambda: renamed(lambda made: setattr(made.opset_import[0], "version", 10**6)),
    "a negative operator set": lambda: renamed(lambda made: setattr(made.opset_import[0], "version", -5)),
    "two operator sets of one domain": lambda: renamed(
        lambda made: made.opset_import.append(helper.make_opsetid("ai.onnx", 8))
    ),
    "a very long name": lambda: model([helper.make_node("Nothing", ["x"], ["y"], name="n" * 10**6)]),
    "a very long operator": lambda: model([helper.make_node("N" * 10**6, ["x"], ["y"])]),
    "a name for terminals": lambda: model([helper.make_node("Nothing", ["x"], ["y"], name="\x1b[2J\n\x07\u202ehello")]),
    "a missing attribute": lambda: model([helper.make_node("Concat", ["x", "x"], ["y"])]),
    "an attribute of another type": lambda: model([helper.make_node("Concat", ["x", "x"], ["y"], axis=1.5)]),
    "an attribute twice": lambda: renamed(
        lambda made: made.graph.node[1].CopyFrom(
            onnx.NodeProto(
                op_type="LeakyRelu", input=["a"], output=["y"],
                attribute=[helper.make_attribute("alpha", a) for a in (0.1, 0.9)],
            )
        )
    ),
    "an attribute of a function outside of one": lambda: renamed(
        lambda made: made.graph.node[1].CopyFrom(
            onnx.NodeProto(
                op_type="LeakyRelu", input=["a"], output=["y"],
                attribute=[AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="alpha")],
            )
        )
    ),
    "too many inputs": lambda: model([node("Relu", "x x")]),
    "too few inputs": lambda: model([node("Add", "x")]),
    "an input left out that is needed": lambda: model([node("Add", "x -")]),
    "functions that multiply": lambda: functions(10, 12),
    "functions without end": lambda: functions(1, 3, cyclic=True),
    "sparse places outside": lambda: sparse([2], [1.0], [5]),
    "sparse places below": lambda: sparse([2], [1.0], [-3]),
    "sparse and absurdly large": lambda: sparse([10**6, 10**6], [1.0], [0]),
    "sparse with fewer places than values": lambda: sparse([2], [1.0, 2.0], [0]),
    "an index out of range": lambda: model([node("Gather", "x i", axis=1)], i=ints(7)),
    "an axis out of range": lambda: model([node("Softmax", axis=7)]),
    "a stride of nothing": lambda: model([node("MaxPool", kernel_shape=[2], strides=[0])], (1, 1, 8)),
    "a window of nothing": lambda: model([node("MaxPool", kernel_shape=[0])], (1, 1, 8)),
    "a negative dilation": lambda: model(
        [node("Conv", "x w", dilations=[-1])], (1, 1, 8), w=np.ones((1, 1, 3), np.float32)
    ),
    "no groups": lambda: model([node("Conv", "x w", group=0)], (1, 1, 8), w=np.ones((1, 1, 3), np.float32)),
    "blocks of nothing": lambda: model([node("DepthToSpace", blocksize=0)], (1, 4, 2, 2)),
    "a branch on the input": lambda: model(
        [node("Cast", "x", "b", to=TensorProto.BOOL), node("If", "b", then_branch=branch(), else_branch=branch())]
    ),
}  # fmt: skip


def branch():
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    return helper.make_graph([node("Relu", "x", "t")], "branch", [], [info])


FILES = {
    "a file outside": lambda: external("../secret"),
    "a file by its whole path": lambda: external("/etc/passwd"),
    "a missing file": lambda: external("nothing.bin"),
    "a folder": lambda: external("."),
    "no location": lambda: external(""),
    "a null character": lambda: external("a\0b"),
    "a link that leads outside": lambda: external("link.bin"),
    "a pipe": lambda: external("pipe.bin"),
    "a short file": lambda: external("short.bin"),
    "an offset beyond the end": lambda: external("whole.bin", offset=10**12),
    "a negative offset": lambda: external("whole.bin", offset=-4),
    "a length that is no number": lambda: external("whole.bin", length="many"),
    "another length": lambda: external("whole.bin", length=4),
}


def refusal(path):
    """The line with which a file is refused; how long it takes and how much memory is limited too."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HoldfastError) as caught:
        load_onnx(path)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    text = str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 2500
    return text


@pytest.mark.parametrize("kind", [*SHAPES, *GROWTH, *GRAPHS])
def test_refused_in_one_line(tmp_path, kind):
    made = {**SHAPES, **GROWTH, **GRAPHS}[kind]()
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    refusal(tmp_path / "net.onnx")


@pytest.mark.parametrize("kind", FILES)
def test_data_in_other_files(tmp_path, kind):
    folder = tmp_path / "net"
    folder.mkdir()
    np.ones(2, np.float32).tofile(tmp_path / "secret")
    np.ones(2, np.float32).tofile(folder / "whole.bin")
    np.ones(1, np.float32).tofile(folder / "short.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.bin")
    (folder / "net.onnx").write_bytes(FILES[kind]().SerializeToString())
    refusal(folder / "net.onnx")


def test_data_in_another_file_are_read(tmp_path):
    np.array([9, 3, 4], np.float32).tofile(tmp_path / "whole.bin")
    made = external("whole.bin", offset=4, length=8).SerializeToString()
    (tmp_path / "net.onnx").write_bytes(made)
    assert load_onnx(tmp_path / "net.onnx")(torch.zeros(1, 2)).tolist() == [[3, 4]]
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(made))
    assert "gzipped" in refusal(tmp_path / "net.onnx.gz")


def test_sparse_tensors_are_read(tmp_path):
    for indices in ((1,), None):
        made = sparse([2], [5.0], indices or (1,))
        if indices is None:  # as coordinates
            made.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([[1]])))
        (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
        assert load_onnx(tmp_path / "net.onnx")(torch.zeros(1, 2)).tolist() == [[0, 5]]


def test_functions_are_read(tmp_path):
    (tmp_path / "net.onnx").write_bytes(functions(1, 3).SerializeToString())
    module = load_onnx(tmp_path / "net.onnx")
    assert module(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]
    assert "steps=8" in repr(module)


def test_files_that_are_none(tmp_path):
    for content in (b"", b"\0" * 100, b"\xff" * 100, os.urandom(1000), b"\x1f\x8b", b"\x1f\x8b\x08" + b"\0" * 50):
        (tmp_path / "net.onnx").write_bytes(content)
        refusal(tmp_path / "net.onnx")
    refusal(tmp_path)
    refusal(tmp_path / "missing.onnx")


def test_a_compressed_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.models.onnx.read._LARGEST", 2**20)
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(bytes(2**24)))
    assert "unzip" in refusal(tmp_path / "net.onnx.gz")


def test_deep_nesting(tmp_path):
    def net(depth):
        graph = branch()
        for _ in range(depth):
            info = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
            step = node("If", "b", "t", then_branch=graph, else_branch=branch())
            graph = helper.make_graph([step], "g", [], [info])
        return model([node("If", "b", then_branch=graph, else_branch=branch())], b=np.array(True)).SerializeToString()

    (tmp_path / "net.onnx").write_bytes(net(10))
    assert load_onnx(tmp_path / "net.onnx")(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]
    (tmp_path / "net.onnx").write_bytes(b"\x3a\x80\x80\x01" * 4000)  # graphs within graphs, cut off
    refusal(tmp_path / "net.onnx")


def valid(path):
    """A network with attributes, tensors and settings of many kinds."""
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
        node("Clip", "a l", "r"),
        node("Resize", "r - s", "u"),
        node("Cast", "u", "h", to=TensorProto.FLOAT16),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Reshape", "f t"),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(2, 1, 3, 3)).astype(np.float32), "b": np.ones(2, np.float32)}
    constants |= {"l": np.float32(0), "s": np.array([1, 1, 2, 2], np.float32), "t": ints(0, -1)}
    return save(path, nodes, (1, 1, 4, 4), **constants)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), cut=st.booleans()
)
def test_bytes_changed_anywhere(tmp_path, changes, cut):
    path = tmp_path / "net.onnx"
    data = bytearray(valid(path).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data[: changes[0][0] % len(data)] if cut else data)
    with contextlib.suppress(HoldfastError):
        load_onnx(path)


NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, 2**63 - 1, -(2**63)]


def mutate(made, rng):
    """Change one field of a model."""
    graph = made.graph
    kind = rng.randrange(7)
    attributes = [a for n in graph.node for a in n.attribute]
    if kind == 0:
        attribute = rng.choice(attributes)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        else:
            attribute.i = rng.choice(NUMBERS)
    elif kind == 1:
        tensor_ = rng.choice(graph.initializer)
        if tensor_.dims:
            tensor_.dims[rng.randrange(len(tensor_.dims))] = rng.choice(NUMBERS)
        else:
            tensor_.dims.append(rng.choice(NUMBERS))
    elif kind == 2:
        rng.choice(graph.initializer).data_type = rng.randrange(30)
    elif kind == 3:
        chosen = rng.choice([n for n in graph.node if n.input])
        chosen.input[rng.randrange(len(chosen.input))] = rng.choice(["", "x", "a", "h", "t", "s", "y", "nothing"])
    elif kind == 4:
        rng.choice(graph.node).op_type = rng.choice(
            ["Relu", "Add", "Shape", "Tile", "Expand", "LSTM", "If", "Loop", "Pad"]
        )
    elif kind == 5:
        graph.node.append(graph.node[rng.randrange(len(graph.node))])
    else:
        rng.choice(graph.initializer).raw_data = np.array([rng.choice(NUMBERS) for _ in range(2)]).tobytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_fields_changed_anywhere(tmp_path, seed):
    rng = random.Random(seed)
    made = onnx.load(valid(tmp_path / "net.onnx"))
    for _ in range(rng.randrange(1, 4)):
        mutate(made, rng)
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    with contextlib.suppress(HoldfastError):
        load_onnx(tmp_path / "net.onnx")
