"""Perform a run in the running event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from flowdeco.drivers.in_flight import InFlight
from flowdeco.drivers.lanes import Lane, awaited, in_time
from flowdeco.drivers.start import Evaluated, abandon, end
from flowdeco.drivers.threads import Threads, answer_of, call_in_thread, timed_out, writer
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.requests import Await, Ended, Fork, FunctionCall, Gate, Raised, Request, Save, Sleep
from flowdeco.engine.runs import remember
from flowdeco.engine.schedule import Schedule, Task

if TYPE_CHECKING:
    from flowdeco.engine.journal import Journal
    from flowdeco.engine.runs import Run
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["perform"]


async def perform(start: Callable[[Gate], Evaluated | Run], options: RunOptions, *, in_thread: bool) -> Run:
    """Start a run, perform its evaluation in the running event loop, and return it, or raise its failure.

    It starts `in_thread` where a journal may have to be opened.
    """
    __tracebackhide__ = True
    gate = Gate()
    evaluated = await _begun(start, gate) if in_thread else start(gate)
    return await _performed(evaluated, options, gate) if isinstance(evaluated, tuple) else evaluated


async def _begun(start: Callable[[Gate], Evaluated | Run], gate: Gate) -> Evaluated | Run:
    """Begin in a thread; a cancellation abandons the run."""
    __tracebackhide__ = True
    evaluated, cancelled = await _finished(lambda done: call_in_thread(start, (gate,), None, done), abandon)
    if cancelled is not None:
        await _finished(lambda done: call_in_thread(abandon, (evaluated,), None, done))
        if isinstance(evaluated, tuple):
            run, _ = cast("Evaluated", evaluated)
            run.error = run.error or cancelled
            remember(run, cancelled)
        raise cancelled
    if type(evaluated) is Raised:
        raise evaluated.error
    return cast("Evaluated | Run", evaluated)


async def _finished(
    begin: Callable[[Callable[[Any], None]], object], closed: Callable[[Any], object] = lambda _: None
) -> tuple[Any, BaseException | None]:
    """Await a call in a thread to its end, however often the task is cancelled meanwhile; return the cancellation, too.

    If the coroutine itself is closed, it can neither await nor return anything: the thread that closes it waits, and
    `closed` receives the answer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    answers: SimpleQueue[Any] = SimpleQueue()

    def done(came: Any) -> None:
        answers.put(came)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(future.set_result, None)

    begin(done)
    cancelled: BaseException | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
        except GeneratorExit:
            closed(answers.get())
            raise
    return answers.get(), cancelled


async def _performed(evaluated: Evaluated, options: RunOptions, gate: Gate) -> Run:
    __tracebackhide__ = True
    run, evaluation = evaluated
    with ExitStack() as resources:
        if options.progress is not None:
            resources.callback(evaluation.close)  # closes the display, whatever happens to the run
        performer = _Performer(resources, options, gate, run.resumption and run.resumption.journal)
        resources.callback(gate.drop_late)
        await _drive(evaluation, performer)
    if performer.closed:
        raise GeneratorExit
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
            answer = performer.raised(error)


class _Performer:
    """The state of an async run beyond plain calls, made when it is needed."""

    def __init__(self, resources: ExitStack, options: RunOptions, gate: Gate, journal: Journal | None) -> None:
        self.gate = gate
        self._journal = journal
        self._resources = resources
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.closed = False  # nothing can be awaited any more
        gate.wake = lambda: self._soon(self._end_wait)
        self._awaits = False  # something that an interrupt ends
        self._ends_wait = False  # an interrupt has cancelled the task for it
        self._saved: list[Any] = []  # the answer to a request that was under way as the coroutine was closed
        self._in_flight = InFlight(self, options.executor, resources)
        self._limit = options.limit
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

    def _end_wait(self) -> None:
        """End what the run waits for: a group looks for itself, and a write ends by itself."""
        self._woken.set()
        if self._awaits and self.gate.pending is not None:
            self._ends_wait = cast("Any", self._task).cancel()

    async def _interruptible(self, awaitable: Awaitable[Any]) -> Any:
        """Await this; an interrupt of another thread ends it."""
        task = cast("Any", self._task)
        before = task.cancelling()
        self._awaits, self._ends_wait = True, False
        try:
            return await awaitable
        except asyncio.CancelledError:
            pending = self.gate.pending
            if self._ends_wait and pending is not None and task.cancelling() == before + 1:
                self.gate.pending = None
                raise pending from None
            raise  # the task was cancelled, too
        finally:
            self._awaits = False
            if self._ends_wait:
                task.uncancel()

    def raised(self, error: BaseException) -> Any:
        """Return the answer to a request that raised this: a cancellation, if the coroutine of the run is closed."""
        if type(error) is GeneratorExit and asyncio.current_task(self._loop) is not self._task:
            self.closed = True
            error = _closed()
            if self._saved:
                self.gate.pending = error
                return self._saved.pop()
        return Raised(error)

    def _perform_closed(self, request: Request) -> Any:
        if isinstance(request, Save):
            return request.write(*request.args)
        if isinstance(request, Await) and hasattr(request.awaitable, "close"):
            cast("Any", request.awaitable).close()
        raise _closed()

    async def perform(self, request: Request) -> Any:
        """Perform a request; return its result, or raise its exception."""
        if self.closed:
            return self._perform_closed(request)
        if isinstance(request, Save):
            return await self._save(request)
        if isinstance(request, Fork):
            return await self._side_by_side(request)
        if isinstance(request, Sleep):
            waiting: Awaitable[Any] = asyncio.sleep(request.seconds)
        elif isinstance(request, Await):
            waiting = awaited(request)
        else:
            waiting = self._call(cast("FunctionCall", request))
        deadline = self.gate.deadline and self.gate.deadline.first()
        if deadline is not None:
            waiting = in_time(waiting, deadline)
        return await (waiting if self._journal is None else self._interruptible(waiting))

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
            self._writer = self._resources.enter_context(writer(self._loop, self._journal))
        threads = self._writer

        def begin(done: Callable[[Any], None]) -> None:
            threads.begin(lambda: done(answer_of(request.write, *request.args)))

        came, cancelled = await _finished(begin, self._saved.append)
        self.gate.pending = self.gate.pending or cancelled
        return came

    async def _side_by_side(self, fork: Fork) -> Ended:
        schedule = Schedule(fork, self._in_flight.tickets, evaluate, self._limit)
        while schedule.ended is None:
            self._in_flight.begin(schedule)
            if schedule.ended is None and not (self._reported or self._in_flight.make_next()):
                left = self._in_flight.left()
                alarm = None if left is None else self._loop.call_later(left, self._woken.set)
                try:
                    await self._woken.wait()
                except asyncio.CancelledError as cancelled:
                    schedule.interrupt(cancelled)
                if alarm is not None:
                    alarm.cancel()
                self._woken.clear()
                self._waking = False  # before looking: a later report wakes it again
            if self.gate.pending is not None and schedule.interrupt(self.gate.pending):
                self.gate.pending = None
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


def _closed() -> asyncio.CancelledError:
    return asyncio.CancelledError("the coroutine of the run was closed before it had ended")
