"""Files of runs that were damaged, written to by hand, or never a run's: refused whole, in one line."""

import contextlib
import os
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.audits import audit
from holdfast import FGSM, AuditResult, RunError

X = np.random.default_rng(0).random((30, 6), dtype=np.float32)


def model() -> nn.Module:
    """A random network that knows three classes of the data, and sees all of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        network[2].bias -= network(torch.tensor(X)).mean(0)
    return network


def run(folder: Path, **options: Any) -> AuditResult:
    x = X
    with torch.no_grad():
        y = model()(torch.tensor(x)).argmax(1).numpy()
    y[:3] = (y[:3] + 1) % 3
    settings: dict[str, Any] = {"protocol": [FGSM()], "save_inputs": True}
    settings |= {"certify": "ibp", "certify_budgets": (0.005,), "batch_size": 8} | options
    return audit(model(), (x, y), "linf:0.03", run=folder, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, AuditResult]:
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert all(result.verdicts[verdict] for verdict in ("robust", "broken", "misclassified"))
    assert 0 < result.certified_accuracy < result.robust_accuracy
    return folder, result


def copied(folder: Path, tmp_path: Path) -> Path:
    for name in ("run.sqlite", "audit.json"):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path / "run.sqlite"


def refused(folder: Path, words: str | None = None, **options: Any) -> None:
    before = (folder / "audit.json").read_bytes() if (folder / "audit.json").exists() else b""
    with pytest.raises(RunError, match=words) as caught:
        run(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert (folder / "audit.json").read_bytes() == before if before else not (folder / "audit.json").exists()


def change(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            db.execute(statement)
        db.commit()


SOME = "idx = (SELECT min(idx) FROM examples WHERE verdict = '{}' AND certified IS {} NULL)"
BROKEN, PROVED, STOOD = SOME.format("broken", ""), SOME.format("robust", "NOT"), SOME.format("robust", "")
WRONG = SOME.format("misclassified", "")

CHANGES = {
    "a row beyond the data": "UPDATE examples SET idx = 30 WHERE idx = 29",
    "a row before the data": "UPDATE examples SET idx = -1 WHERE idx = 0",
    "a row far away": "UPDATE examples SET idx = 9223372036854775807 WHERE idx = 0",
    "text for a label": "UPDATE examples SET label = 'cat' WHERE idx = 5",
    "a label of other data": "UPDATE examples SET label = 77, clean_prediction = 77 WHERE idx = 5",
    "another class": "UPDATE examples SET label = (label + 1) % 3, clean_prediction = (label + 1) % 3 WHERE idx = 9",
    "a negative label": "UPDATE examples SET label = -1 WHERE idx = 5",
    "half a label": "UPDATE examples SET label = 0.5 WHERE idx = 5",
    "an unknown prediction": f"UPDATE examples SET clean_prediction = 3 WHERE {WRONG}",
    "bytes for a prediction": "UPDATE examples SET clean_prediction = x'00' WHERE idx = 5",
    "an unknown verdict": "UPDATE examples SET verdict = 'sound' WHERE idx = 5",
    "a verdict in capitals": f"UPDATE examples SET verdict = 'ROBUST' WHERE {STOOD}",
    "right, but called wrong": f"UPDATE examples SET verdict = 'misclassified' WHERE {STOOD}",
    "wrong, but called robust": f"UPDATE examples SET verdict = 'robust' WHERE {WRONG}",
    "an unknown stage": f"UPDATE examples SET stage = 'oracle' WHERE {BROKEN}",
    "a number for a stage": f"UPDATE examples SET stage = 3 WHERE {BROKEN}",
    "broken by nothing": f"UPDATE examples SET stage = NULL WHERE {BROKEN}",
    "broken at no distance": f"UPDATE examples SET distance = NULL WHERE {BROKEN}",
    "a negative distance": f"UPDATE examples SET distance = -0.1 WHERE {BROKEN}",
    "an infinite distance": f"UPDATE examples SET distance = 9e999 WHERE {BROKEN}",
    "text for a distance": f"UPDATE examples SET distance = 'far' WHERE {STOOD}",
    "negative costs": "UPDATE examples SET forwards = -1 WHERE idx = 5",
    "text for costs": "UPDATE examples SET backwards = 'many' WHERE idx = 5",
    "infinite costs": "UPDATE examples SET forwards = 9e999 WHERE idx = 5",
    "text for a share": "UPDATE examples SET clean_wrong = 'all' WHERE idx = 5",
    "bytes for a share": "UPDATE examples SET attacked_wrong = x'01' WHERE idx = 5",
    "half a class": f"UPDATE examples SET attacked_wrong = 0.5 WHERE {BROKEN}",
    "broken, but right": f"UPDATE examples SET attacked_wrong = 0 WHERE {BROKEN}",
    "standing, but wrong": f"UPDATE examples SET attacked_wrong = 1 WHERE {STOOD}",
    "wrong, but right when clean": f"UPDATE examples SET clean_wrong = 0 WHERE {WRONG}",
    "an unknown proof": f"UPDATE examples SET certified = 'authority' WHERE {PROVED}",
    "a proof of the broken": f"UPDATE examples SET certified = 'ibp' WHERE {BROKEN}",
    "a proof without a bound": f"UPDATE examples SET certified = 'ibp', bound = NULL WHERE {STOOD}",
    "a proof with a negative bound": f"UPDATE examples SET certified = 'ibp' WHERE {STOOD}",
    "text for a bound": "UPDATE examples SET bound = 'high' WHERE idx = 5",
    "a number for a note": f"UPDATE examples SET note = x'1b' WHERE {STOOD}",
    "a note on the proved": f"UPDATE examples SET note = 'trust me' WHERE {PROVED}",
    "a budget nobody asked for": "UPDATE curve SET eps = 0.5",
    "text for a budget": "UPDATE curve SET eps = 'all'",
    "a curve of the proved": f"INSERT OR REPLACE INTO curve SELECT idx, 0.005 FROM examples WHERE {PROVED}",
    "a curve beyond the data": "INSERT INTO curve VALUES (99, 0.005)",
    "smoothing nobody asked for": "INSERT INTO smoothed VALUES (0, 1, 0.5, 100)",
    "an input too short": "UPDATE inputs SET x = x'00000000' WHERE idx = 5",
    "text for an input": "UPDATE inputs SET x = 'abcdefghijklmnopqrstuvwx' WHERE idx = 5",
    "a verdict without its input": f"DELETE FROM inputs WHERE {BROKEN}",
    "an input without a verdict": "DELETE FROM examples WHERE idx = 5",
    "an input outside the set": f"UPDATE inputs SET x = zeroblob(24) WHERE {BROKEN}",
    "an input that is no number": f"UPDATE inputs SET x = x'{np.full(6, np.nan, np.float32).tobytes().hex()}' "
    f"WHERE {BROKEN}",
    "an input that is not the clean one": f"UPDATE inputs SET x = zeroblob(24) WHERE {WRONG}",
    "no settings": "DELETE FROM meta WHERE key = 'settings'",
    "settings that are no text": "UPDATE meta SET value = CAST(x'7bff7d' AS TEXT) WHERE key = 'settings'",
    "settings that are no JSON": "UPDATE meta SET value = '{' WHERE key = 'settings'",
    "settings that are bytes": "UPDATE meta SET value = x'7b7d' WHERE key = 'settings'",
    "settings of another kind": "UPDATE meta SET value = '[1, null]' WHERE key = 'settings'",
    "settings without end": f"UPDATE meta SET value = '{'[' * 100_000}' WHERE key = 'settings'",
    "settings with an empty part": "UPDATE meta SET value = json_set(value, '$.more', json('{}')) "
    "WHERE key = 'settings'",
    "a time that is none": "UPDATE meta SET value = 'nan' WHERE key = 'seconds'",
    "a time in words": "UPDATE meta SET value = 'long' WHERE key = 'seconds'",
    "more in meta": "INSERT INTO meta VALUES ('more', 'words')",
    "another table": "CREATE TABLE more (x)",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON examples BEGIN DELETE FROM examples; END",
    "a view": "CREATE VIEW everything AS SELECT * FROM examples",
    "an index": "CREATE INDEX i ON examples (label)",
    "another column": "ALTER TABLE examples ADD COLUMN more TEXT",
    "a table less": "DROP TABLE curve",
    "statistics": "ANALYZE",
    "a newer version": "PRAGMA user_version = 2",
    "another application": "PRAGMA application_id = 252006673",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_run_has_written_is_refused_whole(whole, tmp_path, name):
    file = copied(whole[0], tmp_path)
    change(file, CHANGES[name])
    before = file.read_bytes()
    refused(tmp_path)
    assert file.read_bytes() == before


def test_tables_that_pretend(whole, tmp_path):
    file = copied(whole[0], tmp_path)
    change(file, "ALTER TABLE examples RENAME TO hidden", "CREATE VIEW examples AS SELECT * FROM hidden")
    refused(tmp_path, "not as a run of this version makes it")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_part_of_a_file(whole, tmp_path, share):
    file = copied(whole[0], tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(tmp_path)


def test_bytes_that_changed(whole, tmp_path):
    """Wherever a byte of a page was changed, either nothing that counts did, or it is noticed; never a traceback."""
    content = (whole[0] / "run.sqlite").read_bytes()
    draw = np.random.default_rng(0)
    same = whole[1].model_dump(exclude={"cost"})
    noticed = 0
    for _ in range(40):
        changed = bytearray(content)
        for place in draw.integers(0, len(content), 8):
            changed[place] ^= int(draw.integers(1, 256))
        (tmp_path / "run.sqlite").write_bytes(changed)
        found = None
        with contextlib.suppress(RunError):
            found = run(tmp_path)
        if found is None:
            noticed += 1
        else:
            now = found.model_dump()
            for key in ("verdicts", "per_class", "certified_accuracy", "robust_accuracy"):
                assert now[key] == same[key]
    assert noticed > 10


def test_an_empty_file_is_a_run_that_has_not_begun(whole, tmp_path):
    (tmp_path / "run.sqlite").touch()
    assert run(tmp_path).verdicts == whole[1].verdicts


@pytest.mark.parametrize("name", ["run.sqlite", "run.sqlite-journal", "run.sqlite-wal", "run.3.sqlite"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_what_is_no_file(tmp_path, name, kind):
    if kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        here = os.open(tmp_path, os.O_RDONLY)
        try:
            server = socket.socket(socket.AF_UNIX)
            server.bind(f"/proc/self/fd/{here}/{name}")
            server.close()
        finally:
            os.close(here)
    refused(tmp_path, "is no file")


@pytest.mark.parametrize("content", [b"SQLite format 3\0", b"SQLite format 3\0" + bytes(84), bytes(4096), b"\x1b[31m"])
def test_what_is_no_database(tmp_path, content):
    (tmp_path / "run.sqlite").write_bytes(content)
    refused(tmp_path)


def test_the_file_of_another_application(tmp_path):
    change(tmp_path / "run.sqlite", "CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)")
    refused(tmp_path, "holds moz_places")


def test_a_part_that_was_changed(whole, tmp_path):
    """What a process has left is looked at like the whole, and what is called alike by chance is left alone."""
    shutil.copy(whole[0] / "run.sqlite", tmp_path / "run.1.sqlite")
    (tmp_path / "run.backup.sqlite").write_text("the user's own")
    change(tmp_path / "run.1.sqlite", CHANGES["an unknown stage"])
    refused(tmp_path, r"run\.1\.sqlite cannot be believed: examples, row \d+ has a stage")
    assert (tmp_path / "run.1.sqlite").exists()
    shutil.copy(whole[0] / "run.sqlite", tmp_path / "run.1.sqlite")
    assert run(tmp_path).verdicts == whole[1].verdicts
    assert not (tmp_path / "run.1.sqlite").exists()
    assert (tmp_path / "run.backup.sqlite").exists()


def test_a_log_that_a_kill_left_is_played_back(whole, tmp_path):
    """In either of SQLite's modes a copy taken in the middle of a transaction is the state before it."""
    file = copied(whole[0], tmp_path)
    for mode in ("DELETE", "WAL"):
        later = tmp_path / mode
        later.mkdir()
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute(f"PRAGMA journal_mode = {mode}")
            db.execute("PRAGMA cache_spill = 1")
            db.execute("UPDATE examples SET forwards = forwards + 1")
            for path in tmp_path.glob("run.sqlite*"):
                shutil.copy(path, later / path.name)
            db.rollback()
        assert run(later).verdicts == whole[1].verdicts


def test_two_at_once_are_told(whole, tmp_path, monkeypatch):
    file = copied(whole[0], tmp_path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, timeout=0.1))
    with contextlib.closing(connect(file)) as db:
        db.execute("BEGIN EXCLUSIVE")
        refused(tmp_path, "locked")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read(whole, tmp_path):
    copied(whole[0], tmp_path)
    tmp_path.chmod(0o500)
    try:
        refused(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_an_untouched_run_goes_on(whole, tmp_path):
    file = copied(whole[0], tmp_path)
    change(file, "DELETE FROM inputs WHERE idx > 20", "DELETE FROM examples WHERE idx > 20",
           "DELETE FROM curve WHERE idx > 20")  # fmt: skip
    again = run(tmp_path)
    assert again.model_dump(exclude={"cost"}) == whole[1].model_dump(exclude={"cost"})
