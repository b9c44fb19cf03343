"""Requests under way in parallel groups: the calls, awaitables and pauses that a `Schedule` began.

A driver provides its ways to await, to be woken and to keep time (`Worker`); the rest is the same for both.

A call that has begun waits until it is claimed by a thread. The one that takes its ticket out of `_waiting` answers it.
So a request that is still waiting can be withdrawn when its group ends or the run is interrupted; any other answers by
itself. Everything that a branch awaits goes to its lane.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack
from contextvars import Context
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Final, Protocol

from flowdeco.drivers.lanes import INTERRUPTED, Lane
from flowdeco.drivers.threads import Threads, answer_of, call_with_timeout
from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.requests import Await, FunctionCall, Gate, Raised, Request, Save, Sleep
from flowdeco.engine.schedule import Schedule, Task
from flowdeco.errors import Cancelled, ExecutorError
from flowdeco.executors import broken, is_local, is_serial, lost, perform, receive, refused, shipped
from flowdeco.model.steps import Step

__all__ = ["InFlight", "Worker"]

_SOON: Final = 1e-6  # in seconds: clocks differ, and so do sums of times


_ELSEWHERE: Final = Gate()  # of calls in other threads: no interrupt arrives there


class Worker(Protocol):
    """The services of a driver."""

    gate: Gate

    def report(self, ticket: int, answer: Any) -> None:
        """Take an answer, from any thread."""

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        """Report an answer after so many seconds."""

    def lane(self, task: Task) -> Lane:
        """Return a lane for a branch, which reports to this worker."""
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
        self._is_serial = executor is not None and is_serial(executor)
        self._queue: deque[tuple[int, FunctionCall, Context]] = deque()  # the calls that `serial()` has not made yet
        self._here = threading.get_ident()  # where `serial()` makes its calls
        self._open: dict[int, Callable[[], object] | None] = {}
        self._waiting: dict[int, Request] = {}
        self._with_executor: dict[int, str] = {}  # the actions whose calls it has, by ticket
        self._broken: ExecutorError | None = None
        self._lanes: set[Lane] = set()
        self._has_lanes = False
        self._deadlines: dict[Deadline, Task | None] = {}  # each with the task of its branch; None for the run itself
        self._by_time: list[tuple[float, int, Deadline]] = []  # with some that are closed
        self._instead: dict[int, BaseException] = {}  # the answers to calls whose branch was interrupted meanwhile

    def begin(self, schedule: Schedule) -> None:
        """Begin and cancel the requests that the schedule names, and end the lanes of branches that have ended."""
        self._watch(schedule)
        begun, schedule.begin = schedule.begin, []
        for task in begun:
            ticket: Any = task.ticket
            server = task.server or task
            self._waiting[ticket], self._open[ticket] = task.request, None
            try:
                self._open[ticket] = self._begin(ticket, task.request, task.context, server)
            except BaseException as error:
                self._worker.report(ticket, Raised(error))
            if server.lane is not None and server.lane.interrupt is not None:
                self._interrupt(schedule, server.lane)
        cancelled, schedule.cancel = schedule.cancel, []
        for ticket in cancelled:
            self._cancel(ticket)
        lanes, schedule.left = schedule.left, []
        for lane in lanes:
            self._lanes.discard(lane)
            lane.end()

    def make_next(self) -> bool:
        """Make the next call that waits for `serial()`; return False if there is none."""
        while self._queue:
            ticket, request, context = self._queue.popleft()
            if ticket in self._waiting:
                self._made(ticket, request, context)
                return True
        return False

    def deliver(self, reported: deque[tuple[int, Any]], schedule: Schedule) -> None:
        """Deliver the answers to requests still under way: an abandoned call may report late."""
        while reported:
            ticket, answer = reported.popleft()
            if ticket in self._open:
                del self._open[ticket]
                self._waiting.pop(ticket, None)
                if self._with_executor:
                    self._with_executor.pop(ticket, None)
                lane = schedule.task(ticket).lane if self._lanes else None
                if self._instead and ticket in self._instead:
                    answer = Raised(self._instead.pop(ticket))
                schedule.deliver(ticket, answer)
                if lane is not None and lane.interrupt is not None:
                    self._interrupt(schedule, lane)
            elif ticket == INTERRUPTED:
                self._interrupt(schedule, answer)
        while (left := self.left()) is not None and left <= _SOON:
            deadline = heappop(self._by_time)[2]
            schedule.expire(deadline.expire(), self._deadlines.pop(deadline))

    def left(self) -> float | None:
        """Return the seconds until the next deadline of a branch, or of the run; None if there are none."""
        times = self._by_time
        while times and times[0][2] not in self._deadlines:
            heappop(times)
        return times[0][2].left() if times else None

    def _watch(self, schedule: Schedule) -> None:
        """Have the deadlines count that apply to what is under way."""
        limited, schedule.limited = schedule.limited, []
        for task in (None, *limited):
            innermost = self._worker.gate.deadline if task is None else task.branch.deadline
            deadline = innermost and innermost.first()
            if deadline is None or deadline in self._deadlines:
                continue
            owner: Task | None = task
            while owner is not None and owner.branch is not deadline.owner:
                owner = owner.group.parent
            self._deadlines[deadline], deadline.watched = owner, self._deadlines
            if len(self._by_time) > 2 * len(self._deadlines) + 64:
                self._by_time = [each for each in self._by_time if each[2] in self._deadlines]
                heapify(self._by_time)
            heappush(self._by_time, (deadline.at, next(self.tickets), deadline))

    def _interrupt(self, schedule: Schedule, lane: Lane) -> None:
        """Have the cancellation of an idle lane end the group that its branch waits for, or the call, or the pause."""
        error, task = lane.interrupt, lane.of
        if error is None:  # it has reached the branch meanwhile
            return
        if task is None or task.inner is not None:
            if schedule.interrupt(error, task):
                lane.take()
        elif task.ticket in self._open and self._open[task.ticket] not in (lane.cancel, _written):
            if self._withdraw(task.ticket, error):
                lane.take()
            elif task.ticket not in self._instead:
                self._instead[task.ticket] = lane.take()
                self._cancel(task.ticket)

    def _cancel(self, ticket: int) -> None:
        cancel = self._open.get(ticket)
        if not self._withdraw(ticket) and cancel is not None:
            cancel()

    def _withdraw(self, ticket: int, error: BaseException | None = None) -> bool:
        if self._waiting.pop(ticket, None) is None:
            return False
        self._worker.report(ticket, Raised(error or _withdrawn()))
        return True

    def _await(self, ticket: int, request: Await | FunctionCall, task: Task) -> Callable[[], object]:
        """Await in the lane of the branch."""
        del self._waiting[ticket]
        lane: Lane | None = task.lane
        if lane is None:
            if not self._has_lanes:
                self._has_lanes = True
                self._resources.callback(self._end_lanes)
            lane = task.lane = self._worker.lane(task)
            self._lanes.add(lane)
        lane.begin(ticket, request)
        return lane.cancel

    def _end_lanes(self) -> None:
        for lane in self._lanes:  # of a run that was closed
            lane.end()

    def _begin(self, ticket: int, request: Request, context: Context, task: Task) -> Callable[[], object] | None:
        if type(request) is tuple:
            step, args, kwargs = request
            if isinstance(step, Step):
                if step.is_async:
                    return self._await(ticket, request, task)
                if self._elsewhere is not None and not inspect.isasyncgenfunction(step.function):
                    return self._ship(self._elsewhere, ticket, step, args, kwargs or {}, context)
            self._call(ticket, request, context)
        elif isinstance(request, Sleep):
            self._worker.later(request.seconds, ticket, None)
        elif isinstance(request, Save):
            del self._waiting[ticket]  # a finished step is written, whatever becomes of the group
            self._in_thread(lambda: self._worker.report(ticket, answer_of(request.write, *request.args)))
            return _written
        else:
            assert isinstance(request, Await), "the schedule passes on what branches ask for, not their forks"
            return self._await(ticket, request, task)
        return None

    def _call(self, ticket: int, request: FunctionCall, context: Context) -> None:
        if self._is_serial:
            self._queue.append((ticket, request, context))
        elif self._pool is None:
            self._in_thread(partial(self._made, ticket, request, context))
        else:
            name = request[0].name
            future = self._submitted(ticket, name, self._pool, self._made, ticket, request, context)
            future.add_done_callback(partial(self._dropped, ticket, name))

    def _made(self, ticket: int, request: FunctionCall, context: Context) -> None:
        """Make a call, in any thread, and report its answer."""
        if self._waiting.pop(ticket, None) is None:
            return
        step, args, kwargs = request
        # The generator of an action is run to its end there; that of a stream is left as it is.
        function: Callable[..., Any] = perform if type(step) is Step else step.function
        given = (step.function, args, kwargs) if type(step) is Step else args
        gate = self._worker.gate if threading.get_ident() == self._here else _ELSEWHERE
        try:
            gate.open = True
            if step.timeout is None:
                answer = context.run(function, *given)
            else:
                answer = context.run(call_with_timeout, step.name, step.timeout, function, given)
            gate.open = False
        except BaseException as error:
            gate.open = False
            answer = Raised(error)
        self._worker.report(ticket, answer)

    def _dropped(self, ticket: int, name: str, future: Future[Any]) -> None:
        """Answer a call that the pool has not made, and never will."""
        if self._waiting.pop(ticket, None) is not None:
            self._worker.report(ticket, Raised(self._lost(name, future)))

    def _in_thread(self, call: Callable[[], None]) -> None:
        if self._is_serial:  # a write, which may find out that the run is cancelled: before another call is made
            call()
            return
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
        call = context.run(shipped, step, args, kwargs)
        future: Future[bytes] = context.run(self._submitted, ticket, step.name, executor, *call)
        del self._waiting[ticket]
        withdrawn = False

        def done(future: Future[bytes]) -> None:
            try:
                if not future.cancelled() and future.exception() is None:
                    answer = context.run(receive, step, future.result(), (args, kwargs))
                elif withdrawn:
                    answer = Raised(_withdrawn())
                else:
                    answer = Raised(self._lost(step.name, future))
            except BaseException as error:  # the reply cannot be unpickled here
                answer = Raised(error)
            self._worker.report(ticket, answer)

        def cancel() -> None:  # withdraws a call from the executor's queue; one that has begun continues
            nonlocal withdrawn
            withdrawn = True
            future.cancel()

        future.add_done_callback(done)
        return cancel

    def _submitted(self, ticket: int, name: str, executor: Executor, function: Any, *args: Any) -> Future[Any]:
        self._with_executor[ticket] = name
        try:
            return executor.submit(function, *args)
        except BrokenExecutor as error:
            raise self._broken_by(error) from error
        except RuntimeError as error:  # it was shut down: one failure of all calls
            if self._broken is None:
                self._broken = refused(executor, name, error)
            raise self._broken from error
        except Exception as error:
            raise refused(executor, name, error) from error

    def _lost(self, name: str, future: Future[Any]) -> BaseException:
        """Return the error of a call that its executor has dropped."""
        error = None if future.cancelled() else future.exception()
        if error is None or isinstance(error, BrokenExecutor):
            return self._broken_by(error)
        return lost(self._pool or self._elsewhere, name, error) if isinstance(error, Exception) else error

    def _broken_by(self, error: BaseException | None) -> ExecutorError:
        """Return the error of an executor that has ended, the same one for all calls: it is one failure."""
        if self._broken is None:
            executor = self._pool or self._elsewhere
            self._broken = broken(executor, list(self._with_executor.values()), error)
        return self._broken


def _withdrawn() -> Cancelled:
    return Cancelled("it was withdrawn before it began")


def _written() -> None:
    """Cancel a write: it is finished all the same."""
