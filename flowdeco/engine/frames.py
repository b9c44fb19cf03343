"""Where an evaluation stands: the open pipelines of each branch, the stage that runs, and what is left to do in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from flowdeco.engine.journal import Row
from flowdeco.engine.layers import Call
from flowdeco.engine.memory import ROOT, branch_id, descendants
from flowdeco.engine.past import Closed, Past, StagePast, Trace
from flowdeco.engine.runs import ActionRecord, Scope, StageRecord
from flowdeco.model.definitions import Action, Pipeline, Stage, Stream, Unit, one_action_stage
from flowdeco.model.options import Middleware
from flowdeco.model.store import NOTHING, Delta, Store
from flowdeco.model.wiring import Step, steps_of

__all__ = ["Before", "Branch", "Failed", "Frame", "Leaf", "OpenStream", "Queued", "Split", "Visit", "single_call"]

Queued: TypeAlias = "tuple[Unit | Stream | OpenStream, str | None]"


class OpenStream:
    """A stream that has been begun: what is left of it, and what it gave in the rehearsal of a resumed run."""

    __slots__ = ("ahead", "iterator", "stream")

    def __init__(self, stream: Stream, iterator: Any) -> None:
        self.stream = stream
        self.iterator = iterator
        self.ahead: deque[Any] = deque()


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
        self.closed: Closed | None = None  # of a resumed run: it was over then, and its middleware is not entered again

    def within(self, scope: Scope) -> Frame:
        """Return the frame that a branch of a group in this one begins with."""
        around = self.use_stages, self.use_actions, self.values, self.wrapped
        return Frame(self.pipeline, scope.inserted_by, *around, scope)

    def is_done(self) -> bool:
        return not self.queue and self.call is None and self.closed is None

    def refill(self) -> None:
        self.queue = [(unit, self.by) for unit in reversed(self.pipeline.units)]


class Before(NamedTuple):
    """Where a branch was when a pipeline or stage with middleware was opened."""

    records: int
    lost: int
    switches: dict[str, bool]
    switched: dict[str, bool]
    result: Any
    position: int
    opened: int


class Failed(NamedTuple):
    """The record of a stage that failed in a branch, and the branch's position then."""

    branch: Branch
    record: StageRecord
    position: int


class Branch:
    """One line of evaluation, that of the run or of a branch of a parallel group: its frames, its store, its records."""

    __slots__ = (
        "_id", "_place", "failures", "forgotten", "forks", "frames", "lost", "opened", "parent", "past", "position",
        "records", "result", "rows", "scopes", "stopped", "store", "switched", "switches", "trace",
    )  # fmt: skip

    def __init__(
        self, store: Store, base: Frame, parent: Branch | None = None, place: tuple[int, int] = (0, 0)
    ) -> None:
        self.store = store
        self.frames = [base]
        self.parent = parent
        self._id: str | None = ROOT if parent is None else None
        self._place = place  # the position of its group in the parent, and its own in the group
        self.position = 0  # counts what the journal has a row for
        self.opened = 0  # pipelines with middleware
        self.result: Any = None
        self.records: list[StageRecord] = []
        self.forgotten = 0
        self.lost = 0  # of what its own branches had forgotten
        self.scopes = 0
        self.stopped = False  # by another branch of its group
        self.switches: dict[str, bool] = dict(parent.switches) if parent else {}  # the latest one last
        self.switched: dict[str, bool] = {}  # those of this branch
        self.failures: list[Failed] = []  # that nobody has recovered yet, of its groups as well
        self.rows: list[Row] = []  # that the journal has not got yet
        self.forks: list[tuple[int, list[str]]] = []  # the ids that a journal knows, of the groups that can be dropped
        self.trace = Trace()
        self.past: Past | None = None  # of a resumed run, as long as it lasts

    @property
    def id(self) -> str:
        """What the journal calls the branch; worked out when somebody asks."""
        if self._id is None:
            self._id = branch_id(cast("Branch", self.parent).id, *self._place)
        return self._id

    def upcoming(self) -> Iterator[Unit | Stream]:
        for frame in reversed(self.frames):
            for unit, _ in reversed(frame.queue):
                yield unit.stream if isinstance(unit, OpenStream) else unit
        if self.parent is not None:
            yield from self.parent.upcoming()

    def switch(self, selector: str, on: bool) -> None:
        """Take note of what is not, or again, to run from here on."""
        for switches in (self.switches, self.switched):
            switches.pop(selector, None)
            switches[selector] = on

    def before(self) -> Before:
        records = len(self.records) + self.forgotten
        switches = dict(self.switches), dict(self.switched)
        return Before(records, self.lost, *switches, self.result, self.position, self.opened)

    def go_back(self, before: Before) -> dict[str, int]:
        """Forget what came after; return what the journal has to forget, by branch."""
        del self.records[max(0, before.records - self.forgotten) :]
        self.forgotten, self.lost = min(self.forgotten, before.records), before.lost
        self.switches, self.switched, self.result = dict(before.switches), dict(before.switched), before.result
        self.position, self.opened = before.position, before.opened
        self.failures.clear()
        self.trace.go_back(before.records, before.opened, before.position)
        dropped = [id for position, ids in self.forks if position >= before.position for id in ids]
        self.forks = [fork for fork in self.forks if fork[0] < before.position]
        if self.past is not None:  # what was not restored yet goes as well
            dropped += descendants(self.past, self.id, before.position)
            self.past = None
        cuts = {self.id: before.position, **dict.fromkeys(dropped, 0)}
        self.rows = [row for row in self.rows if row.number < cuts.get(row.branch, row.number + 1)]
        return cuts

    def delta(self) -> Delta:
        """What the branch has written, to be merged."""
        return self.store._delta()

    def leave(self, unmerged: Store | None) -> Trace:
        """Return what is left of a branch of a group that is over; `unmerged` is the group's store, if it has failed."""
        self.trace.result, self.trace.store = self.result, None if unmerged is None else self.store
        return self.trace

    def ids(self) -> list[str]:
        """The ids that the journal knows of this branch and of those that came of it."""
        return [self.id, *(id for _, ids in self.forks for id in ids)]

    def is_revocable(self) -> bool:
        """Whether a middleware around it may ask for another attempt."""
        return any(frame.call is not None for frame in self.frames) or (
            self.parent is not None and self.parent.is_revocable()
        )


class Leaf:
    """A branch of a group that is a single call, with its record and what it wrote when it is over.

    It has no frames and no store, which are most of what a branch costs.
    """

    __slots__ = ("records", "result", "stopped", "store", "written")

    def __init__(self) -> None:
        self.records: Sequence[StageRecord] = ()
        self.written = NOTHING
        self.result: Any = None
        self.stopped = False
        self.store: Store | None = None

    def delta(self) -> Delta:
        """What the branch has written, to be merged."""
        return self.written

    def leave(self, unmerged: Store | None) -> Leaf:
        """Return what is left of a branch of a group that is over; `unmerged` is the group's store, if it has failed."""
        if unmerged is not None:
            self.store = unmerged._fork()
            self.store._apply(self.written)
            self.store._taken()
        return self

    def past(self, records: Sequence[StageRecord]) -> Past:
        """Return the past that its record tells, for a resumed run."""
        trace = Trace()
        trace.result, trace.store = self.result, self.store
        return trace.past(records)


class Split(NamedTuple):
    """A parallel group at work: where it is, and its branches."""

    branch: Branch
    frame: Frame
    scope: Scope
    position: int
    forks: list[Branch | Leaf]


def single_call(unit: Unit) -> tuple[Stage, Step] | None:
    """Return the stage and the step of a unit that is a call of one action, with nothing around it."""
    if type(unit) is Action:
        stage = one_action_stage(unit)
    elif type(unit) is not Stage or unit.use or unit.use_actions or unit._data:
        return None
    else:
        stage = unit
    steps = steps_of(stage)
    if len(steps) != 1:
        return None
    step, _ = steps[0]
    return None if step.use or step.wants_context else (stage, step)


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
