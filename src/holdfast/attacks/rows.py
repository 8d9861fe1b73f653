"""The examples in play, a row each, and how rows leave and join."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor

from holdfast.models.layout import pick
from holdfast.objectives import objective

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Rows", "join", "overlay", "take"]

T = TypeVar("T", bound="DataclassInstance")


def take(rows: T, which: Tensor) -> T:
    """Some rows of a dataclass of tensors, by a mask or by positions; fields that are None stay so."""
    positions = which.nonzero()[:, 0] if which.dtype == torch.bool else which
    picked = {name: None if value is None else pick(value, positions) for name, value in _tensors(rows)}
    return replace(rows, **picked)


def join(first: T, second: T) -> T:
    """The rows of two dataclasses of tensors, one after the other."""
    other = dict(_tensors(second))
    joined = {name: _cat(value, other[name]) for name, value in _tensors(first)}
    return replace(first, **joined)


def overlay(old: Tensor, new: Tensor, which: Tensor) -> Tensor:
    """``old`` with the rows ``which`` (a mask) of ``new``: ``torch.where`` by whole rows, and a good deal faster."""
    positions = which.nonzero()[:, 0]
    if len(positions) == len(new):
        return new
    return old.index_copy(0, positions, new[positions]) if len(positions) else old


def _cat(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def _tensors(rows: "DataclassInstance") -> list[tuple[str, Tensor | None]]:
    return [(field.name, getattr(rows, field.name)) for field in fields(rows)]


@dataclass(frozen=True)
class Rows:
    """Examples under attack and what has been seen of them.

    Parameters
    ----------
    index, x, y : Tensor
        Position in the data set ``(N,)``, clean input ``(N, ...)`` and label ``(N,)``.
    target : Tensor or None
        ``(N,)`` the class the adversary wants; None where any wrong one will do.
    clean_logits : Tensor or None
        ``(N, K)`` what the bare model says of the clean input, where it has been asked.
    run : Tensor
        ``(N,)`` which of a stage's runs (restarts, targets) the row is in.
    forwards, backwards : Tensor
        ``(N,)`` passes spent on the row so far.
    found : Tensor
        ``(N,)`` bool, whether an adversarial choice has been seen.
    best : Tensor
        ``(N, ...)`` the best choice seen: an adversarial one before any other, then the highest objective; where the
        budget is infinite, the nearest of the adversarial ones.
    value : Tensor
        ``(N,)`` the objective there; where the budget is infinite and something was found, its distance, negated.
    margin : Tensor
        ``(N,)`` the highest margin of any admissible choice seen, whatever was raised.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None
    clean_logits: Tensor | None
    run: Tensor
    forwards: Tensor
    backwards: Tensor
    found: Tensor
    best: Tensor
    value: Tensor
    margin: Tensor

    @classmethod
    def fresh(
        cls,
        index: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        clean_logits: Tensor | None = None,
        forwards: int = 0,
    ) -> "Rows":
        """Rows of which nothing has been seen yet but, perhaps, their clean logits."""
        count = torch.zeros_like(index)
        low = x.new_full((len(x),), -torch.inf)
        return cls(
            index=index,
            x=x,
            y=y,
            target=target,
            clean_logits=clean_logits,
            run=count,
            forwards=count + forwards,
            backwards=count,
            found=torch.zeros_like(index, dtype=torch.bool),
            best=torch.zeros_like(x),
            value=low,
            margin=low,
        )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> int:
        """How many logits the model has."""
        assert self.clean_logits is not None
        return self.clean_logits.shape[1]

    @property
    def clean_margin(self) -> Tensor:
        """``(N,)`` the margin of the clean input."""
        assert self.clean_logits is not None
        return objective("margin", self.y, self.target)(self.clean_logits)

    def fooled(self, logits: Tensor) -> Tensor:
        """``(N,)`` bool: a wrong class, or the wanted one where there is one; logits that are no numbers are wrong."""
        if self.target is not None:
            return logits.argmax(1) == self.target
        top, predicted = logits.max(1)  # a maximum is NaN where any of its numbers is
        return (predicted != self.y) | top.isnan()

    def entering(self, run: Tensor | int) -> Self:
        """The same rows at the start of a run."""
        return replace(self, run=torch.zeros_like(self.run) + run)

    def forgetting(self, which: Tensor) -> Self:
        """The same rows, what was seen of the rows ``which`` (a mask) forgotten."""
        return replace(self, found=self.found & ~which, value=torch.where(which, -torch.inf, self.value))
