"""Who pays for robustness: the class that is spread out, and the class that is rare."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREY, INK, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.linear import RobustLogisticRegression
from holdfast.threats import Linf

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

DIMENSION, ETA = 16, 0.5
BUDGETS = (0.0, 0.1, 0.2, 0.3)
SPREAD, RARE = 2.0, 0.1
XU, BAYES = "Xu et al., ICML 2021", "Bayes' rule for two Gaussians"


def run(samples: int = 40_000) -> Finding:
    """Errors class by class: of the best linear classifier under attack, and of learned ones, beside the formulas."""
    spread = [_attacked(eps, samples) for eps in BUDGETS]
    rare, weighed = (_learned(weight, samples) for weight in (None, "balanced"))
    halves, shares = (samples / 2, samples / 2), (samples * (1 - RARE), samples * RARE)
    widened = spread[2][1] - spread[2][0] - (spread[0][1] - spread[0][0])
    left = weighed[2]["robust"][1] - weighed[2]["robust"][0]
    claims: list[Claim] = []
    for eps, found in zip(BUDGETS[::2], spread[::2], strict=True):
        texts = [f"{name} class, best cut for eps = {eps:g}: error under attack" for name in ("dense", "spread-out")]
        claims += _each(texts, XU, found[:2], _errors(eps, eps, SPREAD, 0.5), halves, 0)
    best = sum(_errors(0.2, 0.2, SPREAD, 0.5)) / 2
    claims += [
        near(
            "both, the best of 401 cuts for eps = 0.2: mean error under attack",
            XU,
            spread[2][2],
            best,
            2.5 / samples**0.5,
        ),
        between("from eps = 0 to 0.2 the gap between the two widens, by", XU, widened, 0.05),
    ]
    for eps, learned in zip(BUDGETS[::2], rare[::2], strict=True):
        texts = [
            f"{name} class, logistic regression for eps = {eps:g}: error under attack" for name in ("frequent", "rare")
        ]
        claims += _each(texts, BAYES, learned["robust"], _errors(eps, eps, 1, RARE), shares, 0.005)
    texts = [f"{name} class, logistic regression for eps = 0.2: clean error" for name in ("frequent", "rare")]
    claims += _each(texts, BAYES, rare[2]["clean"], _errors(0.2, 0, 1, RARE), shares, 0.005)
    claims.append(near("the same with balanced weights: gap between the errors under attack", BAYES, left, 0, 0.03))
    return Finding(tuple(claims), {"samples": samples, "spread": spread, "rare": rare, "weighed": weighed})


def _each(
    texts: Sequence[str],
    source: str,
    found: Sequence[float],
    expected: Sequence[float],
    counts: Sequence[float],
    bias: float,
) -> list[Claim]:
    """A claim for each class, within five standard errors, and a little for what was learned from a sample."""
    return [
        near(text, source, value, chance, 5 * (chance * (1 - chance) / count) ** 0.5 + bias)
        for text, value, chance, count in zip(texts, found, expected, counts, strict=True)
    ]


def _sample(spread: float, share: float, samples: int, lane: int) -> tuple[Array, NDArray[np.int64]]:
    """Classes -1 and +1 around ``-ETA`` and ``ETA`` in every coordinate; of the second there is the ``share``."""
    draws = Draws(0, torch.arange(samples), lane)
    y = np.where(np.arange(samples) < share * samples, 1, -1)
    deviation = np.where(y > 0, spread, 1.0)
    return ETA * y[:, None] + deviation[:, None] * draws.normal(DIMENSION).numpy(), y


def _attacked(eps: float, samples: int) -> tuple[float, float, float]:
    """Errors of the two classes at the best cut of the coordinates' mean, and the least mean error of any cut."""
    x, y = _sample(SPREAD, 0.5, samples, lane=0)
    inputs, signs = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    averaging = torch.full((1, DIMENSION), 1 / DIMENSION, dtype=torch.float64)
    moved = inputs + Linf(eps, box=None).maximize(-signs * averaging, inputs)
    dense, spread = (np.sort((moved @ averaging.T).numpy()[y == sign, 0]) for sign in (-1, 1))
    cuts = np.append(np.linspace(-ETA, ETA, 400), _threshold(eps, SPREAD, 0.5) * DIMENSION**-0.5)
    above = 1 - np.searchsorted(dense, cuts, "right") / len(dense)
    below = np.searchsorted(spread, cuts, "right") / len(spread)
    return float(above[-1]), float(below[-1]), float((above + below).min() / 2)


def _learned(weight: str | None, samples: int) -> list[dict[str, list[float]]]:
    """Errors of the frequent and of the rare class, clean and robust, for estimators fitted to each budget."""
    x, y = _sample(1, RARE, samples, lane=2)
    seen, labels = _sample(1, RARE, samples, lane=4)
    classes = [(seen[labels == sign], labels[labels == sign]) for sign in (-1, 1)]
    fitted = RobustLogisticRegression(class_weight=weight).path(x, y, BUDGETS)
    return [
        {
            "clean": [1 - one.robust_score(*rows, eps=0.0) for rows in classes],
            "robust": [1 - one.robust_score(*rows) for rows in classes],
        }
        for one in fitted
    ]


def _threshold(eps: float, spread: float, share: float) -> float:
    """Where the densities of the attacked classes cross, in standard deviations of the dense class's mean.

    Under attack the means are ``a`` apart from 0, and ``(u + a)^2 / 2 = (u - a)^2 / (2 spread^2) + log(...)``.
    """
    a, odds = _reach(eps), math.log(spread * (1 - share) / share)
    if spread == 1:
        return odds / (2 * a)
    # (K^2 - 1) u^2 + 2 a (K^2 + 1) u + (K^2 - 1) a^2 - 2 K^2 log(...) = 0
    lead, middle = spread**2 - 1, a * (spread**2 + 1)
    rest = lead * a**2 - 2 * spread**2 * odds
    return (math.sqrt(middle**2 - lead * rest) - middle) / lead


def _reach(eps: float) -> float:
    return math.sqrt(DIMENSION) * (ETA - eps)


def _errors(prepared: float, eps: float, spread: float, share: float) -> tuple[float, float]:
    """What the classes lose within ``eps``, of the classifier that is best within the budget ``prepared``."""
    u, a = _threshold(prepared, spread, share), _reach(eps)
    return float(norm.cdf(-u - a)), float(norm.cdf((u - a) / spread))


def draw(data: dict[str, Any]) -> "Figure":
    """The classes and their cut with and without an adversary, and their errors over the budget."""
    figure, (classes, spread, rare) = canvas(
        "Robustness is paid for by the spread-out class, and by the rare one", 4.6, 4, 4
    )
    at = np.linspace(-2.2, 3.2, 400)
    deviation = DIMENSION**-0.5
    for mean, scale, colour, text in ((-ETA, 1.0, BLUE, "dense"), (ETA, SPREAD, RED, "spread out")):
        density = norm.pdf(at, mean, scale * deviation)
        classes.fill_between(at, density, color=colour, alpha=0.5, lw=0)
        classes.annotate(text, (mean, density.max()), (0, 5), textcoords="offset points", color=colour, ha="center")
    for eps, style in ((0.0, "-"), (BUDGETS[-1], "--")):
        cut = _threshold(eps, SPREAD, 0.5) * deviation
        classes.axvline(cut, color=INK, lw=1.4, ls=style, label=f"best cut, $\\epsilon$ = {eps:g}")
    classes.legend(frameon=False, fontsize=9)
    classes.set(ylim=(0, 1.9), xlim=(-1.6, 2.2))
    label(classes, f"{DIMENSION} coordinates, equally frequent classes", "mean of the coordinates", "density")
    _curves(spread, SPREAD, 0.5, data["spread"], ("dense", "spread out"))
    label(spread, f"deviations 1 and {SPREAD:g}", "budget $\\epsilon$", "error under attack")
    _curves(rare, 1, RARE, [one["robust"] for one in data["rare"]], ("frequent", "rare"))
    weighed = [max(one["robust"]) for one in data["weighed"]]
    rare.plot(BUDGETS, weighed, "x", color=GREY, ms=8, mew=2)
    rare.annotate(
        "balanced weights",
        (BUDGETS[-1], weighed[-1]),
        (10, -16),
        textcoords="offset points",
        color=GREY,
        ha="right",
    )
    label(rare, f"{100 * RARE:.0f} % of one class; logistic regression", "budget $\\epsilon$", "error under attack")
    return figure


def _curves(panel: "Axes", spread: float, share: float, measured: list[list[float]], names: tuple[str, str]) -> None:
    """The formula as a line, what was measured as dots."""
    budgets = np.linspace(0, BUDGETS[-1] + 0.02, 60)
    for number, (colour, name) in enumerate(zip((BLUE, RED), names, strict=True)):
        line = [_errors(eps, eps, spread, share)[number] for eps in budgets]
        panel.plot(budgets, line, "-", color=colour, lw=1.6)
        panel.plot(BUDGETS, [pair[number] for pair in measured], "o", color=colour, ms=6)
        panel.annotate(name, (budgets[-1], line[-1]), (4, 0), textcoords="offset points", color=colour, va="center")
    panel.set_ylim(0, None)
    panel.set_xlim(-0.01, 0.4)
