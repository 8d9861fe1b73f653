"""How each operation of an exported program becomes nodes of a graph.

A rule takes a :class:`Builder` and the operation's arguments, in which :class:`Symbol` stands for what depends on the
network's input. To support another operation, write a rule and name it in the table at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.certify.graph import Node, Operation
from holdfast.certify.operations.activation import Elementwise
from holdfast.certify.operations.convolution import Convolution
from holdfast.certify.operations.linear import Dense, Monotone, Scale, Sum, Weighted
from holdfast.certify.operations.pooling import MaxPool
from holdfast.certify.operations.product import MatrixProduct, Product
from holdfast.certify.operations.relu import ReLU
from holdfast.certify.relaxations import ACTIVATIONS, Activation, clamp, gelu, leaky_relu
from holdfast.errors import ModelError

__all__ = ["RULES", "Builder", "Symbol"]

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Symbol:
    """A value that depends on the network's input: a node of the graph, and the shape of one example of it."""

    node: int
    shape: Shape


@dataclass(frozen=True)
class Builder:
    """The graph so far.

    Parameters
    ----------
    rows : int
        The batch size of the exported example.
    nodes : list of Node
        In topological order.
    name : str
        What the nodes added next come from.
    shape : tuple of int
        The shape of that value, ``(rows, ...)``.
    """

    rows: int
    nodes: list[Node] = field(default_factory=list)
    name: str = ""
    shape: Shape = ()

    def at(self, name: str, shape: Shape) -> Builder:
        """The same graph, while another operation is turned into nodes."""
        return replace(self, name=name, shape=shape)

    def input(self, shape: Shape) -> Symbol:
        """Add the network's input."""
        self.nodes.append(Node("input", None, (), shape))
        return Symbol(0, shape)

    def add(self, operation: Operation, *inputs: Symbol, shape: Shape | None = None) -> Symbol:
        """Add a node; its shape is that of the exported value unless it is given."""
        if shape is None:
            if not self.shape or self.shape[0] != self.rows:
                raise ModelError("its rows cannot be told apart; the first dimension must stay the batch")
            shape = self.shape[1:]
        self.nodes.append(Node(self.name, operation, tuple(symbol.node for symbol in inputs), shape))
        return Symbol(len(self.nodes) - 1, shape)

    def dimension(self, dim: int, rank: int) -> int:
        """A dimension counted from the front; the batch is none that an operation may work along."""
        dim = dim % (rank + 1)
        if dim == 0:
            raise ModelError("it works along the batch; bounds need independent rows")
        return dim

    def expanded(self, symbol: Symbol, shape: Shape) -> Symbol:
        """The value broadcast to the shape of one example."""
        if symbol.shape == shape:
            return symbol
        padded = (1,) * (len(shape) - len(symbol.shape)) + symbol.shape
        return self.add(Monotone(partial(_expand, padded=padded, shape=shape)), symbol, shape=shape)


def _expand(x: Tensor, padded: Shape, shape: Shape) -> Tensor:
    return x.reshape(len(x), *padded).expand(len(x), *shape)


def _example(builder: Builder, value: Tensor | float, shape: Shape) -> Tensor:
    """A constant, broadcast to the shape of one example."""
    constant = torch.as_tensor(value)
    if constant.dim() > len(shape):
        if constant.shape[0] != 1 and not torch.equal(constant, constant[:1].expand_as(constant)):
            raise ModelError("its constant differs from row to row")
        constant = constant[0]
    if not constant.is_floating_point():
        constant = constant.float()
    return constant.expand(shape).contiguous()


def _add(builder: Builder, a: Any, b: Any, sign: int = 1, *, alpha: float = 1) -> Symbol:
    shape = builder.shape[1:]
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if alpha != 1:
            b = _scaled(builder, b, alpha, 0.0)
        return builder.add(Sum((1, sign)), builder.expanded(a, shape), builder.expanded(b, shape))
    if isinstance(a, Symbol):
        return _scaled(builder, builder.expanded(a, shape), 1.0, _times(b, sign * alpha))
    return _scaled(builder, builder.expanded(b, shape), sign * alpha, a)


def _times(value: Any, factor: float) -> Any:
    return value if factor == 1 else value * factor


def _scaled(builder: Builder, x: Symbol, factor: Tensor | float, shift: Tensor | float) -> Symbol:
    constants = (_example(builder, value, x.shape) for value in (factor, shift))
    factor, shift = _same_dtype(*constants)
    return builder.add(Scale(factor, shift), x, shape=x.shape)


def _same_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _subtract(builder: Builder, a: Any, b: Any, *, alpha: float = 1) -> Symbol:
    return _add(builder, a, b, -1, alpha=alpha)


def _reverse_subtract(builder: Builder, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _add(builder, b, a, -1, alpha=alpha)


def _multiply(builder: Builder, a: Any, b: Any) -> Symbol:
    shape = builder.shape[1:]
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if a == b:
            return builder.add(Elementwise(ACTIVATIONS["square"]), a)
        return builder.add(Product(), builder.expanded(a, shape), builder.expanded(b, shape))
    x, constant = (a, b) if isinstance(a, Symbol) else (b, a)
    return _scaled(builder, builder.expanded(x, shape), constant, 0.0)


def _divide(builder: Builder, a: Any, b: Any) -> Symbol:
    if not isinstance(b, Symbol):
        return _multiply(builder, a, 1 / torch.as_tensor(b))
    inverse = builder.add(Elementwise(ACTIVATIONS["reciprocal"]), b, shape=b.shape)
    return _multiply(builder, a, inverse)


def _negate(builder: Builder, x: Symbol) -> Symbol:
    return _scaled(builder, x, -1.0, 0.0)


def _power(builder: Builder, x: Any, exponent: Any) -> Symbol:
    known = {2: "square", 0.5: "sqrt", -1: "reciprocal"}
    if not isinstance(x, Symbol) or isinstance(exponent, Symbol) or float(exponent) not in known:
        raise ModelError("powers are bounded for the exponents 2, 0.5 and -1 only")
    return builder.add(Elementwise(ACTIVATIONS[known[float(exponent)]]), x)


def _reciprocal_root(builder: Builder, x: Symbol) -> Symbol:
    root = builder.add(Elementwise(ACTIVATIONS["sqrt"]), x)
    return builder.add(Elementwise(ACTIVATIONS["reciprocal"]), root)


def _linear(builder: Builder, x: Any, weight: Any, bias: Any = None) -> Symbol:
    if isinstance(weight, Symbol) or isinstance(bias, Symbol):
        raise ModelError("its weight depends on the input")
    return builder.add(Dense(weight, bias), x)


def _addmm(builder: Builder, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Symbol:
    if not isinstance(x, Symbol) or isinstance(weight, Symbol) or isinstance(bias, Symbol):
        raise ModelError("only a product of the input with constants is bounded")
    return builder.add(Dense(_times(weight, alpha).t(), _times(bias, beta)), x)


def _matmul(builder: Builder, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return builder.add(MatrixProduct(), a, b)
    if isinstance(a, Symbol):
        if b.dim() == 2:
            return builder.add(Dense(b.t(), None), a)
        return builder.add(Weighted(torch.matmul, b, None), a)
    if len(b.shape) < 2:
        raise ModelError("a product of a constant with vectors, one a row, mixes the rows")
    return builder.add(Weighted(_from_left, a, None), b)


def _from_left(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(weight, x)


def _convolution(
    dimensions: int,
    builder: Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Symbol:
    if isinstance(weight, Symbol) or isinstance(bias, Symbol):
        raise ModelError("its weight depends on the input")
    if isinstance(padding, str):
        padding = (
            [d * (k - 1) // 2 for d, k in zip(_sizes(dilation, dimensions), weight.shape[2:], strict=True)]
            if (padding == "same")
            else 0
        )
        if any(k % 2 == 0 for k in weight.shape[2:]) and padding != 0:
            raise ModelError("padding 'same' with an even kernel is uneven; write the padding as numbers")
    geometry = [_sizes(value, dimensions) for value in (stride, padding, dilation)]
    if dimensions == 2:
        pairs = [(a, b) for a, b in geometry]
        return builder.add(Convolution(weight, bias, pairs[0], pairs[1], pairs[2], groups), x)
    function = functional.conv1d if dimensions == 1 else functional.conv3d
    convolve = partial(
        _weighted, function=function, stride=geometry[0], padding=geometry[1], dilation=geometry[2], groups=groups
    )
    return builder.add(Weighted(convolve, weight, _per_channel(bias, builder.shape[1:])), x)


def _transposed_convolution(
    dimensions: int,
    builder: Builder,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Symbol:
    function = functional.conv_transpose1d if dimensions == 1 else functional.conv_transpose2d
    names = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    settings = {name: tuple(_sizes(value, dimensions)) for name, value in names.items()}
    convolve = partial(_weighted, function=function, groups=groups, **settings)
    return builder.add(Weighted(convolve, weight, _per_channel(bias, builder.shape[1:])), x)


def _general_convolution(
    builder: Builder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Symbol:  # fmt: skip
    dimensions = len(builder.shape) - 2
    if transposed:
        return _transposed_convolution(
            dimensions, builder, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _convolution(dimensions, builder, x, weight, bias, stride, padding, dilation, groups)


def _weighted(x: Tensor, weight: Tensor, *, function: Callable[..., Tensor], **settings: Any) -> Tensor:
    return function(x, weight, None, **settings)


def _per_channel(bias: Tensor | None, shape: Shape) -> Tensor | None:
    return None if bias is None else bias.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()


def _sizes(value: Any, dimensions: int) -> list[int]:
    if isinstance(value, int):
        return [value] * dimensions
    return list(value) * dimensions if len(value) == 1 else list(value)


def _batch_norm(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> Symbol:  # fmt: skip
    if training or mean is None or var is None:
        raise ModelError("it normalises by the statistics of the batch, which ties the rows together")
    factor = 1 / (var + eps).sqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    shape = builder.shape[1:]
    factor, shift = (value.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) for value in (factor, shift))
    return builder.add(Scale(factor.contiguous(), shift.contiguous()), x)


def _max_pool(
    builder: Builder,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Symbol:
    stride = stride if stride not in ((), []) else kernel
    pairs = [tuple(_sizes(value, 2)) for value in (kernel, stride, padding, dilation)]
    return builder.add(MaxPool(*((a, b) for a, b in pairs), ceil_mode), x)


def _max_pool_with_indices(builder: Builder, x: Any, *settings: Any) -> list[Symbol]:
    shape = builder.shape
    if not shape:
        raise ModelError("the indices of a max pooling are not bounded")
    return [_max_pool(builder, x, *settings)]


def _max_pool_1d(
    builder: Builder,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Symbol:
    stride = stride if stride not in ((), []) else kernel
    channels, length = x.shape
    image = builder.add(Monotone(_as_image), x, shape=(channels, 1, length))
    (k,), (s,), (p,), (d,) = (_sizes(value, 1) for value in (kernel, stride, padding, dilation))
    pooled = builder.add(
        MaxPool((1, k), (1, s), (0, p), (1, d), ceil_mode), image, shape=(channels, 1, builder.shape[-1])
    )
    return builder.add(Monotone(_as_signal), pooled)


def _as_image(x: Tensor) -> Tensor:
    return x.unsqueeze(2)


def _as_signal(x: Tensor) -> Tensor:
    return x.squeeze(2)


def _activation(name: str, builder: Builder, x: Any) -> Symbol:
    return builder.add(Elementwise(ACTIVATIONS[name]), x)


def _made(make: Callable[..., Activation], builder: Builder, x: Any, *settings: Any, **more: Any) -> Symbol:
    return builder.add(Elementwise(make(*settings, **more)), x)


def _clamp(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    if low == 0 and high is None:
        return builder.add(ReLU(), x)
    low, high = (bound if bound is None else float(bound) for bound in (low, high))
    return builder.add(Elementwise(clamp(-math.inf if low is None else low, math.inf if high is None else high)), x)


def _softmax(builder: Builder, x: Any, dim: int, *_: Any) -> Symbol:
    """``1 / sum_j exp(z_j - z_k)``: no product, and differences that are exact."""
    dim = builder.dimension(dim, len(x.shape))
    place = dim - 1
    pairs = (*x.shape, x.shape[place])
    others = builder.add(Monotone(partial(_others, dim=dim)), x, shape=pairs)
    own = builder.add(Monotone(partial(_own, count=pairs[-1])), x, shape=pairs)
    differences = builder.add(Sum((1, -1)), others, own, shape=pairs)
    powers = builder.add(Elementwise(ACTIVATIONS["exp"]), differences, shape=pairs)
    total = builder.add(Monotone(partial(torch.sum, dim=-1)), powers, shape=x.shape)
    return builder.add(Elementwise(ACTIVATIONS["reciprocal"]), total)


def _others(x: Tensor, dim: int) -> Tensor:
    return x.movedim(dim, -1).unsqueeze(dim).expand(*x.shape, x.shape[dim])


def _own(x: Tensor, count: int) -> Tensor:
    return x.unsqueeze(-1).expand(*x.shape, count)


def _moved(function: Callable[..., Tensor], builder: Builder, x: Any, *settings: Any, **more: Any) -> Symbol:
    """Any linear move of values whose settings do not name the batch."""
    return builder.add(Monotone(partial(_with, function=function, settings=settings, more=more)), x)


def _with(x: Tensor, function: Callable[..., Tensor], settings: tuple[Any, ...], more: dict[str, Any]) -> Tensor:
    return function(x, *settings, **more)


def _along(function: Callable[..., Tensor], builder: Builder, x: Any, dim: int = 0, *settings: Any) -> Symbol:
    """A move along one dimension."""
    return _moved(function, builder, x, builder.dimension(dim, len(x.shape)), *settings)


def _reshape(builder: Builder, x: Any, *_: Any, **__: Any) -> Symbol:
    shape = builder.shape[1:]
    if builder.shape[0] != builder.rows:
        raise ModelError("it mixes the batch with other dimensions")
    return builder.add(Monotone(partial(_reshaped, shape=shape), separate=True), x)


def _reshaped(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape(len(x), *shape)


def _expanded(builder: Builder, x: Any, *_: Any, **__: Any) -> Symbol:
    return builder.expanded(x, builder.shape[1:])


def _permute(builder: Builder, x: Any, dims: Any) -> Symbol:
    dims = [dim % (len(x.shape) + 1) for dim in dims]
    if dims[0] != 0:
        raise ModelError("it moves the batch")
    return _moved(torch.permute, builder, x, dims)


def _transpose(builder: Builder, x: Any, a: int, b: int) -> Symbol:
    rank = len(x.shape)
    return _moved(torch.transpose, builder, x, builder.dimension(a, rank), builder.dimension(b, rank))


def _reduce(
    function: Callable[..., Tensor], builder: Builder, x: Any, dims: Any = None, keep: bool = False, **_: Any
) -> Symbol:
    rank = len(x.shape)
    if dims is None or dims == []:
        raise ModelError("it sums over the batch")
    dims = [builder.dimension(dim, rank) for dim in ([dims] if isinstance(dims, int) else dims)]
    return _moved(function, builder, x, dims, keep)


def _slice(builder: Builder, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Symbol:
    dim = dim % (len(x.shape) + 1)
    if dim == 0:
        if builder.shape[0] != builder.rows:
            raise ModelError("it takes some rows of the batch")
        return x
    return _moved(torch.ops.aten.slice.Tensor, builder, x, dim, start, end, step)


def _index(builder: Builder, x: Any, indices: Any) -> Symbol:
    if any(isinstance(index, Symbol) for index in indices) or indices[0] is not None:
        raise ModelError("it picks rows of the batch, or by values that depend on the input")
    return _moved(torch.ops.aten.index.Tensor, builder, x, list(indices))


def _pad(builder: Builder, x: Any, amounts: Any, *rest: Any) -> Symbol:
    mode, value = ("constant", rest[0] if rest else 0.0) if not rest or not isinstance(rest[0], str) else (
        rest[0], rest[1] if len(rest) > 1 else None
    )  # fmt: skip
    if len(amounts) > 2 * len(x.shape):
        raise ModelError("it pads the batch")
    if mode == "constant":
        return _moved(functional.pad, builder, x, list(amounts), "constant", 0.0 if value is None else value)
    return _moved(functional.pad, builder, x, list(amounts), mode)


def _concat(builder: Builder, tensors: Any, dim: int = 0) -> Symbol:
    symbols = [tensor for tensor in tensors if isinstance(tensor, Symbol)]
    dim = builder.dimension(dim, len(builder.shape) - 1)
    places = [None if isinstance(tensor, Symbol) else tensor[:1] for tensor in tensors]
    return builder.add(Monotone(partial(_joined, places=places, dim=dim, function=torch.cat)), *symbols)


def _stack(builder: Builder, tensors: Any, dim: int = 0) -> Symbol:
    symbols = [tensor for tensor in tensors if isinstance(tensor, Symbol)]
    dim = builder.dimension(dim, len(builder.shape) - 1)
    places = [None if isinstance(tensor, Symbol) else tensor[:1] for tensor in tensors]
    return builder.add(Monotone(partial(_joined_stack, places=places, dim=dim)), *symbols)


def _filled(inputs: tuple[Tensor, ...], places: list[Tensor | None]) -> list[Tensor]:
    """The tensors to join: the inputs in order, constants in their places, a row of them for every row."""
    given = iter(inputs)
    rows = len(inputs[0])
    return [
        next(given) if place is None else place.to(inputs[0].dtype).expand(rows, *place.shape[1:]) for place in places
    ]


def _joined(*inputs: Tensor, places: list[Tensor | None], dim: int, function: Callable[..., Tensor]) -> Tensor:
    return function(_filled(inputs, places), dim)


def _joined_stack(*inputs: Tensor, places: list[Tensor | None], dim: int) -> Tensor:
    return torch.stack(_filled(inputs, places), dim)


def _split(builder: Builder, x: Any, size: Any, dim: int = 0) -> list[Symbol]:
    dim = builder.dimension(dim, len(x.shape))
    length = x.shape[dim - 1]
    sizes = [size] * (length // size) + ([length % size] if length % size else []) if isinstance(size, int) else size
    parts, start = [], 0
    for part in sizes:
        shape = (*x.shape[: dim - 1], part, *x.shape[dim:])
        cut = partial(_with, function=torch.narrow, settings=(dim, start, part), more={})
        parts.append(builder.add(Monotone(cut), x, shape=shape))
        start += part
    return parts


def _chunk(builder: Builder, x: Any, count: int, dim: int = 0) -> list[Symbol]:
    place = builder.dimension(dim, len(x.shape)) - 1
    return _split(builder, x, -(-x.shape[place] // count), dim)


def _get(builder: Builder, parts: list[Symbol], place: int) -> Symbol:
    if place >= len(parts):
        raise ModelError("the indices of a max pooling are not bounded")
    return parts[place]


def _same(builder: Builder, x: Any, *_: Any, **__: Any) -> Symbol:
    return x if isinstance(x, Symbol) else x[0]


def _dropout(builder: Builder, x: Any, probability: float, train: bool) -> Symbol:
    if train and probability > 0:
        raise ModelError("it drops values at random")
    return _same(builder, x)


def _adaptive_average(builder: Builder, x: Any, size: Any) -> Symbol:
    return _moved(functional.adaptive_avg_pool2d, builder, x, tuple(size))


def _adaptive_average_1d(builder: Builder, x: Any, size: Any) -> Symbol:
    return _moved(functional.adaptive_avg_pool1d, builder, x, tuple(size))


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.mean(dims, keepdim=keep)


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep)


def _gelu(builder: Builder, x: Any, *, approximate: str = "none") -> Symbol:
    return builder.add(Elementwise(gelu(approximate)), x)


Rule = Callable[..., Any]

RULES: dict[str, Rule] = {
    "_softmax.default": _softmax,
    "abs.default": partial(_activation, "abs"),
    "adaptive_avg_pool1d.default": _adaptive_average_1d,
    "adaptive_avg_pool2d.default": _adaptive_average,
    "add.Tensor": _add,
    "addmm.default": _addmm,
    "alias.default": _same,
    "avg_pool1d.default": partial(_moved, functional.avg_pool1d),
    "avg_pool2d.default": partial(_moved, functional.avg_pool2d),
    "batch_norm.default": _batch_norm,
    "bmm.default": _matmul,
    "cat.default": _concat,
    "chunk.default": _chunk,
    "clamp.default": _clamp,
    "clamp_min.default": _clamp,
    "clone.default": _same,
    "constant_pad_nd.default": _pad,
    "contiguous.default": _same,
    "conv1d.default": partial(_convolution, 1),
    "conv1d.padding": partial(_convolution, 1),
    "conv2d.default": partial(_convolution, 2),
    "conv2d.padding": partial(_convolution, 2),
    "conv3d.default": partial(_convolution, 3),
    "conv_transpose1d.default": partial(_transposed_convolution, 1),
    "conv_transpose2d.input": partial(_transposed_convolution, 2),
    "convolution.default": _general_convolution,
    "detach.default": _same,
    "detach_.default": _same,
    "div.Tensor": _divide,
    "dropout.default": _dropout,
    "exp.default": partial(_activation, "exp"),
    "expand.default": _expanded,
    "feature_dropout.default": _dropout,
    "flatten.using_ints": _reshape,
    "flip.default": lambda builder, x, dims: _moved(
        torch.flip, builder, x, [builder.dimension(dim, len(x.shape)) for dim in dims]
    ),
    "gelu.default": _gelu,
    "getitem": _get,
    "hardtanh.default": lambda builder, x, low=-1.0, high=1.0: _clamp(builder, x, low, high),
    "index.Tensor": _index,
    "leaky_relu.default": lambda builder, x, slope=0.01: _made(leaky_relu, builder, x, slope),
    "lift_fresh_copy.default": _same,
    "linear.default": _linear,
    "log.default": partial(_activation, "log"),
    "matmul.default": _matmul,
    "max_pool1d.default": _max_pool_1d,
    "max_pool2d.default": _max_pool,
    "max_pool2d_with_indices.default": _max_pool_with_indices,
    "mean.dim": partial(_reduce, _mean),
    "mm.default": _matmul,
    "mul.Scalar": _multiply,
    "mul.Tensor": _multiply,
    "neg.default": _negate,
    "pad.default": _pad,
    "permute.default": _permute,
    "pow.Tensor_Scalar": _power,
    "reciprocal.default": partial(_activation, "reciprocal"),
    "relu.default": lambda builder, x: builder.add(ReLU(), x),
    "relu6.default": lambda builder, x: _clamp(builder, x, 0.0, 6.0),
    "relu_.default": lambda builder, x: builder.add(ReLU(), x),
    "reshape.default": _reshape,
    "rsqrt.default": _reciprocal_root,
    "rsub.Scalar": _reverse_subtract,
    "select.int": partial(_along, torch.select),
    "sigmoid.default": partial(_activation, "sigmoid"),
    "silu.default": partial(_activation, "silu"),
    "slice.Tensor": _slice,
    "softmax.int": _softmax,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "sqrt.default": partial(_activation, "sqrt"),
    "square.default": partial(_activation, "square"),
    "squeeze.default": _reshape,
    "squeeze.dim": _reshape,
    "squeeze.dims": _reshape,
    "stack.default": _stack,
    "sub.Tensor": _subtract,
    "sum.dim_IntList": partial(_reduce, _sum),
    "t.default": lambda builder, x: _transpose(builder, x, 0, 1),
    "tanh.default": partial(_activation, "tanh"),
    "transpose.int": _transpose,
    "truediv.Tensor": _divide,
    "unbind.int": lambda builder, x, dim=0: _unbind(builder, x, dim),
    "unflatten.int": _reshape,
    "unsqueeze.default": _reshape,
    "upsample_nearest2d.vec": partial(_moved, torch.ops.aten.upsample_nearest2d.vec),
    "view.default": _reshape,
    "_unsafe_view.default": _reshape,
}


def _unbind(builder: Builder, x: Any, dim: int) -> list[Symbol]:
    dim = builder.dimension(dim, len(x.shape))
    shape = (*x.shape[: dim - 1], *x.shape[dim:])
    return [
        builder.add(Monotone(partial(_with, function=torch.select, settings=(dim, place), more={})), x, shape=shape)
        for place in range(x.shape[dim - 1])
    ]
