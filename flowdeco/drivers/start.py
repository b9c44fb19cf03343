"""The work of both drivers before and after a run."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from flowdeco.drivers.interrupts import is_cancellation, pause, sleep
from flowdeco.drivers.observers import checked_observers, notifier
from flowdeco.engine.evaluation import evaluate_run
from flowdeco.engine.generations import Generation, generations
from flowdeco.engine.journal import FINISHED, Codec, Journal, Remembered, encoder
from flowdeco.engine.memory import Log, in_memory
from flowdeco.engine.outcome import Outcomes
from flowdeco.engine.reading import encoded_inputs, given_inputs, read_run, stages_by_name
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Gate, Raised, Request, Save
from flowdeco.engine.resume import Earlier, Journaled, check_fork, continue_run
from flowdeco.engine.rows import outcomes
from flowdeco.engine.runs import Resumption, Run, Status, remember
from flowdeco.engine.terms import Terms
from flowdeco.engine.waits import Given, Wall, answered, open_questions, refusals, starting_point, used
from flowdeco.errors import (
    Cancelled,
    DefinitionError,
    JournalError,
    RunExistsError,
    RunNotFoundError,
    frames_of_users,
    members_of,
    selector_suggestion,
    shortened,
    told,
)
from flowdeco.model.contents import agree
from flowdeco.model.definitions import Pipeline, action_selectors
from flowdeco.model.options import (
    check_run_id,
    checked_count,
    checked_layers,
    checked_selectors,
    checked_timeout,
    in_seconds,
    is_one_of,
)
from flowdeco.model.runnable import Options as RunOptions
from flowdeco.model.selectors import check_skip
from flowdeco.model.store import Store
from flowdeco.model.units import selectors_in
from flowdeco.model.wiring import check_run

if TYPE_CHECKING:
    from flowdeco.engine.run_logger import RunLogger

__all__ = ["Evaluated", "abandon", "begin", "end", "resume"]


Evaluation: TypeAlias = "Generator[Request, Any, None]"
Evaluated: TypeAlias = "tuple[Run, Evaluation]"


def begin(
    flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions, gate: Gate | None = None
) -> Evaluated | Run:
    """Return a run and its evaluation; raises `WiringError` or `DefinitionError` if it cannot run.

    It is a new one, except with `if_exists="resume"`.
    """
    __tracebackhide__ = True
    start = _Start(flow, inputs, options, gate)
    while options.if_exists == "resume":
        with suppress(RunNotFoundError):
            return _from_journal(start, cast("str", options.run_id), "error", None)
        with suppress(RunExistsError):  # another process was faster
            return _begun(start)
    return _begun(start)


def _begun(start: _Start) -> Evaluated:
    __tracebackhide__ = True
    flow, options, store = start.flow, start.options, Store()
    store.supply(Store(start.inputs))
    start.check_skip()
    start.check(store)
    run = Run(options.run_id or os.urandom(8).hex(), flow, store)
    if options.journal is None:
        return start.evaluated(run, start.terms(run))
    journal = _journal(options.journal)
    recorder = _recorder(journal, run.id)
    recorder.check_repeatable(flow.units, f"pipeline {flow.name!r}", "has")
    payload = encoded_inputs(encoder(journal), journal.codec, store)
    entry = _entry(journal, flow)
    began = journal.create(run.id, flow.name, payload, sorted(start.skip), *([] if entry is None else [entry]))
    run.started = began or time.time()
    _listen(journal, run.id, start.gate)
    recorder.note_written(payload, store.items())
    del payload  # it may hold values
    return start.evaluated(run, start.terms(run, recorder, 1))


def resume(
    flow: Pipeline,
    what: Run | str,
    inputs: Mapping[str, Any] | None,
    options: RunOptions,
    on_change: str,
    from_stage: str | None,
    gate: Gate | None = None,
) -> Evaluated | Run:
    """Return the run to continue and its evaluation, or the run itself if there is nothing left to do."""
    __tracebackhide__ = True
    if from_stage is not None and not isinstance(from_stage, str):
        raise DefinitionError(f"from_stage is the name of a stage, not {shortened(from_stage)}")
    if not is_one_of(on_change, "error", "ignore", "rerun"):
        raise DefinitionError(f"on_change is 'error', 'ignore' or 'rerun', not {shortened(on_change)}")
    if isinstance(what, Run) and options.journal is None and what.resumption is not None:
        options = options._replace(journal=what.resumption.journal)
    if not isinstance(what, Run):
        check_run_id(what)
    if options.journal is not None:
        run_id = what.id if isinstance(what, Run) else what
        return _from_journal(_Start(flow, inputs, options, gate), run_id, on_change, from_stage)
    if not isinstance(what, Run):
        raise DefinitionError(
            f"to resume run {shortened(what)} by its id, give its journal: resume({shortened(what)}, journal=...)"
        )
    if from_stage is not None:
        raise DefinitionError("from_stage needs a journal: a run in memory has only its last state")
    return _from_memory(flow, what, inputs, options, on_change, gate)


def _from_memory(
    flow: Pipeline,
    before: Run,
    inputs: Mapping[str, Any] | None,
    options: RunOptions,
    on_change: str,
    gate: Gate | None,
) -> Evaluated | Run:
    __tracebackhide__ = True
    if before.status in FINISHED:
        _refuse_error(before.id, before.status, options)
        _ignore(before, Store(inputs))
        return before
    kept = before.resumption
    if kept is None or kept.log is None:
        raise DefinitionError(
            f"run {before.id!r} cannot be resumed from memory: it was run with history=..., or its middleware, a value or "
            f"its journal could not be pickled with it"
        )
    start = _Start(flow, inputs, options if options.use != () else options._replace(use=kept.use), gate)
    start.check_skip()
    start.skip = start.skip.union(kept.skip)
    log, steps = kept.log, kept.log.history()
    errors = refusals(options.error, open_questions(steps), before.id)
    given = Given(0, Store(inputs), errors)
    _warn_of_used(before.id, given.values, steps)
    steps = answered(steps, [*[Given(0, {})] * log.since, given])
    taken = {key for key, number in used(steps) if number == log.since}
    more = {key: value for key, value in given.values.items() if key not in taken}
    store, remains = in_memory(before.store, log, more)
    start.check(store)
    run = Run(before.id, flow, store)
    run.stages, run.pipelines, run.resumption = before.stages, before.pipelines, kept
    run.started, run.elapsed, run.resumed = before.started, before.elapsed, before.resumed
    from flowdeco.durable.fingerprint import fingerprint  # its imports are loaded only for a resume

    earlier = Earlier(steps, fingerprint, on_change, remains=remains)
    return start.evaluated(run, start.terms(run, since=log.since + 1), earlier)


def _from_journal(start: _Start, run_id: str, on_change: str, from_stage: str | None) -> Evaluated | Run:
    __tracebackhide__ = True
    inputs, options = start.inputs, start.options
    journal = _journal(options.journal)
    is_fork = from_stage is not None
    whole = journal.read(run_id) if is_fork else journal.open(run_id)
    *older, remembered = generations(whole)
    finished = not is_fork and remembered.status in FINISHED
    try:
        given = given_inputs(remembered, journal.codec)
        if finished or options.if_exists == "resume":
            inputs = _new(Store(inputs), given)
        if finished and on_change != "rerun":
            _refuse_error(run_id, remembered.status, options)
            return _finished(start, whole, journal, inputs or {})
        steps, store, more = _taken_up(remembered, journal, given, inputs, options.error)
        if not finished:
            start.check_skip()
        start.skip = start.skip.union(remembered.skip)
        start.check(store)
        if from_stage is not None:
            check_fork(from_stage, remembered, start.flow)
        archived = () if is_fork else tuple(_steps(each, journal.codec, given) for each in reversed(older))
    except BaseException:
        if not (is_fork or finished):
            with suppress(JournalError):
                journal.release(run_id)
        raise
    run = Run(os.urandom(8).hex() if is_fork else run_id, start.flow, store)
    run.status = Status(remembered.status)
    recorder = _recorder(journal, run.id)
    listen = partial(_listen, journal, run.id, start.gate)
    entry = _entry(journal, start.flow) if is_fork else None
    known = Journaled(journal, remembered, whole, more, sorted(start.skip), from_stage, entry, listen)
    earlier = Earlier(steps, recorder.code, on_change, finished, journaled=known, older=archived, given=tuple(given))
    terms = start.terms(run, recorder, len(given))
    if not is_fork:
        run.started, run.elapsed = remembered.started, remembered.total()
        run.resumed = [started for _, started in remembered.legs]
        recorder.generation = Generation.of(whole)
    return start.evaluated(run, terms, earlier)


def _taken_up(
    remembered: Remembered, journal: Any, given: list[Given], inputs: Mapping[str, Any] | None, error: Any
) -> tuple[Outcomes, Store, Any]:
    """Return the steps with their answers, the store, and the payload of what the run is given now, which `given` gains."""
    found = outcomes(remembered.rows, journal.codec)
    errors = refusals(error, open_questions(found), remembered.run_id)
    more = None
    if inputs or errors:
        given.append(Given(len(remembered.rows), Store(inputs), errors))
        more = encoded_inputs(encoder(journal), journal.codec, given[-1].values, errors)
        _warn_of_used(remembered.run_id, given[-1].values, found)
    return *starting_point(found, given), more


def _warn_of_used(run_id: str, inputs: Mapping[str, Any], steps: Outcomes) -> None:
    """Log the inputs that would have been answers: their questions are answered, and the steps have gone on."""
    late = {key for key, _ in used(steps)}.difference(wait.key for wait in open_questions(steps)).intersection(inputs)
    if late:
        _logger(run_id).warning(
            "run %s has used an answer to %s already, and does not ask for it now: the new value is an input, which "
            "replaces what steps have written under that key, but they do not run again. For that, resume with from_stage=",
            run_id, ", ".join(map(repr, sorted(late))),
        )  # fmt: skip


def _steps(remembered: Remembered, codec: Codec, given: Sequence[Given]) -> Outcomes:
    """Return the steps of an earlier generation of a run."""
    mine = [each._replace(rows=rows) for each, (rows, _) in zip(given, remembered.inputs, strict=False)]
    return starting_point(outcomes(remembered.rows, codec), mine)[0]


def _new(inputs: Store, given: Sequence[Given]) -> dict[str, Any]:
    """Return the inputs that a run does not have yet, or has with another value."""
    known = {key: value for each in given for key, value in each.values.items()}
    return {key: value for key, value in inputs.items() if key not in known or not agree(value, known[key])}


def _refuse_error(run_id: str, status: str, options: RunOptions) -> None:
    if options.error is not None:
        raise DefinitionError(f"run {run_id!r} has {status} and no longer asks anything: no error can answer it")


def _ignore(run: Run, inputs: Mapping[str, Any]) -> None:
    if inputs:
        names = ", ".join(map(repr, inputs))
        _logger(run.id).warning("run %s is %s: the new inputs are ignored: %s", run.id, run.status, names)


def _finished(start: _Start, remembered: Remembered, journal: Journal, inputs: Mapping[str, Any]) -> Run:
    """Return a run that has finished, as its journal has it: nothing is called, and nothing written."""
    run = read_run(remembered, journal.codec, stages_by_name([start.flow]).get)
    _ignore(run, inputs)
    records = [_restored(stage)._replace(actions=list(map(_restored, stage.actions))) for stage in run.stages]
    history = start.options.history
    run.forgotten = 0 if history is None else max(0, len(records) - history)
    run.stages = records[run.forgotten :]
    run.pipeline = start.flow
    run.resumption = Resumption(start.use, start.skip.union(remembered.skip), None, _at_rest(journal))
    if start.watcher is not None:
        start.watcher.close()
    return run


def _restored(record: Any) -> Any:
    return record._replace(restored=True)


def _check(inputs: Mapping[str, Any] | None, options: RunOptions) -> None:
    """Raise `DefinitionError` for an option that is not what it should be."""
    __tracebackhide__ = True
    if inputs is not None and not isinstance(inputs, Mapping):
        raise DefinitionError(
            f"inputs are a mapping of keys to values, not the {type(inputs).__name__} {shortened(inputs)}"
        )
    if options.run_id is not None and not (isinstance(options.run_id, str) and options.run_id):
        raise DefinitionError(f"run_id is a non-empty string, or None for a new one, not {shortened(options.run_id)}")
    if not is_one_of(options.if_exists, "error", "resume"):
        raise DefinitionError(f"if_exists is 'error' or 'resume', not {shortened(options.if_exists)}")
    if options.if_exists == "resume" and (options.journal is None or options.run_id is None):
        raise DefinitionError(
            "if_exists='resume' needs to know which run may exist: give a journal and a run_id, such as "
            "run(journal='runs.db', run_id='monday', if_exists='resume')"
        )
    history = options.history
    if history is not None and (isinstance(history, bool) or not isinstance(history, int) or history < 0):
        raise DefinitionError(f"history is the number of stage records to keep, not {shortened(history)}")
    executor = options.executor
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        hint = f": write {executor.__name__}()" if isinstance(executor, type) else ""
        raise DefinitionError(f"executor is a concurrent.futures.Executor, not {shortened(options.executor)}{hint}")
    checked_count(options.limit, "limit", "concurrent calls")
    seconds = in_seconds(options.suspend_after)
    if seconds is None or seconds < 0:
        raise DefinitionError(
            f"suspend_after is a number of seconds that is not negative, a timedelta, or math.inf for never, "
            f"not {shortened(options.suspend_after)}"
        )


class _Start:
    """The options that a run is started with, checked."""

    def __init__(
        self, flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions, gate: Gate | None
    ) -> None:
        __tracebackhide__ = True
        _check(inputs, options)
        self.flow = flow
        self.inputs = inputs
        self.options = options
        self.use = checked_layers(options.use)
        self.skip = frozenset(checked_selectors(options.skip))
        self._observers = checked_observers(options.observers)
        self.watcher = options.watcher() if options.watcher is not None else None
        if self.watcher is not None:
            self._observers.append(self.watcher)
        self._timeout = checked_timeout(options.timeout)
        self._clock = time.perf_counter if options.clock is None else options.clock.time
        self.gate = gate or Gate()

    def check_skip(self) -> None:
        """Raise `DefinitionError` for a selector that can match nothing; those of an earlier leg were accepted then."""
        __tracebackhide__ = True
        if self.skip:
            check_skip(self.flow, self.skip, self.use)

    def check(self, store: Store) -> None:
        """Raise `WiringError` for parameters that nothing can supply."""
        __tracebackhide__ = True
        check_run(self.flow, store, self.skip, self.use)

    def _wall(self, *, durable: bool) -> Wall:
        """Return the wall clock of a run; that of a test jumps over sleeps, and suspends no run."""
        clock = self.options.clock
        if clock is not None:
            return Wall(lambda: clock.time() + clock.epoch, clock.sleep, clock.sleeping)
        pausing = partial(pause, self.gate, self.gate.raise_cancelled) if durable else sleep
        return Wall(
            time.time, pausing, _sleeping, cast("float", in_seconds(self.options.suspend_after)) if durable else inf
        )

    def terms(self, run: Run, recorder: Recorder | None = None, since: int = 0) -> Terms:
        """Return the terms of a run, and have the run keep the means to resume it."""
        clock, history = self.options.clock, self.options.history
        log = Log() if recorder is None and history is None else None
        if log is not None:
            log.since = since
        if recorder is not None or log is not None:
            run.resumption = Resumption(self.use, self.skip, log, None if recorder is None else recorder.journal)
        return Terms(
            run.id, self._clock, time.time() - self._clock() if clock is None else clock.epoch,
            is_cancellation, self.gate, notify=notifier(self._observers, run.id, self.gate), skip=self.skip,
            unmatched=set(self.skip), most_records=history, recorder=recorder, log=log,
            wall=self._wall(durable=recorder is not None), since=since, timeout=self._timeout,
        )  # fmt: skip

    def evaluated(self, run: Run, terms: Terms, earlier: Earlier | None = None) -> Evaluated:
        """Return a run and its evaluation, at whose end the progress display is closed."""
        evaluation = self._new(run, terms) if earlier is None else self._continued(run, terms, earlier)
        return run, evaluation if self.watcher is None else _closing(evaluation, self.watcher.close)

    def _new(self, run: Run, terms: Terms) -> Evaluation:
        yield from evaluate_run(run, terms, self.use)
        yield from self._closed(run, terms)
        _leave_journal(run, terms)

    def _continued(self, run: Run, terms: Terms, earlier: Earlier) -> Evaluation:
        continued = yield from continue_run(run, terms, self.use, earlier)
        known = earlier.journaled
        if continued:
            yield from self._closed(run, terms)
        elif known is not None and known.from_stage is None:
            if not earlier.finished:
                yield Save(known.journal.release, run.id)
            elif run.error is None:
                ignored: dict[str, Any] = known.journal.codec.decode(known.more) if known.more else {}
                found = _finished(self, known.whole, known.journal, ignored)
                for name in Run.__slots__:
                    setattr(run, name, getattr(found, name))
        _leave_journal(run, terms)

    def _closed(self, run: Run, terms: Terms) -> Evaluation:
        """Warn of options without effect, and close the journal, when a run has ended."""
        if run.status is Status.COMPLETED:
            if terms.unmatched or terms.idle:
                _warn_of_selectors(run, terms)
            if self.options.executor is not None and not terms.has_group:
                _logger(run.id).warning(
                    "run %s: executor=%s was not used: it performs the calls of parallel groups, and there was no group. "
                    "Write parallel(...) for units that may run in parallel", run.id, shortened(self.options.executor),
                )  # fmt: skip
        recorder = terms.recorder
        if recorder is not None:
            if run.status is Status.SUSPENDED and terms.gate.cancelled is not None:  # as it was being suspended
                run.status, run.error, run.reason, run.waits = Status.CANCELLED, terms.gate.cancelled, None, ()
            error = None if run.error is None else told(run.error)
            if recorder.generation.older and run.status in FINISHED:
                yield Save(recorder.drop_older)
            waits = (run.waits,) if run.waits else ()
            answer = yield Save(recorder.journal.close, run.id, str(run.status), run.reason, error, run.elapsed, *waits)
            if type(answer) is Raised:
                _note_unclosed(run, answer.error)


def _closing(evaluation: Evaluation, close: Callable[[], object]) -> Evaluation:
    try:
        yield from evaluation
    finally:
        close()


def _warn_of_selectors(run: Run, terms: Terms) -> None:
    """Log the selectors that selected nothing, each with its likely corrections."""
    known = selectors_in((*run.pipeline.units, *(record.stage for record in run.stages)))
    for record in run.stages:
        known.update(name for each in record.actions for name in action_selectors(record.stage, each.action))
    if terms.unmatched:
        wrong = sorted(terms.unmatched)
        _logger(run.id).warning("run %s: skip=%s matched nothing. %s", run.id, wrong, _meant(wrong, known))
    for selector, (stage, action, on) in terms.idle.items():
        verb, hint = "enabled" if on else "disabled", _meant([selector], known)
        _logger(run.id, stage, action).warning(
            "run %s: action %s/%s %s %r, and nothing that ran after it matches. %s",
            run.id, stage, action, verb, selector, hint,
        )  # fmt: skip


def _meant(selectors: list[str], known: set[str]) -> str:
    """Return the likely corrections of selectors, and which of them name something that did not begin after all."""
    right = [selector for selector in selectors if selector in known]
    wrong = [selector for selector in selectors if selector not in known]
    there = f"{', '.join(map(repr, right))} had begun before, or the run did not come to it." if right else ""
    return " ".join(filter(None, (there, selector_suggestion(wrong, known) if wrong else "")))


def _note_unclosed(run: Run, failure: BaseException) -> None:
    """Report that the end of a run is not in its journal; if it has failed, with its error."""
    if run.error is None:
        run.error, run.status = failure, Status.FAILED
        return
    _logger(run.id).error("run %s: %s", run.id, failure)
    with suppress(Exception):  # the exception may not allow it
        run.error.add_note(str(failure))


def _leave_journal(run: Run, terms: Terms) -> None:
    """Have a run that has ended keep nothing open, nor the contexts and tracebacks that lead to its terms."""
    kept = run.resumption
    if kept is not None and kept.journal is not None:
        journal = _at_rest(kept.journal)
        run.resumption = kept._replace(journal=journal)
        if terms.recorder is not None:
            terms.recorder.journal = journal


def abandon(evaluated: Evaluated | Run | Raised) -> None:
    """Release the lease of a run that was cancelled before it began; one that was to be resumed stays as it was."""
    if not isinstance(evaluated, tuple):
        return
    run, _ = evaluated
    journal = None if run.resumption is None else run.resumption.journal
    if run.status is not Status.PENDING:
        if journal is not None:
            journal.release(run.id)
        return
    run.status = Status.CANCELLED
    if journal is not None:
        journal.close(run.id, str(Status.CANCELLED), None, None)


def _journal(given: Any) -> Journal:
    from flowdeco.durable import journal  # sqlite3 is loaded only if it is used

    return cast("Journal", journal.for_run(given))


def _entry(journal: Any, flow: Pipeline) -> str | None:
    """Return where a pipeline is found, for a journal that notes it."""
    if not getattr(journal, "takes_entry", False) or getattr(journal, "entry", None) is not None:
        return None
    from flowdeco.durable.entry import entry_of

    return entry_of(flow)


def _recorder(journal: Journal, run_id: str) -> Recorder:
    from flowdeco import durable

    return Recorder(journal, run_id, durable.fingerprint, durable.digest)


def _at_rest(journal: Journal) -> Journal:
    from flowdeco.durable.journal import at_rest

    return cast("Journal", at_rest(journal))


def _sleeping(seconds: float) -> Awaitable[None]:
    import asyncio

    return asyncio.sleep(seconds)


def end(run: Run, check: bool) -> Run:
    """Return the run, or raise its failure if the caller wants that.

    A cancellation is always passed on, and so is an error before the first step.
    """
    __tracebackhide__ = True
    error = run.error
    if error is None:
        return run
    remember(run, error)
    for each in members_of(error):
        with suppress(Exception):  # the exception may not allow it
            each.__traceback__ = frames_of_users(each.__traceback__)
    if check or run.status is Status.PENDING or (run.status is Status.CANCELLED and not isinstance(error, Cancelled)):
        raise error
    return run


def _listen(journal: Any, run_id: str, gate: Gate) -> None:
    """Have the journal interrupt a run when it is cancelled."""
    if hasattr(journal, "on_cancel"):
        journal.on_cancel(run_id, partial(gate.interrupt, Cancelled.from_outside(run_id)))


def _logger(run_id: str, stage: str | None = None, action: str | None = None) -> RunLogger:
    from flowdeco.engine.run_logger import run_logger

    return run_logger(run_id, stage, action)
