"""The outcomes of actions that `flowdeco.middleware.cached` remembers: a file of the kind of a journal, in a folder.

An outcome is found by its key: the digest of the action's code and of everything that its call depends on. Values are
stored as in a journal, large ones once per content. The file is open only while it is used.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import types
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from flowdeco.durable.blobs import drop_blobs, load_blob, place_blob, refer, referred
from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.digests import lasting_digest
from flowdeco.durable.file import journal_file, transaction
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.engine.journal import Payload
from flowdeco.errors import JournalError

__all__ = ["Outcomes"]


class Outcomes:
    """The outcomes in a folder, which is made when one is added."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._file = journal_file(os.path.join(folder, "outcomes.db"), "NORMAL")
        self._codec = PickleCodec()

    def key(self, function: Any, arguments: Mapping[str, Any]) -> str | None:
        """Return the key of a call; None if the content of something that it depends on cannot be seen."""
        return lasting_digest([fingerprint(function), _enclosed(function), sorted(arguments.items())])

    def opaque(self, arguments: Mapping[str, Any]) -> str:
        """Return which of the things that a call depends on has no content that can be seen."""
        names = [name for name, value in arguments.items() if lasting_digest(value) is None]
        return f"the argument {names[0]!r}" if names else "a value that its function encloses"

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
            if type(payload) is Payload:
                refer(connection, id, [place_blob(connection, part) for part in payload.parts])

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection, None, None]:
        file = self._file
        with file.lock:
            try:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                if file.connection is not None and file.has_moved():
                    file.disconnect()
                file.users.add(self)
                yield file.connection or file.connect(make=True)
            except (sqlite3.Error, OSError) as error:
                raise JournalError(f"{file.path}: {error}") from error
            finally:
                file.let_go(self)


def _checksum(key: str, payload: bytes) -> int:
    return crc32(payload, crc32(key.encode()))


def _enclosed(function: Any) -> list[Any]:
    """Return what a call depends on besides the code and the arguments: cells of closures, bound arguments, an object."""
    if isinstance(function, functools.partial):
        return [function.args, function.keywords, *_enclosed(function.func)]
    if isinstance(function, types.MethodType):
        return [function.__self__, *_enclosed(function.__func__)]
    if isinstance(function, types.FunctionType):
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
        wrapped = function.__dict__.get("__wrapped__")
        return [cells, *(() if wrapped is None else _enclosed(wrapped))]
    if isinstance(function, (types.BuiltinFunctionType, type)):
        owner = getattr(function, "__self__", None)
        return [] if owner is None or isinstance(owner, types.ModuleType) else [owner]
    return [function]
