"""One gradient query beside the same in plain PyTorch, on every network of the shared folder.

Two plain queries: what a loop written by hand does, ``loss.backward()`` with the model as it was loaded, and the same
with frozen parameters and ``torch.autograd.grad``. One process, one thread, contenders in turn, CPU time.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn
from torch.nn import functional

from holdfast import load_model
from holdfast.models import Query
from holdfast.tasks.objectives import cross_entropy

HERE = Path(__file__).resolve().parent

# name -> (factory, file, shape of an input); files of ONNX carry their network.
NETWORKS = {
    "LeNet5, clean": ("mnist_lenet5", "advertorch_lenet5_clean.pt", (1, 28, 28)),
    "LeNet5, adversarial": ("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", (1, 28, 28)),
    "MNIST conv, provable": ("mnist_conv_small", "convexadv_linf0.1.pth", (1, 28, 28)),
    "MNIST conv, FGSM": ("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", (1, 28, 28)),
    "MNIST conv, natural": ("mnist_conv_small_natural", "abcrown_mnist_conv_small_nat.pth", (1, 28, 28)),
    "Fashion conv, provable": ("fashion_conv_small", "fashion_convexadv_linf0.1.pth", (1, 28, 28)),
    "CIFAR resnet2b": ("cifar_resnet2b", "abcrown_resnet2b.pth", (3, 32, 32)),
    "CIFAR conv, PGD": ("cifar_conv_small", "abcrown_cifar_conv_small_pgd.pth", (3, 32, 32)),
    "CIFAR base, provable": ("cifar_base_kw", "oval21_cifar_base_kw.pth", (3, 32, 32)),
    "CIFAR resnet2b, ONNX": (None, "resnet_2b.onnx", (3, 32, 32)),
    "CIFAR base, ONNX": (None, "cifar_base_kw.onnx", (3, 32, 32)),
    "MNIST 256x2, ONNX": (None, "mnist-net_256x2.onnx", (784, 1)),
    "MNIST 256x4, ONNX": (None, "mnist-net_256x4.onnx", (784, 1)),
}


def load(name: str, shared: Path) -> nn.Module:
    factory, file, _ = NETWORKS[name]
    path = shared / "models" / file
    return load_model(path) if factory is None else load_model(f"{shared}/models/nets.py:{factory}", path)


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    assert x.grad is not None
    return x.grad * len(x)


def frozen(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(model(x), y, reduction="sum"), x)
    return grad


def seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def race(contenders: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of a call, everybody once a round."""
    for call in contenders.values():
        call()
    repeats = {name: max(1, round(0.03 / seconds(call, 2))) for name, call in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(seconds(call, repeats[name]))
    return {name: statistics.median(of) for name, of in times.items()}


def run(name: str, batch: int, shared: Path, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *NETWORKS[name][2], generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    learning, fixed, asked = (load(name, shared).eval() for _ in range(3))
    fixed.requires_grad_(False)
    with Query(asked, batch_size=batch) as query:
        query.bare_logits(x)
        contenders = {
            "by hand": lambda: by_hand(learning, x, y),
            "frozen": lambda: frozen(fixed, x, y),
            "query": lambda: query.gradient(x, lambda logits: cross_entropy(logits, y)).grad,
        }
        expected, got = contenders["frozen"](), contenders["query"]()
        times = race(contenders, rounds)
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    return {"network": name, "batch": batch, "error": error, **times}


def mean(rows: list[dict[str, Any]], base: str) -> float:
    return statistics.fmean(row["query"] / row[base] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds: to see that everything runs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--json", type=Path, default=HERE / "query.json", help="where the numbers go (%(default)s)")
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "models" / "nets.py").exists():
        print(f"no networks in {shared}: set HOLDFAST_SHARED to the folder that holds models/")
        return 2
    torch.set_num_threads(1)
    about = machine()
    print(f"{about['cpu']}, {about['threads']} thread, torch {about['torch']}, load {about['load']}; {about['date']}\n")
    print("| network | batch | by hand, ms | frozen, ms | query, ms | to by hand | to frozen | largest error |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in (name for name in NETWORKS if options.only is None or options.only in name):
        for batch in options.batches:
            row = run(name, batch, shared, 3 if options.quick else options.rounds)
            rows.append(row)
            by_hand_ms, frozen_ms, query_ms = (1000 * row[key] for key in ("by hand", "frozen", "query"))
            print(
                f"| {name} | {batch} | {by_hand_ms:.2f} | {frozen_ms:.2f} | {query_ms:.2f} "
                f"| {query_ms / by_hand_ms:.2f} | {query_ms / frozen_ms:.2f} | {row['error']:.0e} |",
                flush=True,
            )
    print(f"| mean | | | | | {mean(rows, 'by hand'):.2f} | {mean(rows, 'frozen'):.2f} | |")
    options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
