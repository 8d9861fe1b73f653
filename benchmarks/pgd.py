"""PGD beside a plain loop and other libraries: the cost of its bookkeeping, and what leaving early is worth.

``fixed-step``: budgets so small that hardly an example falls, so that every contender makes the same passes.
``audit``: an undefended network at a large budget, where nearly every example falls at the first steps.

One process, one thread, contenders in turn, CPU time. See README.md beside this file.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import PEERS, Setting, installed, ours, plain
from measure import Contender, machine, race, record, table
from torch import Tensor, nn

from holdfast import load_data, load_model

HERE = Path(__file__).resolve().parent
MNIST, CIFAR = "mnist:{}/data/mnist", "npz:{}/data/cifar10/cifar10_exact_test_first1017.npz"
LAYOUTS = ("loop, contiguous", "loop, channels_last")


@dataclass(frozen=True)
class Case:
    """A network with its weights and data, a budget, and how many examples are attacked in batches of which sizes."""

    factory: str
    weights: str
    data: str
    eps: float
    examples: int
    batches: tuple[int, ...]
    correct_only: bool = True


FIXED_STEP = (
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, 0.001, 512, (64, 128)),
    Case("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", MNIST, 0.01, 256, (64, 128)),
    Case("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, 0.0001, 512, (64, 128)),
)
AUDIT = (Case("mnist_lenet5", "advertorch_lenet5_clean.pt", MNIST, 0.3, 1000, (64,), correct_only=False),)


def load(case: Case, shared: Path, examples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The frozen network and the first examples, of those it classifies correctly where the case asks for it."""
    network = f"{shared}/models/nets.py:{case.factory}"
    model = load_model(network, shared / "models" / case.weights).eval().requires_grad_(False)
    batch = next(iter(load_data(case.data.format(shared), examples=f":{2 * examples}").batches(2 * examples)))
    x, y = batch.x.contiguous(), batch.y
    if case.correct_only:
        with torch.no_grad():
            right = model(x).argmax(1) == y
        x, y = x[right], y[right]
    return model, x[:examples], y[:examples]


def field(setting: Setting, peers: list[str]) -> dict[str, Contender]:
    loops = {name: plain(setting, channels_last=last) for name, last in zip(LAYOUTS, (False, True), strict=True)}
    return {**loops, "holdfast": ours(setting), **{name: PEERS[name](setting) for name in peers}}


def run(case: Case, batch: int, shared: Path, peers: list[str], options: argparse.Namespace) -> dict[str, Any]:
    examples = min(case.examples, options.examples or case.examples)
    model, x, y = load(case, shared, examples)
    lines = race(field(Setting(case.eps, options.steps, batch), peers), model, x, y, case.eps, options.rounds)
    base = min((line for line in lines if line.name in LAYOUTS), key=lambda line: line.median)
    print(f"\n{case.factory} ({case.weights}), eps {case.eps:g}, {len(x)} examples, batches of {batch}")
    print(table(lines, base), flush=True)
    case_record = {
        "network": case.factory,
        "weights": case.weights,
        "eps": case.eps,
        "examples": len(x),
        "batch": batch,
    }
    return {**case_record, **record(lines, base)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 examples, 2 rounds: to see that everything runs")
    parser.add_argument("--only", choices=("fixed-step", "audit"), help="one of the two experiments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--examples", type=int, help="at most so many in every case")
    parser.add_argument("--json", type=Path, default=HERE / "pgd.json", help="where the numbers go (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.examples = 2, 128
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "models" / "nets.py").exists():
        print(f"no networks in {shared}: set HOLDFAST_SHARED to the folder that holds models/ and data/")
        return 2
    torch.set_num_threads(1)
    torch.manual_seed(0)
    versions, absent = installed()
    about = {**machine(), "peers": versions, "absent": absent, "rounds": options.rounds, "steps": options.steps}
    announce(about)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, cases in (("fixed-step", FIXED_STEP), ("audit", AUDIT)):
        if options.only in (None, name):
            print(f"\n== {name}: PGD-{options.steps}, ratio of CPU time to the faster plain loop")
            results[name] = [
                run(case, batch, shared, list(versions), options) for case in cases for batch in case.batches
            ]
    options.json.write_text(json.dumps({"about": about, **results}, indent=1) + "\n")
    return 0


def announce(about: dict[str, Any]) -> None:
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} thread used, load {about['load']}; {about['date']}"
    )
    print(f"Python {about['python']}, torch {about['torch']}, holdfast {about['holdfast']}", end="")
    print("".join(f", {name} {version}" for name, version in about["peers"].items()))
    for name, reason in about["absent"].items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    sys.exit(main())
