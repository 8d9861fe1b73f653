"""Functions of one variable that rise in steps, never far from their input: casts and roundings to whole numbers.

A value between two inputs lies between the values there, and a plane of slope 1 moved by the height of a step lies on
either side. Nothing here depends on the arithmetic of a network: what it is told to round is a function like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from holdfast.certify.bounds.relaxations.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROUNDED", "Steps", "cast"]


@dataclass(frozen=True, eq=False)
class Steps:
    """A function that rises in steps, in the form of an :class:`~holdfast.certify.bounds.relaxations.Activation`.

    Parameters
    ----------
    name : str
        The name of the function.
    function : callable
        The function, elementwise; it never falls.
    below, above : callable
        How far its value may be below its input, and above, given the largest size that the input may have.
    unit : float
        Of a cast, by how much it may change a number, relatively; 0 for others.
    """

    roundings: ClassVar[int] = 0
    gain: ClassVar[float] = 0.0
    floor: ClassVar[float] = 0.0
    ends: ClassVar[None] = None

    name: str
    function: Callable[[Tensor], Tensor]
    below: Callable[[Tensor], Tensor]
    above: Callable[[Tensor], Tensor]
    unit: float = 0.0

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the value for inputs between ``lower`` and ``upper``."""
        return self.function(lower), self.function(upper)

    def relax(self, lower: Tensor, upper: Tensor) -> Planes:
        """Planes that hold between ``lower`` and ``upper``: constants where those are closer together."""
        low, high = self.interval(lower, upper)
        reach = torch.maximum(lower.abs(), upper.abs())
        below, above = self.below(reach), self.above(reach)
        sloped = (high - low > below + above) & low.isfinite() & high.isfinite()
        slope = sloped.to(low.dtype)
        return Planes(slope, torch.where(sloped, -below, low), slope, torch.where(sloped, above, high))


def cast(dtype: torch.dtype) -> Steps:
    """The nearest number of a precision, infinity beyond its largest."""
    info = torch.finfo(dtype)
    # Half of the distance to the next number: a share of the size, and no less than below the smallest normal one. The
    # last factor is for the product itself.
    height = partial(_height, unit=info.eps / 2 * (1 + 2.0**-20), least=info.tiny * info.eps)
    return Steps(f"cast to {dtype}", lambda x: x.to(dtype).to(x.dtype), height, height, info.eps / 2)


def _height(reach: Tensor, *, unit: float, least: float) -> Tensor:
    return reach * unit + least


def _rounded(name: str, function: Callable[[Tensor], Tensor], below: float, above: float) -> Steps:
    return Steps(
        name, function, lambda reach: torch.full_like(reach, below), lambda reach: torch.full_like(reach, above)
    )


ROUNDED: dict[str, Steps] = {
    step.name: step
    for step in (
        _rounded("ceil", torch.ceil, 0.0, 1.0),
        _rounded("floor", torch.floor, 1.0, 0.0),
        _rounded("round", torch.round, 0.5, 0.5),
        _rounded("trunc", torch.trunc, 1.0, 1.0),
    )
}
