"""Numbers that leave PyTorch on the way through a model, for NumPy say, and come back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from holdfast.models.retracing.ledger import Ledger, Shadow, address, anchored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from holdfast.models.retracing.sites import Site

__all__ = ["Bridge"]

_LEAVES = frozenset(("__array__", "__dlpack__", "numpy", "tolist"))
# The correlation from which on numbers that come in are taken for those that left.
_ALIKE = 0.4
# That from which on others are not looked at.
_SAME = 0.9
# Dimensions up to which their orders are tried.
_ORDERS = 4


@dataclass(frozen=True)
class _Left:
    """A tensor as it was when it left, and its derivative."""

    value: Tensor
    number: Tensor


class Bridge(TorchFunctionMode):
    """Notes which tensors leave, and lets derivatives go straight through to those that come in and are like them.

    Like them are as many numbers, in the same order or with dimensions transposed, that correlate; the slope is that
    of a straight line through them.
    """

    def __init__(
        self,
        model: nn.Module,
        ledger: Ledger,
        settled: Callable[..., Site],
        autograd: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__()
        self._model, self._ledger, self._settled, self._autograd = model, ledger, settled, autograd
        self._left: list[_Left] = []
        self._known: set[int] = set()
        self._kept: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVES and args and isinstance(args[0], Tensor):
            with self._autograd():
                self._leave(args[0])
        return func(*args, **(kwargs or {}))

    def _leave(self, tensor: Tensor) -> None:
        if (shadow := self._ledger.find(tensor)) is None:
            return
        if not self._left:
            self._known = {address(constant) for constant in _constants(self._model)}
        self._left.append(_Left(tensor.detach().clone(), shadow.number))
        self._ledger.leave(tensor)

    def made(self, result: Any) -> None:
        """Note constants that the model makes: they do not come from outside."""
        if self._left:
            tensors = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            self._kept += tensors
            self._known.update(address(tensor) for tensor in tensors)

    def arrive(self, tensors: Sequence[Tensor]) -> None:
        """Look whether some of these are what has left."""
        if not self._left:
            return
        for tensor in tensors:
            if address(tensor) in self._known or self._ledger.find(tensor) is not None:
                continue
            self._kept.append(tensor)
            self._known.add(address(tensor))
            number = self._number(tensor)
            if number is not None:
                self._ledger.keep(tensor, Shadow(number))

    def _number(self, tensor: Tensor) -> Tensor | None:
        found: tuple[float, float, Tensor] | None = None
        for value, number in self._candidates(tensor):
            slope, likeness = _line(value, tensor)
            if likeness >= _ALIKE and (found is None or likeness > found[0]):
                found = likeness, slope, number
            if likeness >= _SAME:
                break
        if found is None:
            return None
        site = self._settled("NumPy", tensor, found[1], True, None)
        if not site.soft:
            return None
        smooth = (found[2] * site.scale).to(self._ledger.carrier(tensor.dtype))
        return anchored(smooth.reshape(tensor.shape), tensor)

    def _candidates(self, tensor: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        count = tensor.numel()
        if count < 2:
            return
        whole = self._left
        if len(whole) > 1 and sum(left.value.numel() for left in whole) == count:
            # Rows that left one by one.
            values, numbers = (
                [part.flatten() for part in parts]
                for parts in zip(*((left.value, left.number) for left in whole), strict=True)
            )
            yield torch.cat(values), torch.cat(numbers)
        for left in reversed(whole):
            if left.value.numel() != count:
                continue
            yield left.value, left.number
            if left.value.shape == tensor.shape or left.value.dim() > _ORDERS:
                continue
            size = [n for n in tensor.shape if n != 1]
            for order in permutations(range(left.value.dim())):
                if list(order) != sorted(order) and [n for i in order if (n := left.value.shape[i]) != 1] == size:
                    yield left.value.permute(order), left.number.permute(order)


def _line(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The slope of the straight line that says best what became of some numbers, and how well it does."""
    x, y = (t.detach().double().flatten().nan_to_num(0, 0, 0) for t in (before, after))
    x, y = x - x.mean(), y - y.mean()
    across, spread = float(x @ y), (float(x @ x), float(y @ y))
    if not spread[0] or not spread[1]:
        return 0.0, 0.0
    return across / spread[0], abs(across) / (spread[0] * spread[1]) ** 0.5


def _constants(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for value in vars(module).values():
            yield from (part for part in tree_leaves(value) if isinstance(part, Tensor))
