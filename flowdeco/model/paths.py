"""The path, for an error message, of the part of a value that cannot be written or sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

__all__ = ["all_parts", "culprit", "items", "shown_key"]

_DEEPEST: Final = 32


def shown_key(key: object) -> str:
    """Return a key as it is written between brackets, strings in double quotes."""
    if type(key) is str and '"' not in key and "\\" not in key and key.isprintable():
        return f'"{key}"'
    return repr(key)


Parts = Callable[[Any], Iterable[tuple[str, Any]]]


def culprit(
    value: Any, path: str, attempt: Callable[[Any], object], parts: Parts | None = None
) -> tuple[str, Exception] | None:
    """Return the path of the innermost part that the attempt fails for, and its error; None if it succeeds.

    `parts` yields the parts of a value, each with its addition to the path; by default items and attributes.

    >>> culprit({"rows": [1, {2}]}, "report", __import__("json").dumps)
    ('report["rows"][1]', TypeError('Object of type set is not JSON serializable'))
    """
    return _culprit(value, path, attempt, parts or all_parts, set(), _DEEPEST)


def _culprit(
    value: Any, path: str, attempt: Callable[[Any], object], parts: Parts, above: set[int], depth: int
) -> tuple[str, Exception] | None:
    try:
        attempt(value)
    except Exception as error:
        found = path, error
    else:
        return None
    if depth and not isinstance(found[1], RecursionError) and id(value) not in above:
        above.add(id(value))
        for name, part in parts(value):
            inner = _culprit(part, path + name, attempt, parts, above, depth - 1)
            if inner is not None:
                return inner
    return found


def all_parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a value, or its attributes."""
    yield from items(value)
    if not isinstance(value, (type, Mapping, list, tuple, deque, AbstractSet)):
        yield from _attributes(value)


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a collection, and the keys of a mapping."""
    if isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield f"[{shown_key(key)}]", part
            yield f" (the key {key!r})", key
    elif isinstance(value, (list, tuple, deque)):
        names: Any = getattr(cast("Any", value), "_fields", None)
        for index, part in enumerate(cast("Iterable[Any]", value)):
            yield f".{names[index]}" if names else f"[{index}]", part
    elif isinstance(value, AbstractSet):
        for part in cast("Iterable[Any]", value):
            yield f" (the element {part!r})", part


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    for name, part in cast("dict[str, Any]", getattr(value, "__dict__", {})).items():
        yield f".{name}", part
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                yield f".{name}", getattr(value, name)
    for name in ("func", "args", "keywords", "__self__"):  # of partial objects, exceptions, bound methods
        if hasattr(value, name) and not isinstance(getattr(value, name), type):
            yield f".{name}", getattr(value, name)
