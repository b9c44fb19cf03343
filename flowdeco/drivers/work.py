"""What is under way in parallel groups: the calls, awaitables and pauses that a `Wait` began.

A driver says how it awaits, how it is woken, and how it tells the time is over; the rest is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import Context
from typing import Any, Final, Protocol, cast

from flowdeco.drivers.threads import call_in_thread, timed_out
from flowdeco.errors import Cancelled
from flowdeco.executors import is_local, perform, receive, ship
from flowdeco.requests import Await, Chore, Raised, Request, Save, Sleep, Wait
from flowdeco.wiring import Step

__all__ = ["Work", "Worker"]

THREADS: Final = 32  # branches in threads mostly wait for something; a thread is made when it is needed


class Worker(Protocol):
    """What a driver brings."""

    def report(self, ticket: int, answer: Any) -> None:
        """Take an answer, from any thread."""

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        """Report an answer when the time has come."""

    def begin_await(self, ticket: int, request: Await, context: Context) -> Callable[[], object]:
        """Begin to await, report what comes of it, and return what cancels it."""
        ...


class Work:
    """What is under way, by ticket."""

    def __init__(self, worker: Worker, executor: Executor | None, resources: ExitStack) -> None:
        self._worker = worker
        self._executor = executor
        self._resources = resources
        self._threads: Executor | None = None
        self._open: dict[int, Callable[[], object] | None] = {}

    def begin(self, wait: Wait) -> None:
        """Begin and cancel what the request says."""
        for ticket, request, context in wait.begin:
            self._open[ticket] = None
            try:
                self._open[ticket] = self._begin(ticket, request, context)
            except BaseException as error:
                self._worker.report(ticket, Raised(error))
        for ticket in wait.cancel:
            cancel = self._open.get(ticket)
            if cancel is not None:
                cancel()

    def settle(self, reported: list[tuple[int, Any]]) -> list[tuple[int | None, Any]]:
        """Return the answers of what is still under way: what has been given up may report late."""
        return [(ticket, answer) for ticket, answer in reported if self._open.pop(ticket, _GONE) is not _GONE]

    def _begin(self, ticket: int, request: Request, context: Context) -> Callable[[], object] | None:
        worker = self._worker
        if isinstance(request, Sleep):
            worker.later(request.seconds, ticket, None)
            return lambda: worker.report(ticket, Raised(Cancelled("the group has been ended by another branch")))
        if isinstance(request, Save):
            saving = self._pool().submit(request.write, *request.args)
            saving.add_done_callback(lambda done: worker.report(ticket, _saved(done)))
            return None
        if isinstance(request, Await):
            return worker.begin_await(ticket, request, context)
        assert not isinstance(request, Wait), "groups pass on what is in a Wait, not the Wait"
        step, args, kwargs = request
        if isinstance(step, Step) and step.is_async:
            coroutine = step.function(*args, **(kwargs or {}))
            return worker.begin_await(ticket, Await(coroutine, step.timeout, step.name), context)
        return self._call(ticket, step, args, kwargs, context)

    def _call(
        self, ticket: int, step: Step | Chore, args: Sequence[Any], kwargs: Mapping[str, Any] | None, context: Context
    ) -> Callable[[], object] | None:
        worker, executor = self._worker, self._executor
        shipped: tuple[Sequence[Any], Mapping[str, Any]] | None = None
        future: Future[Any]
        # Of an action, a generator is run to its end over there; that of a stream is left as it is.
        call: tuple[Any, ...] = (perform, step.function, args, kwargs) if isinstance(step, Step) else (step.function, *args)
        if step.timeout is not None:
            worker.later(step.timeout, ticket, Raised(timed_out(step.name, step.timeout)))
        if executor is not None and isinstance(step, Step) and not is_local(executor):
            shipped = args, kwargs or {}
            future = ship(executor, step, *shipped)
        elif step.timeout is not None:
            # A thread of its own, with its own copy of the variables: given up, it must not keep others from ending.
            context.run(call_in_thread, call[0], call[1:], None, lambda answer: worker.report(ticket, answer))
            return None
        else:
            pool = executor if executor is not None and is_local(executor) else self._pool()
            future = cast("Any", pool).submit(context.run, *call)

        def done(future: Future[Any]) -> None:
            try:
                answer = receive(step, future, shipped)
            except BaseException as error:  # what came home cannot be unpickled here
                answer = Raised(error)
            worker.report(ticket, answer)

        future.add_done_callback(done)
        # What waits in the executor's queue can be taken back; what has begun goes on, and streams are always closed.
        return future.cancel if isinstance(step, Step) else None

    def _pool(self) -> Executor:
        if self._threads is None:
            self._threads = self._resources.enter_context(
                ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="flowdeco")
            )
        return self._threads


def _saved(done: Future[None]) -> Raised | None:
    error = done.exception()
    return None if error is None else Raised(error)


_GONE: Final = object()


