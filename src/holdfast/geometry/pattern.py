"""Which candidate every unit of a network takes at an input."""

import torch
from torch import Tensor, nn

from holdfast.arguments import one_input
from holdfast.errors import DataError
from holdfast.geometry.network import Network, take

__all__ = ["activation_pattern", "pattern_of"]


def activation_pattern(model: nn.Module, x: Tensor) -> Tensor:
    """The activation patterns at some inputs: inputs of one pattern are in one linear region.

    Parameters
    ----------
    model : nn.Module
        A sequence of layers that :class:`~holdfast.geometry.Network` knows.
    x : Tensor
        ``(N, *shape)``.

    Returns
    -------
    Tensor
        ``(N, U)`` int64, a number for each unit in the order of the forward pass: of a ReLU 1 where its input is
        positive and else 0, of a max pool the place of the largest value in its window. What a ReLU or a pool does to
        no input at all, as after a layer of zeros, counts as well: one region may have several patterns.

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When the inputs do not fit the model.
    """
    x = one_input(x)
    if x.dim() < 2:
        raise DataError(f"inputs must be (N, *shape), the batch first; got {tuple(x.shape)}")
    return pattern_of(Network.of(model, tuple(x.shape[1:])), x.detach().to("cpu", torch.float64))


def pattern_of(network: Network, x: Tensor) -> Tensor:
    """``(N, U)`` the patterns of ``(N, *shape)`` inputs in float64."""
    choices = [torch.zeros(len(x), 0, dtype=torch.int64)]
    for stage in network.stages:
        candidates = stage.units.candidates(stage.affine(x))
        choices.append(candidates.argmax(2))
        x = take(candidates, choices[-1]).reshape(-1, *stage.units.shape)
    return torch.cat(choices, 1)
