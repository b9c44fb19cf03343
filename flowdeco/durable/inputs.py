"""The inputs of a run: those that it began with, those of its resumes, and the answers that others gave between them."""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from zlib import crc32

from flowdeco.durable.blobs import PartsOf, referred, write_parts
from flowdeco.durable.file_errors import Damaged
from flowdeco.durable.head import Head
from flowdeco.engine.journal import Payload

__all__ = ["insert_answers", "insert_inputs", "read_inputs"]


def insert_inputs(connection: sqlite3.Connection, head: Head, position: int, payload: bytes, path: str) -> None:
    """Add the last of the `given` inputs of a run, before the row at this position."""
    number = head.given - 1
    row = head.id, number, position, _checksum(head.id, number, position, payload), payload
    connection.execute("INSERT INTO inputs VALUES (?, ?, ?, ?, ?)", row)
    write_parts(connection, _step(head.id, number), payload, path)


def insert_answers(connection: sqlite3.Connection, head: Head, payload: bytes) -> None:
    """Add answers to a run, whoever works on it, after everything that it has; a suspended one is ready to be woken."""
    (number,), (given,) = (
        connection.execute(f"SELECT count(*) FROM {table} WHERE run = ?", (head.id,)).fetchone()
        for table in ("answers", "inputs")
    )
    position: int = connection.execute(
        "SELECT max(?, coalesce(max(id) + 1 - ?, 0)) FROM log WHERE id BETWEEN ? AND ?",
        (head.written, head.ids[0], *head.ids),
    ).fetchone()[0]
    row = head.id, number, given, position, _checksum(head.id, number, position, payload), payload
    connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute(
        "UPDATE runs SET updated = ?, ready = CASE status WHEN 'suspended' THEN 0 END WHERE id = ?",
        (time.time(), head.id),
    )


def read_inputs(
    connection: sqlite3.Connection, head: Head, positions: Sequence[int], parts_of: PartsOf
) -> list[tuple[int, bytes]]:
    """Return the inputs and answers of a run, each with the number of rows before it; `positions` are those of the rows."""
    blobs = referred(connection, _step(head.id, _MOST), _step(head.id, 0))
    found: list[tuple[int, bytes]] = []
    for number, position, payload, _ in _read(connection, head, "inputs", "0"):
        step = _step(head.id, number)
        payload = Payload(payload, parts_of(blobs[step])) if step in blobs else payload
        found.append((bisect_left(positions, position), payload))
    if len(found) != head.given:
        raise Damaged(f"inputs of run {head.run_id!r} are missing")
    for number, position, payload, given in _read(connection, head, "answers", "given"):
        found.insert(given + number, (bisect_left(positions, position), payload))  # each after those before it
    return found


_Found = Iterator[tuple[int, int, bytes, int]]


def _read(connection: sqlite3.Connection, head: Head, table: str, before: str) -> _Found:
    query = f"SELECT number, position, payload, {before}, checksum FROM {table} WHERE run = ? ORDER BY number"
    for number, position, payload, given, checksum in connection.execute(query, (head.id,)):
        agrees = (type(position), type(payload), type(given)) == (int, bytes, int)
        if not agrees or checksum != _checksum(head.id, number, position, payload):
            raise Damaged(f"the {table} {number} of run {head.run_id!r} do not agree with their checksum")
        yield number, position, payload, given


def _checksum(run: int, number: int, position: int, payload: bytes) -> int:
    return crc32(payload, crc32(f"{run} {number} {position}".encode()))


_MOST = 0xFFFFFFFF


def _step(run: int, number: int) -> int:
    """Return the number by which large parts of inputs are referred to."""
    return -(run << 32) - number
