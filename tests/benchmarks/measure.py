"""Ratios to a bare loop, on a machine whose speed changes while one looks.

A time means nothing where the clock of the CPU halves and doubles within a second. So nothing is compared but slices of
a few milliseconds that lie next to each other: a slice of the loop, a slice of the candidate, a slice of the loop again.
Each such triple gives a ratio; what is reported is their median. It is of CPU time: what others do on the machine
meanwhile does not count.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Any

SLICE = 1000  # items of the loop in one slice: about 0.2 ms


def _read(x: int) -> None:
    return None


_store = {"x": 1}
_plan: list[tuple[Callable[..., Any], tuple[str, ...]]] = [(_read, ("x",))] * SLICE


def loop() -> None:
    """What one would write by hand: the unit in which everything is measured."""
    store = _store
    for fn, keys in _plan:
        fn(**{k: store[k] for k in keys})


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    begun = perf_counter()
    function()
    return perf_counter() - begun


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time that one call takes in this thread."""
    begun = thread_time()
    function()
    return thread_time() - begun


def loop_seconds() -> float:
    """Return what one item of the loop takes just now."""
    return min(cpu_seconds(loop), cpu_seconds(loop)) / SLICE


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from running in a slice; its share is part of the long runs instead."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratio(
    candidate: Callable[[], object], items: int, *, rounds: int = 60, less: Callable[[], object] | None = None
) -> float:
    """Return what one item of the candidate costs, in items of the loop; `less` is run alike, and subtracted."""
    candidate(), less and less()
    found: list[float] = []
    with no_collection():
        before = loop_seconds()
        for _ in range(rounds):
            spent = cpu_seconds(candidate)
            if less is not None:
                spent -= cpu_seconds(less)
            after = loop_seconds()
            found.append(spent / items / ((before + after) / 2))
            before = after
    return statistics.median(found)


class Pulse:
    """Called once for each item of a long run: measures blocks of items against the loop while the run goes on.

    So the ratio of a run of many seconds is as independent of the machine's mood as that of a short one. Take the mean of
    the blocks, not the median: a collection of garbage falls into few of them, and counts.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget what was measured; the first block begins."""
        self.ratios: list[float] = []
        self._left = SLICE
        self._base = loop_seconds()
        self._since = thread_time()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._left = SLICE
            self.mark(SLICE)

    def mark(self, items: int) -> None:
        """End a block in which so many items were done, and begin the next one."""
        spent = thread_time() - self._since
        base = loop_seconds()
        self.ratios.append(spent / items / ((self._base + base) / 2))
        self._base = base
        self._since = thread_time()


def peak_memory(source: str) -> int:
    """Return the peak memory of a fresh interpreter that runs this source, in bytes."""
    return int(_fresh(source + _PEAK))


def fastest_import(statement: str, *, after: tuple[str, ...], runs: int = 25) -> float:
    """Return how long an import takes in a fresh interpreter that has imported these modules, in seconds.

    Its bytecode is cached, as that of an installed package is, whatever the environment says.
    """
    source = (
        f"import {', '.join(after)}\nfrom time import perf_counter\n"
        f"begun = perf_counter()\n{statement}\nprint(perf_counter() - begun)"
    )
    with tempfile.TemporaryDirectory() as cache:
        cached = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
        return min(float(_fresh(source, cached)) for _ in range(runs))


_PEAK = """
try:
    with open("/proc/self/status") as status:  # the peak of this program, not of the one that started it
        print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
except OSError:
    import resource, sys
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)
"""


def _fresh(source: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", source]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def fastest_commands(*commands: list[str], runs: int = 15) -> list[float]:
    """Return how long each of these command lines of Python takes, in seconds of CPU time; they take turns."""
    found: list[list[float]] = [[] for _ in commands]
    with tempfile.TemporaryDirectory() as cache:
        cached = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
        for _ in range(runs):
            for command, times in zip(commands, found, strict=True):
                process = subprocess.Popen([sys.executable, *command], env=cached, stdout=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                times.append(usage.ru_utime + usage.ru_stime)
    return [min(times) for times in found]
