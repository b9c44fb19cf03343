"""Values as bytes, by pickle: the default.

A journal in pickle is as trusted as code: anyone who can write the file can run code where it is read.
"""

from __future__ import annotations

import functools
import io
import pickle
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final, NoReturn, TypeAlias, cast

from flowdeco.durable.apart import Unpickler, is_large, load, set_apart
from flowdeco.durable.blobs import LARGE
from flowdeco.durable.lookup import current, find, place
from flowdeco.errors import JournalError, RunError, SerializationError, UnreferencedError, frames_of_users
from flowdeco.model.paths import Parts, all_parts, culprit, shown_key
from flowdeco.model.references import Called, Changed

__all__ = ["OutlineCodec", "PickleCodec", "stand_in"]

_PROTOCOL: Final = 5
_CLASS: Final = pickle.STACK_GLOBAL[0]  # a payload without this byte, an `int`, has only builtin values in it


class PickleCodec:
    """Pickle, protocol 5; definitions go by reference.

    Objects of `__main__` and notebooks that pickle itself cannot write, lambdas and local classes, are left to
    cloudpickle if that is installed. Classes and functions that `__main__` still has go by reference all the same: a
    resumed script finds its own classes, not copies of them.
    """

    name = "pickle"

    def encode(self, value: Any, what: str) -> bytes:
        """Return the value as bytes; raises `SerializationError` naming `what` and the path of the part that cannot."""
        return self._encoded(value, what, _dumped)

    def encode_apart(self, value: Any, what: str) -> bytes:
        """Return the value as a `Payload` if there are large parts in it, and otherwise as `encode` does."""
        return self._encoded(value, what, set_apart if what == "inputs" else _dumped_apart)

    def _encoded(self, value: Any, what: str, dumps: _Dumps) -> bytes:
        try:
            payload = dumps(value)
        except Exception as error:
            return self._encode_otherwise(value, what, error, dumps)
        # Reading a larger one back would take longer than writing it.
        if type(payload) is bytes and len(payload) < LARGE and _CLASS in payload:
            self._check_readable(value, what)
        return payload

    def _encode_otherwise(self, value: Any, what: str, reason: Exception, dumps: _Dumps) -> bytes:
        """Encode a value that pickle refuses: by cloudpickle, or without an error that cannot be pickled."""
        by_value = None if isinstance(_root(reason), (UnreferencedError, RecursionError)) else _by_value()

        def attempt(part: Any) -> bytes:
            return dumps(part) if by_value is None else dumps(part, by_value)

        try:
            return attempt(_with_described_error(value, attempt))
        except Exception as error:
            hint = "" if by_value is not None else _hint(error)
            refuse(value, what, attempt, error, hint=hint, parts=_parts)

    def _check_readable(self, value: Any, what: str) -> None:
        """Raise `SerializationError` for an object that pickles and cannot be loaded again: an enum of objects, say."""
        if type(value) is dict and "inserted" in value and what != "inputs":
            value = {key: part for key, part in cast("dict[Any, Any]", value).items() if key != "inserted"}

        def read_back(part: Any) -> None:
            payload = pickle.dumps(part, _PROTOCOL)
            if _CLASS in payload:
                self.decode(payload)

        try:
            read_back(value)
        except Exception as error:
            refuse(value, what, read_back, error, parts=_parts)

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged, or refers to code that is gone."""
        try:
            return pickle.loads(payload) if type(payload) is bytes else load(payload)
        except (TypeError, AttributeError, ImportError):
            pass  # perhaps an exception whose `__init__` takes other arguments than it passes on, or a moved name
        except Exception as error:
            raise JournalError(_unloadable(error)) from error
        try:
            return load(payload, _Lenient)
        except Exception as error:
            raise JournalError(_unloadable(error)) from error


def _dumped(value: Any, pickler: type[pickle.Pickler] | None = None) -> bytes:
    if pickler is None:
        return pickle.dumps(value, _PROTOCOL)
    buffer = io.BytesIO()
    pickler(buffer, _PROTOCOL).dump(value)
    return buffer.getvalue()


def _dumped_apart(value: Any, pickler: type[pickle.Pickler] = pickle.Pickler) -> bytes:
    """Return the pickle of a value, as a `Payload` if there is anything large in it; most values have nothing large."""
    if pickler is not pickle.Pickler or (type(value) is tuple and is_large(value[-1])):
        return set_apart(value, pickler)
    try:
        payload = pickle.dumps(value, _PROTOCOL, buffer_callback=_is_small)
    except _IsLarge:
        return set_apart(value)
    return payload if len(payload) < LARGE else set_apart(value)


_Dumps: TypeAlias = "Callable[..., bytes]"


class _IsLarge(Exception):
    """A buffer is large."""


def _is_small(buffer: pickle.PickleBuffer) -> bool:
    """Let a buffer be in the pickle, unless it is large."""
    if buffer.raw().nbytes >= LARGE:
        raise _IsLarge
    return True


def _root(error: BaseException) -> BaseException:
    """Return the error of the value in a definition that cannot be pickled; that of the definition if it is to blame."""
    while isinstance(error, UnreferencedError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _hint(error: BaseException) -> str:
    error = _root(error)
    text = str(error)
    if any(sign in text for sign in ("<locals>", "<lambda>", "__main__")) and not isinstance(error, UnreferencedError):
        return ". Move it to module level, or: pip install 'flowdeco[cloudpickle]'"
    return ""


def _unloadable(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "cloudpickle":
        return "a value of this run was written with cloudpickle, which is missing: pip install 'flowdeco[cloudpickle]'"
    if isinstance(error, (AttributeError, ImportError)):
        return (
            f"a value of this run refers to code that no longer exists: {error}. To resume, put it back under its name"
        )
    return f"a value of this run cannot be read back: {type(error).__name__}: {error}"


def refuse(
    value: Any,
    what: str,
    attempt: Callable[[Any], object],
    error: Exception,
    *,
    hint: str = "",
    parts: Parts,
) -> NoReturn:
    """Raise the error that names the innermost part for which the attempt fails; its cause is that of user code, if any."""
    path, reason = _place(value, what, attempt, parts) or (what, error)
    problem = f"{_described(reason)}{hint}"
    frames = frames_of_users(reason.__traceback__)
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith("cloudpickle"):
        frames = frames.tb_next
    reason.__suppress_context__ = True
    cause = None if frames is None else reason.with_traceback(frames)  # raised by a `__getstate__`, say
    raise SerializationError(f"{path}: {problem}" if path else problem) from cause


def _described(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    speaks_for_itself = isinstance(error, (TypeError, AttributeError, pickle.PicklingError, JournalError))
    return str(error) if speaks_for_itself else f"{type(error).__name__}: {error}"


def _place(value: Any, what: str, attempt: Callable[[Any], object], parts: Parts) -> tuple[str, Exception] | None:
    """Look for the culprit in a payload, in which values that were written or changed are named by their key."""
    if type(value) is not dict or what == "inputs":
        return culprit(value, what or "value", attempt, parts)
    start = f"{what}: " if what else ""
    for section, content in cast("dict[Any, Any]", value).items():
        for path, part in _sections(section, content):
            found = culprit(part, start + path, attempt, parts)
            if found is not None:
                return found
    return None


def _sections(section: Any, content: Any) -> Iterable[tuple[str, Any]]:
    if section == "entering" and isinstance(content, list):
        entries = cast("list[Mapping[Any, Any]]", content)
        return [each for entry in entries for name, part in entry.items() for each in _sections(name, part)]
    if section in {"puts", "appends", "changes"} and isinstance(content, Mapping):
        return [(f"store[{shown_key(key)}]", part) for key, part in cast("Mapping[Any, Any]", content).items()]
    return [(section if isinstance(section, str) else f"[{section!r}]", content)]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value; of a definition, those that it was made with."""
    from flowdeco.model.declare import StageTemplate
    from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, bound_of
    from flowdeco.model.references import origin_of

    if isinstance(value, Stage):
        origin = origin_of(value)
        while isinstance(origin, Changed):
            origin = origin_of(origin.base)
        yield from (
            all_parts(origin) if isinstance(origin, Called) else ((f"[{shown_key(it.name)}]", it) for it in value)
        )
    elif isinstance(value, Action):
        yield from all_parts(bound_of(cast("Action[..., Any]", value)))
    elif isinstance(value, StageTemplate):
        return  # its error names it
    elif isinstance(value, (Pipeline, Parallel)):
        yield from ((f"[{index}]", unit) for index, unit in enumerate(value.units))
    else:
        yield from all_parts(value)


# Exceptions: a failure must not cause another one because it cannot be written or read as it was.


def described_error(error: BaseException) -> RunError:
    """Return an error that describes another one."""
    described = RunError(f"{type(error).__qualname__}: {error}")
    for note in getattr(error, "__notes__", ()):
        described.add_note(note)
    return described


def remade_exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Return an exception with these arguments, whose own `__init__` has not run."""
    builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    made: BaseException = cast("Any", builtin).__new__(cls, *args)
    made.args = args
    return made


def _with_described_error(value: Any, attempt: Callable[[Any], object]) -> Any:
    """Return the payload with its record's error as a string, if that error cannot be written."""
    if type(value) is not dict:
        return value
    payload = cast("dict[Any, Any]", value)
    error = payload.get("error")
    if isinstance(error, BaseException):
        try:
            attempt(error)
        except Exception:
            return {**payload, "error": described_error(error)}
    return payload


class _Lenient(Unpickler):
    """Makes exceptions without their `__init__` where that refuses the arguments, and follows moved names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _tolerant(super().find_class(*current(module_name, global_name)))


def _tolerant(found: Any) -> Any:
    """Return what makes an exception of a class whatever its arguments; anything else as it is."""
    is_error = isinstance(found, type) and issubclass(found, BaseException) and found.__module__ != "builtins"
    return cast("Any", functools.partial(_made, found) if is_error else found)


def _made(cls: type[BaseException], *args: Any) -> BaseException:
    try:
        return cls(*args)
    except TypeError:
        return remade_exception(cls, args)


class OutlineCodec(PickleCodec):
    """Reads what happened in a run without importing its code: values of its own classes have stand-ins."""

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged."""
        try:
            return load(payload, _WithStandIns)
        except Exception as error:
            raise JournalError(_unloadable(error)) from error


_KNOWN: Final = frozenset({"collections", "datetime", "decimal", "fractions", "pathlib", "uuid", "flowdeco.errors"})


class StandIn(RunError):
    """A value whose class is not imported: also an error, as which most are read."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            super().__setstate__({key: value for key, value in cast("dict[Any, Any]", state).items() if key != "args"})

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Take an item of a list, and drop it."""


def stand_in(module: str, name: str) -> type[StandIn]:
    """Return the class of the stand-ins for instances of the class of this name."""
    return type(name.rpartition(".")[2], (StandIn,), {"__module__": module})


class _WithStandIns(Unpickler):
    """Calls nothing but classes of these modules: not those that they import, by a name such as `pathlib:io.FileIO`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if "." not in global_name and (module_name == "builtins" or module_name in _KNOWN):
            found: Any = super().find_class(module_name, global_name)
            if isinstance(found, type) and found.__module__.partition(".")[0] == module_name.partition(".")[0]:
                return _tolerant(found)
        return stand_in(module_name, global_name)


# By value, where there is cloudpickle.


def _by_value() -> Any:
    """Return the pickler of cloudpickle; None where that is not installed."""
    try:
        cloudpickle: Any = import_module("cloudpickle")
    except ImportError:
        return None
    from flowdeco.model.definitions import Unit

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Unit):  # a proxy of a function, which cloudpickle would take it for
                return NotImplemented
            if isinstance(obj, (type, types.FunctionType)) and _is_found(obj):  # a reference will do
                return NotImplemented
            return super().reducer_override(obj)  # pyright: ignore

    return Pickler


def _is_found(thing: Any) -> bool:
    return isinstance(thing.__module__, str) and find(place(thing)) is thing
