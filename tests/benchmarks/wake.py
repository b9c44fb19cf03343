"""10,000 sleeping runs: `python tests/benchmarks/wake.py [--strict] [N]`.

How long `durable.due` takes if few of them are due, and if all are; and how long `flowdeco wake` takes for each, from its
list to the end of the run, all of them in due-time order. The runs of the list are written by `sqlite3`, as copies of one
that was suspended; those that are woken are real. With `--strict`, the exit code is 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from flowdeco import Context, action, durable
from flowdeco.durable.head import Head

LIMITS = {"few due": 0.02, "all due": 1.5, "woken": 0.02}  # seconds; the last one for each run


@action
def naps(ctx: Context, until: float) -> str:
    """Sleeps until then."""
    ctx.sleep_until(until)
    return "woke"


def sleeping_runs(path: str, count: int, first: float = 1.5e9) -> None:
    """Write so many runs that sleep, "r0" first, each due a second later."""
    naps.run({"until": time.time() + 1e6}, journal=path, run_id="model")
    with closing(sqlite3.connect(path)) as connection, connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(runs)")]
        model = dict(zip(columns, connection.execute("SELECT * FROM runs").fetchone(), strict=True))
        names = ", ".join(columns)
        for number in range(count):
            row = {**model, "id": number + 2, "run_id": f"r{number}", "due": first + number, "ready": first + number}
            head = Head._make(row[name] for name in Head._fields)
            row["checksum"] = head.checksum
            connection.execute(f"INSERT INTO runs ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
        connection.execute("DELETE FROM runs WHERE run_id = 'model'")


def _timed(call: object, times: int = 5) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        call()  # type: ignore[operator]
        best = min(best, time.perf_counter() - began)
    return best


def _woken(count: int) -> float:
    """Return the seconds for each run that `flowdeco wake` resumes, with its start; raises if the order is wrong."""
    journal = durable.SqliteJournal("woken.db", entry=f"{__file__}:naps")
    until = time.time() + count * 0.02 + 1
    for number in range(count):
        naps.run({"until": until - number * 1e-3}, journal=journal, run_id=f"r{number}", suspend_after=0)
    time.sleep(max(0.0, until - time.time()))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flowdeco", "wake", "woken.db"], capture_output=True, text=True, check=True
    )
    took = time.perf_counter() - began
    expected = [f"run r{number} completed" for number in reversed(range(count))]
    assert done.stdout.splitlines() == expected, done.stdout
    return took / count


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=10_000)
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(durable.__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sleeping_runs("runs.db", options.count)
        found = {
            "few due": _timed(lambda: durable.due("runs.db", 1.5e9 + 10)),
            "all due": _timed(lambda: durable.due("runs.db")),
            "woken": _woken(options.count),
        }
    over = [what for what, seconds in found.items() if seconds > LIMITS[what]]
    for what, seconds in found.items():
        mark = "  OVER" if what in over else ""
        print(f"{what:<8} {seconds * 1e3:9.2f} ms, limit {LIMITS[what] * 1e3:7.0f}{mark}")
    return int(bool(over) and options.strict)


if __name__ == "__main__":
    sys.exit(main())
