"""Two overlapping Gaussian classes, and one step of size 1 against linear models of them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREY, INK, RED, canvas, label
from holdfast.lab.claim import between, near
from holdfast.lab.experiment import Finding
from holdfast.linear import RobustLogisticRegression
from holdfast.threats import Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN, COVARIANCE = np.array([1.0, 1.0]), np.array([[1.0, 0.3], [0.3, 1.0]])
EPS = 1.0
UNREGULARISED = 1e6
# Of the best linear direction, (1, 1): a score of mean 2 and variance 2.6, from which the adversary takes 2.
BAYES = float(norm.cdf(2 / 2.6**0.5))
GAUSS = "exact for Gaussian classes"
MODELS = ("logistic", "retrained", "robust")


def run(seeds: int = 60, samples: int = 400) -> Finding:
    """Fit, attack, retrain on what the attack made, and fit the exact robust loss, for many seeds."""
    rows, mismatches = [], 0
    for seed in range(seeds):
        x, y = _sample(samples, seed)
        cut = round(0.6 * samples)
        train, test = (x[:cut], y[:cut]), (x[cut:], y[cut:])
        plain = LogisticRegression().fit(*map(_array, train))
        moved = _attacked(plain, *train)
        both = _array(torch.cat([train[0], moved])), _array(torch.cat([train[1], train[1]]))
        retrained = LogisticRegression().fit(*both)
        exact = RobustLogisticRegression(EPS, norm=np.inf, C=UNREGULARISED).fit(*map(_array, train))
        mismatches += (not exact.coef_.any()) != (_threshold(*train) <= EPS)
        rows.append([_accuracies(model, *test) for model in (plain, retrained, exact)])
    found = np.array(rows)
    means = found.mean(0)
    spread = 1.96 * found.std(0) / seeds**0.5
    claims = (
        near("logistic regression: mean accuracy", GAUSS, means[0, 0], BAYES, 0.02),
        near("after one FGSM step of size 1", GAUSS, means[0, 1], 0.5, 0.03),
        near("retrained on FGSM examples too: mean accuracy", GAUSS, means[1, 0], BAYES, 0.03),
        near("after one FGSM step against it", GAUSS, means[1, 1], 0.5, 0.03),
        near("exact robust logistic regression, after the step", GAUSS, means[2, 1], 0.5, 0.03),
        between("no linear model can do better than 1/2: best mean", "mean.w <= ||w||_1", means[:, 1].max(), high=0.53),
        near(
            "robust weights are 0 just where eps >= |means apart|/2: not so",
            "subgradient at 0",
            mismatches,
            0,
            0,
        ),
    )
    x, y = _sample(samples, 0)
    plain = LogisticRegression().fit(_array(x), _array(y))
    data = {
        "means": means.tolist(),
        "intervals": spread.tolist(),
        "seeds": seeds,
        "x": x.tolist(),
        "y": y.tolist(),
        "moved": _attacked(plain, x, y).tolist(),
        "plane": [*plain.coef_[0].tolist(), float(plain.intercept_[0])],
    }
    return Finding(claims, data)


def _sample(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = Draws(seed, torch.arange(samples))
    y = torch.where(draws.uniform(1)[:, 0] < 0.5, -1.0, 1.0).double()
    noise = draws.normal(2, lane=1) @ torch.from_numpy(np.linalg.cholesky(COVARIANCE)).T
    return y.unsqueeze(1) * torch.from_numpy(MEAN) + noise, y


def _attacked(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """One step of steepest ascent on the model's loss, which for a linear model is the worst there is."""
    return x + Linf(EPS, box=None).maximize(-y.unsqueeze(1) * torch.from_numpy(model.coef_[0]), x)


def _accuracies(model: Any, x: Tensor, y: Tensor) -> list[float]:
    return [float(model.score(_array(inputs), _array(y))) for inputs in (x, _attacked(model, x, y))]


def _threshold(x: Tensor, y: Tensor) -> float:
    """The budget from which on the best weights are 0: half the largest difference of the classes' means."""
    return float((x[y > 0].mean(0) - x[y < 0].mean(0)).abs().max() / 2)


def _array(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.numpy(), dtype=np.float64)


def draw(data: dict[str, Any]) -> "Figure":
    """Points, boundary and arrows; accuracies before and after."""
    figure, (plane, bars) = canvas("One step of size 1, and a good linear model is a coin", 5.4, 5.0, height=4.8)
    x, y, moved = (np.array(data[key]) for key in ("x", "y", "moved"))
    for side, colour in ((1, BLUE), (-1, RED)):
        plane.plot(*x[y == side].T, "o", color=colour, ms=4, alpha=0.35, mew=0)
        for i in np.flatnonzero(y == side)[:14]:
            plane.annotate("", moved[i], x[i], arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.1})
            plane.plot(*x[i], "o", color=colour, ms=5)
    first, second, offset = data["plane"]
    ends = np.array([-4.0, 4.0])
    plane.plot(ends, -(first * ends + offset) / second, color=INK, lw=2)
    plane.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    label(plane, "logistic regression's boundary, and its FGSM step", "$x_1$", "$x_2$")
    means, intervals = np.array(data["means"]), np.array(data["intervals"])
    names = ("logistic\nregression", "retrained on\nFGSM examples", "exact robust\nloss")
    for column, (text, colour, shift) in enumerate((("clean", BLUE, -0.2), ("after the step", RED, 0.2))):
        at = np.arange(3) + shift
        bars.bar(at, means[:, column], 0.38, color=colour, alpha=0.85, label=text)
        bars.errorbar(at, means[:, column], intervals[:, column], fmt="none", ecolor=INK, capsize=3)
        for place, value, interval in zip(at, means[:, column], intervals[:, column], strict=True):
            bars.annotate(
                f"{value:.2f}", (place, value + interval), (0, 5), textcoords="offset points", ha="center", color=INK
            )
    bars.axhline(0.5, color=GREY, lw=1, ls="--")
    bars.set(xticks=range(3), xticklabels=names, ylim=(0, 1.12))
    bars.legend(frameon=False, ncols=2, loc="upper right", fontsize=9)
    label(bars, f"mean of {data['seeds']} seeds, 95 % intervals", "", "accuracy")
    return figure
