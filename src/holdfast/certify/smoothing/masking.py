"""Double masking: a defence against patches that works with any classifier, and its certificate.

Masks are so many and so large that each place of a patch lies inside one of them. A patch inside the first mask is seen
by nobody who looks past that mask, whatever the second one hides. So where all pairs of masks leave one and the same
answer, no patch changes what the procedure says.

Xiang, Mahloujifar and Mittal, "PatchCleanser: certifiably robust defense against adversarial patches for any image
classifier", USENIX Security 2022: masks in section 3.2, inference in algorithm 1, certification in algorithm 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.arguments import counts, function_of, inputs, module_of, whole
from holdfast.certify.smoothing.ablation import Fill, Hide
from holdfast.certify.smoothing.defended import as_logits, ask
from holdfast.certify.smoothing.result import ABSTAINED, SmoothingResult
from holdfast.certify.smoothing.votes import checked_index, each_vote
from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.models import Query
from holdfast.threats import Patch, Threat

__all__ = ["DoublyMasked", "Masks"]

_MOST = 2**16  # pixels a side
_BLACK = Fill(0.0)


@dataclass(frozen=True)
class Masks:
    """Square masks, one of which covers a square patch wherever in the image that is.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    patch : int
        The side of the largest patch to be covered.
    number : int
        How many masks go along an axis; where fewer of that size cover it, fewer.
    hide : Hide
        How the masked pixels are hidden from the classifier; 0 by default.

    Raises
    ------
    SettingError
        When the patch does not fit into the image, or ``hide`` cannot be called.
    """

    height: int
    width: int
    patch: int
    number: int = 6
    hide: Hide = _BLACK

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            whole(name, getattr(self, name), 1, _MOST)
        whole("number", self.number, 1, _MOST)
        if whole("patch", self.patch, 1, _MOST) > min(self.height, self.width):
            raise SettingError(
                f"patch: a side of {self.patch} pixels does not fit into an image of {self.height} x {self.width}"
            )
        function_of("hide", self.hide)

    @cached_property
    def kept(self) -> Tensor:
        """``(M, height, width)`` bool, what each mask leaves."""
        rows, columns = (_covers(size, self.patch, self.number) for size in (self.height, self.width))
        return ~(rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def _covers(size: int, patch: int, number: int) -> Tensor:
    """``(M, size)`` bool, intervals along an axis, one of which covers ``patch`` pixels wherever they begin."""
    stride = math.ceil((size - patch + 1) / number)
    length = min(patch + stride - 1, size)
    starts = torch.tensor([*range(0, size - length, stride), size - length])
    places = torch.arange(size)
    return (places >= starts[:, None]) & (places < starts[:, None] + length)


@dataclass(frozen=True)
class _Views:
    """What is left of an image behind masks: the outcome's number is the draw's."""

    kept: Tensor
    hide: Hide
    norm: ClassVar[str] = "patch"

    def perturb(self, x: Tensor, rng: Draws) -> Tensor:
        number = torch.as_tensor(rng.draw, device=x.device).expand(len(x))
        return self.hide(x, self.kept.to(x.device)[number].unsqueeze(1))


class DoublyMasked(nn.Module):
    """The classifier that looks past masks, and past pairs of them where it does not agree with itself.

    A module that can be attacked and audited like any other: called with images, it answers with scores ``(N, K)``, of
    which that of its answer is the largest; ``holdfast.audit(..., certify="own")`` has it prove itself.

    Parameters
    ----------
    model : nn.Module
        Maps images with hidden parts to ``(N, K)`` logits; any classifier will do, better one that was trained on
        masked images.
    masks : Masks
        What is hidden.
    batch_size : int, optional
        Rows a call.
    """

    procedure: ClassVar[str] = "double masking"

    def __init__(self, model: nn.Module, masks: Masks, *, batch_size: int | None = None) -> None:
        if not isinstance(masks, Masks):
            raise SettingError(f"masks: Masks(28, 28, patch=3) or the like is needed, not a {type(masks).__name__}")
        super().__init__()
        self.masks = masks
        self.model = module_of(model)
        self._batch_size = batch_size

    def extra_repr(self) -> str:
        return repr(self.masks)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, K)`` scores for images ``(N, C, height, width)``: shares of votes, the answer's above all others.

        Their gradient is that of the average logits behind the first masks; NaN where there is no answer.
        """
        return torch.cat([self._scores(image) for image in self._images(x).split(1)])

    def refuses(self, threat: Threat) -> str:
        """Why nothing is proved about a threat: it is no patch, or one that the masks do not cover."""
        if not isinstance(threat, Patch):
            return f"double masking proves something about patches, and {threat.name} is none"
        if max(threat.height, threat.width) > self.masks.patch:
            return f"the masks cover patches of at most {self.masks.patch} pixels a side, and not {threat.name}"
        return ""

    def keeps(self, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """``(N,)`` bool: whether behind all pairs of masks, in either order, the answer is ``y``."""
        if reason := self.refuses(threat):
            raise SettingError(reason)
        kept = self.masks.kept.to(x.device)
        views = [kept, *(kept & mask for mask in kept)]
        return torch.tensor(
            [
                all(bool((self._ask(image, view)[1] == label).all()) for view in views)
                for image, label in zip(self._images(x).split(1), y, strict=True)
            ],
            dtype=torch.bool,
            device=x.device,
        )

    def _ask(self, image: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        return ask(self.model, self.masks.hide(image.expand(len(kept), -1, -1, -1), kept.unsqueeze(1)))

    def _scores(self, image: Tensor) -> Tensor:
        kept = self.masks.kept.to(image.device)
        logits, votes = self._ask(image, kept)
        with torch.no_grad():
            answer = _answer(votes, logits.shape[1], lambda mask: self._ask(image, kept[mask] & kept)[1])
        return as_logits(votes, logits, answer)

    def predict(self, x: Tensor) -> Tensor:
        """``(N,)`` int64, the answer to images ``(N, C, height, width)``; -1 for none.

        That of all first masks if they agree. Otherwise a mask whose answer differs from the most frequent one is asked
        again behind each second mask, and believed if that never changes its answer; if none is, the most frequent is.
        """
        with Query(self.model, batch_size=self._batch_size) as query:
            found, _ = self._predict(query, self._images(inputs(x)))
        return found

    def certify(self, x: Tensor, y: Tensor | None = None, *, index: Tensor | None = None) -> SmoothingResult:
        """The answers, and whether a patch can change them.

        Parameters
        ----------
        x : Tensor
            ``(N, C, height, width)`` images.
        y : Tensor, optional
            ``(N,)`` labels, for accuracies.
        index : Tensor, optional
            ``(N,)`` int64 positions in the data set, to be reported.

        Returns
        -------
        SmoothingResult
            Its radius is the side of the patch that cannot change the answer: that of the masks, or 0.

        Raises
        ------
        DataError
            When there are no images, or they have another size.
        ModelError
            When the model does not answer with logits.
        """
        x = self._images(inputs(x))
        y = None if y is None else counts(y, "y")
        index = checked_index(x, y, index)
        first, second = self._pairs
        with Query(self.model, batch_size=self._batch_size) as query:
            prediction, asked = self._predict(query, x)
            kept = self.masks.kept
            votes, classes = each_vote(query, _Views(kept[first] & kept[second], self.masks.hide), x, len(first))
        certain = (votes == votes[:, :1]).all(1) & (votes[:, 0] < classes)
        return SmoothingResult(
            procedure="double masking",
            norm="patch",
            alpha=0.0,
            radii=None,
            index=index,
            prediction=prediction,
            radius=torch.where(certain, float(self.masks.patch), 0.0).double(),
            samples=asked + len(first),
            limit=len(first),
            y=None if y is None else y.cpu(),
            forwards=query.forwards,
        )

    @property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """All pairs of masks, each with itself among them."""
        first, second = torch.triu_indices(len(self.masks.kept), len(self.masks.kept)).unbind(0)
        return first, second

    def _predict(self, query: Query, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N,)`` the answers, and how often each image was asked about."""
        kept, hide = self.masks.kept, self.masks.hide
        votes, classes = each_vote(query, _Views(kept, hide), x, len(kept))
        asked = torch.full((len(x),), len(kept))

        def again(row: int, mask: int) -> Tensor:
            asked[row] += len(kept)
            return each_vote(query, _Views(kept[mask] & kept, hide), x[row : row + 1], len(kept))[0][0]

        answer = torch.tensor([_answer(votes[row], classes, partial(again, row)) for row in range(len(x))])
        return torch.where(answer < classes, answer, ABSTAINED), asked

    def _images(self, x: Tensor) -> Tensor:
        size = (self.masks.height, self.masks.width)
        if x.dim() != 4 or tuple(x.shape[2:]) != size or not len(x):
            raise DataError(f"x: shape {tuple(x.shape)}; these masks are for images (N, C, {size[0]}, {size[1]})")
        return x


def _answer(votes: Tensor, classes: int, again: Callable[[int], Tensor]) -> int:
    """What follows from the votes behind the first masks, ``(M,)``: a class, or their number for none.

    ``again`` tells the votes behind one of them and each second mask.
    """
    tally = torch.bincount(votes, minlength=classes + 1)
    most = int((tally == tally.max()).long().argmax())  # argmax does not say which of equals it takes
    for mask in (votes != most).nonzero()[:, 0].tolist():
        if bool((again(mask) == votes[mask]).all()):
            return int(votes[mask])
    return most
