"""The command as a person types it: what it prints, what it exits with."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from helpers.networks import ordinary_digits
from helpers.onnx_graphs import node
from helpers.onnx_graphs import save as save_onnx
from holdfast.cli import quickstart
from holdfast.cli.main import app

FACTORY = "holdfast.models.networks:digits_conv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with weights, a file of networks that misbehave, and data that do not fit."""
    folder = tmp_path_factory.mktemp("cli")
    save_file(ordinary_digits().state_dict(), folder / "digits.safetensors")
    (folder / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    torch.save({"0.weight": torch.zeros(3)}, folder / "small.pt")
    (folder / "nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self, answer):
                super().__init__()
                self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
                self.answer = answer
            def forward(self, x):
                return self.answer(self.inner(x))
        def probabilities(): return Net(lambda z: z.softmax(1))
        def nan(): return Net(lambda z: z * torch.nan)
        def pair(): return Net(lambda z: (z, z))
        def five(): return Net(lambda z: z[:, :5])
        def broken(): raise ValueError("no such layer")
        def number(): return 3
        """)
    )
    x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "labels.npz", x=x, y=np.full(20, 12))
    np.savez(folder / "outside.npz", x=x * 2 - 1, y=np.zeros(20, int))
    np.savez(folder / "nan.npz", x=np.where(x > 0.99, np.nan, x), y=np.zeros(20, int))
    return folder


def holdfast(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def audit(folder: Path, *arguments: object, **change: object):
    options = {
        "model": FACTORY,
        "weights": folder / "digits.safetensors",
        "data": "digits",
        "threat": "linf:0.1",
        "examples": "0:60",
    } | change
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return holdfast("audit", *given, *arguments)


def test_audit_prints_the_bracket_and_writes_the_run(folder, tmp_path):
    result = audit(folder, run=tmp_path / "run")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "run" / "audit.json").read_text())
    robust = f"{100 * document['robust_accuracy']:.2f} %"
    for words in (
        "0.00 % (nothing certified)  ≤  robust accuracy",
        "Clopper-Pearson",
        "linf within 0.1, inside [0, 1]",
        "worst",
    ):
        assert words in result.stdout
    assert robust in result.stdout
    for name in ("clean", "fgsm", "pgd", "apgd-ce", "apgd-t", "forwards", "seed 0", "torch"):
        assert name in result.stdout
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as db:
        assert db.execute("SELECT count(*) FROM examples").fetchone() == (60,)


def test_attack_saves_inputs_that_audit_reads(folder, tmp_path):
    common = ("--model", FACTORY, "--weights", folder / "digits.safetensors")
    where = ("--data", "digits", "--examples", "0:30", "--threat", "linf:0.2", "--out", tmp_path / "out")
    result = holdfast("attack", "pgd", *common, *where, "--set", "steps=20", "--set", "objective=margin")
    assert result.exit_code == 0, result.output
    assert "correctly classified examples broken" in result.stdout
    success = np.load(tmp_path / "out" / "adversarial.npz")["success"].mean()
    again = holdfast("audit", *common, "--data", f"npz:{tmp_path / 'out' / 'adversarial.npz'}", "--threat", "linf:0",
                     "--run", tmp_path / "again")  # fmt: skip
    assert again.exit_code == 0, again.output
    document = json.loads((tmp_path / "again" / "audit.json").read_text())
    assert document["clean_accuracy"] == pytest.approx(1 - success)


def certify(folder: Path, *arguments: object, **change: object):
    options = {
        "model": FACTORY,
        "weights": folder / "digits.safetensors",
        "data": "digits",
        "examples": "0:40",
    } | change
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return holdfast("certify", *given, *arguments)


def test_certify_prints_what_each_method_proved(folder, tmp_path):
    result = certify(folder, method="crown", threat="linf:0.06", out=tmp_path, **{"certify-budgets": "0.02, 0.04"})
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "audit.json").read_text())
    assert f"certified accuracy {100 * document['certified_accuracy']:.2f} %" in result.stdout
    proved, left = document["certification"]["methods"]["crown"], document["certification"]["open"]
    lines = [line.split() for line in result.stdout.splitlines()]
    for line in ([str(proved), "proved", "by", "crown"], [str(left), "open"], ["0", "broken"]):
        assert line in lines
    assert [line[-1] for line in lines if line[2:3] == ["within"]] == ["0", "0.02", "0.04", "0.06"]
    with sqlite3.connect(tmp_path / "run.sqlite") as db:
        counts = dict(db.execute("SELECT verdict, count(*) FROM examples GROUP BY verdict"))
    # Without an attack nothing but a proof makes an example robust.
    assert counts["robust"] == proved
    assert counts["undecided"] == left
    assert counts["robust"] + counts["undecided"] + counts["misclassified"] == 40


def test_certify_completely_decides_every_example(folder, tmp_path):
    result = certify(folder, method="complete", threat="linf:0.06", out=tmp_path)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["bracket"][0] == document["bracket"][1]
    assert "branch and bound" in result.stdout
    assert audit(folder, examples="0:40", threat="linf:0.06", certify="complete").stdout.count("is exactly") == 1


def test_certify_by_smoothing_writes_a_log_that_can_be_checked(folder, tmp_path):
    from holdfast.certify.smoothing.log import check_log, read_log

    options = {"method": "smoothing", "sigma": 0.25, "samples": 1000, "out": tmp_path / "run"}
    result = certify(folder, **options)
    assert result.exit_code == 0, result.output
    log = read_log(tmp_path / "run" / "smoothing.tsv")
    assert log.idx.tolist() == list(range(40))
    assert check_log(log, 0.25, samples=1000) == ()
    for radius in (0.0, 0.25):
        assert f"{100 * log.certified_accuracy(radius):.2f} %" in result.stdout
    assert f"average certified radius {log.average_certified_radius:.4f}; {log.abstentions} of 40" in result.stdout
    # Cut short in the middle of a line, the same command ends with the same lines (times aside).
    whole = (tmp_path / "run" / "smoothing.tsv").read_text()
    (tmp_path / "run" / "smoothing.tsv").write_text(whole[: whole.index("\n20\t") + 4])
    again = certify(folder, **options)
    assert again.stdout == result.stdout
    resumed = (tmp_path / "run" / "smoothing.tsv").read_text()
    strip = [[part for i, part in enumerate(line.split("\t")) if i != 5] for line in whole.splitlines()]
    assert [[p for i, p in enumerate(line.split("\t")) if i != 5] for line in resumed.splitlines()] == strip
    other = certify(folder, **options | {"sigma": 0.5})
    assert other.exit_code == 5
    assert "sigma was 0.25 and is now 0.5" in other.stderr
    fixed = certify(folder, **options | {"out": None, "procedure": "fixed", "examples": "0:3"})
    assert "3,300 samples, 100.0% of the 3,300" in fixed.stdout


def test_settings_and_log_of_smoothing_are_written_beside_their_places_first(folder, tmp_path):
    options = {"method": "smoothing", "sigma": 0.25, "samples": 20, "examples": "0:2", "out": tmp_path}
    for name in ("smoothing.json", "smoothing.tsv"):
        (tmp_path / f"{name}.part").mkdir()
        stopped = certify(folder, **options)
        assert stopped.exit_code == 5
        assert f"{name}.part: is no file" in stopped.stderr
        (tmp_path / f"{name}.part").rmdir()
        assert certify(folder, **options).exit_code == 0
        log = tmp_path / "smoothing.tsv"
        log.write_text(log.read_text()[:-1])  # which has to be cut on the next round


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "magic", "threat": "linf:0.1"}, "unknown method 'magic'"),
        ({"method": "none", "threat": "linf:0.1"}, "unknown method 'none'"),
        ({"method": "crown"}, "--threat: crown proves something about a threat"),
        ({"method": "crown", "threat": "linf:0.1", "sigma": 0.1}, "--sigma: crown proves without noise"),
        ({"method": "smoothing"}, "--sigma: smoothing needs"),
        ({"method": "smoothing", "sigma": 0.1, "threat": "l2:1"}, "finds the radius itself"),
        ({"method": "smoothing", "sigma": 0.1, "procedure": "lucky"}, "choose one of sequential, fixed"),
        ({"method": "smoothing", "sigma": -1}, "positive"),
        ({"method": "smoothing", "sigma": 0.1, "alpha": 2}, "alpha"),
    ],
)
def test_certify_settings(folder, change, words):
    result = certify(folder, **change)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr


FAULTS = [
    ({"model": "missing.py:net"}, 3, "missing.py"),
    ({"model": "{}/nets.py:nothing"}, 3, "nothing"),
    ({"model": "{}/nets.py:broken"}, 3, "no such layer"),
    ({"model": "{}/nets.py:number"}, 3, "int"),
    ({"model": "net.onnx"}, 3, "net.onnx"),
    ({"weights": "missing.safetensors"}, 3, "missing.safetensors"),
    ({"weights": "{}/page.pt"}, 3, "HTML"),
    ({"weights": "{}/small.pt"}, 3, "0.weight"),
    ({"model": "{}/nets.py:probabilities", "weights": None}, 3, "probabilities"),
    ({"model": "{}/nets.py:nan", "weights": None}, 3, "NaN"),
    ({"model": "{}/nets.py:pair", "weights": None}, 3, "tuple"),
    ({"model": "{}/nets.py:five", "weights": None}, 3, "returns 5 logits, but digits"),
    ({"data": "mnist:nowhere"}, 4, "nowhere"),
    ({"data": "cifar"}, 4, "digits, mnist:DIR"),
    ({"data": "npz:{}/labels.npz"}, 4, "label 12"),
    ({"data": "npz:{}/outside.npz"}, 4, "outside the box"),
    ({"data": "npz:{}/nan.npz"}, 4, "NaN or infinite"),
    ({"examples": "900:1000"}, 4, "select nothing"),
    ({"examples": "ten"}, 2, "START:STOP"),
    ({"threat": "l7:1"}, 2, "l7:1"),
    ({"threat": "linf:-0.1"}, 2, "-0.1"),
    ({"threat": "linf:8/0"}, 2, "8/0"),
    ({"threat": "l0:2.5"}, 2, "whole number"),
    ({"box": "1,0"}, 2, "lower bound"),
    ({"box": "wide"}, 2, "wide"),
    ({"mean": "a"}, 2, "--mean"),
    ({"protocol": "best"}, 2, "quick"),
    ({"certify": "magic"}, 2, "ibp, crown, alpha-crown, complete, own or smoothing"),
    ({"certify": "crown", "certify-seconds": "0"}, 2, "positive"),
    ({"certify": "crown", "certify-budgets": "0.2"}, 2, "0.2 does not lie between 0 and"),
    ({"certify": "smoothing"}, 2, "sigma"),
    ({"certify": "crown", "sigma": "0.25"}, 2, "belongs to smoothing"),
    ({"run": "/dev/null/run"}, 5, "/dev/null/run"),
]


@pytest.mark.parametrize(
    ("change", "code", "words"), FAULTS, ids=[str(next(iter(fault[0].values()))) for fault in FAULTS]
)
def test_faults_are_one_line_and_a_code(folder, change, code, words):
    filled = {name: value and value.replace("{}", str(folder)) for name, value in change.items()}
    result = audit(folder, **filled)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("holdfast: ")
    assert words in lines[0]


def test_the_folder_of_another_audit(folder, tmp_path):
    assert audit(folder, run=tmp_path).exit_code == 0
    result = audit(folder, run=tmp_path, seed=3)
    assert result.exit_code == 5
    assert "holds another audit: seed was 0 and is now 3" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("best",), "unknown attack 'best': choose one of fgsm, bim, mifgsm, pgd, annealed-pgd, contracting-pgd, apgd"),
        (("pgd", "--set", "steps"), "NAME=VALUE"),
        (("pgd", "--set", "steps=many"), "setting 'steps'"),
        (("pgd", "--set", "steps=0"), "positive"),
        (("pgd", "--set", "pace=3"), "no setting 'pace'"),
        (("apgd", "--threat", "l1:2"), "use pgd there"),
    ],
)
def test_attack_settings(folder, tmp_path, arguments, words):
    base = ("--model", FACTORY, "--data", "digits", "--out", tmp_path / "out")
    threat = () if "--threat" in arguments else ("--threat", "linf:0.1")
    result = holdfast("attack", *arguments, *base, *threat)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr


def test_help_and_version():
    assert "audit" in holdfast("--help").stdout
    assert holdfast("--version").stdout.startswith("holdfast ")
    for command in ("audit", "certify", "attack", "verify", "quickstart"):
        assert holdfast(command, "--help").exit_code == 0


PROPERTY = """
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 0.0))
(assert (<= X_0 1.0))
(assert (>= X_1 0.0))
(assert (<= X_1 1.0))
(assert (>= Y_0 {bound}))
"""


def test_verify_says_the_word_of_the_competition(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Sum(nn.Module):\n    def forward(self, x):\n"
        "        return torch.cat([x.sum(1, keepdim=True), (x[:, :1] - x[:, 1:]).relu()], 1)\n"
        "class Sorted(nn.Module):\n    def forward(self, x):\n        return x.sort(1).values\n"
    )
    for bound, word in ((2.5, "unsat"), (1.5, "sat")):
        (tmp_path / "p.vnnlib").write_text(PROPERTY.format(bound=bound))
        result = holdfast("verify", f"{tmp_path}/nets.py:Sum", tmp_path / "p.vnnlib", "--out", tmp_path / "result")
        assert result.exit_code == 0, result.output
        assert result.stdout.split()[0] == word
        assert (tmp_path / "result").read_text() == result.stdout
        assert ("X_0" in result.stdout) == (word == "sat")
    (tmp_path / "p.vnnlib").write_text(PROPERTY.format(bound="(+ 1"))
    broken = holdfast("verify", f"{tmp_path}/nets.py:Sum", tmp_path / "p.vnnlib")
    assert broken.exit_code == 4
    assert len(broken.stderr.strip().splitlines()) == 1
    (tmp_path / "p.vnnlib").write_text(PROPERTY.format(bound=2.5))
    unknown = holdfast("verify", f"{tmp_path}/nets.py:Sorted", tmp_path / "p.vnnlib", "--timeout", 2)
    assert unknown.stdout.split()[0] == "unknown"
    assert "sort" in unknown.stderr


def test_free_dimensions_of_onnx_files_are_given_sizes(tmp_path):
    path = save_onnx(tmp_path / "net.onnx", [node("MatMul", "x w")], ("N", "width"), w=np.ones((2, 2), np.float32))
    (tmp_path / "p.vnnlib").write_text(PROPERTY.format(bound=2.5))
    for size in ("width=2", "1=2"):
        result = holdfast("verify", path, tmp_path / "p.vnnlib", "--size", size)
        assert result.stdout.split()[0] == "unsat", result.output
    for sizes, words in ([], "--size 1="), (["--size", "width"], "--size height=224"), (["--size", "d=2"], "free"):
        result = holdfast("verify", path, tmp_path / "p.vnnlib", *sizes)
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_verify_loads_weights(tmp_path):
    (tmp_path / "nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")
    (tmp_path / "p.vnnlib").write_text(PROPERTY.format(bound=1.5))
    for factor, word in ((1.0, "sat"), (0.5, "unsat")):  # the first output is the sum of the inputs times this
        save_file({"weight": torch.full((2, 2), factor), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
        result = holdfast(
            "verify", f"{tmp_path}/nets.py:net", tmp_path / "p.vnnlib", "--weights", tmp_path / "w.safetensors"
        )
        assert result.stdout.split()[0] == word, result.output


def decided(store: Path) -> int:
    """How many verdicts a run has kept so far, without waiting for it where it is writing."""
    if store.exists():
        with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(store, timeout=0) as db:
            return db.execute("SELECT count(*) FROM examples").fetchone()[0]
    return 0


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_same_command_resumes(folder, tmp_path):
    command = [sys.executable, "-m", "holdfast.cli.main", "audit", "--model", FACTORY, "--weights",
               str(folder / "digits.safetensors"), "--data", "digits", "--threat", "linf:0.05", "--run",
               str(tmp_path / "run"), "--batch-size", "4"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not decided(tmp_path / "run" / "run.sqlite"):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; every verdict so far is kept in" in stderr
    assert b"Traceback" not in stderr
    again = audit(folder, run=tmp_path / "run", threat="linf:0.05", examples=None, **{"batch-size": 4})
    assert again.exit_code == 0, again.output
    assert "500 examples" in again.stdout


@pytest.mark.slow
def test_quickstart_shows_brackets(tmp_path, monkeypatch):
    # The whole of it runs with the README; this is as much as tells one network from the other.
    monkeypatch.setattr(quickstart, "RECIPE", replace(quickstart.RECIPE, epochs=12))
    monkeypatch.setattr(quickstart, "audit", partial(quickstart.audit, examples=":100"))
    result = holdfast("quickstart", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ordinary, adversarial = (
        [json.loads((tmp_path / "out" / name / eps / "audit.json").read_text()) for eps in ("0.05", "0.15")]
        for name in ("ordinary", "adversarial")
    )
    assert all(document["clean_accuracy"] > 0.85 for document in ordinary + adversarial)
    assert adversarial[1]["robust_accuracy"] > ordinary[1]["robust_accuracy"] + 0.3
    for exact, attacked in (ordinary, adversarial):
        # Rounding may leave an example open.
        assert exact["bracket"][0] >= exact["bracket"][1] - 0.011
        assert attacked["certified_accuracy"] is None
        for document in (exact, attacked):
            assert f"{100 * document['robust_accuracy']:.2f} %" in result.stdout
    assert holdfast("quickstart", "--out", tmp_path / "out", "--seed", 1).exit_code == 0


@pytest.fixture(scope="module")
def binary(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    (folder / "net.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        def one():
            net = nn.Linear(4, 1)
            net.weight.data, net.bias.data = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.zeros(1)
            return net
        def sigmoid():
            return nn.Sequential(one(), nn.Sigmoid())
        """)
    )
    x = np.random.default_rng(0).random((40, 4), dtype=np.float32)
    np.savez(folder / "data.npz", x=x, y=(x @ np.array([1, -1, 1, -1]) > 0).astype(int))
    return folder


class TestOneLogitAndBudgets:
    """What the commands say of a model with one output, and of a budget that can hardly be meant."""

    def run(self, binary: Path, *arguments: object, model: str = "one", threat: str | None = "linf:0.01"):
        allowed = () if threat is None else ("--threat", threat)
        return holdfast(*arguments, "--model", f"{binary}/net.py:{model}", "--data", f"npz:{binary}/data.npz", *allowed)

    @pytest.mark.parametrize("command", ["audit", "certify", "attack", "smooth"])
    def test_the_reading_is_printed_and_can_be_turned(self, binary, tmp_path, command):
        arguments = {
            "audit": ("audit",),
            "certify": ("certify", "--method", "crown"),
            "attack": ("attack", "pgd", "--out", tmp_path / "out"),
            "smooth": ("certify", "--method", "smoothing", "--sigma", "0.1", "--samples", "200"),
        }[command]
        threat = None if command == "smooth" else "linf:0.01"
        plain = self.run(binary, *arguments, threat=threat)
        assert plain.exit_code == 0
        assert "class 1 where it is positive" in " ".join(plain.output.replace("│", " ").split())
        turned = self.run(
            binary,
            *(a if a != tmp_path / "out" else tmp_path / "0" for a in arguments),
            "--positive",
            "0",
            threat=threat,
        )
        assert turned.exit_code == 0
        assert "class 0 where it is positive" in " ".join(turned.output.replace("│", " ").split())
        if command == "audit":
            assert "clean accuracy   100.00 %" in plain.output
            assert "clean accuracy   0.00 %" in turned.output

    def test_what_cannot_be_read_so(self, binary):
        refused = self.run(binary, "audit", model="sigmoid")
        assert refused.exit_code == 3
        assert refused.output.count("\n") == 1
        assert "remove its final sigmoid" in refused.output
        assert self.run(binary, "audit", "--positive", "2").exit_code == 2

    @pytest.mark.parametrize("command", ["audit", "certify", "attack"])
    def test_a_budget_that_covers_the_box_is_doubted(self, binary, tmp_path, command):
        arguments = {
            "audit": ("audit",),
            "certify": ("certify", "--method", "crown"),
            "attack": ("attack", "pgd", "--out", tmp_path / "out"),
        }[command]
        doubted = self.run(binary, *arguments, threat="linf:8")
        assert "write 8/255" in " ".join(doubted.output.split())
        assert (
            "budget of"
            not in self.run(binary, *(a if a != tmp_path / "out" else tmp_path / "0" for a in arguments)).output
        )
