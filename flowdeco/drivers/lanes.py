"""Lanes: a branch awaits everything in one task, from its beginning to its end.

So a timeout, a task group or a cancel scope that a middleware, a stream or a generator opens in one request holds in
the following ones. While the branch is busy elsewhere (with a call in a thread, a group inside it), its lane is idle. A
cancellation that reaches it then does not wake it: the lane keeps it as its `interrupt`, for the branch.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from math import inf
from typing import Any, Final

from flowdeco.drivers.threads import timed_out
from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.requests import Await, Awaited, FunctionCall, Raised
from flowdeco.engine.results import SETTLED
from flowdeco.errors import is_exit

__all__ = ["INTERRUPTED", "DistantLane", "Lane", "awaited", "in_time"]

INTERRUPTED: Final = 0  # in place of a ticket: a lane has been cancelled while its branch was elsewhere


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


async def in_time(awaitable: Awaitable[Any], deadline: Deadline) -> Any:
    """Await, and cancel that when the deadline has passed."""
    limit = asyncio.timeout(max(0.0, deadline.left()))
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise deadline.expire() from None
        raise
    finally:
        deadline.expired |= limit.expired()


class Lane:
    """The task of a branch in the running event loop.

    `report` is called with a ticket and an answer, or with `INTERRUPTED` and the lane.
    """

    interrupt: asyncio.CancelledError | None = None  # came while it was idle
    _unwinds = False  # a cancellation has been taken, and nothing has been performed since
    _task: Any = None
    _has_begun = False
    _idle: _Idle | None = None
    _next: tuple[int, Await | FunctionCall] | None = None
    _cancels = 0  # of the request under way, to be taken back after it

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, report: Callable[[int, Any], object], of: Any = None
    ) -> None:
        self.of = of  # the task of the schedule that it serves; None for the run itself
        self.loop = loop
        self._context = context
        self._report = report

    def begin(self, ticket: int, request: Await | FunctionCall) -> None:
        """Perform a request, and report the answer."""
        self._next = ticket, request
        if self._task is None:
            self._task = self.loop.create_task(self._serve(), context=self._context)
        else:
            self._wake()

    def cancel(self) -> None:
        """Cancel the request under way; one that has not begun is not performed."""
        if self._next is None:
            if self._idle is None and not _receives_an_exit(self._task):
                self._cancels += 1
                self._task.cancel()
        elif self._has_begun or not self._task.cancelling():
            self.interrupt = self.interrupt or asyncio.CancelledError()
        else:  # with all tasks of a loop that ends: it will never begin
            (ticket, request), self._next = self._next, None
            _discard(request)
            self._report(ticket, Raised(asyncio.CancelledError()))

    def end(self) -> None:
        """End the task, which is idle."""
        self._wake()

    def cancelled(self, message: Any) -> None:
        """Keep a cancellation that has come while the lane was idle."""
        if self.interrupt is None and self._task.cancelling():  # if it was taken back, it is only late
            self.interrupt = asyncio.CancelledError() if message is None else asyncio.CancelledError(message)
            self._report(INTERRUPTED, self)

    def take(self) -> asyncio.CancelledError:
        """Take the cancellation, to have the branch unwind."""
        taken, self.interrupt, self._unwinds = self.interrupt, None, True
        return taken or asyncio.CancelledError()

    def enter(self) -> None:
        """Prepare the context of the task for a request."""

    def leave(self) -> None:
        """Note the context that a request has left."""

    def _wake(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.set_result(None)

    def _continue(self) -> None:
        """Leave a further cancellation to a branch that unwinds to the request: it is raised where that waits.

        A cancelled scope of anyio cancels again by itself, in each turn of the loop, but never what it shields.
        """
        self._unwinds = False
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None and not _is_cancelled_by_anyio():
            self._task.cancel(*interrupt.args)
            self._task.uncancel()

    async def _serve(self) -> None:
        self._has_begun = True
        came: Any
        while self._next is not None:
            (ticket, request), self._next = self._next, None
            self.enter()
            try:
                if self.interrupt is not None and not self._unwinds:
                    _discard(request)
                    came = Raised(self.take())
                elif isinstance(request, Await):
                    self._continue()
                    came = await awaited(request)
                else:
                    self._continue()
                    step, args, kwargs = request
                    coroutine = step.function(*args, **kwargs) if kwargs else step.function(*args)
                    came = await (
                        coroutine if step.timeout is None else awaited(Await(coroutine, step.timeout, step.name))
                    )
                    if type(came) not in SETTLED:
                        came = Awaited(came)
            except BaseException as error:
                came = Raised(error)
            self.leave()
            while self._cancels:
                self._cancels -= 1
                self._task.uncancel()
            self._idle = idle = _Idle(loop=self.loop)
            idle.lane = self
            self._report(ticket, came)
            del request, came  # they may be large
            await idle


class DistantLane(Lane):
    """The task of a branch in the event loop of another thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, report: Callable[[int, Any], object], of: Any = None
    ) -> None:
        def report_later(ticket: int, answer: Any) -> None:
            loop.call_soon(report, ticket, answer)  # after the task has left its context: the other thread enters it

        super().__init__(loop, context, report_later, of)

    def begin(self, ticket: int, request: Await | FunctionCall) -> None:
        self.loop.call_soon_threadsafe(super().begin, ticket, request)

    def cancel(self) -> None:
        self.loop.call_soon_threadsafe(super().cancel)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(super().end)


class _Idle(asyncio.Future[None]):
    """Awaited by an idle lane, which a cancellation does not wake."""

    lane: Lane

    def cancel(self, msg: Any = None) -> bool:
        self.lane.cancelled(msg)
        return True


def _is_cancelled_by_anyio() -> bool:
    """Whether a cancel scope of anyio around the current task is cancelled."""
    anyio: Any = sys.modules.get("anyio")
    return anyio is not None and anyio.current_effective_deadline() == -inf


def _receives_an_exit(task: Any) -> bool:
    """Whether a KeyboardInterrupt or SystemExit is about to be raised in a task, which a cancellation would replace."""
    waiter = task._fut_waiter
    return waiter is not None and waiter.done() and not waiter.cancelled() and is_exit(waiter.exception())


def _discard(request: Await | FunctionCall) -> None:
    if isinstance(request, Await):
        request.discard()
