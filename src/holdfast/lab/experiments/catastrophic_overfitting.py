"""Training on single steps ends in a network that withstands single steps and nothing else, unless a guard looks."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from holdfast.attacks import APGD
from holdfast.audit import audit
from holdfast.data import Batch, load_data
from holdfast.engine import craft
from holdfast.lab.canvas import BLUE, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.threats import Linf
from holdfast.train import FGSMTraining, Progress, Recipe, evaluate, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPS = 0.28
# Updates from one look at the test images to the next.
EVERY = 40
STEPS = APGD(10, objective="dlr")
CURVES = {"single": (BLUE, "one step"), "multi": (RED, "ten steps"), "alignment": (PURPLE, "gradient alignment")}
WONG, ALIGNMENT = "Wong et al., ICLR 2020", "Andriushchenko and Flammarion, NeurIPS 2020"
LINEAR, GUARD = "Goodfellow et al., ICLR 2015", "the guard of holdfast.train"


def run(seeds: int = 2, epochs: int = 36, images: int = 100) -> Finding:
    """Train with FGSM as it is, and once more with the guard that holdfast posts by default."""
    batch = next(load_data("digits").batches(images))
    bare = [_trained(batch, epochs, seed, guard=False) for seed in range(seeds)]
    mended = _trained(batch, epochs, 0, guard=True)
    end = {key: float(np.mean([one[key][-1] for one in bare])) for key in CURVES}
    withstood = [one["audited"] for one in bare]
    hidden = [one["single"][-1] - one["audited"] for one in bare]
    straight = [max(one["alignment"]) for one in bare]
    claims = (
        *_linear(),
        between("FGSM training: accuracy under one step, at the end", WONG, end["single"], 0.55, 1),
        between("FGSM training: accuracy under an audit, at the end", WONG, float(np.mean(withstood)), 0, 0.2),
        between("what one step hides: the first less the second, least of all runs", WONG, min(hidden), 0.35),
        between("gradient alignment at its highest, least of all runs", ALIGNMENT, min(straight), 0.85, 1),
        between("gradient alignment at the end", ALIGNMENT, end["alignment"], 0, 0.45),
        between("collapses that the guard notices", GUARD, len(mended["events"]), 1, 5),
        between("with the guard: accuracy under an audit", GUARD, mended["audited"], 0.25, 1),
        between(
            "accuracy under an audit, gained by the guard, same seed", GUARD, mended["audited"] - withstood[0], 0.15
        ),
        between(
            "what one step hides, reduced by the guard, same seed",
            GUARD,
            hidden[0] - mended["single"][-1] + mended["audited"],
            0.15,
        ),
    )
    return Finding(claims, {"bare": bare, "mended": mended})


def _linear() -> list[Claim]:
    """What cannot overfit so: two classes told apart linearly have one gradient everywhere."""
    batch = next(load_data("digits").batches(500))
    x, y = batch.x[batch.y < 2], batch.y[batch.y < 2]
    network = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 2))
    means = torch.stack([x[y == k].mean(0).flatten() for k in (0, 1)])
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (means, -means.square().sum(1) / 2), strict=True):
            parameter.copy_(value)
    found = evaluate(network, Linf(EPS), x, y, seed=0)
    return [
        near("a linear model of two classes: gradient alignment", ALIGNMENT, found.alignment, 1, 1e-5),
        near("the linear model: accuracy under one step less that under PGD", LINEAR, found.gap, 0, 0),
    ]


def _trained(batch: Batch, epochs: int, seed: int, *, guard: bool) -> dict[str, Any]:
    """Train, look at the network again and again, and audit what has become of it."""
    threat, network = Linf(EPS), _network(seed)
    recipe = Recipe(epochs, batch_size=64, optimizer="sgd", lr=0.1, warmup=0.3, validation=50, guard=guard)
    found: dict[str, Any] = {key: [] for key in ("updates", *CURVES, "events")}
    made = 0

    def look(progress: Progress) -> None:
        nonlocal made
        made += 1
        if progress.event is not None and progress.event.back_to is not None:
            found["events"].append({"updates": made, "method": progress.event.method})
        over = progress.step == progress.steps
        if made % EVERY == 0 or over:
            seen = evaluate(network, threat, batch.x, batch.y, seed=0, steps=1)
            # On the margin: a bent loss misleads the cross-entropy of PGD for longer.
            broken = craft(STEPS, network, batch.x, batch.y, threat=threat, batch_size=len(batch.y)).success
            for key, value in zip(
                CURVES, (seen.single_step, 1 - float(broken.double().mean()), seen.alignment), strict=True
            ):
                found[key].append(value)
            found["updates"].append(made)
        if over:
            # Here and now: training leaves the network in its best state, and this is about the last.
            _, found["audited"] = audit(network, (batch.x, batch.y), threat, protocol="quick").bracket

    fit(network, load_data("digits", split="train"), FGSMTraining(threat), threat, recipe, seed=seed, on_progress=look)
    return found


def _network(seed: int) -> nn.Module:
    """Three convolutions: deep enough to bend the loss next to every image, small enough to train in seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


def draw(data: dict[str, Any]) -> "Figure":
    """Accuracies and alignment as training goes on, and the same run with the guard."""
    figure, (bare, alignment, mended) = canvas(
        "One step is withstood, many steps are not: the collapse, and the rescue", 4.3, 3.4, 5.2
    )
    for one in data["bare"]:
        for panel, key in ((bare, "single"), (bare, "multi"), (alignment, "alignment")):
            panel.plot(one["updates"], one[key], "-", color=CURVES[key][0], lw=1.6)
        _audited(bare, one)
    for key in ("single", "multi"):
        colour, text = CURVES[key]
        mended.plot(data["mended"]["updates"], data["mended"][key], "-", color=colour, lw=1.6, label=text)
    _audited(mended, data["mended"])
    mended.plot([], [], "D", color=INK, ms=7, label="audited, at the end")
    end = data["mended"]["updates"][-1]
    for number, event in enumerate(data["mended"]["events"]):
        mended.axvline(event["updates"], color=GREY, lw=1, ls="--")
        # One below the other, since they may follow each other soon, and on the side where there is room.
        place, side = (event["updates"], 1.01 - 0.06 * number), "right" if 2 * event["updates"] > end else "left"
        mended.annotate(f" back, then {event['method']} ", place, color=INK, fontsize=9, va="top", ha=side)
    for panel in (bare, alignment, mended):
        panel.set(xlim=(0, None), ylim=(0, 1.02))
    label(bare, f"FGSM training, $\\epsilon$ = {EPS:g}; a line a seed", "update", "accuracy, digits")
    label(alignment, "gradient alignment", "update", "mean cosine")
    label(mended, "the first of them with the guard", "update, undone ones too", "accuracy, digits")
    figure.legend(*mended.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def _audited(panel: "Axes", one: dict[str, Any]) -> None:
    panel.plot(one["updates"][-1], one["audited"], "D", color=INK, ms=7, clip_on=False)
