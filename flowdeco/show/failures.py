"""An exception as data for a report: type, message, notes, traceback without the values of variables, and its causes.

Reports are passed around. What is in the store stands in them by its key: a message that repeats a value of the store
gets the key instead, unless values are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from traceback import extract_tb
from typing import Any, Final, NamedTuple, cast

from flowdeco.show.parts import message_of
from flowdeco.store import Store

__all__ = ["Failure", "Frame", "failure_of", "redactor"]

SHORTEST: Final = 4  # a value of fewer characters says nothing, and is part of too many words
MOST_LEAVES: Final = 10_000
DEEPEST: Final = 8
MOST_FRAMES: Final = 60
MOST_PARTS: Final = 50

Redact = Callable[[str], str]


class Frame(NamedTuple):
    """A line of a traceback."""

    file: str
    line: int
    function: str
    source: str


class Failure(NamedTuple):
    """What a report says of an exception; `link` says how `cause` led to it, `parts` are those of an exception group."""

    type: str
    message: str
    notes: tuple[str, ...]
    frames: tuple[Frame, ...]
    link: str
    cause: Failure | None
    parts: tuple[Failure, ...]

    def texts(self) -> Iterator[str]:
        """Yield everything that somebody wrote: messages, notes, lines of code."""
        yield self.message
        yield from self.notes
        yield from (frame.source for frame in self.frames)
        for other in (*([self.cause] if self.cause else []), *self.parts):
            yield from other.texts()

    def redacted(self, redact: Redact) -> Failure:
        """Return the failure with all its texts redacted."""
        return self._replace(
            message=redact(self.message),
            notes=tuple(map(redact, self.notes)),
            frames=tuple(frame._replace(source=redact(frame.source)) for frame in self.frames),
            cause=self.cause.redacted(redact) if self.cause else None,
            parts=tuple(part.redacted(redact) for part in self.parts),
        )


def failure_of(error: BaseException, depth: int = DEEPEST) -> Failure:
    """Return what a report says of an exception; nothing of the variables in its frames."""
    cause, link = error.__cause__, "It was raised from this"
    if cause is None and not error.__suppress_context__:
        cause, link = error.__context__, "It was raised while this was handled"
    group = isinstance(cast("object", error), BaseExceptionGroup)
    parts: tuple[BaseException, ...] = cast("Any", error).exceptions if group else ()
    frames = extract_tb(error.__traceback__)[-MOST_FRAMES:]
    return Failure(
        type(error).__qualname__,
        message_of(error),
        tuple(map(str, getattr(error, "__notes__", ()))),
        tuple(Frame(one.filename, one.lineno or 0, one.name, (one.line or "").strip()) for one in frames),
        link if cause is not None else "",
        failure_of(cause, depth - 1) if cause is not None and depth else None,
        tuple(failure_of(part, depth - 1) for part in parts[:MOST_PARTS]) if depth else (),
    )


# What must not stand in a report.


def redactor(store: Store, public: Iterable[str], texts: Iterable[str]) -> Redact:
    """Return a function that replaces values of the store in these texts by their keys; but for words that are public."""
    known = set(public)
    whole = "\n".join(texts)  # most values are in none of the texts
    keys: dict[str, str] = {}
    for number, (key, text) in enumerate(_leaves(store)):
        if number >= MOST_LEAVES:
            break
        if len(text) >= SHORTEST and text not in known:
            for written in {text, repr(text)[1:-1]}:  # by itself, and in the repr of what contains it
                if written in whole:
                    keys.setdefault(written, key)
    if not keys:
        return _declared_values
    longest_first = sorted(keys, key=len, reverse=True)
    pattern = re.compile(
        "|".join(f"{_edge(text[0], '<!')}{re.escape(text)}{_edge(text[-1], '!')}" for text in longest_first)
    )
    return lambda text: pattern.sub(lambda found: f"‹{keys[found[0]]}›", _declared_values(text))


def _edge(character: str, side: str) -> str:
    """Return what keeps a value from being found inside of a longer word."""
    return rf"(?{side}\w)" if character.isalnum() or character == "_" else ""


# Our own messages about a value that never came into the store end with it.
_MIXED: Final = re.compile(r"(a mix of units and data: the \w+) .*(?= is no unit)", re.DOTALL)
_TYPED: Final = re.compile(r"(but its value is a \w+): .*", re.DOTALL)


def _declared_values(text: str) -> str:
    return _TYPED.sub(r"\1", _MIXED.sub(r"\1", text))


def _leaves(store: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts and long numbers in the store, also those inside of containers, with the key they are under."""
    for key in store:
        waiting: list[tuple[Any, int]] = [(store[key], 0)]
        seen: set[int] = set()
        while waiting:
            value, depth = waiting.pop()
            if isinstance(value, str):
                yield key, str(value)
            elif isinstance(value, (bytes, bytearray)):
                yield key, bytes(value).decode("utf-8", "backslashreplace")
            elif type(value) in (int, float):
                if abs(value) >= 10**SHORTEST:
                    yield key, str(value)
            elif depth < DEEPEST and id(value) not in seen:
                seen.add(id(value))
                waiting.extend((inner, depth + 1) for inner in _inside(value))


def _inside(value: Any) -> Iterable[Any]:
    """Return what is in a container, or in an object."""
    try:
        if isinstance(value, dict):
            return list(cast("dict[Any, Any]", value).values())
        if isinstance(value, (list, tuple, set, frozenset)):
            return list(cast("Iterable[Any]", value))
        fields: Any = getattr(value, "__dataclass_fields__", None) or getattr(value, "__dict__", ())
        return [getattr(value, name, None) for name in fields]
    except Exception:  # of a class that is odd
        return ()
