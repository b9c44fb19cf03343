"""What is known of an earlier attempt at a run, and consumed while the walk comes by again.

A resumed run is evaluated from its beginning, by the same law of order. Where the past has a step, the step is restored
instead of performed: what it wrote, inserted and decided takes effect again. Where the past ends, the run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flowdeco.definitions import UNSET
from flowdeco.runs import ActionRecord, StageRecord, Status
from flowdeco.store import Delta, Store

__all__ = ["Closed", "Did", "Past", "StagePast", "Trace"]


class Did(NamedTuple):
    """An action that is over; `delta` is None where the store has its writes already."""

    record: ActionRecord
    delta: Delta | None = None
    result: Any = UNSET
    fingerprint: str = ""


class Closed(NamedTuple):
    """What the middleware of a stage or pipeline wrote and inserted at its end."""

    delta: Delta | None
    inserted: tuple[Any, ...] = ()


class StagePast:
    """A stage that had begun: its actions that are over, and its record, if it is over itself."""

    __slots__ = ("actions", "closed", "name", "record")

    def __init__(
        self, name: str, actions: Iterable[Did], record: StageRecord | None = None, closed: Closed | None = None
    ) -> None:
        self.name = name
        self.actions = deque(actions)
        self.record = record
        self.closed = closed


class Past:
    """The past of one branch: its stages in order, and the pipelines and groups in it, by the order of their opening."""

    __slots__ = ("closed", "forks", "stages", "store")

    def __init__(
        self,
        stages: Iterable[StagePast],
        closed: dict[int, Closed],
        forks: dict[tuple[int, int], Past],
        store: Store | None = None,
    ) -> None:
        self.stages = deque(stages)
        self.closed = closed
        self.forks = forks
        self.store = store

    def take(self, name: str) -> StagePast | None:
        """Return the next stage if it has this name."""
        return self.stages.popleft() if self.stages and self.stages[0].name == name else None

    def skip(self, name: str) -> None:
        """Pass over a stage that was skipped."""
        if self.stages and self.stages[0].name == name:
            record = self.stages[0].record
            if record is not None and record.status is Status.SKIPPED:
                self.stages.popleft()


class Trace:
    """What a branch leaves behind in memory beside its records, so that it can be resumed without a journal."""

    __slots__ = ("closed", "groups", "length", "store", "undone")

    def __init__(self) -> None:
        self.length = 0
        self.closed: dict[int, Closed] = {}
        self.groups: list[list[Trace]] = []
        self.store: Store | None = None  # of a branch whose group was not merged
        self.undone = False  # the last stage failed, and what it wrote was rolled back

    def past(self, records: Sequence[StageRecord]) -> Past:
        """Return the past that these records of the branch tell."""
        forks: dict[tuple[int, int], Past] = {}
        own: list[StagePast] = []
        at = 0
        for number, group in enumerate(self.groups):
            start = group[0].length if group else at
            own.extend(map(_stage_past, records[at:start]))
            at = start
            for index, trace in enumerate(group[1:]):
                forks[number, index] = trace.past(records[at : at + trace.length])
                at += trace.length
        own.extend(map(_stage_past, records[at:]))
        if self.undone and own:
            own.pop()
        return Past(own, dict(self.closed), forks, self.store)


_OVER = (Status.COMPLETED, Status.SKIPPED)


def _stage_past(record: StageRecord) -> StagePast:
    over = record.status in _OVER or record.recovered
    actions = [Did(action) for action in record.actions if action.status in _OVER or action.recovered]
    return StagePast(record.name, actions, record if over else None, Closed(None, record.inserted))
