"""Minimum-norm attacks against attacks at fixed budgets: which curve of robust accuracy lies lower.

One run of minimum-norm attacks gives every example's distance, and so robust accuracy at every budget; the ensemble of
APGD, on the cross-entropy and towards nine targets, is run at each budget anew. See README.md beside this file.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
from measure import machine
from pairs import NORMS
from pgd import announce, load
from torch import Tensor, nn

from attacks import NETWORKS
from holdfast.attacks import Stage, drive
from holdfast.attacks.apgd import APGD
from holdfast.audit.protocols.balls import nearest
from holdfast.data.source import Batch
from holdfast.engine.attack import Attack
from holdfast.models import Query
from holdfast.threats import Ball

HERE = Path(__file__).resolve().parent

BATCH = 64

# The budgets read off, as quantiles of the distances: where the curve is steep, any difference shows.
QUANTILES = (0.15, 0.3, 0.5, 0.7, 0.85)

# In percent of the examples: how far the curve may lie above.
ALLOWED = 0.5

COMPARED = ("linf", "l2")
FIXED = (APGD(), APGD(objective="dlr", targets=9))


def attack(
    attacks: tuple[Attack, ...], model: nn.Module, x: Tensor, y: Tensor, threat: Ball
) -> tuple[Tensor, float, float]:
    """The distances of what a cascade found, infinite where that is nothing; passes an example, forwards and back."""
    stages = [Stage(one.name, one) for one in attacks]
    batches = [Batch(i, a, b) for i, a, b in zip(*(t.split(BATCH) for t in (torch.arange(len(x)), x, y)), strict=True)]
    with Query(model, batch_size=BATCH) as query:
        outcomes = [outcome for some in drive(query, threat, stages, batches) for outcome in some]
        passes = query.forwards / len(x), query.backwards / len(x)
    found = {one.index: one.distance if one.verdict == "broken" else math.inf for one in outcomes}
    return torch.tensor([found[i] for i in range(len(x))]), *passes


def robust(distance: Tensor, eps: float) -> float:
    return 100 * float((distance > eps).double().mean())


def compare(norm: str, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Print both curves; by how many points the minimum-norm one lies above at worst."""
    threat = NORMS[norm](math.inf)
    stages = tuple(stage.attack for stage in nearest(threat).stages)
    start = time.process_time()
    distance, forwards, backwards = attack(stages, model, x, y, threat)
    seconds = time.process_time() - start
    names = ", ".join(one.name for one in stages)
    print(f"  {norm}: {names}: {forwards:.0f} forwards, {backwards:.0f} backwards, {seconds:.1f} s")
    print(f"  {'budget':>10}{'nearest':>10}{'fixed':>10}{'above':>8}{'forwards':>10}{'backwards':>11}{'CPU s':>8}")
    worst = -math.inf
    for quantile in QUANTILES:
        # Half-way between two examples, so that rounding decides nothing.
        place = round(quantile * (len(x) - 1))
        eps = float(distance.sort().values[place : place + 2].double().mean())
        start = time.process_time()
        fixed, forwards, backwards = attack(FIXED, model, x, y, NORMS[norm](eps))
        seconds = time.process_time() - start
        mine, theirs = robust(distance, eps), 100 * float(fixed.isinf().double().mean())
        worst = max(worst, mine - theirs)
        columns = f"{eps:10.4f}{mine:10.1f}{theirs:10.1f}{mine - theirs:+8.1f}"
        print(f"  {columns}{forwards:10.0f}{backwards:11.0f}{seconds:8.1f}", flush=True)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--networks", nargs="*", default=("MNIST, o", "CIFAR"), help="those whose names start so")
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "models" / "nets.py").exists():
        print(f"no networks in {shared}: set HOLDFAST_SHARED to the folder that holds models/ and data/")
        return 2
    torch.set_num_threads(1)
    announce({**machine(), "peers": {}, "absent": {}})
    worst = []
    for name, network in NETWORKS.items():
        if name.startswith(tuple(options.networks)):
            model, x, y = load(network.case, shared, options.examples)
            print(f"\n{name}: {network.case.factory} ({network.case.weights}), {len(x)} examples")
            worst += [compare(norm, model, x, y) for norm in COMPARED]
    print(f"\nat worst {max(worst):+.1f} points above; at most {ALLOWED:+.1f} is wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
