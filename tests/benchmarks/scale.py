"""The figures of docs/scale.md: `python tests/benchmarks/scale.py [WORD ...]`, on a machine that does nothing else.

Words select parts: `process`, `memory`, `branches`, `pays`, `durable`. Each figure is an absolute one, of this machine,
next to a ratio to what one would write by hand: the bare loop, the bare pool. Ratios are medians of slices that lie next
to each other (see `measure`); absolute figures are of CPU time where only this process works, else the best of a few.
`budgets.py`, `groups.py` and `durable.py` guard limits; this only prints.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from measure import loop_seconds, no_collection, peak_memory, ratio

from flowdeco import Context, Stage, action, parallel, pipeline, stage
from flowdeco.durable import SqliteJournal
from flowdeco.executors import serial

N = 1000
BRANCHES = 300
STEPS = 10_000
WORKERS = 2
MEBIBYTE = 2**20


def say(what: str, absolute: str, relative: str = "") -> None:
    print(f"| {what:56} | {absolute:>22} | {relative:>24} |", flush=True)


@action
def noop() -> None:
    """Do nothing."""


@action(returns="y")
def transfer(x: int) -> int:
    return x


@stage
def template(number: int) -> None:
    @action(collect="numbers")
    def one() -> int:
        return number


@action
def insert(many: list[Stage]) -> list[Stage]:
    return many


@action
def insert_templates(count: int) -> list[Stage]:
    return [template(number) for number in range(count)]


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long it takes."""
    begun = clock()
    call()
    return clock() - begun


# One process.


def process() -> None:
    one, item = Stage("one", [noop]), min(loop_seconds() for _ in range(50))

    def row(what: str, run: Callable[[], object]) -> None:
        costs = ratio(run, N)
        say(what, f"{1 / (costs * item):,.0f} / s", f"{costs:.1f} x the loop")

    say("a call in the hand-written loop", f"{1 / item:,.0f} / s", "1 x the loop")
    row("actions that do nothing", Stage("s", [noop] * N).run)
    reading = Stage("s", [transfer] * N)
    row("actions that read one key and write one", lambda: reading.run({"x": 1}))
    row("stages of one action, written down", pipeline(*[one] * N).run)
    row("stages of one action, inserted", lambda: insert.run({"many": [one] * N}))
    row("stages made by a template, inserted, with `collect`", lambda: insert_templates.run({"count": N}))


# Memory.

_MILLION = {
    "a million streamed stages, `history=100`": """
from flowdeco import Stage, action, stream
one = Stage("one", [action(name="noop")(lambda: None)])
action(name="insert")(lambda: stream(one for _ in range({count}))).run(history=100)
""",
    "a million streamed stages, all records kept": """
from flowdeco import Stage, action, stream
one = Stage("one", [action(name="noop")(lambda: None)])
run = action(name="insert")(lambda: stream(one for _ in range({count}))).run()
""",
    "a million collected integers": """
from flowdeco import Stage, action, stream
one = Stage("one", [action(name="one", collect="numbers")(lambda: 10**9)])
run = action(name="insert")(lambda: stream(one for _ in range({count}))).run(history=100)
""",
}


def memory() -> None:
    for what, source in _MILLION.items():
        found = peak_memory(source.format(count=10**6)) - peak_memory(source.format(count=10**3))
        say(what, f"{found / MEBIBYTE:,.0f} MiB", f"{found / 10**6:,.0f} bytes each")


# Branches.


def nothing(_: object = None) -> None:
    """Do nothing."""


async def async_nothing() -> None:
    """Do nothing, in a loop."""


def spin(rounds: int) -> int:
    """Keep a processor busy."""
    total = 0
    for number in range(rounds):
        total += number * number
    return total


do_nothing = action(nothing)
spinning = action(spin, collect="totals")


@action
def sleep_for(seconds: float) -> None:
    time.sleep(seconds)


@contextmanager
def dask_executor() -> Iterator[Executor | None]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        yield None
        return
    address = "127.0.0.1:0"
    with (
        dask.config.set({"distributed.admin.log-format": ""}),
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=address, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


@contextmanager
def executors() -> Iterator[dict[str, Executor]]:
    with ThreadPoolExecutor(32) as threads, ProcessPoolExecutor(WORKERS) as processes, dask_executor() as dask:
        found: dict[str, Executor] = {"ThreadPoolExecutor(32)": threads, f"ProcessPoolExecutor({WORKERS})": processes}
        if dask is not None:
            found[f"Dask, {WORKERS} worker processes"] = dask
        yield found


def in_turn(candidate: Callable[[], object], bare: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return how long the candidate takes, and how many times as long as the bare one."""
    candidate(), bare()
    times: list[float] = []
    ratios: list[float] = []
    with no_collection():
        for _ in range(rounds):
            before = seconds(bare)
            times.append(seconds(candidate))
            ratios.append(times[-1] / ((before + seconds(bare)) / 2))
    return min(times), statistics.median(ratios)


def submitted(executor: Executor, function: Callable[..., Any], *args: Any, count: int) -> None:
    """What one would write without flowdeco; `pure=False`, or Dask would take equal calls for one."""
    extra = {"pure": False} if type(executor).__name__ == "ClientExecutor" else {}
    for future in [executor.submit(function, *args, **extra) for _ in range(count)]:
        future.result()


def branches() -> None:
    group = parallel(*[do_nothing] * BRANCHES)

    def row(what: str, run: Callable[[], object], bare: Callable[[], object], unit: str) -> None:
        took, times = in_turn(run, bare, 7)
        say(f"branches, {what}", f"{BRANCHES / took:,.0f} / s", f"{times:.1f} x {unit}")

    row("`serial()`", lambda: group.run(executor=serial()), pipeline(*group.units).run, "stages in a row")
    with executors() as found:
        for what, executor in found.items():
            row(
                what,
                lambda executor=executor: group.run(executor=executor),
                lambda executor=executor: submitted(executor, nothing, count=BRANCHES),
                "the bare pool",
            )
    tasks = parallel(*[action(async_nothing)] * BRANCHES)

    async def gathered() -> None:
        await asyncio.gather(*(async_nothing() for _ in range(BRANCHES)))

    with asyncio.Runner() as runner:
        row("coroutines in `arun`", lambda: runner.run(tasks.arun()), lambda: runner.run(gathered()), "asyncio.gather")


# From which duration a group pays.

LADDER = [0.0001 * 2**step for step in range(9)]  # 0.1 ms to 25.6 ms
PAYS = 1.3  # times as fast as one after the other


def first(faster: Callable[[float], float]) -> str:
    """Return the first duration from which it pays, in words."""
    for length in LADDER:
        if faster(length) >= PAYS:
            return f"from {length * 1000:g} ms"
    return f"not up to {LADDER[-1] * 1000:g} ms"


def pays() -> None:
    def count(length: float) -> int:
        return max(16, min(200, int(0.1 / length)))

    def times_as_fast(run: Callable[[], object], alone: Callable[[], object]) -> float:
        run()
        return min(seconds(alone) for _ in range(5)) / min(seconds(run) for _ in range(5))

    rounds = 100_000 / min(seconds(lambda: spin(100_000)) for _ in range(5))  # in a second
    with executors() as found:
        for what, executor in found.items():
            waits = isinstance(executor, ThreadPoolExecutor)
            function: Callable[..., Any] = time.sleep if waits else spin

            def group_pays(length: float, executor: Executor = executor, waits: bool = waits) -> float:
                branch = sleep_for.bind(seconds=length) if waits else spinning.bind(rounds=int(rounds * length))
                group = parallel(*[branch] * count(length))
                return times_as_fast(lambda: group.run(executor=executor), pipeline(*group.units).run)

            def pool_pays(length: float, executor: Executor = executor, function: Any = function) -> float:
                many, given = count(length), length if function is time.sleep else int(rounds * length)
                return times_as_fast(
                    lambda: submitted(executor, function, given, count=many),
                    lambda: [function(given) for _ in range(many)],
                )

            kind = "that wait" if waits else "that compute"
            say(f"branches {kind} pay in {what}", first(group_pays), f"bare pool {first(pool_pays)}")


# Durable runs.


@action
def wait(ctx: Context) -> Any:
    return ctx.wait_for("go")


@action(returns="text")
def writes_200() -> str:
    return "y" * 200


def durable() -> None:
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        for what, unit in (
            ("actions that do nothing", Stage("s", [noop] * STEPS)),
            ("actions that write 200 bytes", Stage("s", [writes_200] * STEPS)),
        ):
            journal = SqliteJournal(Path(folder) / f"{what}.db")
            flow = unit >> wait
            took = seconds(lambda: flow.run({"x": 1}, journal=journal, run_id="r"), time.process_time)
            plain = min(seconds(unit.run, time.process_time) for _ in range(5))
            with closing(sqlite3.connect(journal.path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            size = Path(journal.path).stat().st_size
            resumed = seconds(lambda: flow.resume("r", {"go": True}, journal=journal), time.process_time)
            say(f"durable {what}", f"{STEPS / took:,.0f} / s", f"{took / plain:.0f} x without a journal")
            say(f"journal of {what}", f"{size / STEPS:,.0f} bytes each", "after a checkpoint")
            say(
                f"resume past {what}", f"{resumed / STEPS * 10**5:.1f} s for 100,000", f"{resumed / took:.2f} x the run"
            )


PARTS = [process, memory, branches, pays, durable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only these parts")
    words = parser.parse_args().words
    print(f"{platform.machine()}, Python {platform.python_version()}, one loop item {loop_seconds() * 1e6:.2f} us")
    for part in PARTS:
        if not words or part.__name__ in words:
            part()


if __name__ == "__main__":
    main()
