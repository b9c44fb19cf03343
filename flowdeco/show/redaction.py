"""Redaction of reports: known values that a message repeats are replaced by the names of their keys."""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from json import dumps
from pathlib import PurePath
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote, quote_plus

from flowdeco.show.formatting import printable

__all__ = ["Doubtful", "Redact", "redactor"]

SHORTEST: Final = 4  # characters: a shorter value reveals nothing, and is part of too many words
LINE: Final = 8  # characters: nor does a shorter line of a longer string
LONG: Final = 12  # characters: a value as long as that is not part of another word by chance
LONG_REPORT: Final = 100_000
BRANCHINGS: Final = 8
MOST_LEAVES: Final = 20_000
MOST_STEPS: Final = 100_000  # through one value
DEEPEST: Final = 8

Redact = Callable[[str], str]


class Doubtful(NamedTuple):
    """A value that may be a secret, or a word of the program: a default, a key of a dict."""

    value: Any


def redactor(values: Iterable[tuple[str, Any]], public: Iterable[str], texts: Iterable[str]) -> Redact:
    """Return a function that replaces values in these texts by their names, except for public words."""
    distinct: dict[int, tuple[str, Any]] = {}
    for key, value in values:  # most are in the store, and in several frames
        distinct.setdefault(id(value), (key, value))
    allowed = {word.lower() for word in public}
    report = "\n".join(texts).lower()  # most values are in none of the texts
    report = f"{report}\n{printable(report)}"
    may_have = _filter_of(report)
    names: dict[str, str] = {}
    for number, (name, text) in enumerate(_leaves(distinct.values())):
        if number >= MOST_LEAVES:
            break
        if SHORTEST <= len(text) <= len(report) and text.lower() not in allowed:
            for written in _forms(text):
                if may_have(written.lower()) and written.lower() in report:
                    names.setdefault(written.lower(), name)
    if not names:
        return _without_declared_values
    pattern = re.compile(_any_of(names), re.IGNORECASE)
    return lambda text: pattern.sub(
        lambda found: f"‹{names.get(found[0].lower(), '…')}›", _without_declared_values(text)
    )


_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~-]+")


def _forms(text: str) -> set[str]:
    """Return the ways to write a string: as it is, in a repr, as JSON, in an address."""
    if _PLAIN.fullmatch(text):
        return {text}
    safe = text.encode("utf-8", "replace").decode()
    forms = {text, repr(text)[1:-1], printable(text), dumps(text)[1:-1], dumps(text, ensure_ascii=False)[1:-1]}
    return forms | {quote(safe), quote(safe, safe=""), quote_plus(safe)}


def _filter_of(report: str) -> Callable[[str], bool]:
    """Return whether a string may be in a long report: it takes a second to look through one for ten thousand strings."""
    if len(report) < LONG_REPORT:
        return lambda text: True
    pieces = {report[at : at + SHORTEST] for at in range(len(report) - SHORTEST + 1)}
    return lambda text: all(text[at : at + SHORTEST] in pieces for at in range(0, len(text) - SHORTEST + 1, SHORTEST))


_BEFORE: Final = r"(?:(?<!\w)|(?<=%[0-9a-f][0-9a-f])|(?<=\\[nrt]))"


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern that matches each of these strings, but not as part of a longer word, unless it is long itself."""
    inside, words = list[tuple[str, str]](), list[tuple[str, str]]()
    for text in texts:
        is_long = len(text) >= LONG and not text.isalpha()
        end = r"(?!\w)" if _is_word_character(text[-1]) and not is_long else ""
        (words if _is_word_character(text[0]) and not is_long else inside).append((text, end))
    found = [_alternatives(inside, BRANCHINGS)] if inside else []
    return "|".join([*found, f"{_BEFORE}(?:{_alternatives(words, BRANCHINGS)})"] if words else found)


def _alternatives(texts: list[tuple[str, str]], depth: int) -> str:
    """Return a pattern for strings, each with the pattern of its end; the longest match counts.

    Their common beginnings are compared once: of thousands of strings, `re` would try each at every place.
    """
    if not depth or len(texts) < 8:
        return "|".join(re.escape(text) + end for text, end in sorted(texts, key=lambda one: len(one[0]), reverse=True))
    groups: dict[str, list[tuple[str, str]]] = {}
    for text, end in texts:
        groups.setdefault(text[:1], []).append((text, end))
    ended = groups.pop("", [])
    found: list[str] = []
    for group in groups.values():
        first, last = min(group)[0], max(group)[0]  # all others share what these two do
        same = next((at for at, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), len(first))
        rest = _alternatives([(text[same:], end) for text, end in group], depth - 1)
        found.append(f"{re.escape(first[:same])}(?:{rest})")
    return "|".join([*found, *(end for _, end in ended)])


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


# Our own messages about a value that never reached the store end with it.
_MIXED: Final = re.compile(r"(a mix of units and data: the \w+) .*(?= is (?:no|not a) unit)", re.DOTALL)
_TYPED: Final = re.compile(r"(but its value is a \w+): .*", re.DOTALL)


def _without_declared_values(text: str) -> str:
    return _TYPED.sub(r"\1", _MIXED.sub(r"\1", text))


# The texts in a value.


def _leaves(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the texts and long numbers in these values with their names; in turn, so that a large value hides no other."""
    waiting = deque((name, _texts(value)) for name, value in values)
    while waiting:
        name, texts = waiting.popleft()
        text = next(texts, None)
        if text is not None:
            yield name, text
            waiting.append((name, texts))


_WORD: Final = re.compile(r"[a-z_-]*")


def _texts(root: Any) -> Iterator[str]:
    waiting: deque[tuple[Any, int, bool]] = deque([(root, 0, False)])
    seen: set[int] = set()
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        value, depth, doubtful = waiting.popleft()
        if type(value) is Doubtful:
            value, doubtful = value.value, True
        try:
            text = _text(value)
        except Exception:  # raised by a property or a method of its class
            continue
        if text is not None:
            if not (doubtful and _WORD.fullmatch(text)):
                yield text
                if "\n" in text:
                    yield from (line for line in text.split("\n") if len(line) >= LINE)
        elif depth < DEEPEST and id(value) not in seen:
            seen.add(id(value))
            waiting.extend((member, depth + 1, False) for member in islice(_members(value), MOST_STEPS))


_SHOWN_BY_STR: Final = frozenset({"uuid", "decimal", "fractions", "datetime", "ipaddress"})  # of the standard library


def _text(value: Any) -> str | None:
    """Return a single value as text, "" for one that reveals nothing; None for a container of others."""
    if isinstance(value, str):
        return str.__str__(value)  # not the `__str__` of a class that hides it
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if type(value) in (int, float):
        return str(value) if abs(value) >= 10**SHORTEST else ""
    if isinstance(value, PurePath) or type(value).__module__ in _SHOWN_BY_STR:
        return str(value)
    return None


def _members(value: Any) -> Iterator[Any]:
    """Yield the members of a container, with the keys of a dict, or the attributes of an object."""
    kind = cast("type[Any]", type(value))
    try:
        if inspect.ismodule(value) or isinstance(value, type) or kind.__module__.partition(".")[0] == "flowdeco":
            return
        if isinstance(value, Mapping):
            for key, member in cast("Mapping[Any, Any]", value).items():
                yield member
                yield Doubtful(key)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            yield from cast("Iterable[Any]", value)
        else:
            fields: dict[str, Any] = dict.fromkeys(getattr(value, "__dataclass_fields__", ()))
            fields.update(dict.fromkeys(getattr(value, "__dict__", ())))
            for name in (*fields, *_slots(kind)):
                yield getattr(value, name, None)
    except Exception:  # raised by a property or a method of its class
        return


def _slots(kind: type[Any]) -> Iterator[str]:
    for one in kind.__mro__:
        slots: Any = one.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            yield f"_{one.__name__.lstrip('_')}{name}" if private else name
