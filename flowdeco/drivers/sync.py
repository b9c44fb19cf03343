"""Perform a run in the calling thread.

Coroutines go to a private event loop in a helper thread, so that it works where a loop is running already; a call with
a timeout goes to a worker thread, and is abandoned when the time is up. The calls of a parallel group go to the
executor, and this thread waits for their reports.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from functools import partial
from heapq import heappop, heappush
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from flowdeco.drivers.interrupts import Interrupts, pause, sleep
from flowdeco.drivers.start import Evaluated, end
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.requests import Await, Deferred, Ended, Fork, Gate, Raised, Request, Save, Sleep
from flowdeco.engine.runs import remember
from flowdeco.engine.schedule import Schedule, Task
from flowdeco.errors import ActionTimeout

if TYPE_CHECKING:
    from flowdeco.drivers.in_flight import InFlight
    from flowdeco.drivers.lanes import Lane
    from flowdeco.drivers.loop_thread import LoopThread, RunLane
    from flowdeco.engine.runs import Run
    from flowdeco.model.runnable import Options as RunOptions

__all__ = ["Performer", "perform"]


def perform(
    start: Callable[[Gate], Evaluated | Run],
    options: RunOptions,
    make: Callable[[ExitStack, Interrupts, Any], Performer] | None = None,
) -> Run:
    """Start a run, perform its evaluation, and return it, or raise its failure."""
    __tracebackhide__ = True
    run: Run | None = None
    try:
        with Interrupts() as interrupts:
            evaluated = start(interrupts.gate)
            if not isinstance(evaluated, tuple):
                return evaluated
            run, evaluation = evaluated
            with ExitStack() as resources:
                resources.callback(interrupts.gate.drop_late)
                if options.progress is not None:
                    resources.callback(evaluation.close)  # closes the display, whatever happens to the run
                options = options._replace(journal=run.resumption and run.resumption.journal)
                _drive(evaluation, (make or Performer)(resources, interrupts, options), interrupts)
    except (KeyboardInterrupt, SystemExit) as late:
        if run is not None:
            remember(run, late)
        raise
    return end(run, options.check)


def _drive(evaluation: Generator[Request, Any, Any], performer: Performer, interrupts: Interrupts) -> None:
    answer: Any = None
    while True:
        try:
            return _answered(evaluation, answer, performer, interrupts)
        except KeyboardInterrupt as interrupt:  # as the exception of a call was being caught
            if getgeneratorstate(evaluation) == GEN_CREATED:
                next(evaluation, None)  # it can be interrupted once it has begun
            if getgeneratorstate(evaluation) == GEN_CLOSED:  # it came too late: the run has ended
                raise
            answer = Raised(interrupt)


def _answered(
    evaluation: Generator[Request, Any, Any], answer: Any, performer: Performer, interrupts: Interrupts
) -> None:
    send, gate = evaluation.send, interrupts.gate
    while True:
        try:
            request = send(answer)
        except StopIteration:
            return
        try:
            if type(request) is Save:  # not interrupted: an effect and its row belong together
                answer = request.write(*request.args)
                continue
            gate.open = True
            if gate.pending is not None:
                interrupts.raise_pending()
            if type(request) is tuple and request[0].timeout is None:
                step, args, kwargs = request
                answer = step.function(*args, **kwargs) if kwargs else step.function(*args)
            else:
                answer = performer.perform(request)
            gate.open = False
        except BaseException as error:
            gate.open = False
            if type(request) is Await:
                request.discard()
            answer = Raised(error)


class Performer:
    """The state of a sync run beyond plain calls, made when it is needed."""

    def __init__(self, resources: ExitStack, interrupts: Interrupts, options: RunOptions) -> None:
        self.resources = resources
        self.interrupts = interrupts
        self.gate = interrupts.gate
        self.reported: deque[tuple[int, Any]] = deque()
        self._executor = options.executor
        self._limit = options.limit
        self._is_durable = options.journal is not None
        self._loop_thread: LoopThread | None = None
        self._lane: RunLane | None = None
        self._answers: SimpleQueue[tuple[Any] | None] = SimpleQueue()  # of the lane; None for a signal
        self._in_flight: InFlight | None = None
        self._wake = threading.Lock()  # locked while there is nothing new
        self._timers: list[tuple[float, int, Any]] = []

    def perform(self, request: Request) -> Any:
        """Perform a request; return its result, or raise its exception."""
        deadline = self.gate.deadline and self.gate.deadline.first()
        if isinstance(request, Sleep):
            if self._loop_thread is None:
                sleep, seconds = self.sleep, request.seconds
                return sleep(seconds) if deadline is None else deadline.sleep(sleep, seconds)
            request = self._loop_thread.pause(request)  # where a timeout of middleware ends it, too
        if isinstance(request, Await):
            if deadline is not None:
                from flowdeco.drivers.lanes import awaited, in_time

                request = Await(Deferred(in_time, Deferred(awaited, request), deadline))
            return self.awaited(request)
        if isinstance(request, Fork):
            return self._side_by_side(request)
        assert type(request) is tuple, "a driver is not asked for anything else"
        from flowdeco.drivers.threads import call_with_timeout

        step, args, kwargs = request
        if step.is_async:  # it only makes a coroutine, for which the timeout counts
            return step.function(*args, **(kwargs or {}))
        assert step.timeout is not None, "any other call is made by `_answered`"
        if deadline is None or deadline.left() > step.timeout:
            return call_with_timeout(step.name, step.timeout, step.function, args, kwargs)
        try:
            return call_with_timeout(step.name, max(0.0, deadline.left()), step.function, args, kwargs)
        except ActionTimeout:  # not one of the action, whose errors are returned
            raise deadline.expire() from None

    def sleep(self, seconds: float) -> None:
        """Block for so long; in a durable run, until it is cancelled."""
        if self._is_durable:
            pause(self.gate, self.interrupts.raise_pending, seconds)
        else:
            sleep(seconds)

    def _awake(self) -> None:
        with suppress(RuntimeError):  # another thread was faster
            self._wake.release()

    def loop(self) -> LoopThread:
        """Return the event loop, which starts when it is first needed."""
        if self._loop_thread is None:
            from flowdeco.drivers.loop_thread import LoopThread

            self._loop_thread = self.resources.enter_context(LoopThread(self.gate.arrive))
        return self._loop_thread

    def awaited(self, request: Await) -> Any:
        """Await in the loop; Ctrl-C cancels this, and waits for the clean-up."""
        gate, interrupts, answers = self.gate, self.interrupts, self._answers
        gate.open = False
        lane = self.run_lane(lambda answer: answers.put((answer,)))
        gate.wake = partial(answers.put, None)
        lane.ask(request)
        if gate.pending is not None:
            gate.wake()
        interrupt: BaseException | None = None
        while (came := answers.get()) is None:
            try:
                interrupts.raise_pending()
            except BaseException as error:
                interrupt = error
                lane.cancel()
        gate.wake = None
        lane.take_over()
        if interrupt is not None:
            if interrupt is not gate.cancelled or type(came[0]) is Raised:
                raise interrupt
            gate.pending = interrupt  # the coroutine has ended by itself
        return came[0]

    def run_lane(self, answered: Callable[[Any], object]) -> RunLane:
        """Return the lane of the run, made when it is first needed."""
        if self._lane is None:
            from flowdeco.drivers.loop_thread import RunLane

            self._lane = RunLane(self.loop().loop, answered, self.report)
            self.resources.callback(self._lane.end)
        return self._lane

    def in_flight(self) -> InFlight:
        """Return the performer of the requests of branches."""
        if self._in_flight is None:
            from flowdeco.drivers.in_flight import InFlight

            self._in_flight = InFlight(self, self._executor, self.resources)
        return self._in_flight

    def _side_by_side(self, fork: Fork) -> Ended:
        self.gate.open = False
        in_flight = self.in_flight()
        schedule = Schedule(fork, in_flight.tickets, evaluate, self._limit)
        in_flight.deliver(self.reported, schedule)  # a timeout of middleware that has expired since the last request
        while schedule.ended is None:
            in_flight.begin(schedule)
            if schedule.ended is None and not (self.reported or self._make_next()):
                self.gate.wake = self._awake
                interrupt = self._waited()
                if interrupt is not None:
                    schedule.interrupt(interrupt)
            in_flight.deliver(self.reported, schedule)
        in_flight.begin(schedule)  # ends the lanes that are left
        return schedule.ended

    def _make_next(self) -> bool:
        """Make the next call that waits for `serial()`, unless the run is interrupted; return whether one was made."""
        return self.gate.pending is None and self.in_flight().make_next()

    def _waited(self) -> BaseException | None:
        """Wait until an answer is reported; return the interrupt that ended the wait, if any."""
        gate = self.gate
        try:
            try:
                gate.open = True
                self.interrupts.raise_pending()
                self.look()
                gate.open = False
            except BaseException as interrupt:
                gate.open = False
                return interrupt
        except KeyboardInterrupt as interrupt:
            return interrupt
        return None

    def look(self) -> None:
        """Wait until something is reported, a timer expires, or a deadline passes."""
        timers = self._timers
        if not self.reported:
            until = [timers[0][0] - time.monotonic()] if timers else []
            left = self.in_flight().left()
            until += [] if left is None else [left]
            self._wake.acquire(timeout=min(max(0.0, min(until)), threading.TIMEOUT_MAX) if until else -1)
        while timers and timers[0][0] <= time.monotonic():
            self.reported.append(timers[0][1:])
            heappop(timers)

    # The services for requests of branches (`Worker`).

    def report(self, ticket: int, answer: Any) -> None:
        """Take an answer, from any thread."""
        self.reported.append((ticket, answer))
        if self._wake.locked():
            self._awake()

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        """Report an answer after so many seconds."""
        heappush(self._timers, (time.monotonic() + seconds, ticket, answer))

    def lane(self, task: Task) -> Lane:
        """Return the lane of a branch."""
        from flowdeco.drivers.lanes import DistantLane

        return DistantLane(self.loop().loop, task.context, self.report, task)
