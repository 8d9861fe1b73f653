"""Input gradients that PyTorch works out slowly on a CPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["FoldedConvolutions", "folds"]

Pair = tuple[int, int]


def folds(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution's input gradient is quicker by columns: where images have one channel, on a CPU."""
    return x.device.type == "cpu" and x.dim() == 4 and x.shape[1] == weight.shape[1] == 1 and weight.is_floating_point()


class _Folded(torch.autograd.Function):
    """A convolution whose input gradient is a matrix product, summed into place: no other operation, another order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.weight, ctx.size, ctx.stride, ctx.padding = weight, x.shape[2:], stride, padding
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        columns = ctx.weight.flatten(1).t() @ grads[0].flatten(2)
        kernel = ctx.weight.shape[2:]
        return (
            functional.fold(columns, ctx.size, kernel, padding=ctx.padding, stride=ctx.stride),
            None,
            None,
            None,
            None,
        )


class FoldedConvolutions(TorchFunctionMode):
    """Inside, convolutions of images with one channel find their input gradient by columns."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs and (plain := _plain(*args)) is not None:
            return _Folded.apply(*plain)
        return func(*args, **(kwargs or {}))


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Pair, Pair] | None:
    """The arguments of a convolution that folds, where it is an ordinary one of frozen weights."""
    if isinstance(padding, str) or groups != 1 or _pair(dilation) != (1, 1) or weight.requires_grad:
        return None
    return (x, weight, bias, _pair(stride), _pair(padding)) if x.requires_grad and folds(x, weight) else None


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value * 2 if len(value) == 1 else tuple(value))
