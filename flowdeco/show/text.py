"""Plans, runs and diffs as text: a line for each part, indented by what it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from flowdeco.engine.runs import Status
from flowdeco.show.formatting import MARKS, data_flow, duration, notes_of, plural, printable, state
from flowdeco.show.parts import Fold, Part, folded

__all__ = ["table"]

WIDEST = 56  # columns that a name may push the others aside


LineOf: TypeAlias = "Callable[[Part, str | None], Line]"


class Line(NamedTuple):
    """One line before it is aligned: marks, indented name, time, and notes."""

    marks: str
    name: str
    time: str
    notes: str


def table(parts: Sequence[Part], *, ran: bool, times: bool = True) -> str:
    """Return the lines of these parts, aligned; of a run with marks for the status (and "+" for what was inserted)."""
    lines = list(_lines(parts, "", _ran if ran else _planned))
    wide = max((len(line.name) for line in lines if len(line.name) <= WIDEST), default=0)
    clock = max((len(line.time) for line in lines), default=0) if times else 0
    shown: list[str] = []
    for line in lines:
        columns = [line.name.ljust(wide)]
        if clock:
            columns.append(line.time.rjust(clock))
        columns.append(line.notes)
        shown.append(f"{line.marks}{'  '.join(columns)}".rstrip())
    return "\n".join(shown)


def _planned(part: Part, _around: str | None = None) -> Line:
    said: list[str] = []
    about = part.parts[0] if part.is_bare else part
    if part.kind == "parallel":
        said.append(f"{plural(len(part.parts), 'branch')}{f', {part.limit} at a time' if part.limit else ''}")
    said.extend(filter(None, [data_flow(about)]))
    tags = sorted({*part.tags, *about.tags})
    said.extend(f"#{printable(tag)}" for tag in tags)
    return Line("", _named(part), "", "  ".join(said))


def _ran(part: Part, around: str | None = None) -> Line:
    about = part
    if part.is_bare and part.status is not Status.SKIPPED:
        (action,) = part.parts
        # What became of its only action is what became of the stage: it is said once.
        if state(action) != state(part):
            about = action if part.status is Status.COMPLETED else part
        about = about._replace(
            attempts=max(part.attempts, action.attempts), error=part.error or action.error, inserted_by=part.inserted_by
        )
    plus = "+" if part.is_dynamic else " "
    return Line(f"{MARKS[state(about)]} {plus} ", _named(part), _time(part), ", ".join(notes_of(about, around)))


def _time(part: Part) -> str:
    return duration(part.elapsed) if part.status is not Status.SKIPPED or part.elapsed else ""


def _named(part: Part) -> str:
    name = printable(part.name)
    return f"{name} ({part.kind})" if part.kind in ("parallel", "pipeline") and name != part.kind else name


def _lines(parts: Sequence[Part], indent: str, line_of: LineOf, around: str | None = None) -> Iterator[Line]:
    for part in folded(parts):
        if isinstance(part, Fold):
            first = part.parts[0]
            marks = "    " if line_of is _ran else ""
            of_what = state(first) if first.status not in (None, Status.COMPLETED, Status.FAILED) else ""
            yield Line(marks, f"{indent}… {printable(part.label)}", duration(part.elapsed), of_what)
        elif part.kind == "branch":
            yield from _branch(part, indent, line_of, around)
        else:
            line = line_of(part, around)
            yield line._replace(name=indent + line.name)
            if not (part.is_bare or part.status is Status.PENDING):
                yield from _lines(part.parts, f"{indent}  ", line_of, part.inserted_by)


def _branch(part: Part, indent: str, line_of: LineOf, around: str | None) -> Iterator[Line]:
    """Yield the lines of a branch behind a bar; where the bar is broken, another branch begins."""
    for number, line in enumerate(_lines(part.parts, "", line_of, around)):
        yield line._replace(name=f"{indent}{'╷ ' if number == 0 else '│ '}{line.name}")
