"""What it costs to watch a run: `python tests/benchmarks/progress.py [--strict] [WORD ...]`.

A run of actions of one millisecond, in stages of one, with and without `progress=`, in slices that lie next to each
other: plain, watched, plain; what is reported is the median of the ratios. The actions compute, so that
whatever the display does is added to them, and what counts is the CPU time of the whole process: the thread that draws,
and what the terminal makes of it in the kernel, included. The display is drawn in a pseudo-terminal that `cat` reads.

Words select rows; with `--strict` the exit code is 1 if a row misses its budget.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import statistics
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from time import perf_counter, process_time
from typing import Any, NamedTuple

from measure import no_collection

from flowdeco import Stage, action, parallel, pipeline

ACTIONS = 150
ROUNDS = 41
BUDGET = 1.05


class Row(NamedTuple):
    """One way to watch: what it is, and the context in which `progress` is shown."""

    what: str
    progress: Callable[[], Any]
    stream: Callable[[], Any]
    flow: Any


@contextmanager
def terminal() -> Iterator[None]:
    """Have the errors go to a pseudo-terminal, which somebody reads."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with subprocess.Popen(["cat"], stdin=master, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        os.close(master)
        before = {name: os.environ.get(name) for name in ("TERM", "COLUMNS", "LINES")}
        os.environ["TERM"] = "xterm-256color"
        with os.fdopen(slave, "w") as stream, redirect_stderr(stream):
            assert stream.isatty()
            yield
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        reader.terminate()


@contextmanager
def file() -> Iterator[None]:
    """Have the errors go to a file."""
    with redirect_stderr(io.StringIO()):
        yield


def burn(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number * number
    return total


def rounds_of_a_millisecond() -> int:
    found: list[float] = []
    for _ in range(20):
        begun = perf_counter()
        burn(10_000)
        found.append(perf_counter() - begun)
    return int(10_000 * 0.001 / min(found))


def flows() -> tuple[Any, Any, Any]:
    """Stages in a row, stages that are inserted, and branches of a group: each of one action of a millisecond."""
    rounds = rounds_of_a_millisecond()

    @action
    def busy() -> None:
        burn(rounds)

    stages = [Stage(f"stage {number}", [busy]) for number in range(ACTIONS)]

    @action
    def insert() -> list[Stage]:
        return stages

    branches = parallel(*(pipeline(*stages[k::4], name=f"part {k}") for k in range(4)), name="group")
    return pipeline(*stages), pipeline(insert), pipeline(branches)


def ratio(row: Row) -> tuple[float, float]:
    """Return the ratio of CPU time, and that of time on the clock."""

    def spent(progress: Any) -> tuple[float, float]:
        begun = process_time(), perf_counter()
        row.flow.run(progress=progress)
        return process_time() - begun[0], perf_counter() - begun[1]

    with row.stream(), no_collection():
        spent(row.progress())
        found: list[tuple[float, float]] = []
        before = spent(None)
        for _ in range(ROUNDS):
            watched = spent(row.progress())
            after = spent(None)
            found.append((2 * watched[0] / (before[0] + after[0]), 2 * watched[1] / (before[1] + after[1])))
            before = after
    cpu, clock = zip(*found, strict=True)
    return statistics.median(cpu), statistics.median(clock)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only rows that contain one of these words")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row misses its budget")
    options = parser.parse_args()
    static, dynamic, group = flows()
    rows = [
        Row("live display in a terminal, static stages", lambda: True, terminal, static),
        Row("live display in a terminal, inserted stages", lambda: True, terminal, dynamic),
        Row("live display in a terminal, four branches", lambda: True, terminal, group),
        Row("lines in a file", lambda: True, file, static),
        Row("a function", lambda: lambda done, known, current: None, file, static),
    ]
    missed = 0
    for row in rows:
        if options.words and not any(word in row.what for word in options.words):
            continue
        cpu, clock = ratio(row)
        bad = cpu > BUDGET
        missed += bad
        verdict = "OVER" if bad else "PASS"
        print(f"{verdict:5} {row.what:46} {cpu:6.3f} x (budget {BUDGET:g} x); {clock:.3f} x on the clock")
        sys.stdout.flush()
    print(f"{missed} missed" if missed else "all within budget")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
