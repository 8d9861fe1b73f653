"""The gradient of cross-entropy dies on confident predictions, and that of the margin does not."""

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks import FGSM
from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.geometry import gradient_saturation
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.tasks.objectives import ObjectiveName, margin
from holdfast.threats import Linf
from holdfast.train import Recipe, Standard, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFTMAX, IEEE = "gradient of the softmax", "IEEE 754"
CARLINI, CROCE = "Carlini and Wagner, S&P 2017", "Croce and Hein, ICML 2020, equation 6"
THREAT = Linf(0.08)
OBJECTIVES: tuple[ObjectiveName, ...] = ("ce", "margin", "dlr")
LN2 = math.log(2)
# Of the numbers of a format: at which margins 1 + exp(-m) becomes 1, exp(-m) no normal number, and exp(-m) 0.
FORMATS = {torch.float32: (24 * LN2, 126 * LN2, 150 * LN2), torch.float64: (53 * LN2, 1022 * LN2, 1075 * LN2)}

LINES = {
    "float64": (0.0, -1.0, torch.float64),
    "float32, margin in the other logit": (0.0, -1.0, torch.float32),
    "float32, margin in the label's": (1.0, 0.0, torch.float32),
}


def run(points: int = 200, examples: int = 600, epochs: int = 20, looked_at: int = 300, doublings: int = 12) -> Finding:
    """Measure what a step promises as logits are scaled up, and what FGSM makes of it."""
    batch = next(load_data("digits", split="test", examples=f"0:{looked_at}").batches(looked_at))
    network = _trained(examples, epochs)
    right = network(batch.x).argmax(1) == batch.y
    x, y = batch.x[right], batch.y[right]
    scales = [2.0**power for power in range(doublings + 1)]
    verdicts = {name: torch.stack([_broken(network, scale, name, x, y) for scale in scales]) for name in OBJECTIVES}
    broken = {name: each.double().mean(1) for name, each in verdicts.items()}
    lead = -margin(network(x), y).detach() * torch.tensor(scales).unsqueeze(1)
    rounded, _, zero = FORMATS[torch.float32]
    promises = _promises(network, x, y)
    wrong, ratios = np.array(promises["wrong"]), np.array(promises["ratio"])
    power = np.polyfit(np.log(wrong), np.log(ratios), 1)[0]
    claims = (
        *_two_classes(points),
        *_ends(),
        near("digits: first-order increase, cross-entropy over margin: power of 1 - p", SOFTMAX, power, 1, 0.05),
        *_scaled(verdicts, broken, lead, _raised(network, x, y)),
    )
    data = {
        "scales": scales,
        "broken": {name: each.tolist() for name, each in broken.items()},
        "turns": [at / float(lead[0].median()) for at in (rounded, zero)],
        "promises": promises,
        "lines": {name: _line(*line) for name, line in LINES.items()},
    }
    return Finding(claims, data)


def _two_classes(points: int) -> list[Claim]:
    """A linear model, of which everything has a closed form."""
    model = dense(20, 2, gain=1.0).double()
    x = Draws(3, torch.arange(points)).normal(20)
    logits = model(x).detach()
    y = logits.argmax(1)
    weight = next(model.parameters()).detach()
    step = gradient_saturation(model, x, y, THREAT, scale=3.0)
    ratio = step.ratio / (3 * margin(logits, y)).sigmoid()
    rise = step.margin / (3 * THREAT.eps * (weight[1] - weight[0]).abs().sum())
    return [
        near(
            "two linear classes: first-order increase, cross-entropy over margin, over 1 - p",
            SOFTMAX,
            _worst(ratio),
            1,
            1e-9,
        ),
        near(
            "two linear classes: first-order increase of the margin over eps ||w||_1",
            "Hölder's inequality",
            _worst(rise),
            1,
            1e-9,
        ),
    ]


def _scaled(
    verdicts: dict[ObjectiveName, Tensor], broken: dict[ObjectiveName, Tensor], lead: Tensor, raised: Tensor
) -> list[Claim]:
    """FGSM on logits that are scaled up until ``lead`` is their margin; ``raised``: what the runner-up alone does."""
    rounded, least, zero = FORMATS[torch.float32]
    silent = verdicts["ce"][lead > zero].double().mean()
    halved = (lead > 1.1 * rounded) & (lead < least)
    apart = (verdicts["ce"] != raised)[halved].double().mean()
    largest = "largest change of success as logits are scaled"
    return [
        near(f"FGSM on the margin: {largest}", CARLINI, _spread(broken["margin"]), 0, 0),
        near(f"FGSM on DLR: {largest}", CROCE, _spread(broken["dlr"]), 0, 0.01),
        near("FGSM on cross-entropy, margins beyond 150 ln 2: success", CARLINI, float(silent), 0, 0),
        near(
            "from 24 ln 2 on it only raises the runner-up: share of verdicts that differ", IEEE, float(apart), 0, 0.05
        ),
    ]


def _ends() -> list[Claim]:
    """Margins at which the gradient of cross-entropy is 0, by the logit that carries the margin and by the format."""
    claims = []
    for dtype, (rounded, least, zero) in FORMATS.items():
        m, name = torch.arange(1, 800, 1 / 32, dtype=dtype), str(dtype).removeprefix("torch.")
        own, other = (float(m[_increase(m, *weights) > 0].max()) for weights in ((1, 0), (0, -1)))
        claims += [
            near(f"{name}: margin from which the label's logit drops out of cross-entropy", IEEE, own, rounded, LN2),
            between(
                f"{name}: margin from which exp(-margin) underflows and the gradient is 0", IEEE, other, least, zero
            ),
        ]
    return claims


def _increase(m: Tensor, own: float, other: float) -> Tensor:
    """What a unit step promises cross-entropy at margins ``m`` of the logits ``own m`` and ``other m``."""
    model = dense(1, 2).to(m.dtype)
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.copy_(torch.tensor([[own], [other]]))
        bias.zero_()
    y = torch.zeros(len(m), dtype=torch.int64)
    return gradient_saturation(model, m.unsqueeze(1), y, Linf(1.0, box=None)).cross_entropy


def _trained(examples: int, epochs: int) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), *dense(64, 32, 10))
    source = load_data("digits", split="train", examples=f"0:{examples}")
    fit(network, source, Standard(), THREAT, Recipe(epochs, 50, lr=0.01))
    return network


def _broken(network: nn.Sequential, scale: float, objective: ObjectiveName, x: Tensor, y: Tensor) -> Tensor:
    """What FGSM breaks when all logits are as many times as large; by a power of 2, nothing is rounded."""
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled[-1].parameters():
            parameter.mul_(scale)
    return FGSM(objective)(scaled, x, y, threat=THREAT).success


def _raised(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a step breaks that raises the runner-up and leaves the label out."""
    inputs = x.clone().requires_grad_()
    logits = network(inputs)
    rivals = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    (grad,) = torch.autograd.grad(rivals.amax(1).sum(), inputs)
    moved: Tensor = network(x + THREAT.maximize(grad, x))
    return moved.argmax(1) != y


def _promises(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """The ratio of first-order increases over ``1 - p``, for logits as they are and twice and four times as large."""
    model = copy.deepcopy(network).double()
    logits = model(x.double()).detach()
    wrong, ratios = [], []
    for scale in (1.0, 2.0, 4.0):
        others = (scale * logits).scatter(1, y.unsqueeze(1), -torch.inf)
        wrong += (others.logsumexp(1) - (scale * logits).logsumexp(1)).exp().tolist()
        ratios += gradient_saturation(model, x.double(), y, THREAT, scale=scale).ratio.tolist()
    return {"wrong": wrong, "ratio": ratios}


def _line(own: float, other: float, dtype: torch.dtype) -> list[list[float]]:
    m = torch.arange(1, 130, 0.5, dtype=dtype)
    return [m.tolist(), _increase(m, own, other).tolist()]


def _worst(quotients: Tensor) -> float:
    return float(quotients[(quotients - 1).abs().argmax()])


def _spread(shares: Tensor) -> float:
    return float(shares.max() - shares.min())


def draw(data: dict[str, Any]) -> "Figure":
    """What a step promises over ``1 - p``, where its gradient ends, and what FGSM breaks."""
    figure, (promise, ends, success) = canvas("Confidence silences cross-entropy, not the margin", 4.4, 4.6, 5)
    wrong = np.array(data["promises"]["wrong"])
    promise.plot(wrong, wrong, color=GREY, lw=1)
    promise.plot(wrong, data["promises"]["ratio"], "o", color=BLUE, ms=3.5, alpha=0.4, mew=0)
    promise.set(xscale="log", yscale="log")
    label(promise, "a step's promise on digits: the line is $1-p$", "$1-p$", "cross-entropy / margin")
    for (name, (m, values)), colour in zip(data["lines"].items(), (GREY, BLUE, RED), strict=True):
        shown = np.array(values) > 0
        ends.plot(np.array(m)[shown], np.array(values)[shown], color=colour, lw=2, label=name)
        if not shown[-1]:
            ends.plot(np.array(m)[shown][-1], np.array(values)[shown][-1], "o", color=colour, ms=7)
    ends.set(yscale="log", ylim=(1e-60, 10))
    ends.legend(frameon=False, fontsize=9.5)
    label(ends, "where the gradient of cross-entropy ends", "margin", "first-order increase")
    for (name, shares), colour in zip(data["broken"].items(), (RED, BLUE, GREEN), strict=True):
        success.plot(data["scales"], shares, "o-", color=colour, lw=1.5, ms=5, label=name)
    gone, zero = data["turns"]
    for at in (gone, zero):
        success.axvline(at, color=INK, lw=0.8, ls=":")
    success.annotate("label's\nlogit gone", (gone / 1.15, 0.04), color=INK, fontsize=9.5, ha="right")
    success.annotate("gradient 0", (zero * 1.15, 0.3), color=INK, fontsize=9.5)
    success.set_xscale("log", base=2)
    success.set_ylim(0, None)
    success.legend(frameon=False, fontsize=10, loc=(0.68, 0.45))
    label(success, "FGSM on digits", "factor on the logits; dotted: at the median margin", "share of inputs broken")
    return figure
