"""What both drivers do before and after a run."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flowdeco.definitions import Pipeline, RunOptions, checked_layers, checked_selectors
from flowdeco.errors import Cancelled, DefinitionError
from flowdeco.evaluate import Evaluation
from flowdeco.requests import Request
from flowdeco.runs import Run, Status
from flowdeco.store import Store
from flowdeco.wiring import check_run

if TYPE_CHECKING:
    from flowdeco.events import Event

__all__ = ["begin", "end"]


def begin(
    flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions
) -> tuple[Run, Generator[Request, Any, None]]:
    """Return the run and its evaluation; raises `WiringError` or `DefinitionError` if it cannot run."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise DefinitionError(f"inputs are a mapping of keys to values, not the {type(inputs).__name__} {inputs!r}")
    use = checked_layers(options.use)
    skip = frozenset(checked_selectors(options.skip))
    history = options.history
    if history is not None and (isinstance(history, bool) or not isinstance(history, int) or history < 0):
        raise DefinitionError(f"history is how many stage records are kept, not {history!r}")
    if options.executor is not None and not callable(getattr(options.executor, "submit", None)):
        raise DefinitionError(f"executor is a concurrent.futures.Executor, not {options.executor!r}")
    store = Store(inputs)
    check_run(flow, store, skip, bool(use))
    run = Run(options.run_id or os.urandom(8).hex(), flow, store)
    evaluation = Evaluation(
        run,
        use=use,
        notify=_notifier(options.observers, run.id),
        skip=skip,
        history=history,
        clock=time.perf_counter,
        now=time.time(),
        cancels=is_cancellation,
    )
    return run, _with_warning(evaluation)


def _with_warning(evaluation: Evaluation) -> Generator[Request, Any, None]:
    yield from evaluation.walk()
    if evaluation.unmatched and evaluation.run.status is Status.COMPLETED:
        _logger().warning(
            "run %s: skip=%s matched nothing", evaluation.run.id, sorted(evaluation.unmatched)
        )


def end(run: Run, check: bool) -> Run:
    """Raise what the run failed with, if the caller wants that; a cancellation always goes on."""
    error = run.error
    if error is None:
        return run
    run.remember(error)
    with suppress(AttributeError):  # an exception that cannot be written to
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


def _notifier(observers: Iterable[Any], run_id: str) -> Callable[[Event], None] | None:
    if callable(observers) or not isinstance(observers, Iterable):
        raise DefinitionError(f"observers is a list of callables: write observers=[{observers!r}]")
    listening = list(observers)
    for observer in listening:
        if not callable(observer):
            raise DefinitionError(f"an observer is a callable that takes an event, not {observer!r}")
    if not listening:
        return None

    def notify(event: Event) -> None:
        for observer in list(listening):
            try:
                observer(event)
            except Exception:
                with suppress(ValueError):  # it raised in another thread at the same time
                    listening.remove(observer)
                _logger().exception("run %s: the observer %r raised and is dropped", run_id, observer)

    return notify


def _logger() -> Any:
    import logging

    return logging.getLogger("flowdeco.run")


