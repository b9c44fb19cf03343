"""Messages of an action: what it emitted, logged and showed, as text that any journal can keep.

A step keeps the first and the last `HALF` of its messages, and counts the others. Values are turned into text at once, so
that a message keeps none of them alive.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from flowdeco.errors import cut as cut_at
from flowdeco.errors import without_addresses
from flowdeco.model.tuples import NamedTuple

__all__ = ["HALF", "MOST_SHOWN", "MOST_TEXT", "MessageRecord", "Messages", "as_payload", "cut", "interleaved", "joined"]

HALF: Final = 500
MOST_TEXT: Final = 4_000  # characters of one text
MOST_SHOWN: Final = 20_000_000  # characters of the values that one run keeps


class MessageRecord(NamedTuple):
    """A message of an action: `time` in POSIX seconds; `failures` is the number of failed attempts before it.

    `kind` decides the `payload`: "emit" has `kind` and `payload`, "log" has `level` and `text`, "show" has `type`, `content`
    (Base64 unless the type is one of text) and `note`. "ended" has `status` and `error`: an earlier leg of the run ended in
    this action. "cut" has `count`: so many messages are missing here.
    """

    kind: str
    time: float
    payload: Mapping[str, Any]
    failures: int = 0


class Messages:
    """The messages of one step, as they come."""

    def __init__(self, before: Iterable[MessageRecord] = ()) -> None:
        self._first: list[MessageRecord] = []
        self._last: deque[MessageRecord] = deque()
        self._cut: MessageRecord | None = None
        for message in before:
            self.add(message)

    def add(self, message: MessageRecord) -> None:
        """Add a message; beyond the limit, one from the middle is dropped."""
        if message.kind == "cut":
            self._drop(message, message.payload["count"])
        elif len(self._first) < HALF and self._cut is None:
            self._first.append(message)
        else:
            self._last.append(message)
            if len(self._last) > HALF:
                self._drop(self._last.popleft(), 1)

    def _drop(self, message: MessageRecord, count: int) -> None:
        count += 0 if self._cut is None else self._cut.payload["count"]
        self._cut = message._replace(kind="cut", payload={"count": count})

    def recorded(self) -> tuple[MessageRecord, ...]:
        """Return the messages so far."""
        return (*self._first, *(() if self._cut is None else (self._cut,)), *self._last)


def interleaved(messages: Sequence[MessageRecord], failures: Sequence[BaseException]) -> list[Any]:
    """Return the messages of a step and the errors of its failed attempts, in order."""
    found: list[Any] = []
    waiting = deque(messages)
    for number, error in enumerate(failures):
        while waiting and waiting[0].failures <= number:
            found.append(waiting.popleft())
        found.append(error)
    return [*found, *waiting]


def joined(
    before: Iterable[Any], messages: Iterable[MessageRecord], failures: Iterable[BaseException]
) -> tuple[tuple[MessageRecord, ...], tuple[BaseException, ...]]:
    """Return the messages and the errors of a step with those of its earlier attempts, which are `interleaved`."""
    together, errors = Messages(), list[BaseException]()
    for each in before:
        if isinstance(each, MessageRecord):
            together.add(each._replace(failures=len(errors)))
        else:
            errors.append(each)
    for message in messages:
        together.add(message._replace(failures=message.failures + len(errors)))
    return together.recorded(), (*errors, *failures)


def cut(text: str) -> str:
    """Return a text, cut if it is long, with a note of how much is missing."""
    return cut_at(text, MOST_TEXT)


def as_payload(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name, as a message keeps them: plain ones as they are, others by their repr."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    kind = cast("type[object]", type(value))
    if value is None or kind is bool or (kind is float and math.isfinite(value)):
        return value
    if kind is int and value.bit_length() <= 64:
        return value
    return cut(value if kind is str else shown(value))


def shown(value: Any) -> str:
    """Return the repr of a value without addresses; of a long list or dict only its beginning, so that it takes no time."""
    from reprlib import Repr  # few actions emit more than plain values

    short = Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple, short.maxset, short.maxfrozenset = 6, *[100] * 5
    short.maxdeque = short.maxarray = 100
    short.maxstring = short.maxlong = short.maxother = MOST_TEXT
    return without_addresses(short.repr(value))
