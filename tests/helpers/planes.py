"""Exact distances to the boundaries of linear models."""

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def linear_distances(model: nn.Module, x: Tensor, y: Tensor, norm: str, box: tuple[float, float] | None) -> Tensor:
    """``(N,)`` how far the nearest point of another class is: in closed form without a box, else by a solver."""
    weight, bias = (p.detach().double().numpy() for p in model[-1].parameters())
    distances = []
    for row, label in zip(x.double().numpy(), y.tolist(), strict=True):
        each = []
        for other in set(range(len(bias))) - {label}:
            w = weight[other] - weight[label]
            gap = -(w @ row + bias[other] - bias[label])
            if box is None:
                each.append(gap / np.linalg.norm(w, DUAL[norm]))
                continue
            move = cp.Variable(len(row))
            inside = [move >= box[0] - row, move <= box[1] - row, w @ move >= gap]
            each.append(cp.Problem(cp.Minimize(cp.norm(move, ORDER[norm])), inside).solve(solver=cp.CLARABEL))
        distances.append(min(each))
    return torch.tensor(distances, dtype=torch.float64)
