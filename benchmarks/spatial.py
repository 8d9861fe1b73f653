"""Rotations and translations on MNIST: training, searches, protocols, a peer, and proofs.

See README.md beside this file.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import machine
from torch import Tensor, nn

from holdfast import audit, load_data, train
from holdfast.attacks import PGD, Attack, Grid, Stage, WorstOfK, drive
from holdfast.audit import Certification
from holdfast.audit.protocols import PROTOCOLS
from holdfast.data import Batch
from holdfast.models.query import Query
from holdfast.threats import Spatial

HERE = Path(__file__).resolve().parent
MOVES, TURNS, SMALL = Spatial(30.0, 3.0), Spatial(30.0), Spatial(5.0, 1.0)
SEARCHES: dict[str, Attack] = {
    "one random": WorstOfK(1),
    "worst of 10": WorstOfK(10),
    "PGD-50, one start": PGD(50),
    "grid 31 x 5 x 5": Grid(),
}
TRAINED: dict[str, tuple[str, dict[str, int]]] = {
    "standard": ("standard", {}),
    "worst-of-1": ("worst-of-k", {"k": 1}),
    "worst-of-10": ("worst-of-k", {"k": 10}),
}


def network(method: str, threat: Spatial, data: str, keep: Path, epochs: int) -> nn.Module:
    """conv-small, trained or read from where an earlier run kept it."""
    folder = keep / f"{method}-{threat.name.replace(':', '').replace(',', '-')}"
    began = time.process_time()
    name, settings = TRAINED[method]
    found = train(
        "conv-small", data, threat, method=name, settings={"epochs": epochs, "guard": False, **settings}, run=folder
    )
    print(f"\n{folder.name}: trained in {time.process_time() - began:.0f} CPU s", flush=True)
    return found.model.cpu().eval()


def run(model: nn.Module, stages: Sequence[Stage], threat: Spatial, batch: Batch) -> tuple[list[bool], float, float]:
    """Which images stand, by place; forwards and backwards an image."""
    with Query(model) as query:
        found = sorted((o for some in drive(query, threat, stages, [batch]) for o in some), key=lambda o: o.index)
    count = len(found)
    return (
        [o.verdict == "robust" for o in found],
        sum(o.forwards for o in found) / count,
        sum(o.backwards for o in found) / count,
    )


def searches(data: str, keep: Path, epochs: int, count: int) -> None:
    """Three networks, and what every search and protocol leaves standing."""
    batch = next(load_data(data).batches(count))
    for method in TRAINED:
        model = network(method, MOVES, data, keep, epochs)
        with torch.no_grad():
            clean = 100 * float((model(batch.x).argmax(1) == batch.y).double().mean())
        rows: dict[str, Sequence[Stage]] = {name: [Stage(name, attack)] for name, attack in SEARCHES.items()}
        rows |= {name: PROTOCOLS[name](MOVES).stages for name in ("quick", "fast", "blackbox", "standard")}
        found = {name: run(model, stages, MOVES, batch) for name, stages in rows.items()}
        best, forwards, backwards = found["standard"]
        print(f"{method}, {MOVES.name}: {count} images, clean {clean:.1f} %")
        print(f"  {'':20} robust %  missed  found besides  forwards  backwards  units of standard's")
        for name, (standing, ahead, back) in found.items():
            missed = sum(a and not b for a, b in zip(standing, best, strict=True))
            besides = sum(b and not a for a, b in zip(standing, best, strict=True))
            share = (forwards + 2 * backwards) / (ahead + 2 * back)
            print(
                f"  {name:20} {100 * sum(standing) / count:8.1f} {missed:7d} {besides:14d} {ahead:9.0f} {back:10.0f}"
                f"  1/{share:.1f}",
                flush=True,
            )
        _peer(model, batch, best)


def _peer(model: nn.Module, batch: Batch, standing: list[bool]) -> None:
    """The grid of the adversarial robustness toolbox, image by image, on what ``standard`` left standing.

    It shifts by whole pixels, then turns, by cubic splines: other images than ours. Counted are those of its own that
    fool the model, and of its choices, as far as they are in our set, those that do so drawn by ours.
    """
    try:
        from art.attacks.evasion import SpatialTransformation
        from art.estimators.classification import PyTorchClassifier
    except ImportError as reason:
        print(f"  no peer: {reason}")
        return
    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), channels_first=True, device_type="cpu"
    )
    attack = SpatialTransformation(wrapped, 100 * 3 / 28, 5, 30.0, 31, verbose=False)
    angles, moves = np.linspace(-30, 30, 31), np.unique(np.round(np.linspace(-3, 3, 5)).astype(int))
    x, y = batch.x[standing], batch.y[standing]
    own = torch.zeros(len(x), dtype=torch.bool)
    ours = torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for angle in angles:
            for down in moves:
                for right in moves:
                    theirs = torch.from_numpy(attack._perturb(x.numpy(), int(down), int(right), float(angle)))
                    own |= _wrong(model, theirs, y)
                    # Shifted and then turned is turned, and then shifted along turned axes.
                    turn = np.deg2rad(angle)
                    z = torch.tensor([angle, np.cos(turn) * right + np.sin(turn) * down,
                                      np.cos(turn) * down - np.sin(turn) * right, 0.0]).float()  # fmt: skip
                    choices = z.expand(len(x), 4)
                    inside = MOVES.contains(x, choices)
                    ours |= inside & _wrong(model, MOVES.apply(x, choices), y)
    print(
        f"  art's grid, on the {len(x)} images that standard leaves standing: {int(own.sum())} fall to images drawn "
        f"its way, {int(ours.sum())} to its choices inside the set",
        flush=True,
    )


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) != y


def proofs(data: str, keep: Path, epochs: int, count: int, seconds: float) -> None:
    """What an audit with proofs leaves open: turns, for a network trained for them; small turns with small moves."""
    # Moves along two axes and a turn at once take long: fewer images tell what fraction of them closes.
    cases = (("worst-of-10", TURNS, TURNS, count), ("worst-of-10", MOVES, TURNS, count),
             ("worst-of-10", MOVES, SMALL, max(count // 5, 1)))  # fmt: skip
    for method, trained_for, threat, images in cases:
        model = network(method, trained_for, data, keep, epochs)
        began = time.process_time()
        found = audit(
            model,
            data,
            threat,
            protocol="fast",
            certify=Certification("complete", seconds),
            examples=f":{images}",
        )
        lower, upper = found.bracket
        assert found.certification is not None
        print(
            f"{method} for {trained_for.name}, under {threat.name}: {images} images, clean "
            f"{100 * found.clean_accuracy:.1f} %, bracket {100 * lower:.1f} <= {100 * upper:.1f} %, "
            f"{found.certification.open} open, {(time.process_time() - began) / images:.1f} CPU s an image",
            flush=True,
        )


PARTS = ("searches", "proofs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--proved", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0, help="of proof, an image")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--keep", type=Path, default=HERE.parent / "runs" / "spatial", help="where trained networks are kept"
    )
    arguments = parser.parse_args()
    data = f"mnist:{shared}/data/mnist"
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    if "searches" in arguments.parts:
        searches(data, arguments.keep, arguments.epochs, arguments.images)
    if "proofs" in arguments.parts:
        proofs(data, arguments.keep, arguments.epochs, arguments.proved, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
