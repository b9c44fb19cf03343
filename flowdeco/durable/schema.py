"""The tables of a journal in SQLite, and the migration from older versions.

A run writes to `log`, and reads it when it is resumed: all names of a step are one string, a JSON list, because reading
each separately takes longer than everything else that is done to restore a step. The views are for people: `steps` has
a column for each name, `history` also the id of the run.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from zlib import crc32

from flowdeco.durable.blobs import BLOBS

__all__ = ["APPLICATION", "MIGRATIONS", "VERSION"]

APPLICATION: Final = 0x666C6F77  # "flow", in the header of the file
VERSION: Final = 7
FORMAT: Final = 4  # how a run numbers its steps: as they begin, and the layers of its caller apart from them

_RUNS: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, pipeline TEXT NOT NULL, entry TEXT,
    status TEXT NOT NULL, reason TEXT, error TEXT, started REAL NOT NULL, updated REAL NOT NULL,
    skip TEXT NOT NULL, codec TEXT NOT NULL,
    written INTEGER NOT NULL, dropped INTEGER NOT NULL, given INTEGER NOT NULL, format INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    owner TEXT, host TEXT, pid INTEGER, place TEXT, born TEXT, lease REAL,
    took REAL NOT NULL DEFAULT 0, timed INTEGER NOT NULL DEFAULT 0,
    due REAL, questions TEXT, answers INTEGER NOT NULL DEFAULT 0, ready REAL
);
CREATE TABLE inputs (
    run INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (run, number)
)"""

# Answers are inputs that anybody may add, whoever is at work on the run: `given` are the inputs before them. A suspended
# run is `ready` to be woken when it is due, or at once when it has been answered.
_ANSWERS: Final = """
CREATE TABLE IF NOT EXISTS answers (
    run INTEGER NOT NULL, number INTEGER NOT NULL, given INTEGER NOT NULL, position INTEGER NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (run, number)
);
CREATE INDEX IF NOT EXISTS waiting ON runs (ready) WHERE status = 'suspended';
CREATE INDEX IF NOT EXISTS working ON runs (id) WHERE status = 'running'"""

# When a run was resumed, each time, and how many steps it had written by then.
_LEGS: Final = """
CREATE TABLE IF NOT EXISTS legs (
    run INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL, started REAL NOT NULL,
    PRIMARY KEY (run, number)
)"""

_LOG: Final = """
CREATE TABLE log (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, what TEXT NOT NULL, started REAL NOT NULL, elapsed REAL NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL, begins INTEGER NOT NULL
);
CREATE INDEX branches ON log (id >> 32, substr(what, 1, instr(what, ','))) WHERE begins"""

_VIEWS: Final = """
CREATE VIEW steps AS
    SELECT id, json_extract(what, '$[0]') AS branch, number, json_extract(what, '$[1]') AS kind,
        json_extract(what, '$[2]') AS stage, nullif(json_extract(what, '$[3]'), '') AS action,
        json_extract(what, '$[4]') AS status, started, elapsed, json_extract(what, '$[5]') AS fingerprint,
        checksum, payload
    FROM log;
CREATE VIEW history AS
    SELECT run_id, steps.id & 4294967295 AS position, branch, number, kind, stage, action, steps.status,
        strftime('%Y-%m-%d %H:%M:%f', steps.started, 'unixepoch') AS started_utc, elapsed, length(payload) AS bytes
    FROM runs JOIN steps ON steps.id BETWEEN runs.id << 32 AND (runs.id << 32) + 4294967295
    ORDER BY steps.id"""


def _execute(connection: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";\n"):  # `executescript` would commit first
        connection.execute(statement)


def _create(connection: sqlite3.Connection) -> None:
    for script in (_RUNS, _ANSWERS, _LEGS, _LOG, _VIEWS, BLOBS):
        _execute(connection, script)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


# A migration makes the tables of its own version: one that changes later keeps its old text here.

_LOG_2: Final = """
CREATE TABLE log (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, what TEXT NOT NULL, started REAL NOT NULL, elapsed REAL NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX branches ON log (id >> 32, substr(what, 1, instr(what, ','))) WHERE number < 2"""


def _from_version_1(connection: sqlite3.Connection) -> None:
    """From a column for each name of a step, and inputs that are not counted."""
    connection.execute("ALTER TABLE runs ADD COLUMN given INTEGER NOT NULL DEFAULT 0")
    head = "id, run_id, pipeline, entry, status, reason, error, started, skip, codec, written, dropped"
    given = "(SELECT count(*) FROM inputs WHERE run = runs.id)"
    for *run, checksum, count in connection.execute(f"SELECT {head}, checksum, {given} FROM runs").fetchall():
        if bytes not in map(type, run) and crc32(json.dumps(run).encode()) == checksum:
            counted = count, crc32(json.dumps([*run, count]).encode()), run[0]
            connection.execute("UPDATE runs SET given = ?, checksum = ? WHERE id = ?", counted)
    _execute(connection, f"DROP VIEW history;\nDROP INDEX branches;\n{_LOG_2}")
    names = "branch", "kind", "stage", "action", "status", "fingerprint"
    columns = ", ".join(f"CAST({name} AS BLOB)" for name in names)  # some may not be valid Unicode
    before = connection.execute(f"SELECT id, number, started, elapsed, checksum, payload, {columns} FROM steps")
    connection.executemany("INSERT OR IGNORE INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", map(_in_one_text, before))
    _execute(connection, f"DROP TABLE steps;\n{_VIEWS};\nPRAGMA user_version = 2")


def _in_one_text(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a step of version 1 as one of version 2; one that did not agree with its checksum still does not."""
    id, number, started, elapsed, checksum, payload, *blobs = found
    what = json.dumps([_text(blob or b"") for blob in blobs], separators=(",", ":"))
    again = -1
    with suppress(TypeError, ValueError, struct.error):
        packed = struct.pack("<qqdd", id, number, started, elapsed)
        if crc32(packed + b"\0".join(blob or b"" for blob in blobs) + payload) == checksum:
            again = crc32(packed + payload, crc32(what.encode()))
    return id, number or 0, what, started or 0.0, elapsed or 0.0, again, payload or b""


def _text(blob: bytes) -> str:
    """Return a name; one that is not Unicode, say of a file, has lone surrogates."""
    try:
        return blob.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return repr(blob)


# From runs that number their steps in the order of writing. They stay as they are, and a process of version 2 that still
# works on one continues to write it: the new columns have defaults.
_TO_VERSION_3: Final = """
ALTER TABLE log ADD COLUMN begins INTEGER NOT NULL DEFAULT 0;
DROP INDEX branches;
CREATE INDEX branches ON log (id >> 32, substr(what, 1, instr(what, ','))) WHERE begins"""


def _to(version: int, *columns: str, script: str = "") -> Callable[[sqlite3.Connection], None]:
    """Return the migration to a version that adds these columns to `runs`, if they are missing, and executes a script."""

    def migrate(connection: sqlite3.Connection) -> None:
        known = {name for _, name, *_ in connection.execute("PRAGMA table_info(runs)")}
        for column in columns:
            if column.partition(" ")[0] not in known:
                connection.execute(f"ALTER TABLE runs ADD COLUMN {column}")
        _execute(connection, f"{script};\nPRAGMA user_version = {version}")

    return migrate


# From a version to the next.
MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {
    0: _create,
    1: _from_version_1,
    2: _to(3, "format INTEGER NOT NULL DEFAULT 2", script=_TO_VERSION_3),
    3: _to(4, "took REAL NOT NULL DEFAULT 0", "timed INTEGER NOT NULL DEFAULT 0"),
    4: _to(5, script=BLOBS),
    5: _to(6, "due REAL", "questions TEXT", "answers INTEGER NOT NULL DEFAULT 0", "ready REAL", script=_ANSWERS),
    6: _to(7, script=_LEGS),
}
