"""Gradients averaged over noise: a twin for models whose own gradients are rough."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.draws import Draws
from holdfast.errors import SettingError

__all__ = ["Smoothed", "smoothed"]


class Smoothed(nn.Module):
    """A module's outputs and gradients, averaged over the same displacements for each row; see :func:`smoothed`."""

    def __init__(self, module: nn.Module, radius: float, samples: int, seed: int) -> None:
        super().__init__()
        self.module = module
        self._radius, self._samples, self._seed = radius, samples, seed

    def forward(self, x: Tensor) -> Tensor:
        half = -(-self._samples // 2)
        draws = Draws(self._seed, torch.arange(half, device=x.device))
        noise = self._radius * draws.normal(x[0].numel()).to(x.dtype).view(half, *x.shape[1:])
        total: Tensor = sum(self.module(x + part) for part in (*noise, *-noise[: self._samples - half]))
        return total / self._samples


def smoothed(module: nn.Module, radius: float, samples: int = 16, seed: int = 0) -> Smoothed:
    """A twin whose gradient is the mean of a module's gradients around each input.

    What is left is the gradient of the module under Gaussian noise, in which ripples shorter than the radius vanish
    and steps have slopes where the module's own derivative has (Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust
    adversarial examples", ICML 2018, arXiv:1707.07397, section 2: expectation over transformations).

    Parameters
    ----------
    module : nn.Module
        Maps ``(N, ...)`` to ``(N, K)``.
    radius : float
        The standard deviation of the noise, in the units of the input.
    samples : int
        Displacements, and passes of the module for one of the twin. Each but an odd last one has its opposite.
    seed : int
        Of the displacements, which are the same for all rows and all calls.

    Raises
    ------
    SettingError
        When the radius is not positive, or there is no sample.
    """
    if not radius > 0 or samples < 1:
        raise SettingError(f"smoothed: radius must be positive and samples at least 1, got {radius} and {samples}")
    return Smoothed(module, radius, samples, seed)
