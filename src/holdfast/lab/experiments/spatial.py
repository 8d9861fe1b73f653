"""Turned and moved digits: who withstands them, which search finds what breaks, and what can be proved."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from holdfast.attacks import PGD, Grid, WorstOfK
from holdfast.certify import certify
from holdfast.data import Batch, load_data
from holdfast.engine import Attack, craft
from holdfast.lab.canvas import BLUE, GOLD, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.tasks.objectives import margin
from holdfast.threats import Spatial
from holdfast.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Turns and moves as in the paper, a tenth of the side.
MOVES = Spatial(rotation=30.0, translation=0.8)
ENGSTROM, BALUNOVIC = "Engstrom et al., ICML 2019", "Balunovic et al., NeurIPS 2019"
SEARCHES: dict[str, tuple[str, str, Attack | None]] = {
    "clean": (GREY, "as it is", None),
    "one": (BLUE, "one random move", WorstOfK(1)),
    "ten": (GREEN, "worst of 10", WorstOfK(10)),
    "pgd": (PURPLE, "PGD, 50 steps, one start", PGD(50)),
    "grid": (RED, "grid of 31 x 5 x 5", Grid()),
}
NETWORKS = {
    "ordinary": ("standard", {}),
    "one random move": ("worst-of-k", {"k": 1}),
    "worst of 10": ("worst-of-k", {}),
}
ANGLES, SHIFTS = np.linspace(-30, 30, 41), np.linspace(-0.8, 0.8, 21)


def run(epochs: int = 30, images: int = 200, proved: int = 40, angles: int = 2001) -> Finding:
    """Train on digits as they are, on moved ones, and on the worst of ten moves; search each for what breaks it."""
    batch = next(load_data("digits").batches(images))
    trained = {name: _trained(method, settings, epochs) for name, (method, settings) in NETWORKS.items()}
    found = {
        name: {key: _standing(attack, network, batch) for key, (_, _, attack) in SEARCHES.items()}
        for name, network in trained.items()
    }
    last = trained["worst of 10"]
    some = Batch(batch.index[:proved], batch.x[:proved], batch.y[:proved])
    brackets = {str(limit): _bracket(last, some, Spatial(rotation=limit), angles) for limit in (15.0, 30.0, 45.0, 60.0)}
    return Finding(
        tuple(_claims(found, brackets)),
        {"found": found, "brackets": brackets, "landscape": _landscape(last, batch)},
    )


def _claims(found: dict[str, dict[str, float]], brackets: dict[str, dict[str, float]]) -> list[Claim]:
    ordinary, augmented, worst = found.values()
    false = sum(one["false"] for one in brackets.values())
    gaps = [one["standing"] - one["proved"] for one in brackets.values()]

    def claim(text: str, measured: float, low: float, high: float = 1.0) -> Claim:
        return between(text, ENGSTROM, measured, low, high)

    return [
        claim("accuracy on digits as they are, least of the three networks", _least(found, "clean"), 0.9),
        claim("ordinary training: accuracy under the grid", ordinary["grid"], 0, 0.35),
        claim("gained under the grid by training on random moves", augmented["grid"] - ordinary["grid"], 0.1),
        claim("and further by training on the worst of 10", worst["grid"] - augmented["grid"], 0.03),
        claim("what PGD from one start hides: trained on random moves", augmented["pgd"] - augmented["grid"], 0.05),
        claim("what PGD from one start hides: trained on the worst of 10", worst["pgd"] - worst["grid"], 0.03),
        claim("what the worst of 10 random moves hides: the same network", worst["ten"] - worst["grid"], 0.02),
        near("images proved at some limit that one of many angles breaks", BALUNOVIC, false, 0, 0),
        between("turns alone: standing less proved, most at any limit", BALUNOVIC, max(gaps), 0, 0.05),
    ]


def _least(found: dict[str, dict[str, float]], key: str) -> float:
    return min(one[key] for one in found.values())


def _trained(method: str, settings: dict[str, Any], epochs: int) -> nn.Module:
    recipe = {"epochs": epochs, "batch_size": 50, "lr": 4e-3, "validation": 50, "guard": False}
    return train(_network(), "digits", MOVES, method=method, settings={**recipe, **settings}).model.cpu()


def _network() -> nn.Module:
    """Two convolutions, small enough to train in seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def _standing(attack: Attack | None, network: nn.Module, batch: Batch) -> float:
    if attack is None:
        with torch.no_grad():
            return float((network(batch.x).argmax(1) == batch.y).double().mean())
    return 1 - float(craft(attack, network, batch.x, batch.y, threat=MOVES).success.double().mean())


def _bracket(network: nn.Module, batch: Batch, threat: Spatial, angles: int) -> dict[str, float]:
    """Shares of images proved, and standing against many angles; how many are both proved and broken."""
    verdicts = [certificate.verdict for certificate in certify(network, batch.x, batch.y, threat)]
    grid = Grid(rotations=angles, translations=1, scales=1)
    broken = craft(grid, network, batch.x, batch.y, threat=threat).success.tolist()
    proved = [verdict == "certified" for verdict in verdicts]
    return {
        "proved": float(np.mean(proved)),
        "standing": 1 - float(np.mean([b or v == "broken" for b, v in zip(broken, verdicts, strict=True)])),
        "false": float(sum(p and b for p, b in zip(proved, broken, strict=True))),
    }


def _landscape(network: nn.Module, batch: Batch) -> list[list[float]]:
    """Margins over angles and moves to the right, of the image that is right as it is and has the highest of them."""
    choices = torch.tensor([[angle, shift, 0, 0] for shift in SHIFTS for angle in ANGLES], dtype=torch.float32)
    with torch.no_grad():
        worst = []
        for x, y in zip(batch.x[:40], batch.y[:40], strict=True):
            values = margin(network(MOVES.apply(x.expand(len(choices), *x.shape), choices)), y.expand(len(choices)))
            right = float(margin(network(x.unsqueeze(0)), y.unsqueeze(0))) < 0
            worst.append((right, float(values.max()), values))
    values = max(worst, key=lambda one: one[:2])[2].reshape(len(SHIFTS), len(ANGLES))
    return [[round(value, 3) for value in row] for row in values.tolist()]


def draw(data: dict[str, Any]) -> "Figure":
    """Accuracies by network and search, one image's margins over its moves, and what is proved of turns."""
    figure, (bars, map_, proofs) = canvas("Turned and moved digits: the search decides what one sees", 5.6, 4.2, 3.6)
    width = 0.16
    for place, (key, (colour, text, _)) in enumerate(SEARCHES.items()):
        heights = [one[key] for one in data["found"].values()]
        bars.bar(np.arange(3) + (place - 2) * width, heights, width, color=colour, label=text)
    bars.set_xticks(range(3), data["found"])
    bars.set(ylim=(0, 1.02))
    label(bars, "turns of 30 degrees, moves of 0.8 pixels", "trained on", "accuracy, digits")
    bars.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    margins = np.array(data["landscape"])
    reach = float(np.abs(margins).max())
    extent = (ANGLES[0], ANGLES[-1], SHIFTS[0], SHIFTS[-1])
    shown = map_.imshow(margins, origin="lower", extent=extent, aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach)
    map_.contour(ANGLES, SHIFTS, margins, levels=[0], colors=INK, linewidths=1.2)
    figure.colorbar(shown, ax=map_, label="margin: wrong above 0")
    label(map_, "one image, trained on the worst of 10", "angle, degrees", "move to the right, pixels")
    limits = [float(limit) for limit in data["brackets"]]
    for key, style, colour, text in (
        ("standing", "o-", RED, "withstand many angles"),
        ("proved", "s--", GOLD, "proved"),
    ):
        proofs.plot(limits, [one[key] for one in data["brackets"].values()], style, color=colour, lw=1.6, label=text)
    proofs.set(xlim=(0, None), ylim=(0, 1.02))
    label(proofs, "turns alone, worst of 10", "limit, degrees", "share of the images")
    proofs.legend(fontsize=9, frameon=False, loc="lower left")
    return figure
