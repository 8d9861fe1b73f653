"""The examples in play, a row each, and how rows leave and join."""

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from holdfast.models.layout import pick
from holdfast.tasks import CLASSIFICATION, Task
from holdfast.threats import Threat

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Rows", "join", "overlay", "take"]

T = TypeVar("T", bound="DataclassInstance")

# Marks a field that all rows have in common.
_SHARED = "shared"


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
    """The fields of a dataclass that have a row for each example."""
    return [(part.name, getattr(rows, part.name)) for part in fields(rows) if _SHARED not in part.metadata]


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
    clean_share, share : Tensor
        ``(N,)`` how much of the clean example is wrong, and the most that was seen of any admissible choice.
    task : Task
        What answers mean.
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
    clean_share: Tensor
    share: Tensor
    task: Task = field(metadata={_SHARED: True})

    @classmethod
    def fresh(
        cls,
        threat: Threat,
        index: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        task: Task = CLASSIFICATION,
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
        share = x.new_zeros(len(x)) if clean_logits is None else task.wrong(clean_logits, y, target)
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
            clean_share=share,
            share=share,
            task=task,
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
        return self.task.objective("margin", self.y, self.target)(self.clean_logits)

    def wrong(self, *logits: Tensor) -> Tensor:
        """``(N,)`` how much of each example is wrong, by an answer; by those of several looks the middle of it.

        Of an even number the lower of the two in the middle: more than half of the looks must see it broken.
        """
        shares = [self.task.wrong(answer, self.y, self.target) for answer in logits]
        return shares[0] if len(shares) == 1 else torch.stack(shares).median(0).values

    def broken(self, share: Tensor) -> Tensor:
        """``(N,)`` bool, where so much is wrong that the example counts as broken."""
        return share > self.task.threshold

    def entering(self, run: Tensor | int) -> Self:
        """The same rows at the start of a run."""
        return replace(self, run=torch.zeros_like(self.run) + run)

    def forgetting(self, which: Tensor) -> Self:
        """The same rows, what was seen of the rows ``which`` (a mask) forgotten."""
        return replace(self, found=self.found & ~which, value=torch.where(which, -torch.inf, self.value))
