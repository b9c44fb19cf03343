"""What durability costs, as ratios to bare sqlite3: `python tests/benchmarks/durable.py [--strict]`.

The unit is what one would write by hand: `sqlite3` inserting the same columns and bytes into a plain table, and
committing, with the same pragmas, on the same disk. A slice of it is measured before and after each slice of the
candidate, because disks and clocks change their mood; what is reported is the median ratio.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowdeco.durable import Row, SqliteJournal

SLICE = 50
LIMIT = 1.5


def rows(count: int, payload: bytes, first: int = 0) -> list[Row]:
    """Return steps as a run writes them."""
    return [
        Row(
            "0",
            first + n,
            "action",
            "load[customers]",
            "load",
            "completed",
            time.time(),
            0.0123,
            "0123456789abcdef",
            payload,
        )
        for n in range(count)
    ]


@contextmanager
def bare(directory: Path, synchronous: str) -> Iterator[Callable[[list[Row]], object]]:
    """Give a function that inserts and commits with sqlite3 alone."""
    connection = sqlite3.connect(directory / "bare.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(
        "CREATE TABLE steps (id INTEGER PRIMARY KEY, branch TEXT, number INTEGER, kind TEXT, stage TEXT, action TEXT, "
        "status TEXT, started REAL, elapsed REAL, fingerprint TEXT, payload BLOB)"
    )
    insert = "INSERT INTO steps VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

    def write(batch: list[Row]) -> None:
        if len(batch) == 1:
            connection.execute(insert, batch[0])
        else:
            connection.executemany(insert, batch)
        connection.commit()

    yield write
    connection.close()


def seconds(call: Callable[[Any], object], items: list[Any]) -> float:
    """Return how long it takes to do them one after the other."""
    begun = time.perf_counter()
    for item in items:
        call(item)
    return time.perf_counter() - begun


def measured(size: int, batch: int, synchronous: str, rounds: int) -> tuple[float, float]:
    """Return what a write costs in bare ones, and in microseconds."""
    payload = bytes(range(256)) * (size // 256 + 1)
    ratios: list[float] = []
    times: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as place, bare(Path(place), synchronous) as insert:
        journal = SqliteJournal(Path(place) / "runs.db", synchronous=synchronous)  # type: ignore[arg-type]
        journal.create("run", "flow", b"", ())
        number = 0
        for _ in range(rounds):
            batches = [rows(batch, payload[:size], number + batch * n) for n in range(SLICE)]
            number += batch * SLICE
            before = seconds(insert, batches)
            spent = seconds(lambda some: journal.write("run", some), batches)
            ratios.append(spent / ((before + seconds(insert, batches)) / 2))
            times.append(spent / SLICE * 1e6)
        journal.close("run", "completed", None, None)
    return statistics.median(ratios), statistics.median(times)


def main() -> int:
    """Print a table; with --strict, the exit code is 1 if a row is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    over = False
    for size, batch, synchronous in ((300, 1, "NORMAL"), (300, 2, "NORMAL"), (3000, 1, "NORMAL"), (300, 1, "FULL")):
        found, micro = measured(size, batch, synchronous, options.rounds if synchronous == "NORMAL" else 5)
        over |= found > LIMIT
        print(
            f"write {batch} x {size} bytes, {synchronous:6}  {found:5.2f} x bare sqlite3   {micro:7.1f} us   <= {LIMIT}"
        )
    return int(over and options.strict)


if __name__ == "__main__":
    sys.exit(main())
