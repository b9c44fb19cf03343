"""What is told of a run without taking it up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from flowdeco.engine.journal import Row

__all__ = ["STATUSES", "RunInfo", "Step", "steps"]

STATUSES: Final = frozenset({"running", "completed", "failed", "bailed", "suspended", "cancelled", "damaged"})


class RunInfo(NamedTuple):
    """A run of a journal: times in POSIX seconds, `steps` that are saved.

    `owner` is the process that works on it, None where none does: a run that is `running` without one has crashed.
    Behind `error` stands where that came from, in a line for each place: "in action 'upload' of stage 'publish'".
    `entry` is where its pipeline is found, if whoever began it said so; `codec` what its steps are written in.
    """

    id: str
    pipeline: str
    status: str
    reason: str | None
    started: float
    updated: float
    steps: int
    error: str | None = None
    owner: str | None = None
    entry: str | None = None
    codec: str = "pickle"


class Step(NamedTuple):
    """A stage of a journal, with the rows of its actions; `row` is None where the stage is not over."""

    name: str
    row: Row | None
    actions: list[Row]


def steps(rows: Iterable[Row]) -> list[Step]:
    """Return the stages that rows tell of, in the order in which they were over, those that are not over last."""
    found: list[Step] = []
    open: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind == "action":
            open[row.branch].append(row)
        elif row.kind == "stage":
            found.append(Step(row.stage, row, open.pop(row.branch, [])))
    found.extend(Step(actions[0].stage, None, actions) for actions in open.values())
    return found
