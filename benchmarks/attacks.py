"""Every attack beside the closest one of another library: what it reaches, and what it asks of the model.

Both sides get the same networks, examples, budgets and numbers of steps or queries, and are judged alike: the bare
model on what they return, inside ball and box. One process, one thread, sides in turn, CPU time. See README.md.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import Counted, machine
from pairs import ART, BATCH, NORMS, Maker, Pair, Task, installed, pairs
from pgd import CIFAR, MNIST, Case, announce, load
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Network:
    """A network, the one that transfer attacks use in its place, and budgets near which half of the examples fall."""

    case: Case
    surrogate: Case
    budgets: dict[str, float]


def _case(factory: str, weights: str, data: str) -> Case:
    return Case(factory, weights, data, 0.0, 0, ())


NETWORKS = {
    "MNIST, ordinary training": Network(
        _case("mnist_conv_small_natural", "abcrown_mnist_conv_small_nat.pth", MNIST),
        _case("mnist_lenet5", "advertorch_lenet5_clean.pt", MNIST),
        {"linf": 0.15, "l2": 1.5, "l1": 7.0, "l0": 8.0},
    ),
    "MNIST, adversarial training": Network(
        _case("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", MNIST),
        _case("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", MNIST),
        {"linf": 0.33, "l2": 1.5, "l1": 5.0, "l0": 12.0},
    ),
    "CIFAR-10, adversarial training": Network(
        _case("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR),
        _case("cifar_conv_small", "abcrown_cifar_conv_small_pgd.pth", CIFAR),
        {"linf": 4 / 255, "l2": 0.3, "l1": 1.8, "l0": 4.0},
    ),
}

# What rounding may take from or add to a distance, relative to it.
_SLACK = 1e-5

# Relative differences in distance and in time that are noise.
_TIE, _SAME_TIME = 0.005, 1.1


@dataclass
class Score:
    """What one side did, round by round: verdicts and distances of the examples, passes an example, CPU seconds."""

    robust: list[float] = field(default_factory=list)
    median: list[float] = field(default_factory=list)
    outside: int = 0
    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = math.inf

    def reached(self, nearest: bool) -> float:
        """Robust accuracy in percent, or the median distance; the mean of the rounds, whose seeds differ."""
        return statistics.mean(self.median if nearest else self.robust)


@dataclass(frozen=True)
class Duel:
    """A pair on a network; ``theirs`` is None where there is no peer, and says why where it could not be run."""

    attack: str
    norm: str
    budget: float
    ours: Score
    peer: str | None
    theirs: Score | str | None

    @property
    def nearest(self) -> bool:
        return math.isinf(self.budget)

    @property
    def weaker(self) -> bool:
        if not isinstance(self.theirs, Score):
            return False
        slack = 1 + (_TIE if self.nearest else 0)
        return self.ours.reached(self.nearest) > slack * self.theirs.reached(self.nearest)

    @property
    def slower(self) -> bool:
        return isinstance(self.theirs, Score) and self.ours.seconds > _SAME_TIME * self.theirs.seconds


def judge(score: Score, model: nn.Module, task: Task, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
    """By the bare model on what came back, inside the box and the ball; what is not found is infinitely far."""
    with torch.no_grad():
        fooled = model(x_adv).argmax(1) != y
    distance = NORMS[task.norm](math.inf).length(x_adv - x)
    inside = (x_adv.flatten(1).amin(1) >= -_SLACK) & (x_adv.flatten(1).amax(1) <= 1 + _SLACK)
    inside &= distance <= task.eps * (1 + _SLACK)
    found = fooled & inside
    score.robust.append(100 * float((~found).double().mean()))
    score.median.append(statistics.median(torch.where(found, distance, torch.inf).tolist()))
    score.outside += int((~inside).sum())


def run(pair: Pair, network: Network, nets: tuple[nn.Module, nn.Module], x: Tensor, y: Tensor, rounds: int) -> Duel:
    eps = math.inf if pair.nearest else network.budgets[pair.norm] * pair.scale
    if pair.norm == "l0" and not pair.nearest:
        eps = float(round(eps))
    ours, theirs = Score(), Score() if pair.theirs is not None else None
    fault = None
    for seed in range(rounds):
        enter(ours, pair.ours, Task(pair.norm, eps, nets[1], x.shape[1], seed), nets, x, y)
        if pair.theirs is not None and fault is None:
            try:
                enter(theirs, pair.theirs, Task(pair.norm, eps, nets[1], x.shape[1], seed), nets, x, y)
            except Exception as error:
                fault = f"fails: {error}".splitlines()[0][:50]
    for score in (ours, theirs):
        if score is not None:
            score.forwards /= rounds * len(x)
            score.backwards /= rounds * len(x)
    return Duel(pair.name, pair.norm, eps, ours, pair.peer, fault or theirs)


def enter(score: Score, maker: Maker, task: Task, nets: tuple[nn.Module, nn.Module], x: Tensor, y: Tensor) -> None:
    """One run of one side. Passes of the surrogate count as well."""
    model, surrogate = (Counted(net).eval() for net in nets)
    torch.manual_seed(task.seed)
    contender = maker(replace(task, surrogate=surrogate))
    start = time.process_time()
    x_adv = contender(model, x, y)
    score.seconds = min(score.seconds, time.process_time() - start)
    score.forwards += model.forwards + surrogate.forwards
    score.backwards += model.backwards + surrogate.backwards
    judge(score, nets[0], task, x, y, x_adv)


HEAD = (
    f"  {'':15}{'':6}{'budget':>8}{'ours':>9}{'peer':>9}{'forwards':>16}{'backwards':>16}{'CPU s':>14}"
    f"  {'peer':<13} weaker, slower"
)


def line(duel: Duel) -> str:
    def show(score: Score | str | None) -> tuple[str, ...]:
        if not isinstance(score, Score):
            return ("-",) * 4
        reached = score.reached(duel.nearest)
        first = f"{reached:.4g}" if duel.nearest else f"{reached:.1f} %"
        return first, f"{score.forwards:.0f}", f"{score.backwards:.0f}", f"{score.seconds:.2f}"

    budget = "nearest" if duel.nearest else f"{duel.budget:.3g}"
    text = f"  {duel.attack:15}{duel.norm:6}{budget:>8}"
    for mine, theirs, width in zip(show(duel.ours), show(duel.theirs), (9, 8, 8, 7), strict=True):
        text += f"{mine:>{width}}{theirs:>{width}}"
    peer = {None: "none", ART: "art"}.get(duel.peer, duel.peer)
    notes = [note for note, applies in (("weaker", duel.weaker), ("slower", duel.slower)) if applies]
    if isinstance(duel.theirs, str):
        notes.append(duel.theirs)
    for who, score in (("ours", duel.ours), ("peer", duel.theirs)):
        if isinstance(score, Score) and score.outside:
            notes.append(f"{score.outside} of {who} outside")
    return f"{text}  {peer:<13} {', '.join(notes)}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 examples, 1 round: to see that everything runs")
    parser.add_argument("--only", help="attacks whose name starts so")
    parser.add_argument("--networks", help="networks whose name starts so")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side; the quickest counts")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--json", type=Path, default=HERE / "attacks.json", help="where the numbers go (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.examples = 1, 16
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "models" / "nets.py").exists():
        print(f"no networks in {shared}: set HOLDFAST_SHARED to the folder that holds models/ and data/")
        return 2
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of the peers
    versions, absent = installed()
    about = {**machine(), "peers": versions, "absent": absent, "examples": options.examples, "rounds": options.rounds}
    announce(about)
    results: dict[str, list[Duel]] = {}
    for name, network in NETWORKS.items():
        if not name.startswith(options.networks or ""):
            continue
        model, x, y = load(network.case, shared, options.examples)
        surrogate, _, _ = load(network.surrogate, shared, 1)
        print(
            f"\n{name}: {network.case.factory} ({network.case.weights}), {len(x)} examples in batches of {BATCH}"
            f"\n{HEAD}",
            flush=True,
        )
        results[name] = []
        for pair in pairs():
            if not pair.name.startswith(options.only or ""):
                continue
            if pair.peer in absent:
                pair = replace(pair, theirs=None, peer=f"({pair.peer} is not installed)")
            duel = run(pair, network, (model, surrogate), x, y, options.rounds)
            print(line(duel), flush=True)
            results[name].append(duel)
    duels = [duel for some in results.values() for duel in some if isinstance(duel.theirs, Score)]
    weaker, slower = (sum(getattr(duel, name) for duel in duels) for name in ("weaker", "slower"))
    print(f"\n{len(duels)} comparisons: weaker in {weaker}, slower in {slower}")
    record: dict[str, Any] = {name: [asdict(duel) for duel in some] for name, some in results.items()}
    options.json.write_text(json.dumps({"about": about, **record}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
