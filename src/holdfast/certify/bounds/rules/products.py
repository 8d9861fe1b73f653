"""Products with weights, and of two matrices."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.operations.linear import Dense, Weighted
from holdfast.certify.bounds.operations.product import MatrixProduct
from holdfast.certify.bounds.rules.arithmetic import add, affine
from holdfast.certify.bounds.rules.builder import Builder, Shape, Symbol, check_constant, example_shape, reshaped
from holdfast.errors import ModelError

__all__ = ["addmm", "baddbmm", "linear", "matmul"]


def linear(builder: Builder, x: Any, weight: Any, bias: Any = None) -> Symbol:
    """A matrix of weights and a bias."""
    check_constant(weight, bias)
    return builder.add(Dense(weight, bias), x)


def addmm(builder: Builder, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Symbol:
    """``beta * bias + alpha * x @ weight``."""
    check_constant(weight)
    return add(builder, matmul(builder, x, weight * alpha), bias, alpha=beta)


def matmul(builder: Builder, a: Any, b: Any) -> Symbol:
    """The matrix product of two values, or of a value and a constant."""
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

    return reshaped(torch.func.vmap(one)(x.reshape(len(x), *symbol)), shape)


def baddbmm(builder: Builder, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Symbol:
    """``beta * bias + alpha * a @ b``."""
    product = matmul(builder, a, b)
    return add(builder, product if alpha == 1 else affine(builder, product, alpha, 0.0), bias, alpha=beta)
