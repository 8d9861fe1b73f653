"""Which way of playing finds the equilibrium."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdfast.games import (
    AlternatingBestResponse,
    AlternatingGradient,
    Consensus,
    Extragradient,
    OptimisticGradient,
    Quadratic,
    SimultaneousBestResponse,
    SimultaneousGradient,
    Solver,
    Stepped,
    radius,
    search_lr,
    trajectory,
    transition,
    verdict,
)
from holdfast.lab.canvas import BLUE, GOLD, GREEN, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOLVERS: dict[str, Callable[[float], Stepped]] = {
    "simultaneous": SimultaneousGradient,
    "alternating": AlternatingGradient,
    "extragradient": Extragradient,
    "optimistic": OptimisticGradient,
    "consensus": partial(Consensus, weight=0.5),
}
COLOURS = dict(zip(SOLVERS, (RED, GOLD, BLUE, GREEN, PURPLE), strict=True))
BILINEAR = Quadratic()
START = (0.8, 0.6)
GAMES = [Quadratic(a, b) for a in (0.0, 0.25, 1.0, 3.0) for b in (0.0, 0.5, 2.0)]
KORPELEVICH, DASKALAKIS = "Korpelevich 1976", "Daskalakis et al., ICLR 2018"
NUMERICS, MOMENTUM = "Mescheder et al., NeurIPS 2017", "Gidel et al., AISTATS 2019"


def run(lr: float = 0.15, steps: int = 300, curvatures: int = 9, games: int = 12) -> Finding:
    """Play the bilinear game with every solver, and best responses for a grid of curvatures."""
    paths = {name: _path(solver(lr), BILINEAR, steps) for name, solver in SOLVERS.items()}
    lengths = {name: np.linalg.norm(path, axis=1) for name, path in paths.items()}
    claims = [
        *_bilinear(lengths, lr),
        *_responses(curvatures),
        *_steps(GAMES[:games]),
    ]
    rates = np.geomspace(0.01, 3, 120)
    data = {
        "lr": lr,
        "paths": {name: path.tolist() for name, path in paths.items()},
        "rates": rates.tolist(),
        "radii": {name: [radius(make(h), BILINEAR) for h in rates] for name, make in SOLVERS.items()},
        "largest": {name: make(1.0).largest_lr(BILINEAR) for name, make in SOLVERS.items()},
        "responses": {
            f"{a:g}, {b:g}": _path(AlternatingBestResponse(), Quadratic(a, b), 12).tolist()
            for a, b in ((0.8, 1.0), (1.0, 1.0), (1.25, 1.0))
        },
    }
    return Finding(tuple(claims), data)


def _bilinear(lengths: dict[str, Any], lr: float) -> list[Claim]:
    growth = lengths["simultaneous"][1:] / lengths["simultaneous"][:-1]
    shrinkage = (lengths["extragradient"][1:] / lengths["extragradient"][:-1]) ** 2
    factor, squared = math.sqrt(1 + lr**2), (1 - lr**2) ** 2 + lr**2
    orbit = lengths["alternating"]
    return [
        near("theta delta: simultaneous steps grow by sqrt(1 + lr^2)", NUMERICS, _worst(growth, factor), factor, 1e-12),
        near(
            "extragradient: |z|^2 shrinks by (1 - lr^2)^2 + lr^2",
            KORPELEVICH,
            _worst(shrinkage, squared),
            squared,
            1e-12,
        ),
        between("alternating: the orbit stays bounded, max / min length", MOMENTUM, orbit.max() / orbit.min(), 1, 1.5),
        between("optimistic: length at the end", DASKALAKIS, lengths["optimistic"][-1], 0, 0.1),
        between("consensus: length at the end", NUMERICS, lengths["consensus"][-1], 0, 1e-3),
    ]


def _responses(curvatures: int) -> list[Claim]:
    values = np.geomspace(0.25, 4, curvatures)
    games = [Quadratic(a, b) for a in values for b in values]
    wrong = {"a b": 0, "a step": 0, "play": 0}
    for solver in (SimultaneousBestResponse(), AlternatingBestResponse()):
        for game in games:
            said, product = verdict(solver, game), game.a * game.b
            measured = float(np.abs(np.linalg.eigvals(transition(solver, game))).max())
            lengths = np.linalg.norm(_path(solver, game, 40), axis=1)
            wrong["a b"] += said != _turning(product)
            wrong["a step"] += said != _turning(1 / measured)
            wrong["play"] += said != _turning(lengths[20] / lengths[40])
    texts = {
        "a b": "best responses converge where a b > 1, cycle at 1, diverge below: verdicts otherwise",
        "a step": "verdicts unlike the eigenvalues of a measured step",
        "play": "verdicts unlike 40 rounds of play",
    }
    return [near(text, "spectral radius 1 / sqrt(a b)", wrong[key], 0, 0) for key, text in texts.items()]


def _turning(quotient: float) -> str:
    return "cycles" if abs(quotient - 1) < 1e-6 else "converges" if quotient > 1 else "diverges"


def _steps(games: list[Quadratic]) -> list[Claim]:
    apart = 0.0
    for make in SOLVERS.values():
        for game in games:
            formula, found = make(1.0).largest_lr(game), search_lr(make, game)
            apart = max(apart, 0.0 if found == formula else abs(found - formula) / max(formula, 1e-3))
    largest = {name: search_lr(make, BILINEAR) for name, make in SOLVERS.items()}
    return [
        near("theta delta: no simultaneous step size converges", NUMERICS, largest["simultaneous"], 0, 0),
        near("theta delta: extragradient converges below lr = 1", KORPELEVICH, largest["extragradient"], 1, 1e-9),
        near("theta delta: optimistic below lr = 1/sqrt(3)", "Schur-Cohn", largest["optimistic"], 3**-0.5, 1e-9),
        near(f"largest step sizes, searched and by formula, {len(games)} games", "Schur-Cohn", apart, 0, 1e-6),
    ]


def _worst(values: Any, expected: float) -> float:
    return float(values[np.abs(values - expected).argmax()])


def _path(solver: Solver, game: Quadratic, steps: int) -> Any:
    theta, delta = (torch.tensor([value], dtype=torch.float64) for value in START)
    states = trajectory(solver, game.game, (theta,), (delta,), steps)
    return np.array([[state.first[0].item(), state.second[0].item()] for state in states])


def draw(data: dict[str, Any]) -> "Figure":
    """Paths on the bilinear game, spectral radii over the step size, and best responses."""
    figure, (plane, radii, responses) = canvas("Who finds the equilibrium?", 4.6, 4.6, 4.6, height=4.7)
    for name, path in data["paths"].items():
        x, y = np.array(path).T
        plane.plot(x, y, "-", color=COLOURS[name], lw=1.3, label=name)
    plane.plot(0, 0, "+", color=INK, ms=10, mew=1.5)
    plane.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    label(plane, f"$\\theta\\delta$, step size {data['lr']:g}", "$\\theta$", "$\\delta$")
    for name, values in data["radii"].items():
        radii.plot(data["rates"], values, color=COLOURS[name], lw=1.8, label=name)
        if data["largest"][name] > 0:
            radii.plot(data["largest"][name], 1, "o", color=COLOURS[name], ms=6)
    radii.axhline(1, color=INK, lw=0.8)
    radii.set(xscale="log", ylim=(0.6, 1.6))
    label(radii, "spectral radius of a step; dots: the largest step size", "step size", "radius")
    for (name, path), colour in zip(data["responses"].items(), (RED, GOLD, BLUE), strict=True):
        x, _ = np.array(path).T
        responses.plot(range(len(x)), x, ".-", color=colour, lw=1.2, label=f"$a, b$ = {name}")
    responses.legend(frameon=False, fontsize=9)
    label(responses, "alternating best response", "round", "$\\theta$")
    figure.legend(*plane.get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False, fontsize=10)
    return figure
