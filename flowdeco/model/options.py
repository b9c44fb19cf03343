"""The options of `@action`, `@stage` and `pipeline`, checked where they are given."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from math import inf, isnan
from os import PathLike, fsdecode
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypedDict, cast

from flowdeco.errors import DefinitionError, FlowdecoError, shortened
from flowdeco.model.functions import attribute_uses, function_run
from flowdeco.model.keys import AnyKey, Key, key_name
from flowdeco.model.sentinels import UNSET

if TYPE_CHECKING:
    from datetime import timedelta

    class ActionChanges(TypedDict, total=False):
        """The options of an action that a copy may have changed."""

        name: str
        description: str | None
        tags: Iterable[str]
        returns: Returns
        collect: AnyKey | None
        use: Iterable[Middleware]
        timeout: Duration | None

    class _CommonChanges(TypedDict, total=False):
        name: str
        tags: Iterable[str]

    class StageChanges(_CommonChanges, total=False):
        """The options of a stage that a copy may have changed."""

        title: str | None
        data: Mapping[str, Any] | None
        use: Iterable[Middleware]
        use_actions: Iterable[Middleware]
        local: bool
        timeout: Duration | None
        description: str

    class PipelineChanges(_CommonChanges, total=False):
        """The options of a pipeline that a copy may have changed."""

        title: str | None
        description: str
        use: Iterable[Middleware]
        use_stages: Iterable[Middleware]
        use_actions: Iterable[Middleware]
        timeout: Duration | None

    class ParallelChanges(_CommonChanges, total=False):
        """The options of a parallel group that a copy may have changed."""

        limit: int | None
        merge: Mapping[str, Callable[[Any, Any], Any]] | None
        tolerate: float
        failures: AnyKey | None
        enough: int | None


Returns: TypeAlias = "AnyKey | tuple[AnyKey, ...] | None"
Duration: TypeAlias = "float | timedelta"  # a number is one of seconds


class Middleware(Protocol):
    """A generator function of one argument, the `Call`, with a `yield` where its target runs; or an object like it."""

    def __call__(self, call: Any, /) -> Iterator[Any] | AsyncIterator[Any]:
        """Surround the target: yield once, or again after a failure."""
        ...


class Bar(Protocol):
    """A progress bar: `total` is set to the number of known stages, `update` adds the number that finished since.

    It is closed when the run ends. A bar with `set_postfix_str`, as those of tqdm, also receives the running stage.
    """

    total: Any

    def update(self, n: int, /) -> object:
        """Add to the number of finished stages; negative if some are to run again."""

    def close(self) -> object:
        """Close the bar when the run ends."""


Shown: TypeAlias = "bool | Callable[[int, int, str], object] | Bar | None"


LAST_SECOND: Final = 253_402_300_799.0  # that a datetime can hold


def seconds_of(duration: Duration, what: str, error: type[FlowdecoError] = DefinitionError) -> float:
    """Return the seconds of a sleep, checked; `what` is the sentence's subject and verb, as "the argument is"."""
    seconds = in_seconds(duration)
    if seconds is None or seconds < 0:
        raise error(f"{what} a number of seconds that is not negative, or a timedelta, not {shortened(duration)}")
    if seconds > LAST_SECOND:
        raise error(f"{what} a number of seconds, and {shortened(duration)} of them would end after the year 9999")
    return seconds


def checked_path(path: object, what: str, error: type[FlowdecoError] = DefinitionError) -> str:
    """Return a path as a string."""
    if not isinstance(path, (str, bytes, PathLike)):
        raise error(f"{what} is a path, such as 'runs' or Path('runs'), not {shortened(path)}")
    return fsdecode(cast("str", path))


def checked_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"the name of {what} is a non-empty string, not {shortened(name)}")
    return name


def checked_text(text: object, option: str) -> str | None:
    if text is not None and not isinstance(text, str):
        raise DefinitionError(f"{option} is a string, not {shortened(text)}")
    return text


def checked_count(count: Any, option: str, of: str) -> int | None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise DefinitionError(f"{option} is a positive number of {of}, not {shortened(count)}")
    return count


def checked_tags(tags: object, option: str = "tags") -> frozenset[str]:
    if isinstance(tags, str):
        raise DefinitionError(f"{option} is a collection of strings, not a string: write {option}=[{shortened(tags)}]")
    if not isinstance(tags, Iterable):
        raise DefinitionError(f"{option} is a collection of strings, not {shortened(tags)}")
    found: list[str] = []
    for tag in cast("Iterable[object]", tags):
        if not isinstance(tag, str) or not tag:
            raise DefinitionError(f"{option} is a collection of non-empty strings; {shortened(tag)} is not one")
        found.append(tag)
    return frozenset(found)


def checked_layers(layers: object, option: str = "use") -> tuple[Middleware, ...]:
    """Return the middleware as a tuple; each must be a generator function, or an object whose call is one."""
    if callable(layers) or not isinstance(layers, Iterable):
        instead = "not None" if layers is None else f"write {option}=[{described(layers)}]"
        raise DefinitionError(f"{option} is a list of middleware: {instead}")
    if isinstance(layers, (set, frozenset)):
        raise DefinitionError(f"{option} is a list of middleware, and a set has no order: write {option}=[...]")
    found = tuple(cast("Iterable[Any]", layers))
    for layer in found:
        if not (_is_plain_layer(layer) or (_is_generator_function(layer) and _takes_one(layer))):
            raise DefinitionError(
                f"{placed(layer)} is not middleware: a middleware is a generator function of one argument, "
                f"with a `yield` where the wrapped action or stage runs{_instead_of(layer)}"
            )
        run = function_run(layer)
        wrong = None if run is None else _set_on_call(run[0].__code__, run[1])
        if wrong:
            raise DefinitionError(
                f"{placed(layer)} sets call.{wrong}, and of a call only the outcome can be set: write call.outcome = ... "
                f"for that of an action, call.store[...] = ... for a value that stays, `yield {{...}}` for the target's"
            )
    return found


def _instead_of(layer: Any) -> str:
    """Return advice about a thing that is not middleware."""
    inner = inspect.unwrap(layer)
    if inner is not layer and _is_generator_function(inner):
        code = getattr(layer, "__code__", None)
        decorator = "" if code is None else code.co_qualname.partition(".")[0]
        if decorator in ("contextmanager", "asynccontextmanager"):
            return f". Remove @{decorator}"
        return ". A decorator hides its generator function: remove it, or have the decorated function yield itself"
    if inspect.iscoroutinefunction(layer):
        return ". A coroutine function without a `yield` is not one: yield in the function itself"
    return ". If it returns one, call it" if callable(layer) else ""


@functools.lru_cache(maxsize=256)
def _set_on_call(code: types.CodeType, first: int) -> str | None:
    """Return an attribute that a middleware sets on its call and must not, if its code shows one."""
    uses = attribute_uses(code, first) or ()
    return next((name for kind, name in sorted(uses) if kind == "STORE" and name != "outcome"), None)


def _is_plain_layer(layer: Any) -> bool:
    """Whether its code alone shows that it is middleware; `inspect` takes 30 times as long, in each call of a template."""
    function, first = (
        (layer, 0) if type(layer) is types.FunctionType else (getattr(cast("object", type(layer)), "__call__", None), 1)
    )
    if type(function) is not types.FunctionType or hasattr(layer, "__signature__"):
        return False
    code, named = function.__code__, function.__kwdefaults__
    takes = code.co_argcount - first
    return (
        bool(code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
        and takes >= 1 >= takes - len(function.__defaults__ or ())
        and code.co_kwonlyargcount == len(named or ())
    )


def _is_generator_function(layer: object) -> bool:
    candidates = (layer, getattr(layer, "__call__", None))  # or an object whose call is one
    return any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in candidates)


def _takes_one(layer: Any) -> bool:
    try:
        inspect.signature(layer, follow_wrapped=False).bind(None)
    except (TypeError, ValueError):  # a ValueError: a partial with arguments that its function does not take
        return False
    return True


def described(thing: object) -> str:
    return str(getattr(thing, "__qualname__", None) or shortened(thing, 200))


def placed(function: Any) -> str:
    """Return the name and place of a function; also for a partial, and for an object with `__call__`."""
    if isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    call = getattr(cast("object", type(function)), "__call__", None)
    code = getattr(inspect.unwrap(function), "__code__", None) or getattr(call, "__code__", None)
    return described(function) + (f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else "")


def first_paragraph(docstring: str | None) -> str:
    return inspect.cleandoc(docstring).split("\n\n")[0].strip() if docstring else ""


def is_one_of(value: object, *words: str) -> bool:
    """Whether it is one of these words; an array would compare with each of its elements."""
    return isinstance(value, str) and value in words


def in_seconds(duration: object) -> float | None:
    """Return a number of seconds, or those of a `timedelta`; None for anything else, and for NaN."""
    seconds: object = cast("Any", duration).total_seconds() if hasattr(duration, "total_seconds") else duration
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    try:
        return None if isnan(seconds) else seconds
    except OverflowError:  # an integer that no float can hold
        return inf if seconds > 0 else -inf


def checked_timeout(timeout: Any, option: str = "timeout") -> float | None:
    """Return the timeout in seconds; an infinite one is none."""
    if timeout is None:
        return None
    seconds = in_seconds(timeout)
    if seconds is None or seconds <= 0:
        raise DefinitionError(f"{option} is a positive number of seconds, or a timedelta, not {shortened(timeout)}")
    return None if seconds == inf else float(seconds)


def checked_selectors(selectors: object, option: str = "skip") -> tuple[str, ...]:
    """Return the selectors as a tuple; a bare string is an error."""
    for each in _items(selectors):
        if isinstance(each, (list, tuple, set, frozenset)):
            items = list(cast("Iterable[object]", each))
            names = ", ".join(map(shortened, items[:5])) + ", ..." * (len(items) > 5)
            instead = f"{option}=[{names}]" if option == "skip" else f"{option}({names})"
            raise DefinitionError(f"{option} takes selectors one by one, not in a collection: write {instead}")
    return tuple(sorted(checked_tags(selectors, option)))


def _items(selectors: object) -> tuple[object, ...]:
    return cast("tuple[object, ...]", selectors) if isinstance(selectors, tuple) else ()


def check_run_id(run_id: object) -> None:
    """Raise `DefinitionError` for anything but the id of a run."""
    if not isinstance(run_id, str):
        hint = ": write its .id" if isinstance(getattr(run_id, "id", None), str) else ""
        raise DefinitionError(
            f"a run is named by its id, a string, not by the {type(run_id).__name__} {shortened(run_id)}{hint}"
        )


# The options of definitions.


def checked(of: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a definition, checked and in one form; `of` is its kind, such as "a stage"."""
    return {
        option: checked_name(value, of) if option == "name" else _CHECKS[option](value, option)
        for option, value in options.items()
    }


def _flag(flag: object, option: str) -> bool:
    if not isinstance(flag, bool):
        raise DefinitionError(f"{option} is True or False, not {shortened(flag)}")
    return flag


def _key(key: Any, option: str) -> AnyKey:
    if not (isinstance(key, (str, Key)) and key):
        raise DefinitionError(
            f"{option} names keys of the store: non-empty strings or Key objects, not {shortened(key)}"
        )
    return cast("AnyKey", key)


def _optional_key(key: Any, option: str) -> AnyKey | None:
    return None if key is None else _key(key, option)


def _returns(returns: Any, option: str) -> Returns:
    if isinstance(returns, (tuple, list)):
        keys = tuple(_key(key, option) for key in cast("Sequence[Any]", returns))
        names = list(map(key_name, keys))
        if not names:
            raise DefinitionError(f"{option} names no key: write {option}=None to discard the result")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DefinitionError(
                f"{option} names the key {twice!r} twice, and the second part would replace the first"
            )
        return keys
    return returns if returns is UNSET else _optional_key(returns, option)


def _merge(merge: Any, option: str) -> dict[str, Callable[[Any, Any], Any]]:
    given: Any = {} if merge is None else merge
    if not isinstance(given, Mapping) or not all(map(callable, cast("Mapping[Any, Any]", given).values())):
        raise DefinitionError(
            f"{option} maps keys to functions of two values, as {{'key': operator.add}}, not {shortened(merge)}"
        )
    found = {key_name(key): combine for key, combine in cast("Mapping[Any, Any]", given).items()}
    for name, combine in found.items():
        if not _combines(combine):
            raise DefinitionError(
                f"{option}={{{name!r}: {described(combine)}}}: it is called with two values and returns their combination, "
                f"as a plain function of two arguments does, not a coroutine or generator function"
            )
    return found


def _combines(function: Any) -> bool:
    if _is_generator_function(function) or any(
        map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None)))
    ):
        return False
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of a builtin, which shows none
        pass
    return True


def _tolerance(tolerate: Any, option: str) -> float:
    is_share = isinstance(tolerate, float) and 0 <= tolerate < 1
    if not is_share and (isinstance(tolerate, bool) or not isinstance(tolerate, int) or tolerate < 0):
        raise DefinitionError(
            f"{option} is the number of branches that may fail, or a share of them below 1, as 0.1, not "
            f"{shortened(tolerate)}"
        )
    return cast("float", tolerate)


_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "collect": _optional_key,
    "description": checked_text,
    "enough": lambda count, option: checked_count(count, option, "branches that are to complete"),
    "failures": _optional_key,
    "limit": lambda count, option: checked_count(count, option, "branches that run at once"),
    "local": _flag,
    "merge": _merge,
    "returns": _returns,
    "stream": lambda stream, option: stream,  # checked with the units
    "tags": checked_tags,
    "timeout": checked_timeout,
    "title": checked_text,
    "tolerate": _tolerance,
    "use": checked_layers,
    "use_actions": checked_layers,
    "use_stages": checked_layers,
}
