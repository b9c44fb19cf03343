"""Ctrl-C in a sync run: it reaches the evaluation as an answer, never while an outcome takes effect.

While user code runs, the gate is open, and the handler of a signal is called at once, as usual. At any other moment the
signal waits until the driver asks. This holds for every signal that a program may have a handler for: that of SIGALRM,
say, may raise a timeout.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, cast

from flowdeco.engine.requests import Gate
from flowdeco.errors import Cancelled

__all__ = ["Interrupts", "is_cancellation", "pause", "sleep"]

Handler = Callable[[int, Any], Any]

_LONGEST: Final = 9e9  # seconds: `time.sleep` counts nanoseconds in 64 bits
_NAMES: Final = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS: Final = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def is_cancellation(error: BaseException) -> bool:
    """Whether it comes from outside: Ctrl-C, the cancellation of a task, or of a branch by another one."""
    asyncio = sys.modules.get("asyncio")
    return isinstance(error, (KeyboardInterrupt, Cancelled)) or (
        asyncio is not None and isinstance(error, asyncio.CancelledError)
    )


def sleep(seconds: float) -> None:
    """Block for so long, or for 285 years."""
    time.sleep(min(seconds, _LONGEST))


def pause(gate: Gate, look: Callable[[], object], seconds: float) -> None:
    """Sleep until the run is interrupted from outside; `look` raises the interrupt."""
    woken: SimpleQueue[None] = SimpleQueue()  # unlike an event, it may be interrupted at any moment
    wake = partial(woken.put, None)
    gate.sleepers.append(wake)
    try:
        look()
        with suppress(Empty):
            woken.get(timeout=min(seconds, _LONGEST))
        look()
    finally:
        gate.sleepers.remove(wake)


class _Waiting(BaseException):
    """Stands in for the exception that the handler of a waiting signal will raise."""


class Interrupts:
    """Handles signals while it is entered, in the main thread; in others, Python calls no handlers."""

    def __init__(self) -> None:
        self.gate = Gate()
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    try:
                        signal.signal(number, self._handle)
                    except ValueError:  # the main thread of another interpreter
                        break
                    self._handlers[number] = cast("Handler", handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.open = False
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self.raise_pending()  # the signals that came too late for the run

    def raise_pending(self) -> None:
        """Raise the interrupt that came while the gate was closed, or call the handlers of waiting signals."""
        pending, self.gate.pending = self.gate.pending, None
        if pending is not None and not isinstance(pending, _Waiting):
            raise pending
        while self._waiting:
            number = self._waiting.pop(0)
            try:
                self._handlers[number](number, None)
            except BaseException:
                self.gate.pending = _Waiting() if self._waiting else None
                raise

    def _handle(self, number: int, frame: Any) -> None:
        if self.gate.open:
            self.gate.open = False
            self._handlers[number](number, frame)
            self.gate.open = True  # the handler has not raised anything
        else:
            self._waiting.append(number)
            self.gate.pending = self.gate.pending or _Waiting()
            if self.gate.wake is not None:
                self.gate.wake()
