"""Where an evaluation stands: the open pipelines of each branch, the stage that runs, and what is left to do in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from flowdeco.definitions import Pipeline, Stage, Stream, Unit
from flowdeco.memory import ROOT
from flowdeco.middleware import Call
from flowdeco.options import Middleware
from flowdeco.past import Closed, Past, StagePast, Trace
from flowdeco.runs import ActionRecord, Scope, StageRecord
from flowdeco.store import Store
from flowdeco.wiring import steps_of

__all__ = ["Before", "Branch", "Frame", "OpenStream", "Queued", "Visit"]

Queued: TypeAlias = "tuple[Unit | Stream | OpenStream, str | None]"


class OpenStream:
    """A stream that has been begun: what is left of it."""

    __slots__ = ("iterator", "stream")

    def __init__(self, stream: Stream, iterator: Any) -> None:
        self.stream = stream
        self.iterator = iterator


class Frame:
    """An open pipeline: what is still to run in it, and what stands around its stages and actions."""

    __slots__ = (
        "before", "by", "call", "closed", "number", "pipeline", "queue", "scope", "use_actions", "use_stages", "values",
        "wrapped",
    )  # fmt: skip

    def __init__(
        self,
        pipeline: Pipeline,
        by: str | None,
        use_stages: tuple[Middleware, ...],
        use_actions: tuple[Middleware, ...],
        values: Mapping[str, Any],
        wrapped: bool,
        scope: Scope | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.by = by
        self.scope = scope
        self.use_stages = use_stages
        self.use_actions = use_actions
        self.values = values
        self.wrapped = wrapped
        self.queue: list[Queued] = []
        self.call: Call | None = None
        self.number = 0  # of the pipelines with middleware in this branch
        self.before: Before | None = None  # what another attempt goes back to
        self.closed: Closed | None = None  # it was over in the past: its middleware is not entered again

    def is_done(self) -> bool:
        return not self.queue and self.call is None and self.closed is None

    def refill(self) -> None:
        self.queue = [(unit, self.by) for unit in reversed(self.pipeline.units)]


class Before(NamedTuple):
    """Where a branch was when a pipeline was opened."""

    records: int
    switches: dict[str, bool]
    result: Any
    position: int
    opened: int
    groups: int


class Branch:
    """One line of evaluation, that of the run or of a branch of a parallel group: its frames, its store, its records."""

    __slots__ = (
        "diverged", "forgotten", "forks", "frames", "groups", "id", "lost", "opened", "parent", "past", "position",
        "records", "result", "scopes", "stopped", "store", "switches", "trace",
    )  # fmt: skip

    def __init__(self, store: Store, base: Frame, parent: Branch | None = None, id: str = ROOT) -> None:
        self.store = store
        self.frames = [base]
        self.parent = parent
        self.id = id
        self.past: Past | None = None  # of a resumed run, as long as it lasts
        self.diverged = False  # from its past
        self.position = 0  # counts what the journal has a row for
        self.opened = 0  # pipelines with middleware
        self.groups = 0
        self.forks: list[tuple[int, Branch]] = []
        self.trace = Trace()
        self.result: Any = None
        self.records: list[StageRecord] = []
        self.forgotten = 0
        self.lost = 0  # of what its own branches had forgotten
        self.scopes = 0
        self.stopped = False  # by another branch of its group
        self.switches: dict[str, bool] = dict(parent.switches) if parent else {}

    def upcoming(self) -> Iterator[Unit | Stream]:
        for frame in reversed(self.frames):
            for unit, _ in reversed(frame.queue):
                yield unit.stream if isinstance(unit, OpenStream) else unit
        if self.parent is not None:
            yield from self.parent.upcoming()

    def before(self) -> Before:
        return Before(
            len(self.records) + self.forgotten,
            dict(self.switches),
            self.result,
            self.position,
            self.opened,
            self.groups,
        )

    def go_back(self, before: Before) -> dict[str, int]:
        """Forget what came after; return what the journal has to forget, by branch."""
        del self.records[max(0, before.records - self.forgotten) :]
        self.switches, self.result = dict(before.switches), before.result
        self.position, self.opened, self.groups = before.position, before.opened, before.groups
        dropped = [fork for number, fork in self.forks if number >= before.groups]
        self.forks = [(number, fork) for number, fork in self.forks if number < before.groups]
        self.trace.go_back(before.opened, before.groups)
        return {self.id: before.position, **{id: 0 for fork in dropped for id in fork.ids()}}

    def keep_past(self) -> None:
        """Leave behind what was left behind before, if the branch has not begun this time."""
        if self.past is not None and self.past.left is not None and not self.records:
            self.trace, records = self.past.left
            self.records = list(records)

    def trace_of(self, unmerged: bool) -> Trace:
        self.trace.length, self.trace.result = len(self.records), self.result
        self.trace.store = self.store if unmerged else None
        return self.trace

    def ids(self) -> Iterator[str]:
        yield self.id
        for _, fork in self.forks:
            yield from fork.ids()


class Visit:
    """A stage while it runs: what is left of its actions, what they inserted, and their records."""

    __slots__ = ("frame", "inserted", "past", "queue", "records", "stage", "use_actions", "values")

    def __init__(self, stage: Stage, frame: Frame) -> None:
        self.stage = stage
        self.frame = frame
        self.past: StagePast | None = None  # of a resumed run
        self.values = frame.values
        self.use_actions = frame.use_actions + stage.use_actions if stage.use_actions else frame.use_actions
        self.begin()

    def begin(self) -> None:
        self.queue = steps_of(self.stage).copy()
        self.records: list[ActionRecord] = []
        self.inserted: list[Queued] = []
