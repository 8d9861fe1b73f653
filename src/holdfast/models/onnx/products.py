"""Products of matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.T if node.get("transA", 0) else a
    weight = b if node.get("transB", 0) else b.T
    if alpha == beta == 1 and c is not None and c.dim() == 1 and len(c) == len(weight):
        return functional.linear(a, weight, c)
    product = functional.linear(a, weight)
    product = product if alpha == 1 else alpha * product
    if c is None:
        return product
    return product + torch.broadcast_to(c if beta == 1 else beta * c, product.shape)


def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _einsum(node: Node, *tensors: Tensor) -> Tensor:
    if len(tensors) > 2:  # what torch makes on the way may be larger than operands and result
        raise ModelError("products of more than two tensors are not supported")
    return torch.einsum(node.get("equation"), *tensors)


PRODUCTS: dict[str, Operator] = {
    "Einsum": operator(_einsum, "equation"),
    "Gemm": operator(_gemm, "alpha beta transA transB"),
    "MatMul": operator(_matmul),
}
