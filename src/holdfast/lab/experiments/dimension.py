"""The same accuracy, ever more coordinates, an ever smaller budget."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.threats import L1, L2, Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"linf": (Linf, -0.5), "l2": (L2, 0.0), "l1": (L1, 0.5)}
SEPARATION = 2.0
EXPLAINING, FIRST_ORDER = "Goodfellow et al., ICLR 2015, section 3", "Simon-Gabriel et al., ICML 2019"


def run(dimensions: tuple[int, ...] = (4, 16, 64, 256), samples: int = 20_000, networks: int = 20) -> Finding:
    """Two Gaussian classes at a fixed distance, as the number of coordinates that share it grows."""
    budgets: dict[str, list[float]] = {name: [] for name in NORMS}
    learned, accuracies, gradients = [], [], []
    for d in dimensions:
        mean = torch.full((d,), SEPARATION / d**0.5, dtype=torch.float64)
        x, y = _sample(mean, samples, seed=0)
        for name, (ball, _) in NORMS.items():
            budgets[name].append(_median_budget(ball, mean, 0.0, x, y))
        fit = LogisticRegression(C=0.01).fit(x.numpy(), y.numpy())
        w, b = torch.from_numpy(fit.coef_[0]), float(fit.intercept_[0])
        fresh, labels = _sample(mean, samples, seed=1)
        accuracies.append(float(((fresh @ w + b) * labels > 0).double().mean()))
        learned.append(_median_budget(Linf, w, b, fresh, labels))
        gradients.append(_network_gradient(d, networks))
    claims = [
        near(
            f"{name}: exponent of d in the budget",
            EXPLAINING,
            _power(dimensions, budgets[name]),
            power,
            0.02,
        )
        for name, (_, power) in NORMS.items()
    ]
    best = float(norm.cdf(SEPARATION))
    claims += [
        near(f"logistic regression, d = {d}: accuracy", "Bayes' rule", accuracy, best, 0.01)
        for d, accuracy in zip(dimensions, accuracies, strict=True)
    ]
    claims += [
        near("logistic regression: exponent in linf", EXPLAINING, _power(dimensions, learned), -0.5, 0.05),
        near(
            "random ReLU networks: exponent of d in |grad|_1",
            FIRST_ORDER,
            _power(dimensions, gradients),
            0.5,
            0.05,
        ),
    ]
    data = {
        "dimensions": list(dimensions),
        "budgets": budgets,
        "learned": learned,
        "accuracy": accuracies,
        "gradients": gradients,
    }
    return Finding(tuple(claims), data)


def _sample(mean: Tensor, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = Draws(seed, torch.arange(samples))
    y = torch.where(draws.index % 2 == 0, 1.0, -1.0).double()
    return y.unsqueeze(1) * mean + draws.normal(len(mean)), y


def _median_budget(ball: Any, w: Tensor, b: float, x: Tensor, y: Tensor) -> float:
    """Of the budgets that change the answer, over the examples that are right."""
    value = (x @ w + b) * y
    return float((value[value > 0] / ball(1.0, box=None).dual_norm(w.unsqueeze(0))).median())


def _network_gradient(d: int, networks: int) -> float:
    """The mean L1 norm of the input gradient of networks with He's random weights."""
    lengths = []
    for seed in range(networks):
        x = Draws(seed, torch.arange(64), stage=9).normal(d).requires_grad_()
        (grad,) = torch.autograd.grad(dense(d, 128, 128, 1, seed=seed).double()(x).sum(), x)
        lengths.append(Linf(1.0, box=None).dual_norm(grad).mean())
    return float(torch.stack(lengths).mean())


def _power(dimensions: tuple[int, ...], values: list[float]) -> float:
    """The slope on logarithmic axes."""
    return float(np.polyfit(np.log(dimensions), np.log(values), 1)[0])


def draw(data: dict[str, Any]) -> "Figure":
    """Budgets and gradients over the dimension."""
    accuracy = 100 * float(np.mean(data["accuracy"]))
    title = f"The same accuracy ({accuracy:.1f} %), and ever less to change in a coordinate"
    figure, (budgets, gradients) = canvas(title, 5.8, 4.8)
    d = np.array(data["dimensions"])
    for (name, values), colour in zip(data["budgets"].items(), (BLUE, GREEN, PURPLE), strict=True):
        power = NORMS[name][1]
        budgets.plot(d, values[0] * (d / d[0]) ** power, "-", color=colour, lw=1, alpha=0.6)
        budgets.plot(d, values, "o", color=colour, ms=7, label=f"{name}: $d^{{{power:g}}}$")
    budgets.plot(d, data["learned"], "x", color=RED, ms=8, mew=2, label="linf, logistic regression")
    budgets.set(ylim=(0.08, 600))
    budgets.legend(frameon=False, fontsize=10)
    label(budgets, "two Gaussian classes", "dimension $d$", "median budget that changes the answer")
    gradients.plot(d, data["gradients"][0] * (d / d[0]) ** 0.5, "-", color=GREY, lw=1, label="$d^{0.5}$")
    gradients.plot(d, data["gradients"], "o", color=INK, ms=7, label="mean over networks")
    for panel in (budgets, gradients):
        panel.set(xscale="log", yscale="log", xticks=d, xticklabels=d)
        panel.tick_params(axis="x", which="minor", bottom=False)
    gradients.legend(frameon=False, fontsize=10)
    label(gradients, "random ReLU networks", "dimension $d$", "$\\|\\nabla_x f\\|_1$")
    return figure
