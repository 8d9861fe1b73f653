"""Defensive distillation: what it hides from one loss another one sees."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.attacks import FGSM, FMN, PGD, Transfer
from holdfast.data import Batch, load_data
from holdfast.engine import Attack, craft
from holdfast.geometry import gradient_saturation
from holdfast.lab.canvas import BLUE, GOLD, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.tasks.objectives import margin
from holdfast.threats import L2, Linf
from holdfast.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

EPS = 0.15
GOODFELLOW = "Goodfellow et al., ICLR 2015"
PAPERNOT, CARLINI = "Papernot et al., S&P 2016", "Carlini and Wagner, S&P 2017"
ATHALYE, CROCE = "Athalye et al., ICML 2018", "Croce and Hein, ICML 2020, equation 6"
SOFTMAX, FLOAT = "1 - p = exp(-margin) where one class leads", "float32 holds nothing below 2^-149"
# Beyond this margin the probability of another class is less than float32 can say.
VANISHED = 149 * np.log(2)


def run(
    temperatures: tuple[int, ...] = (1, 3, 10, 30, 100),
    examples: int = 200,
    learned_from: int = 1297,
    epochs: int = 6,
    budgets: int = 7,
) -> Finding:
    """Distil a network for digits at several temperatures, of which 1 hides nothing, and attack all of them."""
    batch = next(load_data("digits").batches(examples))
    networks = [_distilled(temperature, learned_from, epochs) for temperature in temperatures]
    plain, hot = networks[0], networks[-1]
    found = [_judged(network, plain, t, batch) for network, t in zip(networks, temperatures, strict=True)]
    grid = np.linspace(0, 0.24, budgets)
    curves = {
        name: [_withstood(attack, network, batch, eps) for eps in grid]
        for name, network, attack in (
            ("T = 1, cross-entropy", plain, PGD(20)),
            (f"T = {temperatures[-1]}, cross-entropy", hot, PGD(20)),
            (f"T = {temperatures[-1]}, margin", hot, PGD(20, objective="margin")),
        )
    }
    data = {"temperatures": list(temperatures), "found": found, "eps": grid.tolist(), "curves": curves}
    return Finding(tuple(_claims(temperatures, found)), data)


class _Cooled(nn.Module):
    """The same network and the same answers, logits divided by the temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits / self.temperature


def _distilled(temperature: float, learned_from: int, epochs: int) -> nn.Module:
    settings = {"temperature": float(temperature), "epochs": epochs, "batch_size": 20, "lr": 0.03, "validation": 20}
    learned = train("mlp", "digits", Linf(EPS), method="distillation", settings=settings, examples=f"0:{learned_from}")
    return learned.model.cpu()


def _withstood(attack: Attack, network: nn.Module, batch: Batch, eps: float = EPS) -> float:
    return 1 - float(craft(attack, network, batch.x, batch.y, threat=Linf(eps)).success.double().mean())


def _judged(network: nn.Module, plain: nn.Module, temperature: float, batch: Batch) -> dict[str, Any]:
    """Accuracies under attack, and what is left of the gradient of cross-entropy as the margin grows."""
    with torch.no_grad():
        lead = -margin(network(batch.x).double(), batch.y)
    right = lead > 0
    hope = gradient_saturation(network, batch.x, batch.y, Linf(EPS))
    nearest = FMN(50)(network, batch.x[right], batch.y[right], threat=L2(np.inf))
    cooled = _Cooled(network, temperature)
    return {
        "accuracy": float(right.double().mean()),
        "one step": _withstood(FGSM(), network, batch),
        "cross-entropy": _withstood(PGD(20), network, batch),
        "margin": _withstood(PGD(20, objective="margin"), network, batch),
        "cooled": _withstood(PGD(20), cooled, batch),
        "transfer": _withstood(Transfer(plain), network, batch),
        "ratio": _withstood(PGD(20, objective="dlr"), network, batch),
        "cooled ratio": _withstood(PGD(20, objective="dlr"), cooled, batch),
        "distance": float(nearest.distance.median()),
        "lead": lead[right].tolist(),
        "hope": hope.ratio[right].tolist(),
    }


def _claims(temperatures: tuple[int, ...], found: list[dict[str, Any]]) -> list[Claim]:
    plain, hot, t = found[0], found[-1], temperatures[-1]
    leads, hopes = (np.concatenate([one[key] for one in found]) for key in ("lead", "hope"))
    clear = (hopes > 0) & (leads > 5)
    fall = np.polyfit(leads[clear], np.log(hopes[clear]), 1)[0]
    dead = (hopes == 0).mean() - (leads > VANISHED).mean()
    # Matching a teacher makes it 1; training that ends before the logits have grown so far leaves less.
    growth = np.polyfit(np.log(temperatures), np.log([np.median(one["lead"]) for one in found]), 1)[0]
    cost, stretch = hot["accuracy"] - plain["accuracy"], hot["distance"] / plain["distance"]
    blind = hot["cross-entropy"] - hot["transfer"]
    return [
        between(f"accuracy at T = {t} less that at T = 1", PAPERNOT, cost, -0.1),
        between(f"a step on cross-entropy: accuracy at T = {t}", PAPERNOT, hot["one step"], 0.7),
        between("a step on cross-entropy: accuracy at T = 1", GOODFELLOW, plain["one step"], high=0.5),
        between(f"steps on the margin: accuracy at T = {t}", CARLINI, hot["margin"], high=0.2),
        near(
            "steps on cross-entropy of logits / T: accuracy less that under steps on the margin",
            CARLINI,
            hot["cooled"] - hot["margin"],
            0,
            0.1,
        ),
        near(
            "steps on DLR do not notice T: accuracy of logits less that of logits / T",
            CROCE,
            hot["ratio"] - hot["cooled ratio"],
            0,
            0.03,
        ),
        between(
            "accuracy under steps on cross-entropy less that under examples from another model", ATHALYE, blind, 0.2
        ),
        between(f"median L2 distance to an error: T = {t} over T = 1", CARLINI, stretch, 0.5, 1.5),
        between("margins grow nearly in proportion to T: exponent", CARLINI, growth, 0.6, 1.1),
        near("the gradient dies as exp(-margin): slope of its logarithm", SOFTMAX, fall, -1, 0.05),
        near("share of gradients that are 0 less that of margins above 149 ln 2", FLOAT, dead, 0, 0.02),
    ]


def draw(data: dict[str, Any]) -> "Figure":
    """Accuracy over the budget, gradients over the margin, and accuracy over the temperature."""
    title = "Defensive distillation blinds the attack's loss, not the attacker"
    figure, (budget, slopes, heat) = canvas(title, 4.6, 5.0, 4.7)
    for (name, values), colour in zip(data["curves"].items(), (GREY, BLUE, RED), strict=True):
        budget.plot(data["eps"], values, "o-", color=colour, ms=4, label=name)
    t, nothing = np.array(data["temperatures"]), 1e-52
    for temperature, one, colour in zip(t, data["found"], (GREY, PURPLE, GOLD, GREEN, BLUE), strict=False):
        lead, hope = np.array(one["lead"]), np.array(one["hope"])
        shown = np.where(hope > 0, hope, nothing)
        slopes.plot(lead, shown, "o", ms=3.5, color=colour, alpha=0.5, label=f"T = {temperature}")
    slopes.plot([0, VANISHED], [1, np.exp(-VANISHED)], "-", color=INK, lw=1)
    slopes.annotate("exp(-margin)", (60, 1e-22), color=INK, fontsize=10)
    slopes.annotate("exactly 0 in float32", (300, 1e-51), color=INK, fontsize=10, ha="right", va="bottom")
    slopes.set(yscale="log", xlim=(-8, 310), ylim=(1e-55, 1e3), yticks=[10.0**power for power in range(-45, 1, 15)])
    lines = {
        "cross-entropy": ("cross-entropy", BLUE),
        "transfer": ("another network (T = 1)", GOLD),
        "cooled": ("cross-entropy of logits / T", GREEN),
        "margin": ("margin", RED),
    }
    for key, (text, colour) in lines.items():
        heat.plot(t, [one[key] for one in data["found"]], "o-", color=colour, ms=4, label=text)
    heat.set(xscale="log", xticks=t, xticklabels=[str(value) for value in t], ylim=(-0.03, 1.03))
    heat.tick_params(axis="x", which="minor", bottom=False)
    for panel in (budget, slopes, heat):
        panel.legend(frameon=False, fontsize=9.5)
    label(budget, "digits, 20 steps in L-infinity", "budget $\\epsilon$", "accuracy")
    label(slopes, "a step's promise: cross-entropy / margin", "margin of the logits", "ratio of first-order gains")
    label(heat, f"attacks with $\\epsilon$ = {EPS:g}, by what they follow", "temperature", "accuracy")
    return figure
