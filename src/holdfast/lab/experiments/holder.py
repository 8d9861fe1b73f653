"""Hölder's inequality is attained by one step, and by no random one."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, INK, PURPLE, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.threats import L1, L2, Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"linf": (Linf, 1), "l2": (L2, 2), "l1": (L1, np.inf)}
HOLDER = "Hölder's inequality, equality case"
CHUNK = 10_000


def run(dimension: int = 50, eps: float = 0.1, samples: int = 100_000) -> Finding:
    """Measure the step that the threat calls steepest, and many random ones, against ``eps ||g||_q``."""
    g = Draws(0, torch.arange(1)).normal(dimension)
    claims: list[Claim] = []
    panels = {}
    for name, (norm, dual) in NORMS.items():
        threat, most = norm(eps, box=None), eps * float(np.linalg.norm(g[0], dual))
        z = threat.maximize(g, torch.zeros_like(g))
        claims += [
            near(f"{name}: the steepest step gains eps ||g||_q", HOLDER, float((g * z).sum()), most, 1e-12),
            near(f"{name}: and its length is eps", HOLDER, float(threat.length(z)), eps, 1e-12),
        ]
        shares = []
        for start in range(0, samples, CHUNK):
            index = torch.arange(start, min(start + CHUNK, samples))
            random = threat.sample(torch.zeros(len(index), dimension, dtype=g.dtype), Draws(1, index))
            shares.append((random @ g[0]) / most)
        share = torch.cat(shares)
        best = float(share.max())
        claims.append(
            between(f"{name}: the best of {samples:,} random steps gains at most 0.7 of it", HOLDER, best, 0.0, 0.7)
        )
        if name == "l2":
            low, high = _best_of(samples, dimension)
            text = "l2: that best is where the largest of so many beta variables lies (99.8 %)"
            claims.append(between(text, "uniform law in a ball: cos^2 ~ Beta(1/2, (d+1)/2)", best, low, high))
        counts, edges = np.histogram(share.numpy(), bins=80, range=(-1, 1))
        panels[name] = {"counts": counts.tolist(), "edges": edges.tolist(), "best": best}
    return Finding(tuple(claims), {"dimension": dimension, "eps": eps, "samples": samples, "norms": panels})


def _best_of(samples: int, dimension: int) -> tuple[float, float]:
    # A coordinate of a uniform point of the unit ball, squared, has this law; half of them are negative.
    law = stats.beta(0.5, (dimension + 1) / 2)
    low, high = (law.isf(2 * -np.expm1(np.log(level) / samples)) ** 0.5 for level in (0.001, 0.999))
    return float(low), float(high)


def draw(data: dict[str, Any]) -> "Figure":
    """Histograms of what random steps gain."""
    title = f"One step attains what {data['samples']:,} random steps of the same size come nowhere near"
    figure, axes = canvas(title, 4.2, 4.2, 4.2, height=3.9)
    duals = {"linf": "$\\epsilon\\|g\\|_1$", "l2": "$\\epsilon\\|g\\|_2$", "l1": "$\\epsilon\\|g\\|_\\infty$"}
    for panel, (name, found), colour in zip(axes, data["norms"].items(), (BLUE, GREEN, PURPLE), strict=True):
        panel.stairs(found["counts"], found["edges"], fill=True, color=colour, alpha=0.75)
        panel.set_yscale("log")
        panel.set_ylim(0.7, data["samples"])
        panel.axvline(1, color=INK, lw=2)
        panel.annotate("the steepest\nstep", (1, 300), (0.95, 300), ha="right", fontsize=10, color=INK)
        panel.annotate(
            f"best random: {found['best']:.2f}",
            (found["best"], 1),
            (0.95, 30),
            fontsize=10,
            color=colour,
            ha="right",
            arrowprops={"arrowstyle": "-", "color": colour},
        )
        panel.set_xlim(-1, 1.05)
        label(panel, f"{name}, {data['dimension']} dimensions", f"gain, in units of {duals[name]}", "random steps")
    return figure
