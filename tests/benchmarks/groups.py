"""What parallel groups cost and bring: `python tests/benchmarks/groups.py [--strict] [WORD ...]`.

Each row compares a group with what one would write by hand, in slices that lie next to each other (see `measure`): the
hand-written one, the group, the hand-written one again; what is reported is the median of the ratios. Words select rows;
with `--strict` the exit code is 1 if a row misses its budget.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple

from measure import loop_seconds, no_collection, ratio, seconds

from flowdeco import Stage, action, parallel, pipeline
from flowdeco.executors import serial

BRANCHES = 1000
THREADS = 32  # as many as a run makes for itself
PROCESSES = 2
CPU_BRANCHES = 16
CPU_SECONDS = 0.05


class Row(NamedTuple):
    """One budget: what is measured, its limit (the most, or the least), and how it is measured."""

    what: str
    limit: float
    least: bool
    measure: Callable[[], float]


def compare(candidate: Callable[[], object], bare: Callable[[], object], rounds: int) -> float:
    """Return how many times as long as the bare one the candidate takes."""
    candidate(), bare()
    found: list[float] = []
    with no_collection():
        before = seconds(bare)
        for _ in range(rounds):
            spent = seconds(candidate)
            after = seconds(bare)
            found.append(spent / ((before + after) / 2))
            before = after
    return statistics.median(found)


def noop(_: object = None) -> None:
    """Do nothing."""


async def async_noop() -> None:
    """Do nothing, in a loop."""


def _group(function: Callable[[], Any], count: int = BRANCHES) -> Any:
    return parallel(*(action(name=f"branch {number}")(function) for number in range(count)))


def threads() -> float:
    def bare() -> None:
        with ThreadPoolExecutor(THREADS) as executor:
            list(executor.map(noop, range(BRANCHES)))

    return compare(_group(lambda: None).run, bare, rounds=30)


def tasks() -> float:
    group = _group(async_noop)

    async def gathered() -> None:
        await asyncio.gather(*(async_noop() for _ in range(BRANCHES)))

    with asyncio.Runner() as runner:
        return compare(lambda: runner.run(group.arun()), lambda: runner.run(gathered()), rounds=60)


def evaluation() -> float:
    """What of it is neither threads nor tasks: a group in one thread, to the loop."""
    group, executor = _group(lambda: None), serial()
    return ratio(lambda: group.run(executor=executor), BRANCHES, rounds=30)


def to_a_row() -> float:
    """A group against a row of the same stages."""
    group, executor = _group(lambda: None), serial()
    return compare(lambda: group.run(executor=executor), pipeline(*group.units).run, rounds=30)


def burn(rounds: int) -> int:
    """Keep a processor busy."""
    total = 0
    for number in range(rounds):
        total += number * number
    return total


burning = action(burn, collect="totals")


def processes() -> float:
    """How many times as fast two processes are; each slice is measured beside one in this process."""
    rounds = int(CPU_SECONDS * 100_000 / seconds(lambda: burn(100_000)))
    branches = [burning] * CPU_BRANCHES
    row, group = pipeline(*branches), parallel(*branches)
    with ProcessPoolExecutor(PROCESSES) as executor:
        group.run({"rounds": rounds}, executor=executor)  # the processes are there
        return 1 / compare(
            lambda: group.run({"rounds": rounds}, executor=executor), lambda: row.run({"rounds": rounds}), rounds=6
        )


def without_groups() -> float:
    """A pipeline without groups, after groups have run in the same process as before: nothing is left behind."""
    stage = Stage("s", [action(name="noop")(lambda: None)] * 2000)
    before = ratio(stage.run, 2000)
    _group(lambda: None, 10).run()
    asyncio.run(_group(async_noop, 10).arun())
    return ratio(stage.run, 2000) / before


ROWS = [
    Row("no-op action without groups, after groups ran to before", 1.1, False, without_groups),
    Row("branch on serial(), to the loop", 50, False, evaluation),  # 15 us where that takes 0.3
    Row("branch in a thread, to ThreadPoolExecutor.map", 1.5, False, threads),
    Row("branch in the event loop, to asyncio.gather (no budget)", float("inf"), False, tasks),
    Row("branch on serial(), to a stage of a row (no budget)", float("inf"), False, to_a_row),
    Row("CPU-bound branches of 50 ms: speed-up on 2 processes", 1.7, True, processes),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only rows that contain one of these words")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row misses its budget")
    options = parser.parse_args()
    missed = 0
    print(f"the loop: {loop_seconds() * 1e6:.3f} us for each item, now")
    for row in ROWS:
        if options.words and not any(word in row.what for word in options.words):
            continue
        found = row.measure()
        bad = found < row.limit if row.least else found > row.limit
        missed += bad
        verdict = ("SHORT" if row.least else "OVER") if bad else "PASS"
        print(f"{verdict:5} {row.what:56} {found:6.2f} x ({'at least' if row.least else 'budget'} {row.limit:g} x)")
        sys.stdout.flush()
    print(f"{missed} missed" if missed else "all within budget")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
