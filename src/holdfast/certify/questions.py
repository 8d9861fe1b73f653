"""A property as questions that can be worked on together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.errors import DataError

if TYPE_CHECKING:
    from holdfast.certify.properties import Property

__all__ = ["Questions", "WithInputs"]

# Numbers in all boxes and matrices together: what takes more memory is refused.
_MOST_NUMBERS = 1 << 28


class WithInputs(nn.Module):
    """A network with some of its inputs, ``(r,)`` places in C order, behind its outputs: ``(N, K + r)``.

    Inequalities between inputs and outputs are those of outputs alone then, for attacks and for proofs.
    """

    def __init__(self, model: nn.Module, read: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("read", torch.tensor(read))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return torch.cat([y.reshape(x.shape[0], -1), x.flatten(1)[:, self.get_buffer("read")]], 1)


@dataclass(frozen=True, eq=False)
class Questions:
    """``P`` times a box and a conjunction, each asking for an input at which all ``R`` inequalities hold.

    Parameters
    ----------
    lower, upper : Tensor
        ``(P, n)`` float64 boxes.
    matrix : Tensor
        ``(P, R, K)`` float64, of the outputs of the network, or of :class:`WithInputs` where inequalities mention them.
    bound : Tensor
        ``(P, R)`` float64: ``matrix @ y <= bound``. Shorter conjunctions are filled up with ``0 <= inf``.
    """

    lower: Tensor
    upper: Tensor
    matrix: Tensor
    bound: Tensor

    @classmethod
    def of(cls, prop: Property) -> Questions:
        """One for each set of inputs and each way of being unsafe; strict inequalities count as closed ones.

        Raises
        ------
        DataError
            If there is more than fits into memory.
        """
        pairs = [(box, conjunction) for box in prop.sets for conjunction in box.unsafe]
        rows = max([1, *(len(conjunction.bound) for _, conjunction in pairs)])
        width = prop.outputs + len(prop.read)
        if len(pairs) * (2 * prop.inputs + rows * width) > _MOST_NUMBERS:
            raise DataError(
                f"the property has {len(pairs)} alternatives of {prop.inputs} inputs and {rows} inequalities, which is "
                "too much to work on at once; split it"
            )
        lower, upper = torch.zeros(2, len(pairs), prop.inputs, dtype=torch.float64)
        matrix = torch.zeros(len(pairs), rows, width, dtype=torch.float64)
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
