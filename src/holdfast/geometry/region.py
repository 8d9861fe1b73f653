"""The linear region around an input: a polytope, and the affine map that the network is on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from holdfast.arguments import one_input, shown, whole
from holdfast.errors import SettingError
from holdfast.geometry.network import Network, push, take
from holdfast.geometry.pattern import pattern_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LinearRegion", "neighbour", "region_at", "region_of"]


@dataclass(frozen=True, eq=False)
class LinearRegion:
    """Inputs of one activation pattern, and the affine map of the network on them.

    With ``z`` an input, flat, the region is ``normals @ z + offsets >= 0`` and there the output is
    ``weight @ z + bias``. A row of ``normals`` is a facet only if the others leave it one.

    Parameters
    ----------
    network : Network
        Whose region it is.
    pattern : Tensor
        ``(U,)`` as :func:`~holdfast.geometry.activation_pattern` gives it.
    weight, bias : Tensor
        ``(K, d)`` and ``(K,)``, float64: the affine map.
    normals, offsets : Tensor
        ``(F, d)`` and ``(F,)``.
    switches : Tensor
        ``(F, 2)`` int64: the unit that changes its choice there, and what to.
    """

    network: Network
    pattern: Tensor
    weight: Tensor
    bias: Tensor
    normals: Tensor
    offsets: Tensor
    switches: Tensor

    def slack(self, z: Tensor) -> Tensor:
        """``(N, F)`` how far inside each half-space ``(N, *shape)`` inputs are, times the normal's length."""
        return z.reshape(len(z), -1) @ self.normals.T + self.offsets

    def logits(self, z: Tensor) -> Tensor:
        """``(N, K)`` the affine map of ``(N, *shape)`` inputs, inside the region or not."""
        return z.reshape(len(z), -1) @ self.weight.T + self.bias


def region_at(model: nn.Module, x: Tensor) -> LinearRegion:
    """The linear region of one input.

    Parameters
    ----------
    model : nn.Module
        A sequence of linear layers, convolutions, pooling, batch normalisation, ReLU and leaky ReLU. What is computed
        is in float64, and of the model in evaluation mode.
    x : Tensor
        ``(*shape)``, without a batch dimension.

    Returns
    -------
    LinearRegion

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When the input does not fit the model or is not finite.
    """
    x = one_input(x)
    network = Network.of(model, tuple(x.shape))
    x = network.fits(x)
    return region_of(network, pattern_of(network, x[None])[0], x)


def neighbour(region: LinearRegion, facet: int) -> LinearRegion:
    """The region behind a facet, by its row in ``normals``: one unit has changed its choice.

    Raises
    ------
    SettingError
        When there is no such facet.
    """
    region = region_given(region)
    facet = whole("facet", facet, -(2**63), 2**63)
    if not 0 <= facet < len(region.normals):
        raise SettingError(f"facet: the region has {len(region.normals)}, numbered from 0; got {facet}")
    pattern = region.pattern.clone()
    unit, choice = region.switches[facet].tolist()
    pattern[unit] = choice
    return region_of(region.network, pattern, torch.zeros(region.network.shape, dtype=torch.float64))


def region_given(region: Any) -> LinearRegion:
    """A region, as :func:`region_at` finds one.

    Raises
    ------
    SettingError
        When it is none.
    """
    if not isinstance(region, LinearRegion):
        raise SettingError(f"region: one that region_at has found is needed, not {shown(region)}")
    return region


def region_of(network: Network, pattern: Tensor, x: Tensor) -> LinearRegion:
    """The region of a pattern, worked out from ``x``, ``(*shape)``; it may be empty."""
    frame, count = network.whole(x), 0
    facets, switches = [], []
    for stage, choice in zip(network.stages, pattern.split(network.units), strict=True):
        candidates = stage.units.candidates(push(stage.affine, frame))
        chosen = take(candidates, choice)
        ahead = chosen.unsqueeze(2) - candidates
        # A unit is no rival of itself, and some are rivals nowhere, such as those behind a layer of zeros.
        rivals = (ahead[1:] != 0).any(0)
        facets.append(ahead[:, rivals])
        switches.append(rivals.nonzero() + torch.tensor([count, 0]))
        frame, count = chosen.reshape(-1, *stage.units.shape), count + len(choice)
    logits = push(network.tail, frame).flatten(1).T
    walls = torch.cat([frame.new_zeros(len(frame), 0), *facets], 1).T
    flat = x.flatten()
    return LinearRegion(
        network,
        pattern,
        logits[:, 1:].contiguous(),
        logits[:, 0] - logits[:, 1:] @ flat,
        walls[:, 1:].contiguous(),
        walls[:, 0] - walls[:, 1:] @ flat,
        torch.cat([torch.zeros(0, 2, dtype=torch.int64), *switches]),
    )
