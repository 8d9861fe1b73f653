"""What is known of the inputs that the choices of a cell give: a box, and two parallel planes for each coordinate."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["Planes"]


@dataclass(frozen=True, eq=False)
class Planes:
    """Bounds of ``M`` inputs, each over a cell of choices around its middle; all in float64.

    Parameters
    ----------
    lower, upper : Tensor
        ``(M, *shape)`` constant ones; of inputs as they are rounded, numbers of their precision.
    reach : Tensor
        ``(M, k)`` how far choices go from the middle.
    slope : Tensor
        ``(M, k, *shape)``: what a choice ``z`` of the cell gives lies between ``floor`` and ``ceiling``, each plus
        ``<slope, z - middle>``.
    floor, ceiling : Tensor
        ``(M, *shape)``.
    """

    lower: Tensor
    upper: Tensor
    reach: Tensor
    slope: Tensor
    floor: Tensor
    ceiling: Tensor

    def closer(self) -> Self:
        """The same with the box in place of planes that are farther apart than its sides: it is better in any case."""
        better = self.upper - self.lower <= self.ceiling - self.floor
        return replace(
            self,
            slope=self.slope.masked_fill(better.unsqueeze(1), 0),
            floor=torch.where(better, self.lower, self.floor),
            ceiling=torch.where(better, self.upper, self.ceiling),
        )
