"""What durability costs: `python tests/benchmarks/durable.py [--strict] [WORD ...]`.

One row each, with its limit where there is one; all are ratios measured in one run. Words select rows; with `--strict`
the exit code is 1 if a row is over. The unit of writing is what one would write by hand: `sqlite3` inserting the same
step into a plain table, with a column for each name, status and time and the payload in a blob, and committing, with the
same pragmas, on the same disk (that of the current folder). The journal's own table has fewer columns: what it costs in
rows of that kind, which are cheaper, is said as well. A slice of the unit is measured before and after each slice of the
candidate, because disks and clocks change their mood; what is reported is the median ratio. A resume is compared with the
run that it resumes, by the clock: running waits for the disk as well. Other times are CPU time, system calls included, so
that others on the machine do not count, but for those of FULL, where the disk is waited for at each step. That nothing got
slower without a journal is what `budgets.py` watches.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from flowdeco import Context, Stage, action, pipeline, stage
from flowdeco.durable import Row as Step
from flowdeco.durable import SqliteJournal

SLICE = 50
ROUNDS = 40
STEPS = 10_000


class Row(NamedTuple):
    """One budget: what is measured, its limit, the unit, and how it is measured, in that unit and in microseconds."""

    what: str
    limit: float | None
    unit: str
    measure: Callable[[Path], tuple[float, float]]


# Writing, in bare sqlite3.


def steps(count: int, payload: bytes, first: int = 0) -> list[Step]:
    """Return steps as a run writes them."""
    named = "action", "load[customers]", "load", "completed"
    return [Step("0", first + n, *named, time.time(), 0.0123, "0123456789abcdef", payload) for n in range(count)]


BY_HAND = (
    "branch TEXT, number INTEGER, kind TEXT, stage TEXT, action TEXT, status TEXT, started REAL, elapsed REAL, "
    "fingerprint TEXT, payload BLOB"
)
OWN = "number INTEGER, what TEXT, started REAL, elapsed REAL, checksum INTEGER, payload BLOB"


@contextmanager
def bare(folder: Path, synchronous: str, columns: str = BY_HAND) -> Iterator[Callable[[list[Any]], object]]:
    """Give a function that inserts and commits with sqlite3 alone."""
    connection = sqlite3.connect(folder / "bare.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute(f"CREATE TABLE steps (id INTEGER PRIMARY KEY, {columns})")
    insert = f"INSERT INTO steps VALUES (NULL{', ?' * (columns.count(',') + 1)})"

    def write(batch: list[Any]) -> None:
        if len(batch) == 1:
            connection.execute(insert, batch[0])
        else:
            connection.executemany(insert, batch)
        connection.commit()

    yield write
    connection.close()


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return how long it takes."""
    begun = clock()
    call()
    return clock() - begun


def in_bare_ones(
    batches: Callable[[], list[list[Any]]],
    insert: Callable[[list[Any]], object],
    candidate: Callable[[list[list[Any]]], object],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, float]:
    """Return what the candidate costs for each batch: in insertions by hand, and in microseconds."""
    ratios: list[float] = []
    times: list[float] = []
    for _ in range(rounds):
        some = batches()

        def by_hand(some: list[list[Step]] = some) -> None:
            for batch in some:
                insert(batch)

        before = seconds(by_hand, clock)
        spent = seconds(lambda some=some: candidate(some), clock)
        ratios.append(spent / ((before + seconds(by_hand, clock)) / 2))
        times.append(spent / len(some) * 1e6)
    return statistics.median(ratios), statistics.median(times)


def write(size: int, batch: int, synchronous: str) -> Callable[[Path], tuple[float, float]]:
    """Measure the journal alone."""

    def measure(folder: Path) -> tuple[float, float]:
        payload = (bytes(range(256)) * (size // 256 + 1))[:size]
        journal = SqliteJournal(folder / "runs.db", synchronous=synchronous)  # type: ignore[arg-type]
        journal.create("run", "flow", b"", ())
        written = 0

        def batches() -> list[list[Step]]:
            nonlocal written
            some = [steps(batch, payload, written + batch * n) for n in range(SLICE)]
            written += batch * SLICE
            return some

        def candidate(some: list[list[Step]]) -> None:
            for rows in some:
                journal.write("run", rows)

        with bare(folder, synchronous) as insert:
            waiting = (5, time.perf_counter) if synchronous == "FULL" else ()
            found = in_bare_ones(batches, insert, candidate, *waiting)
        journal.close("run", "completed", None, None)
        return found

    return measure


@action(returns="y")
def work(x: int) -> str:
    return "y" * 200


@action
def nothing() -> None:
    """Do nothing."""


def whole(unit: Stage, columns: str = BY_HAND) -> Callable[[Path], tuple[float, float]]:
    """Measure a whole run, all that it does included, in insertions of the very rows that it has written."""

    def measure(folder: Path) -> tuple[float, float]:
        journal = SqliteJournal(folder / "runs.db")
        run = unit.run({"x": 1}, journal=journal)
        rows: list[Any] = journal.history(run.id)
        if columns == OWN:
            with closing(sqlite3.connect(journal.path)) as connection:
                rows = connection.execute(
                    "SELECT number, what, started, elapsed, checksum, payload FROM log"
                ).fetchall()
        batches = [[row] for row in rows]
        with bare(folder, "NORMAL", columns) as insert:
            return in_bare_ones(lambda: batches, insert, lambda _: unit.run({"x": 1}, journal=journal), rounds=20)

    return measure


# Resuming, in runs.


@action
def wait(ctx: Context) -> Any:
    return ctx.wait_for("go")


@action
def insert(count: int) -> list[Stage]:
    return [inserted(number) for number in range(count)]


@stage
def inserted(number: int) -> None:
    @action(collect="numbers")
    def one() -> int:
        return number


def resumed(flow: Any, steps: int) -> Callable[[Path], tuple[float, float]]:
    """Measure a resume at the last of many steps: microseconds for each, and per cent of the time that running took."""

    def measure(folder: Path) -> tuple[float, float]:
        ratios: list[float] = []
        times: list[float] = []
        for number in range(7):
            journal = SqliteJournal(folder / f"{number}.db")
            gc.collect()
            ran = seconds(lambda: flow.run({"x": 1, "count": STEPS}, journal=journal, run_id="r"), time.perf_counter)
            gc.collect()
            spent = seconds(lambda: flow.resume("r", {"go": True}, journal=journal), time.perf_counter)
            ratios.append(spent / ran * 100)
            times.append(spent / steps * 1e6)
        return statistics.median(times), statistics.median(ratios)

    return measure


ROWS = [
    Row("journal alone: 1 step of 300 bytes", 1.5, "x", write(300, 1, "NORMAL")),
    Row("journal alone: 2 steps of 300 bytes at a time", 1.5, "x", write(300, 2, "NORMAL")),
    Row("journal alone: 1 step of 3000 bytes", 1.5, "x", write(3000, 1, "NORMAL")),
    Row("journal alone: 1 step of 300 bytes, FULL", 1.5, "x", write(300, 1, "FULL")),
    Row("whole run: an action that does nothing", 1.8, "x", whole(Stage("s", [nothing] * 2000))),
    Row("whole run: an action that writes 200 bytes", 1.8, "x", whole(Stage("s", [work] * 2000))),
    Row("the same, in rows with the journal's columns: nothing", None, "x", whole(Stage("s", [nothing] * 2000), OWN)),
    Row("the same, in rows with the journal's columns: 200", None, "x", whole(Stage("s", [work] * 2000), OWN)),
    Row("resume: 10,000 actions that do nothing", 25, "us", resumed(Stage("s", [nothing] * STEPS) >> wait, STEPS)),
    Row("resume: 10,000 actions that write 200 bytes", 25, "us", resumed(Stage("s", [work] * STEPS) >> wait, STEPS)),
    # A stage is a step, too; and inserted stages are made anew by their template.
    Row(
        "resume: 10,000 stages of one action",
        25,
        "us",
        resumed(pipeline(*[Stage("s", [work])] * STEPS, wait), 2 * STEPS),
    ),
    Row("resume: 10,000 inserted stages of one action", 25, "us", resumed(insert >> wait, 2 * STEPS)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only rows that contain one of these words")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row is over its budget")
    options = parser.parse_args()
    over = 0
    for row in ROWS:
        if options.words and not any(word in row.what for word in options.words):
            continue
        with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
            found, micro = row.measure(Path(folder))
        is_over = row.limit is not None and found > row.limit
        over += is_over
        verdict = "----" if row.limit is None else "OVER" if is_over else "PASS"
        budget = "" if row.limit is None else f"(budget {row.limit:g} {row.unit})"
        print(f"{verdict}  {row.what:52} {found:7.2f} {row.unit:2} {budget:16} {micro:6.1f} us", flush=True)
    print(f"{over} over budget" if over else "all within budget")
    return 1 if over and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
