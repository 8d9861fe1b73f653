"""``holdfast train`` as a person types it."""

import json
import shlex

import numpy as np
import pytest
from typer.testing import CliRunner

from holdfast import load_model
from holdfast.cli.main import app
from holdfast.models.networks import NETWORKS

SHORT = ("--data", "digits", "--examples", "0:200", "--set", "validation=40", "--set", "steps=2")


def holdfast(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(run, *arguments, arch="mlp", threat="linf:0.05"):
    return holdfast("train", "--arch", arch, "--threat", threat, "--run", run, *SHORT, *arguments)


def test_it_leaves_weights_a_record_curves_and_an_audit(tmp_path):
    run = tmp_path / "run"
    result = train(run, "--epochs", 2, "--audit", "quick", "--audit-examples", ":40")
    assert result.exit_code == 0, result.output
    for words in ("epoch     step", "best after epoch", "robust accuracy  ≤", "worst", "holds weights.safetensors"):
        assert words in result.output
    names = {path.name for path in run.iterdir()}
    assert names == {"weights.safetensors", "train.json", "checkpoint.safetensors", "curves.png", "audit"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((run / "audit" / "audit.json").read_text())
    assert (document["examples"], document["threat"]["eps"]) == (40, 0.05)
    # Whatever there is to know of a class is known of every class.
    assert len(document["per_class"]) == 10
    assert len(json.loads((run / "train.json").read_text())["epochs"]) == 2
    before = (run / "weights.safetensors").read_bytes()
    again = train(run, "--epochs", 2, "--audit", "none")
    assert again.exit_code == 0, again.output
    assert (run / "weights.safetensors").read_bytes() == before
    load_model(run)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--method", "pdg"), 2, "unknown method 'pdg': choose one of standard"),
        (("--method", "awp"), 2, "write awp:pgd"),
        (("--set", "beta=2"), 2, "pgd has no setting 'beta'"),
        (("--set", "lr=fast"), 2, "recipe: setting 'lr'"),
        (("--set", "lr=-1"), 2, "lr: -1.0 is outside its range"),
        (("--model", "net.py:net"), 2, "give --arch NAME for a network by name, or --model"),
        (("--epochs", "3", "--set", "lr=1e38", "--set", "optimizer=sgd"), 3, "lower the learning rate"),
    ],
)
def test_faults_are_one_line_and_a_code(tmp_path, arguments, code, words):
    result = train(tmp_path / "run", "--audit", "none", *arguments)
    assert result.exit_code == code, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("holdfast: ")
    assert words in message


def test_another_run_in_the_folder_is_kept(tmp_path):
    assert train(tmp_path / "run", "--epochs", 1, "--audit", "none").exit_code == 0
    other = train(tmp_path / "run", "--epochs", 1, "--audit", "none", threat="linf:0.1")
    assert other.exit_code == 5
    assert "holds another run: its method was" in other.stderr


# The wide one would take a minute to train; it is loaded by name in tests/models/test_named.py.
@pytest.mark.parametrize(
    "arch",
    [pytest.param(name, marks=pytest.mark.slow if "resnet" in name else ()) for name in NETWORKS if "wide" not in name],
)
def test_the_command_that_it_prints_audits_what_it_trained(tmp_path, arch):
    run = tmp_path / "it's a [red]run"
    few = ("--epochs", 1, "--examples", "0:40", "--set", "validation=20", "--set", "steps=1", "--set", "guard=false")
    data = ("--data", f"npz:{tmp_path / 'grey levels.npz'}")
    x = np.random.default_rng(0).uniform(0, 255, (40, 1, 8, 8))
    np.savez(tmp_path / "grey levels.npz", x=x, y=np.arange(40) % 4)
    budget = ("--threat", "linf:8/3", "--box", "0,255", "--audit", "none")
    trained = holdfast("train", "--arch", arch, "--run", run, *data, *few, *budget)
    assert trained.exit_code == 0, trained.output
    (command,) = [line.strip() for line in trained.stdout.splitlines() if line.strip().startswith("holdfast audit")]
    program, *arguments = shlex.split(command)
    assert program == "holdfast"
    audited = holdfast(*arguments, "--examples", "0:2", "--max-forwards", 1)
    assert audited.exit_code == 0, audited.output
    (document,) = run.glob("*/audit.json")
    found = json.loads(document.read_text())
    assert found["threat"]["eps"] == 8 / 3
    assert found["threat"]["box"] == [0, 255]
    weights = ("--model", arch, "--weights", run / "weights.safetensors")
    rest = ("--examples", "0:2", "--max-forwards", 1, "--run", tmp_path / "named")
    by_name = holdfast("audit", *weights, *data, *budget[:4], *rest)
    assert by_name.exit_code == 0, by_name.output
    again = json.loads((tmp_path / "named" / "audit.json").read_text())
    assert again["verdicts"] == found["verdicts"]
