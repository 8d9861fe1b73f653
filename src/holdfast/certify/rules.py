"""How each operation of an exported program becomes nodes of a graph.

A rule takes a :class:`Builder` and the operation's arguments, in which :class:`Symbol` stands for what depends on the
network's input. To support another operation, write a rule and name it in the table at the end.

Programs are exported for a batch of one. Wherever they carry that dimension, what else is there belongs to the one
example, so nothing has to be known of where a network moves its batch, or what it merges it with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional

from holdfast.certify.graph import Interval, Node, Operation
from holdfast.certify.operations.activation import Elementwise
from holdfast.certify.operations.convolution import Convolution
from holdfast.certify.operations.kink import Kink, relu
from holdfast.certify.operations.linear import Dense, Monotone, Scale, Sum, Weighted
from holdfast.certify.operations.logsumexp import LogSumExp
from holdfast.certify.operations.pooling import MaxPool
from holdfast.certify.operations.product import MatrixProduct, Product
from holdfast.certify.relaxations import ACTIVATIONS, Activation, clamp, gelu, power, silu
from holdfast.certify.rounding import largest
from holdfast.errors import ModelError

__all__ = ["RULES", "Builder", "Symbol"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Symbol:
    """A value that depends on the network's input.

    Parameters
    ----------
    node : int
        Its node in the graph.
    shape : tuple of int
        Its shape in the exported program. The node's is the same without a leading 1, which is the batch.
    """

    node: int
    shape: Shape


def example_shape(shape: Shape) -> Shape:
    """The shape of one example of a value; a single number has one dimension."""
    return (shape[1:] if shape[:1] == (1,) else shape) or (1,)


@dataclass(frozen=True)
class Builder:
    """The graph so far.

    Parameters
    ----------
    dtype : torch.dtype
        The precision of the network.
    nodes : list of Node
        In topological order.
    name : str
        What the nodes added next come from.
    target : callable
        The operation that they come from.
    shape : tuple of int
        The shape of its value in the exported program, or of the first of several.
    executed : bool
        Whether the network that runs computes the values of the nodes added next, and not only what comes of them.
    """

    dtype: torch.dtype
    nodes: list[Node] = field(default_factory=list)
    name: str = ""
    target: Callable[..., Any] = torch.clone
    shape: Shape = ()
    executed: bool = True

    def at(self, name: str, target: Callable[..., Any], shape: Shape) -> Builder:
        """The same graph, while another operation is turned into nodes."""
        return replace(self, name=name, target=target, shape=shape)

    def between(self) -> Builder:
        """The same graph, for steps that the network does not make one by one."""
        return replace(self, executed=False)

    def input(self, shape: Shape) -> Symbol:
        """Add the network's input."""
        self.nodes.append(Node("input", None, (), example_shape(shape)))
        return Symbol(0, shape)

    def add(
        self,
        operation: Operation,
        *inputs: Symbol,
        shape: Shape | None = None,
        error: Callable[..., Tensor] | None = None,
        also: Sequence[Symbol] = (),
    ) -> Symbol:
        """Add a node; its shape is that of the exported value unless it is given."""
        shape = self.shape if shape is None else shape
        reads, further = (tuple(symbol.node for symbol in symbols) for symbols in (inputs, also))
        self.nodes.append(Node(self.name, operation, reads, example_shape(shape), self.executed, error, further))
        return Symbol(len(self.nodes) - 1, shape)

    def move(
        self, function: Callable[..., Tensor], *inputs: Symbol, shape: Shape | None = None, terms: int = 1
    ) -> Symbol:
        """Add a linear operation without negative coefficients, given as it acts on exported values.

        It sums at most that many terms.
        """
        shape = self.shape if shape is None else shape
        shapes = tuple(symbol.shape for symbol in inputs)
        each = partial(_each, function=function, shapes=shapes, shape=example_shape(shape))
        return self.add(Monotone(each, terms=terms), *inputs, shape=shape)

    def reshaped(self, x: Symbol, shape: Shape) -> Symbol:
        """The same numbers in another shape."""
        if example_shape(x.shape) == example_shape(shape):
            return Symbol(x.node, shape)
        return self.add(Monotone(partial(_reshaped, shape=example_shape(shape)), separate=True), x, shape=shape)

    def broadcast(self, x: Symbol, shape: Shape) -> Symbol:
        return x if x.shape == shape else self.move(partial(torch.broadcast_to, size=shape), x, shape=shape)

    def constant(self, value: Tensor | float, shape: Shape) -> Tensor:
        """A constant, broadcast to the shape of an exported value, as one example of it."""
        tensor = torch.as_tensor(value, dtype=self.dtype)
        return tensor.expand(shape).reshape(example_shape(shape)).contiguous()


def _each(*inputs: Tensor, function: Callable[..., Tensor], shapes: tuple[Shape, ...], shape: Shape) -> Tensor:
    """The function of each example by itself."""
    whole = [x.reshape(len(x), *exported) for x, exported in zip(inputs, shapes, strict=True)]
    return _reshaped(torch.func.vmap(function)(*whole), shape)


def _reshaped(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape(len(x), *shape)


# Arithmetic


def _add(builder: Builder, a: Any, b: Any, sign: int = 1, *, alpha: float = 1) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if alpha != 1:
            b = _scaled(builder, b, alpha, 0.0)
        return builder.add(Sum((1, sign)), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    if isinstance(a, Symbol):
        return _scaled(builder, builder.broadcast(a, builder.shape), 1.0, b * (sign * alpha))
    return _scaled(builder, builder.broadcast(b, builder.shape), sign * alpha, a)


# Of a batch normalisation, whichever way it is computed: a root, a quotient, products and sums.
_NORMALISED = 12
# Roundings of a factor, of a shift, of their product with a value and of the sum; and some to spare.
_SCALED = 6


def _scaled(
    builder: Builder,
    x: Symbol,
    factor: Tensor | float,
    shift: Tensor | float,
    *,
    size: Tensor | float | None = None,
    roundings: int = _SCALED,
) -> Symbol:
    """``factor * x + shift``; the shift is made of terms whose sizes add up to ``size``."""
    factor, shift = builder.constant(factor, x.shape), builder.constant(shift, x.shape)
    size = shift.abs() if size is None else builder.constant(size, x.shape)
    before = builder.nodes[x.node]
    first = before.operation
    # Such as the two steps of a normalisation: one pass will do, if nothing between them is larger than what comes out.
    if isinstance(first, Scale) and before.executed == builder.executed and bool((factor.abs() >= 1).all()):
        size = first.size * factor.abs() + size
        roundings += first.roundings
        factor, shift = first.factor * factor, first.shift * factor + shift
        x = Symbol(before.inputs[0], x.shape)
    return builder.add(Scale(factor, shift, size, roundings), x, shape=x.shape)


def _subtract(builder: Builder, a: Any, b: Any, *, alpha: float = 1) -> Symbol:
    return _add(builder, a, b, -1, alpha=alpha)


def _reverse_subtract(builder: Builder, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _add(builder, b, a, -1, alpha=alpha)


def _multiply(builder: Builder, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if a == b:
            return _applied(builder, ACTIVATIONS["square"], a)
        return builder.add(Product(), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    x, constant = (a, b) if isinstance(a, Symbol) else (b, a)
    return _scaled(builder, builder.broadcast(x, builder.shape), constant, 0.0)


def _divide(builder: Builder, a: Any, b: Any) -> Symbol:
    if not isinstance(b, Symbol):
        return _multiply(builder, a, 1 / torch.as_tensor(b, dtype=builder.dtype))
    return _multiply(builder, a, _applied(builder.between(), ACTIVATIONS["reciprocal"], b))


def _negate(builder: Builder, x: Symbol) -> Symbol:
    return _scaled(builder, x, -1.0, 0.0, roundings=0)


def _maximum(builder: Builder, a: Any, b: Any) -> Symbol:
    """``b + relu(a - b)``."""
    ideal = builder.between()
    return _add(ideal, ideal.add(relu(), _subtract(ideal, a, b)), b)


def _minimum(builder: Builder, a: Any, b: Any) -> Symbol:
    """``b - relu(b - a)``."""
    ideal = builder.between()
    return _subtract(ideal, b, ideal.add(relu(), _subtract(ideal, b, a)))


# Functions of each number alone


def _applied(builder: Builder, activation: Activation, x: Symbol) -> Symbol:
    return builder.add(Elementwise(activation), x, shape=x.shape)


def _activation(name: str, builder: Builder, x: Any) -> Symbol:
    return _applied(builder, ACTIVATIONS[name], x)


def _relu(builder: Builder, x: Any) -> Symbol:
    return builder.add(relu(), x)


def _leaky_relu(builder: Builder, x: Any, slope: float = 0.01) -> Symbol:
    return x if slope == 1 else builder.add(Kink(float(slope), 1.0), x)


def _prelu(builder: Builder, x: Any, weight: Any) -> Symbol:
    """One slope for all values, or one for each channel."""
    slope = _channels(weight, x.shape) if weight.numel() > 1 else weight
    return builder.add(Kink(builder.constant(slope, x.shape), 1.0), x)


def _abs(builder: Builder, x: Any) -> Symbol:
    return builder.add(Kink(-1.0, 1.0, 0), x)


def _gelu(builder: Builder, x: Any, *, approximate: str = "none") -> Symbol:
    return _applied(builder, gelu(approximate), x)


def _silu(builder: Builder, x: Any) -> Symbol:
    return _applied(builder, silu(), x)


def _clamp(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    if low == 0 and high is None:
        return _relu(builder, x)
    least, most = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _applied(builder, clamp(min(least, most), most), x)  # where the ends are in the wrong order, the upper one


def _clamp_max(builder: Builder, x: Any, high: Any) -> Symbol:
    return _clamp(builder, x, None, high)


def _hardtanh(builder: Builder, x: Any, low: float = -1.0, high: float = 1.0) -> Symbol:
    return _clamp(builder, x, low, high)


def _hardsigmoid(builder: Builder, x: Any) -> Symbol:
    return _clamp(builder, _scaled(builder, x, 1 / 6, 0.5), 0.0, 1.0)


def _power(builder: Builder, x: Any, exponent: Any) -> Symbol:
    known = {2: "square", 0.5: "sqrt", -1: "reciprocal"}
    if not isinstance(x, Symbol) or isinstance(exponent, Symbol):
        raise ModelError("only powers with a constant exponent are bounded")
    if exponent in known:
        return _activation(known[exponent], builder, x)
    if exponent < 2 or exponent != int(exponent):
        raise ModelError(f"the power {exponent} is not bounded: whole numbers from 2 on, 0.5 and -1 are")
    return _applied(builder, power(int(exponent)), x)


def _reciprocal_root(builder: Builder, x: Symbol) -> Symbol:
    return _activation("reciprocal", builder, _activation("sqrt", builder, x))


def _euclidean_norm(
    builder: Builder, x: Any, order: float = 2, dims: Any = None, keep: bool = False, **_: Any
) -> Symbol:
    if order != 2 or dims is None:
        raise ModelError("of norms, only the Euclidean one along given dimensions is bounded")
    _within(x, dims)
    squares = _activation("square", builder, x)
    terms = math.prod(x.shape[dim] for dim in dims)
    total = builder.move(partial(torch.sum, dim=dims, keepdim=keep), squares, terms=terms)
    return _activation("sqrt", builder, total)


# Products with weights, and of two values


def _constant_weight(*weights: Any) -> None:
    if any(isinstance(weight, Symbol) for weight in weights):
        raise ModelError("its weight depends on the network's input")


def _linear(builder: Builder, x: Any, weight: Any, bias: Any = None) -> Symbol:
    _constant_weight(weight, bias)
    return builder.add(Dense(weight, bias), x)


def _addmm(builder: Builder, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Symbol:
    _constant_weight(weight)
    return _add(builder, _matmul(builder, x, weight * alpha), bias, alpha=beta)


def _matmul(builder: Builder, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if min(len(example_shape(a.shape)), len(example_shape(b.shape))) < 2:
            raise ModelError("only products of matrices are bounded, one pair for every example")
        batch = builder.shape[:-2]
        wide = (builder.broadcast(x, (*batch, *x.shape[-2:])) for x in (a, b))
        return builder.add(MatrixProduct(), *wide)
    if isinstance(b, Symbol):
        return builder.add(
            Weighted(
                partial(_product, symbol=b.shape, left=True, shape=example_shape(builder.shape)),
                a,
                None,
                _contracted(a),
            ),
            b,
        )
    if b.dim() == 2:
        return builder.add(Dense(b.t(), None), a)
    return builder.add(
        Weighted(
            partial(_product, symbol=a.shape, left=False, shape=example_shape(builder.shape)), b, None, _contracted(b)
        ),
        a,
    )


def _contracted(weight: Tensor) -> tuple[int, int]:
    """No product with a matrix sums more terms than it has rows or columns, unless it is the same for many matrices."""
    return (max(weight.shape[-2:]),) * 2 if weight.dim() > 1 else (len(weight),) * 2


def _product(x: Tensor, weight: Tensor, *, symbol: Shape, left: bool, shape: Shape) -> Tensor:
    """The matrix product of each example with a weight to its left or to its right."""

    def one(value: Tensor) -> Tensor:
        return weight @ value if left else value @ weight

    return _reshaped(torch.func.vmap(one)(x.reshape(len(x), *symbol)), shape)


def _attention(
    builder: Builder, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Symbol:  # fmt: skip
    """``softmax(q k^T / sqrt(width)) v``."""
    if causal or enable_gqa or dropout or (mask is not None and mask.dtype == torch.bool):
        raise ModelError("attention is bounded without dropout, grouped queries and masks other than added ones")
    scores = (*builder.shape[:-1], k.shape[-2])
    at = builder.at(builder.name, builder.target, scores)
    turned = builder.move(
        partial(torch.transpose, dim0=-1, dim1=-2), k, shape=(*k.shape[:-2], k.shape[-1], k.shape[-2])
    )
    factor = scale or 1 / math.sqrt(q.shape[-1])
    weights = _matmul(at, _scaled(builder, q, factor, 0.0) if isinstance(q, Symbol) else q * factor, turned)
    return _matmul(builder, _softmax(at, weights if mask is None else _add(at, weights, mask), -1), v)


# Convolutions and pooling


def _sizes(value: Any, dimensions: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * (dimensions if len(value) == 1 else 1)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    first, second = sizes
    return first, second


def _maps(x: Symbol, dimensions: int) -> None:
    if len(example_shape(x.shape)) != dimensions + 1:
        raise ModelError(f"it takes values of shape {x.shape}: its batch has been merged with another dimension")


def _same_padding(weight: Tensor, dilation: tuple[int, ...]) -> tuple[int, ...]:
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(span % 2 for span in spans):
        raise ModelError("padding 'same' is uneven for this kernel; write the padding as numbers")
    return tuple(span // 2 for span in spans)


def _convolution(
    dimensions: int, builder: Builder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Symbol:  # fmt: skip
    _constant_weight(weight, bias)
    _maps(x, dimensions)
    stride, dilation = _sizes(stride, dimensions), _sizes(dilation, dimensions)
    if isinstance(padding, str):
        padding = _same_padding(weight, dilation) if padding == "same" else 0
    padding = _sizes(padding, dimensions)
    if dimensions == 3:
        settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        terms = (weight[0].numel(), len(weight) // groups * math.prod(weight.shape[2:]))
        bias = _per_channel(builder, bias)
        return builder.add(Weighted(partial(functional.conv3d, **settings), weight, bias, terms), x)
    if dimensions == 2:
        return builder.add(Convolution(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups), x)
    row = Convolution(weight.unsqueeze(2), bias, (1, *stride), (0, *padding), (1, *dilation), groups)
    return _as_row(builder, row, x)


def _as_row(builder: Builder, operation: Operation, x: Symbol) -> Symbol:
    """An operation on images, of a signal: an image of one row."""
    image = builder.reshaped(x, (1, x.shape[-2], 1, x.shape[-1]))
    found = builder.add(operation, image, shape=(1, builder.shape[-2], 1, builder.shape[-1]))
    return builder.reshaped(found, builder.shape)


def _transposed_convolution(
    dimensions: int, builder: Builder, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Symbol:  # fmt: skip
    _constant_weight(weight, bias)
    _maps(x, dimensions)
    stride, padding, dilation = (_sizes(value, dimensions) for value in (stride, padding, dilation))
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spread, gather = _TRANSPOSED[dimensions]
    convolve = partial(spread, output_padding=_sizes(output_padding, dimensions), **settings)
    terms = (len(weight) // groups * math.prod(weight.shape[2:]), weight[0].numel())
    bias = _per_channel(builder, bias)
    return builder.add(Weighted(convolve, weight, bias, terms, partial(gather, **settings)), x)


_TRANSPOSED: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    1: (functional.conv_transpose1d, functional.conv1d),
    2: (functional.conv_transpose2d, functional.conv2d),
    3: (functional.conv_transpose3d, functional.conv3d),
}


def _general_convolution(
    builder: Builder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Symbol:  # fmt: skip
    dimensions = weight.dim() - 2
    if transposed:
        return _transposed_convolution(
            dimensions, builder, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _convolution(dimensions, builder, x, weight, bias, stride, padding, dilation, groups)


def _channels(values: Tensor, shape: Shape) -> Tensor:
    """A number for each channel, to be broadcast to a value of the program."""
    return values.reshape(-1, *[1] * (len(shape) - 2))


def _per_channel(builder: Builder, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else builder.constant(_channels(bias, builder.shape), builder.shape)


def _max_pool(
    dimensions: int, builder: Builder, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Symbol:  # fmt: skip
    _maps(x, dimensions)
    kernel, stride, padding, dilation = (
        _sizes(value, dimensions) for value in (kernel, stride or kernel, padding, dilation)
    )
    if dimensions == 2:
        return builder.add(MaxPool(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), ceil_mode), x)
    pool = MaxPool((1, *kernel), (1, *stride), (0, *padding), (1, *dilation), ceil_mode)
    return _as_row(builder, pool, x)


# Normalisation


def _batch_norm(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> Symbol:  # fmt: skip
    if training or mean is None or var is None:
        return _batch_statistics(builder)
    factor = 1 / (var + eps).sqrt()
    factor = factor if weight is None else factor * weight
    shift, size = -mean * factor, (mean * factor).abs()
    if bias is not None:
        shift, size = shift + bias, size + bias.abs()
    factor, shift, size = (_channels(values, x.shape) for values in (factor, shift, size))
    return _scaled(builder, x, factor, shift, size=size, roundings=_NORMALISED)


def _batch_norm_in_evaluation(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Symbol:
    return _batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)


def _batch_statistics(builder: Builder, *_: Any) -> Symbol:
    raise ModelError("it normalises by the statistics of the batch, which ties the rows together")


def _standardised(builder: Builder, x: Symbol, eps: float) -> Symbol:
    """Zero mean and unit variance along the last dimension."""
    width, ideal = x.shape[-1], builder.between()
    unit = torch.eye(width, dtype=builder.dtype)
    centred = ideal.add(Dense(unit - 1 / width, None), x, shape=x.shape)
    mean = partial(torch.mean, dim=-1, keepdim=True)
    variance = ideal.move(mean, _activation("square", ideal, centred), shape=(*x.shape[:-1], 1), terms=width)
    inverse = _reciprocal_root(ideal, _scaled(ideal, variance, 1.0, eps))
    wide = ideal.broadcast(inverse, x.shape)
    return ideal.add(Product(), centred, wide, shape=x.shape, error=partial(_standardising, eps=eps), also=[x])


def _standardising(unit: float, centred: Interval, inverse: Interval, x: Interval, *, eps: float) -> Tensor:
    """What rounding does to a standardised value.

    However a variance of ``n`` numbers is computed, from the sum of their squares or from their distances from the
    mean, it is off by at most a few ``n`` units of the largest square among them (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", table 1). Whatever is left of one, it is not negative.
    """
    count = x.lower.shape[-1]
    reach, scale = largest(x).amax(-1, keepdim=True), inverse.upper
    # By how much the root of the variance is off, relatively; from a quarter on only the sizes are known.
    relative = unit * ((4 * count + 20) * (reach * scale).square() + 8)
    value = torch.minimum(torch.full_like(scale, float(count) ** 0.5), 2 * reach * scale)
    room = 2 * relative * value + unit * (count + 12) * reach * scale
    most = 4 * (1 + 8 * unit) * reach / eps**0.5 if eps else torch.full_like(reach, torch.inf)
    return torch.where(relative < 0.25, torch.minimum(room, most), most).expand(x.lower.shape)


def _layer_norm(
    builder: Builder, x: Any, normal: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Symbol:
    leading = x.shape[: len(x.shape) - len(normal)]
    flat = builder.reshaped(x, (*leading, math.prod(normal)))
    unit = builder.reshaped(_standardised(builder, flat, eps), x.shape)
    return _scaled(builder, unit, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


def _group_norm(
    builder: Builder, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Symbol:
    flat = builder.reshaped(x, (1, groups, math.prod(x.shape) // groups))
    unit = builder.reshaped(_standardised(builder, flat, eps), x.shape)
    factor, shift = (
        default if values is None else _channels(values, x.shape) for values, default in ((weight, 1.0), (bias, 0.0))
    )
    return _scaled(builder, unit, factor, shift)


# Softmax


def _softmax(builder: Builder, x: Any, dim: int, *_: Any) -> Symbol:
    """``1 / (1 + sum_j exp(z_j - z_k))`` over all other ``j``: no product, and at most 1 whatever the bounds."""
    builder = builder.between()
    _within(x, [dim])
    place = dim % len(x.shape)
    last = _turned(builder, x, place, -1)
    count = last.shape[-1]
    pairs = (*last.shape, count - 1)
    others = torch.tensor([[j for j in range(count) if j != k] for k in range(count)], dtype=torch.int64)
    each = builder.move(partial(_picked, places=others), last, shape=pairs)
    own = builder.move(partial(_repeated, count=count - 1), last, shape=pairs)
    powers = _activation("exp", builder, builder.add(Sum((1, -1)), each, own, shape=pairs))
    total = builder.move(partial(torch.sum, dim=-1), powers, shape=last.shape, terms=count)
    whole = _scaled(builder, total, 1.0, 1.0)
    error = partial(_softmax_error, count=count)
    found = builder.add(Elementwise(ACTIVATIONS["reciprocal"]), whole, shape=last.shape, error=error)
    return _turned(builder, found, -1, place)


def _softmax_error(unit: float, x: Interval, *, count: int) -> Tensor:
    """What rounding does to a softmax.

    The distance from the largest number is rounded, which changes ``exp(-d)`` by at most ``d exp(-d)`` units; each
    exponential is good to a few, and their sum, of which the largest term is 1, loses one for each of them. Attention
    may rescale that sum as often as it meets a larger number.
    """
    return torch.full_like(x.lower, unit * (16 * count + 32))


def _turned(builder: Builder, x: Symbol, source: int, destination: int) -> Symbol:
    """The value with one dimension at another place."""
    order = list(range(len(x.shape)))
    order.insert(destination % len(order), order.pop(source))
    if order == list(range(len(order))):
        return x
    return builder.move(partial(torch.permute, dims=order), x, shape=tuple(x.shape[i] for i in order))


def _picked(x: Tensor, places: Tensor) -> Tensor:
    return x[..., places.to(x.device)]


def _repeated(x: Tensor, count: int) -> Tensor:
    return x.unsqueeze(-1).expand(*x.shape, count)


def _log_softmax(builder: Builder, x: Any, dim: int, *_: Any) -> Symbol:
    """``z_k - log sum_j exp z_j``: of the difference between two classes, nothing is left of the sum."""
    total = _log_sum_exp(builder, x, [dim], keep=True)
    return builder.add(Sum((1, -1)), x, builder.broadcast(total, x.shape), shape=x.shape)


def _log_sum_exp(builder: Builder, x: Any, dims: Any, keep: bool = False) -> Symbol:
    _within(x, dims)
    if len(dims) != 1:
        raise ModelError("it is bounded along one dimension only")
    place = dims[0] % len(x.shape)
    last, others = _turned(builder, x, place, -1), (*x.shape[:place], *x.shape[place + 1 :])
    kept = (*x.shape[:place], 1, *x.shape[place + 1 :])
    return builder.reshaped(builder.add(LogSumExp(), last, shape=(*others, 1)), kept if keep else others)


# Moves and sums


def _within(x: Symbol, dims: Sequence[int]) -> None:
    """Refuse to work along the batch."""
    if x.shape[:1] == (1,) and any(dim % len(x.shape) == 0 for dim in dims):
        raise ModelError("it works along the batch; bounds need independent rows")


def _move(builder: Builder, x: Any, *settings: Any, **more: Any) -> Symbol:
    """Any linear move of values, sum or mean, as torch does it."""
    return builder.move(partial(_with, function=builder.target, settings=settings, more=more), x)


def _with(x: Tensor, function: Callable[..., Tensor], settings: tuple[Any, ...], more: dict[str, Any]) -> Tensor:
    return function(x, *settings, **more)


def _along(builder: Builder, x: Any, dims: Any, *settings: Any, **more: Any) -> Symbol:
    """A move along some dimensions."""
    _within(x, [dims] if isinstance(dims, int) else dims or range(len(x.shape)))
    return _move(builder, x, dims, *settings, **more)


def _sum_along(builder: Builder, x: Any, dims: Any, *settings: Any, **more: Any) -> Symbol:
    """A sum or a mean along some dimensions."""
    _within(x, [dims] if isinstance(dims, int) else dims or range(len(x.shape)))
    function = partial(_with, function=builder.target, settings=(dims, *settings), more=more)
    terms = math.prod(x.shape) // max(1, math.prod(builder.shape))
    return builder.move(function, x, terms=max(2, terms))


def _reshape(builder: Builder, x: Any, *_: Any, **__: Any) -> Symbol:
    return builder.reshaped(x, builder.shape)


def _slice(builder: Builder, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Symbol:
    return x if builder.shape == x.shape and step == 1 else _along(builder, x, dim, start, end, step)


def _index(builder: Builder, x: Any, indices: Any) -> Symbol:
    if any(isinstance(index, Symbol) for index in indices):
        raise ModelError("it picks values by others that depend on the network's input")
    _within(x, [dim for dim, index in enumerate(indices) if index is not None])
    return _move(builder, x, indices)


def _pool_average(dimensions: int, builder: Builder, x: Any, *settings: Any) -> Symbol:
    _maps(x, dimensions)
    function = partial(_with, function=builder.target, settings=settings, more={})
    # A window of an adaptive pooling is hardly larger than the ratio of the two sizes.
    ratios = zip(x.shape[-dimensions:], builder.shape[-dimensions:], strict=True)
    terms = max(math.prod(before // after + 2 for before, after in ratios), math.prod(_sizes(settings[0], dimensions)))
    return builder.move(function, x, terms=terms)


def _pad(builder: Builder, x: Any, amounts: Any, *settings: Any) -> Symbol:
    if len(amounts) > 2 * (len(x.shape) - 1):
        raise ModelError("it pads the batch")
    return _move(builder, x, amounts, *settings)


def _join(builder: Builder, tensors: Any, dim: int = 0) -> Symbol:
    """``cat`` and ``stack``."""
    symbols = [tensor for tensor in tensors if isinstance(tensor, Symbol)]
    places = [None if isinstance(tensor, Symbol) else tensor for tensor in tensors]
    return builder.move(partial(_joined, function=builder.target, places=places, dim=dim), *symbols)


def _joined(*inputs: Tensor, function: Callable[..., Tensor], places: list[Tensor | None], dim: int) -> Tensor:
    """The inputs in order, and constants in their places."""
    given = iter(inputs)
    return function([next(given) if place is None else place.to(inputs[0].dtype) for place in places], dim)


def _parts(builder: Builder, x: Any, *settings: Any, **more: Any) -> list[Symbol]:
    """``split``, ``chunk`` and ``unbind``."""
    function = partial(_with, function=builder.target, settings=settings, more=more)
    shapes = [tuple(part.shape) for part in function(torch.empty(x.shape, device="meta"))]
    if any(len(shape) != len(x.shape) for shape in shapes):
        _within(x, [settings[0] if settings else 0])
    return [builder.move(partial(_part, function=function, place=i), x, shape=shape) for i, shape in enumerate(shapes)]


def _part(x: Tensor, function: Callable[..., Any], place: int) -> Tensor:
    part: Tensor = function(x)[place]
    return part


def _get(builder: Builder, parts: list[Symbol], place: int) -> Symbol:
    if place >= len(parts):
        raise ModelError("the indices of a max pooling are not bounded")
    return parts[place]


def _same(builder: Builder, x: Symbol, *_: Any, **__: Any) -> Symbol:
    return x


def _constant_like(builder: Builder, x: Symbol, *settings: Any, **more: Any) -> Tensor:
    """``ones_like`` and its kind, which take no more than the shape."""
    constant: Tensor = builder.target(torch.zeros(x.shape, dtype=builder.dtype), *settings, **more)
    return constant


def _blank(builder: Builder, x: Symbol, *settings: Any, **more: Any) -> Tensor:
    """``empty_like`` and its kind: what is in new memory is overwritten, or of no meaning."""
    return _constant_like(builder, x, *settings, **more).zero_()


def _placed(values: tuple[int, ...], dims: tuple[int, ...], builder: Builder, *arguments: Any, **more: Any) -> Symbol:
    """Numbers at constant places among others, such as ``x[:, 0] = y``.

    Where each number of the result comes from is what torch answers when it is given the numbers' places for numbers.

    Parameters
    ----------
    values, dims : tuple of int
        Which arguments hold numbers, and which say along what dimension it works.
    """
    assert isinstance(builder.target, OpOverload)
    known: list[Any] = [argument.default_value for argument in builder.target._schema.arguments]
    known[: len(arguments)] = arguments
    _within(Symbol(0, tuple(arguments[0].shape)), [known[i] for i in dims])
    sources = [arguments[i] for i in values]
    settings = [argument.cpu() if isinstance(argument, Tensor) else argument for argument in arguments]
    count = 0
    for i, source in zip(values, sources, strict=True):
        shape = tuple(source.shape) if isinstance(source, Symbol | Tensor) else ()
        settings[i] = torch.arange(count, count + math.prod(shape)).reshape(shape)
        count += math.prod(shape)
        settings[i] = settings[i] if isinstance(source, Symbol | Tensor) else int(settings[i])
    if any(isinstance(setting, Symbol) for setting in settings):
        raise ModelError("where it puts values depends on the network's input")
    places = builder.target(*settings, **more).flatten()
    constants = [None if isinstance(x, Symbol) else torch.as_tensor(x, dtype=builder.dtype).flatten() for x in sources]
    if not all(constant is None or bool(constant.isfinite().all()) for constant in constants):
        raise ModelError("it puts infinity or NaN among its values")
    pick = partial(_picked_among, constants=constants, places=places, shape=example_shape(builder.shape))
    return builder.add(Monotone(pick), *(source for source in sources if isinstance(source, Symbol)))


def _picked_among(*inputs: Tensor, constants: list[Tensor | None], places: Tensor, shape: Shape) -> Tensor:
    given, count = iter(inputs), len(inputs[0])
    parts = [
        next(given).reshape(count, -1) if constant is None else constant.to(inputs[0]).expand(count, -1)
        for constant in constants
    ]
    return torch.cat(parts, 1)[:, places.to(inputs[0].device)].reshape(count, *shape)


def _slice_scatter(builder: Builder, x: Any, y: Any, *settings: Any) -> Any:
    return y if y.shape == builder.shape else _placed((0, 1), (2,), builder, x, y, *settings)


def _index_put(builder: Builder, x: Any, indices: Any, y: Any, accumulate: bool = False) -> Symbol:
    if accumulate or any(isinstance(index, Symbol) for index in indices):
        raise ModelError("values are put only where constants say, and not added there")
    _within(Symbol(0, builder.shape), [dim for dim, index in enumerate(indices) if index is not None])
    indices = [index if index is None else index.cpu() for index in indices]
    return _placed((0, 2), (), builder, x, indices, y)


def _dropout(builder: Builder, x: Symbol, probability: float, train: bool) -> Symbol:
    if train and probability > 0:
        raise ModelError("it drops values at random")
    return x


def _first_of(rule: Callable[..., Symbol]) -> Callable[..., list[Symbol]]:
    """A rule for the first of several values, the one that is of use."""
    return lambda *arguments, **more: [rule(*arguments, **more)]


Rule = Callable[..., Any]

RULES: dict[str, Rule] = {
    **{f"{name}.default": partial(_activation, name) for name in (
        "exp", "log", "reciprocal", "sigmoid", "sqrt", "square", "tanh",
    )},
    **dict.fromkeys((
        "_unsafe_view.default", "flatten.using_ints", "reshape.default", "squeeze.default", "squeeze.dim",
        "squeeze.dims", "unflatten.int", "unsqueeze.default", "view.default", "view_as.default",
    ), _reshape),
    **dict.fromkeys((
        "expand.default", "pixel_shuffle.default", "pixel_unshuffle.default", "permute.default", "repeat.default",
        "t.default", "transpose.int", "upsample_nearest1d.vec", "upsample_nearest2d.vec",
    ), _move),
    **dict.fromkeys((
        "flip.default", "index_select.default", "narrow.default", "select.int",
    ), _along),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), _sum_along),
    **dict.fromkeys(("chunk.default", "split.Tensor", "split_with_sizes.default", "unbind.int"), _parts),
    **dict.fromkeys((
        "alias.default", "clone.default", "contiguous.default", "detach.default", "detach_.default",
        "lift_fresh_copy.default",
    ), _same),
    **dict.fromkeys((
        "fill.Scalar", "full_like.default", "new_full.default", "new_ones.default", "new_zeros.default",
        "ones_like.default", "zero.default", "zeros_like.default",
    ), _constant_like),
    **dict.fromkeys(("empty_like.default", "new_empty.default"), _blank),
    "_log_softmax.default": _log_softmax,
    "_native_batch_norm_legit.no_stats": _batch_statistics,
    "_native_batch_norm_legit_no_training.default": _first_of(_batch_norm_in_evaluation),
    "_softmax.default": _softmax,
    "abs.default": _abs,
    "adaptive_avg_pool1d.default": partial(_pool_average, 1),
    "adaptive_avg_pool2d.default": partial(_pool_average, 2),
    "add.Scalar": _add,
    "add.Tensor": _add,
    "addmm.default": _addmm,
    "avg_pool1d.default": partial(_pool_average, 1),
    "avg_pool2d.default": partial(_pool_average, 2),
    "batch_norm.default": _batch_norm,
    "bmm.default": _matmul,
    "cat.default": _join,
    "clamp.default": _clamp,
    "clamp_max.default": _clamp_max,
    "clamp_min.default": _clamp,
    "constant_pad_nd.default": _pad,
    "conv1d.default": partial(_convolution, 1),
    "conv1d.padding": partial(_convolution, 1),
    "conv2d.default": partial(_convolution, 2),
    "conv2d.padding": partial(_convolution, 2),
    "conv3d.default": partial(_convolution, 3),
    "conv3d.padding": partial(_convolution, 3),
    "conv_transpose1d.default": partial(_transposed_convolution, 1),
    "conv_transpose2d.input": partial(_transposed_convolution, 2),
    "conv_transpose3d.input": partial(_transposed_convolution, 3),
    "convolution.default": _general_convolution,
    "copy.default": partial(_placed, (0, 1), ()),
    "diagonal.default": partial(_placed, (0,), (2, 3)),
    "diagonal_scatter.default": partial(_placed, (0, 1), (3, 4)),
    "div.Scalar": _divide,
    "div.Tensor": _divide,
    "dropout.default": _dropout,
    "feature_dropout.default": _dropout,
    "fill.Tensor": partial(_placed, (0, 1), ()),
    "gelu.default": _gelu,
    "getitem": _get,
    "group_norm.default": _group_norm,
    "hardsigmoid.default": _hardsigmoid,
    "hardtanh.default": _hardtanh,
    "index.Tensor": _index,
    "index_fill.int_Scalar": partial(_placed, (0, 3), (1,)),
    "index_put.default": _index_put,
    "layer_norm.default": _layer_norm,
    "leaky_relu.default": _leaky_relu,
    "linalg_vector_norm.default": _euclidean_norm,
    "linear.default": _linear,
    "log_softmax.int": _log_softmax,
    "logsumexp.default": _log_sum_exp,
    "masked_fill.Scalar": partial(_placed, (0, 2), ()),
    "masked_fill.Tensor": partial(_placed, (0, 2), ()),
    "matmul.default": _matmul,
    "max_pool1d.default": partial(_max_pool, 1),
    "max_pool2d.default": partial(_max_pool, 2),
    "max_pool2d_with_indices.default": _first_of(partial(_max_pool, 2)),
    "maximum.default": _maximum,
    "minimum.default": _minimum,
    "mm.default": _matmul,
    "mul.Scalar": _multiply,
    "mul.Tensor": _multiply,
    "native_layer_norm.default": _first_of(_layer_norm),
    "neg.default": _negate,
    "pad.default": _pad,
    "pow.Tensor_Scalar": _power,
    "prelu.default": _prelu,
    "relu.default": _relu,
    "relu6.default": partial(_clamp, low=0.0, high=6.0),
    "relu_.default": _relu,
    "rsqrt.default": _reciprocal_root,
    "rsub.Scalar": _reverse_subtract,
    "scaled_dot_product_attention.default": _attention,
    "select_scatter.default": partial(_placed, (0, 1), (2,)),
    "silu.default": _silu,
    "slice.Tensor": _slice,
    "slice_scatter.default": _slice_scatter,
    "softmax.int": _softmax,
    "stack.default": _join,
    "sub.Scalar": _subtract,
    "sub.Tensor": _subtract,
    "truediv.Tensor": _divide,
}  # fmt: skip
