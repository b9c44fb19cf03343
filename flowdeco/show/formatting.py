"""Formatting that text, diagrams and pages have in common: names, numbers, durations, status marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from flowdeco.engine.runs import Status
from flowdeco.errors import duration, printable
from flowdeco.show.parts import Part
from flowdeco.show.tree import Collapsed

__all__ = [
    "MARKS",
    "branch_counts",
    "data_flow",
    "duration",
    "notes_of",
    "plural",
    "printable",
    "rest_label",
    "state",
    "summary",
    "unusual_status",
    "was_cached",
]

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


def plural(number: int, noun: str) -> str:
    """Return "1 stage", "2 stages", "3 branches"."""
    nouns = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else nouns}"


def state(part: Part) -> str:
    """Return the status in one word: "recovered" is one; "" for a part that was only planned."""
    if part.recovered:
        return "recovered"
    return "" if part.status is None else str(part.status)


def unusual_status(part: Part) -> str:
    """Return the status of a part that neither completed nor failed: "skipped", "not reached"; otherwise ""."""
    if part.status in (None, Status.COMPLETED, Status.FAILED):
        return ""
    return "not reached" if part.status is Status.PENDING and not part.ahead else str(part.status)


def was_cached(part: Part) -> bool:
    """Whether an action, or the only one of a stage that stands for it, was taken from a cache."""
    return part.cached or (part.is_bare and part.parts[0].cached)


def data_flow(part: Part) -> str:
    """Return the keys that an action reads and writes: "text → rows", "reads text", "writes rows"; "" for none."""
    reads = ", ".join(map(printable, part.reads))
    writes = ", ".join([*map(printable, part.writes), *(["inserts units"] if part.inserts else [])])
    if reads and writes:
        return f"{reads} → {writes}"
    if writes:
        return f"writes {writes}" if part.writes else writes
    return f"reads {reads}" if reads else ""


def branch_counts(group: Part) -> str:
    """Return "3 branches", "8 branches, 2 at a time", "one branch for each unit of stream of rows, 16 at a time"."""
    count = plural(len(group.parts), "branch")
    if group.source and not group.parts:
        count = f"a branch for each unit of the {printable(group.source)}"
    return f"{count}{f', {group.limit} at a time' if group.limit else ''}"


def rest_label(rest: Collapsed) -> str:
    """Return how many parts are collapsed, of which template, and their status unless they completed."""
    first = rest.parts[0]
    status = "" if first.status in (None, Status.COMPLETED) else f", {state(first)}"
    return f"… {printable(rest.label)}{status}"


def summary(counts: Mapping[str, int]) -> str:
    """Return how many changes there are of each kind, "as planned" for none."""
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "as planned"


def notes_of(part: Part, by: str | None = None) -> Iterable[str]:
    """Yield notes on a part of a run; `by` is who inserted it, as far as a view does not show that otherwise."""
    if by is not None:
        yield f"inserted by {printable(by)}"
    if part.restored:
        yield "restored"
    if part.unplanned:
        yield "not in the plan"
    if part.attempts > 1:
        yield plural(part.attempts, "attempt")
    if unusual_status(part):
        yield unusual_status(part)
    if was_cached(part):
        yield "cached"
    if part.recovered:
        yield f"recovered from {printable(part.error)}" if part.error else "recovered"
    elif part.status is Status.FAILED:
        yield printable(part.error) or "failed"
