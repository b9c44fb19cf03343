"""How far a run is, counted from its events.

`known` is what is done, what runs, and what is known to come: the stages of the pipeline, and those that were inserted
since. What nobody could know of (what a stream gives, another attempt at a pipeline) is counted when it begins. So
`done` never exceeds `known`, and a run that completes ends with both the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from flowdeco.events import (
    ActionStarted,
    Event,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)

__all__ = ["TAKE", "Row", "Tally", "describe", "duration"]

REMEMBERED: Final = 50  # finished stages: more than a terminal shows
FAILURES: Final = 5  # recovered ones stay in sight, however many stages follow


class Row:
    """A stage, for those who watch; `done` and `total` are what its action said by `ctx.progress`."""

    # What is the same for most stages is a default of the class: one is made for every stage.
    action: str | None = None
    done: float | None = None
    total: float | None = None
    inserted = 0
    status = "running"
    error = ""
    elapsed = 0.0
    restored = False
    announced: dict[str, int] | None = None  # stages that it inserted, by action

    def __init__(
        self,
        tally: Tally,
        name: str,
        started: float,
        inserted_by: str | None = None,
        branch: str | None = None,
        outside: Row | None = None,
    ) -> None:
        self.tally = tally
        self.name = name
        self.started = started
        self.inserted_by = inserted_by
        self.branch = branch
        self.outside = outside  # a stage of the run around this one, where runs are nested


# Branches may run stages of one name at the same time: whose event it is, is told by the context in which it comes.
_inside: Final[ContextVar[Row | None]] = ContextVar("flowdeco_progress", default=None)


class Tally:
    """What is done, what is known, and what runs: an observer that only counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.run_id = ""
        self.pipeline = ""
        self.status = "pending"
        self.error = ""
        self.done = 0
        self.known = 0
        self.started = 0.0
        self.elapsed: float | None = None
        self.running: dict[Row, None] = {}
        self.recent: deque[Row] = deque(maxlen=REMEMBERED)
        self.failed: deque[Row] = deque(maxlen=FAILURES)
        self._unfinished = 0  # ended, and not done: they failed, or were stopped
        self._announced: dict[str | None, int] = {}  # and not begun yet, by who inserted them

    def __call__(self, event: Event) -> None:
        """Count an event."""
        take = TAKE.get(type(event))
        if take is not None:
            take(self, event)

    @property
    def current(self) -> str:
        """The stage that began last of those that run, "" if none does."""
        row = next(reversed(self.running), None)
        return "" if row is None else row.name

    @property
    def finished(self) -> int:
        """How many are done; of a run that does not complete, without those that ended because of it."""
        return self.done if self.status == "completed" else self.done - self._unfinished

    @property
    def seconds(self) -> float:
        """How long the run takes, or has taken."""
        return self.clock() - self.started if self.elapsed is None else self.elapsed

    def _begin(self, event: RunStarted) -> None:
        self.run_id, self.pipeline, self.status = event.run_id, event.pipeline, "running"
        self.started, self.elapsed = self.clock(), None
        self._announce(None, event.stages)

    def _end(self, event: RunFinished) -> None:
        self.status, self.error, self.elapsed = str(event.status), _told(event.error), event.elapsed
        if event.status == "completed":
            self.known = self.done

    def _begin_stage(self, event: StageStarted) -> None:
        if not self._expected(event.inserted_by):
            self.known += 1
        row = Row(self, event.stage, self.clock(), event.inserted_by, event.branch, _inside.get())
        self.running[row] = None
        if self.known < self.done + len(self.running):
            self.known += 1
        _inside.set(row)

    def _expected(self, inserted_by: str | None) -> bool:
        """Take a stage off those that were announced, if it is one."""
        announced = self._announced
        who = inserted_by if inserted_by in announced else _A_PIPELINE
        left = announced.get(who)
        if left is None:
            return False
        if left > 1:
            announced[who] = left - 1
        else:
            del announced[who]
        return True

    def _end_stage(self, event: StageFinished) -> None:
        self.done += 1
        row = self._found()
        if row is not None and row.name == event.stage and row in self.running:
            _inside.set(row.outside)
            row.outside = None
            del self.running[row]
        else:  # skipped or restored: it never began
            row = Row(self, event.stage, self.clock())
            self.known = max(self.known, self.done + len(self.running))
        row.status, row.elapsed = event.status, event.elapsed
        if event.restored:
            row.restored = True
        if event.error is not None:
            row.error = _told(event.error)
        self.recent.append(row)
        if event.status == "failed":
            self.failed.append(row)
        self._unfinished += event.status in ("failed", "cancelled", "suspended")

    def _begin_action(self, event: ActionStarted) -> None:
        row = self._row(event.stage)
        if row is None:
            return
        row.action = event.action
        if row.done is not None:
            row.done = row.total = None
        # An action of the stage that comes again is another attempt at the stage: what was inserted is dropped.
        if row.announced and event.inserted_by is None and event.action in row.announced:
            for action, stages in row.announced.items():
                self._announce(f"{row.name}/{action}", -stages)
            row.announced = None
            row.inserted = 0

    def _insert(self, event: UnitsInserted) -> None:
        if event.stage is None:
            self._announce(_A_PIPELINE, event.stages)
            return
        self._announce(event.stage if event.action is None else f"{event.stage}/{event.action}", event.stages)
        row = self._row(event.stage)
        if row is not None:
            row.inserted += event.stages
            if event.action is not None and event.stages:
                row.announced = row.announced or {}
                row.announced[event.action] = row.announced.get(event.action, 0) + event.stages

    def _announce(self, who: str | None, stages: int) -> None:
        self.known += stages
        left = self._announced.pop(who, 0) + stages
        if left > 0:
            self._announced[who] = left

    def _progress(self, event: Progress) -> None:
        row = self._row(event.stage)
        if row is not None:
            row.action, row.done, row.total = event.action, event.done, event.total

    def _row(self, stage: str) -> Row | None:
        """Return the stage in which one is, or one of that name: what comes from elsewhere may have no place here."""
        row = self._found()
        if row is not None and row.name == stage:
            return row
        return next((row for row in list(self.running) if row.name == stage), None)

    def _found(self) -> Row | None:
        row = _inside.get()
        while row is not None and row.tally is not self:
            row = row.outside
        return row


def _told(error: BaseException | None) -> str:
    """Return an exception in one line."""
    if error is None:
        return ""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def describe(row: Row, arrow: str = "/") -> str:
    """Return a stage with its action, where that says more, and how far it is."""
    action = f"{arrow}{row.action}" if row.action is not None and row.action != row.name else ""
    return f"{row.name}{action}{measured(row)}"


def measured(row: Row) -> str:
    """Return what the action said by `ctx.progress`."""
    done, total = row.done, row.total
    if done is None:
        return ""
    return f" {done:g}" if total is None else f" {done:g}/{total:g}"


def duration(seconds: float) -> str:
    """Return a time for people: 12 ms, 0.12 s, 12.3 s, 1:02, 1:02:03."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_A_PIPELINE: Final = "\0pipeline"  # inserted by the middleware of one, which the event does not name
TAKE: Final[dict[type, Callable[[Tally, Any], None]]] = {
    RunStarted: Tally._begin,
    RunFinished: Tally._end,
    StageStarted: Tally._begin_stage,
    StageFinished: Tally._end_stage,
    ActionStarted: Tally._begin_action,
    UnitsInserted: Tally._insert,
    Progress: Tally._progress,
}
