"""Instances of the verification competition: which are decided as the competition's tools agreed, and how quickly.

The verdicts are in ``expected.csv``. A counterexample to an instance that they call ``unsat`` would be a fault of
theirs, since it is replayed; here it counts as wrong like its opposite. See README.md beside this file.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import machine
from pgd import announce

from holdfast.certify.verify import verify

HERE = Path(__file__).resolve().parent

# Every how many instances of a benchmark one is in the sample.
SAMPLE = {"acasxu": 4, "rl_benchmarks": 4, "mnistfc": 4, "cifar10_resnet": 8}


@dataclass
class Line:
    """How the instances of one benchmark, or of one network in it, came out."""

    right: int = 0
    wrong: int = 0
    timeout: int = 0
    unknown: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, word: str, expected: str, seconds: float) -> None:
        self.right += word == expected
        self.wrong += word in {"sat", "unsat"} and word != expected
        self.timeout += word == "timeout"
        self.unknown += word == "unknown"
        self.seconds.append(seconds)

    def __str__(self) -> str:
        count = len(self.seconds)
        return (
            f"{count:5d}{self.right:7d}{100 * self.right / count:8.1f}{self.wrong:7d}{self.timeout:9d}{self.unknown:9d}"
            f"{statistics.median(self.seconds):10.1f}{max(self.seconds):9.1f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="*", choices=SAMPLE, default=list(SAMPLE))
    parser.add_argument("--all", action="store_true", help="every instance, not one in a few")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds an instance")
    parser.add_argument("--only", default="", help="instances with this in the name of the network or the property")
    options = parser.parse_args()
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared")) / "vnncomp"
    if not (shared / "expected.csv").exists():
        print(f"no instances in {shared}: set HOLDFAST_SHARED to the folder that holds vnncomp/")
        return 2
    torch.set_num_threads(1)
    announce({**machine(), "peers": {}, "absent": {}})
    with (shared / "expected.csv").open() as file:
        instances = list(csv.DictReader(file))
    lines: dict[str, Line] = {}
    for benchmark in options.benchmarks:
        own = [row for row in instances if row["benchmark"] == benchmark]
        for row in own[:: 1 if options.all else SAMPLE[benchmark]]:
            if options.only not in f"{row['onnx']} {row['vnnlib']}":
                continue
            start = time.monotonic()
            found = verify(
                shared / benchmark / row["onnx"], shared / benchmark / row["vnnlib"], seconds=options.timeout
            )
            seconds = time.monotonic() - start
            # A benchmark with few networks is told apart by them.
            single = benchmark == "acasxu"
            name = benchmark if single else f"{benchmark} {row['onnx'].split('.')[0]}"
            lines.setdefault(name, Line()).add(found.word, row["verdict"], seconds)
            if found.word != row["verdict"]:
                bound = "" if found.bound is None else f", bound {found.bound:.2g}"
                note = f" ({found.note})" if found.note else ""
                print(
                    f"  {row['onnx']} {row['vnnlib']}: {found.word}, expected {row['verdict']}{bound}{note}", flush=True
                )
    print(
        f"\n{'':40}{'all':>5}{'right':>7}{'%':>8}{'wrong':>7}{'timeout':>9}{'unknown':>9}{'median s':>10}{'max s':>9}"
    )
    for name, line in lines.items():
        print(f"{name:40}{line}")
    return 1 if any(line.wrong for line in lines.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
