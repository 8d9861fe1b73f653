"""``standard`` and ``fast`` against the published ensemble's verdicts, example by example."""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine

import holdfast
from holdfast.audit import EvaluationProtocol
from holdfast.audit.protocols.balls import fast, standard
from holdfast.threats import Threat

DATA = {
    "mnist": "mnist:{shared}/data/mnist",
    "fashion": "mnist:{shared}/data/fashion_mnist",
    "cifar": "npz:{shared}/data/cifar10/cifar10_exact_test_first1017.npz",
}
BALLS = {"Linf": holdfast.Linf, "L2": holdfast.L2, "L1": holdfast.L1}


def cut(protocol: EvaluationProtocol, count: int) -> EvaluationProtocol:
    """The first stages of a protocol, to see what the later ones contribute."""
    return EvaluationProtocol(f"{protocol.name}[:{count}]", protocol.stages[:count], protocol.caveat)


def run(published: dict[str, Any], shared: Path, threat: Threat, protocol: EvaluationProtocol, seed: int) -> dict:
    """Verdicts, passes and CPU seconds of one audit."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        result = holdfast.audit(
            holdfast.Model(
                f"{shared / 'models' / 'nets.py'}:{published['factory']}", shared / "models" / published["model"]
            ),
            DATA[published["data"]].format(shared=shared),
            threat,
            examples=f"0:{published['first_n']}",
            protocol=protocol,
            seed=seed,
            run=folder,
        )
        seconds = time.process_time() - start
        with sqlite3.connect(Path(folder) / "run.sqlite") as db:
            rows = db.execute("SELECT verdict FROM examples ORDER BY idx").fetchall()
    standing = [verdict == "robust" for (verdict,) in rows]
    return {
        "standing": standing,
        "units": result.cost.forwards + 2 * result.cost.backwards,
        "forwards": result.cost.forwards,
        "backwards": result.cost.backwards,
        "seconds": seconds,
        "stages": {stage.name: stage.broken for stage in result.stages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of fast")
    parser.add_argument("--only", default="", help="references whose name contains this")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "protocols.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).parents[2] / "shared"))
    files = [file for file in sorted((shared / "reference").glob("*.json")) if options.only in file.name]
    if not files:
        sys.exit(f"{shared / 'reference'}: no verdicts to compare with")
    about = machine()
    print(f"{about['cpu']}, 1 thread, load {about['load']}; {about['date']}")
    print()
    print("standing: examples left standing, ours / published; differ: examples on which they disagree; units:")
    print("forwards + 2 x backwards; share: ours of standard's, in units and in CPU seconds")
    print()
    header = f"{'network and budget':<44} {'protocol':<12} seed  standing  differ {'forwards':>9} {'backwards':>9} "
    print(f"{header}{'CPU s':>7}  {'units':>7} {'CPU':>7}")
    everything: list[dict[str, Any]] = []
    for file in files:
        published = json.loads(file.read_text())
        threat = BALLS[published["norm"]](published["eps"])
        whole = run(published, shared, threat, standard(threat), 0)
        plans = [(standard(threat), 0, whole)]
        plans += [(fast(threat), seed, None) for seed in range(options.seeds)]
        plans += [(cut(fast(threat), count), 0, None) for count in range(1, len(fast(threat).stages))]
        for protocol, seed, known in plans:
            done = known or run(published, shared, threat, protocol, seed)
            differ = sum(
                mine != bool(theirs) for mine, theirs in zip(done["standing"], published["robust"], strict=True)
            )
            units, seconds = whole["units"] / done["units"], whole["seconds"] / done["seconds"]
            counts = f"{sum(done['standing']):>4} / {sum(published['robust']):<3} {differ:>5}"
            passes = f"{done['forwards']:>11} {done['backwards']:>9} {done['seconds']:>7.1f}"
            print(
                f"{file.stem:<44} {protocol.name:<12} {seed:>4}  {counts} {passes}  1/{units:<5.1f} 1/{seconds:<5.1f}",
                flush=True,
            )
            everything.append(
                {"reference": file.stem, "protocol": protocol.name, "seed": seed, "differ": differ, **done}
            )
    options.json.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
