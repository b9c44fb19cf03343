"""What it costs to watch a run: `python tests/benchmarks/progress.py [--strict] [WORD ...]`.

A run of actions of one millisecond, in stages of ten or, what costs most, of one, with and without `progress=`. What is
compared is the CPU time of the whole process: the thread that draws, and what the terminal makes of it in the kernel,
included. The speed of the machine changes while one looks; so each run is measured against what its own actions took,
which compute, and the medians of that are compared. The display is drawn in a pseudo-terminal that `cat` reads.

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
from time import perf_counter, process_time, thread_time
from typing import Any, NamedTuple

from measure import no_collection

from flowdeco import Stage, action, parallel, pipeline

ACTIONS = 400
TEN = 10
ROUNDS = 15
BUDGET = 1.05
BURNED: list[float] = []  # seconds, by the actions of a run


class Row(NamedTuple):
    """One way to watch: what it is, and the context in which `progress` is shown."""

    what: str
    progress: Callable[[], Any]
    stream: Callable[[], Any]
    flow: Any
    budget: float = BUDGET


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


def flows() -> tuple[Any, Any, Any, Any]:
    """Stages of ten actions, stages of one action: in a row, inserted, in branches of a group."""
    rounds = rounds_of_a_millisecond()

    @action
    def busy() -> None:
        begun = thread_time()
        burn(rounds)
        BURNED.append(thread_time() - begun)

    stages = [Stage(f"stage {number}", [busy]) for number in range(ACTIONS)]

    @action
    def insert() -> list[Stage]:
        return stages

    branches = parallel(*(pipeline(*stages[k::4], name=f"part {k}") for k in range(4)), name="group")
    ten = pipeline(*(Stage(f"stage {number}", [busy] * TEN) for number in range(ACTIONS // TEN)))
    return ten, pipeline(*stages), pipeline(insert), pipeline(branches)


def ratio(row: Row) -> float:
    """Return how much more CPU time a watched run takes than a plain one."""

    def share(progress: Any) -> float:
        BURNED.clear()
        begun = process_time()
        row.flow.run(progress=progress)
        return (process_time() - begun) / sum(BURNED)

    with row.stream(), no_collection():
        share(row.progress()), share(None)
        watched, plain = zip(*((share(row.progress()), share(None)) for _ in range(ROUNDS)), strict=True)
    return statistics.median(watched) / statistics.median(plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only rows that contain one of these words")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row misses its budget")
    options = parser.parse_args()
    ten, static, dynamic, group = flows()
    rows = [
        Row("nothing: what is measured for no progress", lambda: None, file, static, float("inf")),
        Row("live display in a terminal, stages of ten actions", lambda: True, terminal, ten),
        Row("live display in a terminal, stages of one action", lambda: True, terminal, static),
        Row("live display in a terminal, inserted stages", lambda: True, terminal, dynamic),
        Row("live display in a terminal, four branches", lambda: True, terminal, group),
        Row("lines in a file", lambda: True, file, static),
        Row("a function", lambda: lambda done, known, current: None, file, static),
    ]
    missed = 0
    for row in rows:
        if options.words and not any(word in row.what for word in options.words):
            continue
        found = ratio(row)
        bad = found > row.budget
        missed += bad
        verdict = "OVER" if bad else "PASS"
        print(f"{verdict:5} {row.what:50} {found:6.3f} x (budget {row.budget:g} x)")
        sys.stdout.flush()
    print(f"{missed} missed" if missed else "all within budget")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
