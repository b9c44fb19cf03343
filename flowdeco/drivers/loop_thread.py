"""A private event loop in a helper thread, for all that a sync run awaits."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final

from flowdeco.drivers.lanes import INTERRUPTED, DistantLane
from flowdeco.engine.requests import Await, Sleep

__all__ = ["LoopThread", "RunLane"]


class RunLane(DistantLane):
    """The lane of the run itself, with the context variables of the thread that waits for its answers.

    Before a request, those that were set and unset in the thread are set and unset in the lane; after it, the other way
    round. The lane cannot run in the context of the thread, which is in use there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answered: Callable[[Any], object],
        interrupted: Callable[[int, Any], object],
    ) -> None:
        def report(ticket: int, answer: Any) -> None:
            if ticket == INTERRUPTED:
                interrupted(ticket, answer)
            else:
                answered(answer)

        super().__init__(loop, contextvars.copy_context(), report)
        self._given = self._left = contextvars.copy_context()
        self._here, self._there = _Variables(), _Variables()

    def ask(self, request: Await) -> None:
        """Begin to await."""
        self._given = contextvars.copy_context()
        self.begin(_OF_THE_RUN, request)

    def enter(self) -> None:
        self._unwinds = True  # as in `arun`: a timeout expires unnoticed during a plain call, and at the next wait
        self._there.take_over(self._given)

    def leave(self) -> None:
        self._left = contextvars.copy_context()

    def take_over(self) -> None:
        """Have the variables in the thread as the last request left them."""
        self._here.take_over(self._left)


class LoopThread:
    """A private event loop in a helper thread.

    A KeyboardInterrupt or SystemExit that leaves any of its tasks would end the loop, and so the program that had it run.
    Here, `interrupt` is called with the first one, and the loop continues.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, interrupt: Callable[[BaseException], object]) -> None:
        self._interrupt = interrupt
        self._ended = False

    def __enter__(self) -> LoopThread:
        ready = threading.Event()
        context = contextvars.copy_context()
        # The whole life of the loop is in its thread: here, another loop may be running.
        self._thread = threading.Thread(
            target=context.run, args=(self._serve, ready), name="flowdeco-loop", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def pause(self, sleep: Sleep) -> Await:
        """Return a pause in the loop."""
        return Await(asyncio.sleep(sleep.seconds))

    def _serve(self, ready: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self.loop = runner.get_loop()
            ready.set()
            is_interrupted = False
            while not self._ended:
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:  # later ones are left to those that await their tasks
                    if not is_interrupted:
                        is_interrupted = True
                        self._interrupt(error)

    def _end(self) -> None:
        self._ended = True
        self.loop.stop()


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
_OF_THE_RUN: Final = -1  # in place of a ticket
