"""Audits of published networks on real data, against the verdicts of the published ensemble, example by example."""

import json
import sqlite3
from pathlib import Path

import pytest

import holdfast
from helpers.shared import SHARED, needs_shared

pytestmark = [needs_shared, pytest.mark.slow]

NETS = SHARED / "models" / "nets.py"
MNIST = f"mnist:{SHARED / 'data' / 'mnist'}"
CIFAR = f"npz:{SHARED / 'data' / 'cifar10' / 'cifar10_exact_test_first1017.npz'}"


def audit(factory: str, weights: str, data: str, threat: str, examples: str, **options):
    weights_file = SHARED / "models" / weights
    return holdfast.audit(holdfast.Model(f"{NETS}:{factory}", weights_file), data, threat, examples=examples, **options)


def test_the_clean_lenet_falls_to_nothing():
    result = audit("mnist_lenet5", "advertorch_lenet5_clean.pt", MNIST, "linf:0.3", "0:1000")
    assert result.clean_accuracy > 0.98
    assert result.robust_accuracy == 0.0


def test_the_adversarially_trained_lenet_ends_near_the_published_ensemble():
    published = json.loads((SHARED / "reference" / "advertorch_lenet5_adv_linf0.3-Linf-0.3.json").read_text())
    result = audit("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", MNIST, "linf:0.3", "0:200")
    # The file's accuracy is that of the first 100 and in float32, hence the last term.
    assert 0.8 < result.robust_accuracy <= published["robust_accuracy"] + 0.015 + 1e-6


CASES = [
    ("mnist_conv_small", "convexadv_linf0.1.pth", MNIST, "linf:0.1", "convexadv_linf0.1-Linf-0.1"),
    ("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, "linf:0.007843", "abcrown_resnet2b-Linf-0.007843"),
    ("cifar_resnet2b", "abcrown_resnet2b.pth", CIFAR, "l2:0.25", "abcrown_resnet2b-L2-0.25"),
]


@pytest.mark.parametrize(("factory", "weights", "data", "threat", "reference"), CASES, ids=[c[4] for c in CASES])
def test_verdicts_agree_with_the_published_ensemble(tmp_path, factory, weights, data, threat, reference):
    published = json.loads((SHARED / "reference" / f"{reference}.json").read_text())
    count = min(published["first_n"], 100)
    audit(factory, weights, data, threat, f"0:{count}", run=tmp_path)
    with sqlite3.connect(tmp_path / "run.sqlite") as db:
        mine = [v == "robust" for (v,) in db.execute("SELECT verdict FROM examples ORDER BY idx")]
    differ = [i for i in range(count) if mine[i] != bool(published["robust"][i])]
    # A short cascade leaves an example or two standing that 8,000 passes break; it breaks none that is robust.
    assert sum(mine[i] for i in differ) <= 2, differ
    assert sum(not mine[i] for i in differ) <= 1, differ


DATA = {"mnist": MNIST, "cifar": CIFAR, "fashion": f"mnist:{SHARED / 'data' / 'fashion_mnist'}"}
# Parts of the test sets in which the later stages of the ensemble break something, where there is such a part.
PARTS = {
    "abcrown_cifar_conv_small_pgd-Linf-0.007843": (0, 5),
    "abcrown_resnet2b-L2-0.25": (0, 4),
    "abcrown_resnet2b-Linf-0.007843": (0, 5),
    "advertorch_lenet5_adv_linf0.3-Linf-0.3": (7, 9),
    "convexadv_linf0.1-Linf-0.1": (0, 5),
    "fashion_convexadv_linf0.1-Linf-0.1": (117, 123),
    "fast_adv_fgsm_linf0.3-Linf-0.3": (20, 37),
}


def published_verdicts(reference: str) -> dict:
    return json.loads((SHARED / "reference" / f"{reference}.json").read_text())


def stored(folder: Path, columns: str) -> list[tuple]:
    with sqlite3.connect(folder / "run.sqlite") as db:
        return db.execute(f"SELECT {columns} FROM examples ORDER BY idx").fetchall()


def against(reference: str, folder: Path, protocol: str, start: int, stop: int) -> tuple[list[tuple], list[bool]]:
    """Verdicts and costs of our protocol, and which examples the published ensemble leaves standing."""
    published = published_verdicts(reference)
    threat = {"Linf": holdfast.Linf, "L2": holdfast.L2}[published["norm"]](published["eps"])
    where = (published["factory"], published["model"], DATA[published["data"]])
    audit(*where, threat, f"{start}:{stop}", protocol=protocol, run=folder)
    return stored(folder, "verdict, forwards, backwards"), [bool(robust) for robust in published["robust"][start:stop]]


@pytest.mark.parametrize("reference", PARTS)
def test_standard_is_the_published_ensemble(tmp_path, reference):
    rows, published = against(reference, tmp_path, "standard", *PARTS[reference])
    assert [verdict == "robust" for verdict, *_ in rows] == published
    # The published code, counted: 7,864 forwards and 1,910 backwards for an example that it cannot break.
    for verdict, forwards, backwards in rows:
        if verdict == "robust":
            assert forwards == pytest.approx(7864, rel=0.01)
            assert backwards == pytest.approx(1910, rel=0.01)


@pytest.mark.parametrize("reference", PARTS)
def test_fast_finds_what_the_published_ensemble_finds(tmp_path, reference):
    whole = published_verdicts(reference)
    rows, published = against(reference, tmp_path, "fast", 0, whole["first_n"])
    standing = [verdict == "robust" for verdict, *_ in rows]
    # Which of the hardest fall is a matter of the seed, for both.
    assert sum(standing) <= sum(published) + 1
    assert sum(not mine and theirs for mine, theirs in zip(standing, published, strict=True)) <= 1
    cost = sum(forwards + 2 * backwards for _, forwards, backwards in rows)
    assert cost * (15 if whole["norm"] == "L2" else 25) <= whole["forwards"] + 2 * whole["backwards"]


@pytest.mark.parametrize(
    ("onnx", "factory", "weights", "mean", "std"),
    [
        ("cifar_base_kw.onnx", "cifar_base_kw", "oval21_cifar_base_kw.pth", (0.485,) * 3, (0.225,) * 3),
        (
            "resnet_2b.onnx",
            "cifar_resnet2b",
            "abcrown_resnet2b.pth",
            (0.4914, 0.4822, 0.4465),
            (0.2471, 0.2435, 0.2616),
        ),
    ],
)
def test_an_onnx_network_and_its_twin_get_the_same_verdicts(tmp_path, onnx, factory, weights, mean, std):
    mean = (0.485, 0.456, 0.406) if onnx.startswith("cifar_base") else mean
    audit(factory, weights, CIFAR, "linf:2/255", "0:60", run=tmp_path / "torch")
    model = holdfast.Model(SHARED / "models" / onnx, mean=mean, std=std)
    holdfast.audit(model, CIFAR, "linf:2/255", examples="0:60", run=tmp_path / "onnx")

    columns = "idx, verdict, stage"
    assert stored(tmp_path / "torch", columns) == stored(tmp_path / "onnx", columns)
