"""Requests under way in parallel groups: the calls, awaitables and pauses that a `Schedule` began.

A driver provides its ways to await, to be woken and to keep time (`Worker`); the rest is the same for both.

A request that has begun waits until it is claimed: by a thread, by the event loop. The one that takes its ticket out of
`_waiting` answers it. So a request that is still waiting can be withdrawn when its group ends or the run is
interrupted; any other answers by itself.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from contextvars import Context
from itertools import count
from typing import Any, Protocol

from flowdeco.drivers.threads import Threads, call_in_thread, timed_out
from flowdeco.engine.requests import Await, FunctionCall, Gate, Raised, Request, Save, Sleep
from flowdeco.engine.schedule import Schedule
from flowdeco.errors import Cancelled
from flowdeco.executors import is_local, perform, receive, ship
from flowdeco.model.wiring import Step

__all__ = ["InFlight", "Worker"]


class Worker(Protocol):
    """The services of a driver."""

    gate: Gate

    def report(self, ticket: int, answer: Any) -> None:
        """Take an answer, from any thread."""

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        """Report an answer after so many seconds."""

    def begin_await(
        self, ticket: int, request: Await | FunctionCall, context: Context, claimed: Callable[[int], bool]
    ) -> Callable[[], object]:
        """Begin to await if the ticket can be claimed, report the result, and return the function that cancels it."""
        ...


class InFlight:
    """The requests of branches that are under way, by ticket."""

    def __init__(self, worker: Worker, executor: Executor | None, resources: ExitStack) -> None:
        self.tickets = count(1)  # never used twice in a run: an abandoned call may report late
        self._worker = worker
        self._resources = resources
        self._threads: Threads | None = None
        self._pool = executor if executor is not None and is_local(executor) else None
        self._elsewhere = executor if self._pool is None else None
        self._open: dict[int, Callable[[], object] | None] = {}
        self._waiting: dict[int, Request] = {}

    def begin(self, schedule: Schedule) -> None:
        """Begin and cancel the requests that the schedule names."""
        begun, schedule.begin = schedule.begin, []
        for ticket, request, context in begun:
            self._waiting[ticket], self._open[ticket] = request, None
            try:
                self._open[ticket] = self._begin(ticket, request, context)
            except BaseException as error:
                self._worker.report(ticket, Raised(error))
        cancelled, schedule.cancel = schedule.cancel, []
        for ticket in cancelled:
            cancel = self._open.get(ticket)
            if not self._withdraw(ticket) and cancel is not None:
                cancel()

    def deliver(self, reported: deque[tuple[int, Any]], schedule: Schedule) -> None:
        """Deliver the answers to requests still under way: an abandoned call may report late."""
        while reported:
            ticket, answer = reported.popleft()
            if ticket in self._open:
                del self._open[ticket]
                self._waiting.pop(ticket, None)
                schedule.deliver(ticket, answer)

    def _claimed(self, ticket: int) -> bool:
        return self._waiting.pop(ticket, None) is not None

    def _withdraw(self, ticket: int) -> bool:
        request = self._waiting.pop(ticket, None)
        if request is None:
            return False
        if isinstance(request, Await):
            close = getattr(request.awaitable, "close", None)
            if close is not None:
                close()
        self._worker.report(ticket, Raised(Cancelled("it was withdrawn before it began")))
        return True

    def _begin(self, ticket: int, request: Request, context: Context) -> Callable[[], object] | None:
        if type(request) is tuple:
            step, args, kwargs = request
            if isinstance(step, Step):
                if step.is_async:
                    return self._worker.begin_await(ticket, request, context, self._claimed)
                if self._elsewhere is not None and not inspect.isasyncgenfunction(step.function):
                    return self._ship(self._elsewhere, ticket, step, args, kwargs or {}, context)
            self._call(ticket, request, context)
        elif isinstance(request, Sleep):
            self._worker.later(request.seconds, ticket, None)
        elif isinstance(request, Save):
            del self._waiting[ticket]  # a finished step is written, whatever becomes of the group
            self._save(ticket, request)
        else:
            assert isinstance(request, Await), "the schedule passes on what branches ask for, not their forks"
            return self._worker.begin_await(ticket, request, context, self._claimed)
        return None

    def _call(self, ticket: int, request: FunctionCall, context: Context) -> None:
        step, args, kwargs = request
        report, waiting = self._worker.report, self._waiting

        def call() -> None:
            if waiting.pop(ticket, None) is None:
                return
            try:
                # The generator of an action is run to its end there; that of a stream is left as it is.
                if type(step) is Step:
                    answer = context.run(perform, step.function, args, kwargs)
                else:
                    answer = context.run(step.function, *args)
            except BaseException as error:
                answer = Raised(error)
            report(ticket, answer)

        if step.timeout is not None:
            # A thread and a context of its own: once abandoned, it must neither block other calls nor keep them from ending.
            context = context.copy()
            self._worker.later(step.timeout, ticket, Raised(timed_out(step.name, step.timeout)))
            call_in_thread(call, (), None, lambda answer: None)
        elif self._pool is not None:
            gate = self._worker.gate
            try:
                gate.open = True  # `serial()` makes the call here
                future = self._pool.submit(call)
            finally:
                gate.open = False
            future.add_done_callback(lambda future: future.cancelled() and self._withdraw(ticket))
        else:
            self._in_thread(call)

    def _save(self, ticket: int, request: Save) -> None:
        def call() -> None:
            try:
                request.write(*request.args)
            except BaseException as error:
                self._worker.report(ticket, Raised(error))
            else:
                self._worker.report(ticket, None)

        self._in_thread(call)

    def _in_thread(self, call: Callable[[], None]) -> None:
        if self._threads is None:
            self._threads = self._resources.enter_context(Threads())
        self._threads.begin(call)

    def _ship(
        self,
        executor: Executor,
        ticket: int,
        step: Step,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: Context,
    ) -> Callable[[], object]:
        context = context.copy()  # the branch may be using its own when the call ends
        future = context.run(ship, executor, step, args, kwargs)
        if step.timeout is not None:
            self._worker.later(step.timeout, ticket, Raised(timed_out(step.name, step.timeout)))
        del self._waiting[ticket]

        def done(future: Future[Any]) -> None:
            try:
                answer = context.run(receive, step, future, (args, kwargs))
            except BaseException as error:  # the reply cannot be unpickled here
                answer = Raised(error)
            self._worker.report(ticket, answer)

        future.add_done_callback(done)
        return future.cancel  # withdraws a call from the executor's queue; one that has begun continues
