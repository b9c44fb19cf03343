"""Plans, runs and diffs as text: a line for each part, in a tree of who inserted whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from flowdeco.engine.runs import Status
from flowdeco.show.formatting import MARKS, branch_counts, data_flow, duration, notes_of, printable, state
from flowdeco.show.parts import Part
from flowdeco.show.tree import Collapsed, Node, collapsed, grown

__all__ = ["subject", "table"]

WIDEST = 56  # columns of a name, to which the others are aligned
MANY: Final = 30  # rows of one template are collapsed
MOST: Final = 200  # rows of other kinds

LineOf: TypeAlias = "Callable[[Node], Line]"


class Line(NamedTuple):
    """One line before it is aligned: marks, indented name, time, and notes."""

    marks: str
    name: str
    time: str
    notes: str


def table(parts: Sequence[Part], *, ran: bool, times: bool = True) -> str:
    """Return the lines of these parts, aligned; of a run with marks for the status, and "+" for inserted parts."""
    lines = list(_lines(grown(parts), _ran if ran else _planned))
    name_width = max((len(line.name) for line in lines if len(line.name) <= WIDEST), default=0)
    time_width = max((len(line.time) for line in lines), default=0) if times else 0
    aligned: list[str] = []
    for line in lines:
        columns = [line.name.ljust(name_width), *([line.time.rjust(time_width)] if time_width else []), line.notes]
        aligned.append(f"{line.marks}{'  '.join(columns)}".rstrip())
    return "\n".join(aligned)


def _planned(node: Node) -> Line:
    part = node.part
    action = part.parts[0] if part.is_bare else part
    notes = [branch_counts(part)] if part.kind == "parallel" else []
    notes.extend(filter(None, [data_flow(action)]))
    notes.extend(f"#{printable(tag)}" for tag in sorted({*part.tags, *action.tags}))
    return Line("", _name(part), "", "  ".join(notes))


def subject(part: Part) -> Part:
    """Return the part to describe in one line: of a stage that stands for its only action, whichever says more."""
    if not part.is_bare or part.status is Status.SKIPPED:
        return part
    (action,) = part.parts
    # The outcome of its only action is that of the stage: it is shown once.
    shown = action if state(action) != state(part) and part.status is Status.COMPLETED else part
    return shown._replace(
        attempts=max(part.attempts, action.attempts),
        error=part.error or action.error,
        restored=part.restored or action.restored,
    )


def _ran(node: Node) -> Line:
    part = node.part
    plus = "+" if part.is_dynamic else " "
    notes = ", ".join(notes_of(subject(part), node.by))
    return Line(f"{MARKS[state(subject(part))]} {plus} ", _name(part), _time(part), notes)


def _time(part: Part) -> str:
    return duration(part.elapsed) if part.status is not Status.SKIPPED or part.elapsed else ""


def _name(part: Part) -> str:
    name = printable(part.label)
    return f"{name} ({part.kind})" if part.kind in ("parallel", "pipeline") and name != part.kind else name


def _lines(nodes: Sequence[Node], line_of: LineOf) -> Iterator[Line]:
    for node in collapsed(nodes, MANY, MOST):
        if isinstance(node, Collapsed):
            yield _rest(node, line_of)
        elif node.part.kind == "branch":
            yield from _indented(_inside(node.part, line_of), "╷ ", "│ ")
        else:
            yield line_of(node)
            if not (node.part.is_bare or node.part.status is Status.PENDING):
                below = "│ " if node.inserted and node.part.kind == "stage" else "  "
                yield from _indented(_inside(node.part, line_of), below, below)
            yield from _inserted(node.inserted, line_of)


def _inside(part: Part, line_of: LineOf) -> Iterator[Line]:
    """Yield the lines of the contents of a part: of the actions of a stage, of the units of a pipeline or a branch."""
    return _lines(grown(part.parts, part.inserted_by), line_of)


def _inserted(nodes: Sequence[Node], line_of: LineOf) -> Iterator[Line]:
    """Yield the lines of inserted parts, each with a line of the tree that leads to it."""
    shown = collapsed(nodes, MANY, MOST)
    for node in shown:
        is_last = node is shown[-1]
        lines = iter([_rest(node, line_of)]) if isinstance(node, Collapsed) else _lines([node], line_of)
        yield from _indented(lines, *(("└─ ", "   ") if is_last else ("├─ ", "│  ")))


def _indented(lines: Iterator[Line], first: str, others: str) -> Iterator[Line]:
    for number, line in enumerate(lines):
        yield line._replace(name=f"{others if number else first}{line.name}")


def _rest(rest: Collapsed, line_of: LineOf) -> Line:
    first = rest.parts[0]
    status = state(first) if first.status not in (None, Status.COMPLETED, Status.FAILED) else ""
    return Line("    " if line_of is _ran else "", f"… {printable(rest.label)}", duration(rest.elapsed), status)
