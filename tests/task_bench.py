"""The patterns of Task Bench as flows: each row a parallel group, whose points read values of the row before by key.

At module level, so that journals and other processes can refer to it. There are four ways to write a row, which come to the
same: stages of a template that read the store, stages of a template whose parameters name their keys, the same action bound
to other values, and coroutines.
"""

import json
import os
import signal
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from flowdeco import Context, action, parallel, pipeline, stage

PATTERNS = json.loads((Path(__file__).parent / "data/taskbench/dependences.json").read_text())
CALLS = []  # the points that were computed, in this process
ENDING = []  # how to end at one of the next calls: [number of calls left, function]


def key(row, point):
    """Where a value is stored."""
    return f"row{row}.p{point}"


def value(row, point, inputs):
    """Return the value of a point."""
    CALLS.append(key(row, point))
    if ENDING:
        ENDING[0] -= 1
        if ENDING[0] < 0:
            end = ENDING.pop()
            ENDING.clear()
            end()
    return sha256("\n".join([key(row, point), *inputs]).encode()).hexdigest()


@stage
def reading(row, point, inputs):
    @action(returns=key(row, point))
    def compute(ctx: Context) -> str:
        return value(row, point, [ctx.store[key(row - 1, number)] for number in inputs])


@stage
def awaiting(row, point, inputs):
    @action(returns=key(row, point))
    async def compute(ctx: Context) -> str:
        return value(row, point, [ctx.store[key(row - 1, number)] for number in inputs])


@stage
def naming(row, point, inputs):
    """One action for each number of inputs: up to three."""
    keys = [key(row - 1, number) for number in inputs]

    if len(keys) == 0:

        @action(returns=key(row, point))
        def of_none() -> str:
            return value(row, point, [])

    elif len(keys) == 1:

        @action(returns=key(row, point))
        def of_one(a: Annotated[str, keys[0]]) -> str:
            return value(row, point, [a])

    elif len(keys) == 2:

        @action(returns=key(row, point))
        def of_two(a: Annotated[str, keys[0]], b: Annotated[str, keys[1]]) -> str:
            return value(row, point, [a, b])

    else:

        @action(returns=key(row, point))
        def of_three(a: Annotated[str, keys[0]], b: Annotated[str, keys[1]], c: Annotated[str, keys[2]]) -> str:
            return value(row, point, [a, b, c])


@action
def any_point(row: int, point: int, inputs: list[int], ctx: Context) -> str:
    return value(row, point, [ctx.store[key(row - 1, number)] for number in inputs])


def binding(row, point, inputs):
    bound = any_point.bind(row=row, point=point, inputs=inputs)
    return bound.with_options(name=key(row, point), returns=key(row, point))


FORMS = {form.__name__: form for form in (reading, awaiting, naming, binding)}


def flow(pattern, form):
    """Return a pattern as a pipeline of groups."""
    return pipeline(
        *(
            parallel(*(FORMS[form](row, point, inputs) for point, inputs in points), name=f"row {row}")
            for row, points in enumerate(PATTERNS[pattern])
        )
    )


def expected(pattern):
    """Return all values of a pattern: row by row, in a loop."""
    values = {}
    for row, points in enumerate(PATTERNS[pattern]):
        for point, inputs in points:
            parts = [key(row, point), *(values[key(row - 1, number)] for number in inputs)]
            values[key(row, point)] = sha256("\n".join(parts).encode()).hexdigest()
    return values


def until_killed(folder, pattern, form, calls):
    """Start or continue the run of a pattern, and die at one of the next calls; return the store, and what was called."""
    CALLS.clear()
    ENDING[:] = [] if calls is None else [calls, lambda: os.kill(os.getpid(), signal.SIGKILL)]
    run = flow(pattern, form).run(journal=f"{folder}/runs.db", run_id="r", if_exists="resume")
    return dict(run.store), CALLS
