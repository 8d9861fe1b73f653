"""Ablation: voting on inputs of which most is hidden, so that a change is seen by few of the voters.

If what an adversary of some budget changes is seen with probability at most ``delta(budget)``, no class's share of the
votes moves by more than that, and the first class stays first while ``lower - upper > 2 delta``. That is the whole
certificate; an ablation says what is hidden, and its delta.

For that the classifier must be shown the same, bit for bit, whatever is hidden. Entries are therefore selected, not
multiplied: 0 times infinity or NaN is NaN, and 0 times a negative number is -0.

L0, keeping a few features at random: Levine and Feizi, "Robustness certificates for sparse adversarial attacks by
randomized ablation", AAAI 2020. Patches, keeping a band of columns or a block, all of which vote: Levine and Feizi,
"(De)randomized smoothing for certifiable defense against patch attacks", NeurIPS 2020. Edit distance, by deletion at
random: Huang, Marchant, Lucas, Bauer, Ohrimenko and Rubinstein, "RS-Del: edit distance robustness certificates for
sequence classifiers via randomized deletion", NeurIPS 2023.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.arguments import as_float, as_list, counts, function_of, inputs, module_of, number, shown, whole
from holdfast.certify.smoothing.defended import as_logits, ask
from holdfast.certify.smoothing.noise import Perturbation
from holdfast.certify.smoothing.result import ABSTAINED, SmoothingResult
from holdfast.certify.smoothing.votes import checked_index, count_votes
from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.models import Query
from holdfast.threats import Patch, Threat
from holdfast.threats.numbers import type_of
from holdfast.words import reason

__all__ = ["Ablated", "BlockAblation", "ColumnAblation", "Deletion", "FeatureAblation", "Fill", "Hide", "mark"]

# A lead of exactly twice delta proves nothing, and rounding must not make it more. Deltas are `-expm1` of a sum of
# logarithms `s`, all negative. A relative error in `s` is none larger in delta, as `-s exp(s) < -expm1(s)`; quotients'
# errors count even less. Sums by numpy take at most 40 roundings a number, functions 4: less than 2^-47 in all.
_ROUNDED = 1 + 2.0**-46

_MOST = 2**31 - 1  # pixels a side; no image has more

Hide = Callable[[Tensor, Tensor], Tensor]
"""``hide(x, kept)``: the classifier's input, from ``(N, ...)`` inputs and a bool mask that broadcasts with them.

It must not depend on hidden entries in any way: select by ``torch.where``, never multiply.
"""


def mark(x: Tensor, kept: Tensor) -> Tensor:
    """Hidden entries are 0, and the mask follows as further channels (dimension 1), so that a real 0 is told apart."""
    return torch.cat([torch.where(kept, x, 0), kept.to(x.dtype)], dim=1)


@dataclass(frozen=True)
class Fill:
    """Hidden entries take ``value``; accuracy, though not the proof, is better for one that no real entry has.

    Raises
    ------
    SettingError
        When ``value`` is no finite number.
    """

    value: float

    def __post_init__(self) -> None:
        number("value", self.value)

    def __call__(self, x: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, x, float(self.value))


@dataclass(frozen=True)
class FeatureAblation:
    """``keep`` features out of all, chosen at random for each vote; budgets count features that change.

    Parameters
    ----------
    shape : tuple of int
        What a feature is: the shape of one input, or ``(1, H, W)`` to count the pixels of an image with all their
        channels.
    keep : int
        How many stay, at least 1.
    hide : Hide
        How the others are hidden.

    Raises
    ------
    SettingError
        When ``shape`` is none, or has not so many features, or ``hide`` cannot be called.
    """

    shape: tuple[int, ...]
    keep: int
    hide: Hide = mark
    norm: ClassVar[str] = "l0"
    step: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        sizes = as_list(self.shape)
        if not sizes:
            raise SettingError(
                f"shape: a tuple of whole numbers such as (1, 28, 28) is needed, not {shown(self.shape)}"
            )
        object.__setattr__(self, "shape", tuple(whole("shape", size, 1, _MOST) for size in sizes))
        _require_inside("keep", self.keep, self.features, "features")
        function_of("hide", self.hide)

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """What is left of ``x``, whose shape is ``(N, ...)``, the features' but for dimensions that they count as 1.

        Raises
        ------
        DataError
            When it is another.
        """
        if x.dim() != len(self.shape) + 1 or any(a not in (1, b) for a, b in zip(self.shape, x.shape[1:], strict=True)):
            raise DataError(
                f"x: inputs of shape {tuple(x.shape[1:])} for features of shape {self.shape}; give that shape, or one "
                "with 1 where entries count together"
            )
        chosen = rng.fine(self.features).topk(self.keep, dim=1).indices
        kept = torch.zeros(len(x), self.features, dtype=torch.bool, device=x.device).scatter_(1, chosen, value=True)
        return _hidden(self.hide, x, kept.reshape(-1, *self.shape))

    def delta(self, budget: int) -> float:
        """``1 - C(d - budget, keep) / C(d, keep)``, of ``d`` features.

        The quotient is a product of as many factors as the smaller of both numbers; the sum of their logarithms loses
        no digits, in contrast to the difference of two logarithms of binomial coefficients.
        """
        few, many = sorted((budget, self.keep))
        if few + many > self.features:
            return 1.0
        return -math.expm1(float(np.log1p(-many / (self.features - np.arange(few))).sum()))

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        return _budgets(self.delta, lower, upper, self.features)

    def probability(self, radius: float) -> float:
        return _threshold(self.delta(_whole(radius)))

    def deviation(self, features: int) -> float:
        """The chance that the last feature to stay and the first to go draw the same of ``2**52`` numbers, at most.

        The gap between two neighbours among ``features`` uniform numbers is under ``g`` with probability at most
        ``features g``.
        """
        return self.features * 2.0**-52


@dataclass(frozen=True)
class Deletion:
    """Every element of a sequence is deleted with probability ``rate``; budgets count edits.

    An edit is an insertion, a deletion or a substitution. Inputs are ``(N, L)`` numbers, filled up at the end with
    ``padding``, which is no element; what remains moves up and is filled up again.

    Parameters
    ----------
    rate : float
        The probability with which an element is deleted, inside (0, 1).
    padding : float
        The number that stands for no element.

    Raises
    ------
    SettingError
        When ``rate`` is no probability, or 0 or 1, or ``padding`` no finite number.
    """

    rate: float
    padding: float = 0.0
    norm: ClassVar[str] = "edit"
    step: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < as_float(self.rate) < 1:
            raise SettingError(f"rate: elements are deleted with a probability inside (0, 1), got {shown(self.rate)}")
        # NaN equals nothing, not even itself.
        number("padding", self.padding)

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """What is left of ``x``, ``(N, L)``.

        Raises
        ------
        DataError
            When inputs are no rows of numbers.
        """
        if x.dim() != 2:
            raise DataError(f"x: shape {tuple(x.shape)}; sequences are rows of numbers (N, L)")
        padding = float(self.padding)
        kept = (x != padding) & (rng.fine(x.shape[1]) >= self.rate)
        order = (~kept).long().argsort(dim=1, stable=True)
        return torch.where(kept, x, padding).gather(1, order)

    def delta(self, budget: int) -> float:
        """``1 - rate ** budget``: the chance that not all of so many elements are deleted."""
        return -math.expm1(budget * math.log(self.rate))

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """From the bound of one class alone, the largest integer below ``log(3/2 - lower) / log(rate)``."""
        return _budgets(self.delta, lower, upper, int(math.log(0.5) / math.log(self.rate)) + 1)

    def probability(self, radius: float) -> float:
        return _threshold(self.delta(_whole(radius)))

    def deviation(self, features: int) -> float:
        """``features / 2**52``: of the ``2**52`` numbers that an element may draw, one may be on the wrong side."""
        return features * 2.0**-52


@runtime_checkable
class Enumerable(Perturbation, Protocol):
    """An ablation with so few outcomes that all of them vote, number ``rng.draw`` at that draw."""

    @property
    def norm(self) -> str: ...

    @property
    def outcomes(self) -> int:
        """How many there are."""
        ...

    @property
    def limit(self) -> int:
        """The largest budget that means anything."""
        ...

    def seen(self, budget: int) -> int:
        """In how many outcomes a change of this budget can be seen, at most."""
        ...

    def spent(self, patch: Patch) -> int:
        """The budget that a patch takes."""
        ...


@dataclass(frozen=True)
class ColumnAblation:
    """A band of columns stays, once at each place, going round at the edge; budgets are the width of a patch.

    Parameters
    ----------
    width : int
        Of the image, in pixels.
    band : int
        How many columns stay.
    hide : Hide
        How the others are hidden.

    Raises
    ------
    SettingError
        When the band is wider than the image, or ``hide`` cannot be called.
    """

    width: int
    band: int
    hide: Hide = mark
    norm: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        whole("width", self.width, 1, _MOST)
        _require_inside("band", self.band, self.width, "pixels")
        function_of("hide", self.hide)

    @property
    def outcomes(self) -> int:
        return self.width

    @property
    def limit(self) -> int:
        return self.width

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """What is left of ``x``, ``(N, C, H, width)``.

        Raises
        ------
        DataError
            When images have another width.
        """
        if x.dim() != 4 or x.shape[3] != self.width:
            raise DataError(f"x: shape {tuple(x.shape)}; this ablation is for images (N, C, H, {self.width})")
        kept = _band(_draw(rng, x), self.band, self.width)
        return _hidden(self.hide, x, kept[:, None, None, :].expand(-1, 1, x.shape[2], -1))

    def seen(self, budget: int) -> int:
        return _meeting(budget, self.band, self.width)

    def spent(self, patch: Patch) -> int:
        return patch.width


@dataclass(frozen=True)
class BlockAblation:
    """A square block stays, once at each place, going round at the edges; budgets are the side of a square patch.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    side : int
        Of the block.
    hide : Hide
        How the rest is hidden.

    Raises
    ------
    SettingError
        When the block does not fit, or ``hide`` cannot be called.
    """

    height: int
    width: int
    side: int
    hide: Hide = mark
    norm: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        whole("height", self.height, 1, _MOST)
        whole("width", self.width, 1, _MOST)
        _require_inside("side", self.side, self.limit, "pixels")
        function_of("hide", self.hide)

    @property
    def outcomes(self) -> int:
        return self.height * self.width

    @property
    def limit(self) -> int:
        return min(self.height, self.width)

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        """What is left of ``x``, ``(N, C, height, width)``.

        Raises
        ------
        DataError
            When images have another size.
        """
        if x.dim() != 4 or x.shape[2:] != (self.height, self.width):
            raise DataError(
                f"x: shape {tuple(x.shape)}; this ablation is for images (N, C, {self.height}, {self.width})"
            )
        place = _draw(rng, x)
        rows = _band(place // self.width, self.side, self.height)
        columns = _band(place % self.width, self.side, self.width)
        return _hidden(self.hide, x, (rows[:, :, None] & columns[:, None, :])[:, None])

    def seen(self, budget: int) -> int:
        return _meeting(budget, self.side, self.height) * _meeting(budget, self.side, self.width)

    def spent(self, patch: Patch) -> int:
        return max(patch.height, patch.width)


class Ablated(nn.Module):
    """The classifier that answers as ``model`` does to most of the ablations of an input; no sampling, no error.

    A module that can be attacked and audited like any other: called with inputs, it answers with scores ``(N, K)``, of
    which that of its answer is the largest; ``holdfast.audit(..., certify="own")`` has it prove itself against patches.

    Parameters
    ----------
    model : nn.Module
        Maps what the ablation leaves to ``(N, K)`` logits.
    ablation : Enumerable
        :class:`ColumnAblation` or :class:`BlockAblation`.
    batch_size : int, optional
        Rows a call.

    Raises
    ------
    SettingError
        When the ablation is none, or has too many outcomes to let all of them vote.
    """

    procedure: ClassVar[str] = "exact votes"

    def __init__(self, model: nn.Module, ablation: Enumerable, *, batch_size: int | None = None) -> None:
        if isinstance(ablation, type) or not isinstance(ablation, Enumerable):
            raise SettingError(f"ablation: a {type_of(ablation)} cannot let all its outcomes vote; give one such as "
                               "ColumnAblation(28, 4), or sample it by Smoothed")  # fmt: skip
        super().__init__()
        self.ablation = ablation
        self.model = module_of(model)
        self._batch_size = batch_size

    def extra_repr(self) -> str:
        return repr(self.ablation)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, K)`` scores: shares of votes, the answer's above all others.

        Their gradient is that of the average logits of all ablations; NaN where there is no answer.
        """
        return torch.cat([self._scores(one) for one in x.split(1)])

    def refuses(self, threat: Threat) -> str:
        """Why nothing is proved about a threat: it is no patch."""
        if not isinstance(threat, Patch) or self.ablation.norm != "patch":
            return f"votes on ablations prove something about patches, and {threat.name} is none"
        return ""

    def keeps(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """``(N,)`` bool: whether ``y`` leads by more votes than twice those that see the patch."""
        if not isinstance(threat, Patch) or self.refuses(threat):
            raise SettingError(self.refuses(threat))
        kept = []
        for one, label in zip(x.split(1), y.tolist(), strict=True):
            logits, votes = self._ask(one)
            tally = _tally(votes, logits.shape[1])
            leads = _leader(tally) == label < logits.shape[1]
            kept.append(leads and largest_patch(self.ablation, tally) >= self.ablation.spent(threat))
        return torch.tensor(kept, dtype=torch.bool, device=x.device)

    def _ask(self, one: Tensor) -> tuple[Tensor, Tensor]:
        number = torch.arange(self.ablation.outcomes, device=one.device)
        views = one.expand(len(number), *one.shape[1:])
        return ask(self.model, self.ablation.perturb(views, Draws(0, torch.zeros_like(number), draw=number)))

    def _scores(self, one: Tensor) -> Tensor:
        logits, votes = self._ask(one)
        return as_logits(votes, logits, _leader(_tally(votes, logits.shape[1])))

    def certify(self, x: Tensor, y: Tensor | None = None, *, index: Tensor | None = None) -> SmoothingResult:
        """The most frequent class, the first of equals, and the largest budget that cannot change it.

        An example whose votes prove nothing has radius 0. It abstains only where more votes name no class, being NaN,
        than any one class.

        Parameters
        ----------
        x : Tensor
            ``(N, ...)`` inputs.
        y : Tensor, optional
            ``(N,)`` labels, for accuracies.
        index : Tensor, optional
            ``(N,)`` int64 positions in the data set, to be reported.

        Raises
        ------
        DataError
            When there are no examples, or labels or positions are not one for each.
        ModelError
            When the model does not answer with logits.
        """
        x = inputs(x)
        y = None if y is None else counts(y, "y")
        index = checked_index(x, y, index)
        outcomes = self.ablation.outcomes
        with Query(self.model, batch_size=self._batch_size) as query:
            votes = count_votes(query, self.ablation, x, Draws(0, index), torch.arange(len(x)), 0, outcomes)
        first = torch.tensor([_leader(row) for row in votes])
        prediction = torch.where(first < votes.shape[1] - 1, first, ABSTAINED)
        largest = torch.tensor([float(largest_patch(self.ablation, row)) for row in votes], dtype=torch.float64)
        radius = torch.where(prediction == ABSTAINED, 0.0, largest)
        return SmoothingResult(
            procedure="exact votes",
            norm=self.ablation.norm,
            alpha=0.0,
            radii=None,
            index=index,
            prediction=prediction,
            radius=radius,
            samples=torch.full_like(index, outcomes),
            limit=outcomes,
            y=None if y is None else y.cpu(),
            forwards=query.forwards,
        )


def _tally(votes: Tensor, classes: int) -> Tensor:
    """``(K + 1,)`` int64, how often each class, and none, was voted for."""
    return torch.bincount(votes, minlength=classes + 1).cpu()


def _leader(tally: Tensor) -> int:
    """The class of most votes, of equals the first; argmax does not say which of them it takes."""
    return int((tally == tally.max()).long().argmax())


def largest_patch(ablation: Enumerable, votes: Tensor) -> int:
    """The largest budget that cannot change the first class, from all votes, ``(K,)`` int64.

    The first class loses and another gains a vote in each outcome that sees the change; among equals the class that
    comes first wins.
    """
    top = _leader(votes)
    ahead = votes[top] - votes - (torch.arange(len(votes)) < top).long()
    ahead[top] = 2 * ablation.outcomes
    lead = int(ahead.min())
    return _largest(lambda budget: 2 * ablation.seen(budget) <= lead, ablation.limit)


def _budgets(delta: Callable[[int], float], lower: Tensor, upper: Tensor, limit: int) -> Tensor:
    """``(N,)`` float64, the largest budgets with ``lower - upper > 2 delta``; 0 where there is none."""
    margins = (lower - upper).tolist()

    def budget(margin: float) -> float:
        return _largest(lambda budget: 2 * _ROUNDED * delta(budget) < margin, limit)

    return torch.tensor([budget(margin) for margin in margins], dtype=torch.float64)


def _threshold(delta: float) -> float:
    return math.nextafter(0.5 + _ROUNDED * delta, 2) if delta else 0.5


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest budget up to ``limit`` for which a condition holds that holds for all smaller ones; 0 if none."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _whole(radius: float) -> int:
    if radius != int(radius):
        raise SettingError(f"radii: this budget counts changes, so {radius:g} must be a whole number")
    return int(radius)


def _require_inside(name: str, size: int, limit: int, things: str) -> None:
    if not 1 <= whole(name, size, 0) <= limit:
        raise SettingError(f"{name}: {shown(size)} of {limit} {things}; keep at least 1 and at most all")


def _hidden(hide: Hide, x: Tensor, kept: Tensor) -> Tensor:
    """What a function of the user's leaves of ``x``, one row for each."""
    try:
        left: Any = hide(x, kept)
    except Exception as error:
        raise SettingError(f"hide: called with inputs and what is kept, it raised {reason(error)}") from error
    if not isinstance(left, Tensor) or left.shape[:1] != x.shape[:1]:
        raise SettingError(f"hide: must return a tensor with a row for each of {len(x)} inputs, not {shown(left)}")
    return left


def _draw(rng: Draws, x: Tensor) -> Tensor:
    return torch.as_tensor(rng.draw, device=x.device).expand(len(x))


def _band(start: Tensor, band: int, size: int) -> Tensor:
    """``(N, size)`` bool, the ``band`` places from ``start`` on, going round."""
    return (torch.arange(size, device=start.device) - start[:, None]) % size < band


def _meeting(change: int, band: int, size: int) -> int:
    """How many of the ``size`` places of a band meet ``change`` places in a row."""
    return min(change + band - 1, size) if change else 0
