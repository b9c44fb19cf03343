"""What large values cost in durable runs: `python tests/benchmarks/values.py [--strict] [WORD ...]`.

Budgets (design, section 8): an action that reads an array of 100 MB takes at most 15 ms with xxhash, 120 ms without it, and
the run at most 1.3 x the memory of the array. Times are CPU time, the best of three; memory is what Python allocates beyond
the array, at its peak. Words select rows; with `--strict` the exit code is 1 if a row is over.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowdeco import Stage, action, pipeline
from flowdeco.durable import digests
from flowdeco.middleware import cached

SIZE = 100_000_000
READERS = 10


class Row(NamedTuple):
    """One budget: what is measured, its limit, the unit, and how it is measured."""

    what: str
    limit: float | None
    unit: str
    measure: Callable[[Path], float]


def array() -> Any:
    return np.random.default_rng(0).random(SIZE // 8)


def readers(count: int) -> Any:
    def read(big: Any) -> float:
        return float(big[0])

    return Stage("read", [action(read).with_options(name=f"read{n}") for n in range(count)])


def timed(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1e3


def reads(with_xxhash: bool) -> Callable[[Path], float]:
    """Measure an action that reads the array, in milliseconds."""

    def measure(folder: Path) -> float:
        big = array()
        sys.modules.pop("xxhash", None)
        if not with_xxhash:
            sys.modules["xxhash"] = None  # type: ignore[assignment]
        digests.hasher.cache_clear()
        try:
            if with_xxhash and digests.hasher()[0] != "xxh3":
                return float("nan")
            found: list[float] = []
            for turn in range(3):
                path = str(folder / f"{with_xxhash}{turn}.db")
                readers(0).run({"big": big}, journal=path, run_id="warm")
                none = timed(lambda: readers(0).run({"big": big}, journal=path, run_id="none"))
                ten = timed(lambda: readers(READERS).run({"big": big}, journal=path, run_id="ten"))
                found.append((ten - none) / READERS)
            return min(found)
        finally:
            sys.modules.pop("xxhash", None)
            digests.hasher.cache_clear()

    return measure


def peak(call: Callable[[Any], object]) -> float:
    """Return the memory at the peak of a call that is given the array, in sizes of the array."""
    big = array()
    tracemalloc.start()
    try:
        call(big)
        return 1 + tracemalloc.get_traced_memory()[1] / SIZE
    finally:
        tracemalloc.stop()


def memory(folder: Path) -> float:
    """Measure a run that writes the array to its journal, and reads it ten times."""
    return peak(lambda big: readers(READERS).run({"big": big}, journal=str(folder / "memory.db")))


def runs(folder: Path) -> float:
    """Measure a run with an input of 100 MB that the journal has, in milliseconds."""
    big, path = array(), str(folder / "runs.db")
    readers(0).run({"big": big}, journal=path)
    return min(timed(lambda: readers(0).run({"big": big}, journal=path)) for _ in range(10))


def growth(folder: Path) -> float:
    """Measure the file after 1,000 runs with one input of 10 MB, in sizes of the input."""
    big, path = array()[: SIZE // 80], folder / "growth.db"
    for n in range(1000):
        readers(0).run({"big": big, "n": n}, journal=str(path))
    return path.stat().st_size / (SIZE / 10)


def hits(size: int) -> Callable[[Path], float]:
    """Measure an action whose outcome of this size is cached, in milliseconds."""

    def measure(folder: Path) -> float:
        def make(n: int) -> bytes:
            return bytes(size)

        flow = pipeline(action(make, use=[cached(folder / f"cache{size}")]))
        flow.run({"n": 1})
        return min(timed(lambda: flow.run({"n": 1})) for _ in range(5))

    return measure


ROWS = [
    Row("an action that reads 100 MB, with xxhash", 15, "ms", reads(True)),
    Row("an action that reads 100 MB, without", 120, "ms", reads(False)),
    Row("memory of a run that reads 100 MB", 1.3, "x", memory),
    Row("a run with a known input of 100 MB", None, "ms", runs),
    Row("file of 1,000 runs with one input", 1.3, "x", growth),
    Row("a cached outcome of 10 bytes", None, "ms", hits(10)),
    Row("a cached outcome of 100 MB", None, "ms", hits(SIZE)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    over = False
    for row in ROWS:
        if options.words and not any(word in row.what for word in options.words):
            continue
        with tempfile.TemporaryDirectory(dir=".") as folder:
            found = row.measure(Path(folder))
        is_over = row.limit is not None and found > row.limit
        over |= is_over
        verdict = "" if row.limit is None else "OVER" if is_over else "PASS" if found == found else "not installed"
        limit = "" if row.limit is None else f"<= {row.limit:g}"
        print(f"{row.what:45} {found:9.2f} {row.unit:2} {limit:8} {verdict}", flush=True)
    return int(over and options.strict)


if __name__ == "__main__":
    sys.exit(main())
