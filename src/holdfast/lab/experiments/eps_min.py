"""The smallest budget that changes a linear model's answer."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks import DeepFool
from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, INK, PURPLE, canvas, label
from holdfast.lab.claim import near
from holdfast.lab.experiment import Finding
from holdfast.threats import L1, L2, Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"linf": Linf, "l2": L2, "l1": L1}
SOURCE = "|w.x + b| / ||w||_q (Mangasarian 1999)"
ORDERS = {"linf": (np.inf, 1), "l2": (2, 2), "l1": (1, np.inf)}
FORMULAS = {
    "linf": "$|w\\cdot x+b|\\,/\\,\\|w\\|_1$",
    "l2": "$|w\\cdot x+b|\\,/\\,\\|w\\|_2$",
    "l1": "$|w\\cdot x+b|\\,/\\,\\|w\\|_\\infty$",
}
COLOURS = (BLUE, GREEN, PURPLE)
HALVINGS = 60
OVERSHOOT = 1e-6


def run(points: int = 200, dimension: int = 10) -> Finding:
    """Look for the smallest budget by halving intervals, by DeepFool and by trying all subsets, beside the formulas."""
    x = Draws(0, torch.arange(points)).normal(dimension)
    w, b = Draws(1, torch.arange(1)).normal(dimension)[0], 0.3
    value = x @ w + b
    claims, shown = [], {}
    for name, norm in NORMS.items():
        formula = value.abs() / norm(1.0, box=None).dual_norm(w.unsqueeze(0))
        found = _search(norm, x, w, value)
        nearest = _deepfool(norm, x, w, b)
        claims += [
            near(f"{name}: a search over budgets ends at the formula", SOURCE, _apart(found, formula), 0, 1e-9),
            near(
                f"{name}: DeepFool, exact on linear models, finds it",
                SOURCE,
                _apart(nearest, formula),
                0,
                2 * OVERSHOOT,
            ),
        ]
        shown[name] = {"formula": formula.tolist(), "search": found.tolist()}
    inside = x.sigmoid()
    value = inside @ w + b
    formula, found = _fewest(inside, w, value), _fewest_tried(inside, w, value)
    text = "l0 in [0, 1]: as few coordinates as the largest swings need; no subset is smaller"
    claims.append(near(text, "exchange argument", float((found - formula).abs().max()), 0, 0))
    shown["l0"] = {"formula": formula.tolist(), "search": found.tolist()}
    return Finding(tuple(claims), {"points": points, "dimension": dimension, "norms": shown})


def _search(norm: Any, x: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """Halve an interval of budgets, by whether the best perturbation within one crosses the plane."""
    low, high = torch.zeros_like(value), value.abs() / w.abs().min()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        z = norm(middle, box=None).maximize(-value.sign().unsqueeze(1) * w, x)
        crossed = (value + z @ w) * value.sign() <= 0
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    return high


def _deepfool(norm: Any, x: Tensor, w: Tensor, b: float) -> Tensor:
    model = nn.Linear(len(w), 2, dtype=x.dtype, device="meta").to_empty(device="cpu")  # draws nothing
    with torch.no_grad():
        model.weight.copy_(torch.stack([-w, w]) / 2)
        model.bias.copy_(torch.tensor([-b, b]) / 2)
    threat = norm("inf", box=None)
    result = DeepFool(overshoot=OVERSHOOT)(model, x, (x @ w + b > 0).long(), threat=threat)
    found: Tensor = threat.length(result.x_adv - x)
    return found


def _swings(x: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """By how much each coordinate alone can move the value towards 0 inside the box ``[0, 1]``."""
    slope = -value.sign().unsqueeze(1) * w
    return torch.maximum(slope * (1 - x), slope * -x)


def _fewest(x: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """The formula: the largest swings first; one more than there are coordinates where all do not suffice."""
    reached = _swings(x, w, value).sort(1, descending=True).values.cumsum(1)
    return (reached < value.abs().unsqueeze(1)).sum(1) + 1


def _fewest_tried(x: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """The search: every subset of coordinates, each of them at whichever bound is worse."""
    d = len(w)
    swings = _swings(x, w, value)
    fewest = torch.full((len(x),), d + 1)
    for size in range(d, 0, -1):
        subsets = torch.zeros(len(list(combinations(range(d), size))), d, dtype=x.dtype)
        for row, subset in zip(subsets, combinations(range(d), size), strict=True):
            row[list(subset)] = 1
        crossed = ((swings @ subsets.T) >= value.abs().unsqueeze(1)).any(1)
        fewest[crossed] = size
    return fewest


def _apart(found: Tensor, formula: Tensor) -> float:
    return float(((found - formula).abs() / formula).max())


def draw(data: dict[str, Any]) -> "Figure":
    """Balls that grow until they touch the boundary, and found budgets over those of the formulas."""
    figure, (balls, plane) = canvas("The smallest budget that changes a linear model's answer", 4.6, 5.6, height=4.6)
    w, gap = np.array([1.0, 0.6]), 1.4
    line = np.array([-2.0, 2.0])
    balls.plot(line, (gap - w[0] * line) / w[1], color=INK, lw=2)
    balls.annotate("$w\\cdot x+b=0$", (0.62, 1.62), color=INK, fontsize=10)
    balls.plot(0, 0, "o", color=INK, ms=5)
    angle = np.linspace(0, 2 * np.pi, 721)
    circle = np.array([np.cos(angle), np.sin(angle)])
    for (name, text), colour in zip(FORMULAS.items(), COLOURS, strict=True):
        order, dual = ORDERS[name]
        eps = gap / np.linalg.norm(w, dual)
        x, y = eps * circle / np.linalg.norm(circle, order, axis=0)
        balls.fill(x, y, facecolor=colour, alpha=0.12)
        balls.plot(x, y, color=colour, lw=1.6)
        touches = (np.array([x, y]).T @ w).argmax()
        balls.plot(x[touches], y[touches], "o", color=colour, ms=7)
        found = data["norms"][name]
        plane.plot(
            found["formula"], found["search"], "o", color=colour, ms=4, alpha=0.7, mew=0, label=f"{name}: {text}"
        )
    balls.set(xlim=(-1.7, 1.9), ylim=(-1.7, 1.9), aspect="equal")
    label(balls, "each ball, grown until it touches", "$x_1$", "$x_2$")
    ends = [min(data["norms"]["linf"]["formula"]), max(data["norms"]["l1"]["formula"])]
    plane.plot(ends, ends, color=INK, lw=0.8, zorder=0)
    plane.set(xscale="log", yscale="log")
    plane.legend(frameon=False, fontsize=10)
    label(plane, f"{data['points']} points in {data['dimension']} dimensions", "budget by formula", "budget by search")
    return figure
