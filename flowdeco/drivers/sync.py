"""Perform a run in the calling thread.

Coroutines go to a private event loop in a helper thread, so that it works where a loop is running already; a call with
a timeout goes to a worker thread, and is given up when the time is over. Of a parallel group the calls go to the
executor, and this thread waits for what they report.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from heapq import heappop, heappush
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate
from typing import TYPE_CHECKING, Any

from flowdeco.drivers.common import Evaluated, begin, end
from flowdeco.drivers.common import resume as continued
from flowdeco.engine.requests import Await, FunctionCall, Raised, Request, Save, Sleep, Wait

if TYPE_CHECKING:
    from flowdeco.drivers.loop_thread import LoopThread
    from flowdeco.drivers.work import Work
    from flowdeco.engine.runs import Run
    from flowdeco.model.definitions import Pipeline
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["resume", "run"]


def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline."""
    __tracebackhide__ = True
    return _performed(begin(flow, inputs, options), options)


def resume(flow: Pipeline, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any) -> Run:
    """Go on with the evaluation of a pipeline."""
    __tracebackhide__ = True
    evaluated = continued(flow, what, inputs, options, *how)
    return _performed(evaluated, options) if isinstance(evaluated, tuple) else evaluated


def _performed(
    evaluated: Evaluated, options: RunOptions, made: Callable[[ExitStack, Any], _Performer] | None = None
) -> Run:
    __tracebackhide__ = True
    run, evaluation = evaluated
    with ExitStack() as resources:
        if options.watcher is not None:
            resources.callback(evaluation.close)  # what shows it is closed, whatever happens to the run
        try:
            _drive(evaluation, (made or _Performer)(resources, options.executor))
        except KeyboardInterrupt as interrupt:
            run._remember(interrupt)
            raise
    return end(run, options.check)


def _drive(evaluation: Generator[Request, Any, None], performer: _Performer) -> None:
    answer: Any = None
    while True:
        try:
            return _answered(evaluation, answer, performer)
        except KeyboardInterrupt as interrupt:  # between two calls
            if getgeneratorstate(evaluation) == GEN_CREATED:
                next(evaluation, None)  # it can be interrupted when it has begun
            if getgeneratorstate(evaluation) == GEN_CLOSED:  # it came too late: the run is over
                raise
            answer = Raised(interrupt)


def _answered(evaluation: Generator[Request, Any, None], answer: Any, performer: _Performer) -> None:
    send = evaluation.send
    while True:
        try:
            request = send(answer)
        except StopIteration:
            return
        try:
            if type(request) is tuple and request[0].timeout is None:
                step, args, kwargs = request
                answer = step.function(*args, **kwargs) if kwargs else step.function(*args)
            elif type(request) is Save:
                answer = request.write(*request.args)
            else:
                answer = performer.perform(request)
        except BaseException as error:
            answer = Raised(error)


class _Performer:
    """What a sync run needs beside plain calls, made when it is needed."""

    def __init__(self, resources: ExitStack, executor: Executor | None) -> None:
        self._resources = resources
        self._executor = executor
        self._loop_thread: LoopThread | None = None
        self._work: Work | None = None
        self._reported: deque[tuple[int, Any]] = deque()
        self._wake = threading.Lock()  # locked as long as there is nothing new
        self._timers: list[tuple[float, int, Any]] = []

    def perform(self, request: Request) -> Any:
        if isinstance(request, Sleep):
            return time.sleep(request.seconds)
        if isinstance(request, Await):
            return self._loop().result_of(request)
        if isinstance(request, Wait):
            return self._wait(request)
        assert type(request) is tuple, "what is saved was written at once"
        from flowdeco.drivers.threads import call_with_timeout

        return call_with_timeout(*request)

    def _loop(self) -> LoopThread:
        if self._loop_thread is None:
            from flowdeco.drivers.loop_thread import LoopThread

            self._loop_thread = self._resources.enter_context(LoopThread())
        return self._loop_thread

    def _wait(self, request: Wait) -> list[tuple[int | None, Any]]:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                if self._work is None:
                    from flowdeco.drivers.work import Work

                    self._work = Work(self, self._executor, self._resources)
                if interrupt is not None:
                    self._work.withdraw(request)
                    return [(None, Raised(interrupt))]
                self._work.begin(request)
                while True:
                    self._look()
                    answers = self._work.settle(self._reported)
                    if answers:
                        return answers
            except KeyboardInterrupt as raised:
                interrupt = raised

    def _look(self) -> None:
        """Wait until something is reported, or the time of a timer has come."""
        timers = self._timers
        if not self._reported:
            self._wake.acquire(timeout=max(0.0, timers[0][0] - time.monotonic()) if timers else -1)
        while timers and timers[0][0] <= time.monotonic():
            self._reported.append(timers[0][1:])
            heappop(timers)

    # What groups need of a driver (`Worker`).

    def report(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        if self._wake.locked():
            with suppress(RuntimeError):  # another thread was faster
                self._wake.release()

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        heappush(self._timers, (time.monotonic() + seconds, ticket, answer))

    def begin_await(
        self, ticket: int, request: Await | FunctionCall, context: contextvars.Context, claimed: Callable[[int], bool]
    ) -> Callable[[], object]:
        from flowdeco.drivers.loop_thread import answer

        return self._loop().begin(lambda: answer(ticket, request, claimed, self.report), context)
