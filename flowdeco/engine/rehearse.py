"""Whether the past of a run still holds: found out before the run goes on, and before anything is performed.

First it is *tried*. A trial is a resumption that restores the past, and stops before the first thing that is more than
that. If all of the past has been restored by then, and nothing has changed, it is the run that goes on. If not, or if it
cannot know, it has done nothing: whatever it has restored is its own, and what it would have told observers is held back.

Then comes a *rehearsal*: the same walk, without anything restored, up to where the past of each branch ends or something
has changed. It says what has changed since, and how much of the past holds. The rest is dropped, as if the run had been
interrupted there, and the run is resumed from what is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import compress
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, cast

from flowdeco.engine.evaluate import Evaluation
from flowdeco.engine.frames import Branch, Frame, Leaf, OpenStream, Visit
from flowdeco.engine.groups import Crew
from flowdeco.engine.journal import Journal, Remembered
from flowdeco.engine.memory import Chronicle, Memory, Told, collection_paused
from flowdeco.engine.past import Did, Past, is_over
from flowdeco.engine.requests import CAUGHT_UP, Failure, Raised, Request, Save, Wait, Walk
from flowdeco.engine.resume import Resumption, at_once, refilled
from flowdeco.engine.runs import Run, Status
from flowdeco.errors import CodeChangedError, DefinitionError, JournalError, Suspend, suggestion
from flowdeco.events import Event
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream
from flowdeco.model.options import Middleware
from flowdeco.model.store import Delta, Store

__all__ = ["Journaled", "Rehearsal", "Trial", "check_fork", "from_journal", "from_memory"]

Going: TypeAlias = "tuple[Evaluation, Generator[Request, Any, None]]"

_IN_DOUBT: Final = Wait([], [])  # what a trial says before it would do what cannot be undone; nobody ever performs it


class _Examination(Resumption):
    """A walk over the past that looks for what has changed since (`changes`), and for what holds (`kept`).

    `code` gives the fingerprint of a function; where steps have the functions themselves, of theirs as well.
    """

    def __init__(self, run: Run, *, code: Callable[[Any], str], on_change: str = "error", **options: Any) -> None:
        super().__init__(run, **options)
        self.on_change = on_change
        self.code = None if on_change == "ignore" else code
        self.changes: list[str] = []
        self.stop = Suspend("the past ends here")
        self.visited: list[Branch] = []

    def kept(self) -> dict[str, int]:
        """Return how much of the past of each branch holds; of a branch that is not there, nothing does."""
        kept = {branch.id: branch.position for branch in self.visited}
        kept.update((failed.branch.id, failed.position) for failed in self.branch.failures)  # recovered by nobody now
        return kept

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        if branch.past is not None:
            self.visited.append(branch)
        return super()._walk(branch, error)

    def _changed(self, change: str) -> BaseException:
        self.changes.append(change)
        return self.stop

    def _check_code(self, did: Did, action: Action[..., Any], stage: str) -> Failure:
        code, then, now = self.code, did.code, action.__wrapped__
        if code is None or then is now or not is_over(did):
            return None
        if code(now) == (then if isinstance(then, str) else code(then)):
            return None
        return self._has_other_code(f"action {stage}/{did.name} has completed, with other code")

    def _has_other_code(self, change: str) -> Failure:
        return self._changed(change)


class Trial(_Examination):
    """A resumption of which it is not known yet whether all of the past holds.

    Its walk first yields CAUGHT_UP, when it has restored the past and nothing else has happened, or else anything: then
    it must not go on, and neither if it has come to its end. `holds` says what came of it.
    """

    def __init__(self, run: Run, *, notify: Callable[[Event], None] | None = None, **options: Any) -> None:
        super().__init__(run, notify=None if notify is None else self._told, **options)
        self.tell = notify
        self.held: list[Event] | None = []
        self.interrupt: Failure = None

    def holds(self, chronicle: Chronicle) -> bool:
        """Whether all of the past was restored, and nothing speaks against going on."""
        return not (self.changes or self.interrupt) and chronicle.is_within(self.kept())

    def begin(self) -> None:
        """Tell observers what has been restored: the run goes on."""
        held, self.held = self.held or [], None
        self.visited.clear()
        for event in held:
            self._told(event)

    def _told(self, event: Event) -> None:
        if self.held is not None:
            self.held.append(event)
        else:
            cast("Callable[[Event], None]", self.tell)(event)

    def _walk(self, branch: Branch, error: Failure = None) -> Walk:
        error = yield from super()._walk(branch, error)
        if error is not None and error is not self.end and self.cancels(error):
            self.interrupt = error
        return error

    def _caught_up(self, branch: Branch) -> Generator[Request, Any, None]:
        yield CAUGHT_UP

    # Middleware, reducers and streams are functions of a user.

    def _open_unfinished(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        return self._in_doubt()

    def _visit_unfinished(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        if visit.frame.use_stages or visit.stage.use:
            return self._in_doubt()
        return super()._visit_unfinished(branch, visit, by)

    def _begin_group(self, branch: Branch, group: Parallel) -> Walk:
        if group.merge and branch.past is not None:
            return self._in_doubt()
        return super()._begin_group(branch, group)

    def _open_stream_again(self, branch: Branch, frame: Frame, stream: Stream, by: str | None) -> Walk:
        return self._in_doubt()

    def _in_doubt(self) -> Generator[Request, Any, None]:
        yield _IN_DOUBT


class Rehearsal(_Examination):
    """The walk over the past that restores nothing, and goes on beyond a change of code to find them all.

    With `on_change="rerun"` the past holds up to the first change of code; a step that comes where there was another one
    always ends it, and so does the stage `until`. Streams are begun, and left open for the run (`streams`).
    """

    def __init__(self, pipeline: Pipeline, *, until: str | None = None, **options: Any) -> None:
        super().__init__(Run("", pipeline, Store()), history=0, **options)
        self.until = until
        self.differs = False  # from here on, the past does not hold

    def walk(self) -> Generator[Request, Any, None]:
        """Go through the past; the streams that were begun are left open."""
        return Evaluation.walk(self)

    def _changed(self, change: str) -> BaseException:
        self.differs = True
        return super()._changed(change)

    def _has_other_code(self, change: str) -> Failure:
        if self.on_change == "rerun":
            return self._changed(change)
        self.changes.append(change)
        return None

    def _perform(self, branch: Branch) -> Walk:
        return at_once(self.stop)

    def _open_unfinished(self, branch: Branch, frame: Frame, layers: tuple[Middleware, ...]) -> Walk:
        return refilled(frame)

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
                return at_once(self.stop)
        return super()._stage(branch, frame, stage, by)

    def _visit_unfinished(self, branch: Branch, visit: Visit, by: str | None) -> Walk:
        return self._actions_again(branch, visit)

    def _restore(self, branch: Branch, delta: Delta | None) -> None:
        pass

    def _plainly(self, branch: Branch) -> MutableMapping[str, Any] | None:
        return {}

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


# What a run goes on from.


class Makes(Protocol):
    """What makes the walks of a run, with all that it was started with."""

    def evaluation(self, run: Run, kind: type[Evaluation], memory: Memory | None = None, **more: Any) -> Evaluation: ...

    def rehearsal(self, past: Past, **how: Any) -> Rehearsal: ...


class Journaled(NamedTuple):
    """A run as its journal remembers it, what its payloads say, and the values that it was given.

    `more` are the inputs of this resume, as the journal has them; `over` is as in `Resumption`.
    """

    journal: Journal
    fingerprint: Callable[[Any], str]
    remembered: Remembered
    told: Told
    values: Mapping[str, Any]
    more: bytes | None
    over: bool | None
    skip: list[str]


def from_journal(
    run: Run, make: Makes, known: Journaled, on_change: str, from_stage: str | None
) -> Generator[Request, Any, Going | None]:
    """Give the evaluation that the run goes on with, and its walk; None if it does not, and says why.

    With `from_stage` it is another run, which begins from there.
    """
    remembered, journal, over = known.remembered, known.journal, known.over
    chronicle = Chronicle(known.told)
    name = run.pipeline.name
    same_pipeline = remembered.pipeline in (name, name.encode("utf-8", "backslashreplace").decode())  # if no Unicode
    memory = Memory(journal, run.id, known.fingerprint)
    how = {"code": memory.code, "on_change": on_change, "over": over}
    if same_pipeline and from_stage is None:
        trial = cast("Trial", make.evaluation(run, Trial, memory, past=chronicle.past(), **how))
        walk = _tried(trial, chronicle)
        if walk is not None:
            return trial, walk
        run._begin(Store(known.values))
        if trial.interrupt is not None:
            yield from _give_up(run, known, trial.interrupt, trial.cancels)
            return None
    rehearsal = make.rehearsal(chronicle.past(), until=from_stage, **how)
    if not same_pipeline:
        rehearsal.changes.append(
            f"the run is one of pipeline {remembered.pipeline!r}, and this is {run.pipeline.name!r}"
        )
    error = yield from _rehearsed(run, rehearsal)
    if error is None and rehearsal.until is not None:
        error = _unknown_stage(rehearsal.until, {row.stage for row in remembered.rows if row.kind == "stage"})
    kept = rehearsal.kept()
    holds = [row.number < kept.get(row.branch, 0) for row in remembered.rows]
    if error is None and from_stage is not None:
        answer = yield Save(_write_fork, run, known, holds)
    elif error is None and not all(holds):
        lost = {row.branch for row, held in zip(remembered.rows, holds, strict=True) if not held}
        cuts = {branch: kept.get(branch, 0) for branch in lost}
        answer = yield Save(journal.drop, run.id, cuts)
    else:
        answer = None
    if type(answer) is Raised:
        error = answer.error
    if error is not None:
        yield from rehearsal.close_streams()
        yield from _give_up(run, known if from_stage is None else None, error, rehearsal.cancels)
        return None
    if not all(holds):
        rows, dids = known.told
        chronicle = Chronicle((list(compress(rows, holds)), list(compress(dids, holds))))
    past, over = chronicle.past(), None if rehearsal.differs else over
    evaluation = make.evaluation(run, Resumption, memory, past=past, over=over, streams=rehearsal.streams)
    return evaluation, evaluation.walk()


def from_memory(
    run: Run,
    make: Makes,
    recall: Callable[[], Past],
    given: Mapping[str, Any],
    code: Callable[[Any], str],
    on_change: str,
) -> Generator[Request, Any, Going | None]:
    """Give the evaluation that a run in memory goes on with, and its walk; None if it does not, and says why."""
    rehearsal = make.rehearsal(recall(), code=code, on_change=on_change)
    error = yield from _rehearsed(run, rehearsal)
    if error is None and rehearsal.differs:
        error = DefinitionError(
            f"run {run.id!r} is in memory only, where what has been done since a change cannot be undone: run it "
            f"with journal=... to run it again from there. What has changed: {'; '.join(rehearsal.changes)}"
        )
    if error is not None:
        yield from rehearsal.close_streams()
        yield from _give_up(run, None, error, rehearsal.cancels)
        return None
    evaluation = make.evaluation(run, Resumption, past=recall(), given=given, streams=rehearsal.streams)
    return evaluation, evaluation.walk()


def _tried(trial: Trial, chronicle: Chronicle) -> Generator[Request, Any, None] | None:
    """Return the walk of a trial that has restored all of the past; of any other one, nothing has happened."""
    walk = trial.walk()
    with collection_paused():
        reached = next(walk, None)
    well = reached is CAUGHT_UP or (reached is None and trial.run.error is None)
    if well and trial.holds(chronicle):
        trial.begin()
        return walk
    walk.close()
    return None


def _rehearsed(run: Run, rehearsal: Rehearsal) -> Generator[Request, Any, BaseException | None]:
    """Go through the past of a run; return what speaks against going on."""
    yield from rehearsal.walk()
    error = rehearsal.run.error
    if error is not None and (rehearsal.cancels(error) or isinstance(error, DefinitionError)):
        return error
    if rehearsal.changes and rehearsal.on_change == "error":
        return CodeChangedError.listing(run.id, rehearsal.changes)
    return None


def _give_up(
    run: Run, known: Journaled | None, error: BaseException, cancels: Callable[[BaseException], bool]
) -> Generator[Request, Any, None]:
    """Leave a run as it was, in its journal too if that has been opened for it."""
    run.status = Status.CANCELLED if cancels(error) else Status.FAILED
    run.error = error
    if known is not None:
        before, said = known.remembered, f"{type(error).__name__}: {error}"
        yield Save(known.journal.close, run.id, before.status, before.reason, said)


# Forks.


def check_fork(from_stage: str, remembered: Remembered, flow: Pipeline) -> None:
    """Raise `JournalError` if neither the run nor the pipeline has such a stage."""
    ran = {row.stage for row in remembered.rows if row.kind != "pipeline"}
    known = {*ran, *(name.partition("[")[0] for name in ran), *(unit.name for unit in flow)}
    if from_stage not in known:
        raise _unknown_stage(from_stage, known)


def _unknown_stage(name: str, known: Iterable[str]) -> JournalError:
    """Return the error of a fork from a stage that the run does not have."""
    return JournalError(f"there is no stage {name!r} to go on from in this run. {suggestion(name, known)}")


def _write_fork(run: Run, known: Journaled, holds: list[bool]) -> None:
    """Begin a run with what holds of another one."""
    journal, rows, written = known.journal, known.remembered.rows, 0
    (_, first), *given = known.remembered.inputs
    journal.create(run.id, run.pipeline.name, first, known.skip)
    for at, inputs in [*given, (len(holds), known.more)]:
        some = zip(rows[written:at], holds[written:at], strict=True)
        journal.write(run.id, [row for row, held in some if held])
        written = max(written, at)
        if inputs is not None:
            journal.add_inputs(run.id, inputs)
