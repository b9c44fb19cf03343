"""Perform a run in the running event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

from flowdeco.drivers.in_flight import InFlight
from flowdeco.drivers.lanes import Lane, awaited
from flowdeco.drivers.start import Evaluated, abandon, begin, end
from flowdeco.drivers.start import resume as continued
from flowdeco.drivers.threads import Threads, call_in_thread, timed_out
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.requests import Await, Ended, Fork, FunctionCall, Gate, Raised, Request, Save, Sleep
from flowdeco.engine.runs import remember
from flowdeco.engine.schedule import Schedule, Task

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run
    from flowdeco.model.definitions import Pipeline
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["resume", "run"]


async def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline in the running event loop."""
    __tracebackhide__ = True
    gate = Gate()
    if options.journal is None:
        return await _performed(begin(flow, inputs, options, gate), options, gate)
    return await _performed(cast("Evaluated", await _begun(begin, flow, inputs, options, gate)), options, gate)


async def resume(
    flow: Pipeline, what: Run | str, inputs: Mapping[str, Any] | None, options: RunOptions, *how: Any
) -> Run:
    """Continue the evaluation of a pipeline in the running event loop."""
    __tracebackhide__ = True
    gate = Gate()
    evaluated = await _begun(continued, flow, what, inputs, options, *how, gate)
    return await _performed(evaluated, options, gate) if isinstance(evaluated, tuple) else evaluated


async def _begun(start: Callable[..., Evaluated | Run], *args: Any) -> Evaluated | Run:
    """Begin in a thread, where the journal is opened; a cancellation abandons the run."""
    __tracebackhide__ = True
    evaluated, cancelled = await _finished(lambda done: call_in_thread(start, args, None, done))
    if cancelled is not None:
        if isinstance(evaluated, tuple):
            run = cast("Evaluated", evaluated)[0]
            await _finished(lambda done: call_in_thread(abandon, (run,), None, done))
        raise cancelled
    return cast("Evaluated | Run", evaluated)


async def _finished(begin: Callable[[Callable[[Any], None]], object]) -> tuple[Any, BaseException | None]:
    """Await a call in a thread to its end, however often the task is cancelled meanwhile; return the cancellation, too."""
    __tracebackhide__ = True
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def done(came: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(future.set_result, came)

    begin(done)
    cancelled: BaseException | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    came = future.result()
    if type(came) is Raised:
        raise came.error
    return came, cancelled


async def _performed(evaluated: Evaluated, options: RunOptions, gate: Gate) -> Run:
    __tracebackhide__ = True
    run, evaluation = evaluated
    with ExitStack() as resources:
        if options.progress is not None:
            resources.callback(evaluation.close)  # closes the display, whatever happens to the run
        await _drive(evaluation, _Performer(resources, options.executor, gate))
    if gate.pending is not None:  # an interrupt that arrived as the run was being closed
        remember(run, gate.pending)
        raise gate.pending
    return end(run, options.check)


async def _drive(evaluation: Generator[Request, Any, Any], performer: _Performer) -> None:
    answer: Any = None
    send, gate = evaluation.send, performer.gate
    task: Any = asyncio.current_task()
    while True:
        try:
            request = send(answer)
        except StopIteration:
            return
        try:
            # `_must_cancel`: it was cancelled in a call, and a run of calls that never wait would not notice.
            if (gate.pending is not None or task._must_cancel) and type(request) is not Save:
                answer = await performer.interrupted(request)
            elif type(request) is tuple and request[0].timeout is None:
                step, args, kwargs = request
                answer = step.function(*args, **kwargs) if kwargs else step.function(*args)
            else:
                answer = await performer.perform(request)
        except BaseException as error:
            answer = Raised(error)


class _Performer:
    """The state of an async run beyond plain calls, made when it is needed."""

    def __init__(self, resources: ExitStack, executor: Executor | None, gate: Gate) -> None:
        self.gate = gate
        self._resources = resources
        self._loop = asyncio.get_running_loop()
        self._in_flight = InFlight(self, executor, resources)
        self._writer: Threads | None = None
        self._reported: deque[tuple[int, Any]] = deque()
        self._woken = asyncio.Event()
        self._waking = False

    async def interrupted(self, request: Request) -> Raised:
        """Answer a request with the pending interrupt."""
        if isinstance(request, Await):
            request.discard()
        pending, self.gate.pending = self.gate.pending, None
        if pending is None:
            await asyncio.sleep(0)  # raises the cancellation of the task
        return Raised(pending or asyncio.CancelledError())

    async def perform(self, request: Request) -> Any:
        """Perform a request; return its result, or raise its exception."""
        if isinstance(request, Save):
            return await self._save(request)
        if isinstance(request, Sleep):
            return await asyncio.sleep(request.seconds)
        if isinstance(request, Await):
            return await awaited(request)
        if isinstance(request, Fork):
            return await self._side_by_side(request)
        return await self._call(cast("FunctionCall", request))

    async def _call(self, request: FunctionCall) -> Any:
        """Call in a thread, for at most the timeout of the call."""
        step, args, kwargs = request
        if step.is_async:  # it only makes a coroutine, for which the timeout counts
            return step.function(*args, **(kwargs or {}))
        finished: asyncio.Future[Any] = self._loop.create_future()

        def done(came: Any) -> None:
            self._soon(lambda: None if finished.done() else finished.set_result(came))

        call_in_thread(step.function, args, kwargs, done)
        try:
            async with asyncio.timeout(step.timeout):
                return await finished
        except TimeoutError:
            raise timed_out(step.name, step.timeout) from None

    async def _save(self, request: Save) -> Any:
        """Write in a thread; a cancellation waits until it is written."""
        if self._writer is None:
            self._writer = self._resources.enter_context(Threads(1))
        writer = self._writer

        def begin(done: Callable[[Any], None]) -> None:
            def call() -> None:
                try:
                    came = request.write(*request.args)
                except BaseException as error:
                    came = Raised(error)
                done(came)

            writer.begin(call)

        came, cancelled = await _finished(begin)
        self.gate.pending = self.gate.pending or cancelled
        return came

    async def _side_by_side(self, fork: Fork) -> Ended:
        schedule = Schedule(fork, self._in_flight.tickets, evaluate)
        while schedule.ended is None:
            self._in_flight.begin(schedule)
            if schedule.ended is None and not self._reported:
                try:
                    await self._woken.wait()
                except asyncio.CancelledError as cancelled:
                    schedule.interrupt(cancelled)
                self._woken.clear()
                self._waking = False  # before looking: a later report wakes it again
            self._in_flight.deliver(self._reported, schedule)
        if schedule.left:
            self._in_flight.begin(schedule)
            await self._turn()
        return schedule.ended

    async def _turn(self) -> None:
        """Let ended lanes return, so that their tasks do not outlive the run."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as cancelled:
            self.gate.pending = self.gate.pending or cancelled

    def _soon(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: a call that was abandoned has ended at last
            self._loop.call_soon_threadsafe(call)

    def _report_here(self, ticket: int, answer: Any) -> None:
        self._reported.append((ticket, answer))
        self._woken.set()

    # The services for requests of branches (`Worker`).

    def report(self, ticket: int, answer: Any) -> None:
        """Take an answer, from any thread."""
        self._reported.append((ticket, answer))
        if not self._waking:
            self._waking = True
            self._soon(self._woken.set)

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        """Report an answer after so many seconds."""
        self._loop.call_later(seconds, self._report_here, ticket, answer)

    def lane(self, task: Task) -> Lane:
        """Return the lane of a branch."""
        return Lane(self._loop, task.context, self._report_here, task)
