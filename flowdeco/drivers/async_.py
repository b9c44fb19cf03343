"""Perform a run in an event loop: the caller's, or a private one in a helper thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from flowdeco.drivers.common import begin, end
from flowdeco.drivers.threads import call_in_thread, timed_out
from flowdeco.requests import Await, Raised, Request, Sleep

if TYPE_CHECKING:
    from flowdeco.definitions import Pipeline, RunOptions
    from flowdeco.runs import Run

__all__ = ["LoopThread", "run"]


async def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline in the running event loop."""
    run, evaluation = begin(flow, inputs, options)
    await _drive(evaluation)
    return end(run, options.check)


async def _drive(evaluation: Generator[Request, Any, None]) -> None:
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
                answer = await _perform(request)
        except BaseException as error:
            answer = Raised(error)


async def _perform(request: Request) -> Any:
    if isinstance(request, Sleep):
        return await asyncio.sleep(request.seconds)
    if isinstance(request, Await):
        return await awaited(request)
    step, args, kwargs = request
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[Any] = loop.create_future()

    def done(answer: Any) -> None:
        loop.call_soon_threadsafe(lambda: finished.done() or finished.set_result(answer))

    call_in_thread(step.function, args, kwargs, done)
    try:
        async with asyncio.timeout(step.timeout):
            return await finished
    except TimeoutError:
        raise timed_out(step.name, step.timeout) from None


async def awaited(request: Await) -> Any:
    """Await within the request's time."""
    if request.timeout is None:
        return await request.awaitable
    limit = asyncio.timeout(request.timeout)
    try:
        async with limit:
            return await request.awaitable
    except TimeoutError:
        if limit.expired():
            raise timed_out(request.action, request.timeout) from None
        raise


class LoopThread:
    """A private event loop in a helper thread, for the coroutines of a sync run."""

    def __enter__(self) -> LoopThread:
        self._ready = threading.Event()
        # The whole life of the loop is in its thread: here, another loop may be running.
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="flowdeco-loop", daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def submit(self, request: Await) -> Future[Any]:
        """Begin to await in the loop."""
        return asyncio.run_coroutine_threadsafe(awaited(request), self._loop)

    def result_of(self, request: Await) -> Any:
        """Await in the loop, and wait for the result; Ctrl-C cancels what is awaited."""
        future = self.submit(request)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
