"""The rows of the steps of a run, in the table `log`: written, read, and taken back.

Every row has a checksum. The positions of a run have no gaps, but for the rows that were taken back, which are counted. The
numbers of steps within a branch mean nothing here: they are checked where they are read as the steps of a run. Rows that
are missing at the end of an unfinished run have not happened yet. A row is written only by the owner of the lease, which is
checked in the same statement.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias
from zlib import crc32

from flowdeco.durable.blobs import PartsOf, referred, write_parts
from flowdeco.durable.file import transaction
from flowdeco.durable.file_errors import Damaged
from flowdeco.durable.head import Head
from flowdeco.durable.held import HeldRun
from flowdeco.engine.journal import Payload, Row

__all__ = ["read_rows", "take_back", "write_rows"]

_FEW: Final = 8  # rows that are written in one statement
_KEPT: Final = 1024


def _insert(count: int) -> str:
    """Return the statement that inserts so many rows, if the run has that owner."""
    row = "SELECT ?, ?, ?, ?, ?, ?, ?, ? FROM runs WHERE id = ? AND owner = ?"
    columns = "id, number, what, started, elapsed, checksum, payload, begins"
    return f"INSERT INTO log ({columns}) {' UNION ALL '.join([row] * count)}"


_INSERTS: Final = [_insert(count) for count in range(_FEW + 1)]


def write_rows(connection: sqlite3.Connection, held: HeldRun, rows: Sequence[Row]) -> None:
    """Write rows, all or none of them, and count them."""
    if held.doubtful:
        held.settle(connection)
    at = held.first + held.next
    if len(rows) > _FEW or Payload in {type(row.payload) for row in rows}:
        _write_many(connection, held, rows)
    else:
        columns = _columns(at, rows[0], held)
        for index in range(1, len(rows)):
            columns += _columns(at + index, rows[index], held)
        if not connection.execute(_INSERTS[len(rows)], columns).rowcount:  # a statement on its own is a transaction
            _write_many(connection, held, rows)  # raises, unless the run has just been cancelled
    held.next += len(rows)
    held.saved += len(rows)
    held.last = rows[-1]
    begun = held.begun
    if len(begun) > _KEPT:  # a run may have new branches without end
        begun.clear()
    for row in rows:
        begun.add(row.branch)


def _write_many(connection: sqlite3.Connection, held: HeldRun, rows: Sequence[Row]) -> None:
    at = held.first + held.next
    with transaction(connection):
        held.require_ours(connection)
        connection.executemany(_INSERTS[1], (_columns(at + index, row, held) for index, row in enumerate(rows)))
        for index, row in enumerate(rows):
            write_parts(connection, at + index, row.payload, held.file.path)


def _columns(id: int, row: Row, held: HeldRun) -> tuple[Any, ...]:
    """Return the columns of a row, and those of its run that must not have changed."""
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


_PACKED: Final = struct.Struct("<qqdd").pack
_quoted: Final = json.encoder.encode_basestring_ascii  # any text, lone surrogates too, in ASCII


# Read.


def read_rows(connection: sqlite3.Connection, head: Head, parts_of: PartsOf) -> tuple[list[Row], list[int]]:
    """Return the rows of a run, and their positions; raises if one is damaged or missing."""
    first, last = head.ids
    rows, positions = list[Row](), list[int]()
    blobs = referred(connection, first, last)
    columns = "id, number, what, started, elapsed, checksum, payload"
    found = connection.execute(f"SELECT {columns} FROM log WHERE id BETWEEN ? AND ? ORDER BY id", head.ids)
    for id, number, what, started, elapsed, checksum, payload in found:
        try:
            names = _names(what)
            if crc32(_PACKED(id, number, started, elapsed) + payload, names[0]) != checksum:
                raise ValueError
        except (TypeError, ValueError, RecursionError, struct.error):
            raise Damaged(f"step {id - first} of run {head.run_id!r} does not agree with its checksum") from None
        if id in blobs:
            payload = Payload(payload, parts_of(blobs[id]))
        _, branch, kind, stage, action, status, fingerprint = names
        rows.append(Row(branch, number, kind, stage, action, status, started, elapsed, fingerprint, payload))
        positions.append(id - first)
    early = bisect_left(positions, head.written)
    late = len(positions) - early
    if early != head.written - head.dropped or (late and positions[-1] != head.written + late - 1):
        raise Damaged(f"steps of run {head.run_id!r} are missing")
    return rows, positions


_Names: TypeAlias = "tuple[int, str, str, str, str | None, str, str]"  # checksum, then as in a row


@lru_cache(_KEPT)
def _names(what: str) -> _Names:
    """Return the names that `_joined` has joined."""
    # Without a backslash, there is no quote within a name.
    parts: Any = json.loads(what) if "\\" in what else what[2:-2].split('","')
    branch, kind, stage, action, status, fingerprint = parts
    return crc32(what.encode()), branch, kind, stage, action or None, status, fingerprint


# Taken back.


def take_back(connection: sqlite3.Connection, held: HeldRun, cuts: Mapping[str, int]) -> None:
    """Delete the rows of these branches from these numbers on."""
    held.begun.difference_update(cuts)
    doomed, first = _after(connection, held, cuts)
    if doomed:
        connection.executemany("DELETE FROM log WHERE id = ?", doomed)
        connection.executemany("DELETE FROM refs WHERE step = ?", doomed)
        connection.executemany("UPDATE log SET begins = 1 WHERE id = ?", first)
        held.saved -= len(doomed)
        held.head = held.counted()
        held.note(connection)


_Ids: TypeAlias = "list[tuple[int]]"


def _after(connection: sqlite3.Connection, held: HeldRun, cuts: Mapping[str, int]) -> tuple[_Ids, _Ids]:
    """Return the ids of the steps of these branches from these numbers on, and of the first ones that then are left.

    The way back through a branch ends where it begins, or at an action or a group below its cut: that had the highest
    number so far, while a stage or a pipeline has a lower one than the steps inside it, which are written before it.
    """
    begins = (
        "SELECT id FROM log WHERE id >> 32 = ? AND substr(what, 1, instr(what, ',')) = ? AND begins ORDER BY id LIMIT 1"
    )
    found = [(connection.execute(begins, (held.id, f'["{branch}",')).fetchone(), branch) for branch in cuts]
    ahead = sorted((first[0], branch) for first, branch in found if first is not None)
    open, doomed, left = {branch for _, branch in ahead}, list[tuple[int]](), dict[str, int]()
    names = "substr(what, 3, instr(what, ',') - 4), substr(what, instr(what, ',') + 2, 1) IN ('a', 'g')"
    backwards = f"SELECT id, number, {names} FROM log WHERE id BETWEEN ? AND ? ORDER BY id DESC"
    last = held.head.ids[1]
    for id, number, branch, is_single in connection.execute(backwards, (ahead[0][0] if ahead else last, last)):
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
