"""Which rule turns which operation into nodes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from holdfast.certify.bounds.relaxations import ROUNDED
from holdfast.certify.bounds.rules import (
    arithmetic,
    choosing,
    convolution,
    elementwise,
    moves,
    normalisation,
    pooling,
    products,
    recurrent,
    reductions,
    resampling,
    softmax,
    writing,
)
from holdfast.certify.bounds.rules.builder import Symbol

__all__ = ["CASTS", "LOGIC", "RULES"]


def _first_of(rule: Callable[..., Symbol]) -> Callable[..., list[Symbol]]:
    """A rule for the first of several values, the one that is of use."""
    return lambda *arguments, **more: [rule(*arguments, **more)]


Rule = Callable[..., Any]

LOGIC: dict[str, Rule] = {
    "bitwise_and.Tensor": choosing.conjunction,
    "bitwise_not.default": choosing.negation,
    "bitwise_or.Tensor": choosing.disjunction,
    "logical_and.default": choosing.conjunction,
    "logical_not.default": choosing.negation,
    "logical_or.default": choosing.disjunction,
}

# They say the type of their result in many ways, and it is that of their value.
CASTS = frozenset((
    "_to_copy.default", "to.device", "to.dtype", "to.dtype_layout", "to.other", "type_as.default",
))  # fmt: skip

RULES: dict[str, Rule] = {
    **LOGIC,
    **{f"{name}.default": partial(elementwise.in_steps, name) for name in ROUNDED},
    **{f"{name}.default": partial(elementwise.activation, name) for name in (
        "atan", "cos", "erf", "exp", "expm1", "hardswish", "log", "log1p", "reciprocal", "sigmoid", "sin",
        "sqrt", "square", "tanh",
    )},
    **dict.fromkeys((
        "_unsafe_view.default", "flatten.using_ints", "reshape.default", "squeeze.default", "squeeze.dim",
        "squeeze.dims", "unflatten.int", "unsqueeze.default", "view.default", "view_as.default",
    ), moves.reshape),
    **dict.fromkeys((
        "expand.default", "pixel_shuffle.default", "pixel_unshuffle.default", "permute.default", "repeat.default",
        "t.default", "transpose.int",
    ), moves.move),
    **dict.fromkeys((
        "flip.default", "index_select.default", "narrow.default",
    ), moves.along),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), reductions.sum_along),
    **dict.fromkeys(("mean.default", "sum.default"), reductions.sum_all),
    **dict.fromkeys((
        "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec",
        "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
    ), resampling.upsample_nearest),
    **dict.fromkeys((
        "upsample_bilinear2d.vec", "upsample_linear1d.vec", "upsample_trilinear3d.vec",
    ), resampling.upsample_linear),
    **{f"{kind}.input": partial(recurrent.unrolled, kind) for kind in recurrent.CELLS},
    **{
        f"{name}.{overload}": partial(choosing.compare, falling, reached)
        for name, falling, reached in (
            ("ge", False, True), ("gt", False, False), ("le", True, True), ("lt", True, False),
        )
        for overload in ("Scalar", "Tensor")
    },
    **{
        f"{name}.{overload}": partial(choosing.equal, same)
        for name, same in (("eq", True), ("ne", False)) for overload in ("Scalar", "Tensor")
    },
    **dict.fromkeys(("where.Scalar", "where.ScalarOther", "where.ScalarSelf", "where.self"), choosing.where),
    **dict.fromkeys(("masked_fill.Scalar", "masked_fill.Tensor"), choosing.masked_fill),
    **dict.fromkeys(("chunk.default", "split.Tensor", "split_with_sizes.default", "unbind.int"), moves.pieces),
    **dict.fromkeys((
        "alias.default", "clone.default", "contiguous.default", "detach.default", "detach_.default",
        "lift_fresh_copy.default",
    ), moves.unchanged),
    **dict.fromkeys((
        "fill.Scalar", "full_like.default", "new_full.default", "new_ones.default", "new_zeros.default",
        "ones_like.default", "zero.default", "zeros_like.default",
    ), writing.constant_like),
    **dict.fromkeys(("empty_like.default", "new_empty.default"), writing.blank),
    "_log_softmax.default": softmax.log_softmax,
    "_native_batch_norm_legit.no_stats": normalisation.batch_statistics,
    "_native_batch_norm_legit_no_training.default": _first_of(normalisation.batch_norm_in_evaluation),
    "_softmax.default": softmax.softmax,
    "abs.default": elementwise.absolute,
    "adaptive_avg_pool1d.default": partial(pooling.pool_average, 1),
    "adaptive_avg_pool2d.default": partial(pooling.pool_average, 2),
    "adaptive_avg_pool3d.default": partial(pooling.pool_average, 3),
    "adaptive_max_pool1d.default": _first_of(partial(pooling.adaptive_max_pool, 1)),
    "adaptive_max_pool2d.default": _first_of(partial(pooling.adaptive_max_pool, 2)),
    "adaptive_max_pool3d.default": _first_of(partial(pooling.adaptive_max_pool, 3)),
    "add.Scalar": arithmetic.add,
    "add.Tensor": arithmetic.add,
    "addmm.default": products.addmm,
    "amax.default": partial(reductions.max_along, 1),
    "amin.default": partial(reductions.max_along, -1),
    "avg_pool1d.default": partial(pooling.pool_average, 1),
    "avg_pool2d.default": partial(pooling.pool_average, 2),
    "avg_pool3d.default": partial(pooling.pool_average, 3),
    "baddbmm.default": products.baddbmm,
    "batch_norm.default": normalisation.batch_norm,
    "bmm.default": products.matmul,
    "cat.default": moves.join,
    "celu.default": elementwise.celu,
    "clamp.Tensor": elementwise.clamp_between,
    "clamp.default": elementwise.clamp,
    "clamp_max.default": elementwise.clamp_max,
    "clamp_min.default": elementwise.clamp,
    "constant_pad_nd.default": moves.pad,
    "conv1d.default": partial(convolution.convolution, 1),
    "conv1d.padding": partial(convolution.convolution, 1),
    "conv2d.default": partial(convolution.convolution, 2),
    "conv2d.padding": partial(convolution.convolution, 2),
    "conv3d.default": partial(convolution.convolution, 3),
    "conv3d.padding": partial(convolution.convolution, 3),
    "conv_transpose1d.default": partial(convolution.transposed_convolution, 1),
    "conv_transpose2d.input": partial(convolution.transposed_convolution, 2),
    "conv_transpose3d.input": partial(convolution.transposed_convolution, 3),
    "convolution.default": convolution.general_convolution,
    "copy.default": partial(writing.placed, (0, 1), ()),
    "diagonal.default": partial(writing.placed, (0,), (2, 3)),
    "diagonal_scatter.default": partial(writing.placed, (0, 1), (3, 4)),
    "cumsum.default": reductions.sum_up,
    "div.Scalar": arithmetic.divide,
    "div.Tensor": arithmetic.divide,
    "dropout.default": moves.dropout,
    "elu.default": elementwise.elu,
    "feature_dropout.default": moves.dropout,
    "fill.Tensor": partial(writing.placed, (0, 1), ()),
    "gelu.default": elementwise.gelu,
    "getitem": moves.item,
    "group_norm.default": normalisation.group_norm,
    "hardshrink.default": choosing.hardshrink,
    "hardsigmoid.default": elementwise.hardsigmoid,
    "hardtanh.default": elementwise.hardtanh,
    "index.Tensor": moves.indexed,
    "index_fill.int_Scalar": partial(writing.placed, (0, 3), (1,)),
    "index_put.default": writing.index_put,
    "instance_norm.default": normalisation.instance_norm,
    "layer_norm.default": normalisation.layer_norm,
    "leaky_relu.default": elementwise.leaky_relu,
    "linalg_vector_norm.default": reductions.norm,
    "linear.default": products.linear,
    "log_sigmoid.default": partial(elementwise.activation, "logsigmoid"),
    "log_softmax.int": softmax.log_softmax,
    "logsumexp.default": softmax.log_sum_exp,
    "matmul.default": products.matmul,
    "max.dim": _first_of(partial(reductions.max_along, 1)),
    "max.other": arithmetic.maximum,
    "max_pool1d.default": partial(pooling.max_pool, 1),
    "max_pool2d.default": partial(pooling.max_pool, 2),
    "max_pool2d_with_indices.default": _first_of(partial(pooling.max_pool, 2)),
    "max_pool3d.default": pooling.max_pool_3d,
    "maximum.default": arithmetic.maximum,
    "min.dim": _first_of(partial(reductions.max_along, -1)),
    "min.other": arithmetic.minimum,
    "minimum.default": arithmetic.minimum,
    "mish.default": elementwise.mish,
    "mm.default": products.matmul,
    "mul.Scalar": arithmetic.multiply,
    "mul.Tensor": arithmetic.multiply,
    "native_layer_norm.default": _first_of(normalisation.layer_norm),
    "neg.default": arithmetic.negate,
    "pad.default": moves.pad,
    "pow.Tensor_Scalar": elementwise.power,
    "prelu.default": elementwise.prelu,
    "relu.default": elementwise.relu,
    "relu6.default": partial(elementwise.clamp, low=0.0, high=6.0),
    "relu_.default": elementwise.relu,
    "round.decimals": partial(elementwise.in_steps, "round"),
    "rsqrt.default": elementwise.reciprocal_root,
    "rsub.Scalar": arithmetic.reverse_subtract,
    "scaled_dot_product_attention.default": softmax.attention,
    "select.int": moves.select,
    "selu.default": elementwise.selu,
    "select_scatter.default": partial(writing.placed, (0, 1), (2,)),
    "sign.default": choosing.sign,
    "silu.default": elementwise.silu,
    "slice.Tensor": moves.sliced,
    "slice_scatter.default": writing.slice_scatter,
    "softmax.int": softmax.softmax,
    "softplus.default": elementwise.softplus,
    "softshrink.default": elementwise.softshrink,
    "stack.default": moves.join,
    "sub.Scalar": arithmetic.subtract,
    "sub.Tensor": arithmetic.subtract,
    "std.correction": normalisation.deviation_along,
    "threshold.default": choosing.threshold,
    "truediv.Tensor": arithmetic.divide,
    "var.correction": normalisation.variance_along,
}  # fmt: skip
