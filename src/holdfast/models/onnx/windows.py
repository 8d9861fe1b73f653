"""Operators that slide a window over the spatial dimensions: convolution and pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.models.onnx.node import Node


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


_AUTOMATIC = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def _window(node: Node, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> _Window:
    rank = len(kernel)
    if not 1 <= rank <= 3 or len(sizes) != rank or node.get("kernel_shape", kernel) != kernel:
        raise ModelError(f"its window {node.get('kernel_shape', kernel)} does not suit {len(sizes)} spatial dimensions")
    strides: tuple[int, ...] = node.get("strides", (1,) * rank)
    dilations: tuple[int, ...] = node.get("dilations", (1,) * rank)
    auto = node.get("auto_pad", "NOTSET")
    if auto not in _AUTOMATIC:
        raise ModelError(f"its auto_pad '{auto[:20]}' is not one of {', '.join(_AUTOMATIC)}")
    if auto != "NOTSET" and any(node.get("pads", ())):
        raise ModelError("it has both auto_pad and pads, of which one can hold")
    pads: tuple[int, ...] = node.get("pads", (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
    for name, numbers, count, least in (
        ("strides", strides, rank, 1), ("dilations", dilations, rank, 1), ("pads", pads, 2 * rank, 0),
        ("kernel_shape", kernel, rank, 1),
    ):  # fmt: skip
        if len(numbers) != count or min(numbers) < least:
            raise ModelError(f"its {name} {numbers} are not {count} numbers of at least {least}")
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
    sizes = [size + b + e for size, b, e in zip(x.shape[2:], begins, ends, strict=True)]
    check_bytes(math.prod((*x.shape[:2], *sizes)) * x.element_size(), f"padding to {tuple(sizes)} places")
    amounts = [amount for pair in zip(reversed(begins), reversed(ends), strict=True) for amount in pair]
    return functional.pad(x, amounts, value=value) if any(amounts) else x


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(node, tuple(weight.shape[2:]), tuple(x.shape[2:]))
    padding = window.begins
    if not window.symmetric:
        x, padding = _padded(x, window.begins, window.ends), (0,) * len(padding)
    return _CONVOLUTIONS[weight.dim() - 2](
        x, weight, bias, window.strides, padding, window.dilations, node.get("group", 1)
    )


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
    include, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(sizes)]
    dilated = any(dilation != 1 for dilation in window.dilations)
    if not ceil and not dilated and _torch_can_pad(window):
        return function(x, window.kernel, window.strides, window.begins, False, include)
    # the average over a window is over its counted places: the input, its pads if the node says so, and never what the
    # last window of ceil_mode covers beyond them
    ends = _reach(window, sizes, ceil)
    counted = _padded(x.new_ones(1, 1, *sizes), window.begins, window.ends, float(include))
    counted = _padded(counted, (0,) * len(ends), tuple(a - b for a, b in zip(ends, window.ends, strict=True)))
    x = _padded(x, window.begins, ends)
    if dilated:
        return _dilated_sum(x, window) / _dilated_sum(counted, window)
    return function(x, window.kernel, window.strides) / function(counted, window.kernel, window.strides)


def _dilated_sum(x: Tensor, window: _Window) -> Tensor:
    """The sum over a window with gaps: a convolution of each channel with ones."""
    channels = x.shape[1]
    ones = x.new_ones(channels, 1, *window.kernel)
    return _CONVOLUTIONS[len(window.kernel)](x, ones, None, window.strides, 0, window.dilations, channels)


def _torch_can_pad(window: _Window) -> bool:
    return window.symmetric and all(2 * p <= k for p, k in zip(window.begins, window.kernel, strict=True))


def _transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank, sizes = weight.dim() - 2, tuple(x.shape[2:])
    auto = node.get("auto_pad", "NOTSET")
    # the pads of auto_pad follow from the output here, so the window is asked for its other numbers only
    window = _window(_explicit(node) if auto != "NOTSET" else node, tuple(weight.shape[2:]), sizes)
    extra: tuple[int, ...] = node.get("output_padding", (0,) * rank)
    if len(extra) != rank or min(extra) < 0:
        raise ModelError(f"its output_padding {extra} is not {rank} numbers of at least 0")
    begins, ends = window.begins, window.ends
    whole = tuple(
        stride * (size - 1) + more + (k - 1) * dilation + 1
        for stride, size, more, k, dilation in zip(
            window.strides, sizes, extra, window.kernel, window.dilations, strict=True
        )
    )
    wanted = node.get("output_shape")
    if wanted is None and auto in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = tuple(size * stride for size, stride in zip(sizes, window.strides, strict=True))
    if wanted is not None:
        if node.get("output_shape") is None and any(size < target for size, target in zip(whole, wanted, strict=True)):
            # of these, the specification and onnxruntime have readings of their own
            raise ModelError(f"auto_pad '{auto}' is not supported where the strides are larger than the window")
        total = [max(size - target, 0) for size, target in zip(whole, wanted[-rank:], strict=True)]
        # what is wanted beyond the reach of the window is empty, and lies at the end
        extra = tuple(m + max(target - size, 0) for m, size, target in zip(extra, whole, wanted[-rank:], strict=True))
        less, rest = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begins, ends = (less, rest) if auto == "SAME_UPPER" else (rest, less)
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    group = node.get("group", 1)
    if begins == ends and all(m < max(s, d) for m, s, d in zip(extra, window.strides, window.dilations, strict=True)):
        return function(x, weight, bias, window.strides, begins, extra, group, window.dilations)
    check_bytes(math.prod((len(x), group * weight.shape[1], *whole)) * x.element_size(), f"spreading to {whole} places")
    y = function(x, weight, None, window.strides, 0, 0, group, window.dilations)
    amounts = [
        n for b, e, m in zip(reversed(begins), reversed(ends), reversed(extra), strict=True) for n in (-b, m - e)
    ]
    y = functional.pad(y, amounts)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _explicit(node: Node) -> Node:
    return replace(node, attributes={k: v for k, v in node.attributes.items() if k not in {"auto_pad", "pads"}})


def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def _global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


_WINDOW = "auto_pad dilations kernel_shape pads strides"

WINDOWS: dict[str, Operator] = {
    "AveragePool": operator(_average_pool, f"{_WINDOW} ceil_mode count_include_pad"),
    "Conv": operator(_conv, f"{_WINDOW} group"),
    "ConvTranspose": operator(_transposed, f"{_WINDOW} group output_padding output_shape"),
    "GlobalAveragePool": operator(_global_average_pool),
    "GlobalMaxPool": operator(_global_max_pool),
    # the order of storage is that of the indices, which no network here can read
    "MaxPool": operator(_max_pool, f"{_WINDOW} ceil_mode storage_order"),
}
