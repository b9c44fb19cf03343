"""Questions about a user's function: its name, its signature, a call with some values fixed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, cast

from flowdeco.errors import DefinitionError


def function_name(function: Any) -> str:
    """Return the name of a callable; also for a classmethod or staticmethod object."""
    name = getattr(function, "__name__", None) or getattr(getattr(function, "__func__", None), "__name__", None)
    if not name:
        raise DefinitionError(f"the {type(function).__name__} {function!r} has no name: write action(name=...)(...)")
    return str(name)


def underlying(function: Any) -> Any:
    """Return the function in a classmethod or staticmethod object, anything else as it is."""
    return cast("Any", function).__func__ if isinstance(function, (classmethod, staticmethod)) else function


def signature_of(function: Any, name: str) -> inspect.Signature:
    """Return the signature, without evaluating annotations; a `DefinitionError` if there is none."""
    try:
        return inspect.signature(underlying(function))
    except (ValueError, TypeError) as error:
        raise DefinitionError(
            f"action {name!r} has no signature ({error}): wrap it in a function that names its parameters"
        ) from None


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
    first = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    if not any(name in bound for name in first):
        return function(*args, **{**bound, **kwargs})
    rest = iter(args)
    leading = [bound[name] if name in bound else next(rest) for name in first]
    others = {name: value for name, value in bound.items() if name not in first}
    return function(*leading, *rest, **{**others, **kwargs})
