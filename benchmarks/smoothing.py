"""The sequential procedure of randomised smoothing against the fixed one, replayed on published certification logs.

A log tells how large every example's success probability is; given that, both procedures see nothing but binomial
counts, which are drawn here instead of asking a network. What a log cannot tell is assumed, in several ways. See
README.md beside this file.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import machine
from numpy.typing import NDArray
from scipy.special import betainc
from scipy.stats import binom
from torch import Tensor, nn

from holdfast.certify.smoothing.log import SmoothingLog, read_log
from holdfast.certify.smoothing.noise import Gaussian
from holdfast.certify.smoothing.sequential import plan
from holdfast.certify.smoothing.smoothing import Smoothed

HERE = Path(__file__).resolve().parent

SAMPLES, SELECTION, ALPHA, STEP = 100_000, 100, 0.001, 0.25
SIGMAS = ("0.12", "0.25", "0.50", "1.00")

# Wanted of the sequential procedure: samples, of the fixed one's, and points of certified accuracy lost.
MEAN, WORST, LOST = 1 / 12, 1 / 6, 0.2


@dataclass(frozen=True)
class Assumption:
    """How to read a probability from a log."""

    name: str
    inverted: bool
    """Whether probabilities are shares of votes, found back from the bounds, rather than the bounds themselves."""
    halves: bool
    """Whether all abstentions have probability 1/2, the hardest case, rather than going on below 1/2 as above it."""


ASSUMPTIONS = (
    Assumption("p is the bound that was logged", inverted=False, halves=False),
    Assumption("p is the share of votes behind the bound", inverted=True, halves=False),
    Assumption("p is the bound, and exactly 1/2 for every abstention", inverted=False, halves=True),
)


def shares(bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares of votes from which the fixed procedure gets its bounds, by bisection."""
    low, high = np.zeros_like(bound), np.full_like(bound, SAMPLES)
    for _ in range(60):
        middle = (low + high) / 2
        above = betainc(middle, SAMPLES - middle + 1, bound) < ALPHA
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high / SAMPLES


def probabilities(log: SmoothingLog, noise: Gaussian, assumption: Assumption) -> NDArray[np.float64]:
    bound = torch.special.ndtr(log.radius / noise.sigma).numpy()
    p = shares(bound) if assumption.inverted else bound
    abstained = (log.predict < 0).numpy()
    count = int(abstained.sum())
    p[abstained] = 0.5
    if not assumption.halves:
        density = ((p[~abstained] > 0.5) & (p[~abstained] < 0.6)).sum() / 0.1
        p[abstained] = np.maximum(0.5 - np.arange(count) / density, 0.1)
    return p


@dataclass(frozen=True)
class Replay:
    """Samples of an example on average, certified accuracies in percent at each radius, the share of false ones."""

    samples: float
    accuracy: Tensor
    false: float


def fixed(p: NDArray[np.float64], correct: NDArray[np.bool_], thresholds: tuple[float, ...]) -> Tensor:
    """Certified accuracies in percent of the fixed procedure, their exact expectations."""
    counts = np.arange(SAMPLES + 1)
    rows = []
    for threshold in thresholds:
        proved = betainc(np.maximum(counts, 1), SAMPLES - counts + 1, threshold) <= ALPHA
        needed = int(np.argmax(proved & (counts > 0)))
        rows.append(100 * float((binom.sf(needed - 1, SAMPLES, p) * correct).mean()))
    return torch.tensor(rows)


def sequential(
    p: NDArray[np.float64], correct: NDArray[np.bool_], thresholds: tuple[float, ...], runs: int, seed: int
) -> Replay:
    rng = np.random.default_rng(seed)
    steps = plan(thresholds, SAMPLES, ALPHA)
    p, correct = np.tile(p, runs), np.tile(correct, runs)
    level, successes, used = torch.zeros(3, len(p), dtype=torch.int64)
    open_, start = torch.arange(len(p)), 0
    for look, stop in enumerate(steps.looks):
        successes[open_] += torch.from_numpy(rng.binomial(stop - start, p[open_.numpy()]))
        used[open_] = stop
        level[open_], going = steps.judge(look, level[open_], successes[open_])
        open_, start = open_[going], stop
    accuracy = torch.tensor([100 * ((level > j).numpy() * correct).mean() for j in range(len(thresholds))])
    false = (torch.tensor((0.0, *thresholds))[level].numpy() >= p) & (level > 0).numpy()
    return Replay(float(used.double().mean()) + SELECTION, accuracy, float(false.mean()))


def compare(folder: Path, assumption: Assumption, runs: int, seed: int) -> bool:
    """Print one table; whether all that is wanted holds."""
    print(f"\n{assumption.name}")
    print(
        f"  {'sigma':>5}{'samples':>10}{'of fixed':>10}{'false':>10}{'lost':>7}  certified accuracy, fixed (difference)"
    )
    ratios, lost = [], []
    for sigma in SIGMAS:
        noise = Gaussian(float(sigma))
        log = read_log(folder / f"cohen-resnet110-sigma{sigma}.tsv")
        p, correct = probabilities(log, noise, assumption), log.correct.numpy()
        largest = Smoothed(nn.Identity(), noise).largest_radius(SAMPLES, ALPHA)
        thresholds = tuple(noise.probability(STEP * i) for i in range(int(largest / STEP) + 1))
        baseline, replay = fixed(p, correct, thresholds), sequential(p, correct, thresholds, runs, seed)
        difference = replay.accuracy - baseline
        ratios.append(replay.samples / (SAMPLES + SELECTION))
        lost.append(-float(difference.min()))
        pairs = "  ".join(f"{a:.2f} ({d:+.2f})" for a, d in zip(baseline, difference, strict=True))
        head = f"  {sigma:>5}{replay.samples:10.0f}{f'1/{1 / ratios[-1]:.1f}':>10}{replay.false:10.5f}{lost[-1]:7.2f}"
        print(f"{head}  {pairs}", flush=True)
    mean = sum(ratios) / len(ratios)
    print(
        f"  mean of the ratios 1/{1 / mean:.2f}, largest 1/{1 / max(ratios):.2f}; at most {max(lost):.2f} points lost"
    )
    return mean <= MEAN and max(ratios) <= WORST and max(lost) <= LOST


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="replays of every example")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "smoothing").is_dir():
        print(f"no logs in {shared}: set HOLDFAST_SHARED to the folder that holds smoothing/")
        return 2
    about = machine()
    print(
        f"{about['cpu']}, {about['date']}; {options.runs} replays of 10,000 examples a noise level, seed {options.seed}"
    )
    print(f"grid of radii {STEP} apart, at most {SAMPLES} samples and {SELECTION} to choose the class, alpha {ALPHA}")
    start = time.process_time()
    met = [compare(shared / "smoothing", assumption, options.runs, options.seed) for assumption in ASSUMPTIONS]
    print(f"\nwanted: mean 1/{1 / MEAN:.0f}, largest 1/{1 / WORST:.0f}, at most {LOST} points lost, everywhere")
    for assumption, good in zip(ASSUMPTIONS, met, strict=True):
        print(f"  {'met' if good else 'not met':8} {assumption.name}")
    print(f"{time.process_time() - start:.1f} CPU s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
