"""Sets that a few numbers sweep through: what is left over is a box, and small.

A turned image moves along a curve as the angle goes through a range. Linear bounds of its pixels in the angle say so,
where a box lets every pixel move by itself (Balunovic et al., "Certifying geometric robustness of neural networks",
NeurIPS 2019). Pixels that lie between two parallel planes are a zonotope: a box, and one generator for each number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from holdfast.certify.bounds.rounding import down, gamma, unit

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.certify.bounds.region import Region

__all__ = ["Zonotope"]

# Products of rows and generators that are made at once, in numbers.
_PIECE = 1 << 22


@dataclass(frozen=True, eq=False)
class Zonotope:
    """``{rest + sum_j t_j g_j : |t_j| <= 1}`` for each of ``N`` examples.

    Parameters
    ----------
    rest : Region
        Boxes.
    generators : Tensor
        ``(N, k, *shape)`` in float64.
    """

    rest: Region
    generators: Tensor

    def take(self, rows: Tensor) -> Zonotope:
        """The sets of the examples ``rows``."""
        return Zonotope(self.rest.take(rows), self.generators[rows])

    def crop(self, window: tuple[slice, ...]) -> Zonotope:
        """The projections of the sets onto some coordinates."""
        return Zonotope(self.rest.crop(window), self.generators[(slice(None), slice(None), *window)])

    def to(self, dtype: torch.dtype) -> Zonotope:
        """The same sets with boxes in another precision."""
        return replace(self, rest=self.rest.to(dtype))

    def minimum(self, a: Tensor, of: Tensor | None = None) -> Tensor:
        """``(R,)`` the minimum of ``<a_r, x>`` over an example's set, or less; as :meth:`Region.minimum` has it."""
        rows, generators = a.flatten(1).double(), self.generators.flatten(2)
        # In whatever order products are summed, each is rounded at most this often.
        share = gamma(rows.shape[1] + 8, unit(torch.float64))

        def reached(row: Tensor, generator: Tensor) -> Tensor:
            """How far all generators together may bring rows ``(..., r, d)`` down, or more."""
            along, size = (row @ generator.mT).abs(), row.abs() @ generator.abs().mT
            total: Tensor = (along + share * size).sum(-1)
            return total

        if of is None:
            most = reached(rows.unflatten(0, (len(generators), -1)), generators).flatten()
        else:
            parts = of.split(max(1, _PIECE // max(1, generators[:1].numel())))
            most = torch.cat(
                [
                    reached(row.unsqueeze(1), generators[part]).squeeze(1)
                    for row, part in zip(rows.split([len(part) for part in parts]), parts, strict=True)
                ]
            )
        found = self.rest.minimum(a, of).double() - most
        room = gamma(8 + generators.shape[1], unit(torch.float64)) * (found.abs() + 2 * most)
        return down(found - room, a.dtype)
