"""Interval bounds written out neuron by neuron, and slopes of losses by differences."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from helpers.zoo import seeded


def two_hidden(features: int = 6, classes: int = 4) -> nn.Sequential:
    """Dense layers with ReLU between them in float64, which intervals leave undecided."""
    return seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, 8),
            nn.ReLU(),
            nn.Linear(8, 5),
            nn.ReLU(),
            nn.Linear(5, classes),
        )
    ).double()


def hidden_box(net: nn.Sequential, low: list[float], high: list[float]) -> list[tuple[list[float], list[float]]]:
    """What the inputs of all layers but the first may be, before their ReLU, of one example."""
    found = []
    for layer in [layer for layer in net if isinstance(layer, nn.Linear)][:-1]:
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        ends = [
            [b + sum(w * (up if (w > 0) == upwards else down) for w, down, up in zip(row, low, high, strict=True))
             for row, b in zip(weight, bias, strict=True)]
            for upwards in (False, True)
        ]  # fmt: skip
        found.append((ends[0], ends[1]))
        low, high = ([max(0.0, value) for value in end] for end in ends)
    return found


def worst_by_hand(net: nn.Sequential, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    """``(N, K)`` the largest that intervals allow each logit to be above the label's."""
    last = [layer for layer in net if isinstance(layer, nn.Linear)][-1]
    weight, bias = last.weight.detach().numpy(), last.bias.detach().numpy()
    rows = []
    for low, high, label in zip(lower.flatten(1).tolist(), upper.flatten(1).tolist(), y.tolist(), strict=True):
        below, above = ([max(0.0, value) for value in end] for end in hidden_box(net, low, high)[-1])
        difference = weight - weight[label]
        rise = np.maximum(difference, 0) @ above + np.minimum(difference, 0) @ below
        rows.append(rise + bias - bias[label])
    return torch.tensor(np.array(rows))


def cross_entropy_by_hand(logits: Tensor, y: Tensor) -> Tensor:
    return logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]


def check_slope(net: nn.Module, loss: Callable[[], Tensor]) -> None:
    """The gradient along a random direction against a central difference."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    grads = torch.autograd.grad(loss(), parameters)
    ends = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
        ends.append(float(loss().detach()))
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= step * direction
    slope = sum(float((grad * direction).sum()) for grad, direction in zip(grads, directions, strict=True))
    assert abs((ends[0] - ends[1]) / 2e-6 - slope) <= 1e-6 * (1 + abs(slope))
