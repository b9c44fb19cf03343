"""A journal file as this process has it open: one connection, one lock and one heartbeat for all journals of a path.

The file is open as long as a journal uses it, and its heartbeat, which renews the leases, runs as long as a run is at work
in it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Final, Self
from urllib.parse import quote

from flowdeco.durable.file_errors import PATIENCE
from flowdeco.durable.forks import CLOSING, GUARD, prepare_for_forks
from flowdeco.durable.lease import HELD, Lease
from flowdeco.durable.schema import APPLICATION, MIGRATIONS, VERSION
from flowdeco.errors import JournalError, RunNotFoundError

__all__ = ["HEARTBEAT", "JournalFile", "inode", "transaction"]

HEARTBEAT: Final = 1.0  # seconds until an owner that writes nothing notices that its run has been cancelled
WAL: Final = 4000  # pages that the log grows to, 16 MB: moving them into the file waits for the disk, so not too often


_files: Final[weakref.WeakValueDictionary[tuple[Any, ...], Any]] = weakref.WeakValueDictionary()


class JournalFile:
    """The connection to a journal file, its lock, and the leases of the runs that this process works on in it.

    The lock is held during every use of `connection`, of `users` (the journals that have it open), and of the methods,
    except for those of forks.
    """

    @classmethod
    def at(cls, path: str, synchronous: str) -> Self:
        """Return the file at this path, which all of its users in this process share."""
        key = cls, os.path.realpath(path), synchronous
        with GUARD:
            found: Self | None = _files.get(key)
            if found is None:
                found = _files[key] = cls(*key[1:])
                prepare_for_forks(found)
            return found

    def __init__(self, path: str, synchronous: str) -> None:
        self.path = path
        self.synchronous = synchronous
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.inode: tuple[int, int] | None = None
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closing: weakref.finalize[..., Any] | None = None
        self._leases: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()
        self._heart: tuple[threading.Thread, threading.Event, float] | None = None
        self._renewal = inf  # when the leases are to be renewed, by the monotonic clock
        self._forks = False

    def open_for(self, user: Any, *, make: bool = False) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now; it stays open until all its users let go."""
        if self.connection is not None and self.has_moved():
            self.disconnect()
        self.users.add(user)
        return self.connect(make=make)

    def connect(self, *, make: bool = False) -> sqlite3.Connection:
        """Return the connection; opens the file, and makes it if it is missing and `make` says so.

        Raises `RunNotFoundError`, `JournalError`.
        """
        if self.connection is not None:
            return self.connection
        if make:
            self._make()
        elif not os.path.exists(self.path):
            raise RunNotFoundError(f"there is no journal {self.path}")
        uri = f"file:{quote(self.path)}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            _make_private(self.path)
            self._prepare(connection)
        except BaseException:
            _close(connection)
            raise
        self.inode = inode(self.path)
        self._closing = weakref.finalize(self, _close, connection)
        self.connection = connection
        return connection

    def disconnect(self) -> None:
        """Close the connection; the next use opens another one."""
        if self._closing is not None:
            self._closing()
        self.connection = self._closing = None

    def let_go(self, user: Any) -> None:
        """Close the connection, unless another journal uses it."""
        self.users.discard(user)
        if not self.users:
            self.disconnect()

    def has_moved(self) -> bool:
        """Whether the file was deleted, or another one is in its place."""
        return inode(self.path) != self.inode

    # Leases: renewed as long as a run is at work.

    def keep(self, lease: Lease) -> None:
        """Renew a lease from now on. Called before the transaction ends that writes it."""
        HELD[lease.token] = self._leases[lease.token] = lease
        self._renewal = min(self._renewal, _renewal(lease))
        if self._heart is not None and _interval(lease) < self._heart[2]:
            self._stop_heart()
        self._start_heart()

    def leave(self, lease: Lease) -> None:
        """Renew a lease no more."""
        self._leases.pop(lease.token, None)
        HELD.pop(lease.token, None)
        if not self._leases:
            self._stop_heart()

    def _start_heart(self) -> None:
        if self._heart is None and not self._forks:
            # No finalizer stops it: as the process ends, the thread may be frozen while it holds the lock of `stop`.
            stop = threading.Event()
            interval = min(map(_interval, self._leases.values()))
            beating = (weakref.ref(self), stop, interval)
            thread = threading.Thread(target=self._beat, args=beating, name="flowdeco lease", daemon=True)
            thread.start()
            self._heart = thread, stop, interval

    def _stop_heart(self) -> threading.Thread | None:
        if self._heart is None:
            return None
        thread, stop, _ = self._heart
        stop.set()
        self._heart = None
        return thread

    @staticmethod
    def _beat(file: weakref.ref[JournalFile], stop: threading.Event, interval: float) -> None:
        while not stop.wait(interval):
            alive = file()
            if alive is None or not alive.beat():
                return
            del alive

    def beat(self) -> bool:
        """Look for runs that have been cancelled, and renew all leases in time; return whether there are any."""
        with self.lock:
            leases = list(self._leases.values())
            if not leases:
                self._heart = None
                return False
            with suppress(sqlite3.Error, JournalError):  # the next write reports the error
                connection = self.connect()
                for each in leases:
                    each.is_cancelled(connection)
                    each.tell()
                if time.monotonic() >= self._renewal:
                    self._renew(connection, leases)
            return True

    def _renew(self, connection: sqlite3.Connection, leases: list[Lease]) -> None:
        now = time.time()
        renewed = [(now + each.seconds, now if each.noted else None, each.id, each.owner) for each in leases]
        with transaction(connection):
            connection.executemany(
                "UPDATE runs SET lease = ?, updated = coalesce(?, updated) WHERE id = ? AND owner = ?", renewed
            )
        self._renewal = min(map(_renewal, leases))

    # Forks.

    def before_fork(self) -> None:
        """Stop the heartbeat, close the connection, and hold the lock until the process has forked."""
        with self.lock:  # a heartbeat is started under it
            self._forks = True
            thread = self._stop_heart()
        try:
            if thread is not None:
                thread.join()
        finally:
            self.lock.acquire()
        with suppress(sqlite3.Error):
            self.disconnect()

    def after_fork(self, *, in_child: bool) -> None:
        """Continue; the runs stay with the parent."""
        self._forks = False
        if in_child:
            for lease in list(self._leases.values()):
                HELD.pop(lease.token, None)
                lease.token = lease.owner = ""
            self._leases.clear()
        if self._leases:
            self._start_heart()
        self.lock.release()

    # The file.

    def _make(self) -> None:
        try:  # nothing but SQLite itself may open, and close, the file where it exists: that would undo its locks
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            folder = os.path.dirname(self.path)
            raise JournalError(f"the journal {self.path} cannot be created: there is no folder {folder}") from error
        except OSError as error:
            raise JournalError(f"the journal {self.path} cannot be made: {error.strerror or error}") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with transaction(connection, "DEFERRED"):  # one state: another process may be making the tables right now
            version = self._version(connection)
        _use_wal(connection, self.path)
        if version != VERSION:
            with transaction(connection):
                while (version := self._version(connection)) < VERSION:
                    MIGRATIONS[version](connection)
        connection.execute(f"PRAGMA synchronous = {self.synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the version of the schema, 0 for an empty file."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            return 0
        if application != APPLICATION or version < 1:
            raise JournalError(f"{self.path} is a database, but not a journal of flowdeco: give another path")
        if version > VERSION:
            raise JournalError(
                f"{self.path} was written by a newer flowdeco (its schema has version {version}, this one knows "
                f"{VERSION}): upgrade with pip install -U flowdeco"
            )
        return int(version)


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Generator[None, None, None]:
    """Commit the statements of the block together, or none of them if it raises."""
    try:
        connection.execute(f"BEGIN {kind}")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _interval(lease: Lease) -> float:
    return min(lease.seconds / 3, HEARTBEAT)


def _renewal(lease: Lease) -> float:
    return time.monotonic() + lease.seconds / 3 - HEARTBEAT / 2


def inode(path: str) -> tuple[int, int] | None:
    """Return the identity of the file at a path, None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(connection: sqlite3.Connection) -> None:
    with CLOSING:  # not while the process forks
        connection.close()


def _make_private(path: str) -> None:
    """Make a file private that is open to everybody: it was put back from a backup, by a program that does not know better.

    A group that may read it was given that right by its owner.
    """
    if os.name != "posix":
        return
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with suppress(OSError):
            found = os.stat(name)
            if found.st_mode & stat.S_IRWXO and found.st_uid == os.geteuid():
                os.chmod(name, stat.S_IMODE(found.st_mode) & 0o600)


def _use_wal(connection: sqlite3.Connection, path: str) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:  # two that do this at once do not wait for each other
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise JournalError(f"the file system of {path} has no shared memory for SQLite: use a local disk")
            return
