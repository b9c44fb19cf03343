"""Middleware: a generator function of one argument, the `Call`, around a pipeline, a stage or an action (L7).

    def timed(call):
        started = perf_counter()
        yield                                   # run what is inside
        call.store["seconds"] = perf_counter() - started

What it may do at its `yield`, and what comes of it:

    yields None                  the inside runs; the `yield` evaluates to its outcome, or raises its exception
    yields a mapping             the same, with these values as parameters, in that scope only
    yields Sleep(seconds)        waits, then goes on
    yields again after a failure the inside runs again; what the failed attempt wrote and inserted is dropped
    yields again after a success misuse, as is anything else it yields
    returns before yielding      the inside is skipped; `call.outcome = value` stands for an action's outcome
    returns after a failure      the failure is recovered
    raises                       the exception goes on outwards

`enter` opens layers from the outside in, `leave` resumes them from the inside out; between the two, the evaluator runs
the inside. Both are generators of requests, since a layer may wait or be asynchronous.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from flowdeco.definitions import UNSET, Action, Middleware, Pipeline, Stage, Stream, Unit, insertable
from flowdeco.errors import Bail, DefinitionError, MiddlewareError, Suspend
from flowdeco.requests import Await, Raised, Request, Sleep
from flowdeco.store import Log, Store

if TYPE_CHECKING:
    import logging

__all__ = ["Call", "Middleware", "Sleep", "atomic", "recover", "retry"]

Level: TypeAlias = Literal["pipeline", "stage", "action"]
Layer: TypeAlias = "Generator[Any, Any, None] | AsyncGenerator[Any, Any]"


class Call:
    """What a middleware is told, and can do.

    `level` is "pipeline" (also for the run's own `use`), "stage" or "action"; `pipeline`, `stage` and `action` are None
    where they do not apply. `store` is that of the enclosing scope: what a middleware writes there stays. `outcome` is
    the action's outcome, and can be replaced; `attempt` counts from 1.
    """

    __slots__ = ("_inserted", "action", "attempt", "level", "outcome", "pipeline", "run_id", "stage", "store")

    def __init__(
        self,
        level: Level,
        run_id: str,
        store: Store,
        pipeline: Pipeline,
        stage: Stage | None = None,
        action: Action[..., Any] | None = None,
    ) -> None:
        self.level: Level = level
        self.run_id = run_id
        self.store = store
        self.pipeline = pipeline
        self.stage = stage
        self.action = action
        self.outcome: Any = UNSET
        self.attempt = 1
        self._inserted: list[Unit | Stream] = []

    def insert(self, *units: Unit | Stream) -> None:
        """Run these right after what the middleware stands around, as if an action had returned them."""
        self._inserted.extend(insertable(units, f"a middleware of {self.level} {self.subject!r}"))

    @property
    def subject(self) -> str:
        """The name of what the middleware stands around."""
        return (self.action or self.stage or self.pipeline).name

    @property
    def logger(self) -> logging.LoggerAdapter[Any]:
        """The logger `flowdeco.run`, with run, stage and action as `extra`."""
        return run_logger(self.run_id, self.stage and self.stage.name, self.action and self.action.name)

    def __repr__(self) -> str:
        return f"<Call of {self.level} {self.subject!r}, attempt {self.attempt}>"


def run_logger(run_id: str, stage: str | None, action: str | None) -> logging.LoggerAdapter[Any]:
    """Return the standard library's logger for a place in a run."""
    import logging

    return logging.LoggerAdapter(
        logging.getLogger("flowdeco.run"), {"run": run_id, "stage": stage, "action": action}
    )


class Scope:
    """A pipeline, stage or action with middleware around it: the layers, and those of them that are open."""

    __slots__ = ("call", "failure", "layers", "opened", "ran", "recovered", "values")

    def __init__(self, call: Call, layers: tuple[Middleware, ...], values: Mapping[str, Any]) -> None:
        self.call = call
        self.layers = layers
        self.values = values
        self.opened: list[_Opened] = []
        self.failure: BaseException | None = None
        self.recovered = False
        self.ran = False


_Opened: TypeAlias = "tuple[Middleware, Layer, Log, int, Mapping[str, Any]]"

Enter: TypeAlias = "Generator[Request, Any, tuple[bool, BaseException | None]]"


def enter(scope: Scope) -> Enter:
    """Open the layers that are not open yet; return whether the inside is to run, and the error of a layer."""
    call = scope.call
    for layer in scope.layers[len(scope.opened) :]:
        try:
            generator = layer(call)
        except Exception as error:  # a wrong number of parameters
            return False, error
        end, item = yield from _advance(layer, generator, None, None)
        if end is not _YIELDED:
            return False, item
        _open(scope, layer, generator, item)
    scope.ran = True
    return True, None


def leave(scope: Scope, error: BaseException | None) -> Enter:
    """Resume the open layers; return whether the inside is to run again, and the error that is left."""
    call, store = scope.call, scope.call.store
    scope.failure = error
    while scope.opened:
        layer, generator, log, inserted_before, scope.values = scope.opened.pop()
        store.end(log)
        inserted = len(call._inserted)
        own = store.begin()
        outcome = None if call.outcome is UNSET else call.outcome
        end, item = yield from _advance(layer, generator, outcome, error)
        store.end(own)
        if end is _YIELDED and error is not None:
            store.rollback(log, keep=own)
            del call._inserted[inserted_before:inserted]
            call.outcome = UNSET
            call.attempt += 1
            scope.failure = None
            scope.recovered = False
            _open(scope, layer, generator, item)
            return True, None
        if end is _YIELDED:
            error = _misused(layer, "yielded again after a success: its inside runs again only after a failure")
            yield from _advance(layer, generator, None, error)
            scope.failure, scope.recovered = error, False
        elif end is _RAISED:
            scope.failure, scope.recovered = item, False
            error = item
        elif error is not None:
            scope.recovered = True
            error = None
    return False, error


def _open(scope: Scope, layer: Middleware, generator: Layer, values: Mapping[str, Any] | None) -> None:
    scope.opened.append((layer, generator, scope.call.store.begin(), len(scope.call._inserted), scope.values))
    if values:
        scope.values = {**scope.values, **values}


_YIELDED: Final = "yielded"
_RETURNED: Final = "returned"
_RAISED: Final = "raised"
_End: TypeAlias = "tuple[str, Any]"


def _advance(
    layer: Middleware, generator: Layer, outcome: Any, error: BaseException | None
) -> Generator[Request, Any, _End]:
    """Resume a layer until it yields what is not a `Sleep`, returns or raises."""
    while True:
        if isinstance(generator, types.GeneratorType):
            end, item = _resumed(generator, outcome, error)
        else:
            end, item = yield from _awaited(cast("AsyncGenerator[Any, Any]", generator), outcome, error)
        if item is None or end is not _YIELDED:
            return end, item
        if isinstance(item, Sleep):
            answer = yield item
            outcome, error = None, answer.error if type(answer) is Raised else None
        elif isinstance(item, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", item)):
            return end, item
        else:
            error = _misused(layer, f"yielded {item!r}: it may yield nothing, a mapping of values, or Sleep(seconds)")
            yield from _advance(layer, generator, None, error)
            return _RAISED, error


def _resumed(generator: Generator[Any, Any, Any], outcome: Any, error: BaseException | None) -> _End:
    traceback = error and error.__traceback__
    try:
        return _YIELDED, generator.send(outcome) if error is None else generator.throw(error)
    except StopIteration as stop:
        return (_RAISED, stop) if stop is error else (_RETURNED, None)
    except BaseException as raised:
        return _RAISED, _same(raised, error, traceback)


def _awaited(
    generator: AsyncGenerator[Any, Any], outcome: Any, error: BaseException | None
) -> Generator[Request, Any, _End]:
    traceback = error and error.__traceback__
    answer = yield Await(generator.asend(outcome) if error is None else generator.athrow(error))
    if type(answer) is not Raised:
        return _YIELDED, answer
    if isinstance(answer.error, StopAsyncIteration) and answer.error is not error:
        return _RETURNED, None
    return _RAISED, _same(answer.error, error, traceback)


def _same(raised: BaseException, error: BaseException | None, traceback: Any) -> BaseException:
    """Return what was raised, or the error itself if it only passed through a layer."""
    # A StopIteration that passes through a generator comes out as the cause of a RuntimeError (PEP 479).
    if raised is error or (isinstance(raised, RuntimeError) and error is not None and raised.__cause__ is error
                           and isinstance(error, (StopIteration, StopAsyncIteration))):
        return cast("BaseException", error).with_traceback(traceback)
    return raised


def _misused(layer: Middleware, what: str) -> MiddlewareError:
    function = layer.func if isinstance(layer, functools.partial) else layer
    code = getattr(function, "__code__", None) or getattr(getattr(type(function), "__call__", None), "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return MiddlewareError(f"the middleware {getattr(function, '__qualname__', function)!s}{where} {what}")


def merging(stage: Stage) -> Middleware:
    """Return the layer that merges the stage's data: inside `use_stages`, outside the stage's own middleware."""

    def merge(call: Call) -> Generator[None, None, None]:
        call.store.update(stage.data)
        yield

    return merge


# The middleware that is shipped.

_Exceptions: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...]"


def retry(
    *,
    on: _Exceptions,
    attempts: int = 3,
    wait: float = 0.1,
    wait_max: float = 30.0,
    jitter: bool = True,
) -> Middleware:
    """Return a middleware that runs its inside again after the exceptions in `on`, `attempts` times in all.

    Waits `wait` seconds before the second attempt, and twice as long before each further one, up to `wait_max`; with
    `jitter` a random time below that, drawn uniformly ("full jitter", M. Brooker, Exponential Backoff And Jitter, AWS
    Architecture Blog, 2015). The last failure goes on outwards.
    """
    _check_exceptions("retry", on)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise DefinitionError(f"retry: attempts is a positive number of times, not {attempts!r}")
    for name, seconds in (("wait", wait), ("wait_max", wait_max)):
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise DefinitionError(f"retry: {name} is a number of seconds that is not negative, not {seconds!r}")
    return functools.partial(_retry, on=on, attempts=attempts, wait=wait, wait_max=wait_max, jitter=jitter)


def _retry(
    call: Call, *, on: _Exceptions, attempts: int, wait: float, wait_max: float, jitter: bool
) -> Generator[Sleep | None, Any, None]:
    pause = min(wait, wait_max)
    for _ in range(attempts - 1):
        try:
            yield
            return
        except on as error:
            seconds = random.uniform(0, pause) if jitter else pause
            call.logger.info("%s %r failed (%r): again in %.3f s", call.level, call.subject, error, seconds)
            yield Sleep(seconds)
            pause = min(2 * pause, wait_max)
    yield


def recover(*, on: _Exceptions, outcome: Any = None) -> Middleware:
    """Return a middleware that lets the run go on after the exceptions in `on`.

    The record stays `failed`, with `recovered` set. For an action, `outcome` counts as what it returned.
    """
    _check_exceptions("recover", on)
    return functools.partial(_recover, on=on, outcome=outcome)


def _recover(call: Call, *, on: _Exceptions, outcome: Any) -> Generator[None, Any, None]:
    try:
        yield
    except on as error:
        call.logger.info("%s %r failed and is recovered: %r", call.level, call.subject, error)
        call.outcome = outcome


def atomic(call: Call) -> Generator[None, Any, None]:
    """Leave the store as it was found if the inside fails; used as it is: `use=[atomic]`.

    Lists and other values changed in place are not undone. A `Bail` is no failure, and a `Suspend` goes on later.
    """
    log = call.store.begin()
    try:
        yield
    except (Bail, Suspend):
        call.store.end(log)
        raise
    except BaseException:
        call.store.end(log)
        call.store.rollback(log)
        raise
    call.store.end(log)


def _check_exceptions(name: str, on: object) -> None:
    classes = cast("tuple[object, ...]", on) if isinstance(on, tuple) else (on,)
    if not classes or not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        raise DefinitionError(f"{name}: `on` takes an exception class or a tuple of them, not {on!r}")
