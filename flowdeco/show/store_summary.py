"""A summary of a store: keys, types and sizes; values only on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from reprlib import Repr
from typing import Any, Final, NamedTuple, cast

from flowdeco.model.store import Store
from flowdeco.show.formatting import plural

__all__ = ["KeySummary", "summarize"]

_SIZED: Final = (list, tuple, set, frozenset, dict, deque)
LONGEST: Final = 2000  # characters of a value


class KeySummary(NamedTuple):
    """A key of the store, with the type and size of its value ("" for no size), and the value itself on request."""

    key: str
    type: str
    size: str
    value: str | None = None


def summarize(store: Store, *, values: bool = False) -> Iterator[KeySummary]:
    """Yield a summary of each key."""
    for key in store:
        value = store[key]
        yield KeySummary(key, _type_of(value), _size_of(value), _short_repr(value) if values else None)


def _type_of(value: object) -> str:
    kind = type(value)
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def _size_of(value: Any) -> str:
    kind = cast("type[Any]", type(value))
    if issubclass(kind, str):
        return plural(len(value), "character")
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return plural(memoryview(value).nbytes, "byte")
    if issubclass(kind, _SIZED):
        return plural(len(value), "item")
    try:
        shape: Any = getattr(value, "shape", None)  # arrays and tables
        if shape and type(shape) is tuple and all(type(n) is int for n in cast("tuple[object, ...]", shape)):
            return " × ".join(map("{:,}".format, cast("Any", shape)))
        return plural(len(value), "item") if hasattr(kind, "__len__") else ""
    except Exception:
        return ""


class _ShortRepr(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = LONGEST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 50


def _short_repr(value: object) -> str:
    try:
        text = _ShortRepr().repr(value)
    except Exception as error:
        return f"<its repr raised {type(error).__name__}>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
