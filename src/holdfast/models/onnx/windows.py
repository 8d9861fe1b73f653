"""Operators that slide a window over the spatial dimensions: convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from holdfast.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.models.onnx.node import Node, Rule


@dataclass(frozen=True)
class _Window:
    """The window's geometry, one entry a spatial dimension, pads worked out."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.begins == self.ends


def _window(node: Node, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> _Window:
    rank = len(kernel)
    strides: tuple[int, ...] = node.get("strides", (1,) * rank)
    dilations: tuple[int, ...] = node.get("dilations", (1,) * rank)
    auto = node.get("auto_pad", "NOTSET")
    pads: tuple[int, ...] = node.get("pads", (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
    begins, ends = pads[:rank], pads[rank:]
    if auto in {"SAME_UPPER", "SAME_LOWER"}:  # as much as makes ceil(size / stride) outputs; an odd one at one side
        total = tuple(
            max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            for size, stride, k, dilation in zip(sizes, strides, kernel, dilations, strict=True)
        )
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begins, ends = (less, more) if auto == "SAME_UPPER" else (more, less)
    return _Window(kernel, strides, dilations, begins, ends)


def _reach(window: _Window, sizes: tuple[int, ...], ceil: bool) -> tuple[int, ...]:
    """Return the padding at the end that the last window needs: none may start beyond the input and its first pad."""
    needed = []
    for size, k, stride, dilation, begin, end in zip(
        sizes, window.kernel, window.strides, window.dilations, window.begins, window.ends, strict=True
    ):
        extent = (k - 1) * dilation + 1
        room = size + begin + end - extent
        last = -(-room // stride) if ceil else room // stride  # the index of the last window
        if ceil and last * stride >= size + begin:
            last -= 1
        needed.append(max(last * stride + extent - size - begin, 0))
    return tuple(needed)


def _padded(x: Tensor, begins: tuple[int, ...], ends: tuple[int, ...], value: float = 0.0) -> Tensor:
    amounts = [amount for pair in zip(reversed(begins), reversed(ends), strict=True) for amount in pair]
    return functional.pad(x, amounts, value=value) if any(amounts) else x


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(node, tuple(weight.shape[2:]), tuple(x.shape[2:]))
    padding = window.begins
    if not window.symmetric:
        x, padding = _padded(x, window.begins, window.ends), (0,) * len(padding)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[weight.dim() - 2]
    return function(x, weight, bias, window.strides, padding, window.dilations, node.get("group", 1))


def _max_pool(node: Node, x: Tensor) -> Tensor:
    sizes = tuple(x.shape[2:])
    window = _window(node, node.get("kernel_shape"), sizes)
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[len(sizes)]
    if not node.get("ceil_mode", 0) and _torch_can_pad(window):
        return function(x, window.kernel, window.strides, window.begins, window.dilations)
    x = _padded(x, window.begins, _reach(window, sizes, bool(node.get("ceil_mode", 0))), float("-inf"))
    return function(x, window.kernel, window.strides, 0, window.dilations)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    sizes = tuple(x.shape[2:])
    window = _window(node, node.get("kernel_shape"), sizes)
    if any(dilation != 1 for dilation in window.dilations):
        raise ModelError("dilations of an average are not supported")
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(sizes)]
    include = bool(node.get("count_include_pad", 0))
    if not node.get("ceil_mode", 0) and _torch_can_pad(window):
        return function(x, window.kernel, window.strides, window.begins, False, include)
    # the average over a window is over its counted places: the input, its pads if the node says so, and never what the
    # last window of ceil_mode covers beyond them
    ends = _reach(window, sizes, bool(node.get("ceil_mode", 0)))
    counted = _padded(x.new_ones(1, 1, *sizes), window.begins, window.ends, float(include))
    counted = _padded(counted, (0,) * len(ends), tuple(a - b for a, b in zip(ends, window.ends, strict=True)))
    x = _padded(x, window.begins, ends)
    return function(x, window.kernel, window.strides) / function(counted, window.kernel, window.strides)


def _torch_can_pad(window: _Window) -> bool:
    return window.symmetric and all(2 * p <= k for p, k in zip(window.begins, window.kernel, strict=True))


def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


WINDOW_OPERATORS: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
}
