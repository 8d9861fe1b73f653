"""Odd values for every option of every command: each is taken, or refused in one line with the code of its kind."""

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from holdfast.cli.main import app

NET = """
import torch
from torch import nn
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
"""
PROPERTY = "\n".join(
    [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1")]
    + [f"(assert (>= X_{i} 0.0)) (assert (<= X_{i} 1.0))" for i in range(2)]
    + ["(assert (>= Y_0 100.0))"]
)
MODEL = ("--model", "net.py:net")
DATA = (*MODEL, "--data", "npz:data.npz", "--threat", "linf:0.01", "--examples", ":1")
COMMANDS = {
    "audit": ("audit", *DATA, "--max-forwards", "1"),
    "certify": ("certify", *DATA, "--method", "ibp"),
    "smoothing": ("certify", *MODEL, "--data", "npz:data.npz", "--examples", ":1", "--method", "smoothing",
                  "--sigma", "0.5", "--samples", "20"),
    "attack": ("attack", "fgsm", *DATA, "--out", "attacked"),
    "verify": ("verify", "net.py:net", "unsafe.vnnlib", "--timeout", "1"),
    "train": ("train", *DATA, "--run", "trained", "--method", "standard", "--set", "epochs=0", "--audit", "none"),
    "lab": ("lab", "no-such"),
    "quickstart": ("quickstart", "--out", "/dev/null/quickstart"),
}  # fmt: skip
ODD = ("", "nan", "-1", "99999999999999999999999", "\x1b[31mred\nlines", "5:2")

NEVER_TAKEN = {"--box", "--certify-arithmetic", "--procedure", "--threat"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "unsafe.vnnlib").write_text(PROPERTY)
    x = np.random.default_rng(0).random((2, 2), dtype=np.float32)
    np.savez("data.npz", x=x, y=np.array([0, 1]))


def run_in_lines(*arguments: str) -> int:
    """Run a command, whose error is one line, and which never writes what a terminal would obey."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert "\x1b" not in result.output, arguments
    assert result.exit_code in (0, 2, 3, 4, 5), (arguments, result.output)
    if result.exit_code:
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, (arguments, result.stderr)
        assert lines[0].startswith("holdfast: "), arguments
    return result.exit_code


def replaced(base: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """The arguments with another value of an option."""
    if option not in base or option == "--set":
        return (*base, option, value)
    place = base.index(option)
    return (*base[:place], option, value, *base[place + 2 :])


def options_of(command: str) -> list[str]:
    """Those that take a value."""
    found = typer.main.get_command(app).commands[command].params
    return [each.opts[0] for each in found if each.param_type_name == "option" and not each.is_flag]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command(folder, name):
    base, before = COMMANDS[name], list(COMMANDS)[: list(COMMANDS).index(name)]
    known = {option for other in before for option in options_of(COMMANDS[other][0])}
    for option in options_of(base[0]):
        if (name, option) == ("quickstart", "--out"):
            continue  # nearly any folder will do, and half a minute of training
        # What several commands share is read by the same code.
        codes = [run_in_lines(*replaced(base, option, value)) for value in (ODD[-1:] if option in known else ODD)]
        if option in NEVER_TAKEN:
            assert set(codes) == {2}, (option, codes)


def test_arguments_that_belong_nowhere(folder):
    for base in COMMANDS.values():
        assert run_in_lines(*base, "--\x1b[31m", "1") == 2
        assert run_in_lines(*base, "--seed") == 2
        assert run_in_lines(*base, "extra\x1b[31m", "more") == 2
    for value in ODD:
        assert run_in_lines("attack", value, *DATA, "--out", "attacked") == 2
        assert run_in_lines("verify", value, "unsafe.vnnlib") in (2, 3)
        assert run_in_lines("verify", "net.py:net", value) in (2, 4)
        assert run_in_lines("lab", value) == 2


def test_the_last_of_an_option_given_twice_counts(folder):
    assert run_in_lines(*COMMANDS["audit"], "--seed", "1", "--seed", "banana") == 2
    assert run_in_lines(*COMMANDS["audit"], "--box", "5,2", "--box", "0,1") == 0


def test_commands_that_there_are_not(folder):
    for arguments in (("",), ("no-such",), ("\x1b[31m",), ("--no-such",), ("audit", ""), ("-1",)):
        assert run_in_lines(*arguments) == 2
