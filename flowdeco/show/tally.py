"""The progress of a run, counted from its events.

`known` counts the stages that are done, running, or known to come: those of the pipeline, and those inserted since.
Stages that cannot be known beforehand (of a stream, of another attempt at a pipeline) are counted when they begin. So `done`
never exceeds `known`, and both are equal at the end of a run that completes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from flowdeco.errors import message_of
from flowdeco.events import (
    ActionStarted,
    BranchesHeld,
    Event,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)

__all__ = ["HANDLERS", "Row", "Tally", "describe", "waiting"]

RECENT: Final = 50  # finished stages: more than a terminal shows
SURE: Final = 1.0  # seconds, before which nothing is said about the time that is left
FAILURES: Final = 5  # kept in sight however many stages follow, if the run survives them


@dataclass(eq=False, repr=False)
class Row:
    """A stage of the display; `done` and `total` are as its action reported them by `ctx.progress`."""

    tally: Tally
    name: str
    started: float
    inserted_by: str | None = None
    branch: str | None = None
    outer: Row | None = None  # the stage of the enclosing run, where runs are nested
    # Defaults of the class, because a row is made for every stage.
    action: str | None = field(default=None, init=False)
    done: float | None = field(default=None, init=False)
    total: float | None = field(default=None, init=False)
    inserted: int = field(default=0, init=False)
    status: str = field(default="running", init=False)
    error: str = field(default="", init=False)
    elapsed: float = field(default=0.0, init=False)
    restored: bool = field(default=False, init=False)
    announced: dict[str, int] | None = field(default=None, init=False)  # stages that it inserted, by action


# Branches may run stages of one name at the same time: the context of an event identifies its stage.
_current_row: Final[ContextVar[Row | None]] = ContextVar("flowdeco_progress", default=None)


class Tally:
    """An observer that counts the stages that are done, known and running."""

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
        self.recent: deque[Row] = deque(maxlen=RECENT)
        self.failed: deque[Row] = deque(maxlen=FAILURES)
        self.held: dict[str, BranchesHeld] = {}  # by group: branches that wait for a slow one
        self._ran = 0  # stages that took time: not those that were skipped or restored
        self._unfinished = 0  # stages that failed or were stopped
        self._announced: dict[str | None, int] = {}  # stages that have not begun yet, by who inserted them

    def __call__(self, event: Event) -> None:
        """Count an event."""
        handler = HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    @property
    def current(self) -> str:
        """The running stage that began last, "" for none."""
        row = next(reversed(self.running), None)
        return "" if row is None else row.name

    @property
    def finished(self) -> int:
        """How many stages are done; of a run that does not complete, without those that did not complete."""
        return self.done if self.status == "completed" else self.done - self._unfinished

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, or in all."""
        return self.clock() - self.started if self.elapsed is None else self.elapsed

    @property
    def left(self) -> float | None:
        """How long the known stages will probably take from now on, by those that ran so far; None without a basis.

        The progress that running actions report counts for their stages.
        """
        running = list(self.running)
        begun = sum(min(1.0, max(0.0, row.done / row.total)) for row in running if row.done is not None and row.total)
        ran, to_come = self._ran + begun, self.known - self.done - begun
        if self.elapsed is not None or ran <= 0 or to_come <= 0 or self.seconds < SURE:
            return None
        return self.seconds / ran * to_come

    def run_started(self, event: RunStarted) -> None:
        """Begin with the stages of the pipeline."""
        self.run_id, self.pipeline, self.status = event.run_id, event.pipeline, "running"
        self.started, self.elapsed = self.clock(), None
        self._announce(None, event.stages)

    def run_finished(self, event: RunFinished) -> None:
        """Note the outcome."""
        self.status, self.error, self.elapsed = str(event.status), _one_line(event.error), event.elapsed
        if event.status == "completed":
            self.known = self.done

    def stage_started(self, event: StageStarted) -> None:
        """Add a running stage, which is known from now on."""
        if not self._was_announced(event.inserted_by):
            self.known += 1
        row = Row(self, event.stage, self.clock(), event.inserted_by, event.branch, _current_row.get())
        self.running[row] = None
        if self.known < self.done + len(self.running):
            self.known += 1
        _current_row.set(row)

    def _was_announced(self, inserted_by: str | None) -> bool:
        """Whether a stage was announced; it is removed from those that are yet to come."""
        announced = self._announced
        key = inserted_by if inserted_by in announced else _A_PIPELINE
        left = announced.get(key)
        if left is None:
            return False
        if left > 1:
            announced[key] = left - 1
        else:
            del announced[key]
        return True

    def stage_finished(self, event: StageFinished) -> None:
        """Count a stage as done."""
        self.done += 1
        row = self._row_of_context()
        if row is not None and row.name == event.stage and row in self.running:
            _current_row.set(row.outer)
            row.outer = None
            del self.running[row]
        else:  # skipped or restored: it has never begun
            row = Row(self, event.stage, self.clock())
            self.known = max(self.known, self.done + len(self.running))
        row.status, row.elapsed = event.status, event.elapsed
        if event.restored:
            row.restored = True
        if event.error is not None:
            row.error = _one_line(event.error)
        self._ran += not (event.restored or event.status == "skipped")
        self.recent.append(row)
        if event.status == "failed":
            self.failed.append(row)
        self._unfinished += event.status in ("failed", "cancelled", "suspended")

    def action_started(self, event: ActionStarted) -> None:
        """Note the action of a stage."""
        row = self._row(event.stage)
        if row is None:
            return
        row.action = event.action
        if row.done is not None:
            row.done = row.total = None
        # An action that begins again is part of another attempt at the stage: earlier insertions are dropped.
        if row.announced and event.inserted_by is None and event.action in row.announced:
            for action, stages in row.announced.items():
                self._announce(f"{row.name}/{action}", -stages)
            row.announced = None
            row.inserted = 0

    def units_inserted(self, event: UnitsInserted) -> None:
        """Count the stages of inserted units as known."""
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

    def _announce(self, inserted_by: str | None, stages: int) -> None:
        self.known += stages
        left = self._announced.pop(inserted_by, 0) + stages
        if left > 0:
            self._announced[inserted_by] = left

    def branches_held(self, event: BranchesHeld) -> None:
        """Note how many branches of a streamed group wait to be merged."""
        if event.held:
            self.held[event.group] = event
        else:
            self.held.pop(event.group, None)

    def progress(self, event: Progress) -> None:
        """Note the progress of an action."""
        row = self._row(event.stage)
        if row is not None:
            row.action, row.done, row.total = event.action, event.done, event.total

    def _row(self, stage: str) -> Row | None:
        """Return the stage of the context, or one of that name: events from other threads may have no stage in theirs."""
        row = self._row_of_context()
        if row is not None and row.name == stage:
            return row
        return next((row for row in list(self.running) if row.name == stage), None)

    def _row_of_context(self) -> Row | None:
        row = _current_row.get()
        while row is not None and row.tally is not self:
            row = row.outer
        return row


def _one_line(error: BaseException | None) -> str:
    """Return an exception in one line."""
    if error is None:
        return ""
    message = message_of(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def describe(row: Row, arrow: str = "/") -> str:
    """Return a stage with its action, if that has another name, and its progress."""
    action = f"{arrow}{row.action}" if row.action is not None and row.action != row.name else ""
    done = "" if row.done is None else f" {row.done:g}"
    total = "" if row.total is None else f"/{row.total:g}"
    return f"{row.name}{action}{done}{total}"


def waiting(event: BranchesHeld) -> str:
    """Return how many branches a slow one holds up."""
    return f"{event.group}: {event.held} finished branches wait for branch {event.first}"


_A_PIPELINE: Final = "\0pipeline"  # stands for the middleware of one, which the event does not name
HANDLERS: Final[dict[type, Callable[[Tally, Any], None]]] = {
    RunStarted: Tally.run_started,
    RunFinished: Tally.run_finished,
    StageStarted: Tally.stage_started,
    StageFinished: Tally.stage_finished,
    ActionStarted: Tally.action_started,
    UnitsInserted: Tally.units_inserted,
    BranchesHeld: Tally.branches_held,
    Progress: Tally.progress,
}
