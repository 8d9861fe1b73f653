"""Votes under noise: what they prove where the truth is known, and beside attacks where it is not."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm
from torch import Tensor, nn
from torch.special import ndtri

from holdfast.attacks import PGD
from holdfast.certify import Smoothed
from holdfast.certify.smoothing.confidence import lower_bound, upper_bound
from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, INK, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import half_spaces
from holdfast.threats import L2
from holdfast.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

ALPHA = 0.001
# Odd, so that two classes never share the votes that choose one.
SELECTION = 99
DIMENSION = 4
BATCH = 256
COLOURS = {0.125: BLUE, 0.25: GREEN, 0.5: RED}
SIGMAS = tuple(COLOURS)
RADII = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
THEOREM, PROCEDURE = "Cohen et al., ICML 2019, theorem 1", "Cohen et al., ICML 2019, algorithm CERTIFY"
TRADE_OFF = "Cohen et al., ICML 2019"
BINOMIAL, SLOPE = "Clopper and Pearson 1934", "Salman et al., NeurIPS 2019: Phi^-1(vote) is 1/sigma-Lipschitz"


def run(
    points: int = 40,
    votes: int = 10_000,
    examples: int = 80,
    ballots: int = 500,
    learned_from: int = 1297,
    epochs: int = 50,
) -> Finding:
    """Smooth a plane, where endless votes would prove the distance, and networks for digits."""
    # In the middles of equal intervals, so that none is on the plane.
    distance = (np.arange(points) + 0.5) * 2 / points
    counts = (votes // 16, votes // 4, votes)
    radii, shares, largest = (
        np.array(part) for part in zip(*(_plane(s, distance, counts) for s in SIGMAS), strict=True)
    )
    networks = {sigma: _network(sigma, examples, ballots, f"0:{learned_from}", epochs) for sigma in SIGMAS}
    data = {
        "votes": votes,
        "ballots": ballots,
        "distance": distance.tolist(),
        "radii": radii[:, -1].tolist(),
        "shares": shares.tolist(),
        "networks": {f"{sigma:g}": networks[sigma] for sigma in SIGMAS},
    }
    return Finding((*_known(distance, counts, radii, shares, largest), *_attacked(networks)), data)


def _plane(sigma: float, distance: Array, counts: tuple[int, ...]) -> tuple[list[Array], Array, float]:
    """Smooth a linear classifier: radii at all distances by the number of votes, votes' shares, the largest radius."""
    w = Draws(0, torch.arange(1)).normal(DIMENSION)
    unit = w / w.norm()
    x = Draws(1, torch.arange(len(distance))).normal(DIMENSION)
    x += (torch.from_numpy(distance).unsqueeze(1) - x @ unit.T) * unit
    smoothed = Smoothed(half_spaces(w[0]), sigma, batch_size=BATCH)
    radii = [smoothed.certify_fixed(x, samples=n, selection=SELECTION, alpha=ALPHA).radius.numpy() for n in counts]
    far = smoothed.certify_fixed(x[:1] + 100 * unit, samples=counts[-1], alpha=ALPHA)
    share = smoothed.predict(x, samples=counts[-1]).votes[:, 1].double().numpy() / counts[-1]
    return radii, share, float(far.radius)


def _known(distance: Array, counts: tuple[int, ...], radii: Array, shares: Array, largest: Array) -> list[Claim]:
    """What is true of a plane, where the class's probability is ``Phi(distance / sigma)``."""
    sigma = np.array(SIGMAS)[:, None]
    moved = distance / sigma
    errors = [_error(radii[i, j], distance, s, n) for i, s in enumerate(SIGMAS) for j, n in enumerate(counts)]
    # Where a class leads and does not take nearly all, few votes already obey the law of many.
    split, fair = (moved > 0.6) & (moved < 1.4), moved < 2
    missing = [((distance - radii[:, j]) / sigma)[split].mean() for j in range(len(counts))]
    exponent = np.polyfit(np.log(counts), np.log(missing), 1)[0]
    slope = np.polyfit(moved[fair], norm.ppf(shares[fair]), 1)[0]
    most, unanimous = (largest / sigma[:, 0]).max(), norm.ppf(ALPHA ** (1 / counts[-1]))
    allowed = binom.ppf(0.9999, radii.size, ALPHA)
    return [
        near("unanimous votes prove Phi^-1(alpha^(1/n)) sigmas", PROCEDURE, most, unanimous, 1e-6),
        between(f"a plane: radii beyond its distance, of {radii.size}", THEOREM, (radii > distance).sum(), 0, allowed),
        near("radii less what the binomial law expects, in standard errors", BINOMIAL, float(np.mean(errors)), 0, 2),
        near("what votes leave unproved falls as n^-1/2: exponent", BINOMIAL, exponent, -0.5, 0.1),
        near("a move by sigma moves Phi^-1(vote) by 1", SLOPE, slope, 1, 4 / counts[-1] ** 0.5),
    ]


def _error(radius: Array, distance: Array, sigma: float, n: int) -> float:
    """How far the mean radius is from its mean over all outcomes of the vote, in standard errors."""
    p, k = norm.cdf(distance / sigma)[:, None], np.arange(1, n + 1)
    proved = np.maximum(sigma * norm.ppf(beta.ppf(ALPHA, k, n - k + 1)), 0)
    weight = binom.pmf(k, n, p) * binom.sf(SELECTION // 2, SELECTION, p)
    mean = weight @ proved
    return float((radius - mean).sum() / (weight @ proved**2 - mean**2).sum() ** 0.5)


class _Blurred(nn.Module):
    """Logarithms of a network's mean probabilities under fixed noise: the vote, made soft enough to climb."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        noisy = x.unsqueeze(1) + self.noise
        logits: Tensor = self.model(noisy.flatten(0, 1))
        votes: Tensor = logits.log_softmax(1).unflatten(0, noisy.shape[:2])
        return votes.logsumexp(1)


def _network(sigma: float, examples: int, ballots: int, split: str, epochs: int) -> dict[str, Any]:
    """Certify a network trained under the noise it is smoothed with, and attack the smoothed one."""
    settings = {"sigma": sigma, "epochs": epochs, "validation": 50}
    model = train("mlp", "digits", L2(sigma), method="gaussian", settings=settings, examples=split).model.cpu()
    batch = next(load_data("digits").batches(examples))
    index = torch.arange(examples)
    smoothed = Smoothed(model, sigma, batch_size=BATCH)
    result = smoothed.certify_fixed(batch.x, batch.y, samples=ballots, alpha=ALPHA)
    votes = smoothed.predict(batch.x, samples=ballots).votes
    leader = votes.argmax(1)
    had = votes[index, leader]
    noise = sigma * Draws(2, torch.arange(16)).normal(batch.x[0].numel()).to(batch.x.dtype)
    blurred = _Blurred(model, noise.reshape(-1, *batch.x.shape[1:]))
    attack = PGD(10, objective="margin", random_start=False)
    attacked, broken, fastest, moved, fell = [], 0, [], [], []
    for radius in RADII:
        x_adv = attack(blurred, batch.x, leader, threat=L2(radius, box=None)).x_adv
        # Noise of its own: what is proved speaks of the smoothed classifier, not of the draws that proved it.
        answer = smoothed.predict(x_adv, samples=ballots, alpha=ALPHA, index=examples + index)
        attacked.append(float((answer.votes.argmax(1) == batch.y).double().mean()))
        changed = (answer.prediction >= 0) & (answer.prediction != result.prediction)
        broken += int((changed & ~result.abstained & (result.radius >= radius)).sum())
        kept = answer.votes[index, leader]
        if radius:
            fall = ndtri(lower_bound(had, ballots, ALPHA)) - ndtri(upper_bound(kept, ballots, ALPHA))
            fastest.append(float(fall.max()) * sigma / radius)
        shared = (had < ballots) & (kept > 0)
        moved += [radius / sigma] * int(shared.sum())
        fell += (ndtri(had / ballots) - ndtri(kept / ballots))[shared].tolist()
    return {
        "radii": result.radius.where(result.correct, -1).tolist(),
        "certified": [result.certified_accuracy(radius) for radius in RADII],
        "attacked": attacked,
        "broken": broken,
        "fastest": max(fastest),
        "moved": moved,
        "fell": fell,
    }


def _attacked(networks: dict[float, dict[str, Any]]) -> list[Claim]:
    """What holds of any network, and what sigma trades for what."""
    certified, attacked = (np.array([networks[s][key] for s in SIGMAS]) for key in ("certified", "attacked"))
    fastest = max(network["fastest"] for network in networks.values())
    broken = sum(network["broken"] for network in networks.values())
    ahead = {radius: certified[0, RADII.index(radius)] - certified[-1, RADII.index(radius)] for radius in (0.125, 0.5)}
    lowest, highest = f"{SIGMAS[0]:g}", f"{SIGMAS[-1]:g}"
    return [
        between("digits: fastest fall of Phi^-1(vote) for a move by sigma", SLOPE, fastest, high=1),
        between("answers changed by an attack within their radius", THEOREM, broken, 0, 2),
        between(
            "certified accuracy less that under attack, the largest of all radii",
            THEOREM,
            (certified - attacked).max(),
            high=0,
        ),
        between(
            f"certified accuracy at radius 0.125: sigma {lowest} less sigma {highest}", TRADE_OFF, ahead[0.125], 0.02
        ),
        between(
            f"certified accuracy at radius 0.5: sigma {lowest} less sigma {highest}", TRADE_OFF, ahead[0.5], high=-0.05
        ),
    ]


def draw(data: dict[str, Any]) -> "Figure":
    """Proved radii beside the truth, how votes fall as the input moves, and certificates beside attacks."""
    figure, (plane, moves, curves) = canvas("Votes under noise prove a radius that no attack enters", 4.7, 4.5, 4.9)
    distance, radius = np.array(data["distance"]), np.linspace(0, 1, 201)
    plane.plot(distance, distance, "-", color=INK, lw=1)
    plane.annotate("exact", (1.72, 1.8), fontsize=10, color=INK, ha="right")
    moves.plot([0, 4.2], [0, 4.2], "-", color=INK, lw=1)
    for (sigma, colour), proved, share in zip(COLOURS.items(), data["radii"], np.array(data["shares"]), strict=True):
        network = data["networks"][f"{sigma:g}"]
        plane.plot(distance, proved, "o", ms=3.5, color=colour)
        plane.annotate(f"$\\sigma$ = {sigma:g}", (2, max(proved) - 0.26), color=colour, ha="right")
        moves.plot(network["moved"], network["fell"], "_", ms=11, color=colour, alpha=0.3)
        moves.plot(distance[share < 1] / sigma, norm.ppf(share[share < 1]), "o", ms=3.5, color=colour)
        certified = (np.array(network["radii"]) >= radius[:, None]).mean(1)
        curves.plot(RADII, network["attacked"], "--", color=colour, lw=1.5)
        curves.plot(radius, certified, "-", color=colour, lw=2, label=f"$\\sigma$ = {sigma:g}")
    moves.annotate("a plane: 1 a sigma,\nas fast as can be", (1.95, 3.1), fontsize=10, color=INK, ha="right")
    moves.annotate("digits,\nunder attack", (2.5, 0.25), fontsize=10, color=INK)
    moves.set(xlim=(-0.1, 4.4), ylim=(-0.2, 4.4))
    curves.plot([], [], "--", color=INK, lw=1.5, label="under attack")
    curves.plot([], [], "-", color=INK, lw=2, label="certified")
    curves.legend(frameon=False, fontsize=9.5)
    curves.set_ylim(-0.03, 1.03)
    label(plane, f"a plane, {data['votes']:,} votes", "distance from the plane", "certified radius")
    label(moves, "how fast a vote can change", "moved, in $\\sigma$", "fall of $\\Phi^{-1}$(share of votes)")
    label(curves, f"digits, {data['ballots']:,} votes", "radius in L2", "accuracy")
    return figure
