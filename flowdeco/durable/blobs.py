"""Large values in an SQLite file: each content is there once, in chunks, and steps refer to it.

A blob is written in the transaction of the step that refers to it: whoever is killed in between leaves nothing. Its name is
the digest of its content, preceded by that of the hash, so that processes with and without xxhash can share a file. It is
hashed before, to find the blob that may be there already, and again while it is copied, because a thread may change a value
meanwhile: the name is that of the bytes that were written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast
from zlib import crc32

from flowdeco.durable.digests import hasher
from flowdeco.durable.file_errors import Damaged
from flowdeco.engine.journal import Payload

__all__ = ["BLOBS", "LARGE", "PartsOf", "StoredParts", "drop_blobs", "load_blob", "referred", "write_parts"]

LARGE: Final = 64 << 10  # bytes
CHUNK: Final = 1 << 20  # bytes: SQLite takes no more than 1 GB at once, and copies what it takes

# `refs` has the blobs of each step, by place; its `step` is the id of a row of `log`, of inputs as a negative number,
# or that of an outcome of `cached`, which is less than 1 << 32.
BLOBS: Final = """
CREATE TABLE IF NOT EXISTS blobs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS chunks (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS refs (
    step INTEGER NOT NULL, place INTEGER NOT NULL, blob INTEGER NOT NULL, PRIMARY KEY (step, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS referring ON refs (blob);
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, checksum INTEGER NOT NULL, payload BLOB NOT NULL
)"""

_CHUNKS: Final = 20  # bits of the number of a chunk within its blob


class StoredParts(Sequence[Any]):
    """The large parts of a payload in the file at a path, each loaded when it is used."""

    def __init__(self, blobs: list[int], path: str, load: Callable[[int], bytearray]) -> None:
        self.blobs = blobs
        self.path = path
        self._load = load

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, place: Any, /) -> Any:
        return self._load(cast("int", self.blobs[place]))


PartsOf: TypeAlias = Callable[[list[int]], StoredParts]


def write_parts(connection: sqlite3.Connection, step: int, payload: bytes, path: str) -> None:
    """Write the large parts of the payload of a step, each unless it is there, and note that the step refers to them."""
    if type(payload) is not Payload:
        return
    parts = payload.parts
    if isinstance(parts, StoredParts) and parts.path == path:  # of another run in this file
        blobs = parts.blobs
    else:
        blobs = [_placed(connection, part) for part in parts]
    rows = [(step, place, blob) for place, blob in enumerate(blobs)]
    connection.executemany("INSERT INTO refs VALUES (?, ?, ?)", rows)


def referred(connection: sqlite3.Connection, first: int, last: int) -> dict[int, list[int]]:
    """Return the blobs of the steps with these ids, by place."""
    found: dict[int, list[int]] = {}
    query = "SELECT step, blob FROM refs WHERE step BETWEEN ? AND ? ORDER BY step, place"
    for step, blob in connection.execute(query, (first, last)):
        found.setdefault(step, []).append(blob)
    return found


def _placed(connection: sqlite3.Connection, data: Any) -> int:
    """Return the id of the blob with this content, which is written if it is new."""
    view = memoryview(data).cast("B")
    algorithm, begin = hasher()
    found = _named(connection, f"{algorithm}:{begin(view).hexdigest()}")
    if found is not None:
        return found
    new: Any = connection.execute(
        "INSERT INTO blobs (name, size, checksum) VALUES ('', ?, 0)", (view.nbytes,)
    ).lastrowid
    _drop_chunks(connection, new)  # of a damaged file
    hashed, checksum = begin(), 0
    for number, start in enumerate(range(0, view.nbytes, CHUNK)):
        chunk = bytes(view[start : start + CHUNK])
        hashed.update(chunk)
        checksum = crc32(chunk, checksum)
        connection.execute("INSERT INTO chunks VALUES (?, ?)", ((new << _CHUNKS) + number, chunk))
    name = f"{algorithm}:{hashed.hexdigest()}"
    found = _named(connection, name)
    if found is not None:  # the value has changed meanwhile, to one that is known
        _drop(connection, new)
        return found
    connection.execute("UPDATE blobs SET name = ?, checksum = ? WHERE id = ?", (name, checksum, new))
    return int(new)


def _named(connection: sqlite3.Connection, name: str) -> int | None:
    found = connection.execute("SELECT id FROM blobs WHERE name = ?", (name,)).fetchone()
    return None if found is None else int(found[0])


def load_blob(connection: sqlite3.Connection, blob: int) -> bytearray:
    """Return the content of a blob; raises `Damaged` if it is not what was written."""
    size, checksum = connection.execute("SELECT size, checksum FROM blobs WHERE id = ?", (blob,)).fetchone() or (-1, 0)
    data, at, actual = bytearray(max(0, size)), 0, 0
    chunks = connection.execute("SELECT data FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id", _chunk_ids(blob))
    for (chunk,) in chunks:
        data[at : at + len(chunk)] = chunk
        at += len(chunk)
        actual = crc32(chunk, actual)
    if (at, len(data), actual) != (size, size, checksum):
        raise Damaged("a large value is missing, or does not agree with its checksum")
    return data


def _chunk_ids(blob: int) -> tuple[int, int]:
    """Return the ids of the first and the last chunk that a blob may have."""
    return blob << _CHUNKS, ((blob + 1) << _CHUNKS) - 1


def drop_blobs(connection: sqlite3.Connection) -> None:
    """Delete all blobs that nothing refers to."""
    query = "SELECT id FROM blobs WHERE NOT EXISTS (SELECT 1 FROM refs WHERE blob = blobs.id)"
    for (blob,) in connection.execute(query).fetchall():
        _drop(connection, blob)


def _drop(connection: sqlite3.Connection, blob: int) -> None:
    _drop_chunks(connection, blob)
    connection.execute("DELETE FROM blobs WHERE id = ?", (blob,))


def _drop_chunks(connection: sqlite3.Connection, blob: int) -> None:
    connection.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", _chunk_ids(blob))
