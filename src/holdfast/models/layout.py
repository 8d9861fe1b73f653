"""How images lie in memory: channels first (the default) or last.

Operations choose their algorithm by a tensor's strides. With one channel both layouts hold the same numbers in the
same places and differ in the strides alone, and ``contiguous`` and ``is_contiguous`` cannot tell them apart; hence
these functions.
"""

import torch
from torch import Tensor

__all__ = ["is_channels_last", "lay_out", "pick"]


def is_channels_last(x: Tensor) -> bool:
    """Whether the strides of images ``(N, C, H, W)`` say that channels are innermost."""
    return x.dim() == 4 and x.stride() == _strides(x, channels_last=True) != _strides(x, channels_last=False)


def lay_out(x: Tensor, channels_last: bool) -> Tensor:
    """Images in the asked layout, copied only where they are not; inputs of other dimensions contiguous."""
    if x.dim() != 4:
        return x.contiguous()
    strides = _strides(x, channels_last)
    if x.stride() == strides:
        return x
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return x.as_strided(x.shape, strides)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, in the layout of the whole."""
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
    return x[index]


def _strides(x: Tensor, channels_last: bool) -> tuple[int, ...]:
    _, c, h, w = x.shape
    return (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
