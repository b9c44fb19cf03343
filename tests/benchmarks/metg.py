"""The smallest tasks worth running side by side: `python tests/benchmarks/metg.py [--pattern NAME] [--strict]`.

METG(50 %), the minimum effective task granularity of Task Bench (E. Slaughter et al.: Task Bench: A parameterized
benchmark for evaluating parallel runtime performance, SC20): the shortest task with which at least half of the time goes
to tasks. Here: 16 points x 200 rows, each row a parallel group whose points read values of the row before, on two threads.

The kernel is a SHA-256 over so many bytes, during which Python releases the GIL: two threads can compute at a time, as in
numpy and in most libraries worth waiting for (pure Python cannot be faster in threads, whatever schedules it). A kernel's
duration, and the time that the tasks would take without any scheduling, are those of two threads that do half of the
kernels each, measured right before and after each candidate: so what others do on the machine counts for both.

    pool        list(ThreadPoolExecutor(2).map(...)) for each row: the values of the row before are at hand
    executor    flow.run(executor=ThreadPoolExecutor(2))
    threads     flow.run() with the run's own threads, groups with limit=2
    dask        dask.threaded.get on the whole graph, num_workers=2 (if Dask is there)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from measure import no_collection, seconds

from flowdeco import Action, Context, Pipeline, action, parallel, pipeline

WIDTH, ROWS, WORKERS = 16, 200, 2
BUDGET = 1.5  # times that of the bare pool
HALF = 0.5
DATA = Path(__file__).parents[1] / "data/taskbench/dependences.json"
ZEROS = memoryview(bytes(1 << 22))
SHORTEST = 4096  # bytes: below 2048 the GIL is not released

Row = list[tuple[int, list[int]]]  # the points, each with those of the row before that it reads


class Kernel:
    """The work of a task."""

    size = SHORTEST

    def __call__(self) -> int:
        sha256(ZEROS[: self.size])
        return self.size


kernel = Kernel()


def rows_of(pattern: str) -> list[Row]:
    """Return as many rows as are to run: those of the full width are repeated."""
    rows: list[Row] = json.loads(DATA.read_text(encoding="utf-8"))[f"{pattern}-{WIDTH}x{WIDTH}"]
    first = next((number for number, row in enumerate(rows) if len(row) == WIDTH), len(rows))
    repeated = rows[first + 1 :]
    if not repeated:
        raise SystemExit(f"the rows of {pattern} never have {WIDTH} points: choose another pattern")
    while len(rows) < ROWS:
        rows += repeated
    return rows[:ROWS]


# The candidates.


def alone(rows: list[Row]) -> None:
    """Do the kernels without scheduling: in so many threads that know what they have to do."""
    count = sum(map(len, rows)) // WORKERS

    def work() -> None:
        for _ in range(count):
            kernel()

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_pool(rows: list[Row], pool: ThreadPoolExecutor) -> None:
    """Map each row, with the values that its points read."""

    def task(values: list[int]) -> int:
        return kernel()

    before: dict[int, int] = {}
    for row in rows:
        inputs = [[before[number] for number in read] for _, read in row]
        before = dict(zip((point for point, _ in row), pool.map(task, inputs), strict=True))


def key(row: int, point: int) -> str:
    return f"row{row}.p{point}"


def point_of(row: int, point: int, read: list[int]) -> Action[..., int]:
    """Return the action of a point: with a parameter for each value that it reads, or with a view of the store."""
    name, keys = key(row, point), [key(row - 1, number) for number in read]
    if not keys:
        return action(name=name)(lambda: kernel())
    if len(keys) == 1:

        def compute(a: Annotated[int, keys[0]]) -> int:
            return kernel()

    elif len(keys) == 2:

        def compute(a: Annotated[int, keys[0]], b: Annotated[int, keys[1]]) -> int:
            return kernel()

    elif len(keys) == 3:

        def compute(a: Annotated[int, keys[0]], b: Annotated[int, keys[1]], c: Annotated[int, keys[2]]) -> int:
            return kernel()

    else:

        def compute(ctx: Context) -> int:
            sum(ctx.store[key] for key in keys)
            return kernel()

    return action(name=name)(compute)


def flow_of(rows: list[Row], limit: int | None = None) -> Pipeline:
    """Return the rows as parallel groups."""
    return pipeline(
        *(
            parallel(*(point_of(number, *point) for point in row), name=f"row {number}", limit=limit)
            for number, row in enumerate(rows)
        )
    )


def by_dask(rows: list[Row]) -> Callable[[], object] | None:
    """Return the whole graph, to be computed by Dask's scheduler for threads; None if it is not there."""
    try:
        from dask.threaded import get
    except ImportError:
        return None

    def task(*values: int) -> int:
        return kernel()

    graph = {
        key(number, point): (task, *(key(number - 1, other) for other in read))
        for number, row in enumerate(rows)
        for point, read in row
    }
    last = [key(len(rows) - 1, point) for point, _ in rows[-1]]
    return lambda: get(graph, last, num_workers=WORKERS)


@contextmanager
def candidates(rows: list[Row]) -> Iterator[dict[str, Callable[[], object]]]:
    """Give what is compared, by name; what can be made beforehand is made."""
    with ThreadPoolExecutor(WORKERS) as pool:
        flow, limited, dask = flow_of(rows), flow_of(rows, WORKERS), by_dask(rows)
        found: dict[str, Callable[[], object]] = {
            "pool": lambda: by_pool(rows, pool),
            "executor": lambda: flow.run(executor=pool),
            "threads": limited.run,
        }
        yield found if dask is None else {**found, "dask": dask}


# The measurement.


def measured(rows: list[Row], run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return how long a task takes with the present kernel, and which share of the time went to tasks."""
    tasks = sum(map(len, rows))
    durations: list[float] = []
    shares: list[float] = []
    with no_collection():
        before = seconds(lambda: alone(rows))
        for _ in range(rounds):
            spent = seconds(run)
            after = seconds(lambda: alone(rows))
            at_best = (before + after) / 2
            durations.append(at_best * WORKERS / tasks)
            shares.append(at_best / spent)
            before = after
    return statistics.median(durations), statistics.median(shares)


def metg(rows: list[Row], run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return METG(50 %) in seconds, and the time that a task of that duration costs beyond it.

    The kernel doubles until half of the time goes to tasks; in between, the logarithm of the duration is interpolated.
    """
    run()
    kernel.size = SHORTEST
    duration, share = measured(rows, run, rounds)
    while share < HALF and kernel.size < len(ZEROS):
        kernel.size *= 2
        shorter, less = duration, share
        duration, share = measured(rows, run, rounds)
        if share >= HALF:
            part = (HALF - less) / (share - less)
            at = math.exp(math.log(shorter) + part * (math.log(duration) - math.log(shorter)))
            return at, duration / share - duration
    return duration, duration / share - duration


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pattern", default="stencil_1d", help="one of the 11 patterns of Task Bench (stencil_1d)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each size of the kernel (5)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a way to run the flow misses the budget")
    options = parser.parse_args()
    rows = rows_of(options.pattern)
    missed, base = 0, 0.0
    print(f"METG(50 %) of {options.pattern}, {WIDTH} points x {ROWS} rows on {WORKERS} threads")
    with candidates(rows) as found:
        for name, run in found.items():
            at, more = metg(rows, run, options.rounds)
            base = base or at
            judged = name in {"executor", "threads"}
            bad = judged and at > BUDGET * base
            missed += bad
            verdict = ("OVER" if bad else "PASS") if judged else ""
            limit = f"(budget {BUDGET:g} x)" if judged else ""
            print(f"{verdict:5}{name:9} {at * 1e6:7.1f} us {at / base:6.2f} x the pool {limit}", flush=True)
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
