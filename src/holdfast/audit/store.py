"""Verdicts on disk, as they fall: a killed run loses nothing that was decided."""

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from holdfast.audit.tables import (
    REFUTED,
    REFUTED_BEFORE,
    SCHEMA,
    TABLES,
    Expected,
    fault_between_tables,
    fault_of_file,
    fault_of_rows,
)
from holdfast.certify.certificate import Certificate
from holdfast.engine import Outcome
from holdfast.errors import ProofError, RunError
from holdfast.processes import ALONE, Processes

__all__ = ["NO_CERTIFICATES", "RunStore", "contradiction"]

FILE = "run.sqlite"
_PART, _PARTS = "run.{}.sqlite", re.compile(r"run\.[0-9]+\.sqlite")
# What SQLite itself puts beside a file: of what was not yet written when a process was killed.
_BESIDE = ("", "-journal", "-wal", "-shm")
# A commit waits for the disk; what a kill can lose is what was decided since the last one, and it is decided again.
_COMMIT_SECONDS = 0.5
NO_CERTIFICATES: Mapping[int, Certificate] = MappingProxyType({})


class RunStore:
    """The verdicts of one audit in ``DIR/run.sqlite``, or in a temporary file where no folder is given.

    Where several processes share an audit, each reads the verdicts that there were and writes those that it reaches to
    a part of its own, ``DIR/run.RANK.sqlite``, until :meth:`unite`. Parts that a killed audit has left are taken in
    when the store is opened again, by however many processes.

    Parameters
    ----------
    folder : Path or None
        The run's folder, made where it is missing.
    settings : dict
        What the verdicts depend on. A folder that holds a run with other settings is refused.
    expected : Expected
        What verdicts can say. A file with others is refused whole, like one that is damaged.
    processes : Processes
        Those that share the audit; with more than one a folder is needed.

    Raises
    ------
    RunError
        When the folder cannot be written, is full, or holds another audit or a file that no audit has written.

    Attributes
    ----------
    refuted : str or None
        What an earlier session found of a false proof: none of its proofs is kept.
    """

    refuted: str | None

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], expected: Expected, processes: Processes = ALONE
    ) -> None:
        self._folder, self._expected, self._processes = folder, expected, processes
        self._settings = json.dumps(settings, sort_keys=True)
        if processes.is_main:
            self._open_whole()
        if processes.count > 1:
            if processes.is_main:
                self._close()
            processes.wait()
            self._open_part()

    def _open_whole(self) -> None:
        """Open what all processes share, and take in what is left in parts."""
        # An empty name is sqlite's own temporary file: it is on disk, and gone when closed.
        self._open("" if self._folder is None else self._folder / FILE)
        try:
            with self._faults():
                self._check("main", self._where)
                for part in self._parts():
                    self._take_in(part)
                self._forget_proofs()
                self.refuted = self._meta(REFUTED_BEFORE)
                if wrong := fault_between_tables(self._db, self._expected):
                    raise _refused(self._where, wrong)
        except RunError:
            self._close()
            raise
        self._seconds_before = float(self._meta("seconds") or 0)

    def _parts(self) -> list[Path]:
        """What processes have left that did not come to unite."""
        return [] if self._folder is None else sorted(p for p in self._folder.iterdir() if _PARTS.fullmatch(p.name))

    def _open_part(self) -> None:
        """Open this process's own part, in which the verdicts of the whole can be read too."""
        assert self._folder is not None
        if not (self._folder / FILE).exists():
            raise RunError(f"{self._folder / FILE}: process 0 has made it elsewhere; give a --run folder that all see")
        self._open(self._folder / _PART.format(self._processes.rank))
        with self._faults():
            self._db.execute("ATTACH ? AS whole", (os.fsencode(self._folder / FILE),))
            for table in TABLES:
                self._db.execute(
                    f"CREATE TEMP VIEW {table} AS SELECT * FROM main.{table} UNION ALL SELECT * FROM whole.{table} "
                    f"WHERE idx NOT IN (SELECT idx FROM main.{table})"
                )
            self.refuted = self._meta(REFUTED_BEFORE, "whole")
        self._seconds_before = float(self._meta("seconds", "whole") or 0)

    def _open(self, path: Path | str) -> None:
        self._where = str(path) or "a temporary file"
        self._started = self._committed = time.perf_counter()
        with self._faults():
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._db = self._connect(path)
        self._is_open = True

    def _connect(self, path: Path | str) -> sqlite3.Connection:
        """A file in which a run can go on: it holds what a run has written, or nothing."""
        if str(path):
            for beside in (Path(f"{path}{ending}") for ending in _BESIDE):
                if beside.exists() and not beside.is_file():
                    raise _refused(str(beside), "is no file")
        db = sqlite3.connect(path)
        try:
            if wrong := fault_of_file(db):
                raise _refused(str(path), wrong)
            # A kill leaves all of the tables or none.
            db.executescript(f"BEGIN;{SCHEMA}COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def _take_in(self, path: Path) -> None:
        """Bring the verdicts of a part into the whole, and delete the part."""
        with closing(self._connect(path)):
            pass
        self._db.execute("ATTACH ? AS part", (os.fsencode(path),))
        self._check("part", str(path))
        seconds = max(float(self._meta("seconds", schema) or 0) for schema in ("main", "part"))
        for table in TABLES:
            self._db.execute(f"INSERT OR REPLACE INTO main.{table} SELECT * FROM part.{table}")
        kept = f"key IN ('settings', '{REFUTED}')"
        self._db.execute(f"INSERT OR IGNORE INTO main.meta SELECT * FROM part.meta WHERE {kept}")
        self._db.execute("INSERT OR REPLACE INTO main.meta VALUES ('seconds', ?)", (str(seconds),))
        self._db.commit()
        self._db.execute("DETACH part")
        path.unlink()

    def _forget_proofs(self) -> None:
        """Where a proof of an earlier session was false, believe none of that session's."""
        if self._meta(REFUTED) is not None:
            self._db.execute("DELETE FROM inputs WHERE idx IN (SELECT idx FROM examples WHERE certified IS NOT NULL)")
            self._db.execute("DELETE FROM examples WHERE certified IS NOT NULL")
            self._db.execute("DELETE FROM curve")
            self._db.execute("UPDATE OR REPLACE meta SET key = ? WHERE key = ?", (REFUTED_BEFORE, REFUTED))
            self._db.commit()

    def unite(self) -> None:
        """Wait for all processes; the main one then has the verdicts of all, and to the others the store is closed."""
        self.commit()
        if self._processes.count == 1:
            return
        self._close()
        self._processes.wait()
        if self._processes.is_main:
            self._open_whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._is_open and not isinstance(error, RunError):
                if isinstance(error, ProofError):
                    self._db.execute("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", (REFUTED, str(error)))
                self.commit()
        finally:
            self._close()

    def _close(self) -> None:
        self._is_open = False
        self._db.close()

    @property
    def where(self) -> str:
        """The file, for errors."""
        return self._where

    @property
    def seconds(self) -> float:
        """Time spent on the run, earlier sessions of it included."""
        return self._seconds_before + time.perf_counter() - self._started

    def add(
        self,
        outcomes: Sequence[Outcome],
        certificates: Mapping[int, Certificate] = NO_CERTIFICATES,
        *,
        inputs: bool = False,
    ) -> None:
        """Keep verdicts, what certification says of their examples, and with ``inputs`` the adversarial inputs too.

        Raises
        ------
        ProofError
            When an example is both certified and broken.
        RunError
            When nothing can be written.
        """
        rows = [_row(outcome, certificates.get(outcome.index)) for outcome in outcomes]
        with self._writing():
            self._db.executemany(f"INSERT OR REPLACE INTO main.examples VALUES ({', '.join('?' * 13)})", rows)
            if inputs:
                found = [(o.index, o.x_adv.float().cpu().contiguous().numpy().tobytes()) for o in outcomes]
                self._db.executemany("INSERT OR REPLACE INTO main.inputs VALUES (?, ?)", found)

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]], passes: Sequence[tuple[int, int, int]] = ()) -> None:
        """Keep rows of another table, in place of what is known of their examples.

        ``passes``: forward and backward passes that this has cost, and of which example.
        """
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            # What another process decided in an earlier session is copied into this one's part.
            spent = (
                "INSERT OR REPLACE INTO main.examples SELECT idx, label, clean_prediction, verdict, stage, distance, "
                "forwards + ?, backwards + ?, clean_wrong, attacked_wrong, certified, bound, note "
                "FROM examples WHERE idx = ?"
            )
            with self._writing():
                self._db.executemany(f"INSERT OR REPLACE INTO main.{table} VALUES ({marks})", rows)
                self._db.executemany(spent, passes)

    def commit(self) -> None:
        """Write to disk what was added."""
        with self._faults():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('seconds', ?)", (str(self.seconds),))
            self._db.commit()
        self._committed = time.perf_counter()

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Which of some examples, by their place in the list, have no verdict yet."""
        wanted = list(indices)
        done = set(self.among(wanted))
        return [place for place in range(len(wanted)) if place not in done]

    def among(self, indices: Iterable[int], where: str = "TRUE") -> list[int]:
        """Which of some examples, by their place in the list, have a verdict and meet an SQL condition."""
        wanted = list(indices)
        if not wanted:
            return []
        # Indices of one batch are neighbours, so a range asks for little more than the batch.
        query = f"SELECT idx FROM examples WHERE idx BETWEEN ? AND ? AND ({where})"
        found = {index for (index,) in self.select(query, min(wanted), max(wanted))}
        return [place for place, index in enumerate(wanted) if index in found]

    def select(self, query: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, one at a time."""
        with self._faults():
            yield from self._db.execute(query, parameters)

    def _meta(self, key: str, schema: str = "main") -> str | None:
        row = self._db.execute(f"SELECT value FROM {schema}.meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _check(self, schema: str, where: str) -> None:
        """Refuse the run of another audit, naming the first setting that differs, and rows that are of none."""
        kept = self._meta("settings", schema)
        if kept is not None and kept != self._settings:
            raise self._another(kept, where)
        if wrong := fault_of_rows(self._db, schema, self._expected):
            raise _refused(where, wrong)

    def _another(self, kept: str, where: str) -> RunError:
        try:
            before, now = _flat(json.loads(kept)), _flat(json.loads(self._settings))
        except (ValueError, RecursionError):
            return _refused(where, "has settings that are no JSON")
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, "absent"), now.get(key, "absent")
            if old != new:
                return RunError(
                    f"{where} holds another audit: {key} was {old} and is now {new}; give another --run folder, "
                    "or the same settings to resume"
                )
        return _refused(where, "has settings in another form")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._faults():
            # With its first verdict a folder belongs to an audit, not with an attempt that came to nothing.
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('settings', ?)", (self._settings,))
            yield
        if time.perf_counter() - self._committed > _COMMIT_SECONDS:
            self.commit()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            cure = "free some space" if "full" in str(error) else "check the folder and the disk"
            raise RunError(
                f"{self._where}: {error}; {cure} and repeat the command: what was decided is kept"
            ) from error
        except UnicodeDecodeError as error:  # what SQLite says of a damaged file may quote pieces of it
            raise _refused(self._where, "is damaged") from error
        except OSError as error:
            raise RunError(
                f"{self._where}: {error.strerror or error}; give a --run folder that can be written"
            ) from error


def _refused(where: str, wrong: str) -> RunError:
    return RunError(
        f"{where} {wrong}: it is no run of this audit, or was damaged or changed since; give another --run folder, or "
        "delete it to begin anew"
    )


def _row(outcome: Outcome, certificate: Certificate | None) -> tuple[Any, ...]:
    """A row of the table of examples."""
    certified = certificate is not None and certificate.verdict == "certified"
    if certified and outcome.verdict in ("broken", "misclassified"):
        raise contradiction(outcome.index, f"{outcome.stage or 'the clean input'} misleads the model")
    standing = certificate is not None and outcome.verdict in ("robust", "undecided") and not certified
    return (
        outcome.index,
        outcome.label,
        outcome.clean_prediction,
        "robust" if certified else outcome.verdict,
        outcome.stage,
        outcome.distance,
        outcome.forwards,
        outcome.backwards,
        outcome.clean_wrong,
        outcome.attacked_wrong,
        certificate.method if certificate is not None and certified else None,
        None if certificate is None else certificate.bound,
        certificate.note or None if certificate is not None and standing else None,
    )


def contradiction(index: int, counterexample: str) -> ProofError:
    """What to say when an example has been proved robust and broken."""
    return ProofError(
        f"example {index}: a proof and a counterexample contradict each other ({counterexample}); please report it, "
        "and trust neither"
    )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as one level, ``{"protocol.stages.0.name": '"fgsm"'}``."""
    if isinstance(value, list):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {name: json.dumps(value)}
    return {key: text for part, item in value.items() for key, text in _flat(item, f"{name}.{part}".strip(".")).items()}
