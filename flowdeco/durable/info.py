"""The description of a run, for those who list runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from flowdeco.engine.journal import Row

__all__ = ["STATUSES", "RunInfo", "Step", "steps"]

STATUSES: Final = frozenset({"running", "completed", "failed", "bailed", "suspended", "cancelled", "damaged"})
_OPEN: Final = frozenset({"failed", "suspended", "cancelled"})


class RunInfo(NamedTuple):
    """A run of a journal: times in POSIX seconds, `steps` the number of saved steps.

    `owner` is the process that works on it, None where none does: a run that is `running` without one has crashed.
    `error` is the type and message of the exception that it failed with.
    `entry` is where its pipeline is found, if the journal that began it was given one; `codec` the codec of its steps.
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
    """A stage of a journal, with the rows of its actions; `row` is None where the stage has not finished."""

    name: str
    row: Row | None
    actions: list[Row]

    def is_resumed_by(self, action: Row) -> bool:
        """Whether an action that was written after the end of the stage is the next one in it: the stage had failed."""
        row = self.row
        expected = row is not None and row.number + len(self.actions) + 1
        return row is not None and row.status in _OPEN and row.stage == action.stage and action.number == expected


def steps(rows: Iterable[Row]) -> list[Step]:
    """Return the stages of a history, in the order in which they finished, unfinished ones last."""
    found: list[Step] = []
    open: defaultdict[str, list[Row]] = defaultdict(list)
    last: dict[str, Step] = {}
    for row in rows:
        if row.kind == "action":
            before = last.get(row.branch)
            if before is not None and before.is_resumed_by(row):
                found.remove(last.pop(row.branch))
                open[row.branch] = before.actions
            open[row.branch].append(row)
        elif row.kind == "stage":
            last[row.branch] = Step(row.stage, row, open.pop(row.branch, []))
            found.append(last[row.branch])
    found.extend(Step(actions[0].stage, None, actions) for actions in open.values())
    return found
