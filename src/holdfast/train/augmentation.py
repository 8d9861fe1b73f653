"""The usual changes of training images."""

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.draws import Draws

__all__ = ["crop_flip"]

_MOST = 4


def crop_flip(x: Tensor, draws: Draws) -> Tensor:
    """Shift every image by up to 4 pixels, zeros coming in from outside, and mirror half of them left to right.

    Parameters
    ----------
    x : Tensor
        ``(N, C, H, W)``.
    draws : Draws
        Of the examples.

    Returns
    -------
    Tensor
        ``(N, C, H, W)``.
    """
    height, width = x.shape[2:]
    down, right, mirror = (draws.uniform(3) * torch.tensor([2 * _MOST + 1, 2 * _MOST + 1, 2.0])).long().unbind(1)
    rows = down.unsqueeze(1) + torch.arange(height)
    columns = torch.arange(width).expand(len(x), width)
    columns = right.unsqueeze(1) + torch.where(mirror.unsqueeze(1) == 1, columns.flip(1), columns)
    padded = functional.pad(x, (_MOST, _MOST, _MOST, _MOST))
    which = torch.arange(len(x)).reshape(-1, 1, 1)
    # Indices around a slice put their dimensions first.
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
