"""A property as questions that can be worked on together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from holdfast.certify.vnnlib import Property

__all__ = ["Questions"]


@dataclass(frozen=True, eq=False)
class Questions:
    """``P`` times a box and a conjunction, each asking for an input at which all ``R`` inequalities hold.

    Parameters
    ----------
    lower, upper : Tensor
        ``(P, n)`` float64 boxes.
    matrix : Tensor
        ``(P, R, K)`` float64.
    bound : Tensor
        ``(P, R)`` float64: ``matrix @ y <= bound``. Shorter conjunctions are filled up with ``0 <= inf``.
    """

    lower: Tensor
    upper: Tensor
    matrix: Tensor
    bound: Tensor

    @classmethod
    def of(cls, prop: Property) -> Questions:
        """One for each set of inputs and each way of being unsafe; strict inequalities count as closed ones."""
        pairs = [(box, conjunction) for box in prop.sets for conjunction in box.unsafe]
        rows = max([1, *(len(conjunction.bound) for _, conjunction in pairs)])
        lower, upper = torch.zeros(2, len(pairs), prop.inputs, dtype=torch.float64)
        matrix = torch.zeros(len(pairs), rows, prop.outputs, dtype=torch.float64)
        bound = torch.full((len(pairs), rows), torch.inf, dtype=torch.float64)
        for p, (box, conjunction) in enumerate(pairs):
            lower[p], upper[p] = torch.from_numpy(box.lower), torch.from_numpy(box.upper)
            matrix[p, : len(conjunction.bound)] = torch.from_numpy(conjunction.matrix)
            bound[p, : len(conjunction.bound)] = torch.from_numpy(conjunction.bound)
        return cls(lower, upper, matrix, bound)

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, rows: Tensor) -> Questions:
        """Some of them."""
        return Questions(self.lower[rows], self.upper[rows], self.matrix[rows], self.bound[rows])

    def excess(self, y: Tensor) -> Tensor:
        """``(..., P, R)`` by how much float64 outputs ``(..., P, K)``, one a question, miss its inequalities."""
        return (self.matrix @ y.unsqueeze(-1)).squeeze(-1) - self.bound
