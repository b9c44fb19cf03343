"""What both drivers do before and after a run."""

from __future__ import annotations

import inspect
import os
import sys
import time
import types
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from flowdeco.engine.evaluate import Evaluation
from flowdeco.engine.journal import Journal
from flowdeco.engine.location import error_of
from flowdeco.engine.memory import Memory, collection_paused, decoded
from flowdeco.engine.rehearse import Journaled, Rehearsal, check_fork, from_journal, from_memory
from flowdeco.engine.requests import Raised, Request, Save
from flowdeco.engine.runs import Run, Status
from flowdeco.errors import Bail, Cancelled, DefinitionError, Suspend, suggestion
from flowdeco.model.definitions import Pipeline, action_selectors, stage_selectors
from flowdeco.model.options import checked_layers, checked_selectors
from flowdeco.model.runnable import Options as RunOptions
from flowdeco.model.store import Store
from flowdeco.model.wiring import check_run, may_supply

if TYPE_CHECKING:
    from flowdeco.engine.logs import RunLogger
    from flowdeco.engine.past import Past
    from flowdeco.engine.rehearse import Going
    from flowdeco.events import Event, Watcher

__all__ = ["Evaluated", "abandon", "begin", "end", "is_cancellation", "resume"]


Evaluated: TypeAlias = "tuple[Run, Generator[Request, Any, None]]"


def begin(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Evaluated:
    """Return a new run and its evaluation; raises `WiringError` or `DefinitionError` if it cannot run."""
    __tracebackhide__ = True
    start = _Start(flow, inputs, options)
    store = Store(inputs)
    start.check(store)
    run = Run(options.run_id or os.urandom(8).hex(), flow, store)
    if options.journal is None:
        return run, start.evaluated(run)
    journal, fingerprint = _journal(options.journal)
    memory = Memory(journal, run.id, fingerprint)
    journal.create(run.id, flow.name, _encoded(journal, dict(store)), sorted(start.skip))
    return run, start.evaluated(run, memory)


def resume(
    flow: Pipeline,
    what: Run | str,
    inputs: Mapping[str, Any] | None,
    options: RunOptions,
    on_change: str,
    from_stage: str | None,
) -> Evaluated | Run:
    """Return the run to go on with and its evaluation, or the run itself if there is nothing left to do."""
    __tracebackhide__ = True
    if from_stage is not None and not isinstance(from_stage, str):
        raise DefinitionError(f"from_stage is the name of a stage, not {from_stage!r}")
    if on_change not in ("error", "ignore", "rerun"):
        raise DefinitionError(f"on_change is 'error', 'ignore' or 'rerun', not {on_change!r}")
    if isinstance(what, Run) and options.journal is None and what._journal is not None:
        options = options._replace(journal=what._journal)
    if options.journal is not None:
        run_id = what.id if isinstance(what, Run) else what
        with collection_paused():
            return _resume_from_journal(flow, run_id, inputs, options, on_change, from_stage)
    if not isinstance(what, Run):
        raise DefinitionError(f"to resume run {what!r} by its id, give its journal: resume({what!r}, journal=...)")
    if from_stage is not None:
        raise DefinitionError("from_stage needs a journal: a run in memory has only its last state")
    return _resume_from_memory(flow, what, inputs, options, on_change)


def _resume_from_memory(
    flow: Pipeline, before: Run, inputs: Mapping[str, Any] | None, options: RunOptions, on_change: str
) -> Evaluated | Run:
    if before.status in (Status.COMPLETED, Status.BAILED):
        return before
    trace = before._trace
    if trace is None:
        raise DefinitionError(f"run {before.id!r} was run with history=..., and cannot be resumed from memory")
    options = options._replace(use=(*before._use, *options.use), skip=(*before._skip, *options.skip))
    start = _Start(flow, inputs, options)
    given = dict(Store(inputs))
    run = Run(before.id, flow, before.store._revived(given))
    start.check(run.store)
    run.stages, run._trace = before.stages, trace
    going = from_memory(run, start, lambda: trace.past(before.stages), given, _fingerprint(), on_change)
    return run, start.watched(_gone_on(going))


def _resume_from_journal(
    flow: Pipeline,
    run_id: str,
    inputs: Mapping[str, Any] | None,
    options: RunOptions,
    on_change: str,
    from_stage: str | None,
) -> Evaluated:
    journal, fingerprint = _journal(options.journal)
    start = _Start(flow, inputs, options)
    remembered = journal.open(run_id) if from_stage is None else journal.read(run_id)
    over = {"completed": False, "bailed": True}.get(remembered.status) if from_stage is None else None
    if over is not None and on_change != "rerun":
        inputs = None  # it has come to its end without them
    try:
        given = [(rows, Store(journal.codec.decode(payload))) for rows, payload in remembered.inputs]
        more = _encoded(journal, dict(Store(inputs))) if inputs else None
        if inputs:
            given.append((len(remembered.rows), Store(inputs)))
        pins = {key: rows for rows, values in given[1:] for key in values}
        values = {key: value for _, values in given for key, value in values.items()}
        store = Store(values)
        start.skip = start.skip.union(remembered.skip)
        start.check(store)
        if from_stage is not None:
            check_fork(from_stage, remembered, flow)
        told = decoded(remembered.rows, journal.codec, pins)
        if from_stage is None and more is not None:
            journal.add_inputs(run_id, more)
    except BaseException as error:
        if from_stage is None:
            journal.close(run_id, remembered.status, remembered.reason, f"{type(error).__name__}: {error}")
        raise
    run = Run(run_id if from_stage is None else os.urandom(8).hex(), flow, store)
    run._journal = journal

    known = Journaled(journal, fingerprint, remembered, told, values, more, over, sorted(start.skip))
    going = from_journal(run, start, known, on_change, from_stage)
    return run, start.watched(_gone_on(going))


class _Start:
    """What a run is started with, checked."""

    def __init__(self, flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> None:
        __tracebackhide__ = True
        if inputs is not None and not isinstance(inputs, Mapping):
            raise DefinitionError(f"inputs are a mapping of keys to values, not the {type(inputs).__name__} {inputs!r}")
        if options.run_id is not None and not isinstance(options.run_id, str):
            raise DefinitionError(f"run_id is a text, not {options.run_id!r}")
        history = options.history
        if history is not None and (isinstance(history, bool) or not isinstance(history, int) or history < 0):
            raise DefinitionError(f"history is how many stage records are kept, not {history!r}")
        executor = options.executor
        if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
            raise DefinitionError(f"executor is a concurrent.futures.Executor, not {options.executor!r}")
        self.flow = flow
        self.use = checked_layers(options.use)
        self.skip = frozenset(checked_selectors(options.skip))
        self.history: int | None = history
        self.observers = _observers(options.observers)
        self.watcher = options.watcher() if options.watcher is not None else None
        self.clock = options.clock or time.perf_counter

    def check(self, store: Store) -> None:
        """Raise `WiringError` for what nothing can supply."""
        __tracebackhide__ = True
        check_run(self.flow, store, self.skip, may_supply(self.use))

    def evaluation(
        self, run: Run, kind: type[Evaluation] = Evaluation, memory: Memory | None = None, **more: Any
    ) -> Evaluation:
        """Return what evaluates the run."""
        watcher = self.watcher
        evaluation = kind(
            run,
            use=self.use,
            notify=_notifier(self.observers if watcher is None else [*self.observers, watcher], run.id),
            skip=self.skip,
            history=self.history,
            memory=memory,
            clock=self.clock,
            now=time.time(),
            cancels=is_cancellation,
            **more,
        )
        run._use, run._skip = self.use, self.skip
        run._trace = evaluation.branch.trace if self.history is None and memory is None else None
        run._journal = memory.journal if memory is not None else None
        return evaluation

    def rehearsal(self, past: Past, **how: Any) -> Rehearsal:
        """Return what goes through the past of a run before it goes on."""
        return Rehearsal(
            self.flow, past=past, skip=self.skip, clock=self.clock, now=time.time(), cancels=is_cancellation, **how
        )

    def evaluated(self, run: Run, memory: Memory | None = None) -> Generator[Request, Any, None]:
        """Evaluate a new run."""
        evaluation = self.evaluation(run, memory=memory)
        return self.watched(_evaluated(evaluation, evaluation.walk()))

    def watched(self, evaluated: Generator[Request, Any, None]) -> Generator[Request, Any, None]:
        """Close the progress display in the end."""
        return evaluated if self.watcher is None else _watched(evaluated, self.watcher)


def _gone_on(going: Generator[Request, Any, Going | None]) -> Generator[Request, Any, None]:
    gone = yield from going
    if gone is not None:
        yield from _evaluated(*gone)


def _evaluated(evaluation: Evaluation, walk: Generator[Request, Any, None]) -> Generator[Request, Any, None]:
    """Evaluate, and do what is left to do afterwards."""
    yield from walk
    run = evaluation.run
    if evaluation.unmatched and run.status is Status.COMPLETED:
        _logger(run.id).warning("run %s: skip=%s matched nothing. %s", run.id, *_unmatched(run, evaluation.unmatched))
    if evaluation.memory is not None:
        answer = yield Save(evaluation.memory.journal.close, run.id, str(run.status), run.reason, error_of(run))
        if type(answer) is Raised and run.error is None:
            run.error, run.status = answer.error, Status.FAILED


def _watched(evaluated: Generator[Request, Any, None], watcher: Watcher) -> Generator[Request, Any, None]:
    try:
        yield from evaluated
    finally:
        watcher.close()


def _unmatched(run: Run, selectors: set[str]) -> tuple[list[str], str]:
    """Return selectors that matched nothing, and what they were probably meant to be."""
    known = {name for record in run.stages for name in stage_selectors(record.stage)}
    ran = [(record.stage, each.action) for record in run.stages for each in record.actions]
    known |= {name for stage, action in ran for name in action_selectors(stage, action)}
    wrong = sorted(selectors)
    return wrong, suggestion(wrong[0], known)


def abandon(run: Run) -> None:
    """Give up the lease of a run that was cancelled before it began."""
    if run._journal is not None:
        run._journal.close(run.id, str(Status.CANCELLED), None, None)


def _fingerprint() -> Callable[[Any], str]:
    from flowdeco.durable.fingerprint import fingerprint  # what it needs is loaded for those who resume

    return fingerprint


def _journal(given: Any) -> tuple[Journal, Callable[[Any], str]]:
    from flowdeco import durable  # sqlite3 is loaded for those who use it

    return durable.as_journal(given), durable.fingerprint


def _encoded(journal: Journal, inputs: dict[str, Any]) -> bytes:
    return journal.codec.encode(inputs, "inputs")


def end(run: Run, check: bool) -> Run:
    """Raise what the run failed with, if the caller wants that; a cancellation always goes on."""
    __tracebackhide__ = True
    error = run.error
    if error is None:
        return run
    run._remember(error)
    with suppress(Exception):  # an exception that cannot be written to
        error.__traceback__ = _without_our_frames(error.__traceback__)
    if check or run.status is Status.CANCELLED:
        raise error
    return run


def is_cancellation(error: BaseException) -> bool:
    """Whether it comes from outside: Ctrl-C, the cancellation of a task, of a branch by another one."""
    asyncio = sys.modules.get("asyncio")
    return isinstance(error, (KeyboardInterrupt, Cancelled)) or (
        asyncio is not None and isinstance(error, asyncio.CancelledError)
    )


def _without_our_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Return the traceback with the frames of user code only: how an action is called tells its author nothing."""
    kept: list[types.TracebackType] = []
    while traceback is not None:
        if not traceback.tb_frame.f_globals.get("__name__", "").startswith("flowdeco."):
            kept.append(traceback)
        traceback = traceback.tb_next
    following: types.TracebackType | None = None
    for entry in reversed(kept):
        following = types.TracebackType(following, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return following


def _observers(observers: Any) -> list[Callable[[Event], object]]:
    __tracebackhide__ = True
    if callable(observers) or not isinstance(observers, Iterable):
        raise DefinitionError(f"observers is a list of callables: write observers=[{observers!r}]")
    listening = list(cast("Iterable[Any]", observers))
    for observer in listening:
        if not callable(observer):
            raise DefinitionError(f"an observer is a callable that takes an event, not {observer!r}")
        if inspect.iscoroutinefunction(observer):
            raise DefinitionError(
                f"an observer is a plain function, and {observer!r} is `async def`: nobody would await it"
            )
    return listening


def _notifier(observers: list[Callable[[Event], object]], run_id: str) -> Callable[[Event], None] | None:
    listening = list(observers)
    if not listening:
        return None

    def notify(event: Event) -> None:
        for observer in list(listening):
            try:
                observer(event)
            except (Exception, Bail, Suspend):  # it observes, and has no say in the run
                with suppress(ValueError):  # it raised in another thread at the same time
                    listening.remove(observer)
                _logger(run_id).exception("run %s: the observer %r raised and is dropped", run_id, observer)

    return notify


def _logger(run_id: str) -> RunLogger:
    from flowdeco.engine.logs import run_logger

    return run_logger(run_id)
