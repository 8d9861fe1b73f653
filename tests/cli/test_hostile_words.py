"""Every command met with names and texts of an enemy: one line for what is wrong, and nothing that is obeyed."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.words import HOSTILE, obeyed
from holdfast.cli.main import app

Image = pytest.importorskip("PIL.Image")

NETS = """
import torch
from torch import nn
WORDS = {words!r}
class Net(nn.Module):
    def __init__(self, fault=False):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.fault = nn.Linear(4, 2), fault
    def forward(self, x):
        if self.fault:
            raise RuntimeError(WORDS)
        return self.inner(x.flatten(1))
def make(): return Net()
def fails(): return Net(True)
def raises(): raise ValueError(WORDS)
"""


def holdfast(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> str:
    """What a command printed, once it is known to be harmless, and one line where it is an error."""
    result = holdfast(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not obeyed(result.output.replace("\n", ""))
    if result.exit_code:
        assert result.exit_code in (1, 2, 3, 4, 5)
        (line,) = result.stderr.splitlines()
        assert line.startswith("holdfast: ")
    return result.output


@pytest.fixture(scope="module", params=HOSTILE, ids=range(len(HOSTILE)))
def words(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(words, tmp_path_factory) -> Path:
    """Models, data, a protocol and a property, named and filled with such words."""
    folder = tmp_path_factory.mktemp("hostile") / _name(words)
    folder.mkdir()
    (folder / f"{_name(words)}.py").write_text(NETS.format(words=words))
    (folder / "nets.py").write_text(NETS.format(words=words))
    np.savez(folder / f"{_name(words)}.npz", x=np.random.default_rng(0).random((6, 4)), y=np.arange(6) % 2)
    for name in (f"a{_name(words)}", f"b{_name(words)}"):
        (folder / "images" / name).mkdir(parents=True)
        for place in range(6):
            Image.new("L", (2, 2), color=40 * place).save(folder / "images" / name / f"{place}.png")
    text = json.dumps("".join(c for c in words if not "\ud800" <= c <= "\udfff"))
    (folder / "own.toml").write_text(f'name = {text}\ncaveat = {text}\n[[stages]]\nattack = "fgsm"\nname = {text}\n')
    (folder / "bad.toml").write_text(f"{text} = 3\n[[stages]]\nattack = {text}\n")
    declared = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n"
    (folder / "property.vnnlib").write_text(f"{declared}(assert (<= X_0 {words}))", errors="replace")
    return folder


def _name(words: str) -> str:
    """The words as a file may be called."""
    return words.replace("/", "|").replace("\0", "").replace("\ud800", "")[:60]


def test_everything_that_goes_well(folder, words):
    model, data = f"{folder / _name(words)}.py:make", f"images:{folder / 'images'}"
    common = ("--model", model, "--data", data, "--threat", "linf:0.1")
    audited = told("audit", *common, "--protocol", folder / "own.toml", "--run", folder / "run", "--certify", "crown")
    assert "robust accuracy" in audited
    result = json.loads((folder / "run" / "audit.json").read_text())
    assert not obeyed(json.dumps(result, ensure_ascii=False))
    assert "robust accuracy" in told("audit", *common, "--protocol", folder / "own.toml", "--run", folder / "run",
                                     "--certify", "crown")  # fmt: skip
    assert "certified accuracy" in told("certify", "--method", "ibp", *common, "--out", folder / "proofs")
    assert "broken" in told("attack", "fgsm", *common, "--out", folder / "attack")
    smoothing = ("--method", "smoothing", "--sigma", 0.5, "--samples", 100)
    assert "abstained" in told("certify", *smoothing, *common[:4], "--out", folder / "smooth")
    rows = f"npz:{folder / _name(words)}.npz"
    if "?" not in rows:
        assert "robust accuracy" in told("audit", "--model", model, "--data", rows, "--threat", "linf:0.1")


def test_everything_that_fails(folder, words):
    model, data = f"{folder / 'nets.py'}:make", f"images:{folder / 'images'}"
    common = {"--model": model, "--data": data, "--threat": "linf:0.1"}
    for option, value in {
        "--model": f"{folder / 'nets.py'}:fails",
        "--data": f"npz:{folder / words}",
        "--threat": words,
        "--weights": folder / _name(words) / "weights.pt",
        "--box": words,
        "--protocol": folder / "bad.toml",
        "--run": folder / "nets.py",
        "--examples": words,
        "--seed": words,
        "--mean": words,
        "--certify": words,
        "--certify-budgets": words,
        "--knowledge": words,
    }.items():
        change = common | {option: value}
        assert told("audit", *[part for pair in change.items() for part in pair]).startswith("holdfast: "), option
    pairs = [part for pair in common.items() for part in pair]
    for arguments in (
        ("audit", "--model", f"{folder / 'nets.py'}:raises", *pairs[2:]),
        ("audit", "--model", f"{folder / 'nets.py'}:{words}", *pairs[2:]),
        ("audit", "--model", words, *pairs[2:]),
        ("audit", "--data", words, *pairs[:2], *pairs[4:]),
        ("audit", "--protocol", words, *pairs),
        ("attack", words, *pairs, "--out", folder / "out"),
        ("attack", "fgsm", *pairs, "--out", folder / "out", "--set", words),
        ("attack", "pgd", *pairs, "--out", folder / "out", "--set", f"{words}=1"),
        ("attack", "pgd", *pairs, "--out", folder / "out", "--set", f"steps={words}"),
        ("certify", "--method", words, *pairs),
        ("verify", f"{folder / 'nets.py'}:make", folder / "property.vnnlib"),
        ("verify", f"{folder / words}.onnx", folder / "property.vnnlib"),
        ("train", *pairs[2:], "--arch", words, "--run", folder / "train"),
        ("train", *pairs, "--method", words, "--run", folder / "train"),
        ("train", *pairs, "--track", words, "--run", folder / "train"),
        ("lab", words),
        ("quickstart", "--out", folder / "nets.py"),
        (words,),
        (f"--{words}",),
        ("audit", f"--{words}"),
    ):
        assert "holdfast: " in told(*arguments), arguments


def test_training_that_goes_well(folder, words):
    command = ("train", "--model", f"{folder / _name(words)}.py:make", "--data", f"images:{folder / 'images'}",
               "--threat", "linf:0.1", "--method", "pgd", "--epochs", 1, "--run", folder / "trained",
               "--audit", "quick")  # fmt: skip
    assert "robust accuracy" in told(*command)


@pytest.mark.parametrize(
    "words",
    [
        HOSTILE[0],
        pytest.param(HOSTILE[4], marks=pytest.mark.slow),
        pytest.param(HOSTILE[-2].encode("utf-8", "replace").decode(), marks=pytest.mark.slow),
    ],
)
def test_in_a_terminal(words, tmp_path):
    """Where colours and a progress line are drawn too."""
    (tmp_path / f"{_name(words)}.py").write_text(NETS.format(words=words))
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).random((6, 4)), y=np.arange(6) % 2)
    for model in ("make", "fails"):
        command = [sys.executable, "-m", "holdfast", "audit", "--model", f"{tmp_path / _name(words)}.py:{model}",
                   "--data", f"npz:{tmp_path / 'rows.npz'}", "--threat", "linf:0.1"]  # fmt: skip
        shown = _in_terminal(command)
        assert ("robust accuracy" if model == "make" else "holdfast: the model failed") in shown
        own = shown
        for sequence in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r", "\n"):
            own = own.replace(sequence, "")
        assert "\x1b[31;1m" not in own
        assert "owned\x9c" not in own
        assert "\x1b]" not in own


def _in_terminal(command: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True) as run:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            parts.append(part)
        run.wait()
    os.close(ours)
    return b"".join(parts).decode()
