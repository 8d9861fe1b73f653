"""Input gradients that PyTorch works out slowly on a CPU.

Every attack wants the gradient of convolutions with respect to their input, and of the first ones above all. With few
input channels, or with a stride, PyTorch takes two to four times as long for it as for the convolution itself. The ways
here do the same sums in another order.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from holdfast.models.layout import is_channels_last, lay_out

__all__ = ["Geometry", "InputGradients", "by_columns", "by_phases", "phases", "quicker"]

Pair = tuple[int, int]
Way = tuple[Callable[..., Tensor], Tensor]

# Input channels up to which a convolution with a stride has a quicker way.
_MOST = 16


class Geometry(NamedTuple):
    """How the windows of a convolution move over its input."""

    kernel: Pair
    stride: Pair
    padding: Pair


def quicker(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Geometry | None:
    """Of what ``torch.conv2d`` is called with: the geometry, where there is a quicker way to the input gradient.

    That is on a CPU, for undilated convolutions in one group of at most three channels, or of few with a stride. The
    limits were measured, and look at the network alone: a choice by timing would round differently from run to run.
    """
    if weight.shape[1] > _MOST or x.device.type != "cpu" or x.dim() != 4:
        return None
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64) or weight.is_inference():
        return None
    if isinstance(padding, str) or groups != 1 or _pair(dilation) != (1, 1):
        return None
    # Inside these, what a convolution is given is not what it computes with.
    if torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return None
    geometry = Geometry((weight.shape[2], weight.shape[3]), _pair(stride), _pair(padding))
    return geometry if weight.shape[1] <= _most_channels(geometry) else None


def _most_channels(geometry: Geometry) -> int:
    if geometry.stride == (1, 1):
        return 3
    even = all(k % s == 0 or k < s for k, s in zip(geometry.kernel, geometry.stride, strict=True))
    return _MOST if even else _MOST // 2


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value * 2 if len(value) == 1 else tuple(value))


def by_columns(grad: Tensor, columns: Tensor, size: Pair, geometry: Geometry) -> Tensor:
    """The input gradient as a matrix product, summed into place; ``columns`` is the weight, flat and transposed."""
    kernel, stride, padding = geometry
    return functional.fold(columns @ grad.flatten(2), size, kernel, padding=padding, stride=stride)


def phases(weight: Tensor, stride: Pair) -> Tensor:
    """The kernel of :func:`by_phases`, with an output channel for every pixel of a block of the stride and channel.

    Pixels at the same place of their blocks meet the same elements of ``weight``, every stride-th, backwards.
    """
    outputs, channels, height, width = weight.shape
    a, b = stride
    whole = functional.pad(weight, (0, -width % b, 0, -height % a))
    blocks = whole.reshape(outputs, channels, whole.shape[2] // a, a, whole.shape[3] // b, b)
    # A kernel smaller than the stride never reaches the last pixels of a block.
    blocks = blocks[:, :, :, :height, :, :width].flip(2, 4).permute(3, 5, 1, 0, 2, 4)
    return blocks.flatten(0, 2).contiguous()


def by_phases(grad: Tensor, blocks: Tensor, size: Pair, geometry: Geometry) -> Tensor:
    """The input gradient as a convolution without a stride, whose channels are dealt out as pixels."""
    found = functional.conv2d(grad, blocks, padding=(blocks.shape[2] - 1, blocks.shape[3] - 1))
    rows, columns = (_places(*axis) for axis in zip(*geometry, strict=True))
    channels = len(blocks) // (len(rows) * len(columns))
    parts = iter(found.split(channels, 1))
    if is_channels_last(grad):
        x = grad.new_zeros(len(grad), *size, channels).permute(0, 3, 1, 2)
    else:
        x = grad.new_zeros(len(grad), channels, *size)
    for row, top in rows:
        for column, left in columns:
            pixels = x[:, :, row :: geometry.stride[0], column :: geometry.stride[1]]
            part = next(parts)[:, :, top:, left:]
            height, width = map(min, pixels.shape[2:], part.shape[2:])
            pixels[:, :, :height, :width] = part[:, :, :height, :width]
    return x


def _places(kernel: int, stride: int, padding: int) -> list[tuple[int, int]]:
    """For every phase, its first pixel inside the image and how many of its pixels lie in the padding before."""
    outside = (max(0, -((phase - padding) // stride)) for phase in range(min(kernel, stride)))
    return [(stride * skipped + phase - padding, skipped) for phase, skipped in enumerate(outside)]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, way: Way) -> Tensor:
        ctx.size, ctx.geometry, ctx.way = x.shape[2:], geometry, way
        return functional.conv2d(x, weight, bias, geometry.stride, geometry.padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        way, kernel = ctx.way
        return way(grads[0], kernel, ctx.size, ctx.geometry), None, None, None, None


class InputGradients(TorchFunctionMode):
    """Inside, convolutions of fixed weights find their input gradient the quicker way, where there is one.

    Everything else is left to PyTorch. Gradients that come back to a pooling layer are brought into its layout: in
    another one, pooling would copy its input and its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ways = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs and (geometry := quicker(*args)) is not None:
            x, weight, bias = (*args, None)[:3]
            if x.requires_grad and not weight.requires_grad and not (bias is not None and bias.requires_grad):
                return _Convolution.apply(x, weight, bias, geometry, self._way(weight, geometry))
        result = func(*args, **(kwargs or {}))
        pooled = "pool2d" in getattr(func, "__name__", "") and isinstance(result, Tensor)
        if pooled and result.requires_grad and is_channels_last(result):
            result.register_hook(_channels_last)
        return result

    def _way(self, weight: Tensor, geometry: Geometry) -> Way:
        """The way and its kernel, which is made again only when the weight has changed."""
        known = self._ways.get(weight)
        if known is None or known[:2] != (weight._version, geometry.stride):
            way: Way = (by_phases, phases(weight, geometry.stride))
            if weight.shape[1] == 1 or geometry.stride == (1, 1):
                way = (by_columns, weight.flatten(1).t().clone(memory_format=torch.contiguous_format))
            known = self._ways[weight] = (weight._version, geometry.stride, way)
        found: Way = known[2]
        return found


def _channels_last(grad: Tensor) -> Tensor:
    return lay_out(grad, channels_last=True)
