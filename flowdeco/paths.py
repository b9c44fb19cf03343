"""Where in a value the part is that cannot go where the whole is to go: the path that an error message names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

__all__ = ["culprit", "shown_key"]

_DEEPEST: Final = 32


def shown_key(key: object) -> str:
    """Return a key as it is written between brackets, strings in double quotes."""
    if type(key) is str and '"' not in key and "\\" not in key and key.isprintable():
        return f'"{key}"'
    return repr(key)


def culprit(value: Any, path: str, attempt: Callable[[Any], object]) -> tuple[str, Exception] | None:
    """Return the path of the innermost part that the attempt fails for, and how; None where it succeeds.

    >>> culprit({"rows": [1, {2}]}, "report", __import__("json").dumps)
    ('report["rows"][1]', TypeError('Object of type set is not JSON serializable'))
    """
    return _culprit(value, path, attempt, set(), _DEEPEST)


def _culprit(
    value: Any, path: str, attempt: Callable[[Any], object], above: set[int], depth: int
) -> tuple[str, Exception] | None:
    try:
        attempt(value)
    except Exception as error:
        found = path, error
    else:
        return None
    if depth and not isinstance(found[1], RecursionError) and id(value) not in above:
        above.add(id(value))
        for name, part in _parts(value):
            inner = _culprit(part, path + name, attempt, above, depth - 1)
            if inner is not None:
                return inner
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give what a value consists of, each with what its path adds; a part that is made for this only is left out."""
    if isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield f"[{shown_key(key)}]", part
            yield f" (the key {key!r})", key
    elif isinstance(value, (list, tuple, deque)):
        names = getattr(value, "_fields", None)
        for index, part in enumerate(cast("Iterable[Any]", value)):
            yield f".{names[index]}" if names else f"[{index}]", part
    elif isinstance(value, AbstractSet):
        for part in cast("Iterable[Any]", value):
            yield f" (the element {part!r})", part
    elif not isinstance(value, type):
        for name, part in _attributes(value):
            yield f".{name}", part


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from cast("dict[str, Any]", getattr(value, "__dict__", {})).items()
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                yield name, getattr(value, name)
    for name in ("func", "args", "keywords", "__self__"):  # of partial objects, exceptions, bound methods
        if hasattr(value, name) and not isinstance(getattr(value, name), type):
            yield name, getattr(value, name)
