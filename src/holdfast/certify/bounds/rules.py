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
from fractions import Fraction
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional

from holdfast.certify.bounds.graph import Interval, Node, Operation
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.choice import Above, Choice
from holdfast.certify.bounds.operations.convolution import Convolution
from holdfast.certify.bounds.operations.kink import Kink, relu
from holdfast.certify.bounds.operations.linear import Dense, Monotone, Scale, Sum, Weighted
from holdfast.certify.bounds.operations.logsumexp import LogSumExp
from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.operations.product import MatrixProduct, Product
from holdfast.certify.bounds.relaxations import (
    ACTIVATIONS,
    ROUNDED,
    Activation,
    Steps,
    clamp,
    elu,
    gelu,
    mish,
    power,
    silu,
    softplus,
)
from holdfast.certify.bounds.relaxations import cast as rounded_to
from holdfast.certify.bounds.rounding import gamma, largest
from holdfast.errors import ModelError

__all__ = ["CASTS", "LOGIC", "RULES", "Builder", "Symbol", "cast"]

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
        The precision of the graph's constants.
    network : torch.dtype
        That of the network.
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
    network: torch.dtype
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
    error: Callable[..., Tensor] | None = None,
) -> Symbol:
    """``factor * x + shift``; the shift is made of terms whose sizes add up to ``size``."""
    factor, shift = builder.constant(factor, x.shape), builder.constant(shift, x.shape)
    if not bool((factor.abs() <= torch.finfo(builder.network).max).all()):
        raise ModelError(f"it multiplies by a number that {builder.network} does not hold")
    size = shift.abs() if size is None else builder.constant(size, x.shape)
    before = builder.nodes[x.node]
    first = before.operation
    # Such as the two steps of a normalisation: one pass will do, if nothing between them is larger than what comes out.
    alike = before.executed == builder.executed and before.error is None
    if isinstance(first, Scale) and alike and _grows(first.shift, factor, shift):
        size = first.size * factor.abs() + size
        roundings += first.roundings
        factor, shift = first.factor * factor, first.shift * factor + shift
        x = Symbol(before.inputs[0], x.shape)
    return builder.add(Scale(factor, shift, size, roundings), x, shape=x.shape, error=error)


def _grows(before: Tensor, factor: Tensor, shift: Tensor) -> bool:
    """Whether neither a factor nor a further shift makes anything smaller: ``(x + 1e6) - 1e6`` is not ``x``."""
    moved = before * factor
    return bool(((factor.abs() >= 1) & ((moved + shift).abs() >= moved.abs())).all())


def _subtract(builder: Builder, a: Any, b: Any, *, alpha: float = 1) -> Symbol:
    return _add(builder, a, b, -1, alpha=alpha)


def _reverse_subtract(builder: Builder, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _add(builder, b, a, -1, alpha=alpha)


def _multiply(builder: Builder, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if a == b:
            return _applied(builder, ACTIVATIONS["square"], a)
        if _is_applied(builder, "sigmoid", b, a) or _is_applied(builder, "sigmoid", a, b):
            return _applied(builder, silu(), a if _is_applied(builder, "sigmoid", b, a) else b)
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


def _applied(builder: Builder, activation: Activation | Steps, x: Symbol) -> Symbol:
    return builder.add(Elementwise(activation), x, shape=x.shape)


def _is_applied(builder: Builder, name: str, y: Symbol, x: Symbol) -> bool:
    """Whether a value is an activation of another one."""
    node = builder.nodes[y.node]
    known = isinstance(node.operation, Elementwise) and node.operation.activation.name == name
    return known and node.inputs == (x.node,) and y.shape == x.shape


def _activation(name: str, builder: Builder, x: Any) -> Symbol:
    return _applied(builder, ACTIVATIONS[name], x)


def _in_steps(name: str, builder: Builder, x: Any, *, decimals: int = 0) -> Symbol:
    """Rounding to whole numbers."""
    if decimals:
        raise ModelError("it rounds to decimals; scale, and round to whole numbers")
    return _applied(builder, ROUNDED[name], x)


def cast(builder: Builder, x: Symbol, source: torch.dtype, result: torch.dtype) -> Symbol:
    """A value of one type in another one.

    Exact into a wider type, and of what is 1 or 0; a function that rises in steps into a narrower one.

    Raises
    ------
    ModelError
        When it makes whole numbers of others.
    """
    if torch.promote_types(source, result) == result and (source.is_floating_point or source == torch.bool):
        return builder.reshaped(x, builder.shape)
    if not result.is_floating_point:
        raise ModelError(
            f"it makes {result} of what depends on the network's input; bounds are of floating-point numbers, which "
            "floor, round and trunc keep"
        )
    return _applied(builder, rounded_to(result), x)


def _relu(builder: Builder, x: Any) -> Symbol:
    return builder.add(relu(), x, shape=x.shape)


def _leaky_relu(builder: Builder, x: Any, slope: float = 0.01) -> Symbol:
    return x if slope == 1 else builder.add(Kink(float(slope), 1.0), x, shape=x.shape)


def _prelu(builder: Builder, x: Any, weight: Any) -> Symbol:
    """One slope for all values, or one for each channel."""
    _constant_weight(weight)
    slope = _channels(weight, x.shape) if weight.numel() > 1 else weight
    return builder.add(Kink(builder.constant(slope, x.shape), 1.0), x, shape=x.shape)


def _abs(builder: Builder, x: Any) -> Symbol:
    return builder.add(Kink(-1.0, 1.0, 0), x, shape=x.shape)


def _gelu(builder: Builder, x: Any, *, approximate: str = "none") -> Symbol:
    return _applied(builder, gelu(approximate), x)


def _silu(builder: Builder, x: Any) -> Symbol:
    return _applied(builder, silu(), x)


def _clamp(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    if low == 0 and high is None:
        return _relu(builder, x)
    least, most = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _applied(builder, clamp(min(least, most), most), x)  # where the ends are in the wrong order, the upper one


def _clamp_between(builder: Builder, x: Any, low: Any = None, high: Any = None) -> Symbol:
    """Between tensors."""
    raised = x if low is None else _maximum(builder, x, low)
    return raised if high is None else _minimum(builder, raised, high)


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
    if exponent in (0, 1) or not math.isfinite(exponent):
        raise ModelError(f"the power {exponent} is not bounded; leave it out")
    return _applied(builder, power(exponent), x)


def _elu(builder: Builder, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Symbol:
    return _applied(builder, elu(alpha, scale, input_scale), x)


def _celu(builder: Builder, x: Any, alpha: float = 1.0) -> Symbol:
    return _elu(builder, x, alpha, 1.0, 1 / alpha if alpha else 0.0)


# Its two constants, from Klambauer et al. 2017, "Self-normalizing neural networks", arXiv 1706.02515.
_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _selu(builder: Builder, x: Any) -> Symbol:
    return _elu(builder, x, *_SELU)


def _softplus(builder: Builder, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    """Of ``beta x``, divided by ``beta``."""
    scaled = x if beta == 1 else _scaled(builder, x, beta, 0.0)
    error = partial(_jumping, threshold=threshold, network=builder.network)
    found = builder.add(Elementwise(softplus(threshold)), scaled, shape=x.shape, error=error)
    return found if beta == 1 else _scaled(builder, found, 1 / beta, 0.0)


def _jumping(u: float, x: Interval, *, threshold: float, network: torch.dtype) -> Tensor:
    """By how much a softplus jumps at its threshold, where the network does not hold that and takes a near number."""
    held = float(torch.tensor(threshold, dtype=network)) == threshold
    near = -1.0 if held else abs(threshold) * _LEVEL * torch.finfo(network).eps
    reached = (x.lower <= threshold + near) & (x.upper >= threshold - near) & (near >= 0)
    return torch.where(reached, math.log1p(math.exp(-threshold)), 0.0).to(x.lower.dtype)


def _mish(builder: Builder, x: Any) -> Symbol:
    return _applied(builder, mish(), x)


def _softshrink(builder: Builder, x: Any, room: float = 0.5) -> Symbol:
    """``relu(x - room) - relu(-x - room)``."""
    ideal = builder.between()
    above, below = (ideal.add(relu(), _scaled(ideal, x, sign, -room), shape=x.shape) for sign in (1.0, -1.0))
    return builder.add(Sum((1, -1)), above, below, shape=x.shape)


# Comparisons, and what is chosen by them


# A level that the network does not hold is compared with as a number so many of its epsilons away.
_LEVEL = 2


def _compare(falling: bool, reached: bool, builder: Builder, a: Any, b: Any) -> Symbol:
    """Whether ``a > b`` (``falling``: ``a < b``), as 1 or 0; equality counts where ``reached``."""
    if not isinstance(a, Symbol):
        a, b, falling = b, a, not falling
    ideal = builder.between()
    if isinstance(b, Symbol):  # numbers compare as their difference does with 0
        a, b = _subtract(ideal, a, b), 0.0
    x = builder.broadcast(a, builder.shape)
    level = builder.constant(b, builder.shape).double()
    if falling:
        x, level = _negate(ideal, x), -level
    margin = level.abs() * _LEVEL * torch.finfo(builder.network).eps * (level != level.to(builder.network))
    return builder.add(Above(level, reached, margin), x)


def _equal(same: bool, builder: Builder, a: Any, b: Any) -> Symbol:
    """Whether two numbers are equal, or are not: at least and not above, both as 1 or 0."""
    reached, above = (_compare(False, at, builder, a, b) for at in (True, False))
    found = builder.add(Sum((1, -1)), reached, above)
    return found if same else _not(builder, found)


def _sign(builder: Builder, x: Any) -> Symbol:
    above, below = _compare(False, False, builder, x, 0.0), _compare(True, False, builder, x, 0.0)
    return builder.add(Sum((1, -1)), above, below)


def _not(builder: Builder, x: Any) -> Symbol:
    return _scaled(builder, x, -1.0, 1.0)


def _and(builder: Builder, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return builder.add(Product(), *(builder.broadcast(x, builder.shape) for x in (a, b)))
    return _multiply(builder, a, b)


def _or(builder: Builder, a: Any, b: Any) -> Symbol:
    """Not that neither is."""
    neither = [_not(builder, x) if isinstance(x, Symbol) else ~x for x in (a, b)]
    return _not(builder, _and(builder, *neither))


def _where(builder: Builder, condition: Any, a: Any, b: Any) -> Symbol:
    if not isinstance(condition, Symbol):
        places = [None if isinstance(value, Symbol) else value for value in (a, b)]
        symbols = [value for value in (a, b) if isinstance(value, Symbol)]
        return builder.move(partial(_chosen, mask=condition, places=places), *symbols, terms=_terms(builder, *places))
    bent = _bent(builder, condition, a, b)
    if bent is not None:
        return bent
    values = []
    for value in (a, b):
        if not isinstance(value, Symbol):  # 0 times anything, and a shift
            value = _fixed(builder.between(), condition, value)
        values.append(builder.broadcast(value, builder.shape))
    return builder.add(Choice(), builder.broadcast(condition, builder.shape), *values)


def _terms(builder: Builder, *constants: Any) -> int:
    """1 where nothing is rounded that is put among values, and more where the network does not hold one of them."""
    numbers = [torch.as_tensor(value, dtype=torch.float64) for value in constants if value is not None]
    return 1 if all(torch.equal(number, number.to(builder.network).double()) for number in numbers) else 2


def _chosen(*inputs: Tensor, mask: Tensor, places: list[Any]) -> Tensor:
    """The one value or the other by a constant mask; constants in their places."""
    given = iter(inputs)
    a, b = (next(given) if place is None else _like(place, inputs[0]) for place in places)
    return torch.where(mask.to(inputs[0].device), a, b)


def _like(value: Any, other: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=other.dtype, device=other.device)


def _fixed(builder: Builder, like: Symbol, value: Any) -> Symbol:
    """A constant, as a value that depends on the input in form."""
    constant = torch.as_tensor(value, dtype=builder.dtype)
    return builder.move(partial(_filled, value=constant), like, shape=builder.shape)


def _filled(x: Tensor, value: Tensor) -> Tensor:
    return torch.where(torch.ones_like(x, dtype=torch.bool), value.to(x), x)


def _masked_fill(builder: Builder, x: Any, mask: Any, value: Any) -> Symbol:
    return _where(builder, mask, value, x)


def _hardshrink(builder: Builder, x: Any, room: float = 0.5) -> Symbol:
    above, below = _compare(False, False, builder, x, room), _compare(True, False, builder, x, -room)
    return _where(builder, above, x, _where(builder, below, x, 0.0))


def _threshold(builder: Builder, x: Any, level: float, value: float) -> Symbol:
    return _where(builder, _compare(False, False, builder, x, level), x, value)


@dataclass(frozen=True, eq=False)
class _Line:
    """``factor * x + shift`` of the value of a node, or a constant; how it is rounded, a :class:`Scale` knows."""

    root: int | None
    factor: Tensor
    shift: Tensor
    size: Tensor
    roundings: int


def _line(builder: Builder, value: Any) -> _Line:
    """A value as a linear function of another one, as far back as it is one."""
    zero = builder.constant(0.0, builder.shape)
    if not isinstance(value, Symbol):
        constant = builder.constant(value, builder.shape)
        return _Line(None, zero, constant, constant.abs(), 1)
    line = _Line(value.node, zero + 1, zero, zero, 0)
    while isinstance(operation := builder.nodes[line.root or 0].operation, Scale):
        line = _Line(
            builder.nodes[line.root or 0].inputs[0],
            line.factor * operation.factor,
            line.factor * operation.shift + line.shift,
            line.factor.abs() * operation.size + line.size,
            line.roundings + operation.roundings,
        )
    return line


def _bent(builder: Builder, condition: Symbol, a: Any, b: Any) -> Symbol | None:
    """A choice between two linear functions that meet where the condition changes: ``b + slope * relu(t - level)``.

    Where they miss each other by rounding alone, that is an error of the value; where they miss it by more, or are not
    functions of what the condition tests, this is None.
    """
    tested = builder.nodes[condition.node]
    symbols = [value for value in (condition, a, b) if isinstance(value, Symbol)]
    if not isinstance(tested.operation, Above) or any(symbol.shape != builder.shape for symbol in symbols):
        return None
    level = tested.operation.level
    test = _line(builder, Symbol(tested.inputs[0], builder.shape))
    first, second = _line(builder, a), _line(builder, b)
    if any(line.root not in (None, test.root) for line in (first, second)) or bool((test.factor == 0).any()):
        return None
    slope = (first.factor - second.factor) / test.factor
    gap = first.shift - second.shift - slope * (test.shift - level)
    reach = first.size + second.size + slope.abs() * (test.size + level.abs())
    if bool((gap.abs() > 1e-6 * reach).any()):
        return None
    ideal, x = builder.between(), Symbol(test.root or 0, builder.shape)
    above = ideal.add(relu(), _scaled(ideal, x, test.factor, test.shift - level), shape=builder.shape)
    parts = _scaled(ideal, x, second.factor, second.shift), _scaled(ideal, above, slope, 0.0)
    lines = ((first, 1.0), (second, 1.0), (test, slope.abs()))
    missed = gap.abs() + 1e-15 * reach, slope.abs() * level.abs() * (level != level.to(builder.network))
    return builder.add(Sum((1, 1)), *parts, error=partial(_bending, lines=lines, missed=missed), also=[x])


def _bending(
    unit: float, first: Interval, second: Interval, x: Interval, *,
    lines: tuple[tuple[_Line, Tensor | float], ...], missed: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """What rounding does to two lines, to the test between them and to its level, and how far apart they meet."""
    reach = largest(x)
    total = missed[0].to(reach) + 2 * unit * missed[1].to(reach)
    for line, share in lines:
        size = reach * line.factor.abs().to(reach) + line.size.to(reach)
        total = total + size * _like(share, reach) * (2 * gamma(line.roundings + 2, unit))
    return total.expand(first.lower.shape)


def _reciprocal_root(builder: Builder, x: Symbol) -> Symbol:
    return _activation("reciprocal", builder, _activation("sqrt", builder, x))


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


def _baddbmm(builder: Builder, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Symbol:
    product = _matmul(builder, a, b)
    return _add(builder, product if alpha == 1 else _scaled(builder, product, alpha, 0.0), bias, alpha=beta)


def _attention(
    builder: Builder, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Symbol:  # fmt: skip
    """``softmax(q k^T / sqrt(width)) v``."""
    if enable_gqa or dropout:
        raise ModelError("attention is bounded without dropout and grouped queries")
    scores = (*builder.shape[:-1], k.shape[-2])
    at = builder.at(builder.name, builder.target, scores)
    turned = builder.move(
        partial(torch.transpose, dim0=-1, dim1=-2), k, shape=(*k.shape[:-2], k.shape[-1], k.shape[-2])
    )
    factor = scale or 1 / math.sqrt(q.shape[-1])
    weights = _matmul(at, _scaled(builder, q, factor, 0.0) if isinstance(q, Symbol) else q * factor, turned)
    kept = None
    if causal:
        kept = torch.ones(scores[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        kept = mask if kept is None else mask & kept
    elif mask is not None:
        weights = _add(at, weights, mask)
    return _matmul(builder, _masked_softmax(at, weights, -1, kept), v)


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
    if _inside(builder, x) is not None:
        return _max_inside(builder, x, kernel, stride, padding, dilation)
    if dimensions == 2:
        return builder.add(MaxPool(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), ceil_mode), x)
    pool = MaxPool((1, *kernel), (1, *stride), (0, *padding), (1, *dilation), ceil_mode)
    return _as_row(builder, pool, x)


def _max_along(sign: int, builder: Builder, x: Any, dims: Any = (), keep: bool = False) -> Symbol:
    """The maximum (``sign`` 1) or the minimum (-1) along some dimensions."""
    chosen = [dims] if isinstance(dims, int) else list(dims) or list(range(len(x.shape)))
    _within(x, chosen)
    inner = sorted(dim % len(x.shape) for dim in chosen)
    order = [dim for dim in range(len(x.shape)) if dim not in inner] + inner
    count = math.prod(x.shape[dim] for dim in inner)
    turned = builder.move(partial(torch.permute, dims=order), x, shape=tuple(x.shape[dim] for dim in order))
    return _max_of(sign, builder, turned, count)


def _max_of(sign: int, builder: Builder, x: Symbol, count: int) -> Symbol:
    """The maximum or the minimum of each so many numbers in turn."""
    windows = builder.reshaped(x, (1, 1, math.prod(x.shape) // count, count))
    if sign < 0:
        windows = _negate(builder, windows)
    pool = MaxPool((1, count), (1, count), (0, 0), (1, 1), False)
    found = builder.add(pool, windows, shape=(1, 1, windows.shape[2], 1))
    return builder.reshaped(_negate(builder, found) if sign < 0 else found, builder.shape)


def _max_windows(builder: Builder, x: Symbol, axes: list[list[list[int]]]) -> Symbol:
    """The maxima over windows, along each axis given by their places; shorter ones have a place twice."""
    longest = [max(map(len, places)) for places in axes]
    full = [
        torch.tensor([window + window[:1] * (size - len(window)) for window in places])
        for places, size in zip(axes, longest, strict=True)
    ]
    index = torch.zeros(1, 1, dtype=torch.int64)
    for places, length in zip(full, x.shape[-len(axes) :], strict=True):
        # Windows in rows, and the places of each in columns.
        index = (index[:, None, :, None] * length + places[None, :, None, :]).flatten(2).flatten(0, 1)
    flat = builder.reshaped(x, (*x.shape[: -len(axes)], math.prod(x.shape[-len(axes) :])))
    picked = builder.move(partial(_picked, places=index), flat, shape=(*flat.shape[:-1], *index.shape))
    return _max_of(1, builder, picked, index.shape[1])


def _max_pool_3d(
    builder: Builder, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Symbol:
    _maps(x, 3)
    return _max_inside(builder, x, *(_sizes(value, 3) for value in (kernel, stride or kernel, padding, dilation)))


def _inside(builder: Builder, x: Symbol) -> tuple[Symbol, Callable[[Tensor], Tensor]] | None:
    """The map that has minus infinity around it, and what puts it there; None for any other value.

    It is never the largest number of a window, and no linear bound could hold it.
    """
    moves: list[Monotone] = []
    number = x.node
    while True:
        node = builder.nodes[number]
        if not isinstance(node.operation, Monotone) or len(node.inputs) != 1:
            return None
        moves.insert(0, node.operation)
        (number,) = node.inputs
        shape = builder.nodes[number].shape
        placed = partial(reduce, lambda value, move: move.apply(value), moves)
        zero, one, numbers, squares = (placed(value) for value in _probes(shape))
        outside = zero.isneginf()
        if bool(outside.any()):
            # Coefficients that are not negative and sum to 1 have no spread only where there is one of them.
            picks = (zero == 0) & (one == 1) & (squares == numbers.square())
            return (Symbol(number, (1, *shape)), placed) if bool((outside | picks).all()) else None


def _probes(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    return torch.zeros_like(numbers), torch.ones_like(numbers), numbers, numbers.square()


def _max_inside(builder: Builder, x: Symbol, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Symbol:
    """The maxima over windows, of which only what lies inside the map is looked at."""
    shape = example_shape(x.shape)
    source, placed = _inside(builder, x) or (Symbol(x.node, (1, *shape)), torch.clone)
    places = placed(_probes(source.shape[1:])[2]).reshape(shape)
    for axis, (size, step, room, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), 1):
        length, count = shape[axis], example_shape(builder.shape)[axis]
        window = torch.arange(count)[:, None] * step - room + torch.arange(size) * spread
        outside = (window < 0) | (window >= length)
        places = places.index_select(axis, window.masked_fill(outside, 0).flatten()).unflatten(axis, (count, size))
        places = places.movedim(axis + 1, -1).masked_fill(
            outside.reshape(count, *[1] * (places.dim() - axis - 2), size), -torch.inf
        )
    places = places.flatten(len(shape))
    last = places.amax(-1, keepdim=True)
    if bool(last.isneginf().any()):
        raise ModelError("a window lies outside of the map; take less padding")
    index = torch.where(places.isneginf(), last, places).long().flatten(0, -2)
    flat = builder.reshaped(source, (1, math.prod(source.shape)))
    picked = builder.move(partial(_picked, places=index), flat, shape=(1, *index.shape))
    return _max_of(1, builder, picked, index.shape[1])


def _adaptive_max_pool(dimensions: int, builder: Builder, x: Any, *_: Any) -> Symbol:
    _maps(x, dimensions)
    sizes = list(zip(x.shape[-dimensions:], builder.shape[-dimensions:], strict=True))
    if dimensions < 3 and all(length % count == 0 for length, count in sizes):
        return _max_pool(dimensions, builder, x, [length // count for length, count in sizes])
    axes = [
        [list(range(i * length // count, -(-(i + 1) * length // count))) for i in range(count)]
        for length, count in sizes
    ]
    return _max_windows(builder, x, axes)


# Resampling


def _upsample_nearest(builder: Builder, x: Any, *settings: Any) -> Symbol:
    lead, size = x.shape[:2], x.shape[2:]
    places = torch.arange(math.prod(size)).reshape(1, 1, *size)
    index = builder.target(places.double(), *settings).long().flatten()
    # Where they are is computed in the precision of the numbers.
    if not torch.equal(builder.target(places.float(), *settings).long().flatten(), index):
        raise ModelError("it takes other pixels in float32 than in float64; choose another size")
    flat = builder.reshaped(x, (*lead, math.prod(size)))
    return builder.reshaped(
        builder.move(partial(_picked, places=index), flat, shape=(*lead, len(index))), builder.shape
    )


def _upsample_linear(
    builder: Builder, x: Any, sizes: Any, corners: bool, factors: Sequence[float] | None = None
) -> Symbol:
    """Along one axis after the other, by weights that are exact."""
    ideal, value = builder.between(), x
    lengths = x.shape[2:]
    for axis, (length, count) in enumerate(zip(lengths, builder.shape[2:], strict=True), 2):
        matrix = _interpolation(length, count, None if factors is None else factors[axis - 2], corners)
        turned = _turned(ideal, value, axis, -1)
        drawn = ideal.add(Dense(matrix.to(ideal.dtype), None), turned, shape=(*turned.shape[:-1], count))
        value = _turned(ideal, drawn, -1, axis)
    same = Monotone(partial(_reshaped, shape=example_shape(value.shape)), separate=True)
    return builder.add(same, value, shape=value.shape, error=partial(_interpolating, lengths=lengths), also=[x])


def _interpolation(length: int, count: int, factor: float | None, corners: bool) -> Tensor:
    """``(count, length)`` the weights of linear interpolation, each rounded once."""
    weights = torch.zeros(count, length, dtype=torch.float64)
    for place in range(count):
        if corners:
            source = Fraction(place * (length - 1), count - 1) if count > 1 else Fraction(0)
        else:
            step = Fraction(length, count) if factor is None else Fraction(1 / factor)
            source = max(Fraction(0), step * (place + Fraction(1, 2)) - Fraction(1, 2))
        first = min(int(source), length - 1)
        second = min(first + 1, length - 1)
        share = min(source - first, Fraction(1))
        weights[place, first] += float(1 - share)
        weights[place, second] += float(share)
    return weights


def _interpolating(unit: float, value: Interval, x: Interval, *, lengths: Sequence[int]) -> Tensor:
    """What rounding does: each place is off by a few units of the axis' length, and so are the two weights there."""
    share = sum(8 * length + 32 for length in lengths) * 2 * unit
    most = largest(x).flatten(1).amax(1)
    return (most * share).reshape(-1, *[1] * (value.lower.dim() - 1)).expand(value.lower.shape)


# Normalisation


def _instance_norm(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float,
    *_: Any,
) -> Symbol:  # fmt: skip
    if own:
        return _group_norm(builder, x, x.shape[1], weight, bias, eps)
    return _batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)


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
    lost = partial(_vanishing, center=builder.constant(_channels(mean, x.shape), x.shape), network=builder.network)
    vanishes = bool(((factor != 0) & (factor.abs() < 2 * torch.finfo(builder.network).tiny)).any())
    factor, shift, size = (_channels(values, x.shape) for values in (factor, shift, size))
    return _scaled(builder, x, factor, shift, size=size, roundings=_NORMALISED, error=lost if vanishes else None)


def _vanishing(unit: float, x: Interval, *, center: Tensor, network: torch.dtype) -> Tensor:
    """What a factor loses that is made in several steps and is too small a number, times what it is multiplied with."""
    info = torch.finfo(network)
    smallest = _NORMALISED * info.tiny * info.eps * bool(unit)
    return (largest(x) + center.abs().to(largest(x))) * smallest


def _batch_norm_in_evaluation(
    builder: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Symbol:
    return _batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)


def _batch_statistics(builder: Builder, *_: Any) -> Symbol:
    raise ModelError("it normalises by the statistics of the batch, which ties the rows together")


# Of more numbers than this the mean is taken off as a number, which bounds hardly notice: the matrix grows too large.
_WIDEST = 1024


def _mean_along(builder: Builder, x: Symbol) -> Symbol:
    """Along the last dimension, which stays."""
    mean = partial(torch.mean, dim=-1, keepdim=True)
    return builder.move(mean, x, shape=(*x.shape[:-1], 1), terms=x.shape[-1])


def _centred(builder: Builder, x: Symbol) -> Symbol:
    """Without its mean along the last dimension."""
    width = x.shape[-1]
    if width > _WIDEST:
        mean = builder.broadcast(_mean_along(builder, x), x.shape)
        return builder.add(Sum((1, -1)), x, mean, shape=x.shape)
    unit = torch.eye(width, dtype=builder.dtype)
    return builder.add(Dense(unit - 1 / width, None), x, shape=x.shape)


def _standardised(builder: Builder, x: Symbol, eps: float) -> Symbol:
    """Zero mean and unit variance along the last dimension."""
    width, ideal = x.shape[-1], builder.between()
    centred = _centred(ideal, x)
    variance = _mean_along(ideal, _activation("square", ideal, centred))
    inverse = _reciprocal_root(ideal, _scaled(ideal, variance, 1.0, eps))
    wide = ideal.broadcast(inverse, x.shape)
    product = ideal.add(Product(), centred, wide, shape=x.shape)
    # No number is farther from the mean of its kind than the root of their count times the deviation. Bounds of the
    # three parts do not know that of each other.
    most = float(math.isqrt(width - 1) + 1)
    value = ideal.add(Elementwise(replace(clamp(-most, most), ends=None)), product, shape=x.shape)
    same = Monotone(partial(_reshaped, shape=example_shape(x.shape)), separate=True)
    return ideal.add(same, value, shape=x.shape, error=partial(_standardising, eps=eps), also=[wide, x])


def _variance(
    builder: Builder, x: Any, dims: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Symbol:
    dims = list(dims or range(len(x.shape)))
    _within(x, dims)
    inner = sorted(dim % len(x.shape) for dim in dims)
    order = [dim for dim in range(len(x.shape)) if dim not in inner] + inner
    count, ideal = math.prod(x.shape[dim] for dim in inner), builder.between()
    rest = math.prod(x.shape) // count
    turned = ideal.move(partial(torch.permute, dims=order), x, shape=tuple(x.shape[dim] for dim in order))
    flat = ideal.reshaped(turned, (1, rest, count))
    mean = _mean_along(ideal, _activation("square", ideal, _centred(ideal, flat)))
    freedom = count - (1 if correction is None else correction)
    if freedom <= 0:
        raise ModelError("the variance of so few numbers is not defined")
    share = count / freedom
    value = ideal.reshaped(_scaled(ideal, mean, share, 0.0), builder.shape)
    same = Monotone(partial(_reshaped, shape=example_shape(builder.shape)), separate=True)
    found = ideal.add(same, value, error=partial(_varying, count=count, share=share), also=[x])
    return ideal.add(relu(), found)  # rounding makes none negative


def _varying(unit: float, value: Interval, x: Interval, *, count: int, share: float) -> Tensor:
    """What rounding does to a variance, as :func:`_standardising` says."""
    most = largest(x).flatten(1).amax(1).square() * (share * unit * (4 * count + 20))
    return most.reshape(-1, *[1] * (value.lower.dim() - 1)).expand(value.lower.shape)


def _deviation(builder: Builder, x: Any, dims: Any = None, **settings: Any) -> Symbol:
    return _activation("sqrt", builder, _variance(builder, x, dims, **settings))


def _standardising(unit: float, value: Interval, inverse: Interval, x: Interval, *, eps: float) -> Tensor:
    """What rounding does to a standardised value.

    However a variance of ``n`` numbers is computed, from the sum of their squares or from their distances from the
    mean, it is off by at most a few ``n`` units of the largest square among them (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", table 1). Whatever is left of one, it is not negative.
    """
    count = x.lower.shape[-1]
    reach, scale = largest(x).amax(-1, keepdim=True), inverse.upper
    # By how much the root of the variance is off, relatively; from a quarter on only the sizes are known.
    relative = unit * ((4 * count + 20) * (reach * scale).square() + 8)
    size = torch.minimum(torch.full_like(scale, float(count) ** 0.5), 2 * reach * scale)
    room = 2 * relative * size + unit * (count + 12) * reach * scale
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
    return _masked_softmax(builder, x, dim, None)


def _masked_softmax(builder: Builder, x: Any, dim: int, kept: Tensor | None) -> Symbol:
    """``1 / (1 + sum_j exp(z_j - z_k))`` over all other ``j``: no product, and at most 1 whatever the bounds.

    What a constant mask does not keep is 0, and so is its part in the sums: whatever the network puts there, minus
    infinity or a large number, goes no farther.
    """
    builder = builder.between()
    _within(x, [dim])
    place = dim % len(x.shape)
    whole, (x, found, numbers) = _turned(builder, x, place, -1), _unmasked(builder, x)
    last = _turned(builder, x, place, -1)
    masks = [mask.expand(x.shape).movedim(place, -1) for mask in (kept, found) if mask is not None]
    mask = torch.stack(masks).all(0) if masks else None
    if mask is not None and not bool(mask.any(-1).all()):
        raise ModelError("a softmax of which everything is masked is not defined")
    count = last.shape[-1]
    if count == 1:
        return _fixed(builder, whole, 1.0)
    pairs = (*last.shape, count - 1)
    others = torch.tensor([[j for j in range(count) if j != k] for k in range(count)], dtype=torch.int64)
    each = builder.move(partial(_picked, places=others), last, shape=pairs)
    own = builder.move(partial(_repeated, count=count - 1), last, shape=pairs)
    both = None if mask is None else mask[..., others] & mask.unsqueeze(-1)
    distances = _kept(builder, builder.add(Sum((1, -1)), each, own, shape=pairs), both)
    powers = _kept(builder, _activation("exp", builder, distances), both)
    total = builder.move(partial(torch.sum, dim=-1), powers, shape=last.shape, terms=count)
    total = _scaled(builder, total, 1.0, 1.0)
    error = partial(_softmax_error, count=count)
    weights = builder.add(Elementwise(ACTIVATIONS["reciprocal"]), total, shape=last.shape, error=error)
    weights = _kept(builder, weights, mask)
    if numbers is not None:
        shape = example_shape(last.shape)
        at_last = torch.as_tensor(mask).reshape(shape), numbers.movedim(place, -1).reshape(shape)
        lost = partial(_masking, kept=at_last[0], numbers=at_last[1])
        same = Monotone(partial(_reshaped, shape=shape), separate=True)
        weights = builder.add(same, weights, shape=last.shape, error=lost, also=[last, whole])
    return _turned(builder, weights, -1, place)


def _kept(builder: Builder, x: Symbol, mask: Tensor | None) -> Symbol:
    """The values that a mask keeps; 0 in the place of the others."""
    if mask is None:
        return x
    return builder.add(Monotone(partial(_kept_values, mask=mask.reshape(example_shape(x.shape)))), x, shape=x.shape)


def _kept_values(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.to(x.device), x, 0)


def _masking(
    unit: float, weights: Interval, scores: Interval, whole: Interval, *, kept: Tensor, numbers: Tensor
) -> Tensor:
    """What numbers that were put in the place of others take of a softmax: the share of their exponentials."""
    kept, numbers = (mask.to(scores.lower.device) for mask in (kept, numbers))
    most = scores.lower.masked_fill(~kept, -torch.inf).amax(-1, keepdim=True)
    beyond = whole.upper.masked_fill(~numbers, -torch.inf)
    found = (beyond - most).exp().sum(-1, keepdim=True) * (1 + 4 * kept.shape[-1] * torch.finfo(most.dtype).eps)
    return found.nan_to_num(1.0).clamp(0, 1).expand(weights.lower.shape)


# Constants of this size, from which nothing that depends on the input comes back, are meant as minus infinity.
_MASKED = -1e4


def _unmasked(builder: Builder, x: Symbol) -> tuple[Symbol, Tensor | None, Tensor | None]:
    """A value without the large negative numbers that were put into it or added to it.

    And where there are none, and where there are some that are not minus infinity.

    They are looked for in the moves and shifts that lead to the value.
    """
    steps, number = list[int](), x.node
    while isinstance(builder.nodes[number].operation, Monotone | Scale) and len(builder.nodes[number].inputs) == 1:
        steps.append(number)
        number = builder.nodes[number].inputs[0]
    value = torch.zeros(1, *builder.nodes[number].shape, dtype=builder.dtype)
    found = Symbol(number, (1, *builder.nodes[number].shape))
    masked = torch.zeros_like(value, dtype=torch.bool)
    with torch.no_grad():
        for step in reversed(steps):
            node = builder.nodes[step]
            assert isinstance(node.operation, Monotone | Scale)
            value = node.operation.apply(value)
            masked = value <= _MASKED
            operation = _emptied(node.operation, masked[0]) if bool(masked.any()) else node.operation
            at = replace(builder, executed=node.executed)
            found = at.add(operation, found, shape=(1, *node.shape))
    if not bool(masked.any()):
        return x, None, None
    finite = masked & (value > -torch.inf)
    numbers = finite.reshape(x.shape) if bool(finite.any()) else None
    return Symbol(found.node, x.shape), ~masked.reshape(x.shape), numbers


def _emptied(operation: Monotone | Scale, masked: Tensor) -> Monotone | Scale:
    """The operation with 0 for the constants in some places."""
    if isinstance(operation, Scale):
        shift, size = (torch.where(masked, 0, part) for part in (operation.shift, operation.size))
        return replace(operation, shift=shift, size=size)
    return replace(operation, function=partial(_without, function=operation.function, masked=masked))


def _without(*inputs: Tensor, function: Callable[..., Tensor], masked: Tensor) -> Tensor:
    return function(*inputs).masked_fill(masked.to(inputs[0].device), 0)


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


def _sum_all(builder: Builder, x: Any, **more: Any) -> Symbol:
    return _sum_along(builder, x, list(range(len(x.shape))), **more)


def _sum_up(builder: Builder, x: Any, dim: int, **more: Any) -> Symbol:
    """Running sums."""
    _within(x, [dim])
    function = partial(_with, function=builder.target, settings=(dim,), more=more)
    return builder.move(function, x, terms=max(2, x.shape[dim]))


def _norm(builder: Builder, x: Any, order: float = 2, dims: Any = None, keep: bool = False, **_: Any) -> Symbol:
    """The length of vectors."""
    dims = list(range(len(x.shape))) if dims is None else dims
    sizes = _activation("square", builder, x) if order == 2 else _abs(builder, x)
    if order == math.inf:
        return _max_along(1, builder, sizes, dims, keep)
    if order not in (1, 2):
        raise ModelError("norms of order 1, 2 and infinity are bounded")
    _within(x, dims)
    terms = math.prod(x.shape[dim] for dim in dims)
    total = builder.move(partial(torch.sum, dim=dims, keepdim=keep), sizes, terms=max(2, terms))
    return _activation("sqrt", builder, total) if order == 2 else total


def _select(builder: Builder, x: Any, dim: int, index: int) -> Symbol:
    """One of a dimension; of two that are 1 long, the batch is the other one."""
    if dim == 0 and x.shape[:2] == (1, 1):
        return builder.reshaped(x, builder.shape)
    return _along(builder, x, dim, index)


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
    if any(amounts[2 * (len(x.shape) - 1) :]):
        raise ModelError("it pads the batch")
    values = [value for value in settings if isinstance(value, int | float)]
    function = partial(_with, function=builder.target, settings=(amounts, *settings), more={})
    return builder.move(function, x, terms=_terms(builder, *values))


def _join(builder: Builder, tensors: Any, dim: int = 0) -> Symbol:
    """``cat`` and ``stack``."""
    symbols = [tensor for tensor in tensors if isinstance(tensor, Symbol)]
    places = [None if isinstance(tensor, Symbol) else tensor for tensor in tensors]
    function = partial(_joined, function=builder.target, places=places, dim=dim)
    return builder.move(function, *symbols, terms=_terms(builder, *places))


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


# Recurrent networks, step by step


def _recurrent(kind: str, builder: Builder, x: Any, state: Any, params: Any, *settings: Any) -> list[Symbol]:
    """An LSTM, a GRU or a plain network, unrolled over its steps."""
    biased, layers, _, _, both, first = settings
    _constant_weight(*params, *(state if isinstance(state, list | tuple) else [state]))
    states = list(state) if isinstance(state, list | tuple) else [state]
    if x.shape[0 if first else 1] != 1:
        raise ModelError("it works along the batch; bounds need independent rows")
    time, width, directions = (1 if first else 0), states[0].shape[-1], 2 if both else 1
    each = 4 if biased else 2
    if len(params) != each * layers * directions:
        raise ModelError("a recurrent network with projections is not bounded")
    values = [
        builder.move(partial(torch.select, dim=time, index=step), x, shape=(1, x.shape[-1]))
        for step in range(x.shape[time])
    ]
    ends: list[list[Symbol]] = []
    for layer in range(layers):
        runs = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = [torch.as_tensor(part) for part in params[number * each : (number + 1) * each]]
            found, last = _run(
                kind, builder, values[::-1] if direction else values, weights, [s[number] for s in states]
            )
            runs.append(found[::-1] if direction else found)
            ends.append(last)
        values = [
            parts[0] if directions == 1 else builder.move(_side_by_side, *parts, shape=(1, 2 * width))
            for parts in zip(*runs, strict=True)
        ]
    whole = builder.move(partial(_stacked, dim=time), *values)
    shape = (layers * directions, 1, width)
    return [whole, *(builder.move(partial(_stacked, dim=0), *last, shape=shape) for last in zip(*ends, strict=True))]


def _side_by_side(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _stacked(*parts: Tensor, dim: int) -> Tensor:
    return torch.stack(parts, dim)


def _run(
    kind: str, builder: Builder, values: list[Symbol], weights: list[Tensor], states: list[Tensor]
) -> tuple[list[Symbol], list[Symbol]]:
    """One layer in one direction: the value of each step, and the states after the last."""
    width = states[0].shape[-1]
    matrix, bias = _cell_weights(kind, weights, width)
    at = builder.at(builder.name, builder.target, (1, width))
    hidden: list[Any] = list(states)
    found = []
    for x in values:
        joined = builder.at(builder.name, torch.cat, (1, matrix.shape[1]))
        inputs = _join(joined, [x, hidden[0], torch.ones(1, 1, dtype=builder.dtype)], 1)
        gates = builder.add(Dense(matrix, bias), inputs, shape=(1, len(matrix)))
        parts = [
            builder.move(partial(torch.narrow, dim=1, start=start, length=width), gates, shape=(1, width))
            for start in range(0, len(matrix), width)
        ]
        hidden = _CELLS[kind](at, parts, hidden)
        found.append(hidden[0])
    return found, hidden


def _cell_weights(kind: str, weights: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """What a step is multiplied with: the input, the state and a 1, in the place of the state's bias.

    Together, so that the sums may be taken in any order. Of a GRU the last part comes twice, of the input alone and of
    the state alone.
    """
    by_input, by_state = weights[:2]
    first, second = weights[2:] if len(weights) > 2 else (by_input.new_zeros(len(by_input)),) * 2
    if kind == "gru":
        zeros, none = torch.zeros_like, 2 * width
        by_input = torch.cat([by_input, zeros(by_input[none:])])
        by_state = torch.cat([by_state[:none], zeros(by_state[none:]), by_state[none:]])
        first = torch.cat([first, zeros(first[none:])])
        second = torch.cat([second[:none], zeros(second[none:]), second[none:]])
    return torch.cat([by_input, by_state, second.unsqueeze(1)], 1), first


def _lstm_cell(builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    enter, forget, leave = (_gate("sigmoid", builder, parts[i]) for i in (0, 1, 3))
    new = _multiply(builder, enter, _gate("tanh", builder, parts[2]))
    cell = _add(builder, _multiply(builder, forget, hidden[1]), new)
    return [_multiply(builder, leave, _gate("tanh", builder, cell)), cell]


def _gru_cell(builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    reset, update = (_gate("sigmoid", builder, part) for part in parts[:2])
    new = _gate("tanh", builder, _add(builder, parts[2], _multiply(builder, reset, parts[3])))
    step = _subtract(builder, hidden[0], new)
    moved = _multiply(builder, update, step)
    return [builder.add(Sum((1, 1)), new, moved, shape=builder.shape, error=_blending, also=[step])]


def _plain_cell(name: str, builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    return [_relu(builder, parts[0]) if name == "relu" else _gate(name, builder, parts[0])]


_CELLS: dict[str, Callable[[Builder, list[Symbol], list[Any]], list[Any]]] = {
    "lstm": _lstm_cell,
    "gru": _gru_cell,
    "rnn_tanh": partial(_plain_cell, "tanh"),
    "rnn_relu": partial(_plain_cell, "relu"),
}


def _gate(name: str, builder: Builder, x: Symbol) -> Symbol:
    return builder.add(Elementwise(ACTIVATIONS[name]), x, shape=x.shape, error=_gating)


def _gating(unit: float, x: Interval) -> Tensor:
    """Kernels for whole layers have functions of their own, good to some units of 1."""
    return torch.full_like(x.lower, 32 * unit)


def _blending(unit: float, new: Interval, moved: Interval, step: Interval) -> Tensor:
    """``(1 - z) n + z h`` may be computed as that, or as ``n + z (h - n)``: three roundings of sizes like these."""
    return 8 * unit * (2 * largest(new) + largest(step))


def _get(builder: Builder, parts: list[Symbol], place: int) -> Symbol:
    if place >= len(parts):
        raise ModelError("the indices of a max pooling are not bounded")
    return parts[place]


def _same(builder: Builder, x: Symbol, *_: Any, **__: Any) -> Symbol:
    return x


def _constant_like(builder: Builder, x: Symbol, *settings: Any, **more: Any) -> Tensor:
    """``ones_like`` and its kind, which take no more than the shape and the precision."""
    constant: Tensor = builder.target(torch.zeros(x.shape, dtype=builder.network), *settings, **more)
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
    moved = Monotone(pick, terms=_terms(builder, *constants))
    return builder.add(moved, *(source for source in sources if isinstance(source, Symbol)))


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
    if isinstance(indices[0], Symbol) and indices[0].shape == builder.shape and y.numel() == 1 and not accumulate:
        return _where(builder, indices[0], y, x)
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

LOGIC: dict[str, Rule] = {
    "bitwise_and.Tensor": _and,
    "bitwise_not.default": _not,
    "bitwise_or.Tensor": _or,
    "logical_and.default": _and,
    "logical_not.default": _not,
    "logical_or.default": _or,
}

# They say the type of their result in many ways, and it is that of their value.
CASTS = frozenset((
    "_to_copy.default", "to.device", "to.dtype", "to.dtype_layout", "to.other", "type_as.default",
))  # fmt: skip

RULES: dict[str, Rule] = {
    **LOGIC,
    **{f"{name}.default": partial(_in_steps, name) for name in ROUNDED},
    **{f"{name}.default": partial(_activation, name) for name in (
        "atan", "cos", "erf", "exp", "expm1", "hardswish", "log", "log1p", "reciprocal", "sigmoid", "sin",
        "sqrt", "square", "tanh",
    )},
    **dict.fromkeys((
        "_unsafe_view.default", "flatten.using_ints", "reshape.default", "squeeze.default", "squeeze.dim",
        "squeeze.dims", "unflatten.int", "unsqueeze.default", "view.default", "view_as.default",
    ), _reshape),
    **dict.fromkeys((
        "expand.default", "pixel_shuffle.default", "pixel_unshuffle.default", "permute.default", "repeat.default",
        "t.default", "transpose.int",
    ), _move),
    **dict.fromkeys((
        "flip.default", "index_select.default", "narrow.default",
    ), _along),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), _sum_along),
    **dict.fromkeys(("mean.default", "sum.default"), _sum_all),
    **dict.fromkeys((
        "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec",
        "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
    ), _upsample_nearest),
    **dict.fromkeys((
        "upsample_bilinear2d.vec", "upsample_linear1d.vec", "upsample_trilinear3d.vec",
    ), _upsample_linear),
    **{f"{kind}.input": partial(_recurrent, kind) for kind in _CELLS},
    **{
        f"{name}.{overload}": partial(_compare, falling, reached)
        for name, falling, reached in (
            ("ge", False, True), ("gt", False, False), ("le", True, True), ("lt", True, False),
        )
        for overload in ("Scalar", "Tensor")
    },
    **{
        f"{name}.{overload}": partial(_equal, same)
        for name, same in (("eq", True), ("ne", False)) for overload in ("Scalar", "Tensor")
    },
    **dict.fromkeys(("where.Scalar", "where.ScalarOther", "where.ScalarSelf", "where.self"), _where),
    **dict.fromkeys(("masked_fill.Scalar", "masked_fill.Tensor"), _masked_fill),
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
    "adaptive_avg_pool3d.default": partial(_pool_average, 3),
    "adaptive_max_pool1d.default": _first_of(partial(_adaptive_max_pool, 1)),
    "adaptive_max_pool2d.default": _first_of(partial(_adaptive_max_pool, 2)),
    "adaptive_max_pool3d.default": _first_of(partial(_adaptive_max_pool, 3)),
    "add.Scalar": _add,
    "add.Tensor": _add,
    "addmm.default": _addmm,
    "amax.default": partial(_max_along, 1),
    "amin.default": partial(_max_along, -1),
    "avg_pool1d.default": partial(_pool_average, 1),
    "avg_pool2d.default": partial(_pool_average, 2),
    "avg_pool3d.default": partial(_pool_average, 3),
    "baddbmm.default": _baddbmm,
    "batch_norm.default": _batch_norm,
    "bmm.default": _matmul,
    "cat.default": _join,
    "celu.default": _celu,
    "clamp.Tensor": _clamp_between,
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
    "cumsum.default": _sum_up,
    "div.Scalar": _divide,
    "div.Tensor": _divide,
    "dropout.default": _dropout,
    "elu.default": _elu,
    "feature_dropout.default": _dropout,
    "fill.Tensor": partial(_placed, (0, 1), ()),
    "gelu.default": _gelu,
    "getitem": _get,
    "group_norm.default": _group_norm,
    "hardshrink.default": _hardshrink,
    "hardsigmoid.default": _hardsigmoid,
    "hardtanh.default": _hardtanh,
    "index.Tensor": _index,
    "index_fill.int_Scalar": partial(_placed, (0, 3), (1,)),
    "index_put.default": _index_put,
    "instance_norm.default": _instance_norm,
    "layer_norm.default": _layer_norm,
    "leaky_relu.default": _leaky_relu,
    "linalg_vector_norm.default": _norm,
    "linear.default": _linear,
    "log_sigmoid.default": partial(_activation, "logsigmoid"),
    "log_softmax.int": _log_softmax,
    "logsumexp.default": _log_sum_exp,
    "matmul.default": _matmul,
    "max.dim": _first_of(partial(_max_along, 1)),
    "max.other": _maximum,
    "max_pool1d.default": partial(_max_pool, 1),
    "max_pool2d.default": partial(_max_pool, 2),
    "max_pool2d_with_indices.default": _first_of(partial(_max_pool, 2)),
    "max_pool3d.default": _max_pool_3d,
    "maximum.default": _maximum,
    "min.dim": _first_of(partial(_max_along, -1)),
    "min.other": _minimum,
    "minimum.default": _minimum,
    "mish.default": _mish,
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
    "round.decimals": partial(_in_steps, "round"),
    "rsqrt.default": _reciprocal_root,
    "rsub.Scalar": _reverse_subtract,
    "scaled_dot_product_attention.default": _attention,
    "select.int": _select,
    "selu.default": _selu,
    "select_scatter.default": partial(_placed, (0, 1), (2,)),
    "sign.default": _sign,
    "silu.default": _silu,
    "slice.Tensor": _slice,
    "slice_scatter.default": _slice_scatter,
    "softmax.int": _softmax,
    "softplus.default": _softplus,
    "softshrink.default": _softshrink,
    "stack.default": _join,
    "sub.Scalar": _subtract,
    "sub.Tensor": _subtract,
    "std.correction": _deviation,
    "threshold.default": _threshold,
    "truediv.Tensor": _divide,
    "var.correction": _variance,
}  # fmt: skip
