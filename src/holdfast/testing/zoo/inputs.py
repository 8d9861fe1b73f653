"""Defences that change the input on its way to the network: rounded, encoded, compressed, denoised or rippled.

Each is a module to put before a network, as in ``nn.Sequential(Rounded(), net)``, for inputs in ``[0, 1]``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import SettingError

__all__ = [
    "Blurred",
    "Bytes",
    "Denoised",
    "Jpeg",
    "MedianFiltered",
    "OneHotEncoded",
    "Quilted",
    "Rippled",
    "Rounded",
    "Sawtooth",
    "SparseFrequencies",
    "Thermometer",
]


class Rounded(nn.Module):
    """Inputs of a few levels: bit depth reduction (Guo et al., ICLR 2018; Xu, Evans and Qi, NDSS 2018)."""

    def __init__(self, levels: int = 8) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.steps).round() / self.steps


class Bytes(nn.Module):
    """The same by way of whole numbers, through which no gradient passes at all, not even one of 0."""

    def __init__(self, levels: int = 8) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.steps).round().to(torch.uint8).to(x.dtype) / self.steps


class Thermometer(nn.Module):
    """Thermometer encoding (Buckman et al., ICLR 2018): a bit for each level that a number exceeds.

    The network gets their mean, the linear map that its first layer would have to learn.
    """

    levels: Tensor

    def __init__(self, levels: int = 10) -> None:
        super().__init__()
        self.register_buffer("levels", (torch.arange(levels) + 0.5) / levels)

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) > self.levels).to(x.dtype).mean(-1)


class OneHotEncoded(nn.Module):
    """One-hot encoding (Buckman et al., ICLR 2018) of the nearest level, of which the network gets the number."""

    levels: Tensor

    def __init__(self, levels: int = 10) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, levels))

    def forward(self, x: Tensor) -> Tensor:
        nearest = (x.unsqueeze(-1) - self.levels).abs().argmin(-1)
        decoded: Tensor = functional.one_hot(nearest, len(self.levels)).to(x.dtype) @ self.levels
        return decoded


# The quantisation of luminance in annex K of the standard, ITU-T T.81.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


class Jpeg(nn.Module):
    """The lossy part of JPEG, each channel as luminance (Das et al., KDD 2018; Guo et al., ICLR 2018).

    Cosine transforms of blocks of 8 x 8 pixels, whose coefficients are rounded to multiples of the standard's table.
    """

    table: Tensor
    basis: Tensor

    def __init__(self, quality: int = 50) -> None:
        super().__init__()
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        table = (torch.tensor(_LUMINANCE) * scale / 100).round().clamp(1, 255)
        self.register_buffer("table", table / 255)
        self.register_buffer("basis", cosines(8))

    def forward(self, x: Tensor) -> Tensor:
        blocks, sides = _blocks(images("Jpeg", x), 8)
        coefficients = self.basis @ (blocks - 0.5) @ self.basis.T
        coefficients = (coefficients / self.table).round() * self.table
        return _unblocked(self.basis.T @ coefficients @ self.basis + 0.5, sides).clamp(0, 1)


class SparseFrequencies(nn.Module):
    """Only the largest coefficients of an image's cosine transform (Bafna, Murtagh and Vyas, NeurIPS 2018)."""

    def __init__(self, share: float = 0.15) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (cosines(side).to(x) for side in images("SparseFrequencies", x).shape[2:])
        coefficients = rows @ x @ columns.T
        sizes = coefficients.flatten(2).abs()
        least = sizes.topk(max(1, round(self.share * sizes.shape[2])), dim=2).values[..., -1:]
        kept = coefficients * (sizes >= least).to(x.dtype).view_as(coefficients)
        return rows.T @ kept @ columns


class MedianFiltered(nn.Module):
    """The median of every pixel's neighbourhood of 3 x 3 (Xu, Evans and Qi, NDSS 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(images("MedianFiltered", x), (1, 1, 1, 1), mode="replicate")
        return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(4).values


class Blurred(nn.Module):
    """A Gaussian blur of 3 x 3 pixels."""

    kernel: Tensor

    def __init__(self, sigma: float = 0.7) -> None:
        super().__init__()
        line = (-(torch.arange(-1.0, 2.0) ** 2) / (2 * sigma**2)).exp()
        self.register_buffer("kernel", torch.outer(line, line) / line.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(images("Blurred", x), (1, 1, 1, 1), mode="replicate")
        return (padded.unfold(2, 3, 1).unfold(3, 3, 1) * self.kernel).sum((4, 5))


class Denoised(nn.Module):
    """Some steps down a smoothed total variation (Guo et al., ICLR 2018; Rudin, Osher and Fatemi 1992)."""

    def __init__(self, weight: float = 0.1, steps: int = 10) -> None:
        super().__init__()
        self.weight, self.steps = weight, steps

    def forward(self, x: Tensor) -> Tensor:
        out = images("Denoised", x)
        for _ in range(self.steps):
            down, right = out.diff(dim=2), out.diff(dim=3)
            down, right = down / (down**2 + 1e-3).sqrt(), right / (right**2 + 1e-3).sqrt()
            slope = functional.pad(down, (0, 0, 1, 0)) - functional.pad(down, (0, 0, 0, 1))
            slope = slope + functional.pad(right, (1, 0)) - functional.pad(right, (0, 1))
            out = out - 0.1 * (out - x + self.weight * slope)
        return out


class Quilted(nn.Module):
    """Image quilting (Guo et al., ICLR 2018): every patch is replaced by the nearest of those of clean examples."""

    patches: Tensor

    def __init__(self, examples: Tensor, side: int = 4, count: int = 1000) -> None:
        super().__init__()
        self.side = side
        patches = _blocks(images("Quilted", examples), side)[0].flatten(0, 3).flatten(1).unique(dim=0)
        self.register_buffer("patches", patches[:: max(1, len(patches) // count)].clone())

    def forward(self, x: Tensor) -> Tensor:
        blocks, sides = _blocks(images("Quilted", x), self.side)
        flat = blocks.flatten(4)
        nearest = (self.patches.square().sum(1) - 2 * flat @ self.patches.T).argmin(-1)
        return _unblocked(self.patches[nearest].view_as(blocks), sides)


class Rippled(nn.Module):
    """Waves too small to see and too steep to climb: the gradient is true, and tells nothing of what lies further."""

    def __init__(self, amplitude: float = 0.01, frequency: float = 2000.0) -> None:
        super().__init__()
        self.amplitude, self.frequency = amplitude, frequency

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amplitude * (self.frequency * x).sin()


class Sawtooth(nn.Module):
    """Stairs that go up by jumps and slope down between them: every true derivative has the wrong sign."""

    def __init__(self, levels: int = 100) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.levels
        # From the end of one step to the start of the next it rises by twice what it falls within one.
        return (2 * scaled.floor() + 1 - scaled) / self.levels


def images(name: str, x: Tensor) -> Tensor:
    """Images as they are.

    Raises
    ------
    SettingError
        When they are none.
    """
    if x.dim() != 4:
        raise SettingError(
            f"{name}: works on images (N, C, H, W), not on inputs of shape {tuple(x.shape)}: leave this one out"
        )
    return x


def cosines(size: int) -> Tensor:
    """``(size, size)`` the orthonormal cosine transform, a row a frequency."""
    order = torch.arange(size, dtype=torch.float64)
    basis = (math.pi * torch.outer(order, 2 * order + 1) / (2 * size)).cos() * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.float()


def _blocks(x: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """``(N, C, rows, columns, side, side)`` and the sides of the images, which are padded to a multiple."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (0, -width % side, 0, -height % side), mode="replicate")
    return padded.unfold(2, side, side).unfold(3, side, side), (height, width)


def _unblocked(blocks: Tensor, sides: tuple[int, int]) -> Tensor:
    whole = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return whole[:, :, : sides[0], : sides[1]]
