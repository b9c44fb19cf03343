"""The journal in an SQLite file: one row per step, committed before the next one starts.

`runs` has a row per run, with who works on it; `inputs` what a run was started and resumed with; `steps` what it did.
The view `history` shows the steps to people. Steps are numbered per run in the order of their writing, and the number
of the run is in the upper half of their id: those of a run stand together, and appending one touches one B-tree.

Rules that make damage show. Every row has a checksum of all that it says. The steps of a run are numbered without a
gap, but for those that were taken back, which are counted; so are those of each branch. What is missing at the end of
an unfinished run is as if it had not happened yet. A row is only written by who holds the lease, in the same statement
that looks.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple, cast
from urllib.parse import quote

from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.journal import Codec, Remembered, Row
from flowdeco.durable.lease import Owner, is_dead, this_process
from flowdeco.errors import JournalError, RunBusyError, RunNotFoundError, SerializationError

__all__ = ["SqliteJournal"]

APPLICATION: Final = 0x666C6F77  # "flow", in the header of the file
VERSION: Final = 1
PATIENCE: Final = 60.0  # seconds to wait for other writers of the file

_TABLES: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    pipeline TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    error TEXT,
    started REAL NOT NULL,
    updated REAL NOT NULL,
    skip TEXT NOT NULL,
    codec TEXT NOT NULL,
    written INTEGER NOT NULL,
    dropped INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    owner TEXT, host TEXT, pid INTEGER, place TEXT, born TEXT, lease REAL
);
CREATE TABLE inputs (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    position INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (run, number)
);
CREATE TABLE steps (
    id INTEGER PRIMARY KEY,
    branch TEXT NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    stage TEXT NOT NULL,
    action TEXT,
    status TEXT NOT NULL,
    started REAL NOT NULL,
    elapsed REAL NOT NULL,
    fingerprint TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX branches ON steps (id >> 32, branch) WHERE number < 2;
CREATE VIEW history AS
    SELECT run_id, steps.id & 4294967295 AS position, branch, number, kind, stage, action, steps.status,
        strftime('%Y-%m-%d %H:%M:%f', steps.started, 'unixepoch') AS started_utc, elapsed, length(payload) AS bytes
    FROM runs JOIN steps ON steps.id BETWEEN runs.id << 32 AND (runs.id << 32) + 4294967295
    ORDER BY steps.id;
"""

_MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {}  # from a version to the next one

_INSERT: Final = (
    "INSERT INTO steps (id, branch, number, kind, stage, action, status, started, elapsed, fingerprint, checksum, "
    "payload) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM runs WHERE id = ? AND owner = ?"
)
_SELECT: Final = (
    "SELECT id, branch, number, kind, stage, action, status, started, elapsed, fingerprint, checksum, payload "
    "FROM steps WHERE id BETWEEN ? AND ? ORDER BY id"
)


class Head(NamedTuple):
    """The part of a row of `runs` that its checksum covers."""

    id: int
    run_id: str
    pipeline: str
    status: str
    reason: str | None
    error: str | None
    started: float
    skip: str
    codec: str
    written: int
    dropped: int

    @property
    def checksum(self) -> int:
        """The checksum of all columns."""
        return zlib.crc32(repr(tuple(self)).encode("utf-8", "backslashreplace"))


_HEAD: Final = ", ".join(Head._fields)


class _Held:
    """A run that this process works on."""

    __slots__ = ("broken", "first", "head", "last", "next", "saved", "token")

    def __init__(self, head: Head, token: str) -> None:
        self.head = head
        self.token = token
        self.first = head.id << 32
        self.next = head.written
        self.saved = head.written - head.dropped
        self.last: Row | None = None
        self.broken = False


class SqliteJournal:
    """Runs in one SQLite file, which any number of runs, threads and processes can share.

    The file is made where it is missing, readable for its owner only. `synchronous="NORMAL"` survives a crash of the
    process, `"FULL"` a loss of power as well, at the price of waiting for the disk at every step. `lease` is how many
    seconds an owner on another host may be silent before the run can be taken over.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Literal["pickle", "json"] | Codec = "pickle",
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        lease: float = 30.0,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if os.path.basename(self.path) == ":memory:" or not os.fspath(path):
            raise JournalError("a journal is a file: give its path, or use MemoryJournal")
        if synchronous not in {"NORMAL", "FULL"}:
            raise JournalError(f"synchronous is 'NORMAL' or 'FULL', not {synchronous!r}")
        if isinstance(lease, bool) or not isinstance(lease, (int, float)) or not lease > 0:
            raise JournalError(f"lease is a positive number of seconds, not {lease!r}")
        self.codec: Codec = named_codec(codec)
        self.synchronous = synchronous
        self.lease = float(lease)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._held: dict[str, _Held] = {}
        self._beating: tuple[threading.Thread, threading.Event] | None = None
        with _live_lock:
            _live.add(self)

    def __repr__(self) -> str:
        return f"SqliteJournal({self.path!r})"

    # What a run asks for.

    def create(self, run_id: str, pipeline: str, inputs: bytes, skip: Sequence[str]) -> None:
        """Begin a run; raises `RunBusyError` if there is one of that id."""
        now = time.time()
        with self._asked(f"run {run_id!r} cannot begin") as connection, _transaction(connection):
            found = connection.execute(f"SELECT {_HEAD} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if found is not None:
                head = Head._make(found)
                self._require_idle(connection, head)
                raise RunBusyError(
                    f"{self.path} has a run {run_id!r} already, {head.status}: resume it, or take another run_id"
                )
            owner = self._owner()
            number = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM runs").fetchone()[0]
            head = Head(
                number, run_id, pipeline, "running", None, None, now, json.dumps(list(skip)), self.codec.name, 0, 0
            )
            columns = (*head, head.checksum, now, *owner, now + self.lease)
            connection.execute(
                f"INSERT INTO runs ({_HEAD}, checksum, updated, owner, host, pid, place, born, lease) "
                f"VALUES ({', '.join('?' * len(columns))})",
                columns,
            )
            self._insert_inputs(connection, head.id, 0, 0, inputs)
            self._held[run_id] = _Held(head, owner.token)
            self._begin_beating()

    def open(self, run_id: str) -> Remembered:
        """Take up a run again; raises `RunNotFoundError`, `RunBusyError`."""
        with self._asked(f"run {run_id!r} cannot be taken up") as connection:
            with _transaction(connection):
                head = self._head(connection, run_id)
                self._require_codec(head)
                self._require_idle(connection, head)
                owner = self._owner()
                self._update(connection, head, owner)
            try:
                remembered, written = self._remembered(connection, head)
            except BaseException:
                self._release(connection, head, owner.token)
                raise
            taken = head._replace(
                status="running", reason=None, error=None, written=written, dropped=written - len(remembered.rows)
            )
            with _transaction(connection):
                if not self._update(connection, taken, owner):
                    raise self._lost(connection, head)
            held = _Held(taken, owner.token)
            held.last = remembered.rows[-1] if remembered.rows else None
            self._held[run_id] = held
            self._begin_beating()
        return remembered

    def read(self, run_id: str) -> Remembered:
        """Return a run without taking it up."""
        with self._asked(f"run {run_id!r} cannot be read") as connection, _transaction(connection, "DEFERRED"):
            head = self._head(connection, run_id)
            self._require_codec(head)
            return self._remembered(connection, head)[0]

    def add_inputs(self, run_id: str, inputs: bytes) -> None:
        """Remember the inputs of a resume."""
        with self._at_work(run_id, "its new inputs") as (connection, held), _transaction(connection):
            self._require_ours(connection, held)
            number = connection.execute(
                "SELECT coalesce(max(number), -1) + 1 FROM inputs WHERE run = ?", (held.head.id,)
            ).fetchone()[0]
            self._insert_inputs(connection, held.head.id, number, held.next, inputs)

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps, all or none of them, durably."""
        if not rows:
            return
        with self._lock:
            held = self._held.get(run_id)
            if held is None:
                raise JournalError(f"run {run_id!r} is not open in {self!r}: nobody here holds its lease")
            position = held.first + held.next
            try:
                connection = self._connection or self._connect()
                if len(rows) == 1:
                    done = connection.execute(_INSERT, _columns(position, rows[0], held)).rowcount
                else:
                    with _transaction(connection):
                        columns = [_columns(position + index, row, held) for index, row in enumerate(rows)]
                        done = connection.executemany(_INSERT, columns).rowcount
                        if done != len(rows):
                            raise self._lost(connection, held.head)
                if not done:
                    raise self._lost(connection, held.head)
            except BaseException as error:
                held.broken = True
                raise self._unsaved(error, held, _named(rows[0])) from error
            held.next += len(rows)
            held.saved += len(rows)
            held.last = rows[-1]

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""
        with self._at_work(run_id, "what a retry dropped") as (connection, held), _transaction(connection):
            self._require_ours(connection, held)
            doomed = list(_after(connection, held, cuts))
            if not doomed:
                return
            connection.executemany("DELETE FROM steps WHERE id = ?", doomed)
            head = held.head._replace(written=held.next, dropped=held.next - held.saved + len(doomed))
            connection.execute(
                "UPDATE runs SET written = ?, dropped = ?, checksum = ?, updated = ? WHERE id = ?",
                (head.written, head.dropped, head.checksum, time.time(), head.id),
            )
            held.head = head
            held.saved -= len(doomed)

    def close(self, run_id: str, status: str, reason: str | None, error: str | None) -> None:
        """Note what became of the run, and give up its lease.

        After a write that failed this raises nothing: that error has been told.
        """
        with self._lock:
            held = self._held.pop(run_id, None)
            if not self._held:
                self._stop_beating()
            if held is None:
                raise JournalError(f"run {run_id!r} is not open in {self!r}")
            head = held.head._replace(
                status=str(status), reason=reason, error=error, written=held.next, dropped=held.next - held.saved
            )
            try:
                connection = self._connection or self._connect()
                with _transaction(connection):
                    if held.broken:
                        head = head._replace(written=held.head.written, dropped=held.head.dropped)
                    if not self._release(connection, head, held.token):
                        raise self._lost(connection, head)
                if not _same_file(self.path, connection):
                    raise JournalError(f"{self.path} was deleted or replaced while run {run_id!r} was at work")
            except (sqlite3.Error, JournalError) as failure:
                if not held.broken:
                    raise self._unsaved(failure, held, f"that it is {status}") from failure

    # Runs, as rows.

    def _head(self, connection: sqlite3.Connection, run_id: str) -> Head:
        found = connection.execute(f"SELECT {_HEAD}, checksum FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if found is None:
            count = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            raise RunNotFoundError(f"{self.path} has no run {run_id!r}, among {count}")
        return self._checked_head(found)

    def _checked_head(self, found: tuple[Any, ...]) -> Head:
        head = Head._make(found[:-1])
        if head.checksum != found[-1]:
            raise self._damaged(f"what it says of run {head.run_id!r} does not agree with its checksum")
        return head

    def _require_codec(self, head: Head) -> None:
        if head.codec != self.codec.name:
            raise JournalError(
                f"run {head.run_id!r} of {self.path} was written in the codec {head.codec!r}, not "
                f"{self.codec.name!r}: open it as SqliteJournal(path, codec={head.codec!r})"
            )

    def _update(self, connection: sqlite3.Connection, head: Head, owner: Owner) -> int:
        now = time.time()
        return connection.execute(
            "UPDATE runs SET status = ?, reason = ?, error = ?, written = ?, dropped = ?, checksum = ?, updated = ?, "
            "owner = ?, host = ?, pid = ?, place = ?, born = ?, lease = ? WHERE id = ?",
            (
                *(head.status, head.reason, head.error, head.written, head.dropped, head.checksum, now),
                *owner,
                now + self.lease,
                head.id,
            ),
        ).rowcount

    def _release(self, connection: sqlite3.Connection, head: Head, token: str) -> int:
        return connection.execute(
            "UPDATE runs SET status = ?, reason = ?, error = ?, written = ?, dropped = ?, checksum = ?, updated = ?, "
            "owner = NULL, host = NULL, pid = NULL, place = NULL, born = NULL, lease = NULL WHERE id = ? AND owner = ?",
            (
                *(head.status, head.reason, head.error, head.written, head.dropped, head.checksum),
                *(time.time(), head.id, token),
            ),
        ).rowcount

    def _insert_inputs(self, connection: sqlite3.Connection, run: int, number: int, position: int, payload: bytes) -> None:
        checksum = zlib.crc32(payload, zlib.crc32(f"{run} {number} {position}".encode()))
        connection.execute("INSERT INTO inputs VALUES (?, ?, ?, ?, ?)", (run, number, position, checksum, payload))

    def _remembered(self, connection: sqlite3.Connection, head: Head) -> tuple[Remembered, int]:
        """Return the run, verified, and how many steps it ever wrote."""
        first = head.id << 32
        rows: list[Row] = []
        positions: list[int] = []
        for found in connection.execute(_SELECT, (first, first + 0xFFFFFFFF)):
            id, *columns, checksum, payload = found
            row = _row(columns, payload)
            if _checksum(id, row) != checksum:
                raise self._damaged(f"step {id - first} of run {head.run_id!r} does not agree with its checksum")
            rows.append(row)
            positions.append(id - first)
        self._require_whole(head, rows, positions)
        inputs: list[tuple[int, bytes]] = []
        given = connection.execute(
            "SELECT number, position, checksum, payload FROM inputs WHERE run = ? ORDER BY number", (head.id,)
        )
        for index, (number, position, checksum, payload) in enumerate(given):
            if number != index or checksum != zlib.crc32(payload, zlib.crc32(f"{head.id} {number} {position}".encode())):
                raise self._damaged(f"inputs {index} of run {head.run_id!r} do not agree with their checksum")
            inputs.append((sum(1 for p in positions if p < position), payload))
        if not inputs:
            raise self._damaged(f"the inputs of run {head.run_id!r} are missing")
        skip = tuple(json.loads(head.skip))
        written = max(head.written, positions[-1] + 1 if positions else 0)
        remembered = Remembered(head.run_id, head.pipeline, head.status, head.reason, head.started, skip, inputs, rows)
        return remembered, written

    def _require_whole(self, head: Head, rows: list[Row], positions: list[int]) -> None:
        """Raise if a step is missing, other than at the end of a run that was not closed since."""
        early = sum(1 for position in positions if position < head.written)
        if early != head.written - head.dropped or positions[early:] != list(
            range(head.written, head.written + len(positions) - early)
        ):
            raise self._damaged(f"steps of run {head.run_id!r} are missing")
        numbers: dict[str, int] = {}
        for row in rows:
            if row.number != numbers.get(row.branch, row.number - 1 if row.number in {0, 1} else None, ) + 1:
                raise self._damaged(f"branch {row.branch!r} of run {head.run_id!r} has a gap before step {row.number}")
            numbers[row.branch] = row.number
