"""An audit that processes share against the audit of one."""

import os
import signal
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.audits import audit
from helpers.networks import ordinary_digits
from helpers.processes import together
from holdfast import AuditResult, Processes, RunError, SettingError
from holdfast.audit import store
from holdfast.models.networks import digits_conv
from holdfast.processes import ALONE

TABLES = ("examples", "curve", "smoothed", "inputs")
OPTIONS: dict[str, dict[str, Any]] = {
    "attacks": {"save_inputs": True},
    "crown": {"certify": "crown", "certify_budgets": (0.03,)},
    "search": {"certify": "complete", "certify_seconds": 60.0, "max_forwards": 0, "protocol": "quick"},
}


def rows(folder: Path, tables: tuple[str, ...] = TABLES) -> list[list[tuple]]:
    with sqlite3.connect(folder / "run.sqlite") as db:
        return [db.execute(f"SELECT * FROM {table} ORDER BY idx").fetchall() for table in tables]


def run(processes: Processes, state: dict[str, Any], folder: Path | None, **options: Any) -> AuditResult:
    model = digits_conv()
    model.load_state_dict(state)
    options = {"examples": "10:100", "batch_size": 16} | options
    return audit(model, "digits", "linf:0.06", run=folder, processes=processes, **options)


def run_all(processes: Processes, state: dict[str, Any], folder: Path) -> list[AuditResult]:
    return [run(processes, state, folder / name, **options) for name, options in OPTIONS.items()]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return ordinary_digits().state_dict()


@pytest.fixture(scope="module")
def one(state, tmp_path_factory) -> tuple[Path, list[AuditResult]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, run_all(ALONE, state, folder)


def test_two_processes_come_to_the_verdicts_of_one(state, one, tmp_path):
    folder, results = one
    main, other = together(run_all, state, tmp_path)
    assert main == other
    for name, mine, theirs in zip(OPTIONS, main, results, strict=True):
        # Bit for bit, bounds, distances and adversarial inputs included.
        assert rows(tmp_path / name) == rows(folder / name)
        assert len(rows(tmp_path / name)[0]) == 90
        assert mine.model_copy(update={"cost": None}) == theirs.model_copy(update={"cost": None})
        assert (mine.cost.forwards, mine.cost.backwards) == (theirs.cost.forwards, theirs.cost.backwards)
        files = {"audit.json", "run.sqlite"} | ({"adversarial.npz"} if name == "attacks" else set())
        assert {path.name for path in (tmp_path / name).iterdir()} == files


def run_and_die(processes: Processes, state: dict[str, Any], folder: Path) -> AuditResult:
    """The main one is killed after 10 verdicts."""
    store._COMMIT_SECONDS = 0
    add = store.RunStore.add
    decided = 0

    def add_and_die(self: Any, outcomes: Any, *arguments: Any, **options: Any) -> None:
        nonlocal decided
        add(self, outcomes, *arguments, **options)
        decided += len(outcomes)
        if processes.is_main and decided >= 10:
            os.kill(os.getpid(), signal.SIGKILL)

    store.RunStore.add = add_and_die
    return run(processes, state, folder, **OPTIONS["attacks"])


def test_killed_and_resumed_by_any_number_ends_the_same(state, one, tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        first, second = together(run_and_die, state, folder)
        assert first is None
        # It has done its share before it waited for the other.
        assert isinstance(second, RunError)
        assert not (folder / "audit.json").exists()
    left = sorted(path.name for path in folder.glob("run.*.sqlite"))
    assert left == ["run.0.sqlite", "run.1.sqlite"]
    # What they had decided in the first session is in the whole since the second.
    assert 50 <= len(rows(folder)[0]) < 90
    seen = []
    run(ALONE, state, folder, on_progress=lambda progress: seen.append(progress.decided), **OPTIONS["attacks"])
    assert seen[0] >= 60
    assert rows(folder) == rows(one[0] / "attacks")
    assert not list(folder.glob("run.*.sqlite"))


def test_another_audit_is_refused_in_all(state, one):
    for error in together(partial(run, **OPTIONS["attacks"], seed=1), state, one[0] / "attacks"):
        assert isinstance(error, RunError)
        assert "holds another audit: seed was 0" in str(error)


def test_several_processes_need_a_folder(state):
    for error in together(run, state, None):
        assert isinstance(error, SettingError)
        assert "give one, as --run DIR" in str(error)


def test_a_folder_that_is_not_shared(state, tmp_path):
    for error in together(run_apart, state, tmp_path):
        assert isinstance(error, RunError)
        assert "process 0 has made it elsewhere" in str(error)


def run_apart(processes: Processes, state: dict[str, Any], folder: Path) -> None:
    run(processes, state, folder / str(processes.rank), examples="10:20")
