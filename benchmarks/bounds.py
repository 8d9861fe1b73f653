"""Linear bounds of margins by holdfast and by auto_LiRPA: how tight, how quick, in how much memory.

Each side runs in a process of its own, so that peak memory is its own. See README.md beside this file.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn

from holdfast.data import load_data
from holdfast.models import load_model

HERE = Path(__file__).resolve().parent
MNIST, CIFAR = "mnist:{0}/data/mnist", "npz:{0}/data/cifar10/cifar10_exact_test_first1017.npz"
SIDES = ("holdfast", "auto_LiRPA")


@dataclass(frozen=True)
class Case:
    """A network, its data, a budget in L-infinity, how many images, and the steps of alpha-CROWN (0: leave it out)."""

    factory: str
    weights: str
    data: str
    eps: float
    examples: int
    steps: int = 0

    @property
    def convolutional(self) -> bool:
        return not self.weights.endswith(".onnx")


CASES = {
    "mnist_conv_small": Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, 0.1, 32, 20),
    "mnist_lenet5": Case("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", MNIST, 0.1, 4),
    "cifar_resnet2b": Case("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, 2 / 255, 32),
    "mnist_256x2": Case("", "mnist-net_256x2.onnx", MNIST, 0.02, 32, 20),
    "mnist_256x4": Case("", "mnist-net_256x4.onnx", MNIST, 0.02, 32, 20),
}


def load(case: Case, shared: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The network without its normalisation, images, and labels."""
    weights = shared / "models" / case.weights
    batch = next(iter(load_data(case.data.format(shared), examples=f":{case.examples}").batches(case.examples)))
    if not case.convolutional:
        return load_model(weights), batch.x.flatten(1).unsqueeze(-1), batch.y
    return load_model(f"{shared}/models/nets.py:{case.factory}", weights).eval(), batch.x, batch.y


def unnormalised(model: nn.Module, lower: Tensor, upper: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A network behind its normalisation as the network itself, on normalised bounds: what both sides are given."""
    if not hasattr(model, "normalize"):
        return model, lower, upper
    return model.net, model.normalize(lower), model.normalize(upper)


def margins(y: Tensor) -> Tensor:
    """``(N, 9, 10)`` the true logit less each other one."""
    unit = torch.eye(10)
    others = torch.stack([torch.cat([unit[:k], unit[k + 1 :]]) for k in range(10)])
    return unit[y].unsqueeze(1) - others[y]


def timed(run: Any, rounds: int) -> tuple[Tensor, list[float]]:
    """What a run returns, and the CPU seconds of each round after one that warms up."""
    result, seconds = run(), []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return result, seconds


def ours(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor, steps: int, rounds: int) -> dict[str, Any]:
    from holdfast.certify.bounds.capture import capture
    from holdfast.certify.bounds.crown import crown, lower_bounds
    from holdfast.certify.bounds.region import Region
    from holdfast.certify.bounds.rows import Rows
    from holdfast.certify.search.domains import Domains, Problem, bound_domains
    from holdfast.certify.search.hidden import tightened

    graph, region = capture(model, (lower + upper) / 2), Region.box(lower, upper)
    functions = rows.flatten(0, 1)
    owners = torch.arange(len(rows)).repeat_interleave(rows.shape[1])

    def plain() -> Tensor:
        with torch.no_grad():
            bounds = crown(graph, region)
            return lower_bounds(graph, graph.output, Rows.whole(functions), bounds.planes, bounds.errors, region)

    def optimised() -> Tensor:
        with torch.no_grad():
            bounds = tightened(graph, region, crown(graph, region), steps)
        problem = Problem(graph, region, bounds, graph.output)
        return bound_domains(problem, Domains.whole(problem, owners, functions), steps).bound

    return measured(plain, optimised, steps, rounds)


def theirs(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor, steps: int, rounds: int) -> dict[str, Any]:
    from auto_LiRPA import BoundedModule, BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    middle = (lower + upper) / 2
    if type(model).__name__ == "OnnxModule":
        model = sequential(model, middle)
    bounded = BoundedModule(model, torch.empty_like(middle), device="cpu")
    x = BoundedTensor(middle, PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper))

    def plain() -> Tensor:
        with torch.no_grad():
            return bounded.compute_bounds(x=(x,), C=rows, method="backward", bound_upper=False)[0].flatten()

    def optimised() -> Tensor:
        bounded.set_bound_opts({"optimize_bound_args": {"iteration": steps}})
        return bounded.compute_bounds(x=(x,), C=rows, method="alpha-CROWN", bound_upper=False)[0].detach().flatten()

    return measured(plain, optimised, steps, rounds)


def measured(plain: Any, optimised: Any, steps: int, rounds: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bound, seconds = timed(plain, rounds)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    record: dict[str, Any] = {"crown": {"bound": bound.tolist(), "seconds": seconds, "memory": memory}}
    if steps:
        start = time.process_time()
        bound = optimised()
        record["alpha"] = {"bound": bound.tolist(), "seconds": [time.process_time() - start], "memory": None}
    return record


def sequential(model: nn.Module, x: Tensor) -> nn.Module:
    """A fully connected ONNX network as plain layers, which is what the peer reads."""
    found = [tensor for name, tensor in model.named_buffers() if tensor.dim() > 0]
    weights = [t for t in found if t.dim() == 2]
    biases = [t.flatten() for t in found if t.dim() != 2]
    layers: list[nn.Module] = [nn.Flatten()]
    width = x[0].numel()
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        weight = weight if weight.shape[1] == width and weight.shape[0] == len(bias) else weight.T
        layer = nn.Linear(width, len(bias))
        layer.weight.data, layer.bias.data = weight.contiguous(), bias
        layers += [layer] if place == 0 else [nn.ReLU(), layer]
        width = len(bias)
    network = nn.Sequential(*layers)
    assert torch.allclose(network(x), model(x), atol=1e-4), "the plain layers are not the network"
    return network


def one_side(side: str, case: Case, shared: Path, rounds: int) -> dict[str, Any]:
    model, x, y = load(case, shared)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lower, upper = (x - case.eps).clamp(0, 1), (x + case.eps).clamp(0, 1)
    network, lower, upper = unnormalised(model, lower, upper)
    return (ours if side == "holdfast" else theirs)(network, lower, upper, margins(y), case.steps, rounds)


def compare(name: str, case: Case, records: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name} ({case.weights}), eps {case.eps:g}, {case.examples} images")
    for method in ("crown", "alpha") if case.steps else ("crown",):
        for side in SIDES:
            if side in records:
                found = records[side][method]
                worst = torch.tensor(found["bound"]).view(case.examples, -1).amin(1)
                memory = "" if found["memory"] is None else f"{found['memory']:8.0f} MB"
                print(
                    f"  {method:<6} {side:<11} {statistics.median(found['seconds']):9.3f} s  mean worst margin "
                    f"{float(worst.mean()):10.4f}  certified {int((worst > 0).sum()):3}{memory}"
                )
        if len(records) == 2:
            mine, peer = (records[side][method] for side in SIDES)
            lead = (torch.tensor(mine["bound"]) - torch.tensor(peer["bound"])).min()
            ratio = statistics.median(mine["seconds"]) / statistics.median(peer["seconds"])
            print(f"  {method:<6} time ratio {ratio:.3f}, least lead over the peer of any margin {float(lead):+.1e}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(CASES), help="one network")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=HERE / "bounds.json", help="where the numbers are written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parent.parent / "shared"))
    if options.side:
        print(json.dumps(one_side(options.side, CASES[options.only], shared, options.rounds)))
        return 0
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, 1 thread used, load {about['load']}; {about['date']}", end="; ")
    print(f"torch {about['torch']}, holdfast {about['holdfast']}")
    record: dict[str, Any] = {"about": about}
    for name, case in CASES.items():
        if options.only not in (None, name):
            continue
        records = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--only", name, "--rounds", str(options.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"left out: {side} on {name} ({(done.stderr.strip().splitlines() or ['no reason'])[-1][:160]})")
            else:
                records[side] = json.loads(done.stdout.strip().splitlines()[-1])
        if "holdfast" in records:
            compare(name, case, records)
        record[name] = {"case": asdict(case), **records}
        options.json.write_text(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
