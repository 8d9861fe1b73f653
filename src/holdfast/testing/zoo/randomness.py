"""Defences that draw: of noise, places, sizes, units or networks.

Each draws from a generator of its own, seeded when it is made, but for ``Dropped``, which leaves it to torch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.testing.zoo.inputs import images

__all__ = [
    "Chosen",
    "Dithered",
    "Dropped",
    "HashedNoise",
    "MatrixEstimated",
    "Mixed",
    "NoisyInputs",
    "NoisyOutputs",
    "Pruned",
    "ResizedAndPadded",
    "perturbed",
]


class _Drawing(nn.Module):
    """A module with a generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, x: Tensor, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(x)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


class NoisyInputs(_Drawing):
    """Gaussian noise on the input (Liu et al., ECCV 2018: random self-ensemble)."""

    def __init__(self, sigma: float = 0.1, seed: int = 0) -> None:
        super().__init__(seed)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn(x.shape, generator=self.generator).to(x)


class NoisyOutputs(_Drawing):
    """Gaussian noise on the logits (Byun, Go and Kim, WACV 2022, against black boxes)."""

    def __init__(self, sigma: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.sigma = sigma

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.sigma * torch.randn(logits.shape, generator=self.generator).to(logits)


class HashedNoise(nn.Module):
    """Noise that hangs on the last digits of the input alone: the same input always gets the same."""

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().flatten(1)
        place = torch.arange(flat.shape[1], device=x.device, dtype=x.dtype)
        key = (1e4 * flat).sin().sum(1, keepdim=True)
        # A sine of large numbers is spread like the first coordinate of a random point on the circle.
        noise = (1e3 * key + 12.9898 * place.square()).sin() * 2**0.5
        return x + self.sigma * noise.view_as(x)


class Dithered(_Drawing):
    """Inputs rounded to a few levels after noise of the size of a step."""

    def __init__(self, levels: int = 5, seed: int = 0) -> None:
        super().__init__(seed)
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.steps + self.uniform(x, *x.shape)).floor() / self.steps


class ResizedAndPadded(_Drawing):
    """Images shrunk or enlarged by up to an eighth and put at a random place (Xie et al., ICLR 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = images("ResizedAndPadded", x).shape[2:]
        size = self.whole(max(1, round(0.875 * height)), height), self.whole(max(1, round(0.875 * width)), width)
        resized = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        top, left = self.whole(0, height - size[0]), self.whole(0, width - size[1])
        return functional.pad(resized, (left, width - size[1] - left, top, height - size[0] - top))


class Mixed(_Drawing):
    """The mean answer to mixtures of the input with clean examples (Pang, Xu and Zhu, ICLR 2020: mixup inference)."""

    examples: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, share: float = 0.75, count: int = 5, seed: int = 0) -> None:
        super().__init__(seed)
        self.net, self.share, self.count = net, share, count
        self.register_buffer("examples", examples)

    def forward(self, x: Tensor) -> Tensor:
        answers = []
        for _ in range(self.count):
            other = torch.randint(len(self.examples), (len(x),), generator=self.generator).to(x.device)
            answers.append(self.net(self.share * x + (1 - self.share) * self.examples[other]).softmax(1))
        mean: Tensor = torch.stack(answers).mean(0)
        return (mean + 1e-12).log()


class MatrixEstimated(_Drawing):
    """Pixels left out at random and put in again by a matrix of low rank (Yang et al., ICML 2019: ME-Net).

    Soft-thresholding of the singular values of the masked image, outside the graph.
    """

    def __init__(self, kept: float = 0.7, rank: int = 8, seed: int = 0) -> None:
        super().__init__(seed)
        self.kept, self.rank = kept, rank

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.uniform(x, *images("MatrixEstimated", x).shape) < self.kept).to(x.dtype)
        estimated = x.detach()
        filled = estimated * mask / self.kept
        low = filled
        for _ in range(3):
            u, s, v = torch.linalg.svd(filled, full_matrices=False)
            low = (u[..., : self.rank] * s[..., None, : self.rank]) @ v[..., : self.rank, :]
            filled = estimated * mask + low * (1 - mask)
        return low.clamp(0, 1) + 0 * x


class Chosen(_Drawing):
    """One of several networks, another at every call."""

    def __init__(self, nets: Sequence[nn.Module], seed: int = 0) -> None:
        super().__init__(seed)
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.nets[self.whole(0, len(self.nets) - 1)](x)
        return logits


class Dropped(nn.Module):
    """Dropout that is never switched off, drawn from torch's global generator (Feinman et al. 2017)."""

    def __init__(self, probability: float = 0.3) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.probability, training=True)


class Pruned(_Drawing):
    """Stochastic activation pruning (Dhillon et al., ICLR 2018).

    Units are drawn with replacement, with chances like their sizes, and those never drawn are left out; the others are
    divided by their chance to be drawn at all.
    """

    def __init__(self, draws: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        sizes = flat.detach().abs()
        chance = sizes / sizes.sum(1, keepdim=True).clamp_min(1e-12)
        kept = 1 - (1 - chance) ** round(self.draws * flat.shape[1])
        mask = (self.uniform(x, *flat.shape) < kept).to(x.dtype)
        return (flat * mask / kept.clamp_min(1e-6)).view_as(x)


@torch.no_grad()
def perturbed(net: nn.Module, share: float, seed: int) -> nn.Module:
    """The network itself, its weights moved by Gaussian noise of a share of each tensor's root mean square."""
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(share * weight.square().mean().sqrt() * noise)
    return net
