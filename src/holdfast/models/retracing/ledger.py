"""What autograd knows of the tensors of a forward pass that runs without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ledger", "Shadow", "address", "anchored"]

Geometry = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.to(smooth.dtype, copy=True).expand_as(smooth)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def anchored(smooth: Tensor, value: Tensor) -> Tensor:
    """A tensor of one value and of the derivative of another of its shape, infinities among them."""
    anchor: Tensor = _Anchor.apply(smooth, value.detach())  # type: ignore[no-untyped-call]
    return anchor


@dataclass(frozen=True)
class Shadow:
    """A tensor of the model, as autograd may follow it.

    Parameters
    ----------
    number : Tensor
        Of the same shape and values, in a floating point type, with a derivative.
    choice : callable, optional
        Of whole numbers that were chosen among 0 .. K - 1: gives ``(*shape, K)``, a smooth share of each.
    """

    number: Tensor
    choice: Callable[[], Tensor] | None = None


@dataclass
class _Record:
    """One piece of memory: kept, so that no other tensor is put there, and what each view of it stands for.

    Until something is written into it, ``whole`` is the number of the tensor that it was made for.
    """

    storage: torch.UntypedStorage
    geometry: Geometry
    whole: Tensor
    views: dict[Geometry, Shadow] = field(default_factory=dict)
    left: bool = False


class Ledger:
    """The shadows of tensors, found by where these lie in memory.

    Views, aliases and what autograd saves are so many tensors and one memory: they share what was written there.

    Parameters
    ----------
    dtype : torch.dtype
        The least precise type of numbers.
    relaxed : bool
        Whether numbers are those of the smooth operations that stand in for others, and not the model's own.
    """

    def __init__(self, dtype: torch.dtype, relaxed: bool = False) -> None:
        self.dtype, self.relaxed = dtype, relaxed
        self._records: dict[int, _Record] = {}

    def carrier(self, dtype: torch.dtype) -> torch.dtype:
        """In which type the numbers of a type are carried: none less precise than float32, and none of whole ones."""
        least = torch.complex64 if dtype.is_complex else self.dtype
        return torch.promote_types(dtype, least) if dtype.is_floating_point or dtype.is_complex else self.dtype

    def find(self, tensor: Tensor) -> Shadow | None:
        """The shadow of a tensor; None where nothing that it holds depends on the input."""
        shadow = self._read(tensor)
        return shadow if shadow is not None and shadow.number.requires_grad else None

    def number(self, tensor: Tensor) -> Tensor:
        """What a tensor holds, dependent or not: as it was before it is overwritten, until that is noted."""
        shadow = self._read(tensor)
        return tensor.detach().to(self.carrier(tensor.dtype)) if shadow is None else shadow.number

    def holds(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is known here, and must not change unnoticed."""
        return address(tensor) in self._records

    def _read(self, tensor: Tensor) -> Shadow | None:
        record = self._records.get(address(tensor))
        if record is None:
            return None
        geometry = _geometry(tensor)
        if geometry not in record.views:
            if geometry[0] != record.geometry[0]:  # its bits read as numbers of another type
                return None
            whole = _flat(record)
            record.views[geometry] = Shadow(whole[_places(geometry, whole)].view(geometry[1]))
        shadow = record.views[geometry]
        # What NumPy has in hand it may have overwritten.
        return Shadow(anchored(shadow.number, tensor)) if record.left and shadow.number.requires_grad else shadow

    def keep(self, tensor: Tensor, shadow: Shadow) -> None:
        """Note what a new tensor, or a new view of one, stands for."""
        place, geometry = address(tensor), _geometry(tensor)
        if not place:
            return
        if place not in self._records:
            self._records[place] = _Record(tensor.untyped_storage(), geometry, shadow.number)
        self._records[place].views[geometry] = shadow

    def leave(self, tensor: Tensor) -> None:
        """Note that others may write into the memory of a tensor from now on."""
        if (record := self._records.get(address(tensor))) is not None:
            record.left = True

    def open(self, tensor: Tensor) -> None:
        """Before a tensor of constants is overwritten: note the memory that it lies in, as it is."""
        if not (place := address(tensor)) or place in self._records:
            return
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        whole = tensor.detach().as_strided((count,), (1,), 0).to(self.carrier(tensor.dtype), copy=True)
        self._records[place] = _Record(storage, (tensor.dtype, (count,), (1,), 0), whole)

    def write(self, tensor: Tensor, shadow: Shadow) -> None:
        """Note what has been written into a tensor, and so into all that shares its memory."""
        place, geometry = address(tensor), _geometry(tensor)
        if not place:
            return
        record = self._records[place]
        if geometry == record.geometry and tensor.numel() * tensor.element_size() == record.storage.nbytes():
            record.whole = shadow.number
        else:
            whole = _flat(record)
            whole = whole.index_copy(0, _places(geometry, whole), shadow.number.to(whole.dtype).flatten())
            record.geometry, record.whole = (tensor.dtype, tuple(whole.shape), (1,), 0), whole
        record.views = {geometry: shadow}


def _flat(record: _Record) -> Tensor:
    """``(M,)`` the numbers of a whole memory."""
    count = record.storage.nbytes() // record.geometry[0].itemsize
    if record.geometry[1:] == ((count,), (1,), 0):
        return record.whole
    gaps = record.whole.new_zeros(count)
    return gaps.index_copy(0, _places(record.geometry, gaps), record.whole.flatten())


def _places(geometry: Geometry, whole: Tensor) -> Tensor:
    """The places in memory of a tensor's elements, in their order.

    Not by ``as_strided_scatter``, whose derivative is wrong in PyTorch up to 2.13 at least.
    """
    return torch.arange(len(whole), device=whole.device).as_strided(*geometry[1:]).flatten()


def address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _geometry(tensor: Tensor) -> Geometry:
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
