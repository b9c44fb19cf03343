"""The words and marks that text, diagrams and pages have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flowdeco.engine.runs import Status
from flowdeco.show.parts import Part

__all__ = ["MARKS", "data_flow", "duration", "notes_of", "plural", "printable", "state"]

MARKS: Final[dict[str, str]] = {
    "": " ",
    "completed": "✓",
    "failed": "✗",
    "recovered": "↻",
    "skipped": "⊘",
    "bailed": "⏏",
    "suspended": "‖",
    "cancelled": "■",
    "crashed": "✗",
    "running": "▸",
    "pending": "·",
}

# Joiners and selectors of emoji: not printable by themselves, and harmless.
_HARMLESS: Final = frozenset("\u200c\u200d\ufe0e\ufe0f")


def printable(text: str) -> str:
    """Return a name in one line: control characters, and those that turn the direction of text, are escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def state(part: Part) -> str:
    """Return the status in one word: "recovered" is one, and "" for what was only planned."""
    if part.recovered:
        return "recovered"
    return "" if part.status is None else str(part.status)


def data_flow(part: Part) -> str:
    """Return what an action reads and writes, "" for neither: "text → rows", "reads text", "writes rows"."""
    reads = ", ".join(map(printable, part.reads))
    writes = ", ".join([*map(printable, part.writes), *(["inserts units"] if part.inserts else [])])
    if reads and writes:
        return f"{reads} → {writes}"
    if writes:
        return f"writes {writes}" if part.writes else writes
    return f"reads {reads}" if reads else ""


def plural(number: int, what: str) -> str:
    """Return "1 stage", "2 stages", "3 branches"."""
    many = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{number:,} {what if number == 1 else many}"


_STEPS: Final = ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (60.0, 1.0, "s"))


def duration(seconds: float | None) -> str:
    """Return a time span with three digits: "0 µs", "1.24 ms", "12.3 s", "2 min 5 s", "3 h 20 min"."""
    if seconds is None:
        return ""
    for below, factor, unit in _STEPS:
        value = seconds * factor
        if seconds < below:
            digits = 0 if unit == "µs" or value >= 99.95 else 1 if value >= 9.995 else 2
            if value < 999.5 and not (unit == "s" and value >= 59.95):
                return f"{value:.{digits}f} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"


def notes_of(part: Part, around: str | None = None) -> Iterable[str]:
    """Yield what is worth saying of a part that was run, or not; who inserted it, unless that inserted all `around`."""
    if part.inserted_by is not None and part.inserted_by != around:
        yield f"inserted by {printable(part.inserted_by)}"
    if part.unplanned:
        yield "not in the plan"
    if part.attempts > 1:
        yield plural(part.attempts, "attempt")
    if part.status is Status.PENDING:
        yield "not reached"
    elif part.status not in (None, Status.COMPLETED, Status.FAILED):
        yield str(part.status)
    if part.recovered:
        yield f"recovered from {printable(part.error)}" if part.error else "recovered"
    elif part.error and part.status is Status.FAILED:
        yield printable(part.error)
    elif part.status is Status.FAILED:
        yield "failed"
