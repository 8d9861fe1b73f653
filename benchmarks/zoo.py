"""The zoo around a small network: what an audit says of each defence, beside attacks that know how it is built."""

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from adaptive import Effort, broken_by, judge_of, sources
from measure import machine
from torch import Tensor, nn

import holdfast
from holdfast.data import load_data
from holdfast.models import load_model
from holdfast.models.networks import digits_conv
from holdfast.testing import ZOO, Specimen

SHARED = Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).parents[2] / "shared"))
MNIST = f"mnist:{SHARED}/data/mnist"
CIFAR = f"npz:{SHARED}/data/cifar10/cifar10_exact_test_first1017.npz"
FASHION = f"mnist:{SHARED}/data/fashion_mnist"

# Published networks: factory, weights, data, budget.
NETWORKS = (
    ("mnist_lenet5", "advertorch_lenet5_clean.pt", MNIST, 0.1),
    ("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", MNIST, 0.3),
    ("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, 0.1),
    ("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", MNIST, 0.3),
    ("mnist_conv_small_natural", "abcrown_mnist_conv_small_nat.pth", MNIST, 0.1),
    ("fashion_conv_small", "fashion_convexadv_linf0.1.pth", FASHION, 0.1),
    ("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, 8 / 255),
    ("cifar_conv_small", "abcrown_cifar_conv_small_pgd.pth", CIFAR, 2 / 255),
    ("cifar_base_kw", "oval21_cifar_base_kw.pth", CIFAR, 2 / 255),
)


def subject() -> tuple[nn.Module, str, float]:
    """An undefended network that is nearly never robust, its data and the budget; of digits where there is no MNIST."""
    if SHARED.is_dir():
        weights = SHARED / "models" / "abcrown_mnist_conv_small_nat.pth"
        return load_model(f"{SHARED}/models/nets.py:mnist_conv_small_natural", weights).eval(), MNIST, 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = digits_conv()
    holdfast.train(net, "digits", holdfast.Linf(0.2), method="standard", settings={"epochs": 10})
    return net.eval(), "digits", 0.2


def batch(data: str, split: str, count: int) -> tuple[Tensor, Tensor]:
    first = next(load_data(data, split=split, examples=f"0:{count}").batches(count))
    return first.x, first.y


def judged(model: Any, data: str, threat: holdfast.Linf, options: argparse.Namespace) -> dict[str, Any]:
    """What an audit says, or why it refuses."""
    start = time.perf_counter()
    try:
        result = holdfast.audit(model, data, threat, protocol=options.protocol, examples=f"0:{options.examples}")
    except holdfast.HoldfastError as error:
        return {"refused": str(error), "seconds": time.perf_counter() - start}
    return {
        "clean": result.clean_accuracy,
        "robust": result.robust_accuracy,
        "stages": {stage.name: stage.broken for stage in result.stages},
        "diagnostics": {d.name: d.verdict for d in result.diagnostics if d.verdict in ("warn", "fail")},
        "passes": [result.cost.forwards, result.cost.backwards],
        "seconds": time.perf_counter() - start,
    }


def measured(specimen: Specimen, net: nn.Module, data: str, eps: float, options: argparse.Namespace) -> dict[str, Any]:
    """A specimen's line."""
    fitted, _ = batch(data, "train", 1000)
    x, y = batch(data, "test", options.examples)
    line: dict[str, Any] = {"specimen": specimen.name, "kind": specimen.kind, "honest": specimen.honest}
    line |= judged(specimen.wrap(net, fitted), data, holdfast.Linf(eps), options)
    if options.adaptive:
        start = time.perf_counter()
        wrapped = specimen.wrap(net, fitted)
        judge = judge_of(specimen.kind, wrapped, net)
        x, y = x.to(_dtype(wrapped)), y
        ways = sources(specimen.name, wrapped, net.to(x.dtype))
        scores = wrapped if specimen.kind not in ("memory", "backward") else net
        broken = broken_by(judge, ways, scores, x, y, eps, Effort(options.restarts))
        line["answers"] = float((~judge(x, y)).double().mean())
        line["adaptive"] = float((~broken).double().mean())
        line["adaptive seconds"] = time.perf_counter() - start
    return line


def _dtype(model: nn.Module) -> torch.dtype:
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def percent(share: float | None) -> str:
    return "     -" if share is None else f"{100 * share:6.1f}"


def row(line: dict[str, Any]) -> str:
    if "refused" in line:
        found = f"refused: {line['refused'][:70]}"
    else:
        found = ", ".join(f"{name} ({verdict})" for name, verdict in line["diagnostics"].items())
    robust, adaptive = line.get("robust"), line.get("adaptive")
    over = robust is not None and adaptive is not None and robust > adaptive + 0.03
    sign = " " if not over else "!" if line["diagnostics"] else "X"
    clean = line.get("clean", line.get("answers"))
    name = f"{line['specimen'][:34]:<35}{'honest' if line['honest'] else '':<7}"
    return f"{name}{percent(clean)} {percent(robust)} {percent(adaptive)} {sign}  {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="specimens and networks whose name contains this")
    parser.add_argument("--kind", default="", help="specimens of this kind")
    parser.add_argument("--networks", action="store_true", help="the published networks instead of the zoo")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--restarts", type=int, default=5, help="of the adaptive attacks")
    parser.add_argument("--no-adaptive", dest="adaptive", action="store_false", help="leave the adaptive attacks out")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "zoo.jsonl", help="a line a specimen")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(text) for text in options.json.read_text().splitlines()] if options.json.exists() else []
    done = {line["specimen"]: line for line in lines}
    about = machine()
    print(f"{about['cpu']}, 1 thread, load {about['load']}; {about['date']}; {options.examples} examples")
    print("audit: what its robust accuracy is; adaptive: what attacks leave standing that know the defence")
    print("!: more than 3 points above adaptive, and a check says so; X: without a word")
    print()
    print(f"{'':<42}{'clean':>6} {'audit':>6} {'adapt.':>6}    warnings and failures")

    def told(name: str, make: Any) -> None:
        line = done.get(name)
        if line is None:
            line = make()
            with options.json.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(row(line), flush=True)

    if options.networks:
        for factory, weights, data, eps in NETWORKS:
            if options.only in weights:
                model = holdfast.Model(f"{SHARED}/models/nets.py:{factory}", SHARED / "models" / weights)
                name = f"{weights} at {eps:.3g}"
                about = {"specimen": name, "kind": "network", "honest": True}
                told(name, lambda a=about, m=model, d=data, e=eps: a | judged(m, d, holdfast.Linf(e), options))
        return
    net, data, eps = subject()
    for specimen in ZOO.values():
        if options.only in specimen.name and options.kind in specimen.kind:
            told(specimen.name, lambda s=specimen: measured(s, copy.deepcopy(net), data, eps, options))


if __name__ == "__main__":
    main()
