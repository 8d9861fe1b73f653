"""When a loss gets to a threshold, beside when its tangent says it would."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.geometry import crossing, curvature, regions_on_segment
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.tasks.objectives import cross_entropy, margin
from holdfast.threats import L1, L2, Linf
from holdfast.train import Method, PGDTraining, Recipe, Standard, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TANGENT, TAYLOR, CURE = "tangents of convex functions", "Taylor's theorem", "Moosavi-Dezfooli et al., CVPR 2019"
LOGISTIC, PIECES = "closed forms of the logistic function", "a ReLU network is linear within a region"
REACHES = ((Linf, 4.0), (L2, 40.0), (L1, 400.0))
UNIT, BUDGET = Linf(1.0, box=None), Linf(0.1)
NEARLY = 0.999
KINDS: dict[str, Method] = {"standard": Standard(), "adversarial": PGDTraining(BUDGET, 5)}


def run(points: int = 200, examples: int = 600, epochs: int = 20, looked_at: int = 100) -> Finding:
    """Compare ``t_act`` with ``t_lin`` for losses that are convex, and others, of linear models and of networks."""
    batch = next(load_data("digits", split="test", examples=f"0:{looked_at}").batches(looked_at))
    x, y = batch.x.flatten(1).double(), batch.y
    claims, lines = _two_classes(points)
    late = _many_classes(x, y, examples)
    pieces = _pieces(_trained(Standard(), nn.ReLU, examples, epochs), x)
    ratios, creases = np.array(pieces["r"]), np.array(pieces["creases"])
    straight, bent = ratios[creases == 0], ratios[creases > 0]
    bends = {
        name: curvature(_trained(method, nn.Tanh, examples, epochs), x, y, UNIT).abs().sort().values.tolist()
        for name, method in KINDS.items()
    }
    flatter = np.mean(bends["adversarial"]) / np.mean(bends["standard"])
    claims += [
        between("logistic regression on digits, cross-entropy in linf, l2 and l1: largest r", TANGENT, late, high=1),
        near(
            "r = 1 - t_lin curvature / (2 slope) + rest: order of the rest in the threshold", TAYLOR, _order(x), 2, 0.05
        ),
        near(
            "margin of a ReLU network: |r - 1| on ways within one region", PIECES, np.abs(straight - 1).max(), 0, 1e-9
        ),
        between(
            "on ways across creases it comes early and late: share of r > 1",
            "neither convex nor concave",
            (bent > 1).mean(),
            0.05,
            0.95,
        ),
        between(
            "adversarial training bends the loss less: mean |curvature| over that of standard training",
            CURE,
            flatter,
            high=0.6,
        ),
    ]
    return Finding(tuple(claims), {"lines": lines, "pieces": pieces, "bends": bends})


def _two_classes(points: int) -> tuple[list[Claim], dict[str, Any]]:
    """A linear model, of which everything has a closed form: ``u`` is how far ahead the other class is."""
    model = dense(20, 2, gain=1.0).double()
    x = Draws(3, torch.arange(points)).normal(20)
    logits = model(x).detach()
    y = logits.argmax(1)
    weight = next(model.parameters()).detach()
    rate, u = (weight[1] - weight[0]).abs().sum(), margin(logits, y)
    p = u.sigmoid()
    found = {
        "cross-entropy": crossing(model, x, y, UNIT, 1.0, reach=20.0),
        "margin": crossing(model, x, y, UNIT, 0.5, reach=20.0, loss=margin),
        "error probability": crossing(model, x, y, UNIT, 0.5, reach=20.0, loss=_error),
        # The same loss from errors on, where it bends the other way.
        "beyond one half": crossing(model, x, 1 - y, UNIT, NEARLY, reach=20.0, loss=_error),
    }
    logs = torch.tensor([torch.e - 1, NEARLY / (1 - NEARLY)], dtype=x.dtype).log()
    exact = {
        "cross-entropy": (logs[0] - u) * p / (1 - functional.softplus(u)),
        "margin": torch.ones_like(u),
        "error probability": -u * p * (1 - p) / (0.5 - p),
        "beyond one half": (logs[1] + u) * p * (1 - p) / (NEARLY - 1 + p),
    }
    bend = curvature(model, x, y, UNIT) / (p * (1 - p) * rate**2)
    early, late = found["error probability"].r, found["beyond one half"].r
    ratios = {name: _worst(found[name].r / r) for name, r in exact.items()}
    claims = [
        *(
            near(f"two linear classes, {name}: r = t_act / t_lin over its closed form", LOGISTIC, ratio, 1, 1e-9)
            for name, ratio in ratios.items()
        ),
        near("two linear classes: curvature over p (1 - p) ||w||_1^2", LOGISTIC, _worst(bend), 1, 1e-9),
        between("the probability of error is convex below 1/2: largest r", TANGENT, float(early.max()), high=1),
        between("and concave above: smallest r", TANGENT, float(late.min()), low=1),
    ]
    return claims, {name: [each.t_lin.tolist(), each.t_act.tolist()] for name, each in found.items()}


def _error(logits: Tensor, y: Tensor) -> Tensor:
    """The probability that is not the label's, of two classes."""
    return logits.softmax(1).gather(1, 1 - y.unsqueeze(1)).squeeze(1)


def _worst(quotients: Tensor) -> float:
    return float(quotients[(quotients - 1).abs().argmax()])


def _many_classes(x: Tensor, y: Tensor, examples: int) -> float:
    """The largest ``r`` in three norms, of cross-entropy of ten linear classes that is to rise by 1."""
    batch = next(load_data("digits", split="train", examples=f"0:{examples}").batches(examples))
    learned = LogisticRegression(max_iter=1000).fit(batch.x.flatten(1).double().numpy(), batch.y.numpy())
    model = dense(64, 10).double()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), (learned.coef_, learned.intercept_), strict=True):
            parameter.copy_(torch.from_numpy(values))
    loss = _rise(model, x, y)
    found = [crossing(model, x, y, ball(1.0, box=None), 1.0, reach=reach, loss=loss) for ball, reach in REACHES]
    return max(float(each.r.max()) for each in found)


def _rise(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    start = cross_entropy(model(x).detach(), y)
    return lambda logits, y: cross_entropy(logits, y) - start


def _order(x: Tensor) -> float:
    """How fast the second-order prediction of ``r`` gets better as the threshold comes near."""
    model = dense(64, 24, 10, unit=nn.Tanh, gain=4.0).double()
    y = model(x).argmax(1)
    bend, loss = curvature(model, x, y, UNIT), _rise(model, x, y)
    rises = 0.02 / 2 ** np.arange(5)
    rests = []
    for rise in rises:
        found = crossing(model, x, y, UNIT, rise, reach=0.1, loss=loss)
        predicted = 1 - bend * found.t_lin**2 / (2 * rise)
        rests.append(float((found.r - predicted).abs().mean()))
    return float(np.polyfit(np.log(rises), np.log(rests), 1)[0])


def _trained(method: Method, unit: type[nn.Module], examples: int, epochs: int) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), *dense(64, 16, 16, 10, unit=unit, gain=2.0 if unit is nn.ReLU else 1.0))
    fit(
        network,
        load_data("digits", split="train", examples=f"0:{examples}"),
        method,
        BUDGET,
        Recipe(epochs, 50, lr=0.01),
    )
    return network.double()


def _pieces(network: nn.Sequential, x: Tensor) -> dict[str, list[float]]:
    """Until the runner-up is level with the class predicted: ``r``, and how many creases are crossed."""
    logits = network(x).detach()
    first, second = logits.topk(2, dim=1).indices.unbind(1)

    def ahead(logits: Tensor, y: Tensor) -> Tensor:
        return (logits.gather(1, second.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1))).squeeze(1)

    found = crossing(network, x, first, UNIT, 0.0, reach=1.0, steps=400, loss=ahead)
    inputs = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ahead(network(inputs), first).sum(), inputs)
    ends = x + found.t_act.unsqueeze(1) * UNIT.steepest(grad)
    reached = found.t_act.isfinite()
    return {
        "r": found.r[reached].tolist(),
        "creases": [
            len(regions_on_segment(network, *way).patterns) - 1 for way in zip(x[reached], ends[reached], strict=True)
        ],
    }


def draw(data: dict[str, Any]) -> "Figure":
    """Tangents' predictions and what came true, for linear models and across creases; curvature by training."""
    figure, (lines, pieces, bends) = canvas("What a loss does, and what its tangent promised", 5, 4.6, 4.2, height=4.8)
    for (name, (t_lin, t_act)), colour in zip(data["lines"].items(), (BLUE, INK, GREEN, RED), strict=True):
        lines.plot(t_lin, t_act, "o", color=colour, ms=4, alpha=0.7, mew=0, label=name)
    lines.plot([0.05, 2], [0.05, 2], color=GREY, lw=1, zorder=0)
    for text, place, colour in (("late", (0.3, 1.6), RED), ("on time", (0.78, 1.2), INK), ("early", (8, 1.1), BLUE)):
        lines.annotate(text, place, color=colour, ha="center", fontsize=11)
    lines.set(xscale="log", yscale="log", xlim=(0.05, 20), ylim=(0.05, 3))
    lines.legend(frameon=False, fontsize=9.5, loc="lower right")
    label(
        lines,
        "two linear classes: on the line, $r=1$",
        "$t_{lin}$, where the tangent is there",
        "$t_{act}$, where the loss is",
    )
    creases, ratios = np.array(data["pieces"]["creases"]), np.array(data["pieces"]["r"])
    pieces.axhline(1, color=INK, lw=0.8)
    shift = np.linspace(-0.25, 0.25, len(creases))
    pieces.plot(creases + shift, ratios, "o", color=PURPLE, ms=5, alpha=0.6, mew=0)
    pieces.set(xticks=np.unique(creases))
    label(pieces, "margin of a ReLU network on digits", "creases crossed on the way", "$r=t_{act}/t_{lin}$")
    for name, colour, place in (("standard", RED, (0.05, 0.8)), ("adversarial", BLUE, (0.5, 0.12))):
        values = data["bends"][name]
        bends.plot(np.linspace(0, 1, len(values)), values, color=colour, lw=2)
        bends.annotate(f"{name} training", place, xycoords="axes fraction", color=colour, fontsize=10.5)
    bends.set(yscale="log")
    label(bends, "cross-entropy of smooth networks on digits", "share of inputs", "|curvature| along the attack")
    return figure
