"""Plans, runs and diffs as text: a line for each part, indented by its depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from flowdeco.engine.runs import Status
from flowdeco.show.folding import Fold, folded
from flowdeco.show.formatting import MARKS, branch_counts, data_flow, duration, notes_of, printable, state
from flowdeco.show.parts import Part

__all__ = ["table"]

WIDEST = 56  # columns of a name, to which the others are aligned


LineOf: TypeAlias = "Callable[[Part, str | None], Line]"


class Line(NamedTuple):
    """One line before it is aligned: marks, indented name, time, and notes."""

    marks: str
    name: str
    time: str
    notes: str


def table(parts: Sequence[Part], *, ran: bool, times: bool = True) -> str:
    """Return the lines of these parts, aligned; of a run with marks for the status, and "+" for inserted parts."""
    lines = list(_lines(parts, "", _ran if ran else _planned))
    name_width = max((len(line.name) for line in lines if len(line.name) <= WIDEST), default=0)
    time_width = max((len(line.time) for line in lines), default=0) if times else 0
    aligned: list[str] = []
    for line in lines:
        columns = [line.name.ljust(name_width), *([line.time.rjust(time_width)] if time_width else []), line.notes]
        aligned.append(f"{line.marks}{'  '.join(columns)}".rstrip())
    return "\n".join(aligned)


def _planned(part: Part, _parent_inserted_by: str | None = None) -> Line:
    action = part.parts[0] if part.is_bare else part
    notes = [branch_counts(part)] if part.kind == "parallel" else []
    notes.extend(filter(None, [data_flow(action)]))
    notes.extend(f"#{printable(tag)}" for tag in sorted({*part.tags, *action.tags}))
    return Line("", _name(part), "", "  ".join(notes))


def _ran(part: Part, parent_inserted_by: str | None = None) -> Line:
    subject = part
    if part.is_bare and part.status is not Status.SKIPPED:
        (action,) = part.parts
        # The outcome of its only action is that of the stage: it is shown once.
        if state(action) != state(part):
            subject = action if part.status is Status.COMPLETED else part
        subject = subject._replace(
            attempts=max(part.attempts, action.attempts), error=part.error or action.error, inserted_by=part.inserted_by
        )
    plus = "+" if part.is_dynamic else " "
    notes = ", ".join(notes_of(subject, parent_inserted_by))
    return Line(f"{MARKS[state(subject)]} {plus} ", _name(part), _time(part), notes)


def _time(part: Part) -> str:
    return duration(part.elapsed) if part.status is not Status.SKIPPED or part.elapsed else ""


def _name(part: Part) -> str:
    name = printable(part.label)
    return f"{name} ({part.kind})" if part.kind in ("parallel", "pipeline") and name != part.kind else name


def _lines(
    parts: Sequence[Part], indent: str, line_of: LineOf, parent_inserted_by: str | None = None
) -> Iterator[Line]:
    for part in folded(parts):
        if isinstance(part, Fold):
            first = part.parts[0]
            marks = "    " if line_of is _ran else ""
            status = state(first) if first.status not in (None, Status.COMPLETED, Status.FAILED) else ""
            yield Line(marks, f"{indent}… {printable(part.label)}", duration(part.elapsed), status)
        elif part.kind == "branch":
            yield from _branch(part, indent, line_of, parent_inserted_by)
        else:
            line = line_of(part, parent_inserted_by)
            yield line._replace(name=indent + line.name)
            if not (part.is_bare or part.status is Status.PENDING):
                yield from _lines(part.parts, f"{indent}  ", line_of, part.inserted_by)


def _branch(part: Part, indent: str, line_of: LineOf, parent_inserted_by: str | None) -> Iterator[Line]:
    """Yield the lines of a branch behind a bar; a break in the bar begins the next branch."""
    for number, line in enumerate(_lines(part.parts, "", line_of, parent_inserted_by)):
        yield line._replace(name=f"{indent}{'╷ ' if number == 0 else '│ '}{line.name}")
