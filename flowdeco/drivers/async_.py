"""Perform a run in the running event loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

from flowdeco.drivers.common import Evaluated, abandon, begin, end
from flowdeco.drivers.common import resume as continued
from flowdeco.drivers.loop_thread import answer, awaited
from flowdeco.drivers.threads import call_in_thread, timed_out
from flowdeco.drivers.work import Work
from flowdeco.engine.requests import Await, FunctionCall, Raised, Request, Save, Sleep, Wait

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run
    from flowdeco.model.definitions import Pipeline
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["resume", "run"]


async def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline in the running event loop."""
    __tracebackhide__ = True
    if options.journal is None:
        return await _performed(begin(flow, inputs, options), options)
    return await _performed(await _begun(begin, flow, inputs, options), options)


async def resume(
    flow: Pipeline, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any
) -> Run:
    """Go on with the evaluation of a pipeline in the running event loop."""
    __tracebackhide__ = True
    evaluated = await _begun(continued, flow, what, inputs, options, *how)
    return await _performed(cast("Evaluated", evaluated), options) if isinstance(evaluated, tuple) else evaluated


async def _begun(start: Callable[..., Any], *args: Any) -> Any:
    """Begin in a thread, for the journal is opened there; a cancellation gives the run up again."""
    __tracebackhide__ = True
    beginning = asyncio.ensure_future(asyncio.to_thread(start, *args))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        evaluated: Any = await beginning
        if isinstance(evaluated, tuple):
            await asyncio.to_thread(abandon, cast("Evaluated", evaluated)[0])
        raise


async def _performed(evaluated: Evaluated, options: RunOptions) -> Run:
    __tracebackhide__ = True
    run, evaluation = evaluated
    with ExitStack() as resources:
        if options.watcher is not None:
            resources.callback(evaluation.close)  # what shows it is closed, whatever happens to the run
        await _drive(evaluation, _Performer(resources, options.executor))
    return end(run, options.check)


async def _drive(evaluation: Generator[Request, Any, None], performer: _Performer) -> None:
    answer: Any = None
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
            else:
                answer = await performer.perform(request)
        except BaseException as error:
            answer = Raised(error)


class _Performer:
    """What an async run needs beside plain calls."""

    def __init__(self, resources: ExitStack, executor: Executor | None) -> None:
        self._resources = resources
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._work: Work | None = None
        self._reported: deque[tuple[int, Any]] = deque()
        self._woken = asyncio.Event()
        self._waking = False

    async def perform(self, request: Request) -> Any:
        if isinstance(request, Sleep):
            return await asyncio.sleep(request.seconds)
        if isinstance(request, Await):
            return await awaited(request)
        if isinstance(request, Wait):
            return await self._wait(request)
        if isinstance(request, Save):
            return await saved(request)
        step, args, kwargs = request
        finished: asyncio.Future[Any] = self._loop.create_future()

        def done(answer: Any) -> None:
            self._soon(lambda: None if finished.done() else finished.set_result(answer))

        call_in_thread(step.function, args, kwargs, done)
        try:
            async with asyncio.timeout(step.timeout):
                return await finished
        except TimeoutError:
            raise timed_out(step.name, step.timeout) from None

    async def _wait(self, request: Wait) -> list[tuple[int | None, Any]]:
        if self._work is None:
            self._work = Work(self, self._executor, self._resources)
        self._work.begin(request)
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                self._waking = False  # before looking: what is reported later wakes again
                answers = self._work.settle(self._reported)
                if answers:
                    return answers
        except asyncio.CancelledError as cancelled:
            return [(None, Raised(cancelled))]

    def _soon(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: a call that was given up has ended at last
            self._loop.call_soon_threadsafe(call)

    def _report_here(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        self._woken.set()

    # What groups need of a driver (`Worker`).

    def report(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        if not self._waking:
            self._waking = True
            self._soon(self._woken.set)

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        self._loop.call_later(seconds, self._report_here, ticket, answer)

    def begin_await(
        self, ticket: int, request: Await | FunctionCall, context: contextvars.Context, claimed: Callable[[int], bool]
    ) -> Callable[[], object]:
        answered = answer(ticket, request, claimed, self._report_here)
        return self._loop.create_task(answered, name=f"flowdeco-{ticket}", context=context).cancel


async def saved(request: Save) -> None:
    """Write to the journal in a thread; a cancellation waits until it is written."""
    writing = asyncio.ensure_future(asyncio.to_thread(request.write, *request.args))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await writing
        raise
