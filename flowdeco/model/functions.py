"""Questions about a user's function: its name, its signature, a call with some values fixed."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from flowdeco.errors import DefinitionError, shortened


def function_name(function: Any) -> str:
    """Return the name of a callable; also for a classmethod or staticmethod object."""
    name = getattr(function, "__name__", None) or getattr(getattr(function, "__func__", None), "__name__", None)
    if not name:
        raise DefinitionError(
            f"the {type(function).__name__} {shortened(function)} has no name: write action(name=...)(...)"
        )
    return str(name)


def underlying(function: Any) -> Any:
    """Return the function in a classmethod or staticmethod object, anything else as it is."""
    return cast("Any", function).__func__ if isinstance(function, (classmethod, staticmethod)) else function


def is_same_function(one: Any, other: Any) -> bool:
    """Whether two callables run the same code: equal, or one function bound to other objects or values."""
    if one is other:
        return True
    first, second = (getattr(as_written(function), "__code__", None) for function in (one, other))
    return first == second if first is not None else bool(one == other)


def signature_of(function: Any, name: str) -> inspect.Signature:
    """Return the signature, without evaluating annotations; a `DefinitionError` if there is none."""
    try:
        return inspect.signature(underlying(function))
    except (ValueError, TypeError) as error:
        raise DefinitionError(
            f"action {name!r} has no signature ({error}): wrap it in a function that names its parameters"
        ) from None


def by_position(function: Any, parameters: Sequence[inspect.Parameter]) -> int:
    """Return how many of these parameters can be passed by position, counted from the first.

    All of those that the function takes so, unless it is decorated: a signature is that of the innermost function, and
    a wrapper around it may take keywords only.
    """
    positional = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    wrappers = list(_wrappers(function))
    least = sum(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in positional)
    for count in range(len(positional), least - 1, -1) if wrappers else ():
        named = dict.fromkeys(p.name for p in parameters[count:])
        if all(_binds(wrapper, [None] * count, named) for wrapper in wrappers):
            return count
    return len(positional)


def _wrappers(function: Any) -> Iterator[inspect.Signature]:
    """Yield the signatures of the decorators' wrappers around a function, from the outside in."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        function = underlying(function)
        if isinstance(function, types.MethodType):
            args, function = (function.__self__, *args), function.__func__
        elif isinstance(function, functools.partial):
            partial = cast("functools.partial[Any]", function)
            args, kwargs, function = (*partial.args, *args), {**partial.keywords, **kwargs}, partial.func
        else:
            wrapped = getattr(function, "__wrapped__", None)
            if wrapped is None and not hasattr(function, "__signature__"):
                return
            try:
                yield inspect.signature(functools.partial(_bare(function), *args, **kwargs), follow_wrapped=False)
            except (ValueError, TypeError):  # of a builtin, which has none
                return
            if wrapped is None:
                return
            function = wrapped


def _bare(function: Any) -> Any:
    """Return a function without its attributes: without the signature that it may pretend to have."""
    if not isinstance(function, types.FunctionType):
        return function
    bare = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    bare.__kwdefaults__ = function.__kwdefaults__
    return bare


def _binds(signature: inspect.Signature, args: list[None], kwargs: dict[str, None]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


_NAMED: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def bindable(function: Any, name: str) -> tuple[str, ...] | None:
    """Return the parameters that `bind` can fix, None for any (the function takes `**kwargs`)."""
    parameters = signature_of(function, name).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in _NAMED)


def call_bound(function: Any, bound: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call with some values fixed, as `functools.partial` would, positional-only parameters included."""
    parameters = inspect.signature(function).parameters.values()
    first = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY}
    if first.keys().isdisjoint(bound):
        return function(*args, **{**bound, **kwargs})
    rest = iter(args)
    leading = [bound[name] if name in bound else next(rest, default) for name, default in first.items()]
    missing = [name for name, value in zip(first, leading, strict=True) if value is inspect.Parameter.empty]
    if missing:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{name}() missing positional-only arguments: {', '.join(map(repr, missing))}")
    others = {name: value for name, value in bound.items() if name not in first}
    return function(*leading, *rest, **{**others, **kwargs})


_DEEPEST: Final = 100  # decorators around decorators; some objects have every attribute


def as_written(function: Any) -> Any:
    """Return the function that a decorator, a method, a partial or an object with `__call__` calls, or the thing itself.

    It is the function as it was written: it has the annotations, and sees the names in them.
    """
    for _ in range(_DEEPEST):
        kind = cast("Any", type(function))
        if kind is types.FunctionType and not hasattr(function, "__wrapped__"):
            break
        inner: Any = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
        if inner is None and issubclass(kind, functools.partial):
            inner = function.func
        if inner is None:
            call: Any = getattr(cast("object", kind), "__call__", None)
            return call if type(call) is types.FunctionType and kind is not types.FunctionType else function
        function = inner
    return function


def annotations_of(function: Any) -> Mapping[str, Any]:
    """Return the annotations of a function, those that are strings as strings; empty if it has none."""
    if sys.version_info >= (3, 14):  # pragma: no cover - annotations are evaluated on access
        import annotationlib

        try:
            return cast("Mapping[str, Any]", annotationlib.get_annotations(function))
        except NameError:
            return cast(
                "Mapping[str, Any]", annotationlib.get_annotations(function, format=annotationlib.Format.STRING)
            )
        except TypeError:
            return {}
    found: Mapping[str, Any] = getattr(function, "__annotations__", None) or {}
    return found


def function_run(called: Any) -> tuple[types.FunctionType, int] | None:
    """Return the Python function that a call runs, and the index of the parameter that takes its first argument.

    None for anything else.
    """
    first = 0
    while isinstance(called, functools.partial):
        partial = cast("functools.partial[Any]", called)
        called, first = partial.func, first + len(partial.args)
    if not isinstance(called, (types.FunctionType, types.MethodType)):
        called, first = getattr(cast("object", type(called)), "__call__", None), first + 1
    if isinstance(called, types.MethodType):
        called, first = called.__func__, first + 1
    return (called, first) if isinstance(called, types.FunctionType) else None


def instructions_of(code: types.CodeType) -> list[dis.Instruction]:
    """Return the instructions of code that do something."""
    return [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]


def attribute_uses(code: types.CodeType, parameter: str | int) -> frozenset[tuple[str, str]] | None:
    """Return the attributes of a parameter, given by its name or index, that code has, each with LOAD, STORE or DELETE.

    None if that cannot be known: the code passes the parameter on, assigns to it, or keeps it in a closure.
    """
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if isinstance(parameter, int):
        parameter = names[parameter] if parameter < code.co_argcount else ""
    if parameter not in names or parameter in code.co_cellvars:
        return None
    uses: set[tuple[str, str]] = set()
    for each, following in itertools.pairwise(instructions_of(code)):
        value: Any = each.argval
        loaded = cast("tuple[Any, ...]", value if isinstance(value, tuple) else (value,))
        if "_FAST" not in each.opname or parameter not in loaded:
            continue
        kind, _, what = following.opname.partition("_")
        is_load = each.opname.startswith("LOAD_FAST") and "STORE" not in each.opname  # of two values, from 3.13 on
        if not is_load or loaded.index(parameter) != len(loaded) - 1 or what not in ("ATTR", "METHOD"):
            return None
        uses.add((kind, str(following.argval)))
    return frozenset(uses)
