"""Robust training: what it reaches in what time, what a step costs, the guard, and class-wise training.

See README.md beside this file.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import machine
from torch import Tensor
from torch.nn import functional

from holdfast import Linf, Threat, audit, load_data, train
from holdfast.models.architectures import make_network
from holdfast.models.query import Query
from holdfast.train import FGSMRS, Evaluation, Method, PGDTraining, Standard, Step, TrainingResult, evaluate

HERE = Path(__file__).resolve().parent
LOOKED_AT = 2000


def reached(shared: Path) -> None:
    """The default recipes on MNIST: seconds of training, and what an audit of the first 1,000 test images says."""
    data = f"mnist:{shared}/data/mnist"
    for method, eps, protocol, proof in (("awp:pgd", 0.3, "standard", "none"), ("mtl-ibp", 0.1, "quick", "complete")):
        wall, cpu = time.perf_counter(), time.process_time()
        result = train("conv-small", data, Linf(eps), method=method)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = audit(result.model, data, Linf(eps), protocol=protocol, certify=proof, examples=":1000")
        lower, upper = found.bracket
        print(
            f"{method:8} linf:{eps:<4g} {len(result.epochs)} epochs, {wall:.0f} s ({cpu:.0f} CPU s): clean "
            f"{100 * found.clean_accuracy:.1f}, proved {100 * lower:.1f}, not broken by {protocol} {100 * upper:.1f}",
            flush=True,
        )


def guard(shared: Path) -> None:
    """Single-step methods that collapse on MNIST at 0.3, without and with the guard; and two that do not."""
    data = f"mnist:{shared}/data/mnist"
    cases = (
        ("fgsm", {"epochs": 4}),
        ("n-fgsm", {"epochs": 4, "noise": 2.0}),
        ("pgd", {"epochs": 2}),
        ("trades", {"epochs": 2}),
    )
    for method, settings in cases:
        for on in (False, True):
            if method in ("pgd", "trades") and not on:
                continue
            result = train("conv-small", data, Linf(0.3), method=method, settings={**settings, "guard": on})
            last, found = result.epochs[-1].evaluation, _tested(result, data, Linf(0.3))
            print(
                f"{method:8} guard {'on ' if on else 'off'}: at the end one step {100 * last.single_step:.1f}, PGD "
                f"{100 * last.multi_step:.1f} held out; what was kept {100 * found.clean:.1f} clean, "
                f"{100 * found.multi_step:.1f} under PGD-40 on {LOOKED_AT} test images; {len(result.events)} events",
                flush=True,
            )
            for event in result.events:
                print(f"         {event}", flush=True)


def fairness(shared: Path) -> None:
    """Class-wise training on Fashion-MNIST at 0.1: the worst class and the mean, under PGD-20 on the test images."""
    data = f"mnist:{shared}/data/fashion_mnist"
    for seed in (0, 1):
        for method in ("pgd", "class-wise:pgd"):
            settings = {"epochs": 2, "steps": 5, "lr": 3e-3, "warmup": 0.3, "validation": 500}
            result = train("conv-small", data, Linf(0.1), method=method, settings=settings, seed=seed)
            found = _tested(result, data, Linf(0.1), count=10_000, steps=20)
            print(
                f"{method:15} seed {seed}: clean {100 * found.clean:.1f}, robust {100 * found.multi_step:.1f}, worst "
                f"class {100 * min(found.per_class):.1f}",
                flush=True,
            )


def cost(shared: Path) -> None:
    """CPU time of an update beside a bare loop of the same passes, by turns, batch 100."""
    torch.set_num_threads(1)
    batch = next(iter(load_data(f"mnist:{shared}/data/mnist", split="train").batches(100)))
    for name, steps, method in (
        ("standard", 0, Standard()),
        ("fgsm-rs", 1, FGSMRS(Linf(0.3))),
        ("pgd", 7, PGDTraining(Linf(0.3))),
    ):
        bare, ours = _updates(method, steps, batch.x, batch.y)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(60):
            for update, taken in zip((bare, ours), times, strict=True):
                began = time.process_time()
                update()
                taken.append(1e3 * (time.process_time() - began))
        a, b = map(statistics.median, times)
        print(f"{name:8} bare loop {a:6.2f} ms, holdfast {b:6.2f} ms: {b / a:.2f}", flush=True)


def _updates(method: Method, steps: int, x: Tensor, y: Tensor) -> tuple[Callable[[], None], ...]:
    """An update by a bare loop, and one by the method as the training loop makes it."""
    nets = [make_network("conv-small", (1, 28, 28), 10) for _ in range(2)]
    optimizers = [torch.optim.AdamW(net.parameters()) for net in nets]
    query = Query(nets[1], batch_size=len(x))
    with query:
        query.bare_logits(x)
    eps, numbers = 0.3, iter(range(1 << 30))

    def learn(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    def bare() -> None:
        z = torch.empty_like(x).uniform_(-eps, eps) if steps else torch.zeros_like(x)
        for _ in range(steps):
            x_adv = (x + z).clamp(0, 1).requires_grad_()
            (grad,) = torch.autograd.grad(functional.cross_entropy(nets[0](x_adv), y, reduction="sum"), x_adv)
            z = (z + 0.1 * grad.sign()).clamp(-eps, eps)
        learn(optimizers[0], functional.cross_entropy(nets[0]((x + z).clamp(0, 1)), y))

    def ours() -> None:
        step = Step(next(numbers), 0, torch.arange(len(x)))
        with query:
            x_adv = method.perturb(query, x, y, step)
        learn(optimizers[1], method.loss(nets[1], x, x_adv.detach(), y, step))

    return bare, ours


def _tested(
    result: TrainingResult, data: str, threat: Threat, *, count: int = LOOKED_AT, steps: int = 40
) -> Evaluation:
    batch = next(iter(load_data(data).batches(count)))
    return evaluate(result.model, threat, batch.x, batch.y, seed=1, steps=steps)


PARTS = {"reached": reached, "guard": guard, "fairness": fairness, "cost": cost}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "data" / "mnist").exists():
        print(f"no data in {shared}: set HOLDFAST_SHARED to the folder that holds data/")
        return 2
    torch.set_num_threads(options.threads)
    about = machine()
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['date']}, load {about['load']}")
    for part in options.parts:
        print(f"\n{PARTS[part].__doc__}", flush=True)
        PARTS[part](shared)
    return 0


if __name__ == "__main__":
    sys.exit(main())
