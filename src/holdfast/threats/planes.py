"""What is known of the inputs that the choices of a cell give: a box, and two parallel planes for each coordinate."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Planes"]


@dataclass(frozen=True, eq=False)
class Planes:
    """Bounds of ``M`` inputs, each over a cell of choices around its middle; all in float64.

    Parameters
    ----------
    lower, upper : Tensor
        ``(M, *shape)`` constant ones.
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
