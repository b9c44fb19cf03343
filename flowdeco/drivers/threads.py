"""Calls that may be given up: each on a thread of its own, which nobody waits for when the time is over."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowdeco.errors import ActionTimeout
from flowdeco.requests import Chore, Raised
from flowdeco.wiring import Step

__all__ = ["call_in_thread", "call_with_timeout", "timed_out"]


def call_in_thread(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None, done: Callable[[Any], None]
) -> None:
    """Start a call on a daemon thread, in a copy of the context variables; `done` receives what came of it."""
    context = contextvars.copy_context()

    def call() -> None:
        try:
            answer = context.run(function, *args, **(kwargs or {}))
        except BaseException as error:
            answer = Raised(error)
        done(answer)

    threading.Thread(target=call, name="flowdeco-timeout", daemon=True).start()


def call_with_timeout(step: Step | Chore, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Call, and raise `ActionTimeout` if it takes too long; the thread itself cannot be stopped."""
    finished = threading.Event()
    answers: list[Any] = []

    def done(answer: Any) -> None:
        answers.append(answer)
        finished.set()

    call_in_thread(step.function, args, kwargs, done)
    if not finished.wait(step.timeout):
        raise timed_out(step.name, step.timeout)
    return answers[0]


def timed_out(name: str, seconds: float | None) -> ActionTimeout:
    """Return the error of an action that took too long."""
    return ActionTimeout(f"action {name!r} took longer than its timeout of {seconds:g} s")
