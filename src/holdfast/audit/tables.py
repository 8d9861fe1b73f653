"""What the file of a run holds, and what in it cannot have been written by a run.

A file may have been damaged, written to by hand or made to deceive. It is refused whole then: no verdict of it counts.
"""

import json
import math
import sqlite3
from dataclasses import dataclass
from typing import Any

from holdfast.certify.certificate import METHODS, SEARCH
from holdfast.certify.doubt import CHECK

__all__ = ["SCHEMA", "TABLES", "Expected", "fault_between_tables", "fault_of_file", "fault_of_rows"]

TABLES = ("examples", "curve", "smoothed", "inputs")
# Where meta tells of a false proof: of this session, and of one before.
REFUTED, REFUTED_BEFORE = "refuted", "refuted before"
_META = ("settings", "seconds", REFUTED, REFUTED_BEFORE)
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS examples (
    idx INTEGER PRIMARY KEY,
    label INTEGER NOT NULL,
    clean_prediction INTEGER NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('robust', 'broken', 'misclassified', 'undecided')),
    stage TEXT,
    distance REAL,
    forwards INTEGER NOT NULL,
    backwards INTEGER NOT NULL,
    clean_wrong REAL NOT NULL,
    attacked_wrong REAL NOT NULL,
    certified TEXT CHECK (certified IS NULL OR verdict = 'robust'),
    bound REAL,
    note TEXT
);
CREATE TABLE IF NOT EXISTS curve (idx INTEGER PRIMARY KEY, eps REAL NOT NULL);
CREATE TABLE IF NOT EXISTS smoothed (
    idx INTEGER PRIMARY KEY,
    prediction INTEGER,
    radius REAL NOT NULL,
    samples INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS inputs (idx INTEGER PRIMARY KEY, x BLOB NOT NULL);
"""


# What proves by a bound above 0; trees may win a tie, and defences count votes.
_BOUNDING = (*METHODS, SEARCH)


@dataclass(frozen=True)
class Expected:
    """What the rows of an audit can say.

    Parameters
    ----------
    positions : range
        Of the examples in their split.
    stages : tuple of str
        By what an example may be broken, and in what its budget of queries may end.
    proofs : tuple of str
        By what examples may be proved robust.
    budgets : tuple of float
        Of the certified curve.
    radius : float or None
        What the smoothed classifier is certified for; None where it is not asked about.
    input_bytes : int or None
        The size of an input where inputs are kept; None where they are not.
    """

    positions: range
    stages: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    radius: float | None = None
    input_bytes: int | None = None

    def parameters(self) -> dict[str, Any]:
        """For the conditions below; lists as JSON, of which SQLite makes tables."""
        return {
            "start": self.positions.start,
            "stop": self.positions.stop,
            "stages": json.dumps([*self.stages, SEARCH, CHECK] if self.proofs else self.stages),
            "methods": json.dumps(self.proofs),
            "bounding": json.dumps(_BOUNDING),
            "budgets": json.dumps([0.0, *self.budgets] if self.budgets else []),
            "radius": self.radius,
            "bytes": self.input_bytes,
        }


def _no_count(column: str) -> str:
    return f"typeof({column}) != 'integer' OR {column} < 0"


def _not_among(column: str, names: str) -> str:
    return f"{column} NOT IN (SELECT value FROM json_each(:{names}))"


_OUTSIDE = ("is no example of these data", "idx < :start OR idx >= :stop")
_STANDING = "verdict IN ('robust', 'undecided')"

# What is wrong with a row, and the condition of SQL that finds it.
_FAULTS: dict[str, tuple[tuple[str, str], ...]] = {
    "examples": (
        _OUTSIDE,
        ("has a label that is no class", _no_count("label")),
        ("has a prediction that is no class", _no_count("clean_prediction")),
        ("has an unknown verdict", "verdict NOT IN ('robust', 'broken', 'misclassified', 'undecided')"),
        ("has a verdict against its prediction", "(verdict = 'misclassified') != (label != clean_prediction)"),
        (
            "has a stage that the protocol does not",
            f"stage IS NOT NULL AND (verdict = 'misclassified' OR {_not_among('stage', 'stages')})",
        ),
        ("is broken by no stage", "verdict = 'broken' AND stage IS NULL"),
        ("has a distance that is none", "distance IS NOT NULL AND (typeof(distance) != 'real' OR distance < 0)"),
        ("is broken at no distance", "verdict = 'broken' AND NOT coalesce(distance <= 1.7976931348623157e308, FALSE)"),
        ("has costs that are no counts", f"{_no_count('forwards')} OR {_no_count('backwards')}"),
        # A class is wrong as a whole.
        (
            "has a verdict against the share that is wrong",
            "typeof(clean_wrong) != 'real' OR clean_wrong != (verdict = 'misclassified') "
            "OR typeof(attacked_wrong) != 'real' OR attacked_wrong != (verdict IN ('broken', 'misclassified'))",
        ),
        ("has a bound that is no number", "bound IS NOT NULL AND typeof(bound) != 'real'"),
        (
            "is certified by nothing that was asked for",
            f"certified IS NOT NULL AND (verdict != 'robust' OR {_not_among('certified', 'methods')})",
        ),
        (
            "is certified without a positive bound",
            f"certified IS NOT NULL AND CASE WHEN {_not_among('certified', 'bounding')} "
            "THEN coalesce(bound < 0, FALSE) ELSE NOT coalesce(bound > 0, FALSE) END",
        ),
        (
            "has a note where nothing is open",
            f"note IS NOT NULL AND (typeof(note) != 'text' OR certified IS NOT NULL OR NOT {_STANDING})",
        ),
    ),
    "curve": (
        _OUTSIDE,
        # Numbers in JSON are read to the last bit but one.
        (
            "has a budget that was not asked for",
            "typeof(eps) != 'real' OR NOT EXISTS "
            "(SELECT 1 FROM json_each(:budgets) WHERE abs(value - eps) <= 1e-12 * value)",
        ),
    ),
    "smoothed": (
        _OUTSIDE,
        ("was not asked for", ":radius IS NULL"),
        ("has a prediction that is no class", f"prediction IS NOT NULL AND ({_no_count('prediction')})"),
        ("has a radius that was not asked for", "typeof(radius) != 'real' OR radius NOT IN (0.0, :radius)"),
        ("has a radius without a prediction", "prediction IS NULL AND radius != 0"),
        ("has samples that are no count", _no_count("samples")),
    ),
    "inputs": (
        _OUTSIDE,
        ("was not asked for", ":bytes IS NULL"),
        ("is no input of these data", "typeof(x) != 'blob' OR length(x) != :bytes"),
    ),
}
_BETWEEN: tuple[tuple[str, str], ...] = (
    ("curve has a row for an example that is none of the open ones",
     "SELECT curve.idx FROM main.curve LEFT JOIN main.examples USING (idx) WHERE verdict IS NULL "
     "OR verdict = 'misclassified' OR certified IS NOT NULL"),
    ("smoothed has a row for an example without a verdict",
     "SELECT idx FROM main.smoothed WHERE idx NOT IN (SELECT idx FROM main.examples)"),
    ("inputs has a row for an example without a verdict",
     "SELECT idx FROM main.inputs WHERE idx NOT IN (SELECT idx FROM main.examples)"),
    ("inputs lacks an example that has a verdict",
     "SELECT idx FROM main.examples WHERE :bytes IS NOT NULL AND idx NOT IN (SELECT idx FROM main.inputs)"),
)  # fmt: skip


def fault_of_file(db: sqlite3.Connection) -> str | None:
    """What is wrong with a file, whosever run it is, as words that go on from its name; None where nothing is.

    Nothing in it is written or run: until its definitions are known for those of a run, they alone are read.

    Raises
    ------
    sqlite3.DatabaseError
        When it is no file of SQLite's.
    """
    db.execute("PRAGMA trusted_schema = OFF")
    for name in ("application_id", "user_version"):
        if db.execute(f"PRAGMA {name}").fetchone() != (0,):
            return "is that of another program or version"
    known = _definitions()
    there = db.execute("SELECT name, sql FROM sqlite_schema").fetchall()
    if strange := next((name for name, sql in there if known.get(name, "") != sql), None):
        return f"holds {strange}, which is not as a run of this version makes it"
    if there and (missing := known.keys() - dict(there).keys()):
        return f"holds no {min(missing)}"
    (health, *_) = db.execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        return f"is damaged ({health})"
    return _fault_of_meta(db) if there else None


def fault_of_rows(db: sqlite3.Connection, schema: str, expected: Expected) -> str | None:
    """What cannot be in a row of an audit, like :func:`fault_of_file`.

    Parameters
    ----------
    db : sqlite3.Connection
        With the file open.
    schema : str
        What the file is called there, ``"main"`` or the name of an attached one.
    expected : Expected
        What rows can say.
    """
    for table, faults in _FAULTS.items():
        for what, condition in faults:
            query = f"SELECT idx FROM {schema}.{table} WHERE {condition}"
            if row := db.execute(query, expected.parameters()).fetchone():
                return f"cannot be believed: {table}, row {row[0]} {what}"
    return None


def fault_between_tables(db: sqlite3.Connection, expected: Expected) -> str | None:
    """What cannot be in the tables of a whole run together, like :func:`fault_of_file`."""
    for what, query in _BETWEEN:
        if row := db.execute(query, expected.parameters()).fetchone():
            return f"contradicts itself: {what} ({row[0]})"
    return None


def _definitions() -> dict[str, str]:
    """The tables of a run and how each is defined."""
    fresh = sqlite3.connect(":memory:")
    try:
        fresh.executescript(SCHEMA)
        return dict(fresh.execute("SELECT name, sql FROM sqlite_schema"))
    finally:
        fresh.close()


def _fault_of_meta(db: sqlite3.Connection) -> str | None:
    meta = dict(db.execute("SELECT key, value FROM meta"))
    strange = [key for key, value in meta.items() if key not in _META or not isinstance(value, str)]
    if strange:
        return f"says something of {strange[0]} that no run does"
    if "settings" not in meta and any(db.execute(f"SELECT 1 FROM {table}").fetchone() for table in TABLES):
        return "has rows without the settings that they depend on"
    try:
        seconds = float(meta.get("seconds", "0"))
    except ValueError:
        seconds = math.nan
    return None if 0 <= seconds < math.inf else "has spent a time that is none"
