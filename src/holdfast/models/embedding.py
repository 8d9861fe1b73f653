"""Models that read whole numbers, such as words or bytes: where they look them up, and the gradient there.

A whole number has no gradient; the vector that a model looks up for it has. Ebrahimi, Rao, Lowd and Dou, "HotFlip:
white-box adversarial examples for text classification", ACL 2018, arXiv:1712.06751, section 3: to first order, another
word at a place changes an objective by the inner product of its gradient there and the difference of the two vectors.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Lookups"]

# fmt: off
# What moves numbers about and changes none.
_MOVES = frozenset((
    "__getitem__", "chunk", "clone", "contiguous", "detach", "flatten", "flip", "movedim", "narrow", "permute",
    "reshape", "roll", "select", "slice", "split", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose",
    "unbind", "unflatten", "unsqueeze", "view",
))
# What puts them together with others.
_JOINS = frozenset(("cat", "concat", "concatenate", "hstack", "pad", "stack"))
# What makes another of each by itself: conversions, codes that start elsewhere, rare words made one.
_EACH = frozenset((
    "_to_copy", "__and__", "__rsub__", "add", "bfloat16", "byte", "clamp", "clamp_max", "clamp_min", "clip", "cpu",
    "cuda", "double", "float", "half", "int", "long", "masked_fill", "maximum", "minimum", "mul", "remainder", "rsub",
    "short", "sub", "to", "type", "type_as", "where",
))
# What looks them up.
_LOOKUPS = frozenset(("__getitem__", "embedding", "index", "index_select"))
# fmt: on


@dataclass(frozen=True)
class _Trace:
    """Where in the input the numbers of a tensor come from.

    ``places`` has the tensor's shape and counts the numbers of the input. In a one-hot code each of these has as many
    places as there are ``classes``. What comes from elsewhere has the place behind the last.
    """

    places: Tensor
    classes: int = 0


@dataclass(frozen=True)
class _Block:
    """Columns of the embedding: what a table, or a one-hot code of so many classes, says of the input."""

    table: Tensor | int
    columns: slice
    taken: Tensor


@dataclass(frozen=True)
class _Lookup:
    """What was asked, and the rows that were found: one for each place."""

    block: _Block
    asked: Tensor
    places: Tensor
    rows: Tensor


class Lookups(TorchFunctionMode):
    """Inside, notes where a model looks up the whole numbers that it reads; its graph begins with what it finds.

    The input itself is followed, through what moves numbers about (slices, transposes, padding) and what makes another
    of each (conversions, offsets, tables of whole numbers), into ``nn.Embedding``, ``nn.EmbeddingBag``, the functions
    behind them, a tensor that it indexes, and one-hot codes. Other lookups, of positions say, are left alone. What
    several tables, or one table of several numbers made of each, say of the input stands side by side, in the order in
    which they are asked.

    Parameters
    ----------
    x : Tensor
        ``(N, *shape)`` whole numbers, the tensor that goes to the model.
    given : Tensor, optional
        ``(N, *shape, D)`` what the model is to find instead.
    """

    def __init__(self, x: Tensor, given: Tensor | None = None) -> None:
        super().__init__()
        self._shape = x.shape
        self._end = x.numel()
        self._given = None if given is None else given.reshape(self._end, -1)
        self._traces = WeakTensorKeyDictionary()
        self._traces[x] = _Trace(torch.arange(x.numel(), device=x.device).view(x.shape))
        self._blocks: list[_Block] = []
        self._lookups: list[_Lookup] = []

    @property
    def embedded(self) -> Tensor | None:
        """``(N, *shape, D)`` what was found, 0 where nothing was asked; None where nothing was asked at all."""
        if not self._lookups:
            return None
        return self._side_by_side([lookup.rows.detach() for lookup in self._lookups], Tensor.index_copy_)

    def gradient(self, values: Tensor, retain_graph: bool = False) -> Tensor:
        """``(N, *shape, D)`` the gradient of the sum of some values with respect to what was found."""
        found = [lookup.rows for lookup in self._lookups]
        ones = torch.ones_like(values)
        grads = torch.autograd.grad(values, found, ones, allow_unused=True, retain_graph=retain_graph)
        parts = [torch.zeros_like(rows) if grad is None else grad for rows, grad in zip(found, grads, strict=True)]
        return self._side_by_side(parts, Tensor.index_add_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        followed = [tensor for tensor in _tensors((args, kwargs)) if tensor in self._traces]
        if not followed or not args:
            return func(*args, **kwargs)
        x, trace = followed[0], self._traces[followed[0]]
        if func is functional.embedding_bag:
            return self._bag(trace, *args, **kwargs)
        result = func(*args, **kwargs)
        name = _name(func)
        if name == "one_hot" and not trace.classes:
            classes = result.shape[-1]
            places = trace.places.unsqueeze(-1) * classes + torch.arange(classes, device=x.device)
            self._traces[result] = _Trace(places, classes)
        elif name in _LOOKUPS and (table := _table(name, args, x)) is not None:
            if result.is_floating_point():
                return self._found(table, x, trace, result)
            if result.shape == x.shape:  # codes for other codes
                self._traces[result] = trace
        elif name in _MOVES | _JOINS:
            self._move(func, name, args, kwargs, result)
        elif name in _EACH and self._same_places(followed, result):
            if not result.is_floating_point():
                self._traces[result] = trace
            elif trace.classes:
                return self._found(trace.classes, result, trace, result)
        return result

    def _same_places(self, followed: Sequence[Tensor], result: object) -> bool:
        """Whether each number of the result is made of the one at its place, and of no other of the input."""
        places = [self._traces[tensor].places for tensor in followed]
        return isinstance(result, Tensor) and all(
            p.shape == result.shape and (p is places[0] or torch.equal(p, places[0])) for p in places
        )

    def _move(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Move the places as the numbers were moved."""
        if kwargs.get("mode", "constant") != "constant":
            return
        parts = list(args[0]) if name in _JOINS - {"pad"} else [args[0]]
        traces = [self._traces.get(part) for part in parts]
        classes = {trace.classes for trace in traces if trace is not None}
        if len(classes) != 1 or any(isinstance(option, torch.dtype) for option in args):
            return
        elsewhere = self._end * max(1, *classes)
        places = [
            torch.full_like(part, elsewhere, dtype=torch.long) if trace is None else trace.places
            for part, trace in zip(parts, traces, strict=True)
        ]
        if name == "pad":
            moved = functional.pad(places[0], args[1], value=elsewhere)
        elif name == "view":  # places may lie otherwise in memory
            moved = places[0].reshape(*args[1:])
        else:
            moved = func(places if name in _JOINS else places[0], *args[1:], **kwargs)
        for tensor, where in zip(_tensors(result), _tensors(moved), strict=True):
            self._traces[tensor] = _Trace(where, *classes)

    def _found(self, table: Tensor | int, asked: Tensor, trace: _Trace, looked: Tensor) -> Tensor:
        """What the model gets of a lookup."""
        places = trace.places.reshape(-1)
        for seen in self._lookups:
            if _same(seen.block.table, table) and torch.equal(seen.places, places) and torch.equal(seen.asked, asked):
                return _handed_on(seen.rows, looked.shape)
        unit = math.prod(looked.shape[asked.dim() :])
        rows = looked.detach().reshape(-1, unit)
        block = self._block(table, trace.classes or unit, places // max(1, trace.classes))
        if self._given is not None:
            given = self._given[:, block.columns].reshape(-1, unit)
            inside = places < len(given)
            rows = torch.where(inside[:, None], given[places.where(inside, 0)].to(rows), rows)
        self._lookups.append(_Lookup(block, asked.clone(), places, rows.requires_grad_(True)))
        return _handed_on(rows, looked.shape)

    def _block(self, table: Tensor | int, width: int, asked: Tensor) -> _Block:
        """The columns of a table in which nothing has been said yet of the numbers that are asked about."""
        asked = asked[asked < self._end]
        block = next((b for b in self._blocks if _same(b.table, table) and not bool(b.taken[asked].any())), None)
        if block is None:
            start = self._blocks[-1].columns.stop if self._blocks else 0
            taken = torch.zeros(self._end, dtype=torch.bool, device=asked.device)
            block = _Block(table, slice(start, start + width), taken)
            self._blocks.append(block)
        block.taken[asked] = True
        return block

    def _bag(
        self,
        trace: _Trace,
        x: Tensor,
        weight: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Tensor:
        """``embedding_bag``, with a table that has a row of its own for every number of the input."""
        found = functional.embedding(x, weight, max_norm=max_norm, norm_type=norm_type)
        rows = self._found(weight, x, trace, found).reshape(-1, found.shape[-1])
        own = torch.arange(len(rows), device=x.device).view(x.shape)
        if padding_idx is not None:
            own = own.masked_fill(x == padding_idx % len(weight), len(rows))
            rows, padding_idx = functional.pad(rows, (0, 0, 0, 1)), len(rows)
        return functional.embedding_bag(
            own,
            rows,
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )

    def _side_by_side(self, parts: Sequence[Tensor], put: Callable[..., Tensor]) -> Tensor:
        """``(N, *shape, D)`` of the rows of each lookup."""
        columns = []
        for block in self._blocks:
            own = [
                (lookup.places, part)
                for lookup, part in zip(self._lookups, parts, strict=True)
                if lookup.block is block
            ]
            total = own[0][1].new_zeros(self._end + 1, block.columns.stop - block.columns.start)
            for places, part in own:
                put(total.view(-1, part.shape[1]), 0, places, part)
            columns.append(total[:-1])
        return torch.cat(columns, 1).view(*self._shape, self._blocks[-1].columns.stop)


def _handed_on(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows as the model may work with them, also in place, and also where it wants no gradient of its embedding."""
    with torch.enable_grad():
        return rows.clone().view(shape)


def _name(func: Callable[..., Any]) -> str:
    """A function's name, whether or not it works in place, and without an overload's."""
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    return name if name.startswith("_") else name.rstrip("_")


def _same(one: Tensor | int, other: Tensor | int) -> bool:
    return one is other or (isinstance(one, int) and isinstance(other, int) and one == other)


def _table(name: str, args: tuple[Any, ...], x: Tensor) -> Tensor | None:
    """What whole numbers are looked up in along its first dimension, each by itself; None where they are not."""
    if len(args) < 2:
        return None
    if name == "embedding":
        table, asked = args[:2] if args[1] is x else args[1::-1]
    elif name == "index_select":
        table, asked = args[0], args[2] if args[1] == 0 and len(args) > 2 else None
    else:
        table, asked = args[:2]
    if isinstance(asked, list | tuple) and len(asked) == 1:
        (asked,) = asked
    return table if asked is x and isinstance(table, Tensor) and table is not x else None


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
