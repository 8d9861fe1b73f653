"""Operators that compute each number alone: arithmetic, comparisons, activations, casts.

Operands are tensors, but for constants of no dimension, which are Python numbers where the other operand is a tensor.
"""

from __future__ import annotations

import functools
import operator as python
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.onnx.node import Node, Rule

Number = float | int | bool
Operand = Tensor | Number


def _plain(function: Callable[..., Tensor], node: Node, *inputs: Operand) -> Tensor:
    """Apply a function that needs no attribute of the node."""
    return function(*inputs)


def _identity(node: Node, x: Tensor) -> Tensor:
    return x


def _is_whole(*operands: Operand) -> bool:
    return not any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in operands)


def _as_tensor(value: Operand, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _pair(a: Operand, b: Operand) -> tuple[Tensor, Tensor]:
    """Both as tensors, for functions that take nothing else."""
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    return _as_tensor(a, like), _as_tensor(b, like)


def _divide(node: Node, a: Operand, b: Operand) -> Tensor:
    if _is_whole(a, b):  # towards zero, as in C
        return torch.div(*_pair(a, b), rounding_mode="trunc")
    return torch.div(a, b) if isinstance(a, Tensor) else torch.div(*_pair(a, b))


def _modulo(node: Node, a: Operand, b: Operand) -> Tensor:
    if node.get("fmod", 0):  # the sign of the dividend
        return torch.fmod(*_pair(a, b))
    if not _is_whole(a, b):
        raise ModelError("of floating-point numbers it needs the attribute fmod")
    return torch.remainder(*_pair(a, b))


def _power(node: Node, base: Operand, exponent: Operand) -> Tensor:
    """The result has the base's type, whatever the exponent's is."""
    if not isinstance(base, Tensor):
        base, exponent = _pair(base, exponent)
    power = torch.pow(base, exponent)
    return power if power.dtype == base.dtype else power.to(base.dtype)


def _several(function: Callable[[Operand, Operand], Operand], node: Node, *inputs: Operand) -> Operand:
    return functools.reduce(function, inputs)


def _maximum(a: Operand, b: Operand) -> Tensor:
    return torch.maximum(*_pair(a, b))


def _minimum(a: Operand, b: Operand) -> Tensor:
    return torch.minimum(*_pair(a, b))


def _mean(node: Node, *inputs: Operand) -> Operand:
    return functools.reduce(python.add, inputs) / len(inputs)


def _compare(function: Callable[..., Tensor], node: Node, a: Operand, b: Operand) -> Tensor:
    return function(*_pair(a, b))


def _where(node: Node, condition: Operand, a: Operand, b: Operand) -> Tensor:
    if not isinstance(condition, Tensor):
        raise ModelError("its condition is a single constant; export the network with constants folded")
    return torch.where(condition, a, b)


def _cast(node: Node, x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` in the type of ``like``; as it is where that is not given, since it has the type already.

    Floating point is rounded as IEEE 754 does, and whole numbers are cut off towards zero. Where a number is beyond a
    whole type, ONNX does not say what becomes of it.
    """
    return x if like is None else x.to(like.dtype)


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def _clip(node: Node, x: Tensor, low: Number | None = None, high: Number | None = None) -> Tensor:
    low, high = node.get("min", low), node.get("max", high)
    if node.opset < 11 and x.dtype == torch.float64:  # where limits left out were those of single precision
        single = torch.finfo(torch.float32)
        low, high = single.min if low is None else low, single.max if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if alpha == _SIXTH and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


_SIXTH = float(torch.tensor(1 / 6, dtype=torch.float32))  # as an attribute holds it


def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


def _celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


def _selu(node: Node, x: Tensor) -> Tensor:
    if not {"alpha", "gamma"} & node.attributes.keys():
        return functional.selu(x)
    alpha, gamma = node.get("alpha", _SELU_ALPHA), node.get("gamma", _SELU_GAMMA)
    scaled: Tensor = gamma * functional.elu(x, alpha)
    return scaled


_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # the specification's defaults


def _prelu(node: Node, x: Tensor, slope: Operand) -> Tensor:
    if isinstance(slope, float | int):
        return functional.leaky_relu(x, float(slope))
    channels = slope.numel()
    if slope.dim() == x.dim() - 1 and x.dim() > 1 and slope.shape[:1] == x.shape[1:2] and slope.shape[0] == channels:
        return functional.prelu(x, slope.flatten())
    return torch.relu(x) - slope * torch.relu(-x)


def _thresholded(node: Node, x: Tensor) -> Tensor:
    return functional.threshold(x, node.get("alpha", 1.0), 0.0)


def _shrink(node: Node, x: Tensor) -> Tensor:
    threshold, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, zero))


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _softplus(node: Node, x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=88.0)  # beyond it the difference to x is below every type's precision


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    negative, positive = node.get("detect_negative", 1), node.get("detect_positive", 1)
    found = torch.zeros_like(x, dtype=torch.bool)
    found = found | torch.isneginf(x) if negative else found
    return found | torch.isposinf(x) if positive else found


def _dropout(node: Node, x: Tensor, ratio: Number | None = None, training: Number | None = None) -> Tensor:
    if training and node.get("ratio", ratio) != 0:
        raise ModelError("it is in training mode; export in eval mode")
    return x


def _unary(**functions: Callable[[Tensor], Tensor]) -> dict[str, Operator]:
    return {name: operator(partial(_plain, function)) for name, function in functions.items()}


def _binary(rule: Rule, **functions: Callable[..., Any]) -> dict[str, Operator]:
    return {name: operator(partial(rule, function), scalars=True) for name, function in functions.items()}


ELEMENTWISE: dict[str, Operator] = {
    **_unary(
        Abs=torch.abs, Acos=torch.acos, Acosh=torch.acosh, Asin=torch.asin, Asinh=torch.asinh, Atan=torch.atan,
        Atanh=torch.atanh, Ceil=torch.ceil, Cos=torch.cos, Cosh=torch.cosh, Erf=torch.erf, Exp=torch.exp,
        Floor=torch.floor, HardSwish=functional.hardswish, IsNaN=torch.isnan, Log=torch.log, Mish=functional.mish,
        Neg=torch.neg, Not=torch.logical_not, Reciprocal=torch.reciprocal, Relu=torch.relu, Round=torch.round,
        Sigmoid=torch.sigmoid, Sign=torch.sign, Sin=torch.sin, Sinh=torch.sinh, Softsign=functional.softsign,
        Sqrt=torch.sqrt, Tan=torch.tan, Tanh=torch.tanh,
    ),
    **_binary(_plain, Add=python.add, And=python.and_, Mul=python.mul, Or=python.or_, Sub=python.sub, Xor=python.xor),
    **_binary(
        _compare, Equal=torch.eq, Greater=torch.gt, GreaterOrEqual=torch.ge, Less=torch.lt, LessOrEqual=torch.le,
    ),
    **_binary(_several, Max=_maximum, Min=_minimum, Sum=python.add),
    "Cast": operator(_cast, "to saturate round_mode"),  # the last two are about types of eight bits, which are refused
    "CastLike": operator(_cast, "saturate round_mode"),
    "Celu": operator(_celu, "alpha"),
    "Clip": operator(_clip, "min max", 1, 2),
    "Div": operator(_divide, scalars=True),
    "Dropout": operator(_dropout, "ratio seed", 1, 2),
    "Elu": operator(_elu, "alpha"),
    "Gelu": operator(_gelu, "approximate"),
    "HardSigmoid": operator(_hard_sigmoid, "alpha beta"),
    "Identity": operator(_identity),
    "IsInf": operator(_is_infinite, "detect_negative detect_positive"),
    "LeakyRelu": operator(_leaky_relu, "alpha"),
    "Mean": operator(_mean, scalars=True),
    "Mod": operator(_modulo, "fmod", scalars=True),
    "PRelu": operator(_prelu, scalars=True),
    "Pow": operator(_power, scalars=True),
    "Selu": operator(_selu, "alpha gamma"),
    "Shrink": operator(_shrink, "lambd bias"),
    "Softplus": operator(_softplus),
    "Swish": operator(_swish, "alpha"),
    "ThresholdedRelu": operator(_thresholded, "alpha"),
    "Where": operator(_where, scalars=True),
}  # fmt: skip
