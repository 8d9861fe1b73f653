"""One robust feature and many weak ones, of which accuracy asks for one thing and robustness for the other."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, RED, canvas, label
from holdfast.lab.claim import between, near
from holdfast.lab.experiment import Finding
from holdfast.threats import Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

P, SIGNAL = 0.95, 4.0
SOURCE = "Tsipras et al., ICLR 2019, section 2.1"
THEOREM = "Tsipras et al., ICLR 2019, theorem 2.1"
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def run(weak: int = 100, samples: int = 50_000, learned_from: int = 10_000) -> Finding:
    """Measure the classifiers of the paper and learned ones on samples, and the whole trade-off exactly."""
    eta = SIGNAL / weak**0.5
    x, y = _sample(weak, eta, samples, seed=0)
    averaging = torch.cat([torch.zeros(1), torch.full((weak,), 1 / weak)]).double()
    robust = torch.cat([torch.ones(1), torch.zeros(weak)]).double()
    near_x, near_y = _sample(weak, eta, learned_from, seed=1)
    learned = torch.from_numpy(LogisticRegression().fit(near_x.numpy(), near_y.numpy()).coef_[0])
    found = {
        name: [_accuracy(w, x, y, budget) for budget in (0.0, 2 * eta)]
        for name, w in (("averaging", averaging), ("robust", robust), ("learned", learned))
    }
    few, many = 5 * (norm.sf(SIGNAL) / samples) ** 0.5, 5 * (P * (1 - P) / samples) ** 0.5
    curve = _trade_off(weak, eta)
    clean, kept = np.array(curve["clean"]), np.array(curve["robust"])
    claims = (
        near("the mean of the weak features: accuracy", SOURCE, found["averaging"][0], norm.cdf(SIGNAL), few),
        near("the same within eps = 2 eta", SOURCE, found["averaging"][1], norm.sf(SIGNAL), few),
        between("logistic regression: accuracy", SOURCE, found["learned"][0], 0.999),
        between("logistic regression within eps = 2 eta", SOURCE, found["learned"][1], 0, 0.01),
        near("the robust feature alone: accuracy", SOURCE, found["robust"][0], P, many),
        near("the same within eps = 2 eta", SOURCE, found["robust"][1], P, many),
        near("trained on clean loss alone: accuracy", SOURCE, clean[0], norm.cdf(SIGNAL), 1e-4),
        near("trained on robust loss alone: robust accuracy", SOURCE, kept[-1], P, 1e-6),
        between("no mixture beats robust <= p/(1-p) (1 - clean): excess", THEOREM, _excess(clean, kept), high=1e-9),
        between("more weight on the robust loss never hurts robust accuracy", THEOREM, np.diff(kept).min(), -1e-6),
    )
    shown = (np.linspace(-3 * eta, 3 * eta, 200)).tolist()
    return Finding(claims, {"weak": weak, "eta": eta, "found": found, "curve": curve, "score": shown})


def _sample(weak: int, eta: float, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = Draws(seed, torch.arange(samples))
    uniform = draws.uniform(2)
    y = torch.where(uniform[:, 0] < 0.5, -1.0, 1.0).double()
    strong = torch.where(uniform[:, 1] < P, y, -y).unsqueeze(1)
    return torch.cat([strong, eta * y.unsqueeze(1) + draws.normal(weak, lane=1)], dim=1), y


def _accuracy(w: Tensor, x: Tensor, y: Tensor, eps: float) -> float:
    """Under the worst perturbation of every example, which for a linear model the threat knows."""
    worst = Linf(eps, box=None).maximize(-y.unsqueeze(1) * w, x)
    return float((y * ((x + worst) @ w) > 0).double().mean())


def _trade_off(weak: int, eta: float) -> dict[str, list[float]]:
    """Minimise ``(1 - mix) clean + mix robust`` logistic risk for many mixtures, without a sample.

    By symmetry and convexity all weak weights of a minimiser are the same, so that two numbers describe it, and the
    score of the weak features together is one Gaussian.
    """
    # All that happens happens below a fifth.
    mixes = np.append(np.linspace(0, 0.2, 81), [0.5, 1.0])
    curve: dict[str, list[float]] = {"mix": mixes.tolist(), "clean": [], "robust": []}
    weights = np.array([1.0, 0.5])
    for mix in mixes:
        found = minimize(_risk, weights, (mix, weak, eta), "L-BFGS-B", True, bounds=[(0, None)] * 2, tol=1e-14)
        weights = found.x
        curve["clean"].append(_exact(weights, weak, eta, 0.0))
        curve["robust"].append(_exact(weights, weak, eta, 2 * eta))
    return curve


def _risk(weights: Array, mix: float, weak: int, eta: float) -> tuple[float, Array]:
    """Risk and gradient, integrated by Gauss and Hermite."""
    strong, each = weights
    total, slope = 0.0, np.zeros(2)
    for share, eps in ((1 - mix, 0.0), (mix, 2 * eta)):
        for chance, sign in ((P, 1), (1 - P, -1)):
            by_each = weak * (eta - eps) + weak**0.5 * POINTS
            margin = (sign - eps) * strong + each * by_each
            weight = share * chance * WEIGHTS / WEIGHTS.sum()
            total += float(weight @ np.logaddexp(0, -margin))
            pull = -weight * expit(-margin)
            slope += np.array([pull.sum() * (sign - eps), pull @ by_each])
    return total, slope


def _exact(weights: Array, weak: int, eta: float, eps: float) -> float:
    """The accuracy of a classifier, from the normal distribution function."""
    strong, each = weights
    spread = weak**0.5 * each
    total = 0.0
    for chance, sign in ((P, 1), (1 - P, -1)):
        mean = (sign - eps) * strong + weak * (eta - eps) * each
        total += chance * float(norm.cdf(mean / spread) if spread > 1e-12 else mean > 0)
    return total


def _excess(clean: Array, robust: Array) -> float:
    return float((robust - P / (1 - P) * (1 - clean)).max())


def draw(data: dict[str, Any]) -> "Figure":
    """What the adversary does to the weak features, and the trade-off."""
    figure, (score, curve) = canvas("Accuracy asks for the weak features, robustness forbids them", 5.4, 5.4)
    at, spread = np.array(data["score"]), 1 / data["weak"] ** 0.5
    for mean, colour, text in ((data["eta"], BLUE, "clean"), (-data["eta"], RED, "after $\\epsilon = 2\\eta$")):
        density = norm.pdf(at, mean, spread)
        score.fill_between(at, density, color=colour, alpha=0.55, lw=0)
        score.annotate(text, (mean, density.max()), (0, 5), textcoords="offset points", ha="center", color=colour)
    score.axvline(0, color=INK, lw=0.8)
    score.annotate(
        "",
        (-0.8 * data["eta"], 0.5 / spread / 4),
        (0.8 * data["eta"], 0.5 / spread / 4),
        arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.5},
    )
    score.set_ylim(0, 0.47 / spread)
    label(score, f"mean of {data['weak']} weak features, class +1", "score; below 0 is an error", "density")
    clean, robust = np.array(data["curve"]["clean"]), np.array(data["curve"]["robust"])
    limit = np.linspace(P, 1, 200)
    bound = np.minimum(P / (1 - P) * (1 - limit), 1)
    curve.fill_between(limit, bound, 1.05, color=GREY, alpha=0.25, lw=0)
    curve.annotate("impossible (theorem 2.1)", (0.988, 0.72), color=INK, ha="center", fontsize=10)
    curve.plot(clean, robust, ".-", color=GREEN, lw=1.5, ms=5)
    for name, text, shift in (("learned", "logistic regression", (-8, 8)), ("robust", "robust feature", (8, -14))):
        place = data["found"][name]
        curve.plot(*place, "o", color=RED, ms=7)
        side = "right" if shift[0] < 0 else "left"
        curve.annotate(text, place, shift, textcoords="offset points", color=RED, fontsize=10, ha=side)
    mixes = np.array(data["curve"]["mix"])
    for mix in (0.05, 0.13):
        nearest = int(np.abs(mixes - mix).argmin())
        place = clean[nearest], robust[nearest]
        text = f"robust loss\n{100 * mixes[nearest]:.0f} %"
        curve.annotate(text, place, (8, 6), textcoords="offset points", color=GREEN, fontsize=9)
    curve.set(xlim=(0.944, 1.003), ylim=(-0.04, 1.05))
    label(curve, "training on mixtures of clean and robust loss", "accuracy", "accuracy within $\\epsilon = 2\\eta$")
    return figure
