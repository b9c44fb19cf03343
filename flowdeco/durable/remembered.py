"""A run as the file remembers it, verified: its head, inputs, rows, and the times of its legs."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left

from flowdeco.durable.blobs import PartsOf
from flowdeco.durable.head import Head
from flowdeco.durable.inputs import read_inputs
from flowdeco.durable.rows import read_rows
from flowdeco.engine.journal import Remembered

__all__ = ["read_run"]


def read_run(connection: sqlite3.Connection, head: Head, parts_of: PartsOf) -> tuple[Remembered, int]:
    """Return the run, and how many rows it has ever written; raises `Damaged`."""
    rows, positions = read_rows(connection, head, parts_of)
    inputs = read_inputs(connection, head, positions, parts_of)
    # Without a checksum, since nothing depends on the times.
    found = connection.execute("SELECT position, started FROM legs WHERE run = ? ORDER BY number", (head.id,))
    legs = [(bisect_left(positions, at), began) for at, began in found if (type(at), type(began)) == (int, float)]
    elapsed, timed = connection.execute("SELECT took, timed FROM runs WHERE id = ?", (head.id,)).fetchone()
    if (type(elapsed), type(timed)) != (float, int):
        elapsed, timed = 0.0, 0
    remembered = Remembered(
        head.run_id, head.pipeline, head.status, head.reason, head.started, head.selectors or (), inputs, rows,
        head.error, elapsed, bisect_left(positions, timed), legs,
    )  # fmt: skip
    return remembered, max(head.written, positions[-1] + 1 if positions else 0)
