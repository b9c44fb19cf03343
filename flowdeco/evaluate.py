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
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final, TypeAlias, cast

from flowdeco.context import Context
from flowdeco.definitions import (
    UNSET,
    Action,
    Middleware,
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
from flowdeco.errors import Bail, Cancelled, ReturnValueError, Suspend
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
from flowdeco.middleware import Call, enter, leave, merging
from flowdeco.requests import Await, Chore, Raised, Request
from flowdeco.returned import PLAIN, SETTLED, Yielded, exhaust, sort_out
from flowdeco.runs import ActionRecord, Run, StageRecord, Status
from flowdeco.store import Store
from flowdeco.wiring import Step, check_inserted, step_of, steps_of, unmet

__all__ = ["Evaluation"]

Failure: TypeAlias = "BaseException | None"
Walk: TypeAlias = "Generator[Request, Any, Failure]"
Queued: TypeAlias = "tuple[Unit | Stream | _OpenStream, str | None]"

_new: Final = tuple.__new__
_COMPLETED: Final = Status.COMPLETED


class _OpenStream:
    """A stream that has been begun: what is left of it."""

    __slots__ = ("iterator", "stream")

    def __init__(self, stream: Stream, iterator: Any) -> None:
        self.stream = stream
        self.iterator = iterator


class _Frame:
    """An open pipeline: what is still to run in it, and what stands around its stages and actions."""

    __slots__ = ("before", "by", "pipeline", "queue", "call", "use_actions", "use_stages", "values", "wrapped")

    def __init__(
        self,
        pipeline: Pipeline,
        by: str | None,
        use_stages: tuple[Middleware, ...],
        use_actions: tuple[Middleware, ...],
        values: Mapping[str, Any],
        wrapped: bool,
    ) -> None:
        self.pipeline = pipeline
        self.by = by
        self.use_stages = use_stages
        self.use_actions = use_actions
        self.values = values
        self.wrapped = wrapped
        self.queue: list[Queued] = []
        self.call: Call | None = None
        self.before: tuple[int, dict[str, bool], Any] = (0, {}, None)  # what another attempt goes back to

    def refill(self) -> None:
        self.queue = [(unit, self.by) for unit in reversed(self.pipeline.units)]


class _Branch:
    """One line of evaluation, that of the run or of a branch of a parallel group: its frames, its store, its records."""

    __slots__ = ("forgotten", "frames", "parent", "records", "result", "stopped", "store", "switches")

    def __init__(self, store: Store, base: _Frame, parent: _Branch | None = None) -> None:
        self.store = store
        self.frames = [base]
        self.parent = parent
        self.records: list[StageRecord] = []
        self.forgotten = 0
        self.stopped = False  # by another branch of its group
        self.result: Any = None
        self.switches: dict[str, bool] = dict(parent.switches) if parent else {}

    def upcoming(self) -> Iterator[Unit | Stream]:
        for frame in reversed(self.frames):
            for unit, _ in reversed(frame.queue):
                yield unit.stream if isinstance(unit, _OpenStream) else unit
        if self.parent is not None:
            yield from self.parent.upcoming()


class _Visit:
    """A stage while it runs: what is left of its actions, what they inserted, and their records."""

    __slots__ = ("frame", "inserted", "queue", "records", "stage", "use_actions", "values")

    def __init__(self, stage: Stage, frame: _Frame) -> None:
        self.stage = stage
        self.frame = frame
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
        self.begun = 0
        self.tickets = count()

    def walk(self) -> Generator[Request, Any, None]:
        """Evaluate the run's pipeline; everything that came of it is in the run."""
        run = self.run
        began = self.clock()
        run.started, run.status = began + self.epoch, Status.RUNNING
        branch = _Branch(run.store, _Frame(run.pipeline, None, (), (), {}, wrapped=False))
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
        run.elapsed = self.clock() - began
        run.stages = [] if self.history == 0 else branch.records[-(self.history or 0) :]
        run.result = branch.result
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
            frame = frames[-1]
            if branch.stopped and error is None:
                error = _ended()
            try:
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
            self._skip(branch, pipeline, by)
            return None
        while len(branch.frames) > 1 and branch.frames[-1].call is None and not branch.frames[-1].queue:
            branch.frames.pop()  # nothing is left to do in there: a pipeline that returns itself is a loop, too
        layers = use + pipeline.use
        use_stages, use_actions = frame.use_stages + pipeline.use_stages, frame.use_actions + pipeline.use_actions
        wrapped = frame.wrapped or bool(layers or use_stages or use_actions)
        opened = _Frame(pipeline, by, use_stages, use_actions, frame.values, wrapped)
        branch.frames.append(opened)
        if not layers:
            opened.refill()
            return None
        opened.call = Call(self.run.id, branch.store, layers, frame.values, pipeline)
        opened.before = len(branch.records) + branch.forgotten, dict(branch.switches), branch.result
        return (yield from self._enter(opened, opened.call))

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
            return error
        if error is not None and not isinstance(error, (Bail, Suspend)):
            self._note(error, f"pipeline {frame.pipeline.name!r}")
        left = leave(call, error)
        again, error = left if isinstance(left, tuple) else (yield from left)
        if again:
            begun_at, switches, branch.result = frame.before
            del branch.records[max(0, begun_at - branch.forgotten) :]
            branch.switches = dict(switches)
            return (yield from self._enter(frame, call))
        branch.frames.pop()
        if error is None:
            branch.frames[-1].queue.extend((unit, frame.pipeline.name) for unit in reversed(call._inserted))
        return error

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
            if hasattr(type(answer), "__await__"):
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
        if isinstance(stream.iterator, AsyncIterable):
            answer = yield Await(anext(cast("Any", stream.iterator)))
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
            self._skip(branch, stage, by)
            return None
        started = self.clock()
        if self.notify is not None:
            self.notify(StageStarted(self.run.id, stage.name, by))
        visit = _Visit(stage, frame)
        call: Call | None = None
        if not frame.use_stages and not stage.use:
            error = _merge(branch, stage) if stage._data else None
            if error is None:
                error = yield from self._inside(branch, visit)
        else:
            layers = (*frame.use_stages, *((merging(stage),) if stage._data else ()), *stage.use)
            call = Call(self.run.id, branch.store, layers, frame.values, frame.pipeline, stage)
            error = yield from self._stage_in_layers(branch, visit, call)
        status, failure, attempts, recovered = self._outcome(error, call)
        if failure is not None and not isinstance(failure, (Bail, Suspend)):
            self._note(failure, f"stage {stage.name!r}, pipeline {frame.pipeline.name!r}")
        elapsed = self.clock() - started
        branch.records.append(
            _new(
                StageRecord,
                (
                    stage.name, stage, status, started + self.epoch, elapsed, by, visit.records,
                    failure, attempts, recovered,
                ),
            )
        )  # fmt: skip
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self.notify(StageFinished(self.run.id, stage.name, status, failure, elapsed))
        if error is None:
            if call is not None:
                visit.inserted.extend((unit, stage.name) for unit in call._inserted)
            if visit.inserted:
                visit.inserted.reverse()
                frame.queue.extend(visit.inserted)
        return error

    def _stage_in_layers(self, branch: _Branch, visit: _Visit, call: Call) -> Walk:
        switches, result = dict(branch.switches), branch.result
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
            branch.switches, branch.result = dict(switches), result

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
        filtered = bool(self.skip or branch.switches)
        while queue:
            if branch.stopped:
                return _ended()
            step, by = queue.pop()
            if filtered and self._off(branch, action_selectors(stage, step.action)):
                records.append(ActionRecord(step.name, step.action, Status.SKIPPED, clock() + self.epoch, 0.0, by))
                continue
            started = clock()
            context: Context | None = None
            call: Call | None = None
            values = visit.values
            layers = visit.use_actions + step.use if step.use else visit.use_actions
            if layers:
                call = Call(run_id, store, layers, values, pipeline, stage, step.action)
            try:
                if notify is not None:
                    notify(ActionStarted(run_id, stage.name, step.name, by))
                while True:  # attempts
                    value: Any = UNSET
                    context = None
                    if call is not None:
                        entered = enter(call)
                        inside, error = entered if type(entered) is tuple else (yield from entered)
                        values = call._values
                    if call is None or inside:
                        self.begun += 1
                        if step.wants_context:
                            context = self._context(branch, visit, step)
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
                    again, error = left if type(left) is tuple else (yield from left)
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
            if (value is None or (type(value) in PLAIN and step.writes is not None)) and context is None and (
                call is None or not (call._recovered or call._inserted)
            ):
                if value is not None:
                    branch.result = value
                    if logs:
                        store[step.writes] = value
                    else:
                        data[step.writes] = value
                elapsed = clock() - started
                attempts = 1 if call is None else call.attempt
                outcome = _COMPLETED, started + self.epoch, elapsed, by, None, attempts, False, ()
                records.append(_new(ActionRecord, (step.name, step.action, *outcome)))
                if notify is not None:
                    notify(ActionFinished(run_id, stage.name, step.name, _COMPLETED, None, elapsed))
                continue
            error = self._conclude(branch, visit, step, by, started, value, context, call)
            if error is not None:
                return error
            filtered = bool(self.skip or branch.switches)
        return None

    def _unwound(self, call: Call | None, interrupted: BaseException) -> Generator[Request, Any, BaseException]:
        """Close the layers around an action for good; return what interrupted it."""
        while call is not None and call._opened:
            left = leave(call, interrupted)
            if not isinstance(left, tuple):
                yield from left
        return interrupted

    def _context(self, branch: _Branch, visit: _Visit, step: Step) -> Context:
        return Context(
            self.run.id, visit.frame.pipeline, visit.stage, step.action, branch.store,
            lambda: self._upcoming(branch, visit), self.notify, f"{self.run.id}-{self.begun}",
        )  # fmt: skip

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
    ) -> Failure:
        """Let what came of an action take effect, all of it or nothing, and record it."""
        error = value.error if type(value) is Raised else None
        inserted: tuple[Unit | Stream, ...] = ()
        if isinstance(error, Bail) and context is not None:
            branch.store.apply(context.store.delta())
        if error is None:
            try:
                inserted = self._take_effect(branch, visit, step, value, context, call)
            except Exception as refused:
                error = refused
        status, failure, attempts, recovered = self._outcome(error, call)
        if failure is not None and not isinstance(failure, (Bail, Suspend)):
            self._note(
                failure,
                f"action {step.name!r} of stage {visit.stage.name!r}, pipeline {visit.frame.pipeline.name!r}",
            )
        elapsed = self.clock() - started
        visit.records.append(
            _new(
                ActionRecord,
                (
                    step.name, step.action, status, started + self.epoch, elapsed, by,
                    failure, attempts, recovered, inserted,
                ),
            )
        )  # fmt: skip
        if self.notify is not None:
            self.notify(ActionFinished(self.run.id, visit.stage.name, step.name, status, failure, elapsed))
        return error

    def _take_effect(
        self, branch: _Branch, visit: _Visit, step: Step, value: Any, context: Context | None, call: Call | None
    ) -> tuple[Unit | Stream, ...]:
        inserted, data = ((), UNSET) if value is UNSET else sort_out(step, value)
        if call is not None and call._inserted:
            inserted = (*call._inserted, *inserted)
        if call is not None and call._recovered:
            context = None  # what a failing action wrote, inserted or disabled is dropped
        if context is not None:
            inserted = (*context._inserted, *inserted)
        store = branch.store
        log = store.begin() if context is not None or data is not UNSET else None
        try:
            if context is not None:
                store.apply(context.store.delta())
            if data is not UNSET:
                step.deliver(data, store)
            if inserted:
                self._check_wiring(branch, visit.frame, inserted, visit)
        except BaseException:
            if log is not None:
                store.end(log)
                store.rollback(log)
            raise
        if log is not None:
            store.end(log)
        if inserted:
            self._insert(visit, step, inserted)
        if data is not UNSET:
            branch.result = data
        if context is not None:
            for selector, on in context._switches:
                branch.switches.pop(selector, None)
                branch.switches[selector] = on
        return inserted

    def _insert(self, visit: _Visit, step: Step, inserted: tuple[Unit | Stream, ...]) -> None:
        who = f"{visit.stage.name}/{step.name}"
        actions = [step_of(cast("Any", unit)) for unit in inserted if type(unit) is Action]
        visit.queue.extend((action, who) for action in reversed(actions))
        visit.inserted.extend((unit, who) for unit in inserted if type(unit) is not Action)
        if self.notify is not None:
            names = tuple(unit.name for unit in inserted)
            self.notify(UnitsInserted(self.run.id, visit.stage.name, step.name, names))

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
            self._skip(branch, group, by)
            return None
        forks: list[_Branch] = []
        for unit in group.units:
            base = _Frame(frame.pipeline, by, frame.use_stages, frame.use_actions, frame.values, frame.wrapped)
            base.queue.append((unit, by))
            forks.append(_Branch(branch.store.fork(), base, branch))

        def stop() -> None:
            for fork in forks:
                fork.stopped = True

        crew = Crew([self._walk(fork) for fork in forks], group.limit, self.tickets, stop)
        yield from crew.work()
        error = crew.verdict(group, self.cancels)
        for fork in forks:
            branch.records.extend(fork.records)
        if self.history is not None:
            self._forget(branch)
        if isinstance(error, Bail):
            forks = [fork for fork, member in zip(forks, crew.members, strict=True) if member.error is error]
        elif error is not None:
            forks = []
        try:
            branch.store.apply(merged(group, [fork.store.delta() for fork in forks]))
        except Exception as refused:  # a conflict, or a reducer that raises
            error = refused
        else:
            for fork in forks:
                changed = {key: on for key, on in fork.switches.items() if branch.switches.get(key) is not on}
                branch.switches.update(changed)
                branch.result = fork.result if fork.result is not None else branch.result
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

    def _skip(self, branch: _Branch, unit: Unit, by: str | None) -> None:
        """Record a unit, with all that is in it, as skipped."""
        if isinstance(unit, (Pipeline, Parallel)):
            self.unmatched.difference_update(stage_selectors(unit))
            for part in unit.units:
                self._skip(branch, part, by)
            return
        stage = one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else cast("Stage", unit)
        if self.skip:
            self.unmatched.difference_update(stage_selectors(stage))
            for action in stage:
                self.unmatched.difference_update(action_selectors(stage, action))
        branch.records.append(
            StageRecord(stage.name, stage, Status.SKIPPED, self.clock() + self.epoch, 0.0, by, [])
        )
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
            with suppress(AttributeError, TypeError):  # an exception that cannot be written to
                error.add_note(f"in {where}, {place}")


def _ended() -> Cancelled:
    return Cancelled("the group has been ended by another branch")


def _merge(branch: _Branch, stage: Stage) -> Failure:
    try:
        branch.store.update(stage.data)
    except Exception as error:  # of the copying of a value
        return error
    return None


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
