"""How far the bracket closes: attacks and proofs on small networks.

See README.md beside this file.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import machine

from holdfast.audit import AuditResult, Certification, audit
from holdfast.models import Model

HERE = Path(__file__).resolve().parent
MNIST, FASHION = "mnist:{}/data/mnist", "mnist:{}/data/fashion_mnist"
CIFAR = "npz:{}/data/cifar10/cifar10_exact_test_first1017.npz"


@dataclass(frozen=True)
class Case:
    """A network with its weights and data, a threat, how many examples, and seconds for a search; what is wanted."""

    factory: str
    weights: str
    data: str
    threat: str
    examples: int
    seconds: float
    """How long branch and bound may take, an example."""
    open: int | None = None
    """How many examples may stay open."""
    within: float | None = None
    """How many seconds the whole may take, by the clock."""
    robust: float | None = None
    """The share that is known to be robust, in percent."""


CASES = (
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "linf:0.1", 1000, 20, open=0, within=120),
    Case("fashion_conv_small", "fashion_convexadv_linf0.1.pth", FASHION, "linf:0.1", 200, 20, open=0, robust=67.5),
    Case("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", MNIST, "linf:0.1", 200, 20, open=0),
    Case("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", MNIST, "linf:0.15", 200, 20, open=0),
    Case("cifar_conv_small", "abcrown_cifar_conv_small_pgd.pth", CIFAR, "linf:2/255", 200, 20, open=3),
    Case("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, "linf:2/255", 200, 60, open=10),
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "l2:0.2", 100, 20),
    Case("fashion_conv_small", "fashion_convexadv_linf0.1.pth", FASHION, "l2:0.2", 100, 20),
    Case("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", MNIST, "l2:0.3", 100, 20),
    Case("cifar_conv_small", "abcrown_cifar_conv_small_pgd.pth", CIFAR, "l2:0.1", 100, 20),
    Case("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, "l2:0.05", 100, 60),
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "rotate:30deg", 100, 30, open=10),
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "patch:2x2", 100, 60, open=5),
    Case("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "patch:3x3", 100, 60, open=5),
)

HEAD = (
    f"{'threat':14}{'network':38}{'images':>7}{'clean':>8}{'left':>8}{'proved':>8}{'open':>6}{'CPU s':>9}"
    f"{'wall s':>9}  proved by"
)


@dataclass(frozen=True)
class Line:
    """What an audit found, and what it cost."""

    case: Case
    result: AuditResult
    cpu: float
    wall: float

    def __str__(self) -> str:
        found, bracket = self.result.certification, self.result.bracket
        assert found is not None
        shares = "".join(f"{100 * share:8.2f}" for share in (self.result.clean_accuracy, bracket[1], bracket[0]))
        methods = ", ".join(f"{method} {count}" for method, count in found.methods.items())
        broken = {stage.name: stage.broken for stage in self.result.stages}.get("branch and bound", 0)
        return (
            f"{self.case.threat:14}{self.case.weights:38}{self.result.examples:7}{shares}{found.open:6}"
            f"{self.cpu:9.1f}{self.wall:9.1f}  {methods}" + (f"; the search broke {broken}" if broken else "")
        )

    def missed(self) -> list[str]:
        """What was wanted and is not so."""
        case, found = self.case, self.result.certification
        assert found is not None
        if self.result.examples != case.examples:
            return []
        robust = 100 * self.result.bracket[0]
        met = {
            f"{found.open} open, at most {case.open} wanted": case.open is None or found.open <= case.open,
            f"{self.wall:.0f} s, at most {case.within} wanted": case.within is None or self.wall <= case.within,
            f"{robust:.2f} % proved, {case.robust} wanted": case.robust is None or abs(robust - case.robust) < 1e-9,
        }
        return [text for text, is_met in met.items() if not is_met]


def measure(case: Case, shared: Path, options: argparse.Namespace) -> Line:
    count = min(case.examples, options.examples or case.examples)
    began, wall = time.process_time(), time.perf_counter()
    result = audit(
        Model(f"{shared}/models/nets.py:{case.factory}", shared / "models" / case.weights),
        case.data.format(shared),
        case.threat,
        protocol=options.protocol,
        examples=f"0:{count}",
        certify=Certification("complete", min(case.seconds, options.seconds or case.seconds)),
    )
    return Line(case, result, time.process_time() - began, time.perf_counter() - wall)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases with this in their threat or the name of their weights")
    parser.add_argument("--examples", type=int, help="no more than these of each case")
    parser.add_argument("--seconds", type=float, help="no more than these for a search, an example")
    parser.add_argument("--protocol", default="fast", help="of the attacks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "models" / "nets.py").exists():
        print(f"no networks in {shared}: set HOLDFAST_SHARED to the folder that holds models/ and data/")
        return 2
    torch.set_num_threads(options.threads)
    about = machine()
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['date']}, load {about['load']}")
    print(f"attacks: {options.protocol}; shares in percent; left: not broken\n\n{HEAD}", flush=True)
    missed = []
    for case in CASES:
        if options.only in f"{case.threat} {case.weights}":
            line = measure(case, shared, options)
            print(line, flush=True)
            missed += [f"{case.threat} {case.weights}: {text}" for text in line.missed()]
    for text in missed:
        print(f"missed: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
