"""Double masking: a defence against patches that works with any classifier, and its certificate.

Masks are so many and so large that each place of a patch lies inside one of them. A patch inside the first mask is seen
by nobody who looks past that mask, whatever the second one hides. So where all pairs of masks leave one and the same
answer, no patch changes what the procedure says.

Xiang, Mahloujifar and Mittal, "PatchCleanser: certifiably robust defense against adversarial patches for any image
classifier", USENIX Security 2022: masks in section 3.2, inference in algorithm 1, certification in algorithm 2.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.arguments import counts, function_of, inputs, whole
from holdfast.certify.smoothing.ablation import Fill, Hide
from holdfast.certify.smoothing.result import ABSTAINED, SmoothingResult
from holdfast.certify.smoothing.votes import checked_index, each_vote
from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.models import Query

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


class DoublyMasked:
    """The classifier that looks past masks, and past pairs of them where it does not agree with itself.

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

    def __init__(self, model: nn.Module, masks: Masks, *, batch_size: int | None = None) -> None:
        if not isinstance(masks, Masks):
            raise SettingError(f"masks: Masks(28, 28, patch=3) or the like is needed, not a {type(masks).__name__}")
        self.masks = masks
        self._model, self._batch_size = model, batch_size

    def predict(self, x: Tensor) -> Tensor:
        """``(N,)`` int64, the answer to images ``(N, C, height, width)``; -1 for none.

        That of all first masks if they agree. Otherwise a mask whose answer differs from the most frequent one is asked
        again behind each second mask, and believed if that never changes its answer; if none is, the most frequent is.
        """
        with Query(self._model, batch_size=self._batch_size) as query:
            found, _ = self._predict(query, self._images(x))
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
        x = self._images(x)
        y = None if y is None else counts(y, "y")
        index = checked_index(x, y, index)
        first, second = self._pairs
        with Query(self._model, batch_size=self._batch_size) as query:
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
        most = nn.functional.one_hot(votes, classes + 1).sum(1).argmax(1)
        answer, asked = most.clone(), torch.full_like(most, len(kept))
        for row in ((votes != most[:, None]).any(1)).nonzero()[:, 0].tolist():
            for mask in (votes[row] != most[row]).nonzero()[:, 0].tolist():
                again, _ = each_vote(query, _Views(kept[mask] & kept, hide), x[row : row + 1], len(kept))
                asked[row] += len(kept)
                if bool((again == votes[row, mask]).all()):
                    answer[row] = votes[row, mask]
                    break
        return torch.where(answer < classes, answer, ABSTAINED), asked

    def _images(self, x: Tensor) -> Tensor:
        x = inputs(x)
        size = (self.masks.height, self.masks.width)
        if x.dim() != 4 or tuple(x.shape[2:]) != size or not len(x):
            raise DataError(f"x: shape {tuple(x.shape)}; these masks are for images (N, C, {size[0]}, {size[1]})")
        return x
