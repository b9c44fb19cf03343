"""A run that goes on: evaluated from its beginning, with what it has done restored instead of performed.

A resumed run follows the same law of order (`evaluate`). Where its past has a stage, a pipeline's end, or a branch of a
group, that is taken from there: what it wrote, inserted and decided takes effect again, and nobody is called. Where
the past of a branch ends, the branch goes on as any other. What is not as it was in the past is a *change*: of the
code, or of a stream that cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from flowdeco.definitions import Stage
from flowdeco.errors import Bail, CodeChangedError, JournalError, suggestion
from flowdeco.evaluate import NOTHING, Evaluation, Failure, Walk
from flowdeco.events import StageFinished
from flowdeco.frames import Branch, Frame, Visit
from flowdeco.options import UNSET, Middleware
from flowdeco.past import Closed, Past, StagePast
from flowdeco.requests import Request
from flowdeco.runs import StageRecord, Status
from flowdeco.wiring import Step

__all__ = ["Resumption", "unknown_stage"]


class Resumption(Evaluation):
    """One more attempt at a run, as a generator of requests (`walk`)."""

    def __init__(
        self,
        *known: Any,
        past: Past,
        on_change: str = "error",
        copying_until: str | None = None,
        given: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*known, **options)
        self.on_change = on_change
        self.given = given or {}  # on resume
        self.copying_until = copying_until
        self.copying = copying_until is not None
        self.changes: list[str] = [past.differs] if past.differs else []
        self.branch.past = past
        self.branch.result = past.result
        self.branch.store.watch()

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        error = yield from super()._walk(branch, error)
        if branch.parent is not None or error is not None:
            return error
        if branch.past is not None:
            error = yield from self._go_on(branch, "the end of the run")
        if error is None and self.copying_until is not None:
            error = unknown_stage(self.copying_until, (record.name for record in branch.records))
        return error

    # Pipelines that were over: their middleware is not entered again.

    def _open_in_layers(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        frame.closed = branch.past.closed.get(frame.number) if branch.past is not None else None
        if frame.closed is None:
            return (yield from super()._open_in_layers(branch, frame, layers))
        frame.refill()
        return None

    def _close(self, branch: Branch, frame: Frame, error: Failure) -> Walk:
        error = yield from super()._close(branch, frame, error)
        closed = frame.closed
        if error is not None or closed is None:
            return error
        branch.store.restore(closed.delta)
        branch.frames[-1].queue.extend((unit, frame.pipeline.name) for unit in reversed(closed.inserted))
        self._tell_inserted(None, None, closed.inserted)
        if self.memory is None:
            branch.trace.closed[frame.number] = closed._replace(delta=None)
        elif self.copying:
            delta, now = closed.delta or NOTHING, self.clock() + self.epoch
            self.memory.pipeline(branch.id, branch.position, frame.pipeline.name, now, delta, closed, frame.number)
        branch.position += 1
        return None

    # Stages.

    def _visit(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        past: StagePast | None = None
        if branch.past is not None:
            past = self._taken(branch, visit.stage)
            ended = self._ended_here(branch, past)
            if ended is not None:
                self._restore_failed(branch, visit.stage, past, ended)
                return None
            if past is None:
                error = yield from self._go_on(branch, f"stage {visit.stage.name!r}")
                if error is not None:
                    return error
        visit.past = past
        if past is not None and past.record is not None:
            error = yield from self._inside(branch, visit)
            return error or self._restored_stage(branch, visit, past, by)
        return (yield from super()._visit(branch, visit, by))

    def _actions(self, branch: Branch, visit: Visit) -> Walk:
        while branch.past is not None and visit.queue:
            step, by = visit.queue.pop()
            restored, error = yield from self._restored(branch, visit, step, by)
            if error is not None:
                return error
            if not restored:
                visit.queue.append((step, by))
        return (yield from super()._actions(branch, visit))

    def _taken(self, branch: Branch, stage: Stage) -> StagePast | None:
        """Return the past of a stage whose turn has come, if that is what came next then."""
        names = {stage.name, stage.template.name if stage.template is not None else stage.name}
        if self.copying_until in names and branch.past is not None:
            branch.past.stages.clear()
            self.copying_until = None
            return None
        return branch.past.take(stage.name) if branch.past is not None else None

    def _skipped(self, branch: Branch, stage: Stage, by: str | None) -> StageRecord:
        record = branch.past.skip(stage.name) if branch.past is not None else None
        if record is None:
            return super()._skipped(branch, stage, by)
        return record._replace(stage=stage, inserted_by=by)

    # What is restored.

    def _restored(
        self, branch: Branch, visit: Visit, step: Step, by: str | None
    ) -> Generator[Request, Any, tuple[bool, Failure]]:
        """Restore an action instead of performing it; return whether it was there, and what speaks against going on."""
        where = f"action {visit.stage.name}/{step.name}"
        past = cast("StagePast", visit.past)
        did = past.actions[0] if past.actions else None
        if did is None and past.cut_short:
            if past.failed is not None:
                visit.records.append(past.failed._replace(action=step.action))
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
        past.actions.popleft()
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

    def _ended_here(self, branch: Branch, past: StagePast | None) -> Frame | None:
        """Return the pipeline around a stage that failed in the past, where that failure was recovered."""
        if past is not None and past.record is not None:
            return None
        return next((f for f in reversed(branch.frames) if f.closed is not None and f.closed.failed), None)

    def _restore_failed(self, branch: Branch, stage: Stage, past: StagePast | None, ended: Frame) -> None:
        """Restore what a failed stage had done, and go on where its failure was recovered."""
        for did in past.actions if past is not None else ():
            branch.store.restore(did.delta)
            branch.position += 1
        scope = branch.frames[-1].scope
        failed = [r if r.scope else r._replace(scope=scope) for r in cast("Closed", ended.closed).failed]
        branch.records.extend(r._replace(stage=stage) if r.name == stage.name else r for r in failed)
        while branch.frames[-1] is not ended:
            branch.frames.pop()
        ended.queue.clear()

    def _leave_past(self, branch: Branch, visit: Visit) -> Walk:
        cast("StagePast", visit.past).actions.clear()
        cast("Past", branch.past).stages.clear()
        branch.diverged = True
        return self._go_on(branch, "")

    def _go_on(self, branch: Branch, where: str) -> Walk:
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

    def _restored_stage(self, branch: Branch, visit: Visit, past: StagePast, by: str | None) -> Failure:
        """Restore the end of a stage that was over; return what speaks against it."""
        if past.actions:
            self.changes.append(f"action {visit.stage.name}/{past.actions[0].record.name} has completed, and is gone")
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
            self.memory.stage(branch.id, branch.position, record, closed.delta or NOTHING)
        branch.position += 1
        if self.notify is not None:
            self._tell_inserted(record.name, None, closed.inserted)
            how = record.error, record.elapsed, record.attempts, record.recovered, True
            self.notify(StageFinished(self.run.id, record.name, record.status, *how))
        return None

    # Parallel groups.

    def _fork(self, branch: Branch, base: Frame, number: int, index: int) -> Generator[Request, Any, Branch]:
        fork = yield from super()._fork(branch, base, number, index)
        if branch.past is not None:
            fork.past = branch.past.fork(number, index) or Past((), {}, _no_past)
            fork.result = fork.past.result
            if fork.past.store is not None:
                fork.store = fork.past.store.revived(self.given)
        elif self.memory is not None and self.changes:
            yield from self._drop({fork.id: 0})
        return fork

    def _joined(self, branch: Branch, forks: list[Branch]) -> None:
        for fork in forks:
            fork.keep_past()
        if any(fork.diverged for fork in forks) and branch.past is not None:
            branch.past.stages.clear()
            branch.past.closed.clear()
            branch.diverged = True


def unknown_stage(name: str, known: Iterable[str]) -> JournalError:
    """Return the error of a fork from a stage that the run does not have."""
    return JournalError(f"there is no stage {name!r} to go on from in this run. {suggestion(name, known)}")


def _no_past(place: tuple[int, int]) -> None:
    return None
