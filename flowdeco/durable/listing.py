"""The list of the runs of a file: their heads, who works on them, and what they wait for."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Final

from flowdeco.durable.head import COLUMNS, Head
from flowdeco.durable.info import RunInfo, first_due, questions_in, waits_as_json
from flowdeco.durable.lease import CANCELLED, is_busy
from flowdeco.durable.owner import OWNER, Owner, this_process
from flowdeco.errors import Wait

__all__ = ["ended_actions", "is_due", "list_runs", "note_waits"]

_ANSWERS: Final = "(SELECT count(*) FROM answers WHERE run = runs.id)"
_DUE: Final = (  # each by its index
    "SELECT id FROM runs WHERE status = 'running' UNION ALL SELECT id FROM runs WHERE status = 'suspended' AND ready <= ?"
)


def list_runs(connection: sqlite3.Connection, due: float | None, run_id: str | None) -> list[RunInfo]:
    """Return the runs that may be due then, or that with this id, or all; the latest first."""
    which, values = "", list[object]()
    if due is not None:
        which, values = f"WHERE id IN ({_DUE})", [due]
    elif run_id is not None:
        which, values = "WHERE run_id = ?", [run_id]
    me, size = this_process(""), len(Head._fields)
    columns = f"{COLUMNS}, checksum, updated, due, questions, answers, {_ANSWERS}, lease, {OWNER}"
    found = _all(connection, f"SELECT {columns} FROM runs {which} ORDER BY started DESC, id DESC", values)
    return [_info(connection, Head._make(row[:size]), row[size:], me) for row in found]


def _all(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the rows of a query, whatever their strings: one that is not valid Unicode agrees with no checksum."""
    connection.text_factory = _lenient
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.text_factory = str


def _lenient(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _info(connection: sqlite3.Connection, head: Head, rest: tuple[Any, ...], me: Owner) -> RunInfo:
    """Describe a run by its head, the checksum of that, and columns that no checksum covers."""
    checksum, updated, due, questions, known, answers, lease, *owner = rest
    if not head.agrees(checksum):  # the list must still show the others
        text = "its row does not agree with its checksum: delete it, or restore the file from a backup"
        started, updated = (at if isinstance(at, float) else math.inf for at in (head.started, updated))
        return RunInfo(_lenient(head.run_id), _lenient(head.pipeline), "damaged", None, started, updated, 0, text)
    if not isinstance(updated, float) or not math.isfinite(updated):
        updated = head.started
    at_work = None if owner[0] is None else Owner._make(owner)
    busy, is_cancelled = is_busy(at_work, lease, me), str(owner[0]).endswith(CANCELLED)
    steps = head.written - head.dropped
    if head.status == "running":
        steps = connection.execute("SELECT count(*) FROM log WHERE id BETWEEN ? AND ?", head.ids).fetchone()[0]
    info = RunInfo(
        *(head.run_id, head.pipeline, head.status, head.reason, head.started, updated, steps),
        *(head.error, str(at_work) if busy else None, head.entry, head.codec),
        cancelling=busy and is_cancelled,
    )
    if is_cancelled and not busy:  # its owner has died before it noticed
        return info._replace(status="cancelled")
    if head.status != "suspended":
        return info
    at = due if isinstance(due, float) else None
    return info._replace(due=at, questions=questions_in(questions), answered=answers != known)


def is_due(connection: sqlite3.Connection, head: Head) -> bool:
    """Whether a run is due, answered or has crashed, and has not been cancelled."""
    query = (
        "SELECT 1 FROM runs WHERE id = ? AND (status = 'running' OR (status = 'suspended' AND ready <= ?)) "
        f"AND coalesce(substr(owner, -1), '') != '{CANCELLED}'"
    )
    return connection.execute(query, (head.id, time.time())).fetchone() is not None


def note_waits(connection: sqlite3.Connection, run: int, token: str, waits: Sequence[Wait], known: int) -> None:
    """Write what a run, if it has that owner, waits for; it is ready at once if it has more answers than are known."""
    due = first_due(waits)
    connection.execute(
        "UPDATE runs SET due = ?, questions = ?, answers = ?, "
        f"ready = CASE WHEN {_ANSWERS} > ? THEN 0 ELSE ? END WHERE id = ? AND owner = ?",
        (due, waits_as_json(waits), known, known, due, run, token),
    )


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


def ended_actions(connection: sqlite3.Connection, run_id: str) -> int:
    """Return the number of actions of a run that have ended, as far as its rows can be read."""
    found = connection.execute(_ENDED, (run_id,)).fetchone()
    return 0 if found is None else int(found[0])
