"""What runs next: the law of order, as a generator that performs nothing.

Theory of operation
===================

A run is a walk over a stack of *frames*, one for each open pipeline. A frame has a queue: the units that are still to
run in it, the next one last. The walk takes the next unit from the innermost frame and

1. runs a stage: its actions one by one, each from a queue of the same kind;
2. opens a pipeline that has options: a new frame;
3. forks a parallel group: a walk of its own for each branch, over a store of its own, merged in branch order (L9);
4. pulls one unit from a stream, and leaves the rest of the stream where it is.

What the actions of a stage insert is put on top of the queue when the stage is over. So it runs right after the stage,
in the order of its actions; and since what *it* inserts is put on top in turn, order is depth first (L6). Putting n
units there costs n, whatever else is waiting; and because a queue forgets what it hands out, a stage that returns
itself is a loop in constant memory.

An action writes when it is over: its result and what it wrote into its `ctx` go to the store together, or, if it
failed, not at all (L4). A stage's data is merged when the stage begins (L5).

Middleware (`enter` and `leave`) stands around pipelines, stages and actions alike. A failure closes scopes from the
inside out; each layer may let it pass, recover it, or ask for another attempt.

Nothing here performs anything. Every call of a user's function, every wait, is a request that is yielded to a driver,
and answered with what came of it (`requests`). An exception of a user is always handed on as a value, never raised
through these generators, for which a `StopIteration` or a `GeneratorExit` would mean something else.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.context import Context
from flowdeco.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    Unit,
    action_selectors,
    insertable,
    one_action_stage,
    stage_selectors,
)
from flowdeco.errors import Bail, Cancelled, CodeChangedError, JournalError, ReturnValueError, Suspend, suggestion
from flowdeco.events import (
    ActionFinished,
    ActionStarted,
    Event,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)
from flowdeco.groups import Crew, merged
from flowdeco.memory import ROOT, Memory, branch_id
from flowdeco.middleware import Call, enter, leave, merging
from flowdeco.options import UNSET, Middleware
from flowdeco.past import Closed, Did, Past, StagePast, Trace, is_over
from flowdeco.requests import Await, Chore, Raised, Request, Save
from flowdeco.returned import PLAIN, SETTLED, Yielded, exhaust, sort_out
from flowdeco.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.store import Delta, Store
from flowdeco.wiring import Step, check_inserted, step_of, steps_of, unmet

__all__ = ["Evaluation"]

Failure: TypeAlias = "BaseException | None"
Walk: TypeAlias = "Generator[Request, Any, Failure]"
Queued: TypeAlias = "tuple[Unit | Stream | _OpenStream, str | None]"

_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]
_COMPLETED: Final = Status.COMPLETED


class _OpenStream:
    """A stream that has been begun: what is left of it."""

    __slots__ = ("iterator", "stream")

    def __init__(self, stream: Stream, iterator: Any) -> None:
        self.stream = stream
        self.iterator = iterator


class _Frame:
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
        self.before: _Before | None = None  # what another attempt goes back to
        self.closed: Closed | None = None  # it was over in the past: its middleware is not entered again

    def is_done(self) -> bool:
        return not self.queue and self.call is None and self.closed is None

    def refill(self) -> None:
        self.queue = [(unit, self.by) for unit in reversed(self.pipeline.units)]


class _Before(NamedTuple):
    """Where a branch was when a pipeline was opened."""

    records: int
    switches: dict[str, bool]
    result: Any
    position: int
    opened: int
    groups: int


class _Branch:
    """One line of evaluation, that of the run or of a branch of a parallel group: its frames, its store, its records."""

    __slots__ = (
        "diverged", "forgotten", "forks", "frames", "groups", "id", "lost", "opened", "parent", "past", "position",
        "records", "result", "scopes", "stopped", "store", "switches", "trace",
    )  # fmt: skip

    def __init__(
        self, store: Store, base: _Frame, parent: _Branch | None = None, id: str = ROOT, past: Past | None = None
    ) -> None:
        self.store = store
        self.frames = [base]
        self.parent = parent
        self.id = id
        self.past = past
        self.diverged = False  # from its past
        self.position = 0  # counts what the journal has a row for
        self.opened = 0  # pipelines with middleware
        self.groups = 0
        self.forks: list[tuple[int, _Branch]] = []
        self.trace = Trace()
        self.result: Any = past.result if past is not None else None
        self.records: list[StageRecord] = []
        self.forgotten = 0
        self.lost = 0  # of what branches had forgotten
        self.scopes = 0
        self.stopped = False  # by another branch of its group
        self.switches: dict[str, bool] = dict(parent.switches) if parent else {}

    def upcoming(self) -> Iterator[Unit | Stream]:
        for frame in reversed(self.frames):
            for unit, _ in reversed(frame.queue):
                yield unit.stream if isinstance(unit, _OpenStream) else unit
        if self.parent is not None:
            yield from self.parent.upcoming()

    def before(self) -> _Before:
        return _Before(
            len(self.records) + self.forgotten,
            dict(self.switches),
            self.result,
            self.position,
            self.opened,
            self.groups,
        )

    def go_back(self, before: _Before) -> dict[str, int]:
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


class _Visit:
    """A stage while it runs: what is left of its actions, what they inserted, and their records."""

    __slots__ = ("before", "frame", "inserted", "past", "queue", "records", "stage", "use_actions", "values")

    def __init__(self, stage: Stage, frame: _Frame, past: StagePast | None) -> None:
        self.stage = stage
        self.frame = frame
        self.before = past
        self.past: deque[Did] | None = past.actions if past is not None else None
        self.values = frame.values
        self.use_actions = frame.use_actions + stage.use_actions if stage.use_actions else frame.use_actions
        self.begin()

    def begin(self) -> None:
        self.queue = steps_of(self.stage).copy()
        self.records: list[ActionRecord] = []
        self.inserted: list[Queued] = []


class Evaluation:
    """One run of a pipeline, as a generator of requests (`walk`)."""

    def __init__(
        self,
        run: Run,
        *,
        use: tuple[Middleware, ...] = (),
        notify: Callable[[Event], None] | None = None,
        skip: frozenset[str] = frozenset(),
        history: int | None = None,
        past: Past | None = None,
        memory: Memory | None = None,
        on_change: str = "error",
        copying_until: str | None = None,
        given: Mapping[str, Any] | None = None,
        clock: Callable[[], float],
        now: float,
        cancels: Callable[[BaseException], bool],
    ) -> None:
        self.run = run
        self.use = use
        self.notify = notify
        self.skip = skip
        self.unmatched = set(skip)
        self.history = history
        self.clock = clock
        self.epoch = now - clock()
        self.cancels = cancels
        self.tickets = count()
        self.past = past
        self.memory = memory
        self.on_change = on_change
        self.given = given or {}  # on resume
        self.copying_until = copying_until
        self.copying = copying_until is not None
        self.changes: list[str] = [past.differs] if past is not None and past.differs else []
        self.branch = _Branch(run.store, _Frame(run.pipeline, None, (), (), {}, wrapped=False), past=past)

    def walk(self) -> Generator[Request, Any, None]:
        """Evaluate the run's pipeline; everything that came of it is in the run."""
        run = self.run
        began = self.clock()
        run.started, run.status = began + self.epoch, Status.RUNNING
        branch = self.branch
        if self.past is not None or self.memory is not None:
            branch.store.watch()
        error: Failure = None
        try:
            if self.notify is not None:
                self.notify(RunStarted(run.id, run.pipeline.name))
            error = yield from self._open(branch, branch.frames[0], run.pipeline, None, self.use)
        except GeneratorExit:
            raise
        except BaseException as interrupted:
            error = interrupted
        error = yield from self._walk(branch, error)
        if error is None and branch.past is not None:
            error = yield from self._go_on(branch, "the end of the run")
        if error is None and self.copying_until is not None:
            error = unknown_stage(self.copying_until, (record.name for record in branch.records))
        if self.memory is not None:
            answer = yield Save(self.memory.save)
            error = answer.error if type(answer) is Raised and error is None else error
        run.elapsed = self.clock() - began
        run.stages = [] if self.history == 0 else branch.records[-(self.history or 0) :]
        run.forgotten = len(branch.records) + branch.forgotten + branch.lost - len(run.stages)
        run.result = branch.trace.result = branch.result
        run.status = self._status(error)
        if isinstance(error, (Bail, Suspend)):
            run.reason = error.reason
        elif error is not None:
            run.error = error
            self._note(error, f"pipeline {run.pipeline.name!r}")
        if self.notify is not None:
            self.notify(RunFinished(run.id, run.pipeline.name, run.status, run.error, run.elapsed))

    # Frames and what is in their queues.

    def _walk(self, branch: _Branch, error: Failure = None) -> Walk:
        """Evaluate what is in the frames of a branch until none is left; return the failure that got out."""
        frames = branch.frames
        while frames:
            try:
                frame = frames[-1]
                if branch.stopped and error is None:
                    error = _ended()
                if error is None and frame.queue:
                    unit, by = frame.queue.pop()
                    error = yield from _BEGIN[type(unit)](self, branch, frame, unit, by)
                else:
                    error = yield from self._close(branch, frame, error)
            except GeneratorExit:
                raise
            except BaseException as interrupted:  # Ctrl-C between two calls
                error = interrupted
        return error

    def _open(
        self, branch: _Branch, frame: _Frame, pipeline: Pipeline, by: str | None, use: tuple[Middleware, ...] = ()
    ) -> Walk:
        if pipeline is not self.run.pipeline and self._off(branch, stage_selectors(pipeline)):
            self._skip(branch, pipeline, by, frame.scope)
            return None
        while len(branch.frames) > 1 and branch.frames[-1].is_done():
            branch.frames.pop()  # nothing is left to do in there: a pipeline that returns itself is a loop, too
        layers = use + pipeline.use
        use_stages, use_actions = frame.use_stages + pipeline.use_stages, frame.use_actions + pipeline.use_actions
        wrapped = frame.wrapped or bool(layers or use_stages or use_actions)
        scope = self._scope(branch, pipeline, by, branch.frames[-1].scope)
        opened = _Frame(pipeline, by, use_stages, use_actions, frame.values, wrapped, scope)
        branch.frames.append(opened)
        if not layers:
            opened.refill()
            return None
        opened.number, branch.opened = branch.opened, branch.opened + 1
        opened.closed = branch.past.closed.get(opened.number) if branch.past is not None else None
        if opened.closed is not None:
            opened.refill()
            return None
        self._watch(branch)
        opened.call = Call(self.run.id, branch.store, layers, frame.values, pipeline)
        opened.before = branch.before()
        return (yield from self._enter(opened, opened.call))

    def _scope(self, branch: _Branch, unit: Pipeline | Parallel, by: str | None, outer: Scope | None) -> Scope | None:
        """Return what the records of this unit will say they are in."""
        if isinstance(unit, Pipeline) and (unit.plain or (unit is self.run.pipeline and by is None)):
            return outer
        branch.scopes += 1
        return Scope(unit.name, f"{branch.id}.{branch.scopes}", None, by, outer)

    def _enter(self, frame: _Frame, call: Call) -> Walk:
        entered = enter(call)
        inside, error = entered if isinstance(entered, tuple) else (yield from entered)
        frame.values = call._values
        if inside:
            frame.refill()
        return error

    def _close(self, branch: _Branch, frame: _Frame, error: Failure) -> Walk:
        if frame.queue:
            yield from self._discard(frame.queue)
        call = frame.call
        if call is None:
            branch.frames.pop()
            if frame.closed is None or error is not None:
                return error
            branch.store.restore(frame.closed.delta)
            closed = frame.closed
        else:
            if error is not None and not isinstance(error, (Bail, Suspend)):
                self._note(error, f"pipeline {frame.pipeline.name!r}")
            left = leave(call, error)
            again, error = left if isinstance(left, tuple) else (yield from left)
            if again:
                cuts = branch.go_back(cast("_Before", frame.before))
                error = yield from self._drop(cuts)
                return error or (yield from self._enter(frame, call))
            branch.frames.pop()
            if error is not None:
                return error
            since = max(0, cast("_Before", frame.before).records - branch.forgotten)
            failed = tuple(r for r in branch.records[since:] if not is_over(r)) if call._recovered else ()
            closed = Closed(None, call._inserted, failed)
        branch.frames[-1].queue.extend((unit, frame.pipeline.name) for unit in reversed(closed.inserted))
        return self._remember_pipeline(branch, frame, closed)

    def _discard(self, queue: list[Queued]) -> Generator[Request, Any, None]:
        """Empty a queue that will not be run, and close the streams in it."""
        for unit, _ in reversed(queue):
            if isinstance(unit, _OpenStream):
                yield from self._close_stream(unit)
        queue.clear()

    # Streams.

    def _open_stream(self, branch: _Branch, frame: _Frame, stream: Stream, by: str | None) -> Walk:
        source: Any = stream.source
        if callable(source):
            answer = yield Chore(source, "stream"), stream.args, None
            if hasattr(cast("type[object]", type(answer)), "__await__"):
                answer = yield Await(answer)
            if type(answer) is Raised:
                return self._stream_failed(answer.error, by)
            source = answer
        if isinstance(source, AsyncIterable):
            iterator = yield Chore(aiter, "stream"), (source,), None
        elif isinstance(source, Iterable):
            iterator = yield Chore(iter, "stream"), (source,), None
        else:
            message = f"the function of a stream inserted by {by} returned a {type(source).__name__}, not an iterable"
            return self._stream_failed(ReturnValueError(message), by)
        if type(iterator) is Raised:
            return self._stream_failed(iterator.error, by)
        frame.queue.append((_OpenStream(stream, iterator), by))
        return None

    def _pull(self, branch: _Branch, frame: _Frame, stream: _OpenStream, by: str | None) -> Walk:
        iterator: object = stream.iterator
        if isinstance(iterator, AsyncIterable):
            answer = yield Await(anext(cast("Any", iterator)))
            if type(answer) is Raised and isinstance(answer.error, StopAsyncIteration):
                return None
        else:
            answer = yield _PULL, (stream.iterator, UNSET), None
            if answer is UNSET:
                return None
        if type(answer) is Raised:
            return self._stream_failed(answer.error, by)
        frame.queue.append((stream, by))
        try:
            units = insertable((answer,), f"the stream inserted by {by}", "yielded")
            self._check_wiring(branch, frame, units)
        except Exception as error:
            return self._stream_failed(error, by)
        frame.queue.extend((unit, by) for unit in reversed(units))
        return None

    def _stream_failed(self, error: BaseException, by: str | None) -> BaseException:
        self._note(error, f"a stream inserted by {by!r}")
        return error

    def _close_stream(self, stream: _OpenStream) -> Generator[Request, Any, None]:
        if hasattr(stream.iterator, "aclose"):
            yield Await(stream.iterator.aclose())
        elif hasattr(stream.iterator, "close"):
            yield Chore(stream.iterator.close, "stream"), (), None

    # Stages.

    def _bare_action(self, branch: _Branch, frame: _Frame, action: Action[..., Any], by: str | None) -> Walk:
        return self._stage(branch, frame, one_action_stage(action), by)

    def _stage(self, branch: _Branch, frame: _Frame, stage: Stage, by: str | None) -> Walk:
        if (self.skip or branch.switches) and self._off(branch, stage_selectors(stage)):
            self._skip(branch, stage, by, frame.scope)
            return None
        past: StagePast | None = None
        if branch.past is not None:
            past = self._taken(branch, stage)
            ended = self._ended_here(branch, past)
            if ended is not None:
                self._restore_failed(branch, stage, past, ended)
                return None
            if past is None:
                error = yield from self._go_on(branch, f"stage {stage.name!r}")
                if error is not None:
                    return error
        started = self.clock()
        if self.notify is not None:
            self.notify(StageStarted(self.run.id, stage.name, by))
        visit = _Visit(stage, frame, past)
        call: Call | None = None
        if past is not None and past.record is not None:
            error = yield from self._inside(branch, visit)
            if error is None:
                error = self._restored_stage(branch, visit, past, by)
            if error is None:
                return None
        elif not frame.use_stages and not stage.use:
            error = _merge(branch, stage) if stage._data else None
            if error is None:
                error = yield from self._inside(branch, visit)
        else:
            layers = (*frame.use_stages, *((merging(stage),) if stage._data else ()), *stage.use)
            self._watch(branch)
            call = Call(self.run.id, branch.store, layers, frame.values, frame.pipeline, stage)
            error = yield from self._stage_in_layers(branch, visit, call)
        inserted = call._inserted if call is not None and error is None else ()
        status, failure, attempts, recovered = self._outcome(error, call)
        elapsed = self.clock() - started
        record = _new(
            StageRecord,
            (
                stage.name, stage, status, started + self.epoch, elapsed, by, visit.records,
                failure, attempts, recovered, inserted, frame.scope,
            ),
        )  # fmt: skip
        if error is None:
            error = self._remember_stage(branch, record)
            if error is not None:
                record = record._replace(status=Status.FAILED, error=error, recovered=False)
        failure = record.error
        if failure is not None and not isinstance(failure, (Bail, Suspend)):
            self._note(failure, f"stage {stage.name!r}, pipeline {frame.pipeline.name!r}")
        branch.records.append(record)
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self.notify(StageFinished(self.run.id, stage.name, record.status, failure, elapsed))
        if error is None:
            visit.inserted.extend((unit, stage.name) for unit in inserted)
            if visit.inserted:
                visit.inserted.reverse()
                frame.queue.extend(visit.inserted)
        elif call is not None:
            branch.trace.undone = call._undone
        return error

    def _stage_in_layers(self, branch: _Branch, visit: _Visit, call: Call) -> Walk:
        before = branch.before()
        while True:
            entered = enter(call)
            inside, error = entered if isinstance(entered, tuple) else (yield from entered)
            visit.values = call._values
            visit.begin()
            if inside:
                error = yield from self._inside(branch, visit)
            left = leave(call, error)
            again, error = left if isinstance(left, tuple) else (yield from left)
            if not again:
                return error
            error = yield from self._drop(branch.go_back(before))
            if error is not None:
                return error

    def _inside(self, branch: _Branch, visit: _Visit) -> Walk:
        try:
            return (yield from self._actions(branch, visit))
        except GeneratorExit:
            raise
        except BaseException as interrupted:  # Ctrl-C between two calls
            return interrupted

    def _forget(self, branch: _Branch) -> None:
        """Keep the records in bounds, in one go whenever twice as many as wanted have come together."""
        excess = len(branch.records) - cast("int", self.history)
        if excess > cast("int", self.history):
            del branch.records[:excess]
            branch.forgotten += excess

    # Actions.

    def _actions(self, branch: _Branch, visit: _Visit) -> Walk:
        """Run the actions of a stage, and those they insert; return the failure that ended it."""
        queue, records, notify, clock = visit.queue, visit.records, self.notify, self.clock
        store, stage, run_id, pipeline = branch.store, visit.stage, self.run.id, visit.frame.pipeline
        data, logs = store._data, store._logs
        read = data.__getitem__
        memory = self.memory
        filtered = bool(self.skip or branch.switches)
        while queue:
            if branch.stopped:
                return _ended()
            step, by = queue.pop()
            error: Failure = None
            if branch.past is not None:
                restored, error = yield from self._restored(branch, visit, step, by)
                if error is not None:
                    return error
                if restored:
                    filtered = bool(self.skip or branch.switches)
                    continue
            if filtered and self._off(branch, action_selectors(stage, step.action)):
                skipped = ActionRecord(step.name, step.action, Status.SKIPPED, clock() + self.epoch, 0.0, by)
                records.append(skipped)
                if memory is not None:
                    memory.action(branch.id, branch.position, stage.name, skipped, memory.payload(step.name, _NOTHING))
                branch.position += 1
                if notify is not None:
                    notify(ActionFinished(run_id, stage.name, step.name, Status.SKIPPED, None, 0.0))
                continue
            started = clock()
            context: Context | None = None
            call: Call | None = None
            inside = True
            values = visit.values
            layers = visit.use_actions + step.use if step.use else visit.use_actions
            if layers:
                call = Call(run_id, store, layers, values, pipeline, stage, cast("Any", step.action))
            seen = None if memory is None else memory.seen(store, step.keys)
            try:
                if notify is not None:
                    notify(ActionStarted(run_id, stage.name, step.name, by))
                while True:  # attempts
                    value: Any = UNSET
                    context = None
                    if call is not None:
                        entered = enter(call)
                        inside, error = entered if isinstance(entered, tuple) else (yield from entered)
                        values = call._values
                    if inside:
                        if step.wants_context:
                            context = self._context(branch, visit, step, seen)
                        # What most actions need is in the store; where it is not, the long way knows why.
                        try:
                            args = tuple(map(read, step.keys)) if step.simple and not values else None
                        except KeyError:
                            args = None
                        if args is not None:
                            value = yield step, args, None
                        else:
                            value = yield from self._called(branch, visit, step, values, context)
                        if type(value) not in SETTLED:
                            value = yield from self._settled(step, value)
                    if call is None:
                        break
                    if type(value) is Raised:
                        error = value.error
                    elif value is not UNSET:
                        call._outcome = value
                    left = leave(call, error)
                    again, error = left if isinstance(left, tuple) else (yield from left)
                    if not again:
                        value = call._outcome if error is None else Raised(error)
                        if type(value) not in SETTLED:  # given by a layer
                            value = yield from self._settled(step, value)
                        break
            except GeneratorExit:
                raise
            except BaseException as interrupted:  # Ctrl-C between two calls
                value = Raised((yield from self._unwound(call, interrupted)))
            # Most actions return nothing, or plain data, and no more is to be done about it.
            key = step.writes
            if (
                (value is None or (type(value) in PLAIN and key is not None))
                and context is None
                and (call is None or not (call._recovered or call._inserted))
                and memory is None
            ):
                branch.position += 1
                if value is not None and key is not None:
                    branch.result = value
                    if logs:
                        store[key] = value
                    else:
                        data[key] = value
                if store._recent:
                    store.taken()
                elapsed = clock() - started
                attempts = 1 if call is None else call.attempt
                outcome = _COMPLETED, started + self.epoch, elapsed, by, None, attempts, False, (), ()
                records.append(_new(ActionRecord, (step.name, step.action, *outcome)))
                if notify is not None:
                    notify(ActionFinished(run_id, stage.name, step.name, _COMPLETED, None, elapsed))
                continue
            error = self._conclude(branch, visit, step, by, started, value, context, call, seen)
            if memory is not None and error is None:
                answer = yield Save(memory.save)
                error = answer.error if type(answer) is Raised else None
            if error is not None:
                return error
            filtered = bool(self.skip or branch.switches)
        return None

    def _unwound(self, call: Call | None, interrupted: BaseException) -> Generator[Request, Any, BaseException]:
        """Close the layers around an action for good; return what interrupted it."""
        while call is not None and call._opened:
            yield from cast("Generator[Request, Any, Any]", leave(call, interrupted))
        return interrupted

    def _context(self, branch: _Branch, visit: _Visit, step: Step, seen: dict[str, Any] | None) -> Context:
        context = Context(
            self.run.id, visit.frame.pipeline, visit.stage, step.action, branch.store,
            lambda: self._upcoming(branch, visit), self.notify, (branch.id, branch.position),
        )  # fmt: skip
        if seen is not None and self.memory is not None:
            memory = self.memory
            context.store.on_read = lambda name: seen.update(memory.seen(branch.store, () if name in seen else (name,)))
        return context

    def _called(
        self, branch: _Branch, visit: _Visit, step: Step, values: Mapping[str, Any], context: Context | None
    ) -> Generator[Request, Any, Any]:
        """Call an action that needs more than what is in the store."""
        try:
            args, kwargs = step.gather(branch.store, values, context, visit.stage.name)
        except Exception as error:
            return Raised(error)
        return (yield step, args, kwargs)

    def _settled(self, step: Step, value: Any) -> Generator[Request, Any, Any]:
        """Await what can be awaited, and run generators to their end."""
        while True:
            kind = cast("type[object]", type(value))
            if kind is types.GeneratorType:
                value = yield Chore(exhaust, step.name, step.timeout), (value,), None
            elif kind is types.AsyncGeneratorType:
                value = yield from self._exhausted(step, value)
            elif hasattr(kind, "__await__"):
                value = yield Await(value, step.timeout, step.name)
            else:
                return value

    def _exhausted(self, step: Step, generator: Any) -> Generator[Request, Any, Any]:
        deadline = None if step.timeout is None else self.clock() + step.timeout
        items = Yielded()
        while True:
            left = None if deadline is None else max(0.0, deadline - self.clock())
            answer = yield Await(anext(generator), left, step.name)
            if type(answer) is Raised:
                return items if isinstance(answer.error, StopAsyncIteration) else answer
            items.append(answer)

    def _conclude(
        self,
        branch: _Branch,
        visit: _Visit,
        step: Step,
        by: str | None,
        started: float,
        value: Any,
        context: Context | None,
        call: Call | None,
        seen: dict[str, Any] | None,
    ) -> Failure:
        """Let what came of an action take effect, all of it or nothing, and record it."""
        error = value.error if type(value) is Raised else None
        inserted: tuple[Unit | Stream, ...] = ()
        switches: tuple[tuple[str, bool], ...] = ()
        payload = b""
        if error is None or isinstance(error, Bail):
            try:
                effect = self._take_effect(branch, visit, step, UNSET if error else value, context, call, seen, error)
            except Exception as refused:
                error = refused
            else:
                inserted, switches, payload = effect
        status, failure, attempts, recovered = self._outcome(error, call)
        if failure is not None and not isinstance(failure, (Bail, Suspend)):
            self._note(
                failure,
                f"action {step.name!r} of stage {visit.stage.name!r}, pipeline {visit.frame.pipeline.name!r}",
            )
        elapsed = self.clock() - started
        record = _new(
            ActionRecord,
            (
                step.name, step.action, status, started + self.epoch, elapsed, by,
                failure, attempts, recovered, inserted, switches,
            ),
        )  # fmt: skip
        visit.records.append(record)
        if error is None or isinstance(error, Bail):
            if self.memory is not None:
                self.memory.action(branch.id, branch.position, visit.stage.name, record, payload)
            branch.position += 1
        if self.notify is not None:
            self.notify(ActionFinished(self.run.id, visit.stage.name, step.name, status, failure, elapsed))
        return error

    def _take_effect(
        self,
        branch: _Branch,
        visit: _Visit,
        step: Step,
        value: Any,
        context: Context | None,
        call: Call | None,
        seen: dict[str, Any] | None,
        bail: BaseException | None,
    ) -> tuple[tuple[Unit | Stream, ...], tuple[tuple[str, bool], ...], bytes]:
        """Write, insert and switch what the action did; return what it inserted and switched, and the journal's copy."""
        inserted, data = ((), UNSET) if value is UNSET else sort_out(step, value)
        recovered = call is not None and call._recovered
        if call is not None and call._inserted:
            inserted = (*call._inserted, *inserted)
        if recovered:
            context = None  # what a failing action wrote, inserted or disabled is dropped
        if context is not None:
            inserted = (*context._inserted, *inserted)
        switches = tuple(context._switches) if context is not None else ()
        store, memory = branch.store, self.memory
        payload = b""
        log = store.begin() if context is not None or data is not UNSET or memory is not None else None
        try:
            if context is not None:
                store.apply(context.store.delta())
            if data is not UNSET:
                step.deliver(data, store)
            if inserted:
                self._check_wiring(branch, visit.frame, inserted, visit)
                if memory is not None:
                    memory.check_repeatable(inserted, step.name)
            if memory is not None:
                delta = store.recent()
                memory.changed(store, seen or {}, delta)
                payload = memory.payload(
                    f"action {step.name!r} of stage {visit.stage.name!r}",
                    delta,
                    inserted=inserted,
                    switches=switches,
                    error=call._failure if call is not None and recovered else None,
                    attempts=call.attempt if call is not None and call.attempt > 1 else None,
                    recovered=recovered,
                    result=() if data is UNSET or data is None else step.where(data),
                    reason=(bail.reason,) if isinstance(bail, Bail) else None,
                )
            if store._recent is not None:
                store.taken()
        except BaseException:
            if log is not None:
                store.end(log)
                store.rollback(log, forget=True)
            raise
        if log is not None:
            store.end(log)
        if inserted:
            self._insert(visit, step, inserted)
        if data is not UNSET:
            branch.result = data
        for selector, on in switches:
            branch.switches.pop(selector, None)
            branch.switches[selector] = on
        return inserted, switches, payload

    def _insert(self, visit: _Visit, step: Step, inserted: tuple[Unit | Stream, ...]) -> None:
        who = f"{visit.stage.name}/{step.name}"
        actions = [step_of(cast("Any", unit)) for unit in inserted if type(unit) is Action]
        visit.queue.extend((action, who) for action in reversed(actions))
        visit.inserted.extend((unit, who) for unit in inserted if type(unit) is not Action)
        if self.notify is not None:
            names = tuple(unit.name for unit in inserted)
            self.notify(UnitsInserted(self.run.id, visit.stage.name, step.name, names))

    # The past of a resumed run.

    def _taken(self, branch: _Branch, stage: Stage) -> StagePast | None:
        """Return the past of a stage whose turn has come, if that is what came next then."""
        names = {stage.name, stage.template.name if stage.template is not None else stage.name}
        if self.copying_until in names and branch.past is not None:
            branch.past.stages.clear()
            self.copying_until = None
            return None
        return branch.past.take(stage.name) if branch.past is not None else None

    def _restored(
        self, branch: _Branch, visit: _Visit, step: Step, by: str | None
    ) -> Generator[Request, Any, tuple[bool, Failure]]:
        """Restore an action instead of performing it; return whether it was there, and what speaks against going on."""
        where = f"action {visit.stage.name}/{step.name}"
        did = visit.past[0] if visit.past else None
        if did is None and visit.before is not None and visit.before.cut_short:
            failed = visit.before.failed
            if failed is not None:
                visit.records.append(failed._replace(action=step.action))
            visit.queue.clear()
            return True, None
        if did is None:
            return False, (yield from self._go_on(branch, where))
        if did.record.name != step.name:
            self.changes.append(f"{where} comes where the run had {visit.stage.name}/{did.record.name}")
            return False, (yield from self._leave_past(branch, visit))
        if not did.same(step.action):
            self.changes.append(f"{where} has completed, with other code")
            if self.on_change == "rerun":
                return False, (yield from self._leave_past(branch, visit))
        cast("deque[Did]", visit.past).popleft()
        branch.store.restore(did.delta)
        record = did.record._replace(action=step.action, inserted_by=by)
        if record.status is Status.BAILED:
            record = record._replace(error=Bail(did.reason))
        visit.records.append(record)
        self._insert(visit, step, record.inserted)
        if did.result is not UNSET:
            branch.result = did.result
        for selector, on in record.switches:
            branch.switches.pop(selector, None)
            branch.switches[selector] = on
        if self.copying and self.memory is not None:
            self.memory.copy(branch.id, branch.position, did)
        branch.position += 1
        return True, record.error if isinstance(record.error, Bail) else None

    def _ended_here(self, branch: _Branch, past: StagePast | None) -> _Frame | None:
        """Return the pipeline around a stage that failed in the past, where that failure was recovered."""
        if past is not None and past.record is not None:
            return None
        return next((f for f in reversed(branch.frames) if f.closed is not None and f.closed.failed), None)

    def _restore_failed(self, branch: _Branch, stage: Stage, past: StagePast | None, ended: _Frame) -> None:
        """Restore what a failed stage had done, and go on where its failure was recovered."""
        for did in past.actions if past is not None else ():
            branch.store.restore(did.delta)
            branch.position += 1
        failed = cast("Closed", ended.closed).failed
        scope = branch.frames[-1].scope
        failed = tuple(record if record.scope else record._replace(scope=scope) for record in failed)
        branch.records.extend(r._replace(stage=stage) if r.name == stage.name else r for r in failed)
        while branch.frames[-1] is not ended:
            branch.frames.pop()
        ended.queue.clear()

    def _leave_past(self, branch: _Branch, visit: _Visit) -> Walk:
        cast("deque[Did]", visit.past).clear()
        cast("Past", branch.past).stages.clear()
        branch.diverged = True
        return self._go_on(branch, "")

    def _go_on(self, branch: _Branch, where: str) -> Walk:
        """Leave the past behind: what comes now was never done; return what speaks against it."""
        past = cast("Past", branch.past)
        if past.stages:
            self.changes.append(f"{where} comes where the run had stage {past.stages[0].name!r}")
            branch.diverged = True
        if self.changes and self.on_change == "error":
            return CodeChangedError.listing(self.run.id, self.changes)
        branch.past = None
        if self.memory is not None and branch.diverged:
            return (yield from self._drop({branch.id: branch.position}))
        return None

    def _restored_stage(self, branch: _Branch, visit: _Visit, past: StagePast, by: str | None) -> Failure:
        """Restore the end of a stage that was over; return what speaks against it."""
        if visit.past:
            self.changes.append(f"action {visit.stage.name}/{visit.past[0].record.name} has completed, and is gone")
            if self.on_change == "error":
                return CodeChangedError.listing(self.run.id, self.changes)
        closed = cast("Closed", past.closed)
        branch.store.restore(closed.delta)
        record = cast("StageRecord", past.record)
        record = record._replace(stage=visit.stage, inserted_by=by, actions=visit.records, scope=visit.frame.scope)
        branch.records.append(record)
        visit.inserted.extend((unit, visit.stage.name) for unit in closed.inserted)
        visit.frame.queue.extend(reversed(visit.inserted))
        if self.copying and self.memory is not None:
            self.memory.stage(branch.id, branch.position, record, closed.delta or _NOTHING)
        branch.position += 1
        return None

    def _remember_stage(self, branch: _Branch, record: StageRecord) -> Failure:
        """Note that a stage is over; return the error of what cannot be written to the journal."""
        if self.memory is not None:
            try:
                self.memory.stage(branch.id, branch.position, record, branch.store.recent())
            except Exception as error:
                return error
        if branch.store._recent is not None:
            branch.store.taken()
        branch.position += 1
        return None

    def _remember_pipeline(self, branch: _Branch, frame: _Frame, closed: Closed) -> Failure:
        if self.memory is not None and (frame.closed is None or self.copying):
            delta = branch.store.recent() if frame.closed is None else cast("Delta", frame.closed.delta)
            try:
                self.memory.pipeline(
                    branch.id,
                    branch.position,
                    frame.pipeline.name,
                    self.clock() + self.epoch,
                    delta,
                    closed,
                    frame.number,
                )
            except Exception as error:
                return error
            branch.store.taken()
        elif self.history is None:
            branch.trace.closed[frame.number] = closed._replace(delta=None)
            branch.store.taken()
        branch.position += 1
        return None

    def _watch(self, branch: _Branch) -> None:
        """Have the store tell what middleware writes whose scope may be entered again, if the run is resumed."""
        if self.history is None and branch.store._recent is None:
            branch.store.watch()

    def _drop(self, cuts: dict[str, int]) -> Walk:
        """Have the journal forget what a retry, or a change of the code, has made void."""
        if self.memory is None:
            return None
        answer = yield Save(self.memory.drop, cuts)
        return answer.error if type(answer) is Raised else None

    def _check_wiring(
        self, branch: _Branch, frame: _Frame, units: tuple[Unit | Stream, ...], visit: _Visit | None = None
    ) -> None:
        """Refuse units that need what certainly nothing supplies; where middleware may supply it, nothing is certain."""
        if frame.wrapped or not unmet(units, branch.store, self.skip):
            return
        if visit is None:
            coming = [(unit, True) for unit in units]
        elif visit.stage.use or visit.use_actions:
            return
        else:
            coming = [(unit, True) for unit in units if type(unit) is Action]
            coming += [(step.action, False) for step, _ in reversed(visit.queue)]
            coming += [(unit, False) for unit, _ in visit.inserted if not isinstance(unit, _OpenStream)]
            coming += [(unit, True) for unit in units if type(unit) is not Action]
        check_inserted(coming, branch.store, self.skip)

    def _upcoming(self, branch: _Branch, visit: _Visit) -> Iterator[Unit | Stream]:
        yield from (unit for unit, _ in visit.inserted if not isinstance(unit, _OpenStream))
        yield from branch.upcoming()

    # Parallel groups.

    def _group(self, branch: _Branch, frame: _Frame, group: Parallel, by: str | None) -> Walk:
        if self._off(branch, stage_selectors(group)):
            self._skip(branch, group, by, frame.scope)
            return None
        number, branch.groups = branch.groups, branch.groups + 1
        forks: list[_Branch] = []
        scope = cast("Scope", self._scope(branch, group, by, frame.scope))
        for index, unit in enumerate(group.units):
            within = scope._replace(branch=index)
            base = _Frame(frame.pipeline, by, frame.use_stages, frame.use_actions, frame.values, frame.wrapped, within)
            base.queue.append((unit, by))
            past = branch.past.fork(number, index) if branch.past is not None else None
            kept = past.store if past is not None else None
            store = branch.store.fork() if kept is None else kept.revived(self.given)
            fork = _Branch(store, base, branch, branch_id(branch.id, number, index), past)
            forks.append(fork)
            if branch.past is not None and past is None:
                fork.past = Past((), {}, _no_past)
            if self.memory is not None:
                branch.forks.append((number, fork))
                if self.changes:
                    yield from self._drop({fork.id: 0} if fork.past is None else {})
        started_at = len(branch.records) + branch.forgotten

        def stop() -> None:
            for fork in forks:
                fork.stopped = True

        crew = Crew([self._walk(fork) for fork in forks], group.limit, self.tickets, stop)
        yield from crew.work()
        error = crew.verdict(group, self.cancels)
        for fork in forks:
            fork.keep_past()
            branch.records.extend(fork.records)
            branch.lost += fork.forgotten + fork.lost
        if any(fork.diverged for fork in forks) and branch.past is not None:
            branch.past.stages.clear()
            branch.past.closed.clear()
            branch.diverged = True
        taking = forks if error is None else []
        if isinstance(error, Bail):
            taking = [fork for fork, member in zip(forks, crew.members, strict=True) if member.error is error]
        try:
            branch.store.apply(merged(group, [fork.store.delta() for fork in taking]))
        except Exception as refused:  # a conflict, or a reducer that raises
            error = refused
        else:
            if self.memory is None and branch.store._recent is not None:
                branch.store.taken()
            before = dict(branch.switches)
            for fork in taking:
                branch.switches.update({key: on for key, on in fork.switches.items() if before.get(key) is not on})
                branch.result = fork.result if fork.result is not None else branch.result
        if self.history is None:
            branch.trace.add_group(started_at, [fork.trace_of(error is not None) for fork in forks])
        else:
            self._forget(branch)
        if error is not None and not isinstance(error, (Bail, Suspend)):
            self._note(error, f"parallel group {group.name!r}, pipeline {frame.pipeline.name!r}")
        return error

    # What is not to run.

    def _off(self, branch: _Branch, selectors: list[str]) -> bool:
        skipped = self.skip.intersection(selectors)
        if skipped:
            self.unmatched -= skipped
            return True
        latest = [on for selector, on in branch.switches.items() if selector in selectors]
        return bool(latest) and not latest[-1]

    def _skip(self, branch: _Branch, unit: Unit, by: str | None, scope: Scope | None) -> None:
        """Record a unit, with all that is in it, as skipped."""
        if isinstance(unit, (Pipeline, Parallel)):
            self.unmatched.difference_update(stage_selectors(unit))
            scope = self._scope(branch, unit, by, scope)
            for index, part in enumerate(unit.units):
                within = scope._replace(branch=index) if scope is not None and isinstance(unit, Parallel) else scope
                self._skip(branch, part, by, within)
            return
        stage = one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else cast("Stage", unit)
        if self.skip:
            self.unmatched.difference_update(stage_selectors(stage))
            for action in stage:
                self.unmatched.difference_update(action_selectors(stage, action))
        record = branch.past.skip(stage.name) if branch.past is not None else None
        if record is None:
            record = StageRecord(stage.name, stage, Status.SKIPPED, self.clock() + self.epoch, 0.0, by, [])
            if self.memory is not None:
                self.memory.stage(branch.id, branch.position, record, _NOTHING)
        branch.position += 1
        branch.records.append(record._replace(stage=stage, inserted_by=by, scope=scope))
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self.notify(StageFinished(self.run.id, stage.name, Status.SKIPPED, None, 0.0))

    # What became of it.

    def _status(self, error: Failure) -> Status:
        if error is None:
            return Status.COMPLETED
        if isinstance(error, Bail):
            return Status.BAILED
        if isinstance(error, Suspend):
            return Status.SUSPENDED
        return Status.CANCELLED if self.cancels(error) else Status.FAILED

    def _outcome(self, error: Failure, call: Call | None) -> tuple[Status, Failure, int, bool]:
        """Return status, error, attempts and whether it was recovered, for the record."""
        if call is None:
            return self._status(error), error, 1, False
        if error is None and call._recovered:
            return Status.FAILED, call._failure, call.attempt, True
        if error is None and not call._ran and call._outcome is UNSET:
            return Status.SKIPPED, None, call.attempt, False
        return self._status(error), error, call.attempt, False

    def _note(self, error: BaseException, where: str) -> None:
        """Say once where in the run an exception came from."""
        place = f"run {self.run.id!r}"
        if not any(note.endswith(place) for note in getattr(error, "__notes__", ())):
            with suppress(Exception):  # an exception that cannot be written to
                error.add_note(f"in {where}, {place}")


def unknown_stage(name: str, known: Iterable[str]) -> JournalError:
    """Return the error of a fork from a stage that the run does not have."""
    return JournalError(f"there is no stage {name!r} to go on from in this run. {suggestion(name, known)}")


def _no_past(place: tuple[int, int]) -> None:
    return None


def _ended() -> Cancelled:
    return Cancelled("the group has been ended by another branch")


def _merge(branch: _Branch, stage: Stage) -> Failure:
    try:
        branch.store.update(stage.data)
    except Exception as error:  # of the copying of a value
        return error
    return None


_NOTHING: Final = Delta({}, [], {})
_PULL: Final = Chore(next, "stream")

# What is done with a unit when its turn has come.
_BEGIN: Final[dict[type, Callable[..., Walk]]] = {
    Stage: Evaluation._stage,
    Action: Evaluation._bare_action,
    Pipeline: Evaluation._open,
    Parallel: Evaluation._group,
    Stream: Evaluation._open_stream,
    _OpenStream: Evaluation._pull,
}
