"""Perform a run in an event loop: the caller's, or a private one in a helper thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from flowdeco.drivers.common import Evaluated, abandon, begin, end
from flowdeco.drivers.common import resume as continued
from flowdeco.drivers.threads import call_in_thread, timed_out
from flowdeco.drivers.work import Work
from flowdeco.requests import Await, Call, Raised, Request, Save, Sleep, Wait

if TYPE_CHECKING:
    from flowdeco.definitions import Pipeline, RunOptions
    from flowdeco.runs import Run

__all__ = ["LoopThread", "answer", "resume", "run"]


async def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline in the running event loop."""
    if options.journal is None:
        return await _performed(begin(flow, inputs, options), options)
    return await _performed(await _begun(begin, flow, inputs, options), options)


async def resume(
    flow: Pipeline, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any
) -> Run:
    """Go on with the evaluation of a pipeline in the running event loop."""
    evaluated = await _begun(continued, flow, what, inputs, options, *how)
    return await _performed(cast("Evaluated", evaluated), options) if isinstance(evaluated, tuple) else evaluated


async def _begun(start: Callable[..., Any], *args: Any) -> Any:
    """Begin in a thread, for the journal is opened there; a cancellation gives the run up again."""
    beginning = asyncio.ensure_future(asyncio.to_thread(start, *args))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        evaluated: Any = await beginning
        if isinstance(evaluated, tuple):
            await asyncio.to_thread(abandon, cast("Evaluated", evaluated)[0])
        raise


async def _performed(evaluated: Evaluated, options: RunOptions) -> Run:
    run, evaluation = evaluated
    with ExitStack() as resources:
        if options.progress is not None:
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

    def _take(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        self._woken.set()

    # What groups need of a driver (`Worker`).

    def report(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        if not self._waking:
            self._waking = True
            self._soon(self._woken.set)

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        self._loop.call_later(seconds, self._take, ticket, answer)

    def begin_await(
        self, ticket: int, request: Await | Call, context: contextvars.Context, claimed: Callable[[int], bool]
    ) -> Callable[[], object]:
        answered = answer(ticket, request, claimed, self._take)
        return self._loop.create_task(answered, name=f"flowdeco-{ticket}", context=context).cancel


async def answer(
    ticket: int, request: Await | Call, claimed: Callable[[int], bool], report: Callable[[int, Any], object]
) -> None:
    """Await, if the ticket can be claimed, and report what came of it."""
    if not claimed(ticket):
        return
    came: Any
    try:
        if isinstance(request, Await):
            came = await awaited(request)
        else:
            step, args, kwargs = request
            coroutine = step.function(*args, **(kwargs or {}))
            came = await (coroutine if step.timeout is None else awaited(Await(coroutine, step.timeout, step.name)))
    except BaseException as error:
        came = Raised(error)
    report(ticket, came)


async def awaited(request: Await) -> Any:
    """Await within the request's time, and return what came of it."""
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


async def saved(request: Save) -> None:
    """Write to the journal in a thread; a cancellation waits until it is written."""
    writing = asyncio.ensure_future(asyncio.to_thread(request.write, *request.args))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await writing
        raise


class LoopThread:
    """A private event loop in a helper thread, for the coroutines of a sync run.

    What the run awaits one after the other is awaited in one task and one context, as it would be in `arun`: a timeout
    or a context variable that a middleware sets before its `yield` is still there behind it.
    """

    def __enter__(self) -> LoopThread:
        self._ready = threading.Event()
        self._variables = _Variables()
        context = contextvars.copy_context()
        # The whole life of the loop is in its thread: here, another loop may be running.
        self._thread = threading.Thread(
            target=context.run, args=(asyncio.run, self._serve()), name="flowdeco-loop", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._soon(self._requests.put_nowait, None)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests: asyncio.Queue[_Served | None] = asyncio.Queue()
        task = self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._ready.set()
        cancelled = False
        variables = _Variables()
        while True:
            try:
                served = await self._requests.get()
            except asyncio.CancelledError:  # a timeout has expired between two requests: the next one hears of it
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

    def _soon(self, call: Callable[..., object], *args: Any) -> None:
        self._loop.call_soon_threadsafe(call, *args)

    def result_of(self, request: Await) -> Any:
        """Await in the loop, and wait for what comes of it; Ctrl-C cancels, and waits for the clean-up."""
        answers: SimpleQueue[tuple[Any, contextvars.Context]] = SimpleQueue()
        self._soon(self._requests.put_nowait, (request, contextvars.copy_context(), answers.put))
        try:
            answer, context = answers.get()
        except KeyboardInterrupt:
            self._soon(self._task.cancel)
            answers.get()
            self._soon(self._task.uncancel)
            raise
        self._variables.take_over(context)
        return answer

    def begin(
        self, begun: Callable[[], Coroutine[Any, Any, None]], context: contextvars.Context
    ) -> Callable[[], object]:
        """Begin to await beside others; return what cancels it."""
        tasks: list[asyncio.Task[Any]] = []
        self._soon(lambda: tasks.append(self._loop.create_task(begun(), context=context)))
        return lambda: self._soon(lambda: tasks[0].cancel())  # noqa: PLW0108 (by then there is one)


_Served: TypeAlias = "tuple[Await, contextvars.Context, Callable[[tuple[Any, contextvars.Context]], object]]"


class _Variables:
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
