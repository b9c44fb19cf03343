"""The outcomes of actions that `flowdeco.middleware.cached` remembers: a file of the kind of a journal, in a folder.

An outcome is found by its key: the digest of the action's code and of everything that its call depends on (`Inputs`).
Values are stored as in a journal, large ones once per content. The file is open only while it is used.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from flowdeco.durable.blobs import drop_blobs, load_blob, referred, write_parts
from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.digests import lasting_digest
from flowdeco.durable.enclosed import Enclosed, FirstContents
from flowdeco.durable.file import JournalFile, transaction
from flowdeco.engine.journal import Payload
from flowdeco.errors import JournalError

__all__ = ["CachedOutcomes", "Inputs"]


class Inputs:
    """What a call depends on, as it was before it: the code, the values that it encloses, the arguments."""

    def __init__(self, function: Any, arguments: Mapping[str, Any], firsts: FirstContents) -> None:
        self.enclosed = Enclosed(function, firsts)
        self._arguments = arguments
        self._digest = self._read()

    def key(self) -> str | None:
        """Return the key of the call; None if the content of something that it depends on cannot be seen."""
        enclosed = self.enclosed.counted()
        return None if None in (enclosed, self._digest) else lasting_digest([enclosed, self._digest])

    def doubt(self) -> str:
        """Return why there is no key: which of the things that the call depends on has no content that can be seen."""
        names = [name for name, value in self._arguments.items() if lasting_digest(value) is None]
        what = f"the argument {names[0]!r}" if names else "a value that its function encloses"
        return f"{what} has no content that can be compared"

    def have_changed(self) -> bool:
        """Whether the arguments have other content now."""
        return self._read() != self._digest

    def _read(self) -> str | None:
        return lasting_digest(sorted(self._arguments.items()))


class _OutcomeFile(JournalFile):
    """The file of a folder, with the first contents of what the functions enclose whose outcomes are there."""

    def __init__(self, path: str, synchronous: str) -> None:
        super().__init__(path, synchronous)
        self.firsts = FirstContents(self.lock)


class CachedOutcomes:
    """The outcomes in a folder, which is made when one is added."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._file = _OutcomeFile.at(os.path.join(folder, "outcomes.db"), "NORMAL")
        self._codec = PickleCodec()

    def inputs(self, function: Any, arguments: Mapping[str, Any]) -> Inputs:
        """Return what a call depends on."""
        return Inputs(function, arguments, self._file.firsts)

    def get(self, key: str) -> Any:
        """Return the outcome as a tuple of one, or of none if there is none; raises `JournalError` if it is damaged."""
        if not os.path.exists(self._file.path):
            return ()
        with self._open() as connection, transaction(connection, "DEFERRED"):
            query = "SELECT id, checksum, payload FROM outcomes WHERE key = ?"
            row = connection.execute(query, (key,)).fetchone()
            if row is None:
                return ()
            id, checksum, content = row
            if type(content) is not bytes or _checksum(key, content) != checksum:
                raise JournalError("an outcome does not agree with its checksum")
            blobs = referred(connection, id, id).get(id, [])
            payload = Payload(content, tuple(load_blob(connection, blob) for blob in blobs)) if blobs else content
        return (self._codec.decode(payload),)

    def put(self, key: str, outcome: Any) -> None:
        """Add an outcome, in place of an earlier one; raises `JournalError`, and `SerializationError` for its value."""
        payload = self._codec.encode_apart(outcome, "outcome")
        if type(payload) is bytes:
            self._codec.decode(payload)  # an outcome that cannot be read back is not kept
        with self._open() as connection, transaction(connection):
            gone = connection.execute("SELECT id FROM outcomes WHERE key = ?", (key,)).fetchall()
            connection.executemany("DELETE FROM refs WHERE step = ?", gone)
            connection.executemany("DELETE FROM outcomes WHERE id = ?", gone)
            if gone:
                drop_blobs(connection)  # which may be damaged
            row = key, _checksum(key, payload), payload
            id: Any = connection.execute(
                "INSERT INTO outcomes (key, checksum, payload) VALUES (?, ?, ?)", row
            ).lastrowid
            write_parts(connection, id, payload, self._file.path)

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection, None, None]:
        file = self._file
        with file.lock:
            try:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                yield file.open_for(self, make=True)
            except (sqlite3.Error, OSError) as error:
                raise JournalError(f"{file.path}: {error}") from error
            finally:
                file.let_go(self)


def _checksum(key: str, payload: bytes) -> int:
    return crc32(payload, crc32(key.encode()))
