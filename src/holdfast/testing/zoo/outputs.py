"""Defences that change the answer: logits scaled, saturated, cut, rounded, or made into something else.

Each is a module to put behind a network, as in ``nn.Sequential(net, Rounding())``. None changes which class is largest,
but where rounding makes two equal.
"""

import torch
from torch import Tensor, nn

__all__ = [
    "Boosted",
    "Coded",
    "Cut",
    "LogProbabilities",
    "OneHot",
    "Probabilities",
    "Ranked",
    "RoundedConfidence",
    "Rounding",
    "Saturated",
    "Scaled",
    "SharpSoftmax",
    "Uneven",
]


class Scaled(nn.Module):
    """Logits times a factor, all that distillation at a high temperature leaves behind (Papernot et al., S&P 2016).

    Carlini and Wagner, S&P 2017: cross-entropy then has no gradient in float32, while the margin has.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


class Boosted(nn.Module):
    """Adds to the largest logit: every margin looks beyond reach, and gradients are as they were."""

    def __init__(self, boost: float = 60.0) -> None:
        super().__init__()
        self.boost = boost

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.boost * largest(logits)


class Uneven(nn.Module):
    """Logits times a factor between 1 and 100 that jumps from input to input, so that margins rank nothing."""

    def forward(self, logits: Tensor) -> Tensor:
        jumps = (1e5 * logits.sum(1, keepdim=True).detach()).sin()
        return logits * 10 ** (1 + jumps)


class Cut(nn.Module):
    """Logits around the mean of the two largest, clamped on both sides."""

    def __init__(self, limit: float = 0.5) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, logits: Tensor) -> Tensor:
        return (logits - _middle(logits)).clamp(-self.limit, self.limit)


class Saturated(nn.Module):
    """Logits around the mean of the two largest, through a steep tanh."""

    def __init__(self, steepness: float = 5.0) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, logits: Tensor) -> Tensor:
        return 10 * (self.steepness * (logits - _middle(logits))).tanh()


class Rounding(nn.Module):
    """Logits rounded to multiples of a step."""

    def __init__(self, step: float = 0.5) -> None:
        super().__init__()
        self.step = step

    def forward(self, logits: Tensor) -> Tensor:
        return (logits / self.step).round() * self.step


class RoundedConfidence(nn.Module):
    """Logarithms of probabilities rounded to some digits, as services give them (Tramèr et al., USENIX 2016)."""

    def __init__(self, digits: int = 2) -> None:
        super().__init__()
        self.digits = digits

    def forward(self, logits: Tensor) -> Tensor:
        return (logits.softmax(1).round(decimals=self.digits) + 1e-3).log()


class Ranked(nn.Module):
    """The rank of every logit: all that is left is their order."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.argsort(1).argsort(1).to(logits.dtype) + 0 * logits


class OneHot(nn.Module):
    """A one for the predicted class and zeros for the others, times a factor."""

    def __init__(self, factor: float = 10.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * largest(logits) + 0 * logits


class Probabilities(nn.Module):
    """The softmax of the logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)


class LogProbabilities(nn.Module):
    """The logarithm of the softmax: as good as the logits themselves."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(1)


class SharpSoftmax(nn.Module):
    """Softmax of magnified logits, on a scale and around a middle that no probabilities have."""

    def __init__(self, sharpness: float = 30.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, logits: Tensor) -> Tensor:
        return 10 * (self.sharpness * logits).softmax(1) - 5


class Coded(nn.Module):
    """Agreement of squashed logits with the code word of each class (Verma and Swami, NeurIPS 2019).

    Tramèr et al., NeurIPS 2020, section 5.10: the squashing hides the gradient, the code adds nothing. Here the bits
    are those of the order in which a class stands against each other, so that the largest logit keeps its place.
    """

    def __init__(self, steepness: float = 3.0) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, logits: Tensor) -> Tensor:
        return (self.steepness * (logits.unsqueeze(2) - logits.unsqueeze(1))).tanh().sum(2)


def largest(logits: Tensor) -> Tensor:
    """``(N, K)`` a one at the largest logit of every row."""
    return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)


def _middle(logits: Tensor) -> Tensor:
    return logits.topk(2, dim=1).values.mean(1, keepdim=True)
