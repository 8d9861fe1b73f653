"""The examples in play, a row each, and how rows leave and join."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from holdfast.models.layout import pick
from holdfast.objectives import objective
from holdfast.threats import Threat

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Rows", "join", "overlay", "take"]

T = TypeVar("T", bound="DataclassInstance")


def take(rows: T, which: Tensor) -> T:
    """Some rows of a dataclass of tensors, or of such dataclasses, by a mask or by positions; None stays None."""
    positions = which.nonzero()[:, 0] if which.dtype == torch.bool else which

    def some(value: Any) -> Any:
        if value is None:
            return None
        return pick(value, positions) if isinstance(value, Tensor) else take(value, positions)

    return replace(rows, **{name: some(value) for name, value in _fields(rows)})


def join(first: T, second: T) -> T:
    """The rows of two such dataclasses, one after the other."""

    def both(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return None
        return torch.cat([one, other]) if isinstance(one, Tensor) else join(one, other)

    others = dict(_fields(second))
    return replace(first, **{name: both(value, others[name]) for name, value in _fields(first)})


def overlay(old: Tensor, new: Tensor, which: Tensor) -> Tensor:
    """``old`` with the rows ``which`` (a mask) of ``new``: ``torch.where`` by whole rows, and a good deal faster."""
    positions = which.nonzero()[:, 0]
    if len(positions) == len(new):
        return new
    return old.index_copy(0, positions, new[positions]) if len(positions) else old


def _fields(rows: "DataclassInstance") -> list[tuple[str, Any]]:
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
        ``(N, *choice)`` the best choice seen: an adversarial one before any other, then the highest objective; where
        the budget is infinite, the nearest of the adversarial ones.
    stage : Tensor
        ``(N,)`` the number of the stage that looked there.
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
    stage: Tensor
    value: Tensor
    margin: Tensor

    @classmethod
    def fresh(
        cls,
        threat: Threat,
        index: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        clean_logits: Tensor | None = None,
        forwards: int = 0,
    ) -> "Rows":
        """Rows of which nothing has been seen yet but, perhaps, their clean logits; whole numbers become int64.

        The threat has been looked up for them.
        """
        index, y, target = index.long(), y.long(), None if target is None else target.long()
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
            best=threat.nothing(x),
            stage=count,
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
