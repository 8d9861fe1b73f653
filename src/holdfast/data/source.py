"""What a data set is to holdfast: a stream of batches that can be started anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Batch", "Source"]


@dataclass(frozen=True)
class Batch:
    """Examples and where they stand in their data set.

    Parameters
    ----------
    index : Tensor
        ``(N,)`` int64, the position of each example in its split. Every random draw depends on it, so an example
        keeps its index whichever part of the split is read.
    x : Tensor
        ``(N, ...)`` floating point inputs, in the user's own units (images in ``[0, 1]``).
    y : Tensor
        ``(N,)`` int64 labels.
    """

    index: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Source(Protocol):
    """A data set that is read batch by batch and never held whole.

    Attributes
    ----------
    name : str
        What to call it in a result, such as ``"digits test"``.
    shape : tuple of int
        The shape of one input, without the batch dimension.
    classes : tuple of str or None
        The names of the classes where the data set knows them.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Batch]:
        """Read the examples in order, ``size`` at a time (the last batch may be shorter)."""
        ...
