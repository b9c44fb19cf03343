"""Executors: a serial one for tests, and the shipping of calls to other processes.

Any `concurrent.futures.Executor` will do; only calls of functions go there, with their arguments. To threads they go as
they are. To anything else (processes, interpreters, a cluster) they are pickled here, so that a value
that cannot be pickled is named before anything is submitted. An action that asks for `ctx` receives a detached one,
whose effects come back with the result.
"""

from __future__ import annotations

import io
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.drivers.threads import call_with_timeout
from flowdeco.engine.context import Context, Effects
from flowdeco.engine.requests import Raised
from flowdeco.engine.results import exhaust, is_awaited, is_generator
from flowdeco.errors import (
    Bail,
    ExecutorError,
    RunError,
    ShippingError,
    Suspend,
    UnreferencedError,
    WorkerDiedError,
    frames_of_users,
    message_of,
)
from flowdeco.model.definitions import Action, Unit, action_options, bound_of
from flowdeco.model.paths import all_parts, culprit, shown_key
from flowdeco.model.references import load, origin_of
from flowdeco.model.steps import Step

__all__ = ["broken", "is_local", "is_serial", "lost", "perform", "receive", "refused", "serial", "shipped"]

# Companions of calls to other processes: each returns a function, importable there, and an argument for it; called with
# it, the function returns the context manager that is opened around the call. Set by observers.
Companion: TypeAlias = "Callable[[], tuple[Callable[[Any], AbstractContextManager[Any]], Any]]"
COMPANIONS: Final[ContextVar[tuple[Companion, ...]]] = ContextVar("flowdeco_companions", default=())

Arguments: TypeAlias = "tuple[Sequence[Any], Mapping[str, Any]]"


class _Serial(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def serial() -> Executor:
    """Return an executor that performs each call at once, in the calling thread: for tests and debugging."""
    return _Serial()


def is_local(executor: Executor) -> bool:
    """Whether calls share the memory of this interpreter."""
    isolated = type(executor).__name__ == "InterpreterPoolExecutor"  # a thread pool by inheritance only
    return isinstance(executor, (ThreadPoolExecutor, _Serial)) and not isolated


def is_serial(executor: Executor) -> bool:
    """Whether calls are made at once, so that nothing needs to be submitted."""
    return isinstance(executor, _Serial)


def perform(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Call, and run a generator to its end where it was made."""
    value = function(*args, **(kwargs or {}))
    return exhaust(value) if is_generator(value) else value


# In the other process.


class _Thrown(NamedTuple):
    """An exception on its way back: itself, pickled, if it arrives as it was, and its traceback."""

    pickled: bytes | None
    told: str


class _Home(NamedTuple):
    """The reply of a call in another process: its value or its exception, and its effects on the context."""

    value: Any
    raised: BaseException | _Thrown | None
    effects: Effects | None


def perform_shipped(payload: bytes, nonce: bytes) -> bytes:
    """Perform a pickled call in another process; the result is pickled there, so that an unpicklable part is named.

    Exceptions travel as values, too: with them come the events that the action reported before it failed.
    """
    try:
        name, timeout, function, by_value, args, kwargs, companions = pickle.loads(payload)
    except Exception as error:
        unloadable = ShippingError(f"the worker cannot load what was sent to it: {type(error).__name__}: {error}")
        return pickle.dumps(_Home(None, unloadable, None))
    dumps = partial(_dumps_by_value, homewards=True) if by_value else pickle.dumps
    function = cast("Action[..., Any]", function).__wrapped__ if isinstance(function, Action) else function
    context = _context_among(args, kwargs)
    if context is not None:
        context.live_by(time.time, time.sleep, time.monotonic)
    value: Any = None
    raised: BaseException | _Thrown | None = None
    late = False
    try:
        with ExitStack() as around:
            for companion, argument in companions:
                around.enter_context(companion(argument))
            if timeout is None:
                value = _awaited_here(function, args, kwargs)
            else:
                late = True
                value = call_with_timeout(name, timeout, _awaited_here, (function, args, kwargs))
                late = False
                if type(value) is Raised:
                    raise value.error
    except BaseException as error:
        value, raised = None, error if late or isinstance(error, (Bail, Suspend)) else _thrown(error, dumps)
    effects: Effects | None = None
    if context is not None:
        context.store.ended = name
        effects = context.effects() if raised is None or isinstance(raised, Bail) else context.messages_only()
    try:
        return bytes(dumps(_Home(value, raised, effects)))
    except Exception as error:
        if raised is None or isinstance(raised, Bail):
            part = _unpicklable_part(value, effects)
            raised = ShippingError(f"the result of action {name!r} cannot travel back ({part}): {error}")
        return bytes(dumps(_Home(None, raised, None)))


def _unpicklable_part(value: Any, effects: Effects | None) -> str:
    parts: list[tuple[Any, str]] = [(value, "result")]
    if effects is not None:
        written = {**effects.delta.puts, **effects.delta.appends}
        parts += [(written, "ctx.store"), (effects.inserted, "ctx.insert"), (effects.events, "ctx.emit")]
    return next(filter(None, (_unpicklable(part, path) for part, path in parts)), "result")


def _awaited_here(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Perform a call, and await the coroutine that a plain function may return: it cannot travel."""
    value = perform(function, args, kwargs)
    if not is_awaited(value):
        return value
    import asyncio

    async def awaited() -> Any:
        return await value

    return asyncio.run(awaited())


def _thrown(error: BaseException, dumps: Callable[[Any], bytes]) -> _Thrown:
    with suppress(Exception):  # the exception may not allow it
        error.__traceback__ = frames_of_users(error.__traceback__)
    told = "".join(traceback.format_exception(error)).rstrip()
    found: bytes | None = None
    # Many exceptions pass a message on to `Exception`, and are made again from it as if from their own arguments.
    for candidate in (_Pickled(partial(_by_itself, error)), error, _Pickled(partial(_by_parts, error))):
        try:
            pickled = bytes(dumps(candidate))
            copy = pickle.loads(pickled)
        except Exception:
            continue
        if type(copy) is type(error):
            found = found or pickled
            if message_of(copy) == message_of(error):
                return _Thrown(pickled, told)
    return _Thrown(found, told)


class _Pickled:
    """Stands for an exception that is pickled in this way."""

    def __init__(self, reduce: Callable[[], str | tuple[Any, ...]]) -> None:
        self.reduce = reduce

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.reduce()


def _by_itself(error: BaseException) -> str | tuple[Any, ...]:
    """Return its own reduction, whatever others have registered with `copyreg`.

    What tblib registers, which Dask loads, loses the code of a `SystemExit` and the parts of a `UnicodeError`.
    """
    return error.__reduce_ex__(pickle.DEFAULT_PROTOCOL)


def _by_parts(error: BaseException) -> tuple[Any, ...]:
    """Return a reduction to what an exception consists of, without its `__init__`."""
    return _copied, (type(error), error.args, vars(error))


def _copied(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    made = kind.__new__(kind, *args)
    vars(made).update(state)
    return made


# In this process.


def shipped(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the function and the arguments to submit; raises `ShippingError` for a value that cannot be sent."""
    # Equal submissions count as one on Dask, where functions are taken for pure: the nonce keeps calls apart.
    return perform_shipped, _packed(step, args, kwargs), os.urandom(16)


def receive(step: Step, reply: bytes, sent: Arguments) -> Any:
    """Return the outcome of a shipped call: its value, or `Raised`; its context is updated here."""
    try:
        home: _Home = pickle.loads(reply)
    except Exception as error:
        raise ShippingError(f"the result of action {step.name!r} cannot be loaded here: {error}") from error
    context = _context_among(*sent)
    if context is not None and home.effects is not None:
        context.catch_up(home.effects)
    if home.raised is None:
        return home.value
    return Raised(_caught(home.raised) if isinstance(home.raised, _Thrown) else home.raised)


def _caught(thrown: _Thrown) -> BaseException:
    """Return the exception of a call in another process, or else a description of it."""
    try:
        error = None if thrown.pickled is None else pickle.loads(thrown.pickled)
    except Exception:
        error = None
    if not isinstance(error, BaseException):
        return RunError(f"{thrown.told.splitlines()[-1]} (an exception that cannot be pickled)\n{thrown.told}")
    # Not by `add_note`, which an exception that takes no attributes refuses.
    vars(error)["__notes__"] = [*getattr(error, "__notes__", []), f"in another process:\n{thrown.told}"]
    return error


# Executors that end.


def broken(executor: Executor | None, names: Sequence[str], error: BaseException | None) -> ExecutorError:
    """Return the error of an executor that is broken (or has cancelled its calls: no error) while it had these."""
    kind, calls = type(executor).__name__, _listed(names)
    if error is None:
        return ExecutorError(
            f"the {kind} of the run has cancelled the calls of {calls}: was it shut down? It must stay open until the run "
            f"has ended"
        )
    hint = (
        "the exception of an initializer is in the log of concurrent.futures"
        if executor is not None and is_local(executor)
        else "if it is so at every start: is what starts the run behind `if __name__ == '__main__':`?"
    )
    ended = WorkerDiedError(
        f"the {kind} of the run is broken: a worker died, or could not begin, while it had the calls of {calls}: "
        f"{error} ({hint})"
    )
    ended.__cause__ = error
    return ended


def refused(executor: Executor, name: str, error: Exception) -> ExecutorError:
    """Return the error of an executor that does not take a call, perhaps as it was shut down."""
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    is_shut = isinstance(error, RuntimeError) and any(word in str(error) for word in ("shut", "closed"))
    advice = ". It must stay open until the run has ended" if is_shut else ""
    return ExecutorError(
        f"the {type(executor).__name__} of the run does not take the call of action {name!r}: {kind}{error}{advice}"
    )


# The errors of executors that continue without the worker that died: of Dask, Ray and executorlib.
_DEATHS: Final = frozenset(
    {"KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ExecutorlibSocketError"}
)


def lost(executor: Executor | None, name: str, error: Exception) -> ExecutorError:
    """Return the error of an executor that has lost a call, and lives on: what the call itself raises, it returns."""
    if type(error).__name__ in _DEATHS:
        ended: ExecutorError = WorkerDiedError(f"a worker died while it had the call of action {name!r}: {error}")
    else:
        ended = ExecutorError(
            f"the {type(executor).__name__} of the run could not perform the call of action {name!r}, or return its "
            f"result: {type(error).__name__}: {error}"
        )
    ended.__cause__ = error
    return ended


_LISTED: Final = 5


def _listed(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _LISTED
    return ", ".join(map(repr, distinct[:_LISTED])) + (f" and {more} more actions" if more > 0 else "")


def _context_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Context | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Context)), None)


def _packed(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pickle a call: the action by reference, or its function by value where it is of `__main__` or a notebook."""
    rest = list(args), dict(kwargs)
    companions = [companion() for companion in COMPANIONS.get()]
    if getattr(step.function, "__module__", None) != "__main__":
        try:
            return pickle.dumps((step.name, step.timeout, step.action, False, *rest, companions))
        except Exception as error:
            raise _cannot_travel(step, rest, error) from error
    try:
        import_module("cloudpickle")
    except ImportError as error:
        raise ShippingError(
            f"action {step.name!r} is defined in __main__ (a script or a notebook), which other processes do not import: "
            f"move it to a module, or pip install 'flowdeco[cloudpickle]' to send the function itself"
        ) from error
    try:
        return _dumps_by_value((step.name, step.timeout, step.function, True, *rest, companions))
    except Exception as error:
        raise _cannot_travel(step, rest, error) from error


def _dumps_by_value(value: Any, *, homewards: bool = False) -> bytes:
    """Pickle what `__main__` or a notebook defines by value; on the way home, its actions by reference."""
    cloudpickle: Any = import_module("cloudpickle")

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is Action:  # cloudpickle would take it for its function
                return _reduced(obj, homewards)
            return super().reducer_override(obj)  # pyright: ignore

    buffer = io.BytesIO()
    Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)  # pyright: ignore
    return buffer.getvalue()


def _reduced(action: Action[..., Any], homewards: bool) -> tuple[Any, ...]:
    function, options = action.__wrapped__, action_options(action)
    try:
        reduced = action.__reduce__()
    except UnreferencedError:
        return Action, (function, options, dict(bound_of(action)))
    if homewards or origin_of(action) is not None or getattr(function, "__module__", None) != "__main__":
        return reduced
    # Other processes may have another `__main__`, or none; the action that comes home is the one that left.
    return (_arrived, (function, options, reduced[1][0])) if reduced[0] is load else reduced


def _arrived(function: Any, options: Any, reference: Any) -> Action[..., Any]:
    return Action(function, options, origin=reference)


def _cannot_travel(step: Step, rest: tuple[list[Any], dict[str, Any]], error: Exception) -> ShippingError:
    args, kwargs = rest
    positional = (wanted.name for wanted in step.inputs if not wanted.by_keyword)
    for name, value in (*zip(positional, args, strict=False), *kwargs.items()):
        path = _unpicklable(value, name)
        if path:
            return ShippingError(
                f"the arguments of action {step.name!r} cannot travel to another process: {path}: {error}"
            )
    return ShippingError(f"action {step.name!r} cannot travel to another process: {error}")


def _unpicklable(value: Any, path: str) -> str:
    """Return the path of the innermost part of a value that cannot be pickled, "" where all of it can."""
    found = culprit(value, path, pickle.dumps, _parts)
    return found[0] if found is not None else ""


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Context):
        return [(f".store[{shown_key(key)}]", part) for key, part in value.store.items()]
    if isinstance(value, Unit):  # its own error names the part that cannot be referenced
        return ()
    return all_parts(value)
