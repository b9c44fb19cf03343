"""An exception as data for a report: type, message, notes, traceback without the values of variables, and its causes.

Reports are passed around: `redaction` removes the values that must not be in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from traceback import StackSummary, walk_tb
from typing import Any, Final, NamedTuple, cast

from flowdeco.errors import frames_of_users, message_of
from flowdeco.show.redaction import Redact

__all__ = ["Failure", "Frame", "failure_of"]

DEEPEST: Final = 8
MOST_FRAMES: Final = 60
MOST_PARTS: Final = 50


class Frame(NamedTuple):
    """A line of a traceback."""

    file: str
    line: int
    function: str
    source: str

    def redacted(self, redact: Redact) -> Frame:
        """Return the line redacted, except for the path of its file."""
        file = redact(self.file) if self.file.startswith("<") else self.file
        return self._replace(file=file, source=redact(self.source))


class Failure(NamedTuple):
    """An exception; `link` describes how `cause` led to it, `parts` are the members of an exception group."""

    type: str
    message: str
    notes: tuple[str, ...]
    frames: tuple[Frame, ...]
    link: str
    cause: Failure | None
    parts: tuple[Failure, ...]

    def texts(self) -> Iterator[str]:
        """Yield everything written by users: messages, notes, lines of code, names in place of a file such as `<string>`."""
        yield self.message
        yield from self.notes
        for frame in self.frames:
            yield frame.source
            if frame.file.startswith("<"):
                yield frame.file
        for other in (*([self.cause] if self.cause else []), *self.parts):
            yield from other.texts()

    def redacted(self, redact: Redact) -> Failure:
        """Return the failure with all its texts redacted."""
        return self._replace(
            message=redact(self.message),
            notes=tuple(map(redact, self.notes)),
            frames=tuple(frame.redacted(redact) for frame in self.frames),
            cause=self.cause.redacted(redact) if self.cause else None,
            parts=tuple(part.redacted(redact) for part in self.parts),
        )


def failure_of(error: BaseException, depth: int = DEEPEST) -> Failure:
    """Return an exception as data, without the variables of its frames."""
    cause, link = error.__cause__, "It was raised from this"
    if cause is None and not error.__suppress_context__:
        cause, link = error.__context__, "It was raised while this was handled"
    group = isinstance(cast("object", error), BaseExceptionGroup)
    parts: tuple[BaseException, ...] = cast("Any", error).exceptions if group else ()
    frames = StackSummary.extract(walk_tb(frames_of_users(error.__traceback__)))[-MOST_FRAMES:]
    notes = list(map(str, getattr(error, "__notes__", ())))
    if not depth and (parts or cause is not None):
        notes.append("what led to it is not shown: it is nested too deeply")
    elif len(parts) > MOST_PARTS:
        notes.append(f"{len(parts) - MOST_PARTS} more of its members are not shown")
    return Failure(
        type(error).__qualname__,
        message_of(error),
        tuple(notes),
        tuple(Frame(one.filename, one.lineno or 0, one.name, (one.line or "").strip()) for one in frames),
        link if cause is not None else "",
        failure_of(cause, depth - 1) if cause is not None and depth else None,
        tuple(failure_of(part, depth - 1) for part in parts[:MOST_PARTS]) if depth else (),
    )
