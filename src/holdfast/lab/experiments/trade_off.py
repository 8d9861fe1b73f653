"""TRADES buys robust accuracy with clean accuracy, and pays with the margin of clean predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from holdfast.data import Source, load_data
from holdfast.lab.canvas import BLUE, GOLD, GREEN, GREY, INK, RED, canvas, label
from holdfast.lab.claim import between
from holdfast.lab.experiment import Finding
from holdfast.models import Query
from holdfast.tasks.objectives import cross_entropy, kl_divergence
from holdfast.threats import Linf
from holdfast.train import TRADES, Progress, Recipe, Step, evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = 0.2
MEASURES = ("clean", "robust", "margin", "loss", "divergence")
ZHANG = "Zhang et al., ICML 2019"
# Where a x + beta b is least, b does not grow with beta, and a does not fall.
PENALTY = "a penalised minimum: its penalty falls with the weight"
CONFIDENT, FLAT = "cross-entropy alone rewards confidence", "a constant output has no divergence"


def run(betas: Sequence[float] = (0, 0.5, 2, 8, 32), seeds: int = 3, epochs: int = 24) -> Finding:
    """Train with every beta and several seeds, and measure on the test images."""
    train, test = load_data("digits", split="train"), load_data("digits")
    found = [[_measured(beta, seed, epochs, train, test) for seed in range(seeds)] for beta in betas]
    runs = {key: [[one[key] for one in row] for row in found] for key in MEASURES}
    mean = {key: np.mean(values, axis=1) for key, values in runs.items()}
    order = {key: float(spearmanr(betas, values).statistic) for key, values in mean.items()}
    claims = (
        between("beta 0: clean accuracy", ZHANG, mean["clean"][0], 0.88, 1),
        between("beta 0: accuracy under PGD", ZHANG, mean["robust"][0], 0, 0.1),
        between("largest beta: accuracy under PGD", ZHANG, mean["robust"][-1], 0.35, 1),
        between("robust accuracy against beta, rank correlation", ZHANG, order["robust"], 0.8, 1),
        between(
            "clean accuracy lost from beta 0 to the largest", ZHANG, mean["clean"][0] - mean["clean"][-1], 0.01, 0.3
        ),
        between("clean accuracy against beta, rank correlation", ZHANG, order["clean"], -1, -0.6),
        between("margin of clean probabilities, beta 0", CONFIDENT, mean["margin"][0], 0.8, 1),
        between("margin of clean probabilities, largest beta", FLAT, mean["margin"][-1], 0, 0.2),
        between("margin of clean probabilities against beta, rank correlation", FLAT, order["margin"], -1, -0.99),
        between("clean training loss against beta, rank correlation", PENALTY, order["loss"], 0.99, 1),
        between("divergence in training against beta, rank correlation", PENALTY, order["divergence"], -1, -0.99),
    )
    return Finding(claims, {"eps": EPS, "betas": list(betas), **runs})


def _measured(beta: float, seed: int, epochs: int, train: Source, test: Source) -> dict[str, float]:
    """What a network is at the end of its training."""
    threat = Linf(EPS)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    method = TRADES(threat, beta, steps=4)
    found: dict[str, float] = {}

    def measure(progress: Progress) -> None:
        if progress.step < progress.steps:
            return
        x, y = _all(test)
        accuracies = evaluate(network, threat, x, y, seed=seed, steps=20)
        with torch.no_grad():
            top = network(x).softmax(1).topk(2).values
        found.update(clean=accuracies.clean, robust=accuracies.multi_step, margin=float((top[:, 0] - top[:, 1]).mean()))
        found.update(zip(("loss", "divergence"), _terms(method, network, *_all(train)), strict=True))

    recipe = Recipe(epochs, batch_size=128, lr=1e-2, validation=20, warmup=0.3)
    fit(network, train, method, threat, recipe, seed=seed, on_progress=measure)
    return found


def _terms(method: TRADES, network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The two terms of the objective, before beta weighs the second."""
    with Query(network, batch_size=len(x)) as query:
        worst = method.perturb(query, x, y, Step(0, 0, torch.arange(len(x))))
        clean, moved = query.logits(x), query.logits(worst)
    return float(cross_entropy(clean, y).mean()), float(kl_divergence(moved, clean).mean())


def _all(source: Source) -> tuple[Tensor, Tensor]:
    batch = next(iter(source.batches(len(source))))
    return batch.x, batch.y


def draw(data: dict[str, Any]) -> "Figure":
    """Robust against clean accuracy, and what beta does to the margin and to the objective's terms."""
    betas = data["betas"]
    mean = {key: np.mean(data[key], axis=1) for key in MEASURES}
    figure, (curve, margin, terms) = canvas(
        "TRADES: robustness is paid for, clean predictions lose their margin", 4.8, 4, 4
    )
    for clean, robust in zip(data["clean"], data["robust"], strict=True):
        curve.plot(clean, robust, "o", color=GREY, ms=4, alpha=0.7)
    curve.plot(mean["clean"], mean["robust"], "o-", color=GREEN, lw=1.8, ms=7)
    for beta, clean, robust in zip(betas, mean["clean"], mean["robust"], strict=True):
        curve.annotate(
            f"$\\beta$ = {beta:g}",
            (clean, robust),
            (8, 5),
            textcoords="offset points",
            color=INK,
            fontsize=10,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5},
        )
    curve.margins(x=0.12)
    label(curve, f"digits, $\\epsilon$ = {data['eps']:g}; small dots: seeds", "clean accuracy", "accuracy under PGD")
    places = range(len(betas))
    margin.plot(places, mean["margin"], "o-", color=BLUE, lw=1.8)
    margin.plot(places, data["margin"], "o", color=GREY, ms=4, alpha=0.7)
    margin.set(ylim=(0, 1))
    label(margin, "clean test images", "$\\beta$", "best less second probability")
    terms.plot(places, mean["loss"], "o-", color=GOLD, lw=1.8, label="clean cross-entropy")
    terms.plot(places, mean["divergence"], "o-", color=RED, lw=1.8, label="worst divergence")
    terms.set(yscale="log")
    terms.legend(frameon=False, fontsize=10)
    label(terms, "the two terms, training images", "$\\beta$", "nats")
    for panel in (margin, terms):
        panel.set_xticks(places, [f"{beta:g}" for beta in betas])
    return figure
