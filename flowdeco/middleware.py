"""The built-in middleware `retry`, `recover` and `atomic`, and the names for writing your own.

`engine.layers` explains how middleware works.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias, cast

from flowdeco.engine.layers import Call
from flowdeco.engine.requests import Sleep
from flowdeco.errors import DefinitionError
from flowdeco.model.options import Middleware

__all__ = ["Call", "Middleware", "Sleep", "atomic", "recover", "retry"]

_Exceptions: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...]"


def retry(
    *,
    on: _Exceptions,
    attempts: int = 3,
    wait: float = 0.1,
    wait_max: float = 30.0,
    jitter: bool = True,
) -> Middleware:
    """Return a middleware that runs its target again after the exceptions in `on`, `attempts` times in all.

    Waits `wait` seconds before the second attempt, and twice as long before each further one, up to `wait_max`; with
    `jitter` a random time below that, drawn uniformly ("full jitter", M. Brooker, Exponential Backoff And Jitter, AWS
    Architecture Blog, 2015). The last failure propagates.
    """
    _check_exceptions("retry", on)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise DefinitionError(f"retry: attempts is a positive number of times, not {attempts!r}")
    for name, seconds in (("wait", wait), ("wait_max", wait_max)):
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise DefinitionError(f"retry: {name} is a number of seconds that is not negative, not {seconds!r}")
    return cast("Middleware", Retry(on, attempts, wait, wait_max, jitter))


class Retry(NamedTuple):
    on: _Exceptions
    attempts: int
    wait: float
    wait_max: float
    jitter: bool

    def __call__(self, call: Call, /) -> Generator[Sleep | None, Any, None]:
        for number in range(call.repeats_before, self.attempts - 1):
            try:
                yield None
                return
            except BaseException as error:
                if not _matches(error, self.on):
                    raise
                pause = min(self.wait * 2.0 ** min(number, 64), self.wait_max)
                seconds = random.uniform(0, pause) if self.jitter else pause
                call.logger.info("%s %r failed (%r): again in %.3f s", call.level, call.name, error, seconds)
                yield Sleep(seconds)
        yield None

    def __repr__(self) -> str:
        return f"retry(on={self.on!r}, attempts={self.attempts}, wait={self.wait}, wait_max={self.wait_max})"


def recover(*, on: _Exceptions, outcome: Any = None) -> Middleware:
    """Return a middleware that lets the run continue after the exceptions in `on`.

    The record stays `failed`, with `recovered` set. For an action, `outcome` counts as its returned value.
    """
    _check_exceptions("recover", on)
    return cast("Middleware", Recover(on, outcome))


class Recover(NamedTuple):
    on: _Exceptions
    outcome: Any

    def __call__(self, call: Call) -> Generator[None, Any, None]:
        try:
            yield None
        except BaseException as error:
            if not _matches(error, self.on):
                raise
            call.logger.info("%s %r failed and is recovered: %r", call.level, call.name, error)
            call.outcome = self.outcome

    def __repr__(self) -> str:
        return f"recover(on={self.on!r}, outcome={self.outcome!r})"


def atomic(call: Call) -> Generator[None, Any, None]:
    """Make the target one step: if it fails or suspends, the store is as it was before; used as is: `use=[atomic]`.

    In a durable run its rows are written together when it completes. If it fails, is killed or suspended before that, it
    runs again from its beginning. A `Bail` is a success. Values changed in place are not undone.
    """
    mark = call.store.mark()
    call.undo_on_failure()
    try:
        yield
    except BaseException:
        call.store.undo(mark)
        raise
    call.store.release(mark)


# They give no values to their target, and write nothing: a key that is certain without them is certain with them (see
# `model.wiring`).
Retry.supplies = False  # type: ignore[attr-defined]
atomic.supplies = False  # type: ignore[attr-defined]


def _matches(error: BaseException, on: _Exceptions) -> bool:
    """Whether it is one of these, or a group of failures that all are."""
    if isinstance(error, on):
        return True
    failures = cast("BaseExceptionGroup[BaseException]", error) if isinstance(error, BaseExceptionGroup) else None
    return failures is not None and failures.split(on)[1] is None


def _check_exceptions(name: str, on: object) -> None:
    classes = cast("tuple[object, ...]", on) if isinstance(on, tuple) else (on,)
    if not classes or not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        raise DefinitionError(f"{name}: `on` takes an exception class or a tuple of them, not {on!r}")
