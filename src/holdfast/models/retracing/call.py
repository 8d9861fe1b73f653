"""One operation that a model has executed, as rules of derivatives read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from holdfast.models.retracing.ledger import Shadow, anchored

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._ops import OpOverload

    from holdfast.models.retracing.ledger import Ledger
    from holdfast.models.retracing.sites import Site

__all__ = ["Call"]

# Arguments that say where and not how much: they stay whole numbers.
_PLACES = frozenset(("batch_sizes", "condition", "index", "indices", "lengths", "mask", "offsets", "repeats", "target"))
# What operations keep for a way back, where they are told that there is one.
_FOR_THE_WAY_BACK = frozenset(("compute_log_sumexp", "compute_logsumexp", "train"))


@dataclass
class Call:
    """An operation, what it was given and what it made of it.

    Parameters
    ----------
    func : OpOverload
        The operation.
    args, kwargs : tuple, dict
        As the model gave them. What is overwritten has its new values in them already; its shadow is still the old one.
    result : object
        What the operation returned.
    ledger : Ledger
        The shadows of what it was given.
    settled : callable
        ``(kind, shape, scale, soft, flip)``: the :class:`Site`; see :meth:`step` and :meth:`slope`.
    """

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    ledger: Ledger
    settled: Callable[..., Site]

    def given(self, place: int, name: str, default: Any = None) -> Any:
        """An argument, by its place or its name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def shadow(self, tensor: Any) -> Shadow | None:
        return self.ledger.find(tensor) if isinstance(tensor, Tensor) else None

    def number(self, value: Any) -> Tensor:
        """An argument with its derivative, as a tensor in the type of its numbers."""
        if not isinstance(value, Tensor):
            return torch.tensor(value, dtype=self.ledger.dtype)
        return self.ledger.number(value)

    def anchored(self, smooth: Tensor, result: Tensor | None = None) -> Shadow:
        """The result, with the derivative of something smooth; where all is relaxed, what is smooth itself."""
        result = self.result if result is None else result
        assert isinstance(result, Tensor)
        smooth = smooth.expand(result.shape).to(self.ledger.carrier(result.dtype))
        return Shadow(smooth if self.ledger.relaxed else anchored(smooth, result))

    def replayed(self, **changed: Any) -> list[Tensor]:
        """What autograd makes of the same operation on the shadows: the tensors among its results, in order.

        What would be overwritten is overwritten in copies, which then are the results.
        """
        schema = self.func._schema.arguments
        names = [argument.name for argument in schema]
        given = {**dict(zip(names, self.args, strict=False)), **self.kwargs}
        carried: dict[str, Any] = {}
        written: list[Tensor] = []
        for argument in schema:
            name = argument.name
            if name not in given:
                continue
            value = given[name]
            overwritten = argument.alias_info is not None and argument.alias_info.is_write
            if name not in _PLACES:
                # Running statistics are overwritten without a word.
                value = self._carried(value, overwritten, "batch_norm" in self.func._schema.name)
            if overwritten:
                value = tree_map_only(Tensor, torch.clone, value)
                written += [value] if isinstance(value, Tensor) else list(value)
            carried[name] = True if name in _FOR_THE_WAY_BACK and value is False else value
        carried.update(changed)
        positional = [argument.name for argument in schema if not argument.kwarg_only]
        if "out" in carried and "out" not in changed:
            raise NotImplementedError("no derivative is defined for what is written into a given tensor")
        count = next((i for i, name in enumerate(positional) if name not in carried), len(positional))
        ordered = [carried.pop(name) for name in positional[:count]]
        made = self.func(*ordered, **carried)
        if written:
            return written
        # What the model's own call has left out, the one with a way back may return.
        both = zip(_listed(made), _listed(self.result), strict=True)
        return [value for value, own in both if isinstance(own, Tensor)]

    def _carried(self, value: Any, overwritten: bool, copied: bool) -> Any:
        def carry(part: Any) -> Any:
            if isinstance(part, torch.dtype):
                return self.ledger.carrier(part)
            if not isinstance(part, Tensor):
                return part
            if overwritten or self.ledger.find(part) is not None:
                return self.ledger.number(part)
            part = part.detach()
            inexact = part.is_floating_point() or part.is_complex()
            return (part.clone() if copied else part).to(self.ledger.carrier(part.dtype) if inexact else part.dtype)

        return [carry(part) for part in value] if isinstance(value, list | tuple) else carry(value)

    def step(self, kind: str, scale: Tensor | float, flip: Callable[[], tuple[Tensor, Tensor]]) -> Site:
        """What is to be done about a result that goes in steps.

        Parameters
        ----------
        kind : str
            What is done, in words.
        scale : Tensor
            A width for its smooth slope, from the numbers at hand.
        flip : callable
            Gives, for each number of the result, what it would be beyond its nearest step, and how far off that is.
        """
        return self.settled(kind, self.result, _finite(scale), True, flip)

    def slope(self, kind: str, scale: Tensor | float, dead: bool) -> Site:
        """What is to be done about a result whose slope is dead, or never was."""
        return self.settled(kind, _listed(self.result)[0], _finite(scale), dead, None)


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


def _finite(scale: Tensor | float) -> float:
    number = float(scale)
    return number if math.isfinite(number) and number > 0 else 1.0
