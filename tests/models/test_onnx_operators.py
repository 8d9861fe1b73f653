"""Every operator, in every form that the opsets gave it, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from helpers.onnx_graphs import check, node, save
from holdfast.errors import ModelError
from holdfast.models import load_onnx

RNG = np.random.default_rng(0)


def f32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def f32_scalar(value):
    return np.float32(value)


def ints(*values):
    return np.array(values, dtype=np.int64)


def constant(name, array):
    return node("Constant", "", name, value=numpy_helper.from_array(np.asarray(array)))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("other", [f32(4), f32(1, 3, 1), f32_scalar(0.7), f32(1, 1, 1, 1)], ids=lambda a: str(a.shape))
@pytest.mark.parametrize("order", ["x c", "c x"])
def test_arithmetic(tmp_path, op, other, order):
    other = np.abs(other) + np.float32(1)
    check(tmp_path, [node("Sigmoid", "x", "s"), node(op, order.replace("x", "s"))], (2, 3, 4), c=other)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "Identity", "Neg", "GlobalAveragePool"])
@pytest.mark.parametrize("opset", [7, 13, 20])
def test_without_attributes(tmp_path, op, opset):
    check(tmp_path, [node(op)], (3, 5, 4), opset=opset)


@pytest.mark.parametrize("alpha", [None, 0.2])
def test_leaky_relu(tmp_path, alpha):
    check(tmp_path, [node("LeakyRelu", **({} if alpha is None else {"alpha": alpha}))], (7,))


@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"alpha": 0.5, "transB": 1}, {"beta": 0.3}], ids=str
)
@pytest.mark.parametrize("bias", [None, f32(4), f32(1, 4), f32(1), f32_scalar(0.5)], ids=lambda a: str(np.shape(a)))
def test_gemm(tmp_path, attributes, bias):
    weight = f32(4, 6) if attributes.get("transB") else f32(6, 4)
    extra = {} if bias is None else {"c": bias}
    check(tmp_path, [node("Gemm", "x w c" if extra else "x w", **attributes)], (6,), w=weight, **extra)


def test_gemm_transposed_input(tmp_path):
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Gemm", "t w", transA=1)]
    check(tmp_path, nodes, (6,), w=f32(6, 3))


@pytest.mark.parametrize(
    ("order", "weight", "shape"),
    [("x w", (5, 3), (5,)), ("x w", (5, 3), (2, 5)), ("w x", (3, 5), (5, 1)), ("w x", (4, 3, 5), (4, 5, 2))],
)
def test_matmul(tmp_path, order, weight, shape):
    check(tmp_path, [node("MatMul", order)], shape, w=f32(*weight))


def test_matmul_of_two_activations(tmp_path):
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t")]
    check(tmp_path, nodes, (3, 4))


CONVOLUTIONS = [
    ((9,), {}),
    ((9,), {"strides": [2], "pads": [1, 2], "dilations": [2]}),
    ((7, 8), {"kernel_shape": [3, 3]}),
    ((7, 8), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ((7, 8), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ((9, 9), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ((7, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((7, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ((8, 8), {"auto_pad": "SAME_UPPER"}),
    ((7, 8), {"auto_pad": "VALID"}),
    ((5, 6, 7), {"strides": [1, 2, 2], "pads": [1, 0, 1, 1, 1, 0]}),
    ((5, 5, 5), {"auto_pad": "SAME_LOWER"}),
]


@pytest.mark.parametrize(("size", "attributes"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv(tmp_path, size, attributes, group):
    weight = f32(6, 4 // group, *[3] * len(size))
    extra = {} if group == 2 else {"b": f32(6)}
    check(
        tmp_path, [node("Conv", "x w b" if extra else "x w", group=group, **attributes)], (4, *size), w=weight, **extra
    )


def test_conv_of_an_even_kernel_pads_the_odd_place_on_the_side_named(tmp_path):
    for side in ("SAME_UPPER", "SAME_LOWER"):
        check(tmp_path, [node("Conv", "x w", auto_pad=side)], (1, 6, 6), w=f32(2, 1, 4, 2))


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 3)])
@pytest.mark.parametrize(("opset", "attributes"), [(7, {}), (9, {"epsilon": 0.1}), (15, {"momentum": 0.5})])
def test_batch_normalization(tmp_path, shape, opset, attributes):
    constants = {"s": f32(4), "b": f32(4), "m": f32(4), "v": np.abs(f32(4)) + np.float32(0.1)}
    check(tmp_path, [node("BatchNormalization", "x s b m v", **attributes)], shape, opset=opset, **constants)


POOLS = [
    ((9,), {"kernel_shape": [3]}),
    ((9,), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((7, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((7, 8), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 2, 0]}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((7, 8), {"kernel_shape": [2, 2], "strides": [1, 3], "auto_pad": "SAME_LOWER"}),
    ((7, 8), {"kernel_shape": [3, 3], "auto_pad": "VALID"}),
    ((6, 7, 5), {"kernel_shape": [2, 3, 2], "strides": [2, 2, 1], "pads": [0, 1, 0, 1, 1, 1]}),
]
CEILED = [
    ((10,), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((7, 8), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1], "ceil_mode": 1}),
    ((6, 6), {"kernel_shape": [1, 2], "strides": [3, 3], "pads": [0, 1, 0, 1], "ceil_mode": 1}),
]


@pytest.mark.parametrize(("size", "attributes"), POOLS + CEILED, ids=str)
def test_max_pool(tmp_path, size, attributes):
    check(tmp_path, [node("MaxPool", **attributes)], (2, *size))


def test_max_pool_dilated(tmp_path):
    check(tmp_path, [node("MaxPool", kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 1, 1])], (2, 8, 9), opset=11)
    check(tmp_path, [node("MaxPool", kernel_shape=[2, 2], dilations=[2, 3], strides=[3, 2], ceil_mode=1)], (1, 8, 9))


@pytest.mark.parametrize(("size", "attributes"), POOLS, ids=str)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(tmp_path, size, attributes, include):
    check(tmp_path, [node("AveragePool", count_include_pad=include, **attributes)], (2, *size))


@pytest.mark.parametrize(("size", "attributes"), CEILED, ids=str)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_with_ceil(tmp_path, size, attributes, include):
    check(tmp_path, [node("AveragePool", count_include_pad=include, **attributes)], (2, *size), opset=19)


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (9, 2), (9, 3), (11, -1), (13, -2), (13, None), (9, 0)])
def test_flatten(tmp_path, opset, axis):
    free = axis == 1 or axis is None
    nodes = [node("Flatten", "x", "f", **({} if axis is None else {"axis": axis}))]
    if axis not in {None, 0, 1}:  # rows of the input come back as the first dimension
        nodes.append(node("Reshape", "f target"))
        check(tmp_path, nodes, (2, 3, 4), opset=opset, free=False, target=ints(1, -1))
    else:
        nodes.append(node("Identity", "f"))
        check(tmp_path, nodes, (2, 3, 4), opset=opset, free=free)


@pytest.mark.parametrize("shape", [(1, 24), (1, -1), (1, 4, 6), (1, 2, -1, 3)])
def test_reshape_to_one_row_takes_any_number_of_rows(tmp_path, shape):
    check(tmp_path, [node("Reshape", "x target")], (2, 3, 4), free=False, target=ints(*shape))


@pytest.mark.parametrize("shape", [(-1, 24), (0, -1), (0, 0, 12), (-1, 4, 6), (0, 2, -1)])
@pytest.mark.parametrize("opset", [7, 14])
def test_reshape(tmp_path, shape, opset):
    check(tmp_path, [node("Reshape", "x target")], (2, 3, 4), opset=opset, target=ints(*shape))


def test_reshape_allowzero(tmp_path):
    check(tmp_path, [node("Reshape", "x target", allowzero=1)], (2, 3), opset=14, target=ints(-1, 6))
    check(tmp_path, [node("Reshape", "x target", allowzero=1)], (2, 3), opset=14, free=False, target=ints(1, 6))


def test_reshape_there_and_back_through_a_flat_batch(tmp_path):
    nodes = [node("Reshape", "x a", "f"), node("Relu", "f", "r"), node("Reshape", "r b")]
    check(tmp_path, nodes, (3, 4), free=False, a=ints(3, 4), b=ints(1, 12))
    check(tmp_path, nodes, (3, 4), free=False, a=ints(-1, 4), b=ints(1, -1))


@pytest.mark.parametrize("perm", [None, [0, 2, 1, 3], [0, 3, 1, 2]])
def test_transpose(tmp_path, perm):
    if perm is None:  # reverses all dimensions: twice is none
        check(tmp_path, [node("Transpose", "x", "t"), node("Relu", "t", "r"), node("Transpose", "r")], (2, 3))
    else:
        check(tmp_path, [node("Transpose", perm=perm)], (2, 3, 4))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_concat(tmp_path, axis):
    check(tmp_path, [node("Relu", "x", "r"), node("Concat", "x r x", axis=axis)], (2, 3))


def test_concat_with_a_constant_row(tmp_path):
    check(tmp_path, [node("Concat", "c x", axis=1)], (2, 3), free=False, c=f32(1, 4, 3))


SLICES = [
    ([1], [3], None, None),
    ([0, 1], [2, 9], [1, 3], None),
    ([-3], [-1], [2], None),
    ([0], [2**63 - 1], [3], [2]),
    ([-1], [-(2**63)], [2], [-1]),
    ([6, 3], [0, -9], [3, 2], [-2, -1]),
    ([2], [100], [-1], [3]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice_inputs(tmp_path, starts, ends, axes, steps):
    if axes is None:
        starts, ends, axes = [0, *starts], [2**31, *ends], None
    given_ = {"s": ints(*starts), "e": ints(*ends)} | ({} if axes is None else {"a": ints(*axes)})
    given_ |= {} if steps is None else {"t": ints(*steps)}
    names = " ".join(["x", "s", "e", *(["a"] if axes else ["-"] if steps else []), *(["t"] if steps else [])])
    check(tmp_path, [node("Slice", names)], (4, 5, 7), **given_)


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES[:3])
def test_slice_attributes(tmp_path, starts, ends, axes, steps):
    if axes is None:
        starts, ends, axes = [0, *starts], [2**31, *ends], [0, 1]
    check(tmp_path, [node("Slice", starts=starts, ends=ends, axes=axes)], (4, 5, 7), opset=9)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(-12, 12),
    end=st.integers(-12, 12),
    step=st.integers(-4, 4).filter(bool),
    axis=st.sampled_from([1, -1]),
)
def test_slice_of_any_kind(tmp_path, start, end, step, axis):
    assume(len(range(9)[start:end:step]) > 0)
    constants = {"s": ints(start), "e": ints(end), "a": ints(axis), "t": ints(step)}
    check(tmp_path, [node("Slice", "x s e a t")], (9,), gradient=False, **constants)


@pytest.mark.parametrize(
    "indices", [np.int64(2), np.int64(-1), ints(1), ints(2, 0, 2, -1), ints(3, 2, 1, 0).reshape(2, 2)], ids=str
)
@pytest.mark.parametrize("axis", [1, -1])
def test_gather(tmp_path, indices, axis):
    check(tmp_path, [node("Gather", "x i", axis=axis)], (4, 5), i=indices)


def test_split(tmp_path):
    join = node("Concat", "b a", axis=1)
    check(tmp_path, [node("Split", "x", "a b", axis=1), join], (6, 2), opset=11)
    check(tmp_path, [node("Split", "x", "a b", axis=1, split=[1, 5]), join], (6, 2), opset=11)
    check(tmp_path, [node("Split", "x s", "a b", axis=-2), join], (6, 2), opset=13, s=ints(4, 2))
    check(tmp_path, [node("Split", "x", "a b", axis=1), join], (6, 2), opset=13)
    check(tmp_path, [node("Split", "x", "a b", axis=1, num_outputs=2), join], (7, 2), opset=18)


PADS = [[0, 0, 1, 2, 0, 0, 0, 3], [0, 0, 0, 2, 0, 0, 0, 0]]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", PADS)
def test_pad(tmp_path, mode, pads):
    check(tmp_path, [node("Pad", mode=mode, pads=pads)], (2, 4, 5), opset=10)
    check(tmp_path, [node("Pad", "x p", mode=mode)], (2, 4, 5), opset=13, p=ints(*pads))
    check(tmp_path, [node("Pad", "x p", mode=mode)], (4, 5), opset=11, p=ints(0, 0, 3, 0, 0, 1))


def test_pad_with_a_constant(tmp_path):
    check(tmp_path, [node("Pad", pads=[0, 1, 0, 0, 2, 1], value=0.5)], (3, 4), opset=10)
    check(tmp_path, [node("Pad", "x p v")], (3, 4), p=ints(0, 1, -1, 0, 2, 0), v=f32_scalar(-1.5))
    check(tmp_path, [node("Pad", "x p - a")], (3, 4), opset=18, p=ints(1, 2, 0, 1), a=ints(-1, 1))
    check(tmp_path, [node("Pad", "x p", mode="wrap")], (3, 4), opset=19, p=ints(0, 0, 2, 0, 0, 1))
    check(tmp_path, [node("Pad", "x p")], (3, 4), p=ints(0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(("opset", "axis"), [(9, None), (9, 1), (9, 2), (11, -1), (13, None), (13, 1), (13, -1)])
def test_softmax(tmp_path, opset, axis):
    check(tmp_path, [node("Softmax", **({} if axis is None else {"axis": axis}))], (3, 4), opset=opset)


def test_clip(tmp_path):
    check(tmp_path, [node("Clip", min=-0.5, max=0.4)], (8,), opset=9)
    check(tmp_path, [node("Clip", min=0.0)], (8,), opset=7)
    check(tmp_path, [node("Clip", "x l h")], (8,), l=f32_scalar(-0.5), h=f32_scalar(0.4))
    check(tmp_path, [node("Clip", "x - h")], (8,), h=f32_scalar(0.4))
    check(tmp_path, [node("Clip", "x l")], (8,), l=f32_scalar(0.1))
    check(tmp_path, [node("Clip")], (8,))
    check(tmp_path, [constant("h", np.float32(6)), node("Clip", "x - h")], (8,), opset=11)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[1], [2, 3], [-1]])
def test_reduce(tmp_path, op, keep, axes):
    check(tmp_path, [node(op, axes=axes, keepdims=keep)], (3, 4, 5), opset=11)
    check(tmp_path, [node(op, "x a", keepdims=keep)], (3, 4, 5), opset=18, a=ints(*axes))


def test_reduce_of_no_axes(tmp_path):
    check(tmp_path, [node("ReduceSum", "x", noop_with_empty_axes=1)], (3, 4))
    everything = [node("ReduceMean", "x", "m", keepdims=1), node("Sub", "x m")]
    with pytest.raises(Exception, match="depends on the other rows"):
        check(tmp_path, everything, (3, 4))


def test_squeeze_and_unsqueeze(tmp_path):
    check(tmp_path, [node("Unsqueeze", "x", "u", axes=[1, 4]), node("Squeeze", "u", axes=[4])], (3, 4), opset=11)
    check(tmp_path, [node("Unsqueeze", "x a")], (3, 4), a=ints(-1, 1))
    check(tmp_path, [node("Squeeze", "x a")], (3, 1, 4), a=ints(-2))


UNARY = {
    "Abs": {}, "Erf": {}, "Exp": {}, "Mish": {}, "Softplus": {}, "Softsign": {}, "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 1.3},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "HardSwish": {}, "Selu": {"alpha": 1.5, "gamma": 1.2},
    "ThresholdedRelu": {"alpha": 0.3}, "LogSoftmax": {"axis": -1}, "Gelu": {"approximate": "tanh"}, "Sin": {},
    "Atan": {},
    "Shrink": {"lambd": 0.3, "bias": 0.1}, "LpNormalization": {"p": 1}, "MeanVarianceNormalization": {"axes": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), UNARY.items())
def test_functions_of_one_tensor(tmp_path, op, attributes):
    # selu and the like only in single precision: the specification's defaults are single numbers
    check(tmp_path, [node(op, **attributes)], (5, 4), opset=20)
    if op in {"Celu", "Elu", "HardSigmoid", "Selu", "ThresholdedRelu", "Gelu", "Shrink"}:
        check(tmp_path, [node(op)], (5, 4), opset=20)


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_functions_of_positive_numbers(tmp_path, op):
    check(tmp_path, [node("Exp", "x", "e"), node(op, "e")], (5, 4))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, f32(4)], ids=lambda e: str(np.shape(e)))
def test_power(tmp_path, exponent):
    check(tmp_path, [node("Exp", "x", "e"), node("Pow", "e c")], (3, 4), c=np.float32(exponent))
    check(tmp_path, [node("Exp", "x", "e"), node("Pow", "e c")], (3, 4), c=ints(*[2] * 4))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_of_several_tensors(tmp_path, op):
    check(tmp_path, [node("Neg", "x", "n"), node(op, "x n c s")], (3, 4), c=f32(4), s=f32_scalar(0.1))
    check(tmp_path, [node(op, "x")], (3, 4))


@pytest.mark.parametrize(
    "slope", [f32_scalar(0.3), f32(3, 1), f32(4), f32(3, 4), f32(1, 3, 1)], ids=lambda s: str(s.shape)
)
def test_prelu(tmp_path, slope):
    check(tmp_path, [node("PRelu", "x c")], (3, 4), c=slope)


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_and_where(tmp_path, op):
    nodes = [node(op, "x c", "b"), node("Not", "b", "n"), node("Where", "b x d", "w"), node("Where", "n w x")]
    check(tmp_path, nodes, (3, 4), opset=16, gradient=False, c=f32_scalar(0.2), d=f32(4))


@pytest.mark.parametrize("reduce", ["Max", "Min", "L1", "L2", "LogSumExp", "SumSquare", "Prod"])
def test_further_reductions(tmp_path, reduce):
    for attributes in ({"axes": [1]}, {"axes": [-1, 1], "keepdims": 0}):
        check(tmp_path, [node(f"Reduce{reduce}", **attributes)], (3, 4), opset=13)


NORMS = {
    "LayerNormalization": [((3, 4), "x s b", {"axis": -1}, (4,)), ((3, 4), "x s", {"axis": 1, "epsilon": 0.1}, (3, 4))],
    "InstanceNormalization": [((3, 4, 2), "x s b", {}, (3,))],
    "LRN": [
        ((5, 2, 2), "x", {"size": 3}, ()),
        ((5, 2, 2), "x", {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}, ()),
    ],
}


@pytest.mark.parametrize(("op", "form"), [(op, form) for op, forms in NORMS.items() for form in forms], ids=str)
def test_normalisations(tmp_path, op, form):
    shape, names, attributes, parameters = form
    given = {name: f32(*parameters) for name in names.split()[1:]}
    check(tmp_path, [node(op, names, **attributes)], shape, opset=18, **given)


def test_group_normalization(tmp_path):
    """Its scales belonged to groups before opset 21, a form that the specification took back."""
    check(tmp_path, [node("GroupNormalization", "x s b", num_groups=2)], (4, 3), opset=21, s=f32(4), b=f32(4))
    path = save(
        tmp_path / "n.onnx", [node("GroupNormalization", "x s b", num_groups=2)], ("N", 4, 3), 18, s=f32(2), b=f32(2)
    )
    with pytest.raises(ModelError, match="no such operator"):
        load_onnx(path)


TRANSPOSED = [
    ((9,), {}), ((7,), {"strides": [2], "pads": [1, 0]}), ((4, 5), {"strides": [2, 3], "output_padding": [1, 2]}),
    ((4, 5), {"pads": [1, 1, 1, 1], "dilations": [2, 1]}), ((4, 5), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((4, 5), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}), ((4, 5), {"strides": [3, 2], "output_shape": [10, 10]}),
    ((4, 5), {"strides": [3, 2], "output_shape": [13, 12]}), ((2, 3, 4), {"strides": [2, 1, 2]}),
    ((4, 5), {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
]  # fmt: skip


@pytest.mark.parametrize(("size", "attributes"), TRANSPOSED, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(tmp_path, size, attributes, group):
    weight = f32(4, 3, *[3] * len(size))
    nodes = [node("ConvTranspose", "x w b", group=group, **attributes)]
    check(tmp_path, nodes, (4, *size), w=weight, b=f32(3 * group))


RESIZED = [
    {"mode": mode, "coordinate_transformation_mode": way}
    for mode in ("nearest", "linear", "cubic")
    for way in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
]
RESIZED += [{"nearest_mode": way} for way in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")]
RESIZED += [{"mode": "cubic", "cubic_coeff_a": -0.5}, {"mode": "cubic", "exclude_outside": 1}]


@pytest.mark.parametrize("attributes", RESIZED, ids=str)
def test_resize(tmp_path, attributes):
    for scales in ([1, 1, 2, 3], [1, 1, 1.5, 1], [1, 1, 0.5, 0.75]):
        scales = np.array(scales, np.float32)
        check(tmp_path, [node("Resize", "x - s", **attributes)], (2, 4, 4), s=scales)
    check(tmp_path, [node("Resize", "x - - z", **attributes)], (2, 4, 5), free=False, z=ints(1, 2, 7, 9))


def test_resize_before_opset_11(tmp_path):
    for mode in ("nearest", "linear"):
        check(tmp_path, [node("Resize", "x s", mode=mode)], (2, 3, 4), opset=10, s=np.array([1, 1, 2, 2], np.float32))
        check(tmp_path, [node("Upsample", "x s", mode=mode)], (2, 3, 4), opset=9, s=np.array([1, 1, 2, 3], np.float32))
        check(tmp_path, [node("Upsample", mode=mode, scales=[1.0, 1.0, 2.0, 2.0])], (2, 3, 4), opset=7)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(tmp_path, mode):
    check(tmp_path, [node("DepthToSpace", blocksize=2, mode=mode)], (8, 2, 3))
    check(tmp_path, [node("SpaceToDepth", blocksize=2)], (2, 4, 6))


def test_tile_expand_and_others(tmp_path):
    check(tmp_path, [node("Tile", "x r")], (3, 1), r=ints(1, 2, 3))
    check(tmp_path, [node("Expand", "x r")], (3, 1), r=ints(1, 3, 4))
    check(tmp_path, [node("Expand", "x r")], (3, 1), r=ints(1, 1, 4))
    check(tmp_path, [node("CumSum", "x a", exclusive=1, reverse=1)], (3, 4), a=np.int64(-1))
    check(tmp_path, [node("Trilu", "x k", upper=0)], (3, 4), opset=14, k=np.int64(1))
    check(tmp_path, [node("GlobalMaxPool")], (3, 4, 2))
    check(tmp_path, [node("Einsum", "x w", equation="bij,jk->bik")], (3, 4), w=f32(4, 2))
    check(
        tmp_path, [node("AveragePool", kernel_shape=[2, 2], dilations=[2, 1], pads=[1, 0, 1, 0])], (3, 5, 5), opset=19
    )
    check(tmp_path, [node("GatherND", "x i", batch_dims=1)], (3, 4), free=False, i=ints(2, -1, 0, 3).reshape(1, 2, 2))
    check(tmp_path, [node("Transpose", "x", "t", perm=[1, 0, 2]), node("GatherND", "t i", "g"),
        node("Transpose", "g", perm=[1, 0, 2])], (3, 4), i=ints(2, 0, 1, 2).reshape(4, 1))  # fmt: skip
    check(tmp_path, [node("GatherElements", "x i", axis=2)], (2, 3), free=False, i=ints(0, -1, 2, 1).reshape(1, 2, 2))


RECURRENT = [
    {}, {"direction": "reverse"}, {"direction": "bidirectional"}, {"clip": 0.3}, {"activations": True},
]  # fmt: skip


@pytest.mark.parametrize("attributes", RECURRENT, ids=str)
@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent(tmp_path, op, gates, attributes):
    size, sides = 3, 2 if attributes.get("direction") == "bidirectional" else 1
    if op == "LSTM":  # whose clip is refused
        attributes = {name: value for name, value in attributes.items() if name != "clip"}
    if attributes.get("activations"):
        chosen = {"RNN": ["Relu"], "GRU": ["Sigmoid", "Softsign"], "LSTM": ["Sigmoid", "Relu", "Tanh"]}[op]
        attributes = {"activations": chosen}
    constants = {
        "w": f32(sides, gates * size, 2),
        "r": f32(sides, gates * size, size),
        "b": f32(sides, 2 * gates * size),
    }
    constants["h"] = f32(sides, 1, size)
    names = "x_ w r b - h"
    if op == "LSTM":
        constants |= {"c": f32(sides, 1, size), "p": f32(sides, 3 * size)}
        names += " c p"
    turned = node("Transpose", "x", "x_", perm=[1, 0, 2])
    back = node("Transpose", "out", "y", perm=[2, 0, 1, 3])
    check(
        tmp_path,
        [turned, node(op, names, "out", hidden_size=size, **attributes), back],
        (4, 2),
        free=False,
        **constants,
    )
    last = [
        turned,
        node(op, names, "- last", hidden_size=size, **attributes),
        node("Transpose", "last", perm=[1, 0, 2]),
    ]
    check(tmp_path, last, (4, 2), free=False, **constants)
    plain = {name: constants[name] for name in ("w", "r")}
    check(tmp_path, [turned, node(op, "x_ w r", "out", hidden_size=size, **attributes), back], (4, 2), **plain)


@pytest.mark.parametrize("after", [0, 1])
def test_gru_with_its_reset_before_or_after(tmp_path, after):
    constants = {"w": f32(1, 9, 2), "r": f32(1, 9, 3), "b": f32(1, 18)}
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])]
    nodes += [node("GRU", "t w r b", "out", hidden_size=3, linear_before_reset=after), node("Squeeze", "out a", "s")]
    check(tmp_path, [*nodes, node("Transpose", "s", perm=[1, 0, 2])], (4, 2), a=ints(1), **constants)


def test_a_branch_that_is_known(tmp_path):
    info = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    branches = {
        "then_branch": helper.make_graph([node("Relu", "x", "t")], "then", [], info),
        "else_branch": helper.make_graph([node("Neg", "x", "t")], "else", [], info),
    }
    for choice in (True, False):
        check(tmp_path, [node("If", "c", **branches)], (4,), c=np.array(choice))


def test_sizes_that_are_the_same_for_all_batches_are_constants(tmp_path):
    nodes = [
        node("Shape", "x", "shape"), node("Gather", "shape two", "width"), node("Cast", "width", "wide", to=1),
        node("Sqrt", "wide", "root"), node("Div", "x root", "scaled"), node("Equal", "shape minus", "is"),
        node("ConstantOfShape", "three", "ones", value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Where", "is ones shape", "target"), node("Expand", "scaled target"),
    ]  # fmt: skip
    module = check(tmp_path, nodes, (3, 4), two=np.int64(2), minus=ints(-1), three=ints(3))
    assert "steps=4" in repr(module)


def test_dropout_and_cast_do_nothing(tmp_path):
    check(tmp_path, [node("Dropout", "x", "y mask")], (3,), opset=10)
    check(tmp_path, [node("Dropout", "x r")], (3,), r=f32_scalar(0.5))
    check(tmp_path, [node("Cast", to=TensorProto.FLOAT)], (3,))


def test_a_constant_is_computed_once(tmp_path):
    nodes = [
        constant("zeros", ints(4)),
        node("ConstantOfShape", "zeros", "none", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        node("Concat", "p none", "long", axis=0),
        node("Reshape", "long two", "matrix"),
        node("Slice", "matrix s e a t", "back"),
        node("Transpose", "back", "pairs", perm=[1, 0]),
        node("Reshape", "pairs flat", "pads"),
        node("Pad", "x pads"),
    ]
    numbers = {"p": ints(1, 1, 2, 0), "two": ints(-1, 2), "flat": ints(-1)}
    numbers |= {"s": ints(-1), "e": ints(-(2**63)), "a": ints(0), "t": ints(-1)}
    module = check(tmp_path, nodes, (2, 4, 5), opset=11, **numbers)
    assert "steps=1" in repr(module)


@pytest.mark.parametrize("size", ["gather", "slice"])
def test_a_shape_computed_from_the_batch_size(tmp_path, size):
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0) if size == "gather" else node("Slice", "shape s e", "ns"),
        node("Unsqueeze", "n s", "ns") if size == "gather" else node("Squeeze", "ns", "n"),
        node("Cast", "ns", "nc", to=TensorProto.INT64),
        node("Add", "nc two", "n2"),
        node("Sub", "n2 two", "n0"),
        node("Mul", "n0 two", "n4"),
        node("Div", "n4 two", "n5"),
        node("Concat", "n5 rest", "target", axis=0),
        node("Identity", "target", "same"),
        node("Reshape", "x same"),
    ]
    numbers = {"zero": np.int64(0), "s": ints(0), "e": ints(1), "two": ints(2), "rest": ints(-1)}
    check(tmp_path, nodes, (2, 3), **numbers)


@pytest.mark.parametrize("side", ["SAME_UPPER", "SAME_LOWER"])
def test_transposed_convolutions_that_reach_less_than_they_shall_are_refused(tmp_path, side):
    save(tmp_path / "a.onnx", [node("ConvTranspose", "x w", auto_pad=side, strides=[3])], (1, 1, 4), w=f32(1, 2, 2))
    with pytest.raises(ModelError, match="where the strides are larger than the window"):
        load_onnx(tmp_path / "a.onnx")


def test_pixels_that_rounding_chooses_are_refused(tmp_path):
    nodes = [node("Resize", "x - s", mode="nearest", nearest_mode="floor")]
    save(tmp_path / "a.onnx", nodes, (1, 1, 4), s=np.array([1, 1, 0.6], np.float32), opset=18)
    with pytest.raises(ModelError, match="other entries in float32"):
        load_onnx(tmp_path / "a.onnx")
