"""Adversarial training and a penalty on the gradient are the same to first order."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.data import load_data
from holdfast.lab.canvas import BLUE, GREEN, GREY, RED, canvas, label
from holdfast.lab.claim import near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.models import Query
from holdfast.threats import L2, Linf
from holdfast.train import GradientPenalty, Method, PGDTraining, Standard, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"linf": Linf, "l2": L2}
SOURCE = "Simon-Gabriel et al., ICML 2019, section 2"
LR = 0.5
# Steps far longer than the budget end where the gradient at their start points, so that a few find the maximum.
LEAP = 100.0


def run(examples: int = 100, updates: int = 20, halvings: int = 5, ascent: int = 6) -> Finding:
    """Compare losses at random weights, and the weights that training ends with, as the budget is halved."""
    batch = next(load_data("digits", split="train", examples=f"0:{examples}").batches(examples))
    x, y = batch.x.flatten(1).double(), batch.y
    claims, shown = [], {}
    for name, norm in NORMS.items():
        budgets = [0.04 * (1 if name == "linf" else 4) / 2**i for i in range(halvings)]
        found: dict[str, list[float]] = {key: [] for key in ("first", "second", "weights", "apart")}
        plain, ordinary = _loss(Standard(), _network(), x, y, 0).item(), _trained(Standard(), x, y, updates)
        for eps in budgets:
            threat = norm(eps, box=None)
            adversarial, penalised = PGDTraining(threat, ascent, LEAP), GradientPenalty(threat)
            robust, first_order = (_loss(method, _network(), x, y, 0).item() for method in (adversarial, penalised))
            found["first"].append(robust - plain)
            found["second"].append(abs(robust - first_order))
            hardened, smoothed = (_trained(method, x, y, updates) for method in (adversarial, penalised))
            found["weights"].append(float((hardened - ordinary).norm()))
            found["apart"].append(float((hardened - smoothed).norm()))
        texts = {
            "first": ("the robust loss leaves the clean one as eps^1", 1, 0.1),
            "second": ("the penalised loss leaves the robust one as eps^2", 2, 0.25),
            "weights": ("trained weights leave those of ordinary training as eps^1", 1, 0.1),
            "apart": ("weights of the two methods part as eps^2", 2, 0.25),
        }
        claims += [
            near(f"{name}: {text}: exponent", SOURCE, _power(budgets, found[key]), power, within)
            for key, (text, power, within) in texts.items()
        ]
        shown[name] = {"eps": budgets, **found}
    return Finding(tuple(claims), {"examples": examples, "updates": updates, "norms": shown})


def _network() -> nn.Module:
    """A smooth network, always with the same random weights."""
    return dense(64, 24, 10, unit=nn.Tanh, gain=1.0).double()


def _loss(method: Method, network: nn.Module, x: Tensor, y: Tensor, number: int) -> Tensor:
    """What a method minimises in a step that sees all examples."""
    step = Step(number, 0, torch.arange(len(x)))
    with Query(network, batch_size=len(x)) as query:
        x_adv = method.perturb(query, x, y, step)
    return method.loss(network, x, x_adv, y, step)


def _trained(method: Method, x: Tensor, y: Tensor, updates: int) -> Tensor:
    """All weights after plain gradient descent from the same start."""
    network = _network()
    parameters = list(network.parameters())
    for number in range(updates):
        slopes = torch.autograd.grad(_loss(method, network, x, y, number), parameters)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.sub_(LR * slope)
    return nn.utils.parameters_to_vector(parameters).detach()


def _power(budgets: list[float], values: list[float]) -> float:
    """The slope on logarithmic axes."""
    return float(np.polyfit(np.log(budgets), np.log(values), 1)[0])


def draw(data: dict[str, Any]) -> "Figure":
    """Differences over the budget, on logarithmic axes."""
    figure, axes = canvas("Adversarial training is a gradient penalty, to first order in the budget", 5.6, 5.6)
    lines = {
        "first": (GREY, "robust loss - clean loss"),
        "second": (RED, "|robust loss - penalised loss|"),
        "weights": (BLUE, "weights: adversarial - ordinary"),
        "apart": (GREEN, "weights: adversarial - penalised"),
    }
    for panel, (name, found) in zip(axes, data["norms"].items(), strict=True):
        eps = np.array(found["eps"])
        for key, (colour, text) in lines.items():
            power = 1 if key in ("first", "weights") else 2
            panel.plot(eps, found[key][0] * (eps / eps[0]) ** power, "-", color=colour, lw=1, alpha=0.6)
            panel.plot(eps, found[key], "o", color=colour, ms=6, label=f"{text} $\\propto\\epsilon^{power}$")
        panel.set(xscale="log", yscale="log", xticks=eps, xticklabels=[f"{value:g}" for value in eps])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        label(panel, f"{name}, {data['updates']} updates on digits", "budget $\\epsilon$", "difference")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
