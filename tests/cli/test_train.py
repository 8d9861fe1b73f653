"""``holdfast train`` as a person types it."""

import json

import pytest
from typer.testing import CliRunner

from holdfast import load_model
from holdfast.cli.main import app

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
