"""The journal in an SQLite file: one row per step, committed before the next one starts.

`runs` has a row per run, with its owner; `inputs` has the inputs that a run was started and resumed with; `log` has
its steps, in the order of their writing. The views `steps` and `history` show them to people. The id of a step is the
number of its run in the upper half and its position in the lower one: the steps of a run are stored together, and
appending one touches one B-tree.

Rules that make damage show. Every row has a checksum of all but the lease. The positions of a run have no gaps, but for
the steps that were taken back, which are counted. The numbers of steps within a branch mean nothing here: they are
checked where they are read as the steps of a run. Steps that are missing at the end of an unfinished run have not
happened yet. A row is written only by the owner of the lease, which is checked in the same statement.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sqlite3
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, cast
from zlib import crc32

from flowdeco.durable.blobs import drop_blobs, load_blob, place_blob, refer, referred
from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.file import (
    CANCELLED,
    PATIENCE,
    JournalFile,
    Lease,
    inode,
    is_held_here,
    journal_file,
    transaction,
)
from flowdeco.durable.info import (
    STATUSES,
    RunInfo,
    finished_error,
    first_due,
    nothing_to_cancel,
    questions_in,
    waits_as_json,
)
from flowdeco.durable.lease import Owner, is_dead, this_process
from flowdeco.durable.schema import FORMAT
from flowdeco.engine.journal import FINISHED, Codec, Payload, Remembered, Row
from flowdeco.errors import (
    JournalError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    SerializationError,
    Wait,
    suggestion,
)
from flowdeco.model.options import Duration, checked_path, in_seconds

__all__ = ["SqliteJournal"]

LONGEST: Final = 86400.0  # seconds for which a lease is believed: one that ends later was written by a wrong clock

_LAST: Final = 0xFFFFFFFF  # of the steps of a run
_LAST_RUN: Final = 0x7FFFFFFF

_FEW: Final = 8
_KEPT: Final = 1024


def _insert(count: int) -> str:
    """Return the statement that inserts so many steps, if the run has that owner."""
    step = "SELECT ?, ?, ?, ?, ?, ?, ?, ? FROM runs WHERE id = ? AND owner = ?"
    columns = "id, number, what, started, elapsed, checksum, payload, begins"
    return f"INSERT INTO log ({columns}) {' UNION ALL '.join([step] * count)}"


_INSERTS: Final = [_insert(count) for count in range(_FEW + 1)]
_SELECT: Final = (
    "SELECT id, number, what, started, elapsed, checksum, payload FROM log WHERE id BETWEEN ? AND ? ORDER BY id"
)
_IDS: Final = "SELECT id FROM log WHERE id BETWEEN ? AND ? ORDER BY id"


class Head(NamedTuple):
    """The part of a row of `runs` that its checksum covers."""

    id: int
    run_id: str
    pipeline: str
    entry: str | None
    status: str
    reason: str | None
    error: str | None
    started: float
    skip: str
    codec: str
    written: int
    dropped: int
    given: int
    format: int

    @property
    def checksum(self) -> int:
        """The checksum of all columns; rows of format 2 were written before there were formats."""
        return crc32(json.dumps(self[:-1] if self.format == 2 else self).encode())

    def agrees(self, checksum: object) -> bool:
        """Whether the columns are unchanged since they were written, and such as we write."""
        return bytes not in map(type, self) and self.checksum == checksum and self._is_sound()

    def _is_sound(self) -> bool:
        types: tuple[Any, ...] = int, str, str, _TEXT, str, _TEXT, _TEXT, float, str, str, int, int, int, int
        return (
            all(isinstance(value, type) for value, type in zip(self, types, strict=True))
            and 0 < self.id <= _LAST_RUN
            and self.status in STATUSES
            and math.isfinite(self.started)
            and _selectors(self.skip) is not None
        )


_TEXT: Final = (str, type(None))
_HEAD: Final = ", ".join(Head._fields)
_OWNER: Final = "owner, host, pid, place, born"


class _Held(Lease):
    """A run that this journal holds the lease of; `doubtful` if the last write may or may not have happened.

    `before` is the head that it had when it was opened. `begun` are branches whose first row is marked in the file. Some
    may be missing: their next row is marked as well.
    """

    __slots__ = ("answers", "before", "begun", "broken", "doubtful", "file", "first", "head", "last", "next", "saved")

    def __init__(self, file: JournalFile, head: Head, token: str, seconds: float, before: Head | None = None) -> None:
        super().__init__(head.id, token, seconds, noted=before is None)
        self.file = file
        self.before = head if before is None else before
        self.first = head.id << 32
        self.begun: set[str] = set()
        self.broken = False
        self.answers = 0  # known to this leg of the run
        self.last: Row | None = None
        self.begins_with(head)
        self.doubtful = before is not None  # the file does not say yet that it is running

    def begins_with(self, head: Head) -> None:
        """Continue after the steps of this head."""
        self.head = head
        self.next = head.written
        self.saved = head.written - head.dropped


class SqliteJournal:
    """Runs in one SQLite file, which any number of runs, threads and processes can share.

    The file is created if missing, readable only by its owner. `synchronous="NORMAL"` survives a crash of the
    process, `"FULL"` a loss of power as well, at the cost of waiting for the disk at every step. `lease` is how many
    seconds an owner on another host may be silent before the run can be taken over. `entry` is stored with the runs that
    begin here: the entry point of their pipeline, `"module:flow"` or `"file.py:flow"`, for `wake` and the command line.
    """

    takes_parts = True  # of payloads
    takes_entry = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Literal["pickle", "json"] | Codec = "pickle",
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        lease: Duration = 30.0,
        entry: str | None = None,
    ) -> None:
        given = checked_path(path, "the file of a journal", JournalError)
        if not given or given == ":memory:":
            raise JournalError(f"a journal is a file, and {given!r} is not one: MemoryJournal() keeps runs in memory")
        if os.path.isdir(given):
            raise JournalError(f"{given!r} is a folder: give the path of a file, such as 'runs.db'")
        if synchronous not in {"NORMAL", "FULL"}:
            raise JournalError(f"synchronous is 'NORMAL' or 'FULL', not {synchronous!r}")
        seconds = in_seconds(lease)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise JournalError(f"lease is a positive number of seconds, or a timedelta, not {lease!r}")
        if not (entry is None or isinstance(entry, str)):
            raise JournalError(f"entry is the entry point of a pipeline, such as 'module:flow', not {entry!r}")
        self.path: str = os.path.abspath(given)
        self.codec: Codec = named_codec(codec)
        self.synchronous = synchronous
        self.lease = float(seconds)
        self.entry = None if entry is None else _plain(entry)
        self._held: dict[str, _Held] = {}
        self._only_due = False
        self._file: JournalFile | None = None
        self._is_brief = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing open, and holds no runs."""
        return {**self.__dict__, "_held": {}, "_file": None}

    def brief(self) -> Self:
        """Return a copy that has the file open only while it works on a run."""
        journal = copy(self)
        journal._is_brief = True
        return journal

    def only_due(self) -> Self:
        """Return a copy that opens a run only if it is due, answered or has crashed: another waker may have been faster."""
        journal = copy(self)
        journal._only_due = True
        return journal

    def __repr__(self) -> str:
        return f"SqliteJournal({self.path!r})"

    # For a run.

    def create(self, run_id: str, pipeline: str, inputs: bytes, skip: Sequence[str], *entry: str) -> None:
        """Begin a run; raises `RunExistsError` if one with that id exists, `RunBusyError` if it is at work."""
        if not isinstance(run_id, str):
            raise JournalError(f"a run_id must be a string, not {run_id!r}")
        now = time.time()
        owner = this_process(secrets.token_hex(8))
        with self._asked(f"run {run_id!r} cannot begin", make=True) as (file, connection):
            held: _Held | None = None
            try:
                with transaction(connection):
                    self._require_new(connection, run_id, owner)
                    number = connection.execute(_NEXT_RUN).fetchone()[0]
                    where = self.entry or (_plain(*entry) if entry else None)
                    head = Head(
                        *(number, run_id, _plain(pipeline), where, "running", None, None),
                        now,
                        *(json.dumps(list(skip)), self.codec.name, 0, 0, 1, FORMAT),
                    )
                    columns = (*head, head.checksum, now, *owner, now + self.lease)
                    connection.execute(
                        f"INSERT INTO runs ({_HEAD}, checksum, updated, {_OWNER}, lease) "
                        f"VALUES ({', '.join('?' * len(columns))})",
                        columns,
                    )
                    self._insert_inputs(connection, number, 0, 0, inputs)
                    held = _Held(file, head, owner.token, self.lease)
                    file.keep(held)
                self._held[run_id] = held
            except BaseException:
                if held is not None:
                    file.leave(held)
                raise

    def open(self, run_id: str, *, finished: bool = False) -> Remembered:
        """Take the lease of a run that has not finished, and return it; raises `RunNotFoundError`, `RunBusyError`.

        Nothing else changes: it is running from the first `proceed`, `write`, `drop` or `add_inputs` on. A finished run
        is only read, unless `finished` asks for it.
        """
        with self._asked(f"run {run_id!r} cannot be resumed") as (file, connection):
            with transaction(connection, "DEFERRED"):  # readers of a finished run wait for nobody
                head = self._readable(connection, run_id)
                if head.status in FINISHED and not finished:
                    return self._remembered(connection, head)[0]
            held, owner = None, this_process(secrets.token_hex(8))
            try:
                with transaction(connection):
                    head = self._readable(connection, run_id)
                    if head.status in FINISHED and not finished:
                        return self._remembered(connection, head)[0]
                    self._require_idle(connection, head, owner)
                    if self._only_due and not connection.execute(_IS_DUE, (head.id, time.time())).fetchone():
                        raise RunBusyError(f"run {run_id!r} is no longer due: another process was faster")
                    running = head._replace(status="running", reason=None, error=None, entry=self.entry or head.entry)
                    held = _Held(file, running, owner.token, self.lease, head)
                    file.keep(held)
                    connection.execute(
                        "UPDATE runs SET owner = ?, host = ?, pid = ?, place = ?, born = ?, lease = ? WHERE id = ?",
                        (*owner, time.time() + self.lease, head.id),
                    )
                remembered, written = self._remembered(connection, head)
                held.answers = len(remembered.inputs) - head.given
                held.begins_with(running._replace(written=written, dropped=written - len(remembered.rows)))
                held.last = remembered.rows[-1] if remembered.rows else None
                self._held[run_id] = held
            except BaseException:
                if held is not None:
                    self._abandon(connection, held)
                raise
        return remembered

    def release(self, run_id: str) -> None:
        """Give the lease of an opened run back, and leave the run as it was; does nothing if it is not held."""
        held = self._held.pop(run_id, None)
        if held is not None:
            with held.file.lock:
                try:
                    self._abandon(held.file.connection or held.file.connect(), held)
                except sqlite3.Error as error:
                    raise JournalError(f"run {run_id!r} cannot be released: {self._told(error)}") from error
                finally:
                    self._let_go(held.file)

    def on_cancel(self, run_id: str, call: Callable[[], bool]) -> None:
        """Have this called, from any thread, when the run is cancelled while it is at work; again until it returns True."""
        held = self._held.get(run_id) or self._unheld(run_id)
        held.on_cancel = call
        held.tell()

    def cancel(self, run_id: str) -> None:
        """Cancel a run: at once if no process works on it; raises `JournalError` if it has finished."""
        with self._asked(f"run {run_id!r} cannot be cancelled") as (_, connection), transaction(connection):
            head = self._head(connection, run_id)
            if head.status in FINISHED:
                raise nothing_to_cancel(run_id, head.status)
            lease, *found = connection.execute(_LEASE, (head.id,)).fetchone()
            owner = Owner._make(found)
            if found[0] is not None and _is_busy(owner, lease, this_process("")):
                called_off = owner.token.removesuffix(CANCELLED) + CANCELLED
                connection.execute("UPDATE runs SET owner = ? WHERE id = ?", (called_off, head.id))
            elif head.status != "cancelled":
                gone = head._replace(status="cancelled", reason=None, error=None)
                state = *_state(gone), time.time(), head.id
                connection.execute(f"UPDATE runs SET {_STATE}, {_NOBODY} WHERE id = ?", state)

    def proceed(self, run_id: str, inputs: bytes | None = None) -> None:
        """Note that an opened run is running again, with these new inputs."""
        with self._at_work(run_id, "its new inputs" if inputs is not None else "that it is running") as (
            connection,
            held,
        ):
            with transaction(connection):
                self._require_ours(connection, held)
                self._settle(connection, held)
                head = held.head
                if inputs is not None:
                    head = head._replace(given=head.given + 1)
                    self._insert_inputs(connection, head.id, head.given - 1, held.next, inputs)
                    self._note(connection, held, head)
            held.head = head

    def add_inputs(self, run_id: str, inputs: bytes) -> None:
        """Remember the inputs of a resume."""
        self.proceed(run_id, inputs)

    def answer(self, run_id: str, answers: bytes) -> None:
        """Remember answers, as further inputs, whoever is at work on the run; raises `JournalError` if it has finished."""
        with self._asked(f"run {run_id!r} cannot be answered") as (_, connection), transaction(connection):
            head = self._readable(connection, run_id)
            if head.status in FINISHED:
                raise finished_error(run_id, head.status)
            first, counted = head.id << 32, "SELECT count(*) FROM {} WHERE run = ?"
            number, given = (
                connection.execute(counted.format(table), (head.id,)).fetchone()[0] for table in ("answers", "inputs")
            )
            position = connection.execute(
                "SELECT max(?, coalesce(max(id) + 1 - ?, 0)) FROM log WHERE id BETWEEN ? AND ?",
                (head.written, first, first, first + _LAST),
            ).fetchone()[0]
            checksum = _inputs_checksum(head.id, number, position, answers)
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", (head.id, number, given, position, checksum, answers)
            )
            connection.execute(
                "UPDATE runs SET updated = ?, ready = CASE status WHEN 'suspended' THEN 0 END WHERE id = ?",
                (time.time(), head.id),
            )

    def read(self, run_id: str) -> Remembered:
        """Return a run without opening it."""
        with self._asked(f"run {run_id!r} cannot be read") as (_, connection), transaction(connection, "DEFERRED"):
            return self._remembered(connection, self._readable(connection, run_id))[0]

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps, all or none of them, durably."""
        if not rows:
            return
        held = self._held.get(run_id) or self._unheld(run_id)
        with held.file.lock:
            try:
                connection = held.file.connection or held.file.connect()
                if held.doubtful:
                    self._settle(connection, held)
                self._insert(connection, held, rows)
            except (sqlite3.Error, JournalError, OverflowError) as error:
                held.broken = held.doubtful = True
                raise self._unsaved(error, held, _named(rows[0])) from error
            except BaseException:
                held.doubtful = True
                raise
            held.next += len(rows)
            held.saved += len(rows)
            held.last = rows[-1]
            begun = held.begun
            if len(begun) > _KEPT:  # a run may have new branches without end
                begun.clear()
            for row in rows:
                begun.add(row.branch)

    def _insert(self, connection: sqlite3.Connection, held: _Held, rows: Sequence[Row]) -> None:
        large = False
        for row in rows:
            large = large or type(row.payload) is Payload
        if large or len(rows) > _FEW:
            self._insert_many(connection, held, rows)
            return
        at = held.first + held.next
        columns = _columns(at, rows[0], held)
        for index in range(1, len(rows)):
            columns += _columns(at + index, rows[index], held)
        if not connection.execute(_INSERTS[len(rows)], columns).rowcount:  # a statement on its own is a transaction
            self._require_ours(connection, held)  # raises, unless the run has just been cancelled
            self._insert(connection, held, rows)

    def _insert_many(self, connection: sqlite3.Connection, held: _Held, rows: Sequence[Row]) -> None:
        at = held.first + held.next
        with transaction(connection):
            self._require_ours(connection, held)
            connection.executemany(_INSERTS[1], (_columns(at + index, row, held) for index, row in enumerate(rows)))
            for index, row in enumerate(rows):
                if type(row.payload) is Payload:
                    refer(connection, at + index, self._placed(connection, row.payload))

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""
        with self._at_work(run_id, "what a retry dropped") as (connection, held):
            with transaction(connection):
                self._require_ours(connection, held)
                self._settle(connection, held)
                held.begun.difference_update(cuts)
                doomed, first = _after(connection, held, cuts)
                left = held.saved - len(doomed)
                head = held.head._replace(written=held.next, dropped=held.next - left)
                if doomed:
                    connection.executemany("DELETE FROM log WHERE id = ?", doomed)
                    connection.executemany("DELETE FROM refs WHERE step = ?", doomed)
                    connection.executemany("UPDATE log SET begins = 1 WHERE id = ?", first)
                    self._note(connection, held, head)
            if doomed:
                held.head, held.saved = head, left

    def close(
        self, run_id: str, status: str, reason: str | None, error: str | None, elapsed: float | None = None,
        waits: Sequence[Wait] = (),
    ) -> None:  # fmt: skip
        """Note the outcome of the run, and release its lease.

        Raises nothing if a write has failed before: that error has been raised.
        """
        held = self._held.pop(run_id, None) or self._unheld(run_id)
        file = held.file
        with file.lock:
            try:
                connection = file.connection or file.connect()
                with transaction(connection):
                    held.on_cancel = None  # it comes too late
                    held.is_cancelled(connection)
                    self._settle(connection, held)
                    if status == "suspended" and held.owner != held.token:
                        status, reason = "cancelled", None
                    head = held.head._replace(
                        status=str(status),
                        reason=None if reason is None else _plain(reason),
                        error=None if error is None else _plain(error),
                        written=held.next,
                        dropped=held.next - held.saved,
                    )
                    if elapsed is not None:
                        timed = (elapsed, held.next, head.id, held.owner)
                        connection.execute("UPDATE runs SET took = ?, timed = ? WHERE id = ? AND owner = ?", timed)
                    if status == "suspended":
                        at = first_due(waits)
                        waiting = at, waits_as_json(waits), held.answers, held.answers, at, head.id, held.owner
                        connection.execute(_WAITS, waiting)
                    if not self._release(connection, head, held.owner):
                        raise self._lost(connection, held)
                if file.has_moved():
                    raise JournalError(f"{self.path} was deleted or replaced while run {run_id!r} was running")
            except (sqlite3.Error, JournalError) as failure:
                if not held.broken:
                    raise self._unsaved(failure, held, f"that it is {status}") from failure
            finally:
                file.leave(held)
                self._let_go(file)

    # For queries and maintenance.

    def runs(self, *, due: float | None = None, run_id: str | None = None) -> list[RunInfo]:
        """Return all runs, the latest first; one that is damaged has this as its status.

        With `run_id`, only that one; with a time, only those that may be `due` then: suspended ones that are due or
        answered, and running ones.
        """
        wanted: tuple[Any, ...]
        which, wanted = ("", ()) if run_id is None else ("WHERE run_id = ?", (run_id,))
        if due is not None:
            which, wanted = f"WHERE id IN ({_DUE})", (due,)
        me = this_process("")
        with self._asked("the runs cannot be listed") as (_, connection), transaction(connection, "DEFERRED"):
            found = _all(
                connection,
                f"SELECT {_HEAD}, checksum, updated, due, questions, answers, {_COUNTED}, lease, {_OWNER} FROM runs "
                f"{which} ORDER BY started DESC, id DESC",
                wanted,
            )
            size = len(Head._fields) + 1
            return [self._info(connection, row[:size], row[size:], me) for row in found]

    def history(self, run_id: str) -> list[Row]:
        """Return the steps of a run, whatever the codec that they are written in."""
        with self._asked(f"run {run_id!r} cannot be read") as (_, connection), transaction(connection, "DEFERRED"):
            return self._remembered(connection, self._head(connection, run_id))[0].rows

    def ended_actions(self, run_id: str) -> int:
        """Return the number of actions of a run that have ended, as far as its rows can be read."""
        with self._asked("the steps cannot be counted") as (_, connection), transaction(connection, "DEFERRED"):
            found = connection.execute(_ENDED, (run_id,)).fetchone()
            return 0 if found is None else int(found[0])

    def delete(self, run_id: str) -> None:
        """Forget a run; raises `RunNotFoundError`, and `RunBusyError` while a process works on it."""
        with self._asked(f"run {run_id!r} cannot be deleted") as (_, connection), transaction(connection):
            head = Head._make(self._found(connection, run_id)[:-1])  # a damaged run is deleted, too
            self._require_idle(connection, head, this_process(""))
            if head.id <= _LAST_RUN:
                first = head.id << 32
                connection.execute("DELETE FROM log WHERE id BETWEEN ? AND ?", (first, first + _LAST))
                steps = first, first + _LAST, -first - _LAST, -first
                connection.execute("DELETE FROM refs WHERE step BETWEEN ? AND ? OR step BETWEEN ? AND ?", steps)
                drop_blobs(connection)
            for table in ("inputs", "answers", "legs"):
                connection.execute(f"DELETE FROM {table} WHERE run = ?", (head.id,))
            connection.execute("DELETE FROM runs WHERE id = ?", (head.id,))

    def drop_unused(self) -> None:
        """Delete the large values that no run refers to any more."""
        with self._asked("unused values cannot be deleted") as (_, connection), transaction(connection):
            drop_blobs(connection)

    # Large values.

    def _insert_inputs(
        self, connection: sqlite3.Connection, run: int, number: int, position: int, payload: bytes
    ) -> None:
        checksum = _inputs_checksum(run, number, position, payload)
        connection.execute("INSERT INTO inputs VALUES (?, ?, ?, ?, ?)", (run, number, position, checksum, payload))
        if type(payload) is Payload:
            refer(connection, _inputs_step(run, number), self._placed(connection, payload))

    def _placed(self, connection: sqlite3.Connection, payload: bytes) -> list[int]:
        """Return the ids of the large parts of a payload, which are written if they are new."""
        parts = cast("Payload", payload).parts
        if isinstance(parts, _Stored) and parts.journal.path == self.path:  # of another run in this file
            return parts.blobs
        return [place_blob(connection, part) for part in parts]

    def load(self, blob: int) -> bytearray:
        """Return a large part of a payload."""
        with self._asked("a large value cannot be read") as (_, connection), transaction(connection, "DEFERRED"):
            try:
                return load_blob(connection, blob)
            except JournalError as error:
                raise self._damaged(str(error)) from error

    def _info(
        self, connection: sqlite3.Connection, found: tuple[Any, ...], rest: tuple[Any, ...], me: Owner
    ) -> RunInfo:
        head = Head._make(found[:-1])
        if not head.agrees(found[-1]):  # the list must still show the others
            text = "its row does not agree with its checksum: delete it, or restore the file from a backup"
            started, updated = (at if isinstance(at, float) else math.inf for at in (head.started, rest[0]))
            run_id, pipeline = str(_untext(head.run_id)), str(_untext(head.pipeline))
            return RunInfo(run_id, pipeline, "damaged", None, started, updated, 0, text)
        updated, due, questions, known, answers, lease, *owner = rest  # which no checksum covers
        if not isinstance(updated, float) or not math.isfinite(updated):
            updated = head.started
        busy = owner[0] is not None and _is_busy(Owner._make(owner), lease, me)
        steps = head.written - head.dropped
        if head.status == "running":
            first = head.id << 32
            steps = connection.execute(
                "SELECT count(*) FROM log WHERE id BETWEEN ? AND ?", (first, first + _LAST)
            ).fetchone()[0]
        info = RunInfo(
            *(head.run_id, head.pipeline, head.status, head.reason, head.started, updated, steps),
            *(head.error, str(Owner._make(owner)) if busy else None, head.entry, head.codec),
            cancelling=busy and str(owner[0]).endswith(CANCELLED),
        )
        if not busy and str(owner[0]).endswith(CANCELLED):  # its owner has died before it noticed
            return info._replace(status="cancelled")
        if head.status != "suspended":
            return info
        at = due if isinstance(due, float) else None
        return info._replace(due=at, questions=questions_in(questions), answered=answers != known)

    # Runs, as rows.

    def _head(self, connection: sqlite3.Connection, run_id: str) -> Head:
        return self._checked(self._found(connection, run_id))

    def _found(self, connection: sqlite3.Connection, run_id: str) -> tuple[Any, ...]:
        """Return the columns of a run and their checksum, as they are."""
        found: tuple[Any, ...] | None = connection.execute(
            f"SELECT {_HEAD}, checksum FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if found is None:
            recent = connection.execute("SELECT CAST(run_id AS BLOB) FROM runs ORDER BY id DESC LIMIT 100")
            known = [name.decode("utf-8", "replace") for (name,) in recent]
            raise RunNotFoundError(f"{self.path} has no run {run_id!r}. {suggestion(run_id, known)}")
        return found

    def _checked(self, found: tuple[Any, ...]) -> Head:
        head = Head._make(found[:-1])
        if not head.agrees(found[-1]):
            raise self._damaged(f"its row of run {head.run_id!r} does not agree with its checksum")
        return head

    def _readable(self, connection: sqlite3.Connection, run_id: str) -> Head:
        head = self._head(connection, run_id)
        self._require_readable(head)
        return head

    def _require_readable(self, head: Head) -> None:
        if head.format < FORMAT:
            raise JournalError(
                f"run {head.run_id!r} of {self.path} was written by an earlier version of flowdeco, which numbered "
                f"steps differently: it can be listed and shown, not resumed. Start it again, or finish it with that "
                f"version, in a copy of the file from before the upgrade"
            )
        if head.codec != self.codec.name:
            raise JournalError(
                f"run {head.run_id!r} of {self.path} is written in the codec {head.codec!r}, not "
                f"{self.codec.name!r}: open it by SqliteJournal(path, codec={head.codec!r})"
            )

    def _require_new(self, connection: sqlite3.Connection, run_id: str, me: Owner) -> None:
        found = connection.execute(f"SELECT {_HEAD}, checksum FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if found is None:
            return
        there = self._checked(found)
        self._require_idle(connection, there, me)
        advice = "resume it" if there.format >= FORMAT else "delete it"
        raise RunExistsError(
            f"{self.path} has a run {run_id!r} already, {there.status}: {advice}, or use another run_id. "
            f'run(..., if_exists="resume") starts, continues or returns it'
        )

    def _require_idle(self, connection: sqlite3.Connection, head: Head, me: Owner) -> None:
        lease, *found = connection.execute(_LEASE, (head.id,)).fetchone()
        owner = Owner._make(found)
        if found[0] is not None and _is_busy(owner, lease, me):
            ago = max(0.0, time.time() - (lease - self.lease)) if isinstance(lease, float) else math.inf
            heard = "which is this one" if owner[1:] == me[1:] else f"which was last heard of {ago:.0f} s ago"
            raise RunBusyError(
                f"run {head.run_id!r} is being worked on by {owner}, {heard}: only one at a time can work on a run"
            )

    def _require_ours(self, connection: sqlite3.Connection, held: _Held) -> None:
        ours = connection.execute("SELECT 1 FROM runs WHERE id = ? AND owner = ?", (held.id, held.owner)).fetchone()
        if not ours and not held.is_cancelled(connection):
            raise self._lost(connection, held)

    def _lost(self, connection: sqlite3.Connection, held: _Held) -> JournalError:
        run_id = held.head.run_id
        if not held.token:
            return JournalError(
                f"run {run_id!r} is active in the process that forked this one, which cannot write to it"
            )
        found = connection.execute(f"SELECT {_OWNER} FROM runs WHERE id = ?", (held.id,)).fetchone()
        if found is None:
            return JournalError(f"run {run_id!r} was deleted from {self.path} while it was running")
        who = str(Owner._make(found)) if found[0] is not None else "another process, which has finished"
        return JournalError(
            f"the lease of run {run_id!r} was lost: {who} took the run over. This process did not renew its "
            f"lease in time; nothing that it has done since is saved"
        )

    def _note(self, connection: sqlite3.Connection, held: _Held, head: Head) -> None:
        """Write the state of a run, if it is still ours."""
        state = *_state(head), time.time(), held.id, held.owner
        connection.execute(f"UPDATE runs SET {_STATE} WHERE id = ? AND owner = ?", state)

    def _release(self, connection: sqlite3.Connection, head: Head, token: str) -> int:
        return connection.execute(
            f"UPDATE runs SET {_STATE}, {_NOBODY} WHERE id = ? AND owner = ?",
            (*_state(head), time.time(), head.id, token),
        ).rowcount

    def _abandon(self, connection: sqlite3.Connection, held: _Held) -> None:
        """Release the lease of a run, which stays as it was before it was opened, unless it was cancelled meanwhile."""
        try:
            held.on_cancel = None
            held.is_cancelled(connection)
            if held.noted or held.owner != held.token:
                status, reason, error = held.before.status, held.before.reason, held.before.error
                if held.owner != held.token:
                    status, reason, error = "cancelled", None, None
                head = held.head if held.noted else held.before
                head = head._replace(status=status, reason=reason, error=error)
                if held.noted:
                    head = head._replace(written=held.next, dropped=held.next - held.saved)
                self._release(connection, head, held.owner)
            else:
                connection.execute(f"UPDATE runs SET {_NOBODY} WHERE id = ? AND owner = ?", (held.id, held.owner))
        finally:
            held.file.leave(held)

    def _settle(self, connection: sqlite3.Connection, held: _Held) -> None:
        """Read the position of the last step, if an interrupted write may or may not have happened.

        And if the run was opened and has not written anything yet, note that it is running.
        """
        if held.doubtful:
            held.is_cancelled(connection)
            last, held.saved = connection.execute(
                "SELECT coalesce(max(id) + 1, 0), count(*) FROM log WHERE id BETWEEN ? AND ?",
                (held.first, held.first + _LAST),
            ).fetchone()
            held.next = max(held.head.written, last - held.first)
            given = "SELECT coalesce(max(given), 0) FROM runs WHERE id = ?"
            held.head = held.head._replace(given=connection.execute(given, (held.id,)).fetchone()[0])
            if not held.noted:
                self._note(connection, held, held.head)
                number = "(SELECT count(*) FROM legs WHERE run = ?)"
                leg = held.id, held.id, held.next, time.time()
                connection.execute(f"INSERT INTO legs VALUES (?, {number}, ?, ?)", leg)
                held.noted = True
            held.doubtful = False

    def _remembered(self, connection: sqlite3.Connection, head: Head) -> tuple[Remembered, int]:
        """Return the run, verified, and how many steps it has ever written."""
        rows, positions = self._steps(connection, head)
        inputs: list[tuple[int, bytes]] = []
        blobs = referred(connection, -(head.id << 32) - _LAST, -(head.id << 32))
        for number, position, checksum, payload in connection.execute(
            "SELECT number, position, checksum, payload FROM inputs WHERE run = ? ORDER BY number", (head.id,)
        ):
            agrees = (
                type(payload) is bytes
                and type(position) is int
                and checksum == _inputs_checksum(head.id, number, position, payload)
            )
            if number != len(inputs) or not agrees or type(position) is not int:
                raise self._damaged(f"the inputs {number} of run {head.run_id!r} do not agree with their checksum")
            step = _inputs_step(head.id, number)
            payload = Payload(payload, _Stored(self, blobs[step])) if step in blobs else payload
            inputs.append((bisect_left(positions, position), payload))
        if len(inputs) != head.given:
            raise self._damaged(f"inputs of run {head.run_id!r} are missing")
        for number, given, position, checksum, payload in connection.execute(
            "SELECT number, given, position, checksum, payload FROM answers WHERE run = ? ORDER BY number", (head.id,)
        ):
            if type(payload) is not bytes or checksum != _inputs_checksum(head.id, number, position, payload):
                raise self._damaged(f"the answers {number} of run {head.run_id!r} do not agree with their checksum")
            inputs.insert(given + number, (bisect_left(positions, position), payload))  # each after those before it
        written = max(head.written, positions[-1] + 1 if positions else 0)
        skip = _selectors(head.skip) or ()
        legs = [
            (bisect_left(positions, position), started)
            for position, started in connection.execute(
                "SELECT position, started FROM legs WHERE run = ? ORDER BY number", (head.id,)
            )
            if (type(position), type(started)) == (int, float)  # without a checksum, since nothing depends on them
        ]
        elapsed, timed = connection.execute("SELECT took, timed FROM runs WHERE id = ?", (head.id,)).fetchone()
        if (type(elapsed), type(timed)) != (float, int):
            elapsed, timed = 0.0, 0
        remembered = Remembered(
            head.run_id, head.pipeline, head.status, head.reason, head.started, skip, inputs, rows, head.error,
            elapsed, bisect_left(positions, timed), legs,
        )  # fmt: skip
        return remembered, written

    def _steps(self, connection: sqlite3.Connection, head: Head) -> tuple[list[Row], Sequence[int]]:
        """Return the steps of a run, and their places in the order of writing; raises if one is damaged or missing."""
        first = head.id << 32
        id = first - 1
        rows: list[Row] = []
        blobs = referred(connection, first, first + _LAST)
        found = connection.execute(_SELECT, (first, first + _LAST))
        for id, number, what, started, elapsed, checksum, payload in found:
            told: Names | None
            try:
                told = _names(what)
                if crc32(_PACKED(id, number, started, elapsed) + payload, told[0]) != checksum:
                    told = None
            except (TypeError, ValueError, RecursionError, struct.error):
                told = None
            if told is None:
                raise self._damaged(f"step {id - first} of run {head.run_id!r} does not agree with its checksum")
            if id in blobs:
                payload = Payload(payload, _Stored(self, blobs[id]))
            _, branch, kind, stage, action, status, fingerprint = told
            rows.append(Row(branch, number, kind, stage, action, status, started, elapsed, fingerprint, payload))
        positions: Sequence[int] = range(len(rows))
        if id - first >= len(rows):  # without gaps, the last one is one less than their number
            positions = [id - first for (id,) in connection.execute(_IDS, (first, first + _LAST))]
        early = bisect_left(positions, head.written)
        late = len(positions) - early
        if early != head.written - head.dropped or (late and positions[-1] != head.written + late - 1):
            raise self._damaged(f"steps of run {head.run_id!r} are missing")
        return rows, positions

    # The connection, and its errors.

    @contextmanager
    def _asked(
        self, failure: str, *, make: bool = False
    ) -> Generator[tuple[JournalFile, sqlite3.Connection], None, None]:
        """Give the file and its connection; raises a `JournalError` that begins with `failure` if it fails."""
        file = self._shared()
        with file.lock:
            try:
                if file.connection is not None and file.has_moved():
                    file.disconnect()
                file.users.add(self)
                yield file, file.connection or file.connect(make=make)
            except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
                raise JournalError(f"{failure}: {self._told(error)}") from error
            finally:
                self._let_go(file)

    def _shared(self) -> JournalFile:
        file = self._file
        if file is None or (not self._held and file.inode != inode(self.path)):  # a link may lead to another file now
            file = self._file = journal_file(self.path, self.synchronous)
        return file

    def _let_go(self, file: JournalFile) -> None:
        if self._is_brief and not self._held:
            self._file = None
            file.let_go(self)

    @contextmanager
    def _at_work(self, run_id: str, what: str) -> Generator[tuple[sqlite3.Connection, _Held], None, None]:
        held = self._held.get(run_id) or self._unheld(run_id)
        with held.file.lock:
            try:
                yield held.file.connection or held.file.connect(), held
            except (sqlite3.Error, JournalError, OverflowError) as error:
                held.broken = held.doubtful = True
                raise self._unsaved(error, held, what) from error
            except BaseException:
                held.doubtful = True
                raise

    def _unheld(self, run_id: str) -> _Held:
        raise JournalError(f"run {run_id!r} is not open in {self!r}: `create` or `open` it first")

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"the journal {self.path} is damaged: {what}. Restore it from a backup, or delete the run with "
            f"flowdeco.durable.delete and start again"
        )

    def _told(self, error: Exception) -> str:
        """Return the message of an error: the problem of the file, and its remedy."""
        if isinstance(error, (sqlite3.DataError, OverflowError)):
            return f"SQLite does not take a value of that size ({error})"
        undecodable = "Could not decode to UTF-8" in str(error)  # which has no name
        name = "SQLITE_CORRUPT" if undecodable else str(getattr(error, "sqlite_errorname", ""))
        for prefix, text in _TROUBLES.items():
            if name.startswith(prefix):
                return f"{self.path} {text} ({error})"
        return f"{self.path}: {error}"

    def _unsaved(self, error: Exception, held: _Held, what: str) -> JournalError:
        """Return the error of a write, with the number of saved steps, and the step that is not saved."""
        run_id, count = held.head.run_id, held.saved
        upto = f", up to {_named(held.last)}" if held.last is not None and count else ""
        saved = f"{count} step{'s' * (count != 1)} of run {run_id!r} {'are' if count != 1 else 'is'} saved{upto}"
        if isinstance(error, JournalError):
            return type(error)(f"{error}. {saved}; {what} is not")
        told = self._told(error)
        kind = SerializationError if isinstance(error, (sqlite3.DataError, OverflowError)) else JournalError
        return kind(f"{told}. {saved}; {what} is not. Then resume it: resume({run_id!r}, journal={self.path!r})")


def named_codec(codec: str | Codec) -> Codec:
    """Return the codec of that name, or the codec itself."""
    if codec == "pickle":
        return PickleCodec()
    if codec == "json":
        from flowdeco.durable.json_codec import JsonCodec

        return JsonCodec()
    if isinstance(codec, (str, type)) or not all(hasattr(codec, each) for each in ("name", "encode", "decode")):
        raise JournalError(f"codec is 'pickle', 'json' or a Codec, not {codec!r}")
    return codec


# Rows.


Names: TypeAlias = "tuple[int, str, str, str, str | None, str, str]"  # checksum, then as in a row


def _columns(id: int, row: Row, held: _Held) -> tuple[Any, ...]:
    """Return the columns of a step, and those of its run that must not have changed."""
    branch, number, kind, stage, action, status, started, elapsed, fingerprint, payload = row
    what, checksum = _joined(branch, kind, stage, action, status, fingerprint)
    checksum = crc32(_PACKED(id, number, started, elapsed) + payload, checksum)
    return id, number, what, started, elapsed, checksum, payload, branch not in held.begun, held.id, held.owner


@lru_cache(_KEPT)
def _joined(branch: str, kind: str, stage: str, action: str | None, status: str, fingerprint: str) -> tuple[str, int]:
    """Return the names of a step as one, and the checksum of that; most runs have a few that come again and again."""
    # Only the names of users need quotes; the others are our own words.
    what = f'["{branch}","{kind}",{_quoted(stage)},{_quoted(action or "")},"{status}","{fingerprint}"]'
    return what, crc32(what.encode())


@lru_cache(_KEPT)
def _names(what: str) -> Names:
    """Return the names that `_joined` has joined."""
    # Without a backslash, there is no quote within a name.
    parts: Any = json.loads(what) if "\\" in what else what[2:-2].split('","')
    branch, kind, stage, action, status, fingerprint = parts
    return crc32(what.encode()), branch, kind, stage, action or None, status, fingerprint


_PACKED: Final = struct.Struct("<qqdd").pack
_quoted: Final = json.encoder.encode_basestring_ascii  # any text, lone surrogates too, in ASCII


def _untext(text: Any) -> Any:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _named(row: Row) -> str:
    return repr(f"{row.stage}/{row.action}" if row.action else row.stage)


def _state(head: Head) -> tuple[Any, ...]:
    state = head.status, head.reason, head.error, head.written, head.dropped, head.given, head.entry
    return *state, head.checksum


_STATE: Final = (
    "status = ?, reason = ?, error = ?, written = ?, dropped = ?, given = ?, entry = ?, checksum = ?, updated = ?"
)
_COUNTED: Final = "(SELECT count(*) FROM answers WHERE run = runs.id)"
_WAITS: Final = (
    "UPDATE runs SET due = ?, questions = ?, answers = ?, "
    f"ready = CASE WHEN {_COUNTED} > ? THEN 0 ELSE ? END WHERE id = ? AND owner = ?"
)
_DUE: Final = (  # each by its index
    "SELECT id FROM runs WHERE status = 'running' UNION ALL SELECT id FROM runs WHERE status = 'suspended' AND ready <= ?"
)
_IS_DUE: Final = (
    "SELECT 1 FROM runs WHERE id = ? AND (status = 'running' OR (status = 'suspended' AND ready <= ?)) "
    f"AND coalesce(substr(owner, -1), '') != '{CANCELLED}'"
)
_LEASE: Final = f"SELECT lease, {_OWNER} FROM runs WHERE id = ?"
# Of the latest generation (its branches have a number after `~`), each once: a resume may have performed it again.
_ENDED: Final = """
SELECT count(DISTINCT branch || ' ' || number), CAST(substr(branch, instr(branch || '~', '~') + 1) AS INTEGER) AS since
FROM (
    SELECT log.number, json_extract(names, '$[0]') AS branch, json_extract(names, '$[4]') AS status
    FROM (SELECT id, number, CASE json_valid(what) WHEN 1 THEN what ELSE '[]' END AS names FROM log) AS log
    JOIN runs ON log.id BETWEEN runs.id << 32 AND (runs.id << 32) + 4294967295
    WHERE run_id = ? AND json_extract(names, '$[1]') = 'action'
)
WHERE status NOT IN ('running', 'suspended', 'skipped') GROUP BY since ORDER BY since DESC LIMIT 1"""
_NOBODY: Final = "owner = NULL, host = NULL, pid = NULL, place = NULL, born = NULL, lease = NULL"
_NEXT_RUN: Final = f"SELECT coalesce(max(id), 0) + 1 FROM runs WHERE id < {_LAST_RUN}"


def _selectors(text: str) -> tuple[str, ...] | None:
    """Return the selectors of a run; None if these are not selectors."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(found, list) and all(isinstance(each, str) for each in cast("list[object]", found))
    return tuple(cast("list[str]", found)) if is_list else None


def _all(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the rows of a query; strings that are not valid Unicode as bytes."""
    connection.text_factory = _text_or_bytes
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.text_factory = str


def _text_or_bytes(text: bytes) -> str | bytes:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def _inputs_checksum(run: int, number: int, position: int, payload: bytes) -> int:
    return crc32(payload, crc32(f"{run} {number} {position}".encode()))


def _inputs_step(run: int, number: int) -> int:
    """Return the number by which large parts of inputs are referred to."""
    return -(run << 32) - number


class _Stored(Sequence[Any]):
    """The large parts of a payload in a journal, each loaded when it is used."""

    def __init__(self, journal: SqliteJournal, blobs: list[int]) -> None:
        self.journal = journal
        self.blobs = blobs

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, place: Any, /) -> Any:
        return self.journal.load(cast("int", self.blobs[place]))


def _after(
    connection: sqlite3.Connection, held: _Held, cuts: Mapping[str, int]
) -> tuple[list[tuple[int]], list[tuple[int]]]:
    """Return the ids of the steps of these branches from these numbers on, and of the first ones that then are left.

    The way back through a branch ends where it begins, or at an action or a group below its cut: that had the highest
    number so far, while a stage or a pipeline has a lower one than the steps inside it, which are written before it.
    """
    begins = (
        "SELECT id FROM log WHERE id >> 32 = ? AND substr(what, 1, instr(what, ',')) = ? AND begins ORDER BY id LIMIT 1"
    )
    found = [(connection.execute(begins, (held.head.id, f'["{branch}",')).fetchone(), branch) for branch in cuts]
    ahead = sorted((first[0], branch) for first, branch in found if first is not None)
    open, doomed, left = {branch for _, branch in ahead}, list[tuple[int]](), dict[str, int]()
    names = "substr(what, 3, instr(what, ',') - 4), substr(what, instr(what, ',') + 2, 1) IN ('a', 'g')"
    backwards = f"SELECT id, number, {names} FROM log WHERE id BETWEEN ? AND ? ORDER BY id DESC"
    since = ahead[0][0] if ahead else held.first + _LAST
    for id, number, branch, is_single in connection.execute(backwards, (since, held.first + _LAST)):
        while ahead and ahead[-1][0] > id:
            open.discard(ahead.pop()[1])
        if not open:
            break
        if branch not in open:
            continue
        if number >= cuts[branch]:
            doomed.append((id,))
        elif is_single:
            open.discard(branch)
            left.pop(branch, None)
        else:
            left[branch] = id
    return doomed, [(id,) for id in left.values()]


# Errors.


_TROUBLES: Final = {
    "SQLITE_FULL": "cannot grow, the disk is full: make room",
    "SQLITE_IOERR": "cannot be read or written: check the disk, and whether the file may grow",
    "SQLITE_READONLY": "is read-only: give this user write access to the file and its directory",
    "SQLITE_PERM": "cannot be accessed: give this user access to the file",
    "SQLITE_CANTOPEN": "cannot be opened: check that its directory exists and is writable",
    "SQLITE_BUSY": f"has been locked by another process for {PATIENCE:.0f} s: find the process that holds it",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup, or use another path",
    "SQLITE_NOTADB": "is not a journal, or is damaged: restore it from a backup, or use another path",
}


# Owners.


def _is_busy(owner: Owner, lease: float, me: Owner) -> bool:
    if owner[1:] == me[1:]:
        return is_held_here(owner.token)
    try:
        dead, now = is_dead(owner), time.time()
        return now < lease <= now + LONGEST if dead is None else not dead
    except (TypeError, ValueError, OverflowError):  # these columns were changed from outside; no checksum covers them
        return False
