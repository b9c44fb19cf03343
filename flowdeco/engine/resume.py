"""A run that goes on: evaluated from its beginning, with what it has done restored instead of performed.

A resumed run follows the same law of order (`evaluate`). What its past has is taken from there: what a step wrote,
inserted and decided takes effect again, and nobody is called. Where the past of a branch ends, the branch goes on as any
other does.

1. Middleware of what was over is not entered again; that of what is unfinished is.
2. A failure that was recovered is met again, where it was, and recovered again.
3. The branches of a group all catch up with their past before one of them goes on.

How much of the past still holds is found out before (`rehearse`). The rest is dropped, as if the run had been interrupted
there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, cast

from flowdeco.engine.evaluate import Evaluation
from flowdeco.engine.frames import Branch, Failed, Frame, Leaf, OpenStream, Queued, Visit
from flowdeco.engine.groups import Crew
from flowdeco.engine.layers import Call
from flowdeco.engine.past import STAGE, Closed, Did, GroupPast, Past, StagePast, is_over
from flowdeco.engine.requests import CAUGHT_UP, Failure, Request, Walk
from flowdeco.engine.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.errors import Bail, Cancelled, CodeChangedError, Suspend
from flowdeco.events import StageFinished
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, Unit, stage_selectors
from flowdeco.model.options import UNSET, Middleware
from flowdeco.model.reload import renewed
from flowdeco.model.store import Delta
from flowdeco.model.wiring import Step, step_of

__all__ = ["Resumption", "at_once", "refilled"]

_NOTHING_ASKED: Final = cast("Walk", ())  # what is over at once, without a generator being made for it

_COMPLETED_IN_ROWS: Final = str(Status.COMPLETED)

_COMPLETED: Final = Status.COMPLETED
_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]


class _Again(NamedTuple):
    """A stage that is restored: what is left of its actions (as steps, unless it is restored as a whole), and so on."""

    stage: str
    queue: list[Any]
    records: list[ActionRecord]
    coming: list[Queued]
    whole: bool


class Resumption(Evaluation):
    """One more attempt at a run, as a generator of requests (`walk`).

    `given` is what a run in memory is resumed with, `streams` are those that were begun in the rehearsal. `over` is
    None; of a run that has come to its end it is whether that was by a `Bail`: then nothing is performed any more.
    """

    def __init__(
        self,
        run: Run,
        *,
        past: Past,
        over: bool | None = None,
        given: Mapping[str, Any] | None = None,
        streams: dict[tuple[str, int], OpenStream] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(run, **options)
        self.over = over
        self.given = given or {}
        self.streams = {} if streams is None else streams
        self.begun: dict[str, int] = {}  # how many streams each branch has begun
        self.code: Callable[[Any], str] | None = None  # the fingerprint of a function, where steps are compared with it
        self.end = Cancelled("this is as far as the run came")
        self.branch.past = past
        self.branch.store._watch()

    def walk(self) -> Generator[Request, Any, None]:
        """Evaluate the run's pipeline; everything that came of it is in the run."""
        yield from super().walk()
        yield from self.close_streams()

    def close_streams(self) -> Generator[Request, Any, None]:
        """Close the streams that were begun in the rehearsal, and not taken up."""
        for stream in self.streams.values():
            yield from Evaluation._close_stream(self, stream)
        self.streams.clear()

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        error = yield from super()._walk(branch, error)
        past = branch.past
        if error is None and past is not None and past.next is not None:
            return self._changed(
                f"{'the run' if branch.parent is None else 'a branch'} ends where it had {_named(past)}"
            )
        return error

    # Where the past ends.

    def _go_on(self, branch: Branch, what: str) -> Walk:
        """Leave the past behind: what comes now was never done. Return what speaks against it."""
        past = cast("Past", branch.past)
        if self._is_at_end(branch):
            return self.end
        if past.next is not None:
            if self._is_another(branch, past):
                began = f"the run began with {_named(past)}, this one begins with {what}"
                return self._changed(f"this looks like another pipeline: {began}")
            return self._changed(f"{what} comes where the run had {_named(past)}")
        ended = self._ended(branch)
        if ended is not None:
            return self.end if ended else self._changed(f"{what} is new, and what is around it has completed")
        return (yield from self._perform(branch))

    def _is_another(self, branch: Branch, past: Past) -> bool:
        """Whether nothing that the run had done is to be found in its pipeline."""
        if branch.parent is not None or branch.position:
            return False
        units: list[Unit] = [*self.run.pipeline.units]
        names: set[str] = set()
        while units:
            unit = units.pop()
            names.add(unit.name)
            if isinstance(unit, (Pipeline, Parallel)):
                units.extend(unit.units)
        return names.isdisjoint(entry.name for entry in past.whole())

    def _perform(self, branch: Branch) -> Walk:
        yield from self._caught_up(branch)
        if branch.stopped:
            return self.end
        if self.memory is None:
            branch.result = cast("Past", branch.past).result
        branch.past = None
        return None

    def _caught_up(self, branch: Branch) -> Generator[Request, Any, None]:
        """Say, before the branch goes on, that it has restored its past."""
        if branch.parent is not None:
            yield CAUGHT_UP

    def _is_at_end(self, branch: Branch) -> bool:
        """Whether the pipeline around it ended early, and here."""
        around = next((frame.closed for frame in reversed(branch.frames) if frame.closed is not None), None)
        return around is not None and around.early and around.position == branch.position

    def _ended(self, within: Branch) -> bool | None:
        """Whether what is around a branch was over then, and if so, whether it had ended early."""
        branch: Branch | None = within
        while branch is not None:
            for frame in reversed(branch.frames):
                if frame.closed is not None:
                    return frame.closed.early
            if branch is not within and branch.past is not None and branch.past.next is not None:
                return False  # something came after the group
            branch = branch.parent
        return self.over

    def _changed(self, change: str) -> BaseException:
        """Return the error of what has changed; in the rehearsal it had not."""
        return CodeChangedError.listing(self.run.id, [f"{change}: what a stream gives must be the same every time"])

    # Pipelines.

    def _open_in_layers(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        if branch.past is None:
            return super()._open_in_layers(branch, frame, layers)
        if self._is_at_end(branch):
            return at_once(self.end)
        frame.closed = branch.past.closed.get(frame.number)
        if frame.closed is None and self._ended(branch) is None:
            return self._open_unfinished(branch, frame, layers)
        return refilled(frame)

    def _open_unfinished(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        self._recall_result(branch, frame.number)
        return super()._open_in_layers(branch, frame, layers)

    def _entered(self, branch: Branch, scope: int, call: Call) -> None:
        # Their logs go back to what the scope found at first, not to what it had done when it was interrupted.
        if branch.past is not None and scope in branch.past.scopes:
            logs = [log for _, _, log, _, _ in call._opened if log is not None]
            branch.store._recall(logs, branch.past.scopes[scope].logs)

    def _take(self, branch: Branch, past: Past) -> None:
        """Pass over what comes next in the past; in memory, only the result at its end is known."""
        past.take()
        if self.memory is None and past.next is None:
            branch.result = past.result

    def _recall_result(self, branch: Branch, scope: int) -> None:
        """Have the result that a branch in memory had before a scope that is unfinished."""
        if branch.past is not None and scope in branch.past.scopes:
            branch.result = branch.past.scopes[scope].result

    def _close(self, branch: Branch, frame: Frame, error: Failure) -> Walk:
        error = yield from super()._close(branch, frame, error)
        closed = frame.closed
        if closed is None or (error is not None and not (closed.early and self._is_past(error))):
            return error
        if closed.position != branch.position:
            return self._changed(f"pipeline {frame.pipeline.name!r} has completed, and ends elsewhere")
        self._restore_pipeline(branch, frame, closed)
        return error if isinstance(error, Bail) else None

    def _restore_pipeline(self, branch: Branch, frame: Frame, closed: Closed) -> None:
        for failed in branch.failures:
            failed.branch.trace.settle(len(failed.branch.records))
        branch.failures.clear()
        branch.trace.closed[frame.number] = closed._replace(delta=None)
        self._restore(branch, closed.delta)
        branch.opened = closed.opened
        branch.position += 1
        branch.frames[-1].queue.extend((unit, frame.pipeline.name) for unit in reversed(closed.inserted))
        self._tell_inserted(None, None, closed.inserted)

    def _is_past(self, error: BaseException) -> bool:
        """Whether this is a failure, or the end of the run, that is met again."""
        return error is self.end or not (isinstance(error, Suspend) or self.cancels(error))

    # Streams.

    def _open_stream(self, branch: Branch, frame: Frame, stream: Stream, by: str | None) -> Walk:
        if branch.past is None:
            return super()._open_stream(branch, frame, stream, by)
        return self._open_stream_again(branch, frame, stream, by)

    def _open_stream_again(self, branch: Branch, frame: Frame, stream: Stream, by: str | None) -> Walk:
        number = self.begun[branch.id] = self.begun.get(branch.id, -1) + 1
        begun = self.streams.pop((branch.id, number), None)
        if begun is None:
            return (yield from super()._open_stream(branch, frame, stream, by))
        frame.queue.append((begun, by))
        return None

    def _pull(self, branch: Branch, frame: Frame, stream: OpenStream, by: str | None) -> Walk:
        if not stream.ahead:
            return super()._pull(branch, frame, stream, by)
        return at_once(self._pulled(branch, frame, stream, by, stream.ahead.popleft()))

    # Stages.

    def _stage(self, branch: Branch, frame: Frame, stage: Stage, by: str | None) -> Walk:
        past = branch.past
        if past is None or (then := _over(branch, past, stage)) is None:
            if by is not None and self.memory is None:
                stage = renewed(stage)
            return super()._stage(branch, frame, stage, by)
        if self.skip:
            self._off(branch, stage_selectors(stage))  # it cannot be skipped any more, but the selector has matched
        error = self._stage_again(branch, past, then, stage, by, frame.scope, frame.queue)
        return _NOTHING_ASKED if error is None else at_once(error)

    def _skip_stage(self, branch: Branch, stage: Stage, by: str | None, scope: Scope | None) -> Walk:
        past = branch.past
        if past is None:
            return (yield from super()._skip_stage(branch, stage, by, scope))
        then = _over(branch, past, stage)
        if then is not None:
            return self._stage_again(branch, past, then, stage, by, scope, branch.frames[-1].queue)
        if past.next is not None and past.next.name == stage.name:
            past.take()  # it had begun, and is not wanted any more
        error = yield from self._go_on(branch, f"stage {stage.name!r}")
        return error if error is not None else (yield from super()._skip_stage(branch, stage, by, scope))

    def _visit(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        if branch.past is None:
            return super()._visit(branch, visit, by)
        return self._visit_again(branch, branch.past, visit, by)

    def _visit_again(self, branch: Branch, past: Past, visit: Visit, by: str | None) -> Walk:
        then = past.next
        if not isinstance(then, StagePast) or then[:2] != (visit.stage.name, branch.position):
            del past, then  # what has been restored is not held while the stage is at work
            error = yield from self._go_on(branch, f"stage {visit.stage.name!r}")
            return error if error is not None else (yield from super()._visit(branch, visit, by))
        self._take(branch, past)
        visit.past = then
        del past, then
        return (yield from self._visit_unfinished(branch, visit, by))

    def _visit_unfinished(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        self._recall_result(branch, STAGE)
        return super()._visit(branch, visit, by)

    def _stage_again(
        self,
        branch: Branch,
        past: Past,
        then: StagePast,
        stage: Stage,
        by: str | None,
        scope: Scope | None,
        queue: list[Queued],
    ) -> Failure:
        """Restore a stage that was over; return the failure or `Bail` that it ended with."""
        self._take(branch, past)
        steps = stage._steps  # where nobody has asked for them yet, there is no need to work them out
        actions = [(action, None) for action in reversed(stage._actions)] if steps is None else steps.copy()
        again: _Again = _new(_Again, (stage.name, actions, [], [], True))
        error = self._restore_actions(branch, then, again)
        if error is not None:
            return error
        return self._restore_stage(branch, past, then.end, stage, by, again, scope, queue)

    def _restore_stage(
        self,
        branch: Branch,
        past: Past,
        end: Any,
        stage: Stage,
        by: str | None,
        again: _Again,
        scope: Scope | None,
        queue: list[Queued],
    ) -> Failure:
        records, coming = again.records, again.coming
        if past.rows and not end[1] and end[0][5] == _COMPLETED_IN_ROWS and not branch.store._recent:
            did, row = None, end[0]
            what: Any = _COMPLETED, row[6], row[7], by, records, None, 1, False, (), scope
        else:
            did = past.read(end)
            what = did.status, did.started, did.elapsed, by, records, did.error, did.attempts, did.recovered
            what += did.inserted, scope
        record: StageRecord = _new(StageRecord, (stage.name, stage, *what))
        branch.records.append(record)
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self._tell_inserted(stage.name, None, record.inserted)
            how = record.status, record.error, record.elapsed, record.attempts, record.recovered, True
            self.notify(StageFinished(self.run.id, stage.name, *how))
        if did is not None:
            if not is_over(did):
                own = bool(records) and not is_over(records[-1])  # the row of the action that failed
                branch.failures.append(Failed(branch, record, branch.position - own))
                branch.position += 1
                return did.error
            self._restore(branch, did.delta)
            if did.status is Status.BAILED:
                branch.position += 1
                return did.error
            coming.extend((unit, stage.name) for unit in did.inserted)
        branch.position += 1
        if coming:
            queue.extend(reversed(coming))
        return None

    # Actions.

    def _actions(self, branch: Branch, visit: Visit) -> Walk:
        if branch.past is None:
            return super()._actions(branch, visit)
        return self._actions_again(branch, visit)

    def _actions_again(self, branch: Branch, visit: Visit) -> Walk:
        again = _Again(visit.stage.name, visit.queue, visit.records, visit.inserted, whole=False)
        error = self._restore_actions(branch, cast("StagePast", visit.past), again)
        if error is None:
            error = yield from self._go_on(branch, f"stage {visit.stage.name!r}")
        if self.memory is None and any(by for _, by in visit.queue):
            visit.queue[:] = [(step if by is None else step_of(renewed(step.action)), by) for step, by in visit.queue]
        return error if error is not None else (yield from super()._actions(branch, visit))

    def _restore_actions(self, branch: Branch, then: StagePast, again: _Again) -> Failure:
        """Restore the actions of a stage that were over; return the `Bail` of the last one, or what has changed."""
        stage, queue, records, _, _ = again
        past = cast("Past", branch.past)
        data = self._plainly(branch) if past.rows else None
        code, known, now = self.code, None, None
        for told in then.actions:
            if not queue:
                return self._changed(f"action {stage}/{past.read(told).name} has completed, and is gone")
            item, by = queue.pop()
            if type(item) is Step:
                named, action, function = item.name, item.action, item.function
            else:  # not by `item.name`, which is slow, being that of a proxy, and asked for each action
                named, action, function = item._self_options.name, item, item.__wrapped__
            # Most actions have returned nothing, or plain data, and no more is to be done about it.
            if data is not None:
                (_, _, _, _, name, status, started, elapsed, then_code, _), said = told
                plain = type(said) is tuple
                if (plain or not said) and status == _COMPLETED_IN_ROWS and name == named:
                    if code is not None and function is not known:
                        known, now = function, code(function)
                    if code is None or now == then_code:
                        if plain:
                            key, value = told[1]
                            data[key] = branch.result = value
                        branch.position += 1
                        what = name, action, _COMPLETED, started, elapsed, by, None, 1, False, (), ()
                        records.append(_new(ActionRecord, what))
                        continue
            did = past.read(told)
            if named != did.name:
                return self._changed(f"action {stage}/{named} comes where the run had {stage}/{did.name}")
            error = self._check_code(did, action, stage)
            if error is not None:
                return error
            self._restore_action(branch, action, did, by, again)
            if did.status is Status.BAILED and then.end is None:
                return did.error
        if queue and then.end is not None and past.read(then.end).status is _COMPLETED:
            return self._changed(f"action {stage}/{queue[-1][0].name} is new, and its stage has completed")
        return None

    def _restore_action(
        self, branch: Branch, action: Action[..., Any], did: Did, by: str | None, again: _Again
    ) -> None:
        branch.position += 1
        name, status, started, elapsed, error, attempts, recovered, inserted, switches, _, _, _ = did
        what = name, action, status, started, elapsed, by, error, attempts, recovered, inserted, switches
        again.records.append(_new(ActionRecord, what))
        if not is_over(did):
            return  # it has failed, and left nothing
        self._restore(branch, did.delta)
        if did.inserted:
            self._insert_again(again, did)
        if did.result is not UNSET:
            branch.result = did.result
        for selector, on in did.switches:
            branch.switch(selector, on)

    def _insert_again(self, again: _Again, did: Did) -> None:
        who = f"{again.stage}/{did.name}"
        actions = [unit for unit in did.inserted if type(unit) is Action]
        again.coming.extend((unit, who) for unit in did.inserted if type(unit) is not Action)
        again.queue.extend((unit if again.whole else step_of(unit), who) for unit in reversed(actions))
        if self.notify is not None:
            self._tell_inserted(again.stage, did.name, did.inserted, len(actions))

    def _plainly(self, branch: Branch) -> MutableMapping[str, Any] | None:
        """Return where a value that a step has written can be put; None where it must be restored with care."""
        store = branch.store
        return None if store._logs or store._recent else store._data

    def _restore(self, branch: Branch, delta: Delta | None) -> None:
        branch.store._restore(delta)

    def _check_code(self, did: Did, action: Action[..., Any], stage: str) -> Failure:
        """Return what speaks against restoring this action."""
        return None

    # Parallel groups.

    def _begin_group(self, branch: Branch, group: Parallel) -> Walk:
        past = branch.past
        if past is None:
            return (yield from super()._begin_group(branch, group))
        if past.next == GroupPast(group.name, branch.position, len(group.units)):
            self._take(branch, past)
            branch.position += 1
            return None
        error = yield from self._go_on(branch, f"parallel group {group.name!r}")
        return error if error is not None else (yield from super()._begin_group(branch, group))

    def _is_plain(self, branch: Branch, frame: Frame) -> bool:
        return False  # its branches have a past, or may be renewed

    def _fork(self, branch: Branch, base: Frame, position: int, index: int) -> Branch:
        fork = super()._fork(branch, base, position, index)
        if branch.past is not None:
            past = branch.past.fork(position, index)
            if past.store is not None:
                fork.store = past.store._revived(self.given)
            if not past.is_empty() or self._ended(fork) is not None:
                fork.past = past
        return fork

    def _work(self, branch: Branch, group: Parallel, forks: Sequence[Branch | Leaf], crew: Crew) -> Walk:
        behind = [isinstance(fork, Branch) and fork.past is not None for fork in forks]
        members = [member for member, has_past in zip(crew.members, behind, strict=True) if has_past]
        goes_on = (yield from crew.catch_up(members)) or len(members) < len(forks)
        past = branch.past
        if goes_on and past is not None:
            yield from self._caught_up(branch)
            branch.past = None
        error = yield from super()._work(branch, group, forks, crew)
        if self.over:
            bailed = (member.error for member in crew.members if isinstance(member.error, Bail))
            return next(bailed, error)
        if error is None and self.memory is None and past is not None:
            at = branch.position - 1
            if all(past.fork(at, index).store is None for index in range(len(forks))):
                branch.store._restore(None)  # its merge was taken note of
        return error

    BEGIN: ClassVar[dict[type, Callable[..., Walk]]] = {
        **Evaluation.BEGIN,
        Stage: _stage,
        Stream: _open_stream,
        OpenStream: _pull,
    }


def at_once(error: Failure) -> Walk:
    """Do nothing, and return this."""
    yield from ()
    return error


def refilled(frame: Frame) -> Walk:
    """Have the units of a pipeline come next, without what is around them."""
    yield from ()
    frame.refill()
    return None


def _over(branch: Branch, past: Past, stage: Stage) -> StagePast | None:
    """Return what comes next in the past if it is this stage, and was over."""
    then = past.next
    if type(then) is StagePast and then[3] is not None and then[1] == branch.position and then[0] == stage.name:
        return then
    return None


def _named(past: Past) -> str:
    then = past.next
    return f"{'stage' if isinstance(then, StagePast) else 'parallel group'} {cast('StagePast', then).name!r}"
