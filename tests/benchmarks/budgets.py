"""The budgets of the design, all but the durable one: `python tests/benchmarks/budgets.py [--strict] [WORD ...]`.

One row each, as a ratio to the bare loop (see `measure`), with its limit. Words select rows; with `--strict` the exit
code is 1 if a row is over.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from measure import Pulse, cpu_seconds, fastest_import, loop_seconds, peak_memory, ratio

from flowdeco import Context, Stage, action, parallel, pipeline, stage, stream
from flowdeco.executors import serial

N = 1000  # items in a slice
MANY = 1_000_000
MANY_BRANCHES = 100_000
MEBIBYTE = 2**20
HISTORY = 100


class Row(NamedTuple):
    """One budget: what is measured, its limit, the unit, and how it is measured."""

    what: str
    limit: float
    unit: str
    measure: Callable[[], float]


def noop() -> None:
    """Do nothing."""


NOOP = action(noop)
ONE = Stage("one", [NOOP])


def actions() -> float:
    return ratio(Stage("s", [NOOP] * N).run, N)


def observed() -> float:
    unit = Stage("s", [NOOP] * N)
    return ratio(lambda: unit.run(observers=[lambda event: None]), N)


def with_context() -> float:
    @action
    def asks(ctx: Context) -> None:
        return None

    return ratio(Stage("s", [asks] * N).run, N)


def read_and_write() -> float:
    @action(returns="y")
    def transfer(x: int) -> int:
        return x

    unit = Stage("s", [transfer] * N)
    return ratio(lambda: unit.run({"x": 1}), N)


def static() -> float:
    return ratio(pipeline(*[ONE] * N).run, N)


def inserted() -> float:
    many = [ONE] * N
    return ratio(action(name="insert")(lambda: many).run, N)


def streamed() -> float:
    return ratio(action(name="insert")(lambda: stream(itertools.repeat(ONE, N))).run, N)


def looped() -> float:
    countdown = itertools.cycle([*range(1, N), 0])
    again = Stage("again", [action(name="again")(lambda: again if next(countdown) else None)])
    return ratio(again.run, N)


def nested() -> float:
    def inserting(inner: Stage) -> Stage:
        return Stage("nested", [action(name="insert")(lambda: inner)])

    chain = ONE
    for _ in range(N):
        chain = inserting(chain)
    return ratio(chain.run, N)


def template() -> float:
    @stage
    def process(kind: int) -> None:
        @action
        def handle() -> int:
            return kind

    return ratio(lambda: [process(kind) for kind in range(200)], 200)


def inserted_template() -> float:
    @stage
    def process(kind: int) -> None:
        @action(collect="numbers")
        def handle() -> int:
            return kind

    return ratio(action(name="insert")(lambda: [process(kind) for kind in range(N)]).run, N)


def inserted_rich_template() -> float:
    @stage(tags=["dynamic"])
    def process(kind: int) -> None:
        @action(tags=["slow"])
        def read(ctx: Context) -> int:
            return kind

        @action(collect="numbers")
        def handle(read: int) -> int:
            return read

    insert = action(name="insert")(lambda: [process(kind) for kind in range(N)])
    return ratio(lambda: insert.run(observers=[lambda event: None]), N)


def layer() -> float:
    def middleware(call: Any) -> Generator[None, Any, None]:
        yield

    bare = Stage("s", [NOOP] * N)
    return ratio(bare.with_options(use_actions=[middleware]).run, N, less=bare.run)


# Flatness: what an item costs in a run of a million, to what it costs in one of a thousand.


def _in_a_row(count: int, pulse: Pulse) -> float:
    """Insert so many stages at once; what the insertion itself takes is shared out among them."""
    one = Stage("one", [action(name="pulse")(pulse.__call__)])

    @action
    def insert() -> list[Stage]:
        many = [begun, *[one] * count]
        pulse.start()
        return many

    begun = Stage("begun", [action(name="begun")(lambda: pulse.mark(count))])
    insert.run(history=HISTORY)
    at_once, *blocks = pulse.ratios
    return at_once + sum(blocks) / len(blocks)


def _nested(count: int, pulse: Pulse) -> float:
    """Let each stage insert the next one."""
    left = iter(range(count))

    def insert() -> Stage | None:
        pulse()
        return next(stages) if next(left, None) is not None else None

    stages: Iterator[Stage] = itertools.cycle(
        [Stage(f"stage {number}", [action(name="insert")(insert)]) for number in range(100)]
    )
    for _ in range(2):  # the first time, signatures are read
        pulse.start()
        left = iter(range(count))
        next(stages).run(history=HISTORY)
    return sum(pulse.ratios) / len(pulse.ratios)


def _flatness(run: Callable[[int, Pulse], float]) -> float:
    short = sorted(run(1000, Pulse()) for _ in range(31))[15]
    return run(MANY, Pulse()) / short


# Memory: the peak of a million above that of a thousand.

_STREAMED = """
from flowdeco import Context, Stage, action, stream
one = Stage("one", [action(name="noop")(lambda: None)])
action(name="insert")(lambda: stream(one for _ in range({count}))).run(history=100)
"""
_LOOPED = """
from flowdeco import Stage, action
left = iter(range({count}))
again = Stage("again", [action(name="again")(lambda: again if next(left, None) is not None else None)])
again.run(history=100)
"""


_BRANCHED = """
from flowdeco import action, parallel, stream
from flowdeco.executors import serial
noop = action(name="noop")(lambda: None)
parallel(stream(lambda: (noop for _ in range({count}))), limit=16).run(history=100, executor=serial())
"""


def branch_flatness() -> float:
    """Return the time of a branch of 10^5 streamed ones, in that of one of 10^3: medians of CPU time."""
    noop = action(name="noop")(lambda: None)

    def each(count: int) -> float:
        group = parallel(stream(lambda: (noop for _ in range(count))), limit=16)
        return cpu_seconds(lambda: group.run(history=100, executor=serial())) / count

    return each(MANY_BRANCHES) / statistics.median(each(1000) for _ in range(31))


def _memory(source: str, many: int = MANY) -> float:
    return (peak_memory(source.format(count=many)) - peak_memory(source.format(count=1000))) / MEBIBYTE


def import_time(names: str) -> float:
    return fastest_import(f"from flowdeco import {names}", after=("wrapt", "typing_extensions")) * 1000


ROWS = [
    Row("no-op action in a stage", 5, "x", actions),
    Row("action that reads one key and writes one", 6, "x", read_and_write),
    Row("no-op action with an observer", 10, "x", observed),
    Row("no-op action that asks for the context", 25, "x", with_context),
    Row("stage with one action, static", 14, "x", static),
    Row("stage with one action, inserted", 14, "x", inserted),
    Row("stage with one action, streamed", 20, "x", streamed),
    Row("stage with one action, loop (returns itself)", 20, "x", looped),
    Row("stage with one action, nested (inserts the next)", 20, "x", nested),
    Row("calling a stage template", 30, "x", template),
    Row("stage of a template, with call, wiring, run, collect", 50, "x", inserted_template),
    Row("stage of a template: observer, Context, tags, 2 actions", 250, "x", inserted_rich_template),
    Row("one middleware layer around an action, more", 8, "x", layer),
    Row("flatness in a row: item of 10^6 to item of 10^3", 1.25, "x", lambda: _flatness(_in_a_row)),
    Row("flatness nested: item of 10^6 to item of 10^3", 1.25, "x", lambda: _flatness(_nested)),
    Row("memory of 10^6 streamed stages above 10^3", 5, "MiB", lambda: _memory(_STREAMED)),
    Row("memory of 10^6 loop iterations above 10^3", 5, "MiB", lambda: _memory(_LOOPED)),
    Row("flatness of branches: one of 10^5 streamed to one of 10^3", 1.25, "x", branch_flatness),
    Row("memory of 10^5 streamed branches above 10^3", 5, "MiB", lambda: _memory(_BRANCHED, MANY_BRANCHES)),
    Row("from flowdeco import action, above its dependencies", 15, "ms", lambda: import_time("action")),
    Row("from flowdeco import *, above its dependencies", 15, "ms", lambda: import_time("*")),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only rows that contain one of these words")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row is over its budget")
    options = parser.parse_args()
    over = 0
    print(f"the loop: {loop_seconds() * 1e6:.3f} us for each item, now")
    for row in ROWS:
        if options.words and not any(word in row.what for word in options.words):
            continue
        found = row.measure()
        over += found > row.limit
        verdict = "OVER" if found > row.limit else "PASS"
        print(f"{verdict}  {row.what:50} {found:7.2f} {row.unit:3} (budget {row.limit:g} {row.unit})", flush=True)
    print(f"{over} over budget" if over else "all within budget")
    return 1 if over and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
