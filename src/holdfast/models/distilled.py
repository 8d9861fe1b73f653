"""A surrogate of a model, trained on its answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.borrow import borrowed

__all__ = ["Distilled", "distilled"]

_WIDTH, _HIDDEN, _BATCH, _RATE = 16, 128, 64, 2e-3


@dataclass(frozen=True)
class Distilled:
    """A surrogate, and what it cost.

    Parameters
    ----------
    module : nn.Module
        Maps ``(N, ...)`` to ``(N, K)`` logits.
    queries : int
        Rows that the model was asked about.
    agreement : float
        Of ``x`` itself, the share on which both have the same class.
    """

    module: nn.Module
    queries: int
    agreement: float


def distilled(
    model: nn.Module, x: Tensor, *, radius: float, queries: int = 2000, passes: int = 12, seed: int = 0
) -> Distilled:
    """Train a small network on a model's answers to some inputs, to copies of them under noise, and to its own doubts.

    Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning",
    ASIACCS 2017, arXiv:1602.02697, section 4: half of the queries are spent on inputs moved by ``radius`` along the
    sign of the surrogate's own gradient, where it learns the most. Answers are learned as probabilities, at a
    temperature at which typical margins are 4; so are one-hot answers.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` to ``(N, K)``. It is asked, never differentiated, and given back as it was.
    x : Tensor
        ``(N, ...)`` inputs; of three dimensions a row is an image ``(C, H, W)``.
    radius : float
        How far copies lie from their input in each coordinate.
    queries : int
        Rows that the model may be asked about, ``len(x)`` at least.
    passes : int
        Passes over all that was asked, half of them before the surrogate asks for itself.
    seed : int
        Of weights, noise and order. The result depends on nothing else.

    Raises
    ------
    SettingError
        When there are fewer queries than inputs, or no passes.
    """
    if queries < len(x) or not len(x) or passes < 1:
        raise SettingError(
            f"distilled: {len(x)} inputs need at least so many queries and a pass, got {queries}, {passes}"
        )
    x = x.detach().float()
    with borrowed(model, seed), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        first = _ask(model, x)
        student = _student(x, first.shape[1]).to(x.device)
        half = max(len(x), queries // 2)
        inputs, answers = x, first
        for part, draw in ((half - len(x), 0), (queries - half, 1)):
            rows = torch.arange(part, device=x.device)
            moved = x[rows % len(x)]
            if draw == 0:
                noise = Draws(seed, rows).uniform(x[0].numel()).to(x).view(moved.shape) if part else moved
                moved = moved + radius * (2 * noise - 1)
            else:
                moved = moved + radius * _doubts(student, moved)
            if part:
                inputs, answers = torch.cat([inputs, moved]), torch.cat([answers, _ask(model, moved)])
            _train(student, inputs, answers, -(-passes // 2))
    student.eval().requires_grad_(False)
    with torch.no_grad():
        agreement = float((student(x).argmax(1) == first.argmax(1)).double().mean())
    return Distilled(student, len(inputs), agreement)


def _ask(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part.clone()).detach().float().clone() for part in x.split(_BATCH)])


def _student(x: Tensor, classes: int) -> nn.Module:
    mean, scale = float(x.mean()), float(x.std()) if x.numel() > 1 else 1.0
    if x.dim() != 4 or min(x.shape[2:]) < 4:
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(x[0].numel(), _HIDDEN), nn.ReLU()]
        layers += [nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes)]
    else:
        layers = [nn.Conv2d(x.shape[1], _WIDTH, 3, 2, 1), nn.ReLU(), nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, 2, 1), nn.ReLU()]
        size = 2 * _WIDTH * (-(-x.shape[2] // 4)) * (-(-x.shape[3] // 4))
        layers += [nn.Flatten(), nn.Linear(size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes)]
    return nn.Sequential(_Standard(mean, scale or 1.0), *layers)


class _Standard(nn.Module):
    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self._mean, self._scale = mean, scale

    def forward(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._scale


def _train(student: nn.Module, x: Tensor, answers: Tensor, passes: int) -> None:
    """Adam on the cross-entropy to the answers, as sharp as the model's typical margin is wide."""
    top = answers.nan_to_num(0.0).topk(2, dim=1).values
    width = float((top[:, 0] - top[:, 1]).median())
    soft = (answers.nan_to_num(0.0) * (4.0 / width if width > 0 else 1.0)).softmax(1)
    optimizer = torch.optim.Adam(student.parameters(), _RATE)
    for _ in range(passes):
        for rows in torch.randperm(len(x)).to(x.device).split(_BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(student(x[rows]), soft[rows]).backward()
            optimizer.step()


def _doubts(student: nn.Module, x: Tensor) -> Tensor:
    """The direction in which a surrogate changes its mind the soonest."""
    x = x.clone().requires_grad_(True)
    logits = student(x)
    (grad,) = torch.autograd.grad(functional.cross_entropy(logits, logits.argmax(1), reduction="sum"), x)
    return grad.sign()
