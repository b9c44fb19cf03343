"""The head of a run: its row in the table `runs`, without the lease and the times of its legs.

A checksum covers it. The id of a row of a run is the number of the run in the upper half and the position of the row, in
the order of writing, in the lower one: the rows of a run are stored together, and appending one touches one B-tree.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast
from zlib import crc32

from flowdeco.durable.blobs import drop_blobs
from flowdeco.durable.file_errors import Damaged
from flowdeco.durable.info import STATUSES
from flowdeco.durable.owner import NOBODY, OWNER, Owner

__all__ = ["COLUMNS", "Head", "checked", "delete", "find", "insert", "next_id", "update"]

_LAST_RUN: Final = 0x7FFFFFFF
_LAST_ROW: Final = 0xFFFFFFFF


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
    def ids(self) -> tuple[int, int]:
        """The ids of the first row that the run may have, and of the last."""
        return self.id << 32, (self.id << 32) + _LAST_ROW

    @property
    def checksum(self) -> int:
        """The checksum of all columns; rows of format 2 were written before there were formats."""
        return crc32(json.dumps(self[:-1] if self.format == 2 else self).encode())

    @property
    def selectors(self) -> tuple[str, ...] | None:
        """The selectors that the run skips; None if `skip` is not a list of strings."""
        try:
            found: Any = json.loads(self.skip)
        except (ValueError, RecursionError):
            return None
        is_list = isinstance(found, list) and all(isinstance(each, str) for each in cast("list[object]", found))
        return tuple(cast("list[str]", found)) if is_list else None

    def with_status(self, status: str, reason: str | None = None, error: str | None = None) -> Head:
        """Return the head with another status, reason and error."""
        return self._replace(status=status, reason=reason, error=error)

    def agrees(self, checksum: object) -> bool:
        """Whether the columns are unchanged since they were written, and such as we write."""
        return (
            bytes not in map(type, self)
            and self.checksum == checksum
            and all(map(isinstance, self, _TYPES))
            and 0 < self.id <= _LAST_RUN
            and self.status in STATUSES
            and math.isfinite(self.started)
            and self.selectors is not None
        )


_TEXT: Final = (str, type(None))
_TYPES: Final[Iterable[Any]] = (int, str, str, _TEXT, str, _TEXT, _TEXT, float, str, str, int, int, int, int)
COLUMNS: Final = ", ".join(Head._fields)
_STATE: Final = ("status", "reason", "error", "written", "dropped", "given", "entry", "checksum")
_UPDATE: Final = f"UPDATE runs SET {' = ?, '.join(_STATE)} = ?, updated = ?"


def find(connection: sqlite3.Connection, run_id: str) -> tuple[Any, ...] | None:
    """Return the columns of a run and their checksum, as they are; None if there is no such run."""
    query = f"SELECT {COLUMNS}, checksum FROM runs WHERE run_id = ?"
    found: tuple[Any, ...] | None = connection.execute(query, (run_id,)).fetchone()
    return found


def checked(found: tuple[Any, ...]) -> Head:
    """Return the head in these columns, if it agrees with its checksum."""
    head = Head._make(found[:-1])
    if not head.agrees(found[-1]):
        raise Damaged(f"its row of run {head.run_id!r} does not agree with its checksum")
    return head


def next_id(connection: sqlite3.Connection) -> int:
    """Return the number of the next run."""
    query = "SELECT coalesce(max(id), 0) + 1 FROM runs WHERE id < ?"
    return int(connection.execute(query, (_LAST_RUN,)).fetchone()[0])


def insert(connection: sqlite3.Connection, head: Head, owner: Owner, lease: float) -> None:
    """Add a run, with its owner and the end of the lease."""
    row = *head, head.checksum, head.started, *owner, lease
    columns = f"{COLUMNS}, checksum, updated, {OWNER}, lease"
    connection.execute(f"INSERT INTO runs ({columns}) VALUES ({', '.join('?' * len(row))})", row)


def update(connection: sqlite3.Connection, head: Head, token: str | None, *, release: bool = False) -> bool:
    """Write the state of a run, and release its lease if wanted; return whether it still has that owner."""
    statement = f"{_UPDATE}{f', {NOBODY}' * release} WHERE id = ? AND owner IS ?"
    state = *(getattr(head, column) for column in _STATE), time.time(), head.id, token
    return bool(connection.execute(statement, state).rowcount)


def delete(connection: sqlite3.Connection, head: Head) -> None:
    """Delete a run, which may be damaged, and everything in the file that belongs to it alone."""
    if head.id <= _LAST_RUN:
        first, last = head.ids
        connection.execute("DELETE FROM log WHERE id BETWEEN ? AND ?", (first, last))
        steps = first, last, -last, -first
        connection.execute("DELETE FROM refs WHERE step BETWEEN ? AND ? OR step BETWEEN ? AND ?", steps)
        drop_blobs(connection)
    for table in ("inputs", "answers", "legs"):
        connection.execute(f"DELETE FROM {table} WHERE run = ?", (head.id,))
    connection.execute("DELETE FROM runs WHERE id = ?", (head.id,))
