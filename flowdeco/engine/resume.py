"""Continuing a run: it is rehearsed, then evaluated again from its beginning (`history`, `restoring`).

A refused resume leaves the run, and its journal, as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, cast

from flowdeco.engine.adoption import Archive
from flowdeco.engine.evaluation import evaluate_run
from flowdeco.engine.generations import Generation
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.journal import Journal, Remembered, Row
from flowdeco.engine.memory import Remains
from flowdeco.engine.outcome import Outcomes, Status
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Raised, Request, Save
from flowdeco.engine.runs import Run
from flowdeco.engine.streams import close_streams
from flowdeco.engine.terms import Terms
from flowdeco.engine.waits import Given, used, waits_by_step
from flowdeco.errors import CodeChangedError, DefinitionError, JournalError, RunBusyError, suggestion
from flowdeco.model.definitions import Action, Pipeline, Stage
from flowdeco.model.options import Middleware
from flowdeco.model.store import Store
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import every_unit

__all__ = ["Earlier", "Journaled", "check_fork", "continue_run"]


class Journaled(NamedTuple):
    """A run as its journal remembers it.

    `remembered` is its present generation, of the `whole`. `more` are the inputs of this resume, `from_stage` is that at
    which a new run begins, and `entry` where the pipeline of that is found. `listen` asks the journal, once it holds the
    lease, to interrupt the run if it is cancelled.
    """

    journal: Journal
    remembered: Remembered
    whole: Remembered
    more: bytes | None
    skip: list[str]
    from_stage: str | None = None
    entry: str | None = None
    listen: Callable[[], object] = object


class Earlier(NamedTuple):
    """The earlier part of a run: its steps, and how the code now is compared with them.

    `code` returns the fingerprint of a function. `finished` means that the run had ended. In memory, `remains` has
    the remains of its branches; otherwise, `journaled` is the run in its journal, `older` are the steps of its
    earlier generations, the latest first, and `given` is everything that it was given.
    """

    steps: Outcomes
    code: Callable[[Any], str]
    on_change: str
    finished: bool = False
    remains: dict[str, Remains] | None = None
    journaled: Journaled | None = None
    older: tuple[Outcomes, ...] = ()
    given: tuple[Given, ...] = ()


def continue_run(
    run: Run, terms: Terms, use: tuple[Middleware, ...], earlier: Earlier
) -> Generator[Request, Any, bool]:
    """Continue a run, or note the error that prevents this in it; return whether it was continued.

    A run that had finished is continued only if something differs.
    """
    rehearsal = yield from _rehearsed(run, terms, use, earlier)
    error = _refusal(run, terms, rehearsal, earlier)
    if error is not None:
        return (yield from _not_continued(run, terms, rehearsal, error))
    if earlier.finished and not rehearsal.differs:
        yield from close_streams(rehearsal)
        return False
    adopts = _adopts(rehearsal, earlier)
    if earlier.journaled is not None:
        begin_again = Save(_proceed, run.id, earlier.journaled, earlier.finished)
        error = yield from (_saved(begin_again) if adopts else _brought_up_to_date(run, terms, rehearsal, earlier))
    if error is not None:  # perhaps as the journal took the run back to an earlier step: that is its failure
        refused = Status.PENDING if isinstance(error, RunBusyError) else Status.FAILED
        return (yield from _not_continued(run, terms, rehearsal, error, refused))
    if adopts:  # its streams are called again, as everything is
        yield from close_streams(rehearsal)
    history = _next_generation(terms, earlier) if adopts else _history(rehearsal, earlier)
    terms.resume_from(history)
    terms.waits = waits_by_step(history.steps)
    if rehearsal.differs:
        _give_back(run, used(earlier.steps) - used(history.steps), earlier.given)
    run.resumed = (*run.resumed, terms.clock() + terms.epoch)
    yield from evaluate_run(run, terms, use)
    return True


def _not_continued(
    run: Run, terms: Terms, rehearsal: Rehearsal, error: BaseException, refused: Status = Status.PENDING
) -> Generator[Request, Any, bool]:
    """Leave a run as it was: note the error that prevents it from continuing.

    A refused run is `pending`: nothing has begun, so that `check=False` has no failure to return, and the error is raised.
    """
    run.error = error
    run.status = Status.CANCELLED if terms.is_cancellation(error) else refused
    yield from close_streams(rehearsal)
    return False


def _give_back(run: Run, answers: Iterable[tuple[str, int]], given: Sequence[Given]) -> None:
    """Put answers into the store whose questions are gone with the steps that do not hold: they may be asked again."""
    for key, number in sorted(answers):
        later = given[number + 1 :]
        if key in given[number].values and not any(key in each.values for each in later):
            run.store.supply({key: given[number].values[key]})


def _saved(save: Save) -> Generator[Request, Any, BaseException | None]:
    answer = yield save
    return answer.error if type(answer) is Raised else None


def _history(rehearsal: Rehearsal, earlier: Earlier) -> History:
    older = earlier.older if earlier.on_change != "rerun" else ()
    return History(
        rehearsal.held(), is_in_memory=earlier.remains is not None, remains=earlier.remains,
        streams=rehearsal.streams, archive=Archive(older, earlier.steps) if older else None,
    )  # fmt: skip


# A pipeline that has changed.


def _adopts(rehearsal: Rehearsal, earlier: Earlier) -> bool:
    """Whether the completed steps are to be found by name: they do not match the pipeline any more."""
    journaled = earlier.journaled
    is_same_run = journaled is not None and journaled.from_stage is None
    return is_same_run and earlier.on_change == "ignore" and rehearsal.differs


def _next_generation(terms: Terms, earlier: Earlier) -> History:
    """Begin the run again, with what it had completed in an archive."""
    journaled, recorder = cast("Journaled", earlier.journaled), cast("Recorder", terms.recorder)
    recorder.generation = Generation.of(journaled.whole, later=1)
    return History({}, archive=Archive((earlier.steps, *earlier.older)))


def _rehearsed(
    run: Run, terms: Terms, use: tuple[Middleware, ...], earlier: Earlier
) -> Generator[Request, Any, Rehearsal]:
    """Walk through the history of the run, without performing anything."""
    from_stage = None if earlier.journaled is None else earlier.journaled.from_stage
    rehearsal = Rehearsal(
        earlier.steps, pipeline=run.pipeline, code=None if earlier.on_change == "ignore" else earlier.code,
        rerun=earlier.on_change == "rerun", until=from_stage, finished=earlier.finished,
        is_in_memory=earlier.remains is not None,
    )  # fmt: skip
    trial = Run(run.id, run.pipeline, Store(dict(run.store)))
    quiet = Terms(  # without recorder, log and observers: what is noted goes nowhere
        run.id, terms.clock, terms.epoch, terms.is_cancellation, terms.gate, skip=terms.skip,
        past=rehearsal,
    )  # fmt: skip
    yield from evaluate_run(trial, quiet, use)
    rehearsal.error = trial.error
    if earlier.journaled is not None:
        before, name = earlier.journaled.remembered.pipeline, run.pipeline.name
        if before not in (name, name.encode("utf-8", "backslashreplace").decode()):  # one that is not valid Unicode
            rehearsal.changes.append(f"the run is one of pipeline {before!r}, and this is {name!r}")
    return rehearsal


def _refusal(run: Run, terms: Terms, rehearsal: Rehearsal, earlier: Earlier) -> BaseException | None:
    """Return the error that forbids continuing, or None."""
    error, journaled = rehearsal.error, earlier.journaled
    if error is not None and (terms.is_cancellation(error) or isinstance(error, DefinitionError)):
        return error
    if rehearsal.changes and earlier.on_change == "error":
        return CodeChangedError.listing(run.id, rehearsal.changes)
    if journaled is not None and rehearsal.until is not None:
        return _unknown_stage(rehearsal.until, {row.stage for row in journaled.remembered.rows if row.kind == "stage"})
    if journaled is None and rehearsal.differs:
        return DefinitionError(
            f"run {run.id!r} is in memory only, where the steps since a change cannot be undone, as on_change="
            f"{earlier.on_change!r} needs it: run it with journal=... next time. What has changed: "
            f"{'; '.join(rehearsal.changes)}"
        )
    return None


def _brought_up_to_date(
    run: Run, terms: Terms, rehearsal: Rehearsal, earlier: Earlier
) -> Generator[Request, Any, BaseException | None]:
    """Have the journal keep only the steps that still hold: of this run, or of the new one that begins at a stage."""
    known, recorder = cast("Journaled", earlier.journaled), cast("Recorder", terms.recorder)
    cuts, reopened = rehearsal.cuts(), rehearsal.reopened()
    if known.from_stage is not None:
        holds = {(branch, number) for branch, mine in rehearsal.held().items() for number in mine}
        holds -= {(branch, outcome.number) for branch, outcome in reopened}
        error = yield from _saved(Save(_write_fork, run, known, holds))
    else:
        error = yield from _saved(Save(_proceed, run.id, known, earlier.finished))
        if error is not None:
            return error
        if cuts:
            error = yield from _saved(Save(recorder.drop, cuts))
    if error is None and reopened:
        error = yield from _saved(Save(recorder.write, [recorder.reopening(*each) for each in reopened]))
    if error is not None and earlier.finished:
        yield Save(known.journal.release, run.id)
    return error


def _proceed(run_id: str, known: Journaled, finished: bool) -> None:
    """Note that the run is running again; of one that had `finished`, take the lease first."""
    journal, before = known.journal, known.whole
    if finished:
        now = journal.open(run_id, finished=True)
        if (now.status, now.inputs, now.rows) != (before.status, before.inputs, before.rows):
            journal.release(run_id)
            raise RunBusyError(f"run {run_id!r} was run again by another process meanwhile")
    known.listen()
    journal.proceed(run_id, known.more)


# Forks.


def check_fork(from_stage: str, remembered: Remembered, flow: Pipeline) -> None:
    """Raise `JournalError` if neither the run nor the pipeline has such a stage."""
    ran = {row.stage for row in remembered.rows if row.kind in ("stage", "action")}
    defined = {unit.name for unit in every_unit(flow.units) if isinstance(unit, (Stage, Action))}
    known = {*ran, *(name.partition("[")[0] for name in ran), *defined}
    if from_stage not in known:
        raise _unknown_stage(from_stage, known)


def _unknown_stage(name: str, known: Iterable[str]) -> JournalError:
    """Return the error of a fork from a stage that the run does not have."""
    return JournalError(f"there is no stage {name!r} to continue from in this run. {suggestion(name, known)}")


def _write_fork(run: Run, known: Journaled, holds: set[tuple[str, int]]) -> None:
    """Begin a run with those rows of another one that still hold."""
    journal, rows, written = known.journal, known.remembered.rows, 0
    (_, first), *given = known.remembered.inputs
    began = journal.create(
        run.id, run.pipeline.name, first, known.skip, *([] if known.entry is None else [known.entry])
    )
    run.started = began or run.started
    known.listen()
    for at, inputs in [*given, (len(rows), known.more)]:
        some: list[Row] = [row for row in rows[written:at] if (row.branch, row.number) in holds]
        journal.write(run.id, some)
        written = max(written, at)
        if inputs is not None:
            journal.add_inputs(run.id, inputs)
