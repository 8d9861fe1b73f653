"""Small piecewise-linear networks in float64, and the nearest adversarial input by every activation pattern."""

from itertools import pairwise, product

import numpy as np
import scipy
import torch
from torch import Tensor, nn


def tiny(seed: int, widths: tuple[int, ...] = (2, 5, 4, 3)) -> nn.Sequential:
    """Two inputs by default, hidden ReLU layers, weights that make the boundary bend, and every class somewhere."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = _lively(nn.Sequential(*layers[:-1]))
    model[-1].bias.data -= model(torch.randn(1000, widths[0], dtype=torch.float64)).mean(0)
    return model


def networks() -> dict[str, tuple[nn.Sequential, tuple[int, ...]]]:
    """Every kind of layer, with the shape of an input."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    flat = nn.BatchNorm1d(5)
    flat.running_mean.normal_()
    return {
        "mlp": (tiny(1), (2,)),
        "leaky": (
            _lively(
                nn.Sequential(
                    nn.Linear(3, 5), flat, nn.LeakyReLU(0.2), nn.Linear(5, 4), nn.LeakyReLU(-0.3), nn.Linear(4, 3)
                )
            ),
            (3,),
        ),
        "convolution": (
            _lively(
                nn.Sequential(
                    nn.Sequential(nn.Conv2d(1, 2, 2, padding=1), norm, nn.ReLU()),
                    nn.AvgPool2d(2),
                    nn.Flatten(),
                    nn.Linear(8, 3),
                )
            ),
            (1, 4, 4),
        ),
        "max pool": (
            _lively(
                nn.Sequential(
                    nn.Conv2d(1, 2, 2),
                    nn.MaxPool2d(2, stride=1, padding=1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(32, 3),
                )
            ),
            (1, 4, 4),
        ),
        "max pool 1d": (
            _lively(nn.Sequential(nn.Conv1d(1, 2, 2), nn.MaxPool1d(3, 2, 1, 2), nn.Flatten(), nn.Linear(4, 2))),
            (1, 6),
        ),
        "linear": (_lively(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), (2, 2)),
    }


def _lively(model: nn.Sequential) -> nn.Sequential:
    for parameter in model.parameters():
        parameter.data *= 2
    return model.double().eval().requires_grad_(False)


def of_all_patterns(model: nn.Sequential, x: Tensor, y: int, norm: str, box: tuple[float, float]) -> dict[str, float]:
    """The distance to another class by a linear program for every pattern of a ReLU network, by name.

    ``"exact"`` is the least of all, ``"inside"`` that of the pattern of ``x``.
    """
    layers = [(m.weight.numpy(), m.bias.numpy()) for m in model if isinstance(m, nn.Linear)]
    own = np.concatenate([np.asarray(signs) for signs in _signs(layers, x.numpy())])
    distances = {"exact": np.inf, "inside": np.inf}
    for pattern in product([False, True], repeat=len(own)):
        found = _in_pattern(layers, np.array(pattern), x.numpy(), y, norm, box)
        distances["exact"] = min(distances["exact"], found)
        if (np.array(pattern) == own).all():
            distances["inside"] = found
    return distances


def _signs(layers, x):
    for weight, bias in layers[:-1]:
        x = weight @ x + bias
        yield x > 0
        x = np.maximum(x, 0)


def _in_pattern(layers, pattern, x, y, norm, box):
    d = len(x)
    parts = 1 if norm == "linf" else d
    spread = -np.ones((d, 1)) if norm == "linf" else -np.eye(d)
    frame, limit = np.block([[np.eye(d), spread], [-np.eye(d), spread]]), np.concatenate([x, -x])
    matrix, shift, rows, limits = np.eye(d), np.zeros(d), [], []
    for weight, bias in layers[:-1]:
        matrix, shift = weight @ matrix, weight @ shift + bias
        on, pattern = pattern[: len(shift)], pattern[len(shift) :]
        sign = np.where(on, 1, -1)
        rows.append(-sign[:, None] * matrix)
        limits.append(sign * shift)
        matrix, shift = on[:, None] * matrix, on * shift
    matrix, shift = layers[-1][0] @ matrix, layers[-1][0] @ shift + layers[-1][1]
    best = np.inf
    for k in set(range(len(shift))) - {y}:
        piece = np.concatenate([*rows, matrix[y : y + 1] - matrix[k : k + 1]])
        result = scipy.optimize.linprog(
            np.concatenate([np.zeros(d), np.ones(parts)]),
            np.concatenate([frame, np.pad(piece, ((0, 0), (0, parts)))]),
            np.concatenate([limit, *limits, shift[k : k + 1] - shift[y : y + 1]]),
            bounds=[box] * d + [(0, None)] * parts,
            options={"primal_feasibility_tolerance": 1e-10},
        )
        best = min(best, result.fun) if result.status == 0 else best
    return best
