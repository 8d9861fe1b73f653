"""What a pixel may be over a range of turns, moves and sizes: bounds of every one of them, never samples alone.

The place where a pixel's value comes from runs through a small rectangle. Over it the interpolated image is bilinear
between the lines of pixels, and so is its difference from any linear function of the place: the extremes of either are
among the corners of the parts into which those lines cut the rectangle, and so exact. The linear function becomes one
of the angle, the moves and the growth by the derivative of the place, and Taylor's theorem bounds what is left. Linear
bounds of rotations in the angle are those of Balunovic et al., "Certifying geometric robustness of neural networks",
NeurIPS 2019, who find them by sampling and a Lipschitz constant instead.

All of it holds of what :func:`holdfast.threats.warp.warp` computes in float64, whose rounding is allowed for.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.threats.planes import Planes
from holdfast.threats.warp import Padding, centred, turn

__all__ = ["sweep"]

# As many numbers at a time as a processor keeps at hand.
_PIECE = 1 << 20
# Far more than the roundings on the way to a place and to a value: some twenty of each.
_ROUNDINGS = 64 * torch.finfo(torch.float64).eps


def sweep(x: Tensor, low: Tensor, high: Tensor, padding: Padding) -> Planes:
    """Bounds of one image, ``(C, H, W)``, over all choices between ``low`` and ``high``, ``(M, 4)`` in float64."""
    places = _places(low, high, *x.shape[1:])
    lines = 1 + max(int((ends.high.floor() - ends.low.floor()).max()) for ends in (places.across, places.along))
    piece = max(_PIECE // (x.numel() * (lines + 1) ** 2), 1)
    image = functional.pad(x.double().unsqueeze(0), (1, 1, 1, 1), "constant" if padding == "zeros" else "replicate")[0]
    parts = [_bounds(image, places.part(slice(start, start + piece))) for start in range(0, len(low), piece)]
    lower, upper, *planes = (torch.cat(field) for field in zip(*parts, strict=True))
    return Planes(lower, upper, places.reach, *planes)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where values come from along one axis, in pixels: over the cell, at its middle, and by the derivative there."""

    low: Tensor  # (M, H, W)
    high: Tensor
    middle: Tensor
    slope: Tensor  # (M, 4, H, W)

    def part(self, rows: slice) -> "_Axis":
        return _Axis(self.low[rows], self.high[rows], self.middle[rows], self.slope[rows])


@dataclass(frozen=True, eq=False)
class _Places:
    """Both axes, by how much the derivative may err, and how far choices go from the middle."""

    across: _Axis
    along: _Axis
    error: Tensor  # (M, H, W)
    reach: Tensor  # (M, 4)

    def part(self, rows: slice) -> "_Places":
        return _Places(self.across.part(rows), self.along.part(rows), self.error[rows], self.reach[rows])


def _places(low: Tensor, high: Tensor, height: int, width: int) -> _Places:
    """Where the values of an image's pixels come from over cells of choices."""

    def cellwise(values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    middle, half = (low + high) / 2, (high - low) / 2
    angle, right, down, growth = (cellwise(part) for part in middle.unbind(1))
    turned, moved_x, moved_y, grown = (cellwise(part) for part in half.unbind(1))
    turned = torch.deg2rad(turned)
    size, least, most = 1 + growth, 1 + cellwise(low[:, 3]), 1 + cellwise(high[:, 3])
    x, y = centred(width, low.device) - right, centred(height, low.device).reshape(1, -1, 1) - down
    radius = torch.hypot(x, y)

    (sin, cos), first, last = (turn(degrees) for degrees in (angle, cellwise(low[:, 0]), cellwise(high[:, 0])))
    across, across_first, across_last = (c * x - s * y for s, c in ((sin, cos), first, last))
    along, along_first, along_last = (s * x + c * y for s, c in ((sin, cos), first, last))
    # On a circle the derivative of one coordinate is, up to its sign, the other one, which tells of extremes between.
    far = turned >= 1.5
    lowest_x = torch.where((along_first > 0) & (along_last < 0) | far, -radius, across_first.minimum(across_last))
    highest_x = torch.where((along_first < 0) & (along_last > 0) | far, radius, across_first.maximum(across_last))
    lowest_y = torch.where((across_first < 0) & (across_last > 0) | far, -radius, along_first.minimum(along_last))
    highest_y = torch.where((across_first > 0) & (across_last < 0) | far, radius, along_first.maximum(along_last))
    most_sin, most_cos = (sin.abs() + turned).clamp_max(1), (cos.abs() + turned).clamp_max(1)
    shift_x = most_cos * moved_x + most_sin * moved_y
    shift_y = most_sin * moved_x + most_cos * moved_y

    rounding = _ROUNDINGS * ((radius + moved_x + moved_y) / least + height + width)
    moved = torch.hypot(moved_x, moved_y)
    # Half the second derivative of the place at its largest, along the way from the middle to any choice.
    error = ((radius + moved) * (turned / 2 + grown / least) + moved) * turned / least
    error = error + (moved + (radius + moved) * grown / least) * grown / least**2 + rounding

    def axis(lowest: Tensor, highest: Tensor, shift: Tensor, here: Tensor, slopes: list[Tensor], count: int) -> _Axis:
        lowest, highest = lowest - shift, highest + shift
        return _Axis(
            (lowest / least).minimum(lowest / most) + (count - 1) / 2 - rounding,
            (highest / least).maximum(highest / most) + (count - 1) / 2 + rounding,
            here / size + (count - 1) / 2,
            torch.stack([(slope / size).expand_as(here) for slope in slopes], dim=1),
        )

    degree = math.pi / 180
    return _Places(
        axis(lowest_x, highest_x, shift_x, across, [-degree * along, -cos, sin, -across / size], width),
        axis(lowest_y, highest_y, shift_y, along, [degree * across, -sin, -cos, -along / size], height),
        error,
        half,
    )


def _bounds(image: Tensor, places: _Places) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of a :class:`Planes`, of a framed image, ``(C, H + 2, W + 2)``."""
    channels, tall, wide = image.shape
    flat = image.flatten(1)
    across, along = places.across, places.along
    left, top = across.low.floor(), along.low.floor()
    columns = [(left + step).clamp(-1, wide - 2) + 1 for step in range(_lines(across, left) + 2)]
    rows = [((top + step).clamp(-1, tall - 2) + 1) * wide for step in range(_lines(along, top) + 2)]
    shape = (channels, *left.shape)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, (row + column).long().flatten()).reshape(shape)

    seen = [[pixels(row, column) for column in columns] for row in rows]
    by_row = [_at_ends_and_lines(row, across, left) for row in seen]
    # The image at the corners of all parts of the rectangle: a list for each place across, from low to high along.
    corners = [_at_ends_and_lines(list(column), along, top) for column in zip(*by_row, strict=True)]
    slope_x = _secant(corners[0][0] + corners[0][-1], corners[-1][0] + corners[-1][-1], across)
    slope_y = _secant(corners[0][0] + corners[-1][0], corners[0][-1] + corners[-1][-1], along)

    flat_corners = [value for column in corners for value in column]
    rest = [
        value - slope_x * place_x - slope_y * place_y
        for place_x, column in zip(_ends_and_lines(across, left, len(columns)), corners, strict=True)
        for place_y, value in zip(_ends_and_lines(along, top, len(rows)), column, strict=True)
    ]
    rounding = _ROUNDINGS * _most([value.abs() for row in seen for value in row])
    error = (slope_x.abs() + slope_y.abs()) * places.error + rounding
    floor, ceiling = _least(rest) - error, _most(rest) + error
    slope = slope_x.unsqueeze(2) * across.slope + slope_y.unsqueeze(2) * along.slope
    rise = (slope.abs() * places.reach.reshape(1, -1, 4, 1, 1)).sum(2)
    lower = (_least(flat_corners) - rounding).maximum(floor - rise - rounding)
    upper = (_most(flat_corners) + rounding).minimum(ceiling + rise + rounding)
    lower, upper, floor, ceiling = (value.transpose(0, 1) for value in (lower, upper, floor, ceiling))
    return lower, upper, slope.permute(1, 2, 0, 3, 4), floor, ceiling


def _lines(axis: _Axis, first: Tensor) -> int:
    """How many lines of pixels lie in the widest range."""
    return int((axis.high.floor() - first).max())


def _at_ends_and_lines(pixels: list[Tensor], axis: _Axis, first: Tensor) -> list[Tensor]:
    """Values at the low end of a range, at the lines of pixels in it, and at its high end.

    ``pixels`` are the values at ``first``, the last line up to the low end, and at the lines from there on. Lines that
    lie beyond the high end have its value.
    """
    steps = [after - before for before, after in pairwise(pixels)]
    low, end = pixels[0] + (axis.low - first) * steps[0], axis.high - first
    high = pixels[0]
    for line, step in enumerate(steps):
        high = high + (end - line).clamp(0, 1) * step
    inner = [torch.where(line < end, value, high) for line, value in enumerate(pixels[1:-1], start=1)]
    return [low, *inner, high]


def _ends_and_lines(axis: _Axis, first: Tensor, count: int) -> list[Tensor]:
    """The places of those values from the middle."""
    inner = [(first + line).minimum(axis.high) for line in range(1, count - 1)]
    return [place - axis.middle for place in (axis.low, *inner, axis.high)]


def _secant(low: Tensor, high: Tensor, axis: _Axis) -> Tensor:
    """The slope between the ends of a range, given twice the values there."""
    return (high - low) / (2 * (axis.high - axis.low))


def _least(values: list[Tensor]) -> Tensor:
    least = values[0]
    for value in values[1:]:
        least = least.minimum(value)
    return least


def _most(values: list[Tensor]) -> Tensor:
    most = values[0]
    for value in values[1:]:
        most = most.maximum(value)
    return most
