"""What runs next: the law of order, as a generator that performs nothing.

Theory of operation
===================

A run is a walk over a stack of *frames*, one for each open pipeline. A frame has a queue: the units that are still to
run in it, the next one last. The walk takes the next unit from the innermost frame and

1. runs a stage: its actions one by one, each from a queue of the same kind;
2. opens a pipeline that has options: a new frame;
3. forks a parallel group: a walk of its own for each branch, over a store of its own, merged in branch order (L9); a
   branch that is a single call does without (`Leaf`), unless more comes of it than data;
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
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, ClassVar, Final, cast

from flowdeco.engine.context import Context
from flowdeco.engine.frames import Before, Branch, Failed, Frame, Leaf, OpenStream, Queued, Split, Visit, single_call
from flowdeco.engine.groups import Crew, ended_by_another, merged
from flowdeco.engine.layers import Call, enter, leave, merging
from flowdeco.engine.memory import Memory
from flowdeco.engine.past import STAGE, Closed, GroupPast, GroupTrace, ScopePast, failed_action
from flowdeco.engine.requests import Await, Chore, Failure, Raised, Request, Save, Walk
from flowdeco.engine.results import PLAIN, SETTLED, Yielded, exhaust, sort_out, written
from flowdeco.engine.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.errors import Bail, MissingInputError, ReturnValueError, Suspend
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
from flowdeco.model.definitions import (
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
from flowdeco.model.options import UNSET, Middleware
from flowdeco.model.store import NOTHING
from flowdeco.model.wiring import Step, check_inserted, may_supply, note_suppliers, step_of, unmet

__all__ = ["Evaluation"]


_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]
_COMPLETED: Final = Status.COMPLETED
_WELL: Final = _COMPLETED, None, 1, False


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
        memory: Memory | None = None,
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
        self.memory = memory
        self.unsaved: Failure = None  # why the journal has nothing any more: nobody recovers from that
        self.branch = Branch(run.store, Frame(run.pipeline, None, (), (), {}, wrapped=False))

    def walk(self) -> Generator[Request, Any, None]:
        """Evaluate the run's pipeline; everything that came of it is in the run."""
        run = self.run
        began = self.clock()
        run.started, run.status = began + self.epoch, Status.RUNNING
        branch = self.branch
        if self.memory is not None:
            branch.store._watch()
        error: Failure = None
        try:
            if self.notify is not None:
                self.notify(RunStarted(run.id, run.pipeline.name, _stages_in(run.pipeline.units)))
            error = yield from self._open(branch, branch.frames[0], run.pipeline, None, self.use)
        except GeneratorExit:
            raise
        except BaseException as interrupted:
            error = interrupted
        error = yield from self._walk(branch, error)
        if isinstance(error, Bail):
            self._settle(branch)
        if branch.rows:
            yield from self._save(branch)
        if error is None or isinstance(error, (Bail, Suspend)):
            error = error if self.unsaved is None else self.unsaved
        run.elapsed = self.clock() - began
        run.stages = (
            branch.records if self.history is None else branch.records[max(0, len(branch.records) - self.history) :]
        )
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

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        """Evaluate what is in the frames of a branch until none is left; return the failure that got out."""
        frames, begin = branch.frames, self.BEGIN
        while frames:
            try:
                frame = frames[-1]
                if error is None and (branch.stopped or self.unsaved is not None):
                    error = ended_by_another() if self.unsaved is None else self.unsaved
                if error is None and frame.queue:
                    unit, by = frame.queue.pop()
                    error = yield from begin[type(unit)](self, branch, frame, unit, by)
                else:
                    error = yield from self._close(branch, frame, error)
            except GeneratorExit:
                raise
            except BaseException as interrupted:  # Ctrl-C between two calls
                error = interrupted
        if branch.rows and branch.parent is not None:  # the others of its group may take long
            error = (yield from self._save(branch)) or error
        return error

    def _open(
        self, branch: Branch, frame: Frame, pipeline: Pipeline, by: str | None, use: tuple[Middleware, ...] = ()
    ) -> Walk:
        if pipeline is not self.run.pipeline and self._off(branch, stage_selectors(pipeline)):
            return (yield from self._skip(branch, pipeline, by, frame.scope))
        layers = use + pipeline.use
        while not layers and len(branch.frames) > 1 and branch.frames[-1].is_done():
            branch.frames.pop()  # nothing is left to do in there: a pipeline that returns itself is a loop, too
        use_stages, use_actions = frame.use_stages + pipeline.use_stages, frame.use_actions + pipeline.use_actions
        wrapped = frame.wrapped or may_supply(layers + use_stages + use_actions)
        is_last = bool(frame.pipeline.units) and frame.pipeline.units[-1] is pipeline
        scope = self._scope(branch, pipeline, by, frame.scope if is_last else branch.frames[-1].scope)
        opened = Frame(pipeline, by, use_stages, use_actions, frame.values, wrapped, scope)
        branch.frames.append(opened)
        if not layers:
            opened.refill()
            return None
        opened.number, branch.opened = branch.opened, branch.opened + 1
        return (yield from self._open_in_layers(branch, opened, layers))

    def _open_in_layers(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        self._watch(branch)
        frame.before = branch.before()
        frame.call = Call(self.run.id, branch.store, layers, frame.values, frame.pipeline)
        return (yield from self._enter(branch, frame, frame.call))

    def _scope(self, branch: Branch, unit: Pipeline | Parallel, by: str | None, outer: Scope | None) -> Scope | None:
        """Return what the records of this unit will say they are in."""
        if isinstance(unit, Pipeline) and (unit.plain or (unit is self.run.pipeline and by is None)):
            return outer
        branch.scopes += 1
        return Scope(unit.name, f"{branch.id}.{branch.scopes}", None, by, outer)

    def _enter(self, branch: Branch, frame: Frame, call: Call) -> Walk:
        entered = enter(call)
        inside, error = entered if isinstance(entered, tuple) else (yield from entered)
        self._entered(branch, frame.number, call)
        frame.values = call._values
        if inside:
            frame.refill()
        return error

    def _close(self, branch: Branch, frame: Frame, error: Failure) -> Walk:
        if frame.queue:
            yield from self._discard(frame.queue)
        call = frame.call
        if call is None:
            branch.frames.pop()
            return error
        if error is not None:
            self._note(error, f"pipeline {frame.pipeline.name!r}")
            self._leave_behind(branch, frame.number, call, cast("Before", frame.before))
        left = leave(call, error)
        again, error = left if isinstance(left, tuple) else (yield from left)
        if again:
            cuts = branch.go_back(cast("Before", frame.before))
            error = yield from self._drop(cuts)
            return error or (yield from self._enter(branch, frame, call))
        branch.frames.pop()
        if error is None:
            branch.frames[-1].queue.extend((unit, frame.pipeline.name) for unit in reversed(call._inserted))
            self._tell_inserted(None, None, call._inserted)
        elif not isinstance(error, Bail):
            if call._undone:
                before = cast("Before", frame.before)
                branch.trace.undone = before.records, frame.number, before.position
            return error
        return self._remember_pipeline(branch, frame, call, bailed=error is not None) or error

    def _discard(self, queue: list[Queued]) -> Generator[Request, Any, None]:
        """Empty a queue that will not be run, and close the streams in it."""
        for unit, _ in reversed(queue):
            if isinstance(unit, OpenStream):
                yield from self._close_stream(unit)
        queue.clear()

    # Streams.

    def _open_stream(self, branch: Branch, frame: Frame, stream: Stream, by: str | None) -> Walk:
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
        frame.queue.append((OpenStream(stream, iterator), by))
        return None

    def _pull(self, branch: Branch, frame: Frame, stream: OpenStream, by: str | None) -> Walk:
        iterator: object = stream.iterator
        if isinstance(iterator, AsyncIterable):
            answer = yield Await(anext(cast("Any", iterator)))
            if type(answer) is Raised and isinstance(answer.error, StopAsyncIteration):
                answer = UNSET
        else:
            answer = yield _PULL, (stream.iterator, UNSET), None
        return self._pulled(branch, frame, stream, by, answer)

    def _pulled(self, branch: Branch, frame: Frame, stream: OpenStream, by: str | None, answer: Any) -> Failure:
        """Run next what a stream has given, before what is left of it; `UNSET` is its end."""
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

    def _close_stream(self, stream: OpenStream) -> Generator[Request, Any, None]:
        if hasattr(stream.iterator, "aclose"):
            yield Await(stream.iterator.aclose())
        elif hasattr(stream.iterator, "close"):
            yield Chore(stream.iterator.close, "stream"), (), None

    # Stages.

    def _bare_action(self, branch: Branch, frame: Frame, action: Action[..., Any], by: str | None) -> Walk:
        return self._stage(branch, frame, one_action_stage(action), by)

    def _stage(self, branch: Branch, frame: Frame, stage: Stage, by: str | None) -> Walk:
        if (self.skip or branch.switches) and self._off(branch, stage_selectors(stage)):
            return self._skip(branch, stage, by, frame.scope)
        return self._visit(branch, Visit(stage, frame), by)

    def _visit(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        """Run a stage."""
        stage, frame = visit.stage, visit.frame
        started = self.clock()
        if self.notify is not None:
            self.notify(_new(StageStarted, (self.run.id, stage.name, by, _place(frame.scope))))
        call: Call | None = None
        if frame.use_stages or stage.use:
            layers = (*frame.use_stages, *((merging(stage),) if stage._data else ()), *stage.use)
            self._watch(branch)
            call = Call(self.run.id, branch.store, layers, frame.values, frame.pipeline, stage)
            error = yield from self._stage_in_layers(branch, visit, call)
        else:
            try:
                error = _merge(branch, stage) if stage._data else None
                if error is None:
                    error = yield from self._actions(branch, visit)
            except GeneratorExit:
                raise
            except BaseException as interrupted:  # Ctrl-C between two calls
                error = interrupted
        return self._visited(branch, visit, by, started, call, error)

    def _visited(
        self, branch: Branch, visit: Visit, by: str | None, started: float, call: Call | None, error: Failure
    ) -> Failure:
        """Record a stage that is over, and put on top of the queue what it inserted."""
        stage, frame = visit.stage, visit.frame
        elapsed = self.clock() - started
        status, failure, attempts, recovered = self._outcome(error, call)
        inserted = call._inserted if call is not None and error is None else ()
        record: StageRecord = _new(
            StageRecord,
            (
                stage.name, stage, status, started + self.epoch, elapsed, by, visit.records,
                failure, attempts, recovered, inserted, frame.scope,
            ),
        )  # fmt: skip
        if error is None or isinstance(error, Bail):
            refused = self._remember_stage(branch, record)
            if refused is not None:
                record, error = record._replace(status=Status.FAILED, error=refused, recovered=False), refused
        branch.records.append(record)
        if record.error is not None:
            self._note(record.error, f"stage {stage.name!r}, pipeline {frame.pipeline.name!r}")
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self._tell_inserted(stage.name, None, inserted if error is None else ())
            status, failure, recovered = record.status, record.error, record.recovered
            told = self.run.id, stage.name, status, failure, elapsed, attempts, recovered, False
            self.notify(_new(StageFinished, told))
        if error is not None:
            if not isinstance(error, Bail):
                branch.failures.append(Failed(branch, record, branch.position))
            return error
        if inserted:
            visit.inserted.extend((unit, stage.name) for unit in inserted)
        if visit.inserted:
            frame.queue.extend(reversed(visit.inserted))
        return None

    def _stage_in_layers(self, branch: Branch, visit: Visit, call: Call) -> Walk:
        before = branch.before()
        error: Failure = None
        while True:
            if error is None:
                entered = enter(call)
                inside, error = entered if isinstance(entered, tuple) else (yield from entered)
                self._entered(branch, STAGE, call)
                visit.values = call._values
                visit.begin()
                if inside:
                    error = yield from self._inside(branch, visit)
            if error is not None:
                self._leave_behind(branch, STAGE, call, before)
            left = leave(call, error)
            again, error = left if isinstance(left, tuple) else (yield from left)
            if not again:
                if error is not None and call._undone:
                    branch.trace.undone = before.records, before.opened, before.position
                return error
            error = yield from self._drop(branch.go_back(before))

    def _inside(self, branch: Branch, visit: Visit) -> Walk:
        try:
            return (yield from self._actions(branch, visit))
        except GeneratorExit:
            raise
        except BaseException as interrupted:  # Ctrl-C between two calls
            return interrupted

    def _forget(self, branch: Branch) -> None:
        """Keep the records in bounds, in one go whenever twice as many as wanted have come together."""
        excess = len(branch.records) - cast("int", self.history)
        if excess > cast("int", self.history):
            del branch.records[:excess]
            branch.forgotten += excess

    # Actions.

    def _actions(self, branch: Branch, visit: Visit) -> Walk:
        """Run the actions of a stage, and those they insert; return the failure that ended it."""
        queue, stage, store, run_id = visit.queue, visit.stage, branch.store, self.run.id
        read, clock, notify, memory = store._data.__getitem__, self.clock, self.notify, self.memory
        filtered = bool(self.skip or branch.switches)
        while queue:
            if branch.stopped:
                return ended_by_another()
            step, by = queue.pop()
            if filtered and self._off(branch, action_selectors(stage, step.action)):
                error = self._skip_action(branch, visit, step, by)
                if error is not None:
                    return error
                continue
            started = clock()
            values, inside, error = visit.values, True, None
            found: Any = None
            context: Context | None = None
            payload: bytes | None = None
            layers = visit.use_actions + step.use if step.use else visit.use_actions
            call = Call(run_id, store, layers, values, visit.frame.pipeline, stage, step.action) if layers else None
            if layers and store._recent is None:
                self._watch(branch)
            seen = None if memory is None else memory.seen(store, step.keys) if step.keys else {}
            try:
                if notify is not None:
                    notify(_new(ActionStarted, (self.run.id, stage.name, step.name, by)))
                while True:  # attempts
                    value = UNSET
                    if call is not None:
                        entered = enter(call)
                        inside, error = entered if isinstance(entered, tuple) else (yield from entered)
                        values = call._values
                    if inside:
                        context = self._context(branch, visit, step, seen) if step.wants_context else None
                        # What most actions need is in the store; where it is not, the long way knows why.
                        try:
                            found = (tuple(map(read, step.keys)), None) if step.simple and not values else None
                        except KeyError:
                            found = None
                        if found is None:
                            found = self._arguments(branch, visit, step, values, context)
                        value = found if type(found) is Raised else (yield step, *found)
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
                    context = None
            except GeneratorExit:
                raise
            except BaseException as interrupted:  # Ctrl-C between two calls
                value = Raised((yield from self._unwound(call, interrupted)))
            # Most actions return nothing, or plain data, and no more is to be done about it.
            key, attempts = step.writes, 1 if call is None else call.attempt
            if (
                (value is None or (type(value) in PLAIN and key is not None))
                and context is None
                and (call is None or not (call._recovered or call._inserted))
                and (memory is None or not (seen or store._recent or attempts > 1))
                and (memory is None or (payload := memory.plain(key, value)))
            ):
                if value is not None:
                    branch.result = value
                    if store._logs:
                        store[key] = value
                    else:
                        store._data[key] = value
                branch.position += 1
                elapsed = clock() - started
                outcome = _COMPLETED, started + self.epoch, elapsed, by, None, attempts, False, (), ()
                record = _new(ActionRecord, (step.name, step.action, *outcome))
                if store._recent:
                    store._taken()
                visit.records.append(record)
                if notify is not None:
                    told = self.run.id, stage.name, step.name, _COMPLETED, None, elapsed, attempts, False
                    notify(_new(ActionFinished, told))
                if memory is not None:
                    branch.rows.append(
                        memory.completed(branch.id, branch.position - 1, stage.name, step, record, payload)
                    )
                    if self.unsaved is None:  # as in `_save`
                        rows, branch.rows = branch.rows, []
                        answer = yield memory.saving(rows)
                        if type(answer) is Raised:
                            self.unsaved = answer.error
                    if self.unsaved is not None:
                        return self.unsaved
                continue
            error = self._conclude(branch, visit, step, by, started, value, context, call, seen)
            if branch.rows:
                error = (yield from self._save(branch)) or error
            if error is not None:
                return error
            filtered = bool(self.skip or branch.switches)
        return None

    def _skip_action(self, branch: Branch, visit: Visit, step: Step, by: str | None) -> Failure:
        """Record an action as skipped."""
        record = ActionRecord(step.name, step.action, Status.SKIPPED, self.clock() + self.epoch, 0.0, by)
        if self.memory is not None:
            try:
                payload = self.memory.payload(f"stage {visit.stage.name!r}", branch.store._untaken())
            except Exception as error:
                return error
            branch.rows.append(self.memory.action(branch.id, branch.position, visit.stage.name, record, payload))
        if branch.store._recent is not None:
            branch.store._taken()
        visit.records.append(record)
        branch.position += 1
        if self.notify is not None:
            self.notify(ActionFinished(self.run.id, visit.stage.name, step.name, Status.SKIPPED, None, 0.0))
        return None

    def _unwound(self, call: Call | None, interrupted: BaseException) -> Generator[Request, Any, BaseException]:
        """Close the layers around an action for good; return what interrupted it."""
        while call is not None and call._opened:
            yield from cast("Generator[Request, Any, Any]", leave(call, interrupted))
        return interrupted

    def _context(self, branch: Branch, visit: Visit, step: Step, seen: dict[str, Any] | None) -> Context:
        context = Context(
            self.run.id, visit.frame.pipeline, visit.stage, step.action, branch.store,
            lambda: self._upcoming(branch, visit), self.notify, (branch.id, branch.position),
        )  # fmt: skip
        if seen is not None and self.memory is not None:
            memory = self.memory
            context.store._on_read = lambda name: seen.update(
                memory.seen(branch.store, () if name in seen else (name,))
            )
        return context

    def _arguments(
        self, branch: Branch, visit: Visit, step: Step, values: Mapping[str, Any], context: Context | None
    ) -> Any:
        """Return what to call an action with, positional and by name, or `Raised`."""
        try:
            return step.gather(branch.store, values, context, visit.stage.name)
        except MissingInputError as error:
            ran = [record for stage in branch.records for record in stage.actions] + visit.records
            completed = [record.action for record in ran if record.status is _COMPLETED]
            note_suppliers(error, step, branch.store, completed)
            return Raised(error)
        except Exception as error:
            return Raised(error)

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
        branch: Branch,
        visit: Visit,
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
        if failure is not None:
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
        took_effect = error is None or isinstance(error, Bail)
        if took_effect and branch.store._recent is not None:  # at once with the record, or Ctrl-C has it done twice
            branch.store._taken()
        visit.records.append(record)
        if took_effect:
            if self.memory is not None:
                branch.rows.append(self.memory.action(branch.id, branch.position, visit.stage.name, record, payload))
            branch.position += 1
        if self.notify is not None:
            what = step.name, status, failure, elapsed, attempts, recovered
            self.notify(ActionFinished(self.run.id, visit.stage.name, *what))
        return error

    def _take_effect(
        self,
        branch: Branch,
        visit: Visit,
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
        log = store._begin() if context is not None or data is not UNSET or memory is not None else None
        try:
            if context is not None:
                store._apply(context.store._delta())
            if data is not UNSET:
                step.deliver(data, store)
            if inserted:
                self._check_wiring(branch, visit.frame, inserted, visit)
                if memory is not None:
                    memory.check_repeatable(inserted, step.name)
            if memory is not None:
                delta = store._untaken()
                memory.changed(store, seen or {}, delta)
                payload = memory.payload(
                    f"action {step.name!r} of stage {visit.stage.name!r}",
                    delta,
                    inserted=inserted,
                    switches=switches,
                    error=call._failure if call is not None and recovered else bail,
                    attempts=call.attempt if call is not None and call.attempt > 1 else None,
                    recovered=recovered,
                    result=() if data is UNSET or data is None else step.where(data),
                )
        except BaseException:
            if log is not None:
                store._end(log)
                store._rollback(log, forget=True)
            raise
        if log is not None:
            store._end(log)
        if inserted:
            self._insert(visit, step, inserted)
        if data is not UNSET:
            branch.result = data
        for selector, on in switches:
            branch.switch(selector, on)
        return inserted, switches, payload

    def _insert(self, visit: Visit, step: Step, inserted: tuple[Unit | Stream, ...]) -> None:
        who = f"{visit.stage.name}/{step.name}"
        actions: list[tuple[Step, str]] = []
        for unit in inserted:
            if type(unit) is Action:
                actions.append((step_of(cast("Any", unit)), who))
            else:
                visit.inserted.append((unit, who))
        visit.queue.extend(reversed(actions))
        if self.notify is not None:
            self._tell_inserted(visit.stage.name, step.name, inserted, len(actions))

    def _tell_inserted(
        self, stage: str | None, action: str | None, units: tuple[Unit | Stream, ...], actions: int = 0
    ) -> None:
        """Tell observers what was inserted; actions that were inserted into a stage are none themselves."""
        if units and self.notify is not None:
            names = tuple(unit.name for unit in units)
            self.notify(UnitsInserted(self.run.id, stage, action, names, _stages_in(units) - actions))

    # What is remembered of a run, in its journal or in memory.

    def _remember_stage(self, branch: Branch, record: StageRecord) -> Failure:
        """Note that a stage is over; return the error of what cannot be written to the journal."""
        if record.recovered:
            self._remember_failed_action(branch, branch, record)
        if self.memory is not None:
            try:
                row = self.memory.stage(branch.id, branch.position, record, branch.store._untaken())
            except Exception as error:
                return error
            branch.rows.append(row)
        if branch.store._recent is not None:
            branch.store._taken()
        branch.position += 1
        return None

    def _remember_pipeline(self, branch: Branch, frame: Frame, call: Call, *, bailed: bool) -> Failure:
        """Note that the middleware of a pipeline is over; return the error of what cannot be written to the journal."""
        self._settle(branch)
        inserted = () if bailed else call._inserted
        closed = Closed(branch.position, branch.opened, None, inserted, early=bailed or call._recovered)
        if self.memory is not None:
            now, delta = self.clock() + self.epoch, branch.store._untaken()
            try:
                row = self.memory.pipeline(branch.id, frame.pipeline.name, now, delta, closed, frame.number)
            except Exception as error:
                return error
            branch.rows.append(row)
            if not branch.is_revocable():
                branch.forks.clear()
        elif self.history is None:
            branch.trace.closed[frame.number] = closed
        if branch.store._recent is not None:
            branch.store._taken()
        branch.position += 1
        return None

    def _settle(self, branch: Branch) -> None:
        """Note the stages that failed, but are over all the same."""
        for failed, record, _ in branch.failures:
            self._remember_failed_action(branch, failed, record)
            if self.memory is not None:
                branch.rows.append(self.memory.stage(failed.id, failed.position, record, NOTHING))
            failed.position += 1
            failed.trace.settle(len(failed.records))
        branch.failures.clear()

    def _remember_failed_action(self, branch: Branch, failed: Branch, record: StageRecord) -> None:
        """Note, in the rows of a branch, with which action a stage has failed that was recovered since."""
        action = failed_action(record)
        if action is not None:
            if self.memory is not None:
                branch.rows.append(self.memory.action(failed.id, failed.position, record.name, action))
            failed.position += 1

    def _leave_behind(self, branch: Branch, scope: int, call: Call, before: Before) -> None:
        """Keep what another attempt would have gone back to: without a journal, a resumed run has to know."""
        if self.memory is None and self.history is None:
            logs = [log for _, _, log, _, _ in call._opened if log is not None]
            branch.trace.scopes[scope] = ScopePast(logs, before.result)

    def _entered(self, branch: Branch, scope: int, call: Call) -> None:
        """Hear that the layers of a pipeline, or of a stage, are open."""

    def _watch(self, branch: Branch) -> None:
        """Have the store tell what middleware writes whose scope may be entered again, if the run is resumed."""
        if self.history is None and branch.store._recent is None:
            branch.store._watch()

    def _save(self, branch: Branch) -> Walk:
        """Have the journal written what a branch has done."""
        if self.unsaved is None:
            rows, branch.rows = branch.rows, []
            self._saved((yield cast("Memory", self.memory).saving(rows)))
        return self.unsaved

    def _drop(self, cuts: dict[str, int]) -> Walk:
        """Have the journal forget what a retry has made void."""
        if self.memory is not None and self.unsaved is None:
            self._saved((yield Save(self.memory.journal.drop, self.memory.run_id, cuts)))
        return self.unsaved

    def _saved(self, answer: Any) -> None:
        if type(answer) is Raised:
            self.unsaved = answer.error

    def _check_wiring(
        self, branch: Branch, frame: Frame, units: tuple[Unit | Stream, ...], visit: Visit | None = None
    ) -> None:
        """Refuse units that need what certainly nothing supplies; where middleware may supply it, nothing is certain."""
        if frame.wrapped or not unmet(units, branch.store, self.skip):
            return
        if visit is None:
            coming = [(unit, True) for unit in units]
        elif may_supply(visit.stage.use + visit.use_actions):
            return
        else:
            coming = [(unit, True) for unit in units if type(unit) is Action]
            coming += [(step.action, False) for step, _ in reversed(visit.queue)]
            coming += [(unit, False) for unit, _ in visit.inserted if not isinstance(unit, OpenStream)]
            coming += [(unit, True) for unit in units if type(unit) is not Action]
        check_inserted(coming, branch.store, self.skip)

    def _upcoming(self, branch: Branch, visit: Visit) -> Iterator[Unit | Stream]:
        yield from (unit for unit, _ in visit.inserted if not isinstance(unit, OpenStream))
        yield from branch.upcoming()

    # Parallel groups.

    def _group(self, branch: Branch, frame: Frame, group: Parallel, by: str | None) -> Walk:
        if self._off(branch, stage_selectors(group)):
            return (yield from self._skip(branch, group, by, frame.scope))
        position, start = branch.position, len(branch.records) + branch.forgotten
        error = yield from self._begin_group(branch, group)
        if error is not None:
            return error
        scope = cast("Scope", self._scope(branch, group, by, frame.scope))
        split = Split(branch, frame, scope, position, [])
        forks, walks = split.forks, cast("list[Walk]", [])
        plain = self._is_plain(branch, frame)
        for index, unit in enumerate(group.units):
            call = single_call(unit) if plain else None
            if call is not None:
                leaf = Leaf()
                forks.append(leaf)
                walks.append(self._leaf(split, index, leaf, *call))
            else:
                twig = self._branch_of(split, index)
                twig.frames[0].queue.append((unit, by))
                forks.append(twig)
                walks.append(self._walk(twig))

        def stop() -> None:
            for fork in forks:
                fork.stopped = True

        crew = Crew(walks, group.limit, self.tickets, stop)
        try:
            error = yield from self._work(branch, group, forks, crew)
        except GeneratorExit:
            raise
        except BaseException as interrupted:  # Ctrl-C between two calls
            error = interrupted
        for fork in forks:
            branch.records.extend(fork.records)
            if isinstance(fork, Branch):
                branch.lost += fork.forgotten + fork.lost
                branch.rows.extend(fork.rows)
                branch.failures.extend(fork.failures)
        if self.memory is not None and branch.is_revocable():
            ids = (fork.ids() for fork in forks if isinstance(fork, Branch))
            branch.forks.append((position, [id for theirs in ids for id in theirs]))
        error = self._merge_forks(split, group, error, crew)
        if self.history is None:
            unmerged = None if error is None else branch.store
            left = [(len(fork.records), fork.leave(unmerged)) for fork in forks]
            branch.trace.groups.append(GroupTrace(GroupPast(group.name, position, len(forks)), start, left))
        else:
            self._forget(branch)
        if error is not None:
            self._note(error, f"parallel group {group.name!r}, pipeline {frame.pipeline.name!r}")
        return error

    def _merge_forks(self, split: Split, group: Parallel, error: Failure, crew: Crew) -> Failure:
        """Take over what the branches of a group did: all of them, or after a `Bail` that one; return what failed."""
        branch, taking = split.branch, split.forks if error is None else []
        if isinstance(error, Bail):
            taking = [fork for fork, member in zip(split.forks, crew.members, strict=True) if member.error is error]
        try:
            branch.store._apply(merged(group, [fork.delta() for fork in taking]))
        except BaseException as refused:  # a conflict, a reducer that raises, Ctrl-C in one
            return refused
        if self.memory is None and branch.store._recent is not None and error is None:
            branch.store._taken()
        for fork in taking:
            if isinstance(fork, Branch):
                for selector, on in fork.switched.items():
                    branch.switch(selector, on)
            if fork.result is not None:
                branch.result = fork.result
        return error

    def _begin_group(self, branch: Branch, group: Parallel) -> Walk:
        """Note that a group begins, and see to it that the journal has nothing of its branches before that."""
        if self.memory is not None:
            now = self.clock() + self.epoch
            branch.rows.append(self.memory.group(branch.id, branch.position, group.name, now, len(group.units)))
        branch.position += 1
        return (yield from self._save(branch)) if self.memory is not None else None

    def _fork(self, branch: Branch, base: Frame, position: int, index: int) -> Branch:
        """Return a branch of the group at this position, with a store of its own."""
        return Branch(branch.store._fork(), base, branch, (position, index))

    def _is_plain(self, branch: Branch, frame: Frame) -> bool:
        """Whether there is nothing around the branches of a group, and nobody who looks on."""
        around = self.memory or self.notify or self.skip or branch.switches
        return not (around or frame.use_stages or frame.use_actions or frame.values)

    def _branch_of(self, split: Split, index: int) -> Branch:
        """Return a branch of a group that has nothing to do yet."""
        return self._fork(split.branch, split.frame.within(split.scope.of(index)), split.position, index)

    def _leaf(self, split: Split, index: int, leaf: Leaf, stage: Stage, step: Step) -> Walk:
        """Evaluate a branch that is a single call; only if more comes of it than data, it is made a branch like others."""
        try:
            started, by, store = self.clock(), split.scope.inserted_by, split.branch.store
            try:
                args, kwargs = step.gather(store, split.frame.values, None, stage.name)
            except Exception:  # the long way knows what to say
                split.forks[index] = fork = self._branch_of(split, index)
                fork.frames[0].queue.append((stage, by))
                return (yield from self._walk(fork))
            value = yield step, args, kwargs
            delta = written(step, value, store)
            if delta is not None:
                elapsed, began = self.clock() - started, started + self.epoch
                did = step.name, step.action, _COMPLETED, began, elapsed, None, None, 1, False, (), ()
                actions = (_new(ActionRecord, did),)
                what = (
                    stage.name, stage, _COMPLETED, began, elapsed, by, actions, None, 1, False, (), split.scope.of(index),
                )  # fmt: skip
                leaf.records, leaf.written, leaf.result = (_new(StageRecord, what),), delta, value
                return None
            split.forks[index] = fork = self._branch_of(split, index)
            fork.stopped = leaf.stopped
            visit = Visit(stage, fork.frames[0])
            visit.queue.clear()
            if type(value) not in SETTLED:
                value = yield from self._settled(step, value)
            error = self._conclude(fork, visit, step, None, started, value, None, None, None)
            if error is None:
                error = yield from self._actions(fork, visit)  # that it has inserted
            return (yield from self._walk(fork, self._visited(fork, visit, by, started, None, error)))
        except BaseException as interrupted:  # Ctrl-C between two calls
            return interrupted

    def _work(self, branch: Branch, group: Parallel, forks: Sequence[Branch | Leaf], crew: Crew) -> Walk:
        """Run the branches of a group to their end; return the failure or signal that they ended with."""
        yield from crew.work()
        return crew.verdict(group, self.cancels)

    # What is not to run.

    def _off(self, branch: Branch, selectors: list[str]) -> bool:
        skipped = self.skip.intersection(selectors)
        if skipped:
            self.unmatched -= skipped
            return True
        latest = [on for selector, on in branch.switches.items() if selector in selectors]
        return bool(latest) and not latest[-1]

    def _skip(self, branch: Branch, unit: Unit, by: str | None, scope: Scope | None) -> Walk:
        """Record a unit, with all that is in it, as skipped."""
        if isinstance(unit, (Pipeline, Parallel)):
            self.unmatched.difference_update(stage_selectors(unit))
            scope = self._scope(branch, unit, by, scope)
            for index, part in enumerate(unit.units):
                within = scope.of(index) if scope is not None and isinstance(unit, Parallel) else scope
                error = yield from self._skip(branch, part, by, within)
                if error is not None:
                    return error
            return None
        stage = one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else cast("Stage", unit)
        if self.skip:
            self.unmatched.difference_update(stage_selectors(stage))
            for action in stage:
                self.unmatched.difference_update(action_selectors(stage, action))
        return (yield from self._skip_stage(branch, stage, by, scope))

    def _skip_stage(self, branch: Branch, stage: Stage, by: str | None, scope: Scope | None) -> Walk:
        yield from ()
        now = self.clock() + self.epoch
        record = StageRecord(stage.name, stage, Status.SKIPPED, now, 0.0, by, [], scope=scope)
        branch.records.append(record)
        error = self._remember_stage(branch, record)
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self.notify(StageFinished(self.run.id, stage.name, Status.SKIPPED, None, 0.0))
        return error

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
            return _WELL if error is None else (self._status(error), error, 1, False)
        if error is None and call._recovered:
            return Status.FAILED, call._failure, call.attempt, True
        if error is None and not call._ran and call._outcome is UNSET:
            return Status.SKIPPED, None, call.attempt, False
        return self._status(error), error, call.attempt, False

    def _note(self, error: BaseException, where: str) -> None:
        """Say once where in the run a failure came from."""
        place = f"run {self.run.id!r}"
        if isinstance(error, (Bail, Suspend)):
            return
        if not any(note.endswith(place) for note in getattr(error, "__notes__", ())):
            with suppress(Exception):  # an exception that cannot be written to
                error.add_note(f"in {where}, {place}")

    # What is done with a unit when its turn has come.
    BEGIN: ClassVar[dict[type, Callable[..., Walk]]] = {
        Stage: _stage,
        Action: _bare_action,
        Pipeline: _open,
        Parallel: _group,
        Stream: _open_stream,
        OpenStream: _pull,
    }


def _stages_in(units: Iterable[Unit | Stream]) -> int:
    """Return how many stages are in these units, as far as one can know."""
    stages, left = 0, list(units)
    while left:
        unit = left.pop()
        if isinstance(unit, (Pipeline, Parallel)):
            left.extend(unit.units)
        else:
            stages += type(unit) is not Stream
    return stages


def _place(scope: Scope | None) -> str | None:
    """Return where in parallel groups a scope is, for observers: "outer[1]/inner[0]"."""
    parts: list[str] = []
    while scope is not None:
        if scope.branch is not None:
            parts.append(f"{scope.name}[{scope.branch}]")
        scope = scope.outer
    return "/".join(reversed(parts)) or None


def _merge(branch: Branch, stage: Stage) -> Failure:
    try:
        branch.store.update(stage.data)
    except Exception as error:  # of the copying of a value
        return error
    return None


_PULL: Final = Chore(next, "stream")
