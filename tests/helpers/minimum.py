"""The nearest adversarial inputs of linear models, worked out by their definition."""

from itertools import combinations

import torch
from torch import Tensor, nn


def exact_distance(model: nn.Module, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """``min_k (z_y - z_k) / |w_y - w_k|_q`` of a linear model without a box."""
    weight, logits = model[1].weight.detach(), model(x).detach()
    distances = []
    for i in range(len(x)):
        own = int(y[i])
        others = [k for k in range(len(weight)) if k != own]
        distances.append(
            min(float(logits[i, own] - logits[i, k]) / float((weight[own] - weight[k]).norm(p=dual)) for k in others)
        )
    return torch.tensor(distances, dtype=x.dtype)


def fewest_coordinates(model: nn.Module, x: Tensor, y: Tensor) -> list[int]:
    """How many coordinates of inputs in [0, 1] must change to fool a linear model, by trying every subset.

    One more than there are where even all of them do not.
    """
    weight, logits = model[1].weight.detach(), model(x).detach()
    fewest = []
    for i in range(len(x)):
        own = int(y[i])
        for size in range(1, x.shape[1] + 1):
            if any(
                gained(weight[k] - weight[own], x[i], subset) > logits[i, own] - logits[i, k]
                for k in range(len(weight))
                if k != own
                for subset in combinations(range(x.shape[1]), size)
            ):
                break
        else:
            size += 1
        fewest.append(size)
    return fewest


def gained(slope: Tensor, x: Tensor, subset: tuple[int, ...]) -> float:
    return sum(float(slope[j] * ((1 - x[j]) if slope[j] > 0 else -x[j])) for j in subset)
