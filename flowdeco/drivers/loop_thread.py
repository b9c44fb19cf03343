"""A private event loop in a helper thread, and the awaiting of requests in any loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Final, TypeAlias, cast

from flowdeco.drivers.threads import timed_out
from flowdeco.engine.requests import Await, Awaited, FunctionCall, Raised
from flowdeco.engine.results import SETTLED

__all__ = ["LoopThread", "Variables", "answer", "awaited"]


async def answer(
    ticket: int, request: Await | FunctionCall, claimed: Callable[[int], bool], report: Callable[[int, Any], object]
) -> None:
    """Await, if the ticket can be claimed, and report the result."""
    if not claimed(ticket):
        return
    came: Any
    try:
        if isinstance(request, Await):
            came = await awaited(request)
        else:
            step, args, kwargs = request
            coroutine = step.function(*args, **kwargs) if kwargs else step.function(*args)
            came = await (coroutine if step.timeout is None else awaited(Await(coroutine, step.timeout, step.name)))
            if type(came) not in SETTLED:
                came = Awaited(came)
    except BaseException as error:
        came = Raised(error)
    report(ticket, came)


async def awaited(request: Await) -> Any:
    """Await within the request's timeout, and return the result."""
    try:
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
    except (KeyboardInterrupt, SystemExit) as error:  # out of a task, these would end the loop
        return Raised(error)


class LoopThread:
    """A private event loop in a helper thread, for the coroutines of a sync run.

    Whatever the run awaits in sequence is awaited in one task and one context, as it would be in `arun`: a timeout or a
    context variable that a middleware sets before its `yield` is still there after it.
    """

    def __enter__(self) -> LoopThread:
        self._ready = threading.Event()
        self._variables = Variables()
        context = contextvars.copy_context()
        # The whole life of the loop is in its thread: here, another loop may be running.
        self._thread = threading.Thread(
            target=context.run, args=(asyncio.run, self._serve()), name="flowdeco-loop", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.soon(self._requests.put_nowait, None)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests: asyncio.Queue[_Served | None] = asyncio.Queue()
        task = self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._ready.set()
        cancelled = False
        variables = Variables()
        while True:
            try:
                served = await self._requests.get()
            except asyncio.CancelledError:  # a timeout has expired between two requests: the next one receives it
                task.uncancel()
                cancelled = True
                continue
            if served is None:
                return
            request, context, report = served
            variables.take_over(context)
            if cancelled:
                task.cancel()
                cancelled = False
            try:
                answer = await awaited(request)
            except BaseException as error:
                answer = Raised(error)
            report((answer, contextvars.copy_context()))

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Have the loop call this, after its current work."""
        self._loop.call_soon_threadsafe(call, *args)

    def result_of(self, request: Await) -> Any:
        """Await in the loop, and wait for the result; Ctrl-C cancels this, and waits for the clean-up."""
        answers: SimpleQueue[tuple[Any, contextvars.Context]] = SimpleQueue()
        self.soon(self._requests.put_nowait, (request, contextvars.copy_context(), answers.put))
        try:
            answer, context = answers.get()
        except KeyboardInterrupt:
            self.soon(self._task.cancel)
            answers.get()
            self.soon(self._task.uncancel)
            raise
        self._variables.take_over(context)
        return answer

    def begin(
        self, begun: Callable[[], Coroutine[Any, Any, None]], context: contextvars.Context
    ) -> Callable[[], object]:
        """Begin to await, side by side with others; return the function that cancels it."""
        tasks: list[asyncio.Task[Any]] = []
        self.soon(lambda: tasks.append(self._loop.create_task(begun(), context=context)))
        return lambda: self.soon(lambda: tasks[0].cancel())  # noqa: PLW0108 (by then there is one)


_Served: TypeAlias = "tuple[Await, contextvars.Context, Callable[[tuple[Any, contextvars.Context]], object]]"


class Variables:
    """The context variables on one side: set, and unset again, as they are on the other."""

    def __init__(self) -> None:
        self._tokens: dict[contextvars.ContextVar[Any], contextvars.Token[Any]] = {}

    def take_over(self, context: contextvars.Context) -> None:
        for variable, value in context.items():
            if variable.get(_NEVER) is not value:
                token = variable.set(value)
                if token.old_value is contextvars.Token.MISSING:
                    self._tokens[variable] = token
        for variable in [variable for variable in self._tokens if variable not in context]:
            variable.reset(self._tokens.pop(variable))


_NEVER: Final = object()
