"""Executors: a serial one for tests, and the shipping of calls to other processes.

Any `concurrent.futures.Executor` will do; only calls of functions go there, with their arguments. To threads they go as
they are. To anything else (processes, interpreters, a cluster) they are pickled here, so that a value
that cannot be pickled is named before anything is submitted. An action that asks for `ctx` receives a detached one,
whose effects come back with the result.
"""

from __future__ import annotations

import os
import pickle
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeAlias, cast

from flowdeco.engine.context import Context, Effects
from flowdeco.engine.requests import Chore, Raised
from flowdeco.engine.results import exhaust
from flowdeco.errors import Bail, Cancelled, RunError, ShippingError, Suspend, WorkerDiedError
from flowdeco.model.definitions import Unit
from flowdeco.model.paths import all_parts, culprit, shown_key
from flowdeco.model.wiring import Step

__all__ = ["is_local", "perform", "serial", "ship"]

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


def perform(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Call, and run a generator to its end where it was made."""
    value = function(*args, **(kwargs or {}))
    return exhaust(cast("Any", value)) if type(value) is types.GeneratorType else value


# In the other process.


class _Home(NamedTuple):
    """The reply of a call in another process: its value or its exception, and its effects on the context."""

    value: Any
    raised: BaseException | None
    effects: Effects | None


def perform_shipped(payload: bytes, nonce: bytes) -> bytes:
    """Perform a pickled call in another process; the result is pickled there, so that an unpicklable part is named.

    Exceptions travel as values, too: with them come the events that the action reported before it failed.
    """
    try:
        name, function, by_value, args, kwargs, companions = pickle.loads(payload)
    except Exception as error:
        refused = ShippingError(f"the worker cannot load what was sent to it: {type(error).__name__}: {error}")
        return pickle.dumps(_Home(None, refused, None))
    dumps = import_module("cloudpickle").dumps if by_value else pickle.dumps
    context = _context_among(args, kwargs)
    value: Any = None
    raised: BaseException | None = None
    try:
        with ExitStack() as around:
            for companion, argument in companions:
                around.enter_context(companion(argument))
            value = perform(getattr(function, "__wrapped__", function), args, kwargs)
    except (Bail, Suspend) as signal:
        raised = signal
    except BaseException as error:
        raised = _travelling(error, dumps)
    effects = context.effects() if context is not None else None
    try:
        return bytes(dumps(_Home(value, raised, effects)))
    except Exception as error:
        if raised is None or isinstance(raised, Bail):
            part = _unpicklable_part(value, effects)
            raised = ShippingError(f"the result of action {name!r} cannot travel home ({part}): {error}")
        return bytes(dumps(_Home(None, raised, None)))


def _unpicklable_part(value: Any, effects: Effects | None) -> str:
    parts: list[tuple[Any, str]] = [(value, "result")]
    if effects is not None:
        written = {**effects.delta.puts, **effects.delta.appends}
        parts += [(written, "ctx.store"), (effects.inserted, "ctx.insert"), (effects.messages, "ctx.emit")]
    return next(filter(None, (_unpicklable(part, path) for part, path in parts)), "result")


def _travelling(error: BaseException, dumps: Callable[[Any], bytes]) -> BaseException:
    """Return an exception that survives the way back: itself, or else a description of it."""
    told = "".join(traceback.format_exception(error)).rstrip()
    try:
        same = type(pickle.loads(dumps(error))) is type(error)
    except Exception:
        same = False
    if not same:
        return RunError(f"{type(error).__name__}: {error} (an exception that cannot be pickled)\n{told}")
    error.add_note(f"in another process:\n{told}")
    return error


# In this process.


def ship(executor: Executor, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Future[bytes]:
    """Submit a call that is to be performed elsewhere; raises `ShippingError` for a value that cannot be sent."""
    payload = _packed(step, args, kwargs)
    # Equal submissions count as one on Dask, where functions are taken for pure: the nonce keeps calls apart.
    try:
        return executor.submit(perform_shipped, payload, os.urandom(16))
    except BrokenExecutor as error:
        raise _died(step, error) from error


def receive(step: Step | Chore, future: Future[Any], shipped: Arguments | None) -> Any:
    """Return the outcome of a submitted call: its value, or `Raised`; a shipped one also updates its context here."""
    if future.cancelled():
        return Raised(Cancelled(f"the call of action {step.name!r} was cancelled before it began"))
    error = future.exception()
    if error is not None:
        return Raised(_died(step, error) if _means_death(error) else error)
    if shipped is None:
        return future.result()
    try:
        home: _Home = pickle.loads(future.result())
    except Exception as error:
        raise ShippingError(f"the result of action {step.name!r} cannot be loaded here: {error}") from error
    context = _context_among(*shipped)
    if context is not None and home.effects is not None:
        context.catch_up(home.effects)
    return home.value if home.raised is None else Raised(home.raised)


def _context_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Context | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Context)), None)


def _means_death(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"  # of dask.distributed


def _died(step: Step | Chore, error: BaseException) -> WorkerDiedError:
    died = WorkerDiedError(
        f"a worker died while action {step.name!r} was with it: {error} "
        f"(if it is so at every start: is what starts the run behind `if __name__ == '__main__':`?)"
    )
    died.__cause__ = error
    return died


def _packed(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pickle a call: the action by reference, or its function by value where it is of `__main__` or a notebook."""
    rest = list(args), dict(kwargs)
    companions = [companion() for companion in COMPANIONS.get()]
    if getattr(step.function, "__module__", None) != "__main__":
        try:
            return pickle.dumps((step.name, step.action, False, *rest, companions))
        except Exception as error:
            raise _cannot_travel(step, rest, error) from error
    try:
        cloudpickle: Any = import_module("cloudpickle")
    except ImportError as error:
        raise ShippingError(
            f"action {step.name!r} is defined in __main__ (a script or a notebook), which other processes do not import: "
            f"move it to a module, or pip install 'flowdeco[cloudpickle]' to send the function itself"
        ) from error
    try:
        return bytes(cloudpickle.dumps((step.name, step.function, True, *rest, companions)))
    except Exception as error:
        raise _cannot_travel(step, rest, error) from error


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
