"""Networks whose first weights are the same every time."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from holdfast.draws import Draws

__all__ = ["dense", "half_spaces"]


def dense(
    *sizes: int, unit: type[nn.Module] = nn.ReLU, gain: float = 2.0, spread: float = 0.0, seed: int = 0
) -> nn.Sequential:
    """Linear layers with units between them.

    Parameters
    ----------
    *sizes : int
        Of the input, the hidden layers and the output.
    unit : type of nn.Module
        Behind every layer but the last.
    gain : float
        A weight of a layer with ``n`` inputs is normal with variance ``gain / n``; 2 is He's for ReLU.
    spread : float
        The standard deviation of the biases.
    seed : int
        Of the draws.

    Returns
    -------
    nn.Sequential
        In float32.
    """
    layers: list[nn.Module] = []
    for layer, (before, after) in enumerate(pairwise(sizes)):
        draws = Draws(seed, torch.arange(after), stage=layer)
        linear = nn.Linear(before, after, device="meta").to_empty(device="cpu")  # draws nothing
        with torch.no_grad():
            linear.weight.copy_((gain / before) ** 0.5 * draws.normal(before))
            linear.bias.copy_(spread * draws.normal(1, lane=1)[:, 0])
        layers += [linear, unit()]
    return nn.Sequential(*layers[:-1])


def half_spaces(w: Tensor) -> nn.Linear:
    """Two classes with a plane through the origin between them.

    Parameters
    ----------
    w : Tensor
        ``(d,)`` points into the second class; logits are ``-w.x`` and ``w.x``.

    Returns
    -------
    nn.Linear
        In the precision of ``w``.
    """
    layer = nn.Linear(len(w), 2, bias=False, dtype=w.dtype, device="meta").to_empty(device="cpu")
    layer.load_state_dict({"weight": torch.stack([-w, w])})
    return layer
