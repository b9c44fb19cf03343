"""The journal in an SQLite file: one row per step, committed before the next one starts.

The tables are in `schema`. `runs` has a row per run (`head`) with its owner (`lease`), `inputs` and `answers` what a run was
started and resumed with (`inputs`), `log` its steps, in the order of their writing (`rows`). The views `steps` and `history`
show them to people.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal, NoReturn, Self

from flowdeco.durable import head as heads
from flowdeco.durable.blobs import StoredParts, drop_blobs, load_blob
from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.file import JournalFile, inode, transaction
from flowdeco.durable.file_errors import Damaged, sqlite_message
from flowdeco.durable.head import Head
from flowdeco.durable.held import HeldRun
from flowdeco.durable.info import RunInfo, finished_error, nothing_to_cancel
from flowdeco.durable.inputs import insert_answers, insert_inputs
from flowdeco.durable.lease import CANCELLED, is_busy, owner_of, require_idle, take
from flowdeco.durable.listing import ended_actions, is_due, list_runs, note_waits
from flowdeco.durable.owner import this_process
from flowdeco.durable.remembered import read_run
from flowdeco.durable.rows import take_back, write_rows
from flowdeco.durable.schema import FORMAT
from flowdeco.engine.journal import FINISHED, Codec, Remembered, Row
from flowdeco.errors import (
    JournalError,
    RunBusyError,
    RunExistsError,
    RunNotFoundError,
    SerializationError,
    Wait,
    shortened,
    suggestion,
)
from flowdeco.model.options import Duration, checked_path, in_seconds, is_one_of

__all__ = ["SqliteJournal"]


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
            raise JournalError(
                f"a journal is a file, and {shortened(given)} is not one: MemoryJournal() keeps runs in memory"
            )
        if os.path.isdir(given):
            raise JournalError(f"{given!r} is a folder: give the path of a file, such as 'runs.db'")
        if not is_one_of(synchronous, "NORMAL", "FULL"):
            raise JournalError(f"synchronous is 'NORMAL' or 'FULL', not {shortened(synchronous)}")
        seconds = in_seconds(lease)
        if seconds is None or seconds <= 0:
            raise JournalError(f"lease is a positive number of seconds, or a timedelta, not {shortened(lease)}")
        if not (entry is None or isinstance(entry, str)):
            raise JournalError(f"entry is the entry point of a pipeline, such as 'module:flow', not {shortened(entry)}")
        self.path: str = os.path.abspath(given)
        self.codec: Codec = named_codec(codec)
        self.synchronous = synchronous
        self.lease = float(seconds)
        self.entry = None if entry is None else _plain(entry)
        self._held: dict[str, HeldRun] = {}
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

    def create(self, run_id: str, pipeline: str, inputs: bytes, skip: Sequence[str], *entry: str) -> float:
        """Begin a run, and return when.

        Raises `RunExistsError` if one with that id exists, `RunBusyError` if it is at work.
        """
        if not isinstance(run_id, str):
            raise JournalError(f"a run_id must be a string, not {run_id!r}")
        now, owner = time.time(), this_process(secrets.token_hex(8))
        with self._opened(f"run {run_id!r} cannot begin", make=True) as (file, connection):
            held: HeldRun | None = None
            try:
                with transaction(connection):
                    there = heads.find(connection, run_id)
                    if there is not None:
                        require_idle(connection, heads.checked(there), owner, self.lease)
                        raise self._exists(heads.checked(there))
                    where = self.entry or (_plain(*entry) if entry else None)
                    head = Head(
                        *(heads.next_id(connection), run_id, _plain(pipeline), where, "running", None, None),
                        *(now, json.dumps(list(skip)), self.codec.name, 0, 0, 1, FORMAT),
                    )
                    heads.insert(connection, head, owner, now + self.lease)
                    insert_inputs(connection, head, 0, inputs, file.path)
                    held = HeldRun(file, head, owner.token, self.lease)
                    file.keep(held)
                self._held[run_id] = held
            except BaseException:
                if held is not None:
                    file.leave(held)
                raise
        return now

    def open(self, run_id: str, *, finished: bool = False) -> Remembered:
        """Take the lease of a run that has not finished, and return it; raises `RunNotFoundError`, `RunBusyError`.

        Nothing else changes: it is running from the first `proceed`, `write`, `drop` or `add_inputs` on. A finished run
        is only read, unless `finished` asks for it.
        """
        with self._opened(f"run {run_id!r} cannot be resumed") as (file, connection):
            with transaction(connection, "DEFERRED"):  # readers of a finished run wait for nobody
                head = self._readable(connection, run_id)
                if head.status in FINISHED and not finished:
                    return read_run(connection, head, self._parts)[0]
            held, owner = None, this_process(secrets.token_hex(8))
            try:
                with transaction(connection):
                    head = self._readable(connection, run_id)
                    if head.status in FINISHED and not finished:
                        return read_run(connection, head, self._parts)[0]
                    require_idle(connection, head, owner, self.lease)
                    if self._only_due and not is_due(connection, head):
                        raise RunBusyError(f"run {run_id!r} is no longer due: another process was faster")
                    running = head.with_status("running")._replace(entry=self.entry or head.entry)
                    held = HeldRun(file, running, owner.token, self.lease, head)
                    file.keep(held)
                    take(connection, head.id, owner, self.lease)
                remembered, written = read_run(connection, head, self._parts)
                held.continues(remembered, written)
                self._held[run_id] = held
            except BaseException:
                if held is not None:
                    held.abandon(connection)
                raise
        return remembered

    def release(self, run_id: str) -> None:
        """Give the lease of an opened run back, and leave the run as it was; does nothing if it is not held."""
        held = self._held.pop(run_id, None)
        if held is not None:
            with held.file.lock:
                try:
                    held.abandon(held.file.connect())
                except sqlite3.Error as error:
                    raise JournalError(
                        f"run {run_id!r} cannot be released: {sqlite_message(error, self.path)}"
                    ) from error
                finally:
                    self._let_go(held.file)

    def on_cancel(self, run_id: str, call: Callable[[], bool]) -> None:
        """Have this called, from any thread, when the run is cancelled while it is at work; again until it returns True."""
        held = self._held.get(run_id) or self._unheld(run_id)
        held.on_cancel = call
        held.tell()

    def cancel(self, run_id: str) -> None:
        """Cancel a run: at once if no process works on it; raises `JournalError` if it has finished."""
        with self._asked(f"run {run_id!r} cannot be cancelled", "IMMEDIATE") as connection:
            head = heads.checked(self._found(connection, run_id))
            if head.status in FINISHED:
                raise nothing_to_cancel(run_id, head.status)
            owner, until = owner_of(connection, head.id)
            token = owner and owner.token
            if token is not None and is_busy(owner, until, this_process("")):
                called_off = token.removesuffix(CANCELLED) + CANCELLED
                connection.execute("UPDATE runs SET owner = ? WHERE id = ?", (called_off, head.id))
            elif head.status != "cancelled":
                heads.update(connection, head.with_status("cancelled"), token, release=True)

    def proceed(self, run_id: str, inputs: bytes | None = None) -> None:
        """Note that an opened run is running again, with these new inputs."""
        what = "its new inputs" if inputs is not None else "that it is running"
        with self._at_work(run_id, what) as (connection, held):
            if inputs is not None:
                held.head = held.head._replace(given=held.head.given + 1)
                insert_inputs(connection, held.head, held.next, inputs, held.file.path)
                held.note(connection)

    def add_inputs(self, run_id: str, inputs: bytes) -> None:
        """Remember the inputs of a resume."""
        self.proceed(run_id, inputs)

    def answer(self, run_id: str, answers: bytes) -> None:
        """Remember answers, as further inputs, whoever is at work on the run; raises `JournalError` if it has finished."""
        with self._asked(f"run {run_id!r} cannot be answered", "IMMEDIATE") as connection:
            head = self._readable(connection, run_id)
            if head.status in FINISHED:
                raise finished_error(run_id, head.status)
            insert_answers(connection, head, answers)

    def read(self, run_id: str) -> Remembered:
        """Return a run without opening it."""
        with self._asked(f"run {run_id!r} cannot be read") as connection:
            return read_run(connection, self._readable(connection, run_id), self._parts)[0]

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps, all or none of them, durably."""
        if not rows:
            return
        held = self._held.get(run_id) or self._unheld(run_id)
        with held.file.lock:
            try:
                write_rows(held.file.connection or held.file.connect(), held, rows)
            except BaseException as error:
                self._fail(error, held, _named(rows[0]))

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""
        with self._at_work(run_id, "what a retry dropped") as (connection, held):
            take_back(connection, held, cuts)

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
                connection = file.connect()
                with transaction(connection):
                    held.on_cancel = None  # it comes too late
                    held.is_cancelled(connection)
                    held.settle(connection)
                    if status == "suspended" and held.owner != held.token:
                        status, reason = "cancelled", None
                    if elapsed is not None:
                        timed = (elapsed, held.next, held.id, held.owner)
                        connection.execute("UPDATE runs SET took = ?, timed = ? WHERE id = ? AND owner = ?", timed)
                    if status == "suspended":
                        note_waits(connection, held.id, held.owner, waits, held.answers)
                    outcome = str(status), reason and _plain(reason), error and _plain(error)
                    if not heads.update(connection, held.counted().with_status(*outcome), held.owner, release=True):
                        raise held.lost(connection)
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
        with self._asked("the runs cannot be listed") as connection:
            return list_runs(connection, due, run_id)

    def history(self, run_id: str) -> list[Row]:
        """Return the steps of a run, whatever the codec that they are written in."""
        with self._asked(f"run {run_id!r} cannot be read") as connection:
            return read_run(connection, heads.checked(self._found(connection, run_id)), self._parts)[0].rows

    def ended_actions(self, run_id: str) -> int:
        """Return the number of actions of a run that have ended, as far as its rows can be read."""
        with self._asked("the steps cannot be counted") as connection:
            return ended_actions(connection, run_id)

    def delete(self, run_id: str) -> None:
        """Forget a run; raises `RunNotFoundError`, and `RunBusyError` while a process works on it."""
        with self._asked(f"run {run_id!r} cannot be deleted", "IMMEDIATE") as connection:
            head = Head._make(self._found(connection, run_id)[:-1])  # a damaged run is deleted, too
            require_idle(connection, head, this_process(""), self.lease)
            heads.delete(connection, head)

    def drop_unused(self) -> None:
        """Delete the large values that no run refers to any more."""
        with self._asked("unused values cannot be deleted", "IMMEDIATE") as connection:
            drop_blobs(connection)

    # Large values.

    def _parts(self, blobs: list[int]) -> StoredParts:
        return StoredParts(blobs, os.path.realpath(self.path), self._load)

    def _load(self, blob: int) -> bytearray:
        with self._asked("a large value cannot be read") as connection:
            return load_blob(connection, blob)

    # A run that is there.

    def _found(self, connection: sqlite3.Connection, run_id: str) -> tuple[Any, ...]:
        """Return the columns of a run and their checksum, as they are."""
        found = heads.find(connection, run_id)
        if found is None:
            recent = connection.execute("SELECT CAST(run_id AS BLOB) FROM runs ORDER BY id DESC LIMIT 100")
            known = [name.decode("utf-8", "replace") for (name,) in recent]
            raise RunNotFoundError(f"{self.path} has no run {run_id!r}. {suggestion(run_id, known)}")
        return found

    def _readable(self, connection: sqlite3.Connection, run_id: str) -> Head:
        """Return the head of a run whose rows this version and this codec can read."""
        head = heads.checked(self._found(connection, run_id))
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
        return head

    def _exists(self, there: Head) -> RunExistsError:
        advice = "resume it" if there.format >= FORMAT else "delete it"
        return RunExistsError(
            f"{self.path} has a run {there.run_id!r} already, {there.status}: {advice}, or use another run_id. "
            f'run(..., if_exists="resume") starts, continues or returns it'
        )

    # The connection, and its errors.

    @contextmanager
    def _opened(
        self, failure: str, *, make: bool = False
    ) -> Generator[tuple[JournalFile, sqlite3.Connection], None, None]:
        """Give the file and its connection; raises a `JournalError` that begins with `failure` if it fails."""
        file = self._shared()
        with file.lock:
            try:
                yield file, file.open_for(self, make=make)
            except Damaged as error:
                raise JournalError(
                    f"the journal {self.path} is damaged: {error}. Restore it from a backup, or delete the run with "
                    f"flowdeco.durable.delete and start again"
                ) from error
            except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
                raise JournalError(f"{failure}: {sqlite_message(error, self.path)}") from error
            finally:
                self._let_go(file)

    @contextmanager
    def _asked(self, failure: str, kind: str = "DEFERRED") -> Generator[sqlite3.Connection, None, None]:
        """Give the connection, in a transaction."""
        with self._opened(failure) as (_, connection), transaction(connection, kind):
            yield connection

    def _shared(self) -> JournalFile:
        file = self._file
        if file is None or (not self._held and file.inode != inode(self.path)):  # a link may lead to another file now
            file = self._file = JournalFile.at(self.path, self.synchronous)
        return file

    def _let_go(self, file: JournalFile) -> None:
        if self._is_brief and not self._held:
            self._file = None
            file.let_go(self)

    @contextmanager
    def _at_work(self, run_id: str, what: str) -> Generator[tuple[sqlite3.Connection, HeldRun], None, None]:
        """Give the connection, in a transaction, and the run, which is ours and running; `what` is not saved if it fails."""
        held = self._held.get(run_id) or self._unheld(run_id)
        with held.file.lock:
            try:
                connection = held.file.connect()
                with transaction(connection):
                    held.require_ours(connection)
                    held.settle(connection)
                    yield connection, held
            except BaseException as error:
                self._fail(error, held, what)

    def _unheld(self, run_id: str) -> NoReturn:
        raise JournalError(f"run {run_id!r} is not open in {self!r}: `create` or `open` it first")

    def _fail(self, error: BaseException, held: HeldRun, what: str) -> NoReturn:
        """Raise the error of a write, after which the run must be looked at before the next one."""
        held.doubtful = True
        if isinstance(error, (sqlite3.Error, JournalError, OverflowError)):
            held.broken = True
            raise self._unsaved(error, held, what) from error
        raise error

    def _unsaved(self, error: Exception, held: HeldRun, what: str) -> JournalError:
        """Return the error of a write, with the number of saved steps, and the step that is not saved."""
        run_id, count = held.head.run_id, held.saved
        upto = f", up to {_named(held.last)}" if held.last is not None and count else ""
        saved = f"{count} step{'s' * (count != 1)} of run {run_id!r} {'are' if count != 1 else 'is'} saved{upto}"
        if isinstance(error, JournalError):
            return type(error)(f"{error}. {saved}; {what} is not")
        told = sqlite_message(error, self.path)
        kind = SerializationError if isinstance(error, (sqlite3.DataError, OverflowError)) else JournalError
        return kind(f"{told}. {saved}; {what} is not. Then resume it: resume({run_id!r}, journal={self.path!r})")


def named_codec(codec: str | Codec) -> Codec:
    """Return the codec of that name, or the codec itself."""
    if is_one_of(codec, "pickle"):
        return PickleCodec()
    if is_one_of(codec, "json"):
        from flowdeco.durable.json_codec import JsonCodec

        return JsonCodec()
    if isinstance(codec, (str, type)) or not all(hasattr(codec, each) for each in ("name", "encode", "decode")):
        raise JournalError(f"codec is 'pickle', 'json' or a Codec, not {shortened(codec)}")
    return codec


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _named(row: Row) -> str:
    return repr(f"{row.stage}/{row.action}" if row.action else row.stage)
