"""Defences whose answer depends on what was asked before, or on what is asked beside."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.testing.zoo.detectors import swapped

__all__ = ["Adapting", "Adjusting", "Cached", "Suspicious", "Tiring"]


class Cached(nn.Module):
    """Answers what is close to an earlier query as it answered that one."""

    def __init__(self, net: nn.Module, distance: float = 0.4, most: int = 4096) -> None:
        super().__init__()
        self.net, self.distance, self.most = net, distance, most
        self.queries: Tensor | None = None
        self.answers: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if self.queries is None or self.answers is None:
            self.queries, self.answers = _kept(x), _kept(logits)
            return logits
        away, nearest = torch.cdist(x.detach().flatten(1), self.queries.flatten(1), p=torch.inf).min(1)
        new = away > self.distance
        answers = torch.where(new.unsqueeze(1), logits, self.answers[nearest] + 0 * logits)
        self.queries = torch.cat([self.queries, _kept(x[new])])[: self.most]
        self.answers = torch.cat([self.answers, _kept(logits[new])])[: self.most]
        return answers


class Suspicious(nn.Module):
    """Suspects what lies close to several earlier queries, and answers with the second class.

    Chen, Carlini and Wagner, SPAI 2020 (stateful detection); Li et al., USENIX Security 2022 (Blacklight).
    A query that was asked before, bit for bit, is none of them.
    """

    def __init__(self, net: nn.Module, distance: float = 0.05, neighbours: int = 3, most: int = 4096) -> None:
        super().__init__()
        self.net, self.distance, self.neighbours, self.most = net, distance, neighbours, most
        self.queries: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        flat = _kept(x).flatten(1)
        seen = flat[:0] if self.queries is None else self.queries
        away = (flat.unsqueeze(1) - seen).abs().mean(2) if len(seen) else flat.new_zeros(len(flat), 0)
        suspect = ((away > 0) & (away < self.distance)).sum(1) >= self.neighbours
        new = (away > 0).all(1)
        self.queries = torch.cat([seen, flat[new]])[-self.most :]
        return swapped(logits, suspect)


class Tiring(nn.Module):
    """Answers the first calls, and from then on as if it knew nothing: a budget of queries kept by the model."""

    def __init__(self, net: nn.Module, calls: int = 20) -> None:
        super().__init__()
        self.net, self.left = net, calls

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.left -= 1
        return logits if self.left >= 0 else logits.detach().round() + 0 * logits


class Adjusting(nn.Module):
    """Batch normalisation of the input that takes its statistics from the batch: training mode at test time."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, examples: Tensor) -> None:
        super().__init__()
        self.net = net
        others = [dim for dim in range(examples.dim()) if dim != 1]
        self.register_buffer("mean", examples.mean(others, keepdim=True))
        self.register_buffer("deviation", examples.std(others, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        normal = functional.batch_norm(x, None, None, training=True)
        logits: Tensor = self.net(normal * self.deviation + self.mean)
        return logits


class Adapting(nn.Module):
    """A shift of the input that follows the queries (Croce et al., ICML 2022: defences adaptive at test time)."""

    reference: Tensor
    current: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, momentum: float = 0.1) -> None:
        super().__init__()
        self.net, self.momentum = net, momentum
        self.register_buffer("reference", examples.mean())
        self.register_buffer("current", examples.mean())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.current = torch.lerp(self.current, x.mean(), self.momentum)
        logits: Tensor = self.net(x - self.current + self.reference)
        return logits


def _kept(x: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return x.detach().clone()
