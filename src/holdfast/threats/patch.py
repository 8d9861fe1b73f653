"""Patches: a rectangle somewhere in an image shows anything.

The threat of Brown, Mané, Roy, Abadi and Gilmer, "Adversarial patch", 2017, arXiv:1712.09665, in the form of Chiang,
Ni, Abdelkader, Zhu, Studer and Goldstein, "Certified defenses for adversarial patches", ICLR 2020, arXiv:2003.06693,
where the adversary knows the image and chooses both place and content for it.
"""

import re
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.threats.ball import BoxArgument
from holdfast.threats.box import TOLERANCE, Box
from holdfast.threats.norm import column

__all__ = ["Patch", "parse_patch"]

_MOST = 2**16  # pixels a side
_SIZE = re.compile(r"(\d{1,9})(?:\s*x\s*(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Patch:
    """A rectangle of an image ``(C, H, W)`` or ``(H, W)``, at any place of it, shows whatever the box allows.

    A choice is a row of ``2 + C * height * width`` numbers: the place ``top, left`` of the rectangle's first pixel,
    counted in whole pixels from 0, and what it shows, in the inputs' own units, channel by channel and row by row.
    Budget and distance count patches: one may be there. Steps of an ascent are as long as a share of the box: a step of
    length 1 takes every value of the content from one end of its range to the other. The place stays.

    Parameters
    ----------
    height, width : int
        Of the rectangle, in pixels; a square where only one is given.
    box : pair or Box
        The bounds of inputs: numbers or per-feature tensors.

    Raises
    ------
    SettingError
        When a side is no whole number of pixels, or the box leaves a value unbounded.

    Attributes
    ----------
    bounds : Box
        Those of inputs.
    """

    height: int
    width: int
    bounds: Box

    def __init__(self, height: int, width: int | None = None, box: BoxArgument = (0.0, 1.0)) -> None:
        object.__setattr__(self, "height", _side("height", height))
        object.__setattr__(self, "width", self.height if width is None else _side("width", width))
        object.__setattr__(self, "bounds", Box.of(box))
        if not self.bounds.bounded:
            raise SettingError("box: a patch needs a bounded box, since nothing else limits what it shows")

    @property
    def name(self) -> str:
        return f"patch:{self.height}x{self.width}"

    def __repr__(self) -> str:
        return f"Patch({self.height}, {self.width}, box={self.bounds})"

    def nothing(self, x: Tensor) -> Tensor:
        """``(N, 2 + C * height * width)``: a patch in the first corner that shows what is there."""
        return self.choice(x, x.new_zeros(len(x), 2), x)

    def choice(self, x: Tensor, place: Tensor, image: Tensor) -> Tensor:
        """The choices at the places ``(N, 2)`` that show, as far as the box allows, what ``image`` shows there."""
        content = _flat(image).gather(2, self._pixels(x, place))
        return self.project(torch.cat([place.to(x.dtype), content.flatten(1)], dim=1), x)

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """The images behind the patch, which is moved into them and clipped to the box."""
        pixels = self._pixels(x, z)
        content = z[:, 2:].reshape(pixels.shape).clamp(*self._range(x, pixels))
        return _flat(x).scatter(2, pixels, content).reshape(x.shape)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest choice: the place rounded and moved into the image, the content clipped to the box."""
        lower, upper = (end.flatten(1) for end in self._range(x, self._pixels(x, z)))
        return torch.cat([self._place(x, z), z[:, 2:].clamp(lower, upper)], dim=1)

    retract = project

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """The gradient under the patch; 0 for the place, which moves in whole pixels."""
        return torch.cat([torch.zeros_like(z[:, :2]), _flat(grad).gather(2, self._pixels(x, z)).flatten(1)], dim=1)

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """A step of every value of the content to the side of its gradient, by a share ``size`` of its range."""
        lower, upper = (end.flatten(1) for end in self._range(x, self._pixels(x, z)))
        content = z[:, 2:] + column(size, z) * (upper - lower) * grad[:, 2:].sign()
        return torch.cat([self._place(x, z), content.clamp(lower, upper)], dim=1)

    def extreme(self, x: Tensor, grad: Tensor) -> Tensor:
        """Like ``x``: at every pixel the value that gains most along a gradient, and its own where that is 0."""
        lower, upper = self.bounds.ends(x)
        return torch.where(grad > 0, torch.maximum(upper, x), torch.where(grad < 0, torch.minimum(lower, x), x))

    def gains(self, x: Tensor, grad: Tensor) -> Tensor:
        """``(N, M)`` what the best content gains to first order, ``max <grad, change>``, at each of the :meth:`places`.

        For a linear model that is the worst case, exactly.
        """
        self._last(x)
        gain = _flat(grad * (self.extreme(x, grad) - x)).sum(1).reshape(len(x), 1, *x.shape[-2:])
        return functional.avg_pool2d(gain, (self.height, self.width), stride=1, divisor_override=1).flatten(1)

    def places(self, x: Tensor) -> Tensor:
        """``(M, 2)`` int64, where a patch can lie in images like ``x``, row by row."""
        rows, columns = (torch.arange(last + 1, device=x.device) for last in self._last(x))
        return torch.cartesian_prod(rows, columns)

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """Place and content drawn uniformly."""
        place = rng.bits(2) * (torch.tensor(self._last(x), device=x.device) + 1) >> 32
        lower, upper = (end.flatten(1) for end in self._range(x, self._pixels(x, place)))
        content = lower + (upper - lower) * rng.uniform(lower.shape[1], lane=1).to(x.dtype)
        return torch.cat([place.to(x.dtype), content.clamp(lower, upper)], dim=1)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool: whether what is then seen is inside the box, to 1e-6; no NaN is."""
        return (self.bounds.excess(self.apply(x, z)) <= TOLERANCE) & ~z.isnan().any(1)

    def admits(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` bool: whether one rectangle covers all that differs, and the box, to 1e-6, whatever is seen."""
        self._last(x)
        changed = (_flat(x_adv) != _flat(x)).any(1).reshape(len(x), *x.shape[-2:])
        covered = (_extent(changed.any(2)) <= self.height) & (_extent(changed.any(1)) <= self.width)
        return covered & (self.bounds.excess(x_adv) <= TOLERANCE)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` 1 where anything changes, else 0."""
        return (self.apply(x, z) != x).flatten(1).any(1).to(x.dtype)

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` one patch."""
        return x.new_ones(len(x))

    def at(self, index: Tensor) -> Self:
        return self

    def near(self, x: Tensor) -> Self:
        return self

    def to_dict(self) -> dict[str, Any]:
        """The sides and the box in plain numbers and lists."""
        ends = [torch.as_tensor(end).tolist() for end in (self.bounds.lower, self.bounds.upper)]
        return {"patch": [self.height, self.width], "box": ends}

    def cells(self, x: Tensor) -> Tensor:
        """``(M, 2)`` the places in one image: each is a box of contents."""
        return self.places(x.unsqueeze(0)).to(x.dtype)

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds ``(M, *shape)``: those of inputs under the patch, the image itself elsewhere."""
        images = x.expand(len(cells), *x.shape)
        pixels = self._pixels(images, cells)
        lower, upper = (
            _flat(images).scatter(2, pixels, end).reshape(images.shape) for end in self._range(images, pixels)
        )
        return lower, upper

    def choose(self, x: Tensor, cells: Tensor, point: Tensor) -> Tensor:
        """``(M, 2 + C * height * width)`` what shows the ``point``, ``(M, *shape)``, at each place."""
        return self.choice(x.expand(len(cells), *x.shape), cells, point)

    def split(self, cells: Tensor) -> Tensor:
        """Nothing: every point of a box is a choice."""
        return cells[:0]

    def _last(self, x: Tensor) -> tuple[int, int]:
        """The place farthest from the first."""
        if x.dim() not in (3, 4):
            raise DataError(f"{self.name}: a patch lies in images (N, C, H, W) or (N, H, W), not in {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if self.height > height or self.width > width:
            raise DataError(f"{self.name}: the patch does not fit into images of {height} x {width} pixels")
        return height - self.height, width - self.width

    def _place(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N, 2)`` the nearest places to those of choices."""
        return z[:, :2].round().clamp_min(0).minimum(torch.tensor(self._last(x), dtype=z.dtype, device=z.device))

    def _pixels(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N, C, height * width)`` int64, which pixels of each channel the patch covers."""
        top, left = self._place(x, z).nan_to_num(0.0).long().unbind(1)
        rows = top[:, None] + torch.arange(self.height, device=x.device)
        columns = left[:, None] + torch.arange(self.width, device=x.device)
        pixels = (rows[:, :, None] * x.shape[-1] + columns[:, None, :]).flatten(1)
        return pixels[:, None].expand(-1, _flat(x).shape[1], -1)

    def _range(self, x: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the pixels may show: the box, and what they do."""
        here = _flat(x).gather(2, pixels)
        lower, upper = (_flat(end.expand_as(x)).gather(2, pixels) for end in self.bounds.ends(x))
        return torch.minimum(lower, here), torch.maximum(upper, here)


def parse_patch(size: str, box: BoxArgument = (0.0, 1.0)) -> Patch:
    """Read ``"HEIGHTxWIDTH"``, or one side of a square.

    Raises
    ------
    SettingError
        When it is neither.
    """
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise SettingError(f"patch: write HEIGHTxWIDTH in pixels, such as patch:5x5, not {size[:100]!r}")
    height, width = found.groups()
    return Patch(int(height), None if width is None else int(width), box)


def _side(name: str, side: Any) -> int:
    if not isinstance(side, Integral) or isinstance(side, bool) or not 1 <= int(side) <= _MOST:
        raise SettingError(f"{name}: a patch has 1 to {_MOST} whole pixels a side, not {str(side)[:100]!r}")
    return int(side)


def _flat(x: Tensor) -> Tensor:
    """``(N, C, H * W)``, the pixels of each channel in one row."""
    return (x if x.dim() == 4 else x.unsqueeze(1)).flatten(2)


def _extent(lines: Tensor) -> Tensor:
    """``(N,)`` how far it is from the first to the last of the marked lines, ``(N, L)`` bool, both included."""
    number = torch.arange(lines.shape[1], device=lines.device)
    last = torch.where(lines, number, -1).amax(1)
    return (last - torch.where(lines, number, lines.shape[1]).amin(1) + 1).clamp_min(0)
