"""Calls in other threads: those of groups, and those that may be abandoned, each on a thread of its own."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, Self

from flowdeco.engine.requests import Raised
from flowdeco.errors import ActionTimeout

__all__ = ["Threads", "answer_of", "call_in_thread", "call_with_timeout", "timed_out", "writer"]

THREADS: Final = 32  # branches in threads mostly wait for something


class Threads:
    """Threads that perform calls, made when they are needed and ended with the run.

    A `ThreadPoolExecutor` without its futures, which are the larger part of the cost of a call.
    """

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle: deque[None] = deque()  # one for each thread that waits for a call, while there may be more threads

    def begin(self, call: Callable[[], None]) -> None:
        """Have the call made by the next idle thread; it must not raise."""
        self._calls.put(call)
        if len(self._threads) == self._most:
            return
        try:
            self._idle.pop()
        except IndexError:
            thread = threading.Thread(target=self._serve, name=f"flowdeco-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call
            if len(self._threads) < self._most:
                self._idle.append(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()


class _Shared:
    """A thread, the process that it is in, and the number of runs that use it."""

    def __init__(self) -> None:
        self.threads = Threads(1)
        self.pid = os.getpid()
        self.users = 0


_writers: Final[weakref.WeakKeyDictionary[Any, dict[Any, _Shared]]] = weakref.WeakKeyDictionary()  # by event loop


@contextmanager
def writer(loop: Any, journal: Any) -> Generator[Threads, None, None]:
    """Give the thread that writes a journal, for all runs of an event loop; it ends with the last of them."""
    of_loop, key = _writers.setdefault(loop, {}), getattr(journal, "path", id(journal))
    shared = of_loop.get(key)
    if shared is None or shared.pid != os.getpid():  # the threads of a process stay behind when it forks
        shared = of_loop[key] = _Shared()
    shared.users += 1
    try:
        yield shared.threads
    finally:
        shared.users -= 1
        if not shared.users and of_loop.get(key) is shared:
            del of_loop[key]
            with shared.threads:
                pass


def answer_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and return the result, or the exception as `Raised`."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        return Raised(error)


def call_in_thread(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None, done: Callable[[Any], None]
) -> None:
    """Start a call on a daemon thread, in a copy of the context variables; `done` receives the answer."""
    context = contextvars.copy_context()

    def call() -> None:
        done(answer_of(context.run, function, *args, **(kwargs or {})))

    try:
        thread = threading.Thread(target=call, name="flowdeco-timeout", daemon=True)
    except RuntimeError:  # in an interpreter of its own, which has no daemon threads
        thread = threading.Thread(target=call, name="flowdeco-timeout")
    try:
        thread.start()
    except RuntimeError as error:
        if error.__context__ is None:  # there can be no more threads
            raise
        raise error.__context__ from None  # a signal as its lock was being acquired, which is then released all the same


def call_with_timeout(
    name: str,
    seconds: float,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Call, and raise `ActionTimeout` if it takes too long; the answer may be `Raised`.

    The call has a thread of its own, because no thread can be stopped: it is abandoned when the time is up. This one, a
    worker of an executor perhaps, only waits for it. So the time counts from where the call begins, no more calls run at
    once than there are workers, and a worker is free again when the time is up.
    """
    answers: SimpleQueue[Any] = SimpleQueue()  # unlike an event, it may be interrupted at any moment
    call_in_thread(function, args, kwargs, answers.put)
    try:
        return answers.get(timeout=min(seconds, threading.TIMEOUT_MAX))
    except Empty:
        raise timed_out(name, seconds) from None


def timed_out(name: str, seconds: float | None) -> ActionTimeout:
    """Return the error of an action that took too long."""
    return ActionTimeout(f"action {name!r} took longer than its timeout of {seconds:g} s")
