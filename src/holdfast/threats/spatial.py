"""Images turned, moved and resized within limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.rounding import unit
from holdfast.threats.ball import Ball, BoxArgument
from holdfast.threats.box import TOLERANCE, Box
from holdfast.threats.budget import Budget, parse_budget, written
from holdfast.threats.norm import safe_divide
from holdfast.threats.planes import Planes
from holdfast.threats.sweep import sweep
from holdfast.threats.then import Then
from holdfast.threats.warp import Padding, warp

__all__ = ["MOVES", "Spatial", "parse_spatial"]

Limit = float | str | Tensor

# From so many on, cells are left as large as they are: whoever covers a set splits those that need it.
_FIRST_CELLS = 256


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Spatial:
    """Every image that a turn, a move and a change of size within limits make of the clean one.

    The image is turned about its centre, resized there, and then moved, with bilinear interpolation (Engstrom et al.,
    "Exploring the landscape of spatial robustness", 2017). The choice is ``(N, 4)``: the angle in degrees,
    counter-clockwise as the image is seen; the moves to the right and down in pixels; the relative growth, 0.1 for an
    image 1.1 times as large. It is in the precision of the inputs, at least float32. The budget is 1, and the distance
    of a choice the largest share that it takes of any limit.

    Parameters
    ----------
    rotation : float, str or Tensor
        The largest angle to either side in degrees, up to 180: one number, or ``(M,)``, one for each of ``M`` examples.
    translation : float, str or Tensor
        The largest move to either side along each axis in pixels, likewise.
    scale : float, str or Tensor
        The largest relative growth and shrinkage, below 1, likewise: 0.1 for 0.9 to 1.1.
    padding : str
        What lies around an image: ``"zeros"``, or its ``"edge"`` going on.
    box : pair, Box or None
        The bounds of inputs; what is made is clipped to them.
    whole : bool
        Whether moves are by whole pixels alone.

    Raises
    ------
    SettingError
        When a limit or the box makes no sense.

    Attributes
    ----------
    bounds : Box
        Those of inputs.
    """

    rotation: Budget
    translation: Budget
    scale: Budget
    padding: Padding
    bounds: Box
    whole: bool

    def __init__(
        self,
        rotation: Limit = 0.0,
        translation: Limit = 0.0,
        scale: Limit = 0.0,
        padding: Padding = "zeros",
        box: BoxArgument = (0.0, 1.0),
        whole: bool = False,
    ) -> None:
        limits = {"rotation": rotation, "translation": translation, "scale": scale}
        for name, limit in limits.items():
            object.__setattr__(self, name, _limit(name, limit))
        if padding not in get_args(Padding):
            raise SettingError(f"padding: choose one of {', '.join(get_args(Padding))}, not {padding!r}")
        if not isinstance(whole, bool):
            raise SettingError(f"whole: True or False is needed, not {whole!r}")
        object.__setattr__(self, "padding", padding)
        object.__setattr__(self, "bounds", Box.of(box))
        object.__setattr__(self, "whole", whole)

    @property
    def name(self) -> str:
        limits = [(word, getattr(self, name), unit) for word, (name, unit) in MOVES.items()]
        words = [f"{word}:{_shown(limit)}{unit}" for word, limit, unit in limits if not _is_zero(limit)]
        words = words or ["rotate:0deg"]
        return ",".join(words + ["whole"] * self.whole + [self.padding] * (self.padding != "zeros"))

    def __repr__(self) -> str:
        limits = ", ".join(f"{name}={_shown(getattr(self, name))}" for name in _MOST)
        return f"Spatial({limits}, padding={self.padding}, box={self.bounds}{', whole' * self.whole})"

    def then(self, ball: Ball) -> Then:
        """Whatever this makes of an image, followed by what a norm ball allows around that."""
        return Then(self, ball)

    def nothing(self, x: Tensor) -> Tensor:
        """``(N, 4)`` zeros."""
        return x.new_zeros(len(x), 4, dtype=_precision(x))

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """The images ``x``, ``(N, C, H, W)`` or ``(N, H, W)``, after the choices ``z``; bit for bit ``x`` after none.

        Raises
        ------
        DataError
            When ``x`` are no images.
        """
        return self.bounds.clip(warp(_images(x), z, self.padding).reshape(x.shape))

    def limits(self, x: Tensor) -> Tensor:
        """``(N, 4)`` the largest choices that the threat allows each image."""
        columns = [self._each(limit, x) for limit in (self.rotation, self.translation, self.translation, self.scale)]
        found = torch.stack(columns, dim=1)
        if self.whole:
            found[:, 1:3] = found[:, 1:3].floor()
        return found

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest choice within the limits."""
        limits = self.limits(x)
        within = z.clamp(-limits, limits)
        return torch.cat([within[:, :1], within[:, 1:3].round(), within[:, 3:]], dim=1) if self.whole else within

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """The same as :meth:`project`."""
        return self.project(z, x)

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """``(N, 4)`` the gradient with respect to the choice, from ``grad`` with respect to the image."""
        with torch.enable_grad():
            choice = z.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(self.apply(x, choice), choice, grad)
        return pulled

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """One step along the sign of the choice's gradient, ``size`` of each limit, ``(N,)``, long.

        Moves by whole pixels go on to the next one at least.
        """
        step = size.unsqueeze(1) * self.limits(x)
        if self.whole:
            step[:, 1:3] = step[:, 1:3].ceil()
        return self.project(z + step * grad.sign(), x)

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """Uniform between the limits."""
        limits = self.limits(x)
        # From a lane that balls leave alone, for what may follow.
        u = 2 * rng.uniform(4, lane=3).to(limits.dtype) - 1
        if self.whole:
            # Every whole number has the same share of the range.
            u[:, 1:3] *= 1 + safe_divide(torch.full_like(u[:, 1:3], 0.5), limits[:, 1:3])
        return self.project(u * limits, x)

    def lattice(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """A grid of choices between the limits, ends included, as the grid attack takes them.

        Engstrom et al. (2017, section 4) take 31 angles and 5 moves along each axis: ``(31, 5, 5, 1)``.

        Parameters
        ----------
        x : Tensor
            One image, ``(C, H, W)`` or ``(H, W)``; the threat is that of this example.
        counts : sequence of 4 int
            How many angles, moves to the right, moves down and sizes to take, evenly spaced; 0 where it is one. Where
            the limit is 0 there is one, and of whole moves there are no more than there are.

        Returns
        -------
        Tensor
            ``(M, 4)`` different choices: the last varies first.

        Raises
        ------
        SettingError
            When the counts are no 4 positive numbers.
        """
        if len(counts) != 4 or min(counts) < 1:
            raise SettingError(f"lattice: four counts of at least 1 are needed, got {tuple(counts)}")
        limits = self.limits(x.unsqueeze(0))[0]
        axes = []
        for place, (count, limit) in enumerate(zip(counts, limits, strict=True)):
            steps = torch.arange(count, dtype=torch.float64, device=x.device) * 2 - (count - 1)
            axis = (steps / max(count - 1, 1)).to(limit.dtype) * limit
            axes.append((axis.round() if self.whole and place in (1, 2) else axis).unique())
        return torch.cartesian_prod(*axes)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` the largest share of a limit; infinite beyond a limit of 0, and for parts of pixels if ``whole``."""
        limits = self.limits(x)
        share = torch.where(limits > 0, z.abs() / limits, torch.where(z == 0, 0.0, torch.inf))
        if self.whole:
            share[:, 1:3] = torch.where(z[:, 1:3] % 1 == 0, share[:, 1:3], torch.inf)
        return torch.where(z.isnan(), torch.nan, share).amax(1)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool: within all limits, and of an image inside the box (to 1e-6), so that what is made is too."""
        return (self.distance(x, z) <= 1) & (self.bounds.excess(x) <= TOLERANCE)

    def cells(self, x: Tensor) -> Tensor:
        """Ranges of choices of one image that together hold all of them.

        Parameters
        ----------
        x : Tensor
            ``(C, H, W)`` or ``(H, W)``.

        Returns
        -------
        Tensor
            ``(M, 9)`` float64: the least choice of a cell, the largest, and how many pixels from the centre a pixel
            lies on the average, by which :meth:`split` tells directions in which much happens. Whole moves have a cell
            each; otherwise pixels move by about one over a cell, unless that took more than some hundreds of them.
        """
        limits = self.limits(x.unsqueeze(0))[0].double()
        low, high = -limits.unsqueeze(0), limits.unsqueeze(0)
        if self.whole:
            steps = torch.arange(-int(limits[1]), int(limits[1]) + 1, dtype=low.dtype, device=x.device)
            moves = torch.cartesian_prod(steps, steps)
            low, high = low.repeat(len(moves), 1), high.repeat(len(moves), 1)
            low[:, 1:3] = high[:, 1:3] = moves
        far = math.hypot(*x.shape[-2:]) / math.sqrt(12)
        cells = torch.cat([low, high, torch.full_like(low[:, :1], far)], dim=1)
        while len(cells) < _FIRST_CELLS and float(_effects(cells).max()) > 1:
            cells = self.split(cells)
        return cells

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of what :meth:`apply` gives, rounding included, for any choice of a cell.

        Where a cell is one choice both are that image.

        Parameters
        ----------
        x : Tensor
            One image, ``(C, H, W)`` or ``(H, W)``.
        cells : Tensor
            ``(M, 9)`` cells of it.

        Returns
        -------
        Tensor, Tensor
            ``(M, *shape)`` each, in the precision of ``x``.
        """
        planes = self.planes(x, cells)
        return planes.lower.to(x.dtype), planes.upper.to(x.dtype)

    def planes(self, x: Tensor, cells: Tensor) -> Planes:
        """Bounds of the same that are linear in the choice: unlike boxes, they know how pixels change together.

        Parameters are those of :meth:`box`.

        Returns
        -------
        Planes
            Of images of the shape of ``x``, in float64: with the box, with the slope for each number of a choice.
        """
        low, high = _ends(cells)
        found = sweep(_images(x.unsqueeze(0))[0], low, high, self.padding)
        slope = found.slope.reshape(*found.slope.shape[:2], *x.shape)
        lower, upper, floor, ceiling = (
            bound.reshape(-1, *x.shape) for bound in (found.lower, found.upper, found.floor, found.ceiling)
        )
        # The box may clip what comes out, and the image's precision rounds it; neither turns an order round.
        least, most = (end.double() for end in self.bounds.ends(x.unsqueeze(0)))
        rounding = unit(x.dtype) * (torch.maximum(lower.abs(), upper.abs()) + torch.finfo(x.dtype).tiny)
        floor = floor - (upper - most).clamp_min(0) - rounding
        ceiling = ceiling + (least - lower).clamp_min(0) + rounding
        lower, upper = (bound.clamp(least, most).to(x.dtype).double() for bound in (lower, upper))
        single = (low == high).all(1)
        images = self.apply(x.expand(int(single.sum()), *x.shape), low[single])
        lower[single] = upper[single] = images.double()
        return Planes(lower, upper, found.reach, slope, floor, ceiling).closer()

    def choose(self, x: Tensor, cells: Tensor, point: Tensor) -> Tensor:
        """``(M, 4)`` a choice of each cell that comes near to the images ``point``, ``(M, *shape)``.

        It is the one of least squares in the linear bounds of the cell, moved into it.
        """
        planes = self.planes(x, cells)
        low, high = _ends(cells)
        middle, reach = (low + high) / 2, (high - low) / 2
        missing = (point - (planes.floor + planes.ceiling) / 2).flatten(1)
        slope = planes.slope.flatten(2) * reach.unsqueeze(2)
        squares = slope @ slope.transpose(1, 2)
        # Directions in which nothing happens, or nothing may, stay in the middle.
        ridge = 1e-9 * squares.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(squares.dtype).tiny
        squares = squares + torch.diag_embed(ridge.unsqueeze(1).expand(-1, 4))
        share = torch.linalg.solve(squares, (slope @ missing.unsqueeze(2)).squeeze(2))
        z = (middle + reach * share).clamp(low, high)
        return self.project(z.to(_precision(x)), x.expand(len(cells), *x.shape))

    def split(self, cells: Tensor) -> Tensor:
        """Each cell cut in two where pixels move most; none, ``(0, 9)``, where all cells are single choices.

        Moves are cut at whole pixels as long as there are such between the ends: there interpolation has its kinks.
        """
        low, high = _ends(cells)
        if bool((low == high).all()):
            return cells[:0]
        widest = functional.one_hot(_effects(cells).argmax(1), 4).bool()
        cut = (low + high) / 2
        pixel = cut.round()
        cut[:, 1:3] = torch.where((low < pixel) & (pixel < high), pixel, cut)[:, 1:3]
        far = cells[:, 8:]
        parts = [
            torch.cat([low, torch.where(widest, cut, high), far], dim=1),
            torch.cat([torch.where(widest, cut, low), high, far], dim=1),
        ]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` ones: all of every limit."""
        return x.new_ones(len(x))

    def at(self, index: Tensor) -> Self:
        """The threat against the examples ``index``."""
        return type(self)(
            _looked_up("rotation", self.rotation, index),
            _looked_up("translation", self.translation, index),
            _looked_up("scale", self.scale, index),
            self.padding,
            self.bounds,
            self.whole,
        )

    def near(self, x: Tensor) -> Self:
        """The threat itself: nothing of it is worth keeping for some inputs."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Limits, padding and box in plain numbers and lists, None for a bound that is not there."""
        limits = {name: _plain(getattr(self, name)) for name in _MOST}
        box = [_plain(self.bounds.lower), _plain(self.bounds.upper)]
        return {"set": "spatial", **limits, "padding": self.padding, "whole": self.whole, "box": box}

    def _each(self, limit: Budget, x: Tensor) -> Tensor:
        each = torch.as_tensor(limit, dtype=_precision(x), device=x.device)
        if each.dim() and len(each) not in (1, len(x)):
            raise DataError(f"{len(each)} limits for {len(x)} examples: give one number, or one for each example")
        return each.expand(len(x))


MOVES = {"rotate": ("rotation", "deg"), "shift": ("translation", "px"), "scale": ("scale", "")}
_MOST = {"rotation": 180.0, "translation": math.inf, "scale": 1.0}
_TOO_MUCH = {
    "rotation": "180 degrees to either side are all there are",
    "translation": "a move has to end somewhere",
    "scale": "an image that shrinks by its whole size is gone, so it must be below 1",
}


def parse_spatial(words: Sequence[str], box: BoxArgument = (0.0, 1.0)) -> Spatial:
    """Read the parts of a threat such as ``rotate:30deg,shift:3px,scale:0.1,whole,edge``, in any order.

    Raises
    ------
    SettingError
        At the first part that is none, or says again what another did.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, colon, amount = (part.strip() for part in word.lower().partition(":"))
        name, unit = MOVES.get(key, (key, ""))
        if key in MOVES and colon and amount.endswith(unit):
            value: Any = amount.removesuffix(unit).strip()
        elif word.strip().lower() in get_args(Padding):
            name, value = "padding", key
        elif word.strip().lower() == "whole":
            value = True
        else:
            raise SettingError(f"threat: {word!r} is no part of a move of images: write {_FORM}")
        if name in settings:
            raise SettingError(f"threat: {word!r} says again what another part does; leave one out")
        settings[name] = value
    return Spatial(**settings, box=box)


_FORM = "rotate:30deg, shift:3px, scale:0.1, and if need be whole (moves by whole pixels) or edge (padding)"


def _limit(name: str, limit: Limit) -> Budget:
    found = parse_budget(limit, name)
    values = torch.as_tensor(found)
    allowed = values <= _MOST[name] if name == "rotation" else values < _MOST[name]
    if not bool(allowed.all()):
        raise SettingError(f"{name}: {_TOO_MUCH[name]}, got {float(values[~allowed][0]):g}")
    return found


def _looked_up(name: str, limit: Budget, index: Tensor) -> Budget:
    if isinstance(limit, float):
        return limit
    if len(index) and int(index.max()) >= len(limit):
        raise DataError(f"example {int(index.max())} has no limit: {name} holds only {len(limit)}")
    return limit.to(index.device)[index]


def _is_zero(limit: Budget) -> bool:
    return not bool(torch.as_tensor(limit).any())


def _shown(limit: Budget) -> str:
    if isinstance(limit, float):
        return written(limit)
    return f"{limit.min():g}..{limit.max():g}" if len(limit) else "no limits"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if math.isfinite(value) else None


def _ends(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest choice of each cell."""
    return cells[:, :4], cells[:, 4:8]


def _effects(cells: Tensor) -> Tensor:
    """``(M, 4)`` by how many pixels a pixel moves over each cell, on the average, in each direction."""
    low, high = _ends(cells)
    still, far = torch.ones_like(cells[:, 8]), cells[:, 8]
    return (high - low) * torch.stack([torch.deg2rad(far), still, still, far], dim=1)


def _precision(x: Tensor) -> torch.dtype:
    """That of choices: half precision would tell angles apart by an eighth of a degree."""
    return torch.promote_types(x.dtype, torch.float32)


def _images(x: Tensor) -> Tensor:
    """Images with a dimension of channels."""
    if x.dim() not in (3, 4):
        raise DataError(f"inputs of shape {tuple(x.shape[1:])} are no images: rotations and shifts need (N, C, H, W) "
                        "or (N, H, W)")  # fmt: skip
    return x if x.dim() == 4 else x.unsqueeze(1)
