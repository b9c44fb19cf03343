"""A run that goes on: evaluated from its beginning, with what it has done restored instead of performed.

A resumed run follows the same law of order (`evaluate`). What its past has is taken from there: what a step wrote,
inserted and decided takes effect again, and nobody is called. Where the past of a branch ends, the branch goes on as any
other does.

1. Middleware of what was over is not entered again; that of what is unfinished is.
2. A failure that was recovered is met again, where it was, and recovered again.
3. The branches of a group all catch up with their past before one of them goes on.

Before that comes a *rehearsal*: the same walk, in which nothing is entered, called or written. It finds what has changed
since, and how much of the past still holds. The rest is dropped, as if the run had been interrupted there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from flowdeco.definitions import Action, Parallel, Pipeline, Stage, Stream, stage_selectors
from flowdeco.errors import Bail, Cancelled, CodeChangedError, DefinitionError, Suspend
from flowdeco.evaluate import Evaluation, Failure, Walk
from flowdeco.events import StageFinished
from flowdeco.frames import Branch, Failed, Frame, Leaf, OpenStream, Visit
from flowdeco.groups import Crew
from flowdeco.middleware import Call
from flowdeco.options import UNSET, Middleware
from flowdeco.past import STAGE, Closed, Did, GroupPast, Past, StagePast, is_over
from flowdeco.requests import CAUGHT_UP, Request
from flowdeco.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.store import Delta, Store

__all__ = ["Rehearsal", "Resumption"]


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
            return self._changed(f"{what} comes where the run had {_named(past)}")
        ended = self._ended(branch)
        if ended is not None:
            return self.end if ended else self._changed(f"{what} is new, and what is around it has completed")
        return (yield from self._perform(branch))

    def _perform(self, branch: Branch) -> Walk:
        if branch.parent is not None:
            yield CAUGHT_UP
            if branch.stopped:
                return self.end
        if self.memory is None:
            branch.result = cast("Past", branch.past).result
        branch.past = None
        return None

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
            return _at_once(self.end)
        frame.closed = branch.past.closed.get(frame.number)
        if frame.closed is None and self._ended(branch) is None:
            return self._open_unfinished(branch, frame, layers)
        return _refilled(frame)

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
        if past.next is None and self.memory is None:
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
        return _at_once(self._pulled(branch, frame, stream, by, stream.ahead.popleft()))

    # Stages.

    def _stage(self, branch: Branch, frame: Frame, stage: Stage, by: str | None) -> Walk:
        if branch.past is not None and _is_over(branch, branch.past, stage):
            if self.skip:
                self._off(branch, stage_selectors(stage))  # what it is skipped by has matched
            return self._visit(branch, Visit(stage, frame), by)  # it cannot be skipped any more
        return super()._stage(branch, frame, stage, by)

    def _skip_stage(self, branch: Branch, stage: Stage, by: str | None, scope: Scope | None) -> Walk:
        past = branch.past
        if past is None:
            return (yield from super()._skip_stage(branch, stage, by, scope))
        if _is_over(branch, past, stage):
            frame = Frame(Pipeline(), by, (), (), {}, wrapped=False, scope=scope)
            error = yield from self._visit(branch, Visit(stage, frame), by)
            branch.frames[-1].queue.extend(frame.queue)
            return error
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
        if not isinstance(then, StagePast) or (then.name, then.position) != (visit.stage.name, branch.position):
            error = yield from self._go_on(branch, f"stage {visit.stage.name!r}")
            return error if error is not None else (yield from super()._visit(branch, visit, by))
        self._take(branch, past)
        visit.past = then
        if then.end is None:
            return (yield from self._visit_unfinished(branch, visit, by))
        error = self._restore_actions(branch, visit)
        return error if error is not None else self._restore_stage(branch, visit, past.read(then.end), by)

    def _visit_unfinished(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        self._recall_result(branch, STAGE)
        return super()._visit(branch, visit, by)

    def _restore_stage(self, branch: Branch, visit: Visit, did: Did, by: str | None) -> Failure:
        """Restore the end of a stage that was over; return the failure or `Bail` that it ended with."""
        stage, scope = visit.stage, visit.frame.scope
        what = did.status, did.started, did.elapsed, by, visit.records, did.error, did.attempts, did.recovered
        record = StageRecord(stage.name, stage, *what, did.inserted, scope)
        branch.records.append(record)
        if self.history is not None:
            self._forget(branch)
        if self.notify is not None:
            self._tell_inserted(stage.name, None, did.inserted)
            how = did.error, did.elapsed, did.attempts, did.recovered, True
            self.notify(StageFinished(self.run.id, stage.name, did.status, *how))
        if not is_over(did):
            own = bool(visit.records) and not is_over(visit.records[-1])  # the row of the action that failed
            branch.failures.append(Failed(branch, record, branch.position - own))
            branch.position += 1
            return did.error
        self._restore(branch, did.delta)
        branch.position += 1
        if did.status is Status.BAILED:
            return did.error
        visit.inserted.extend((unit, stage.name) for unit in did.inserted)
        visit.frame.queue.extend(reversed(visit.inserted))
        return None

    # Actions.

    def _actions(self, branch: Branch, visit: Visit) -> Walk:
        if branch.past is None:
            return super()._actions(branch, visit)
        return self._actions_again(branch, visit)

    def _actions_again(self, branch: Branch, visit: Visit) -> Walk:
        error = self._restore_actions(branch, visit)
        if error is None:
            error = yield from self._go_on(branch, f"stage {visit.stage.name!r}")
        return error if error is not None else (yield from super()._actions(branch, visit))

    def _restore_actions(self, branch: Branch, visit: Visit) -> Failure:
        """Restore the actions of a stage that were over; return the `Bail` of the last one, or what has changed."""
        past, queue, stage = cast("StagePast", visit.past), visit.queue, visit.stage.name
        read = cast("Past", branch.past).read
        for told in past.actions:
            did = read(told)
            if not queue:
                return self._changed(f"action {stage}/{did.name} has completed, and is gone")
            step, by = queue.pop()
            if step.name != did.name:
                return self._changed(f"action {stage}/{step.name} comes where the run had {stage}/{did.name}")
            error = self._check_code(did, step.action, stage)
            if error is not None:
                return error
            branch.position += 1
            what = did.status, did.started, did.elapsed, by, did.error, did.attempts, did.recovered
            visit.records.append(ActionRecord(did.name, step.action, *what, did.inserted, did.switches))
            if not is_over(did):
                continue  # it has failed, and left nothing
            self._restore(branch, did.delta)
            if did.inserted:
                self._insert(visit, step, did.inserted)
            if did.result is not UNSET:
                branch.result = did.result
            for selector, on in did.switches:
                branch.switches.pop(selector, None)
                branch.switches[selector] = on
            if did.status is Status.BAILED and past.end is None:
                return did.error
        if queue and past.end is not None and read(past.end).status is Status.COMPLETED:
            return self._changed(f"action {stage}/{queue[-1][0].name} is new, and its stage has completed")
        return None

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
            if branch.parent is not None:
                yield CAUGHT_UP
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


class Rehearsal(Resumption):
    """The walk over the past that performs nothing, to find what has changed (`changes`), and what holds (`kept`).

    `same` tells whether a function has the code that a step remembers. With `on_change="rerun"` the past holds up to the
    first change of code; a step that comes where there was another one always ends it, and so does the stage `until`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        same: Callable[[Any, Any], bool],
        on_change: str = "error",
        until: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(Run("", pipeline, Store()), history=0, **options)
        self.same = same
        self.on_change = on_change
        self.until = until
        self.changes: list[str] = []
        self.differs = False  # from here on, the past does not hold
        self.stop = Suspend("the past ends here")
        self.visited: list[Branch] = []

    def walk(self) -> Generator[Request, Any, None]:
        """Go through the past; the streams that were begun are left open."""
        return Evaluation.walk(self)

    def kept(self) -> dict[str, int]:
        """Return how much of the past of each branch holds; of a branch that is not there, nothing does."""
        kept = {branch.id: branch.position for branch in self.visited}
        kept.update((failed.branch.id, failed.position) for failed in self.branch.failures)  # recovered by nobody now
        return kept

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        self.visited.append(branch)
        return super()._walk(branch, error)

    def _changed(self, change: str) -> BaseException:
        self.changes.append(change)
        self.differs = True
        return self.stop

    def _perform(self, branch: Branch) -> Walk:
        return _at_once(self.stop)

    def _open_unfinished(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        return _refilled(frame)

    def _open_stream_again(self, branch: Branch, frame: Frame, stream: Stream, by: str | None) -> Walk:
        if isinstance(stream.source, (Iterator, AsyncIterator)):
            return DefinitionError(
                f"the run cannot go on: the {stream.name} that was inserted by {by} is used up. "
                f"Write stream(function, *args), which can be called again"
            )
        error = yield from super()._open_stream_again(branch, frame, stream, by)
        if error is None:
            self.streams[branch.id, self.begun[branch.id]] = cast("OpenStream", frame.queue[-1][0])
        return error

    def _pull(self, branch: Branch, frame: Frame, stream: OpenStream, by: str | None) -> Walk:
        return Evaluation._pull(self, branch, frame, stream, by)

    def _pulled(self, branch: Branch, frame: Frame, stream: OpenStream, by: str | None, answer: Any) -> Failure:
        stream.ahead.append(answer)
        return super()._pulled(branch, frame, stream, by, answer)

    def _close_stream(self, stream: OpenStream) -> Generator[Request, Any, None]:
        yield from ()  # it is taken up again

    def _check_wiring(self, branch: Branch, frame: Frame, units: Any, visit: Visit | None = None) -> None:
        pass  # there are no values

    def _stage(self, branch: Branch, frame: Frame, stage: Stage, by: str | None) -> Walk:
        if self.until is not None:
            names = {stage.name, stage.template.name if stage.template is not None else stage.name}
            if self.until in names:
                self.until = None
                return _at_once(self.stop)
        return super()._stage(branch, frame, stage, by)

    def _visit_unfinished(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        return self._actions_again(branch, visit)

    def _restore(self, branch: Branch, delta: Delta | None) -> None:
        pass

    def _check_code(self, did: Did, action: Action[..., Any], stage: str) -> Failure:
        if self.on_change == "ignore" or not is_over(did) or self.same(did.code, action.__wrapped__):
            return None
        self.changes.append(f"action {stage}/{did.name} has completed, with other code")
        self.differs = self.differs or self.on_change == "rerun"
        return self.stop if self.on_change == "rerun" else None

    def _fork(self, branch: Branch, base: Frame, position: int, index: int) -> Branch:
        fork = Evaluation._fork(self, branch, base, position, index)
        fork.past = cast("Past", branch.past).fork(position, index)
        return fork

    def _work(self, branch: Branch, group: Parallel, forks: Sequence[Branch | Leaf], crew: Crew) -> Walk:
        error = yield from super()._work(branch, group, forks, crew)
        return self.stop if any(member.error is self.stop for member in crew.members) else error

    BEGIN: ClassVar[dict[type, Callable[..., Walk]]] = {
        **Resumption.BEGIN,
        Stage: _stage,
        OpenStream: _pull,
    }


def _at_once(error: Failure) -> Walk:
    yield from ()
    return error


def _refilled(frame: Frame) -> Walk:
    yield from ()
    frame.refill()
    return None


def _is_over(branch: Branch, past: Past, stage: Stage) -> bool:
    then = past.next
    return isinstance(then, StagePast) and then[:2] == (stage.name, branch.position) and then.end is not None


def _named(past: Past) -> str:
    then = past.next
    return f"{'stage' if isinstance(then, StagePast) else 'parallel group'} {cast('StagePast', then).name!r}"
