"""The built-in middleware `retry`, `recover`, `cached` and `atomic`, and the names for writing your own.

`engine.layers` explains how middleware works.
"""

from __future__ import annotations

import inspect
import os
import random
import time
from collections.abc import Callable, Generator, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.engine.call import Call
from flowdeco.engine.context import Context
from flowdeco.engine.layers import Layers
from flowdeco.engine.requests import Sleep
from flowdeco.engine.results import unit_in
from flowdeco.errors import (
    DefinitionError,
    JournalError,
    MissingInputError,
    SerializationError,
    a_type,
    shortened,
)
from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import Action, bound_of
from flowdeco.model.options import (
    LAST_SECOND,
    Duration,
    Middleware,
    checked_path,
    described,
    in_seconds,
    seconds_of,
)
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step
from flowdeco.model.supplying import Supplies

if TYPE_CHECKING:
    from flowdeco.running import CachedOutcomes, Inputs

__all__ = ["Call", "Middleware", "Sleep", "atomic", "cached", "recover", "retry"]

_Exceptions: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...]"
_On: TypeAlias = "_Exceptions | Callable[[BaseException], bool]"


def retry(
    *,
    on: _On,
    attempts: int = 3,
    wait: Duration | Callable[[int], Duration] = 0.1,
    wait_max: Duration = 30.0,
    jitter: bool = True,
    timeout: Duration | None = None,
) -> Middleware:
    """Return a middleware that runs its target again after the exceptions in `on`, `attempts` times in all.

    `on` is an exception class, a tuple of them, or a function of the exception. Waits `wait` seconds before
    the second attempt, and twice as long before each further one, or `wait(n)` seconds after the n-th failure, up to
    `wait_max`; with `jitter` a random time below that, drawn uniformly ("full jitter", M. Brooker, Exponential Backoff
    And Jitter, AWS Architecture Blog, 2015). No attempt begins later than `timeout` seconds after the first one. The
    last failure propagates. Times are in seconds, or a `timedelta`.
    """
    _check_on("retry", on)
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise DefinitionError(f"retry: attempts is a positive number of times, not {shortened(attempts)}")
    if not isinstance(jitter, bool):
        raise DefinitionError(f"retry: jitter is True or False, not {shortened(jitter)}")
    first = wait if callable(wait) else seconds_of(wait, "retry: wait is")
    longest, last = _limit(wait_max, "wait_max"), None if timeout is None else _limit(timeout, "timeout")
    return cast("Middleware", Retry(on, attempts, first, longest, jitter, last))


class Retry(NamedTuple):
    on: _On
    attempts: int
    wait: float | Callable[[int], Duration]
    wait_max: float
    jitter: bool
    timeout: float | None = None

    def __call__(self, call: Call, /) -> Generator[Sleep | None, Any, None]:
        began, waited = time.monotonic(), 0.0
        used = 0.0 if self.timeout is None else call.time_used
        for number in range(call.repeats_before + 1, self.attempts):
            try:
                yield None
                return
            except BaseException as error:
                elapsed = used + max(waited, time.monotonic() - began)  # a test's clock jumps over what was waited
                if self.timeout is not None:
                    call.use_time(elapsed)
                if not _matches(error, self.on):
                    raise
                seconds = self._pause(number)
                if self.timeout is not None:
                    if elapsed + seconds > self.timeout:
                        raise
                    call.use_time(elapsed + seconds)
                call.logger.info("%s %r failed (%r): again in %.3f s", call.level, call.name, error, seconds)
                yield Sleep(seconds)
                waited += seconds
        yield None

    def _pause(self, number: int) -> float:
        """Return how long to wait after the failure of this number."""
        wait: Any = self.wait(number) if callable(self.wait) else self.wait * 2.0 ** min(number - 1, 64)
        pause = in_seconds(wait)
        if pause is None or pause < 0:
            raise DefinitionError(f"retry: wait({number}) returned {shortened(wait)}, not a number of seconds")
        pause = min(pause, self.wait_max, LAST_SECOND)
        return random.uniform(0, pause) if self.jitter else pause

    def __repr__(self) -> str:
        given = {name: value for name, value in self._asdict().items() if name not in ("on", "jitter")}
        options = ", ".join(f"{name}={described(value)}" for name, value in given.items() if value is not None)
        return f"retry(on={described(self.on)}, {options})"


def _limit(duration: Duration, name: str) -> float:
    seconds = in_seconds(duration)
    return seconds if seconds is not None and seconds > LAST_SECOND else seconds_of(duration, f"retry: {name} is")


def recover(*, on: _On, outcome: Any = None) -> Middleware:
    """Return a middleware that lets the run continue after the exceptions in `on`, as for `retry`.

    The record stays `failed`, with `recovered` set. For an action, `outcome` counts as its returned value; it is copied
    each time, so that no run sees another run's changes.
    """
    _check_on("recover", on)
    _copied(outcome)
    return cast("Middleware", Recover(on, outcome))


class Recover(NamedTuple):
    on: _On
    outcome: Any

    def __call__(self, call: Call) -> Generator[None, Any, None]:
        try:
            yield None
        except BaseException as error:
            if not _matches(error, self.on):
                raise
            call.logger.info("%s %r failed and is recovered: %r", call.level, call.name, error)
            if call.action is not None:
                call.outcome = _copied(self.outcome)

    @property
    def supplies(self) -> Supplies:
        return Supplies.NOTHING if self.outcome is None else Supplies.OUTCOME

    @property
    def recovers_missing_inputs(self) -> bool:
        return _matches(MissingInputError(), self.on)

    @property
    def inserts(self) -> bool:
        """Whether its outcome is units (see `model.selectors` and `model.wiring`)."""
        return unit_in((self.outcome,), 1) is not None

    def __repr__(self) -> str:
        return f"recover(on={shortened(self.on)}, outcome={shortened(self.outcome)})"


def cached(path: str | os.PathLike[str]) -> Middleware:
    """Return a middleware that reuses the outcome of an earlier call with the same code and arguments, from a folder.

    The folder is created if missing; delete it to clear the cache. Any number of runs, threads and processes may
    share it, and it is as trusted as code, because values are pickled. The code is that of the function and its defaults, as
    for a resume. Arguments are compared by content, and so are the values that the function closes over, except for those
    that the call changes, such as a counter. The outcome includes collected items and insertions; the record is
    `completed`, and `cached`.

    Not cached, with a warning in the log of the run: outcomes that cannot be pickled; calls whose arguments have no content
    to compare, are changed in place, or are supplied by middleware inside this one. Failures are not cached either. An
    action that takes a `Context` cannot be cached: `DefinitionError`.
    """
    given = checked_path(path, "the folder of cached(...)")
    folder = os.path.abspath(given)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DefinitionError(f"cached: path is a folder, and {given!r} is a file")
    return cast("Middleware", Cached(folder))


class Cached:
    """Keeps the first contents of what functions enclose for as long as a `cached` of this folder exists."""

    supplies = False
    answers = True  # perhaps, in place of the action: a step that is called again is called without it
    inserts = False  # nothing but what the action inserts itself (see `model.selectors`)

    def __init__(self, path: str) -> None:
        self.path = path
        self._outcomes: CachedOutcomes | None = None

    def __eq__(self, other: object) -> bool:
        return self.path == other.path if isinstance(other, Cached) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cached, (self.path,)

    def __call__(self, call: Layers, /) -> Generator[None, Any, None]:
        if call.action is None:
            raise DefinitionError(
                f"{self!r} goes around actions, not around the {call.level} {call.name!r}: {_INSTEAD}"
            )
        self.check_action(call.step)
        outcomes = self._outcomes = self._outcomes or _running().outcomes(self.path)
        before = _Before.of(call, outcomes)
        if before.key is not None:
            try:
                found = outcomes.get(before.key)
            except JournalError as error:
                call.logger.warning("action %r runs, its cached outcome cannot be read: %s", call.name, error)
                found = ()
            if found:
                call.take_cached(*found[0])
                return
        with before.inputs.enclosed:
            yield None
        self._keep(call, outcomes, before)

    def _keep(self, call: Layers, outcomes: CachedOutcomes, before: _Before) -> None:
        """Add the outcome of a call to the cache, unless it is not one that depends on the arguments alone."""
        if call.given is UNSET or call.recovered:
            return
        why = before.doubt or before.doubt_after(call)
        if not why:
            try:
                outcomes.put(cast("str", before.inputs.key()), (call.given, call.inserted[before.inserted :]))
            except (JournalError, SerializationError, TypeError) as error:
                why = str(error)
        if why:
            call.logger.warning("the outcome of action %r is not cached: %s", call.name, why)

    def check_action(self, step: Step) -> None:
        """Raise `DefinitionError` for an action that takes a `Context`."""
        if step.wants_context:
            raise _uncachable(step.name)

    def check_signature(self, action: Action[..., Any]) -> None:
        """Raise that error for an action that is being defined, unless it takes more than its signature to know."""
        function: Any = action.__wrapped__
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return
        known = getattr(function, "__globals__", {})
        for each in parameters:
            annotation = known.get(each.annotation) if isinstance(each.annotation, str) else each.annotation
            is_context = annotation is Context or (annotation is each.empty and each.name == "ctx")
            if is_context and each.name not in bound_of(action):
                raise _uncachable(action.name)

    def __repr__(self) -> str:
        return f"cached({self.path!r})"


def _uncachable(name: str) -> DefinitionError:
    return DefinitionError(
        f"action {name!r} takes a Context and cannot be cached: what it does by that is not in its returned value. "
        f"Return the data and the units instead, or do without cached"
    )


_INSTEAD: Final = "write use_actions=[cached(...)], or @action(use=[cached(...)])"


class _Before(NamedTuple):
    """A call before it is made: what it depends on, its key or the reason why it has none, and what middleware supplied."""

    inputs: Inputs
    key: str | None
    doubt: str
    inserted: int
    supplied: int

    @classmethod
    def of(cls, call: Layers, outcomes: CachedOutcomes) -> _Before:
        arguments = call.arguments
        inputs = outcomes.inputs(call.step.function, arguments)
        lacking = [wanted.name for wanted in call.step.inputs if wanted.name not in arguments]
        key = None if lacking else inputs.key()
        doubt = ""
        if lacking:
            doubt = f"{lacking[0]!r} is supplied inside of cached(...): put that middleware before it"
        elif key is None:
            doubt = inputs.doubt()
        return cls(inputs, key, doubt, len(call.inserted), len(call.supplied))

    def doubt_after(self, call: Layers) -> str:
        """Return the reason why its key does not stand for the call, now that it was made; "" if it does."""
        wanted = {name for each in call.step.inputs for name in (each.name, each.key)}
        inside = sorted(wanted.intersection(call.supplied[self.supplied :]))
        if inside:
            return f"{inside[0]!r} is supplied inside of cached(...): put that middleware before it"
        if self.inputs.have_changed():
            return "it changes an argument, which the outcome would not do again"
        if isinstance(call.given, Iterator):
            return "it is an iterator, which can be read only once"
        return "" if self.inputs.key() is not None else self.inputs.doubt()


def _running() -> ModuleType:
    from flowdeco import running

    return running


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
Retry.supplies = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
atomic.supplies = False  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]


def _matches(error: BaseException, on: _On) -> bool:
    """Whether it is one of these, or a group of failures that all are."""
    if callable(on) and not isinstance(on, type):
        is_one = isinstance(error, Exception) and on(error)
    else:
        is_one = isinstance(error, on)
    if is_one or not isinstance(error, BaseExceptionGroup):
        return is_one
    return all(_matches(each, on) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions)


def _copied(outcome: Any) -> Any:
    if type(outcome) in ATOMS:
        return outcome
    import copy  # not loaded for plain outcomes

    try:
        return copy.deepcopy(outcome)
    except Exception as error:
        raise DefinitionError(
            f"recover: `outcome` is copied each time, and {a_type(outcome)} cannot be ({error}). "
            f"Supply it in a middleware of your own: call.outcome = ..."
        ) from error


def _check_on(name: str, on: object) -> None:
    if callable(on) and not isinstance(on, type):
        return
    classes = cast("tuple[object, ...]", on) if isinstance(on, tuple) else (on,)
    if not classes or not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        raise DefinitionError(
            f"{name}: `on` is an exception class, a tuple of them, or a function, not {shortened(cast('object', on))}"
        )
