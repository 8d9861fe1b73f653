"""Images turned, moved and resized: where each pixel comes from, and the bilinear interpolation there.

Everything is worked out in float64, in pixels from the image's centre, whatever the precision of the image; what comes
out is rounded to that precision once. Whole-pixel moves and quarter turns are exact, and no row depends on another.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Padding", "centred", "turn", "warp"]

Padding = Literal["zeros", "edge"]


def warp(x: Tensor, z: Tensor, padding: Padding) -> Tensor:
    """Images turned by an angle about their centre, resized there, and then moved.

    The pixel at ``p``, from the centre, takes the value of the image at ``R(angle) (p - (dx, dy)) / (1 + growth)``,
    interpolated as by ``affine_grid`` and ``grid_sample`` without aligned corners (Engstrom et al., "Exploring the
    landscape of spatial robustness", 2017, section 3).

    Parameters
    ----------
    x : Tensor
        ``(N, C, H, W)``.
    z : Tensor
        ``(N, 4)`` angle in degrees, counter-clockwise as an image is seen; moves to the right and down in pixels; the
        relative growth. Gradients with respect to it are those of the interpolation.
    padding : str
        What lies around an image: ``"zeros"``, or its ``"edge"``.

    Returns
    -------
    Tensor
        Like ``x``.
    """
    height, width = x.shape[2:]
    angle, right, down, growth = (part.unsqueeze(1) for part in z.double().unbind(1))
    sin, cos = turn(angle)
    from_middle_x = (centred(width, z.device) - right) / (1 + growth)
    from_middle_y = (centred(height, z.device) - down) / (1 + growth)
    # Whole numbers are exact on the way to the units of `grid_sample` and back where sides are powers of two.
    tall, wide = _power_of_two(height + 2), _power_of_two(width + 2)
    across = (cos * from_middle_x).unsqueeze(1) - (sin * from_middle_y).unsqueeze(2) + (width + 1) / 2
    along = (sin * from_middle_x).unsqueeze(1) + (cos * from_middle_y).unsqueeze(2) + (height + 1) / 2
    places = torch.stack([(2 * across + 1) / wide - 1, (2 * along + 1) / tall - 1], dim=3)
    # One pixel of what lies around on each side, and no place is outside: its nearest pixel has the same value.
    frame = (1, wide - width - 1, 1, tall - height - 1)
    image = functional.pad(x.double(), frame, "constant" if padding == "zeros" else "replicate")
    return functional.grid_sample(image, places, padding_mode="border", align_corners=False).to(x.dtype)


def turn(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of angles in degrees, exact at quarter turns."""
    quarters = (degrees.detach() / 90).round()
    rest = torch.deg2rad(degrees - 90 * quarters)
    sin, cos = rest.sin(), rest.cos()
    odd, beyond = quarters % 2 == 1, quarters % 4 >= 2
    sin, cos = torch.where(odd, cos, sin), torch.where(odd, -sin, cos)
    return torch.where(beyond, -sin, sin), torch.where(beyond, -cos, cos)


def centred(count: int, device: torch.device) -> Tensor:
    """``(count,)`` the places of pixels along a side, from its middle."""
    return torch.arange(count, dtype=torch.float64, device=device) - (count - 1) / 2


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
