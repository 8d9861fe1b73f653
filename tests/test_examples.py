"""The examples run and print what their readers are told."""

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints, run in a folder that stays empty."""
    monkeypatch.chdir(folder)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert not list(folder.iterdir())
    return capsys.readouterr().out


def test_no_example_is_left_out() -> None:
    source = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.stem}"' in source


def test_audit_your_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("audit_your_model", tmp_path, monkeypatch, capsys)
    clean, lower, upper = map(float, re.findall(r"([\d.]+)%", printed)[:3])
    assert 0 == lower < upper < clean
    assert "apgd-t" in printed
    assert "note: quick is a short cascade" in printed


def test_attack_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("attack_a_batch", tmp_path, monkeypatch, capsys)
    broken = [int(count) for count in re.findall(r"(\d+) of 64 misclassified", printed)]
    assert len(broken) == 2
    assert all(0 < count <= 64 for count in broken)


def test_security_of_a_linear_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *lines = run("security_of_a_linear_model", tmp_path, monkeypatch, capsys).splitlines()
    assert header.split() == ["threat", "exact", "FGSM", "PGD"]
    assert [line.split()[0] for line in lines] == ["linf:0.1", "l2:0.5", "l1:2", "l0:2"]
    for line in lines:
        exact, *found = [float(share.rstrip("%")) for share in line.split()[1:]]
        assert 0 < exact < 100
        assert all(exact <= share < 100 for share in found)


def test_certify_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("certify_a_model", tmp_path, monkeypatch, capsys)
    lower, upper = map(float, re.findall(r"([\d.]+)%", printed)[:2])
    assert 0 < lower == upper < 100
    assert sum(map(int, re.findall(r"(\d+) of 200 proved", printed))) == round(2 * lower)
    distances = [tuple(map(float, pair)) for pair in re.findall(r"at ([\d.]+), none nearer than ([\d.]+)", printed)]
    assert len(distances) == 6
    assert all(0 <= near <= far < 1 for far, near in distances)
