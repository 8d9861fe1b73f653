"""What a data set is to holdfast: a stream of batches that can be started anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from holdfast.arguments import counts

__all__ = ["Batch", "Source", "Tabular", "columns_of"]


@dataclass(frozen=True)
class Batch:
    """Examples and where they stand in their data set.

    Parameters
    ----------
    index : Tensor
        ``(N,)`` whole numbers, kept as int64: the position of each example in its split. Every random draw depends on
        it, so an example keeps its index whichever part of the split is read.
    x : Tensor
        ``(N, ...)`` float32 inputs, in the user's own units (images in ``[0, 1]``, channels first).
    y : Tensor
        ``(N,)`` whole numbers, kept as int64: labels, counted from 0.

    Raises
    ------
    DataError
        When positions or labels are no whole numbers.
    """

    index: Tensor
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", counts(self.index, "index"))
        object.__setattr__(self, "y", counts(self.y, "y"))

    def __len__(self) -> int:
        return len(self.index)


@runtime_checkable
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

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Read the examples in order, ``size`` at a time (the last batch may be shorter).

        Parameters
        ----------
        size : int
            Examples a batch, at least 1.
        start, stop : int
            Read only the examples whose position in the split is in ``[start, stop)``; ``None`` means to the end. The
            positions are those of ``Batch.index``, in a slice of a split too, so the same pair always names the same
            examples. Positions that the source does not hold are left out.
        """
        ...


@runtime_checkable
class Tabular(Source, Protocol):
    """A data set whose inputs ``(D,)`` are rows of a table.

    Attributes
    ----------
    columns : tuple of str or None
        The names of the features where the data set knows them.
    """

    @property
    def columns(self) -> tuple[str, ...] | None: ...


def columns_of(source: Source) -> tuple[str, ...] | None:
    """The names of a data set's features, where it knows them."""
    return source.columns if isinstance(source, Tabular) else None
