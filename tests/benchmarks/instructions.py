"""The budgets in instructions instead of time: `python tests/benchmarks/instructions.py [--tree FOLDER] [WORD ...]`.

Valgrind (Debian's `valgrind`) counts them, for the rows of `budgets.py` and `groups.py` that are ratios to the loop. The
figures are the same to half a percent, whatever else the machine does: so they tell what a change costs. They are not
times, which depend on caches and branch prediction as well: large candidates take longer than these ratios say. With
`--tree` the flowdeco of another clone is measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import budgets
import groups
import measure

ITEMS = 10_000  # that are counted at least
LOOP = "the loop"
ROWS: dict[str, Callable[[], float]] = {
    LOOP: lambda: budgets.ratio(measure.loop, measure.SLICE),
    **{row.what: row.measure for row in budgets.ROWS if row.unit == "x" and not row.what.startswith("flatness")},
    "branch on serial(), to the loop": groups.evaluation,
}


def perform(what: str, part: str, count: int) -> None:
    """Run a row's candidate, or what is to be subtracted, once it is warm, for so many items; print how many they were."""

    def ratio(
        candidate: Callable[[], object], items: int, *, rounds: int = 0, less: Callable[[], object] | None = None
    ) -> float:
        run, times = less if part == "less" else candidate, -(-count // items)
        if run is not None:
            run()
            run()
            gc.collect()
            gc.disable()
            for _ in range(times):
                run()
        print(times * items, less is not None)
        return 0.0

    budgets.ratio = groups.ratio = ratio
    ROWS[what]()


def counted(what: str, tree: str, part: str, count: int) -> tuple[int, int, bool]:
    """Return the instructions of a process that does this, the number of items, and whether something is to be subtracted."""
    command = [sys.executable, __file__, "--perform", part, "--count", str(count), what]
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command]
    environment = {**os.environ, "PYTHONPATH": tree, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(valgrind, check=True, capture_output=True, text=True, env=environment)
    items, has_less = done.stdout.split()
    return int(done.stderr.rpartition("Collected : ")[2].split()[0]), int(items), has_less == "True"


def instructions(what: str, tree: str, part: str = "candidate") -> float:
    """Return the instructions of one item of a row."""
    before, _, has_less = counted(what, tree, part, 0)
    after, items, _ = counted(what, tree, part, ITEMS)
    return (after - before) / items - (instructions(what, tree, "less") if has_less and part != "less" else 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="count only rows that contain one of these words")
    parser.add_argument("--tree", default=str(Path(__file__).parents[2]), help="a clone (this one)")
    parser.add_argument("--perform", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.perform:
        perform(options.words[0], options.perform, options.count)
        return 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PYTHONPYCACHEPREFIX"] = cache
        counted(LOOP, options.tree, "candidate", 0)  # compiles what is imported
        loop = instructions(LOOP, options.tree)
        print(f"{LOOP:56} {loop:9,.0f} instructions")
        for what in ROWS:
            if what != LOOP and (not options.words or any(word in what for word in options.words)):
                found = instructions(what, options.tree)
                print(f"{what:56} {found:9,.0f} {found / loop:7.2f} x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
