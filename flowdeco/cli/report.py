"""The output of commands for people: tables, times, errors in one line."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO, cast

from flowdeco.errors import cut, cut_middle, duration, message_of, printable, told

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run, Scope, StageRecord

__all__ = [
    "Coloured",
    "StepRow",
    "coloured",
    "describe_error",
    "duration",
    "error_message",
    "escaped",
    "failed_step",
    "one_line",
    "plural",
    "print_error",
    "print_facts",
    "print_resume_hint",
    "print_stages",
    "print_steps",
    "print_table",
    "print_traceback",
    "print_warning",
    "say",
    "shortened",
]

_COLOURS: Final = {
    "completed": "32", "failed": "31", "error": "31", "crashed": "31", "damaged": "31", "bailed": "36",
    "suspended": "33", "cancelled": "33", "possible": "33", "warning": "33", "running": "34", "skipped": "2",
}  # fmt: skip
_MANY: Final = 30  # from so many on, siblings of one template are collapsed
_SHOWN: Final = 3  # of these, for each status
_MOST: Final = 200  # siblings of different names that are listed


# Text.


class Coloured(NamedTuple):
    """A status, printed in its colour if the output is a terminal with colours."""

    word: str


def say(*parts: str | Coloured, out: TextIO | None = None) -> None:
    """Print a line, or several: whatever a name, an error or a value contains, nothing in it controls the terminal."""
    to = sys.stdout if out is None else out
    print("".join(coloured(part.word, to) if isinstance(part, Coloured) else escaped(part) for part in parts), file=to)


def escaped(text: str) -> str:
    """Return the text with control characters escaped, except for the ends of its lines."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def coloured(word: str, out: TextIO) -> str:
    """Return a status in its colour, with control characters escaped."""
    colour = _COLOURS.get(word.strip().partition(",")[0])
    return f"\x1b[{colour}m{escaped(word)}\x1b[0m" if colour is not None and _has_colours(out) else escaped(word)


def _has_colours(out: TextIO) -> bool:
    """Whether an output has colours; the variables count unless they are empty (no-color.org, force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (out.isatty() and os.environ.get("TERM") != "dumb")


def shortened(text: str, width: int) -> str:
    """Return the text, cut to a width with an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(text: str) -> str:
    """Return the text with its lines joined."""
    return " ".join(text.split()) if "\n" in text or "\r" in text else text


def plural(number: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{number} {noun}{'s' * (number != 1)}"


# Tables.


def print_facts(facts: Iterable[tuple[str, str]], status: Coloured | None = None) -> None:
    """Print a line for each fact; `status` comes before that of the name."""
    for name, value in facts:
        first = [status] if status is not None and name == "status" else []
        say(f"{name:<9} ", *first, one_line(value))


_PROSE: Final = ("WHY", "DIFFERENCE", "RESULT", "VALUE")  # columns that are cut at their ends
_NAMES: Final = ("INSERTED BY", "WORKFLOW", "STAGE")  # columns that are cut in the middle
_NARROW: Final = ((_PROSE, 20), (_NAMES, 12), (_PROSE, 8), (_NAMES, 8))  # how far, one after the other


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print aligned columns, those named in `right` to the right; texts and names are cut to the width of a terminal."""
    prose = [name in _PROSE for name in header]  # the others are names
    table = [list(header)]
    table += (
        [printable(one_line(cell) if each else cell) for cell, each in zip(row, prose, strict=True)] for row in rows
    )
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    aligned_right = {column for column, name in enumerate(header) if name in right}
    excess = sum(widths) + 2 * (len(widths) - 1) - _width()
    for column, least in ((header.index(name), least) for kind, least in _NARROW for name in kind if name in header):
        narrower = max(0, min(excess, widths[column] - max(least, len(header[column]))))
        excess -= narrower
        widths[column] -= narrower
    for column, name in enumerate(header):
        cut = shortened if name in _PROSE else cut_middle
        for row in table:
            row[column] = cut(row[column], widths[column])
    for row in table:
        cells = [
            cell.rjust(width) if column in aligned_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        while not cells[-1].strip():
            cells.pop()
        cells[-1] = cells[-1].rstrip()
        separated: list[str | Coloured] = [part for cell in cells for part in ("  ", Coloured(cell))]
        say(*separated[1:])


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


class StepRow(NamedTuple):
    """A row of the table of a run: a step, how far it is indented, and who inserted it, or how it differs."""

    depth: int
    name: str
    status: str = ""
    time: str = ""
    note: str = ""

    @property
    def template(self) -> str:
        """The part of the name that rows of one template have in common."""
        return f"{self.name.partition('[')[0]}[…]" if self.name.endswith("]") else self.name


def print_stages(run: Run) -> None:
    """Print the stages of a run."""
    print_steps(list(_stage_rows(run)))


def print_steps(rows: Sequence[StepRow], note: str = "INSERTED BY") -> None:
    """Print a line for each step of a run: name, status, time, and a note; rows of one template are collapsed."""
    shown = list(_collapsed(rows))
    columns = 4 if any(row.note for row in shown) else 3
    if shown:
        table = [[f"{'  ' * row.depth}{row.name}", *row[2:]][:columns] for row in shown]
        print_table(["STAGE", "STATUS", "TIME", note][:columns], table, right=["TIME"])


def _collapsed(rows: Sequence[StepRow]) -> Iterator[StepRow]:
    """Yield the rows of siblings, each with those below it; of one template the first of each kind, and all that failed."""
    if not rows:
        return
    starts = [index for index, row in enumerate(rows) if row.depth <= rows[0].depth]
    alike = Counter(rows[start].template for start in starts)
    seen: Counter[tuple[str, str, bool]] = Counter()
    hidden: list[StepRow] = []
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        row, below = rows[start], rows[start + 1 : end]
        kind = row.template, row.status, any(map(_is_notable, below))
        seen[kind] += 1
        many = alike[row.template] >= _MANY and seen[kind] > _SHOWN
        if (many or len(seen) > _MOST) and not any(_is_failure(each) for each in (row, *below)):
            hidden.append(row)
            continue
        yield from _rest(hidden)
        hidden.clear()
        yield row
        yield from _collapsed(below)
    yield from _rest(hidden)


def _is_failure(row: StepRow) -> bool:
    return row.status.partition(",")[0].partition(" ")[0] in ("failed", "cancelled", "crashed")


def _is_notable(row: StepRow) -> bool:
    return "recovered" in row.status or "attempts" in row.status


def _rest(hidden: Sequence[StepRow]) -> Iterator[StepRow]:
    if hidden:
        templates = {row.template for row in hidden}
        named = f", {templates.pop()}" if len(templates) == 1 else ""
        yield StepRow(hidden[0].depth, f"… {len(hidden):,} more{named}")


def _stage_rows(run: Run) -> Iterator[StepRow]:
    """Yield a row for each stage, and before it one for each parallel group that it is the first of."""
    from flowdeco.show.inserters import DEEPEST, depths

    records = list(run.stages)
    below = depths(records)
    groups: list[Scope] = []
    for record, depth in zip(records, below, strict=True):
        before, groups = [group.id for group in groups], _groups(record.scope)
        for level, group in enumerate(groups):
            if before[: level + 1] != [each.id for each in groups[: level + 1]]:
                yield StepRow(min(level + depth, DEEPEST), f"{group.name} (parallel)")
        yield _stage_row(min(len(groups) + depth, DEEPEST), record)


def _groups(scope: Scope | None) -> list[Scope]:
    """Return the branches of parallel groups that a stage ran in, the outermost first."""
    from flowdeco.engine.outcome import enclosing  # loaded with the run

    return [each for each in enclosing(scope) if each.branch is not None][::-1]


def _stage_row(depth: int, record: StageRecord) -> StepRow:
    alone = [action.name for action in record.actions] == [record.name]  # its row is that of the stage as well
    is_recovered = record.recovered or (alone and record.actions[0].recovered)
    status = "recovered" if is_recovered else str(record.status)
    attempts = max([record.attempts, *(action.attempts for action in record.actions)])
    if attempts > 1:
        status += f", {attempts} attempts"
    if record.actions and all(action.cached for action in record.actions):
        status += ", cached"
    elapsed = "" if record.status == "skipped" else duration(record.elapsed)
    return StepRow(depth, record.name, status, elapsed, record.inserted_by or "")


# Errors.


def print_error(error: BaseException, options: Namespace, text: str | None = None, *, of_user: bool = False) -> None:
    """Print an error to the standard error in one line; with `--traceback`, after its traceback.

    That of an action (`of_user`) has no frames of flowdeco, which led to the call.
    """
    if options.traceback:
        print_traceback(error, of_user=of_user)
    say("flowdeco: ", Coloured("error"), ": ", one_line(text or error_message(error)), out=sys.stderr)


def print_traceback(error: BaseException, *, of_user: bool) -> None:
    """Print the traceback of an error to the standard error; if it is `of_user`, without the frames of flowdeco."""
    import traceback

    found = traceback.TracebackException.from_exception(error)
    waiting = [found] if of_user else []
    while waiting:
        each = waiting.pop()
        each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_PACKAGE)]
        waiting += filter(None, (each.__cause__, each.__context__, *(each.exceptions or ())))
    say("".join(found.format()).rstrip(), out=sys.stderr)


_PACKAGE: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def print_warning(text: str) -> None:
    """Print a warning to the standard error."""
    say("flowdeco: ", Coloured("warning"), ": ", one_line(text), out=sys.stderr)


def error_message(error: BaseException) -> str:
    """Return the message of an error of ours in one line, with all changes; of several problems the first, and how many."""
    problems: Sequence[Any] = getattr(error, "problems", ())
    if problems:
        more = f" ({len(problems) - 1} more: see flowdeco validate)" if len(problems) > 1 else ""
        message, key = problems[0].message, problems[0].key
        return f"{message}{'' if message[-1] in '.?' else '.'} If it is an input: -i {key}=VALUE{more}"
    changes: Sequence[str] = getattr(error, "changes", ())
    if changes:
        return (
            f"the definition has changed since the run was interrupted: {'; '.join(changes)}. "
            f"Give --on-change ignore to resume all the same, or --on-change rerun to run again from the first change"
        )
    return cut(message_of(error)) or type(error).__name__


def describe_error(error: BaseException, depth: int = 8) -> str:
    """Return type and message of an exception, as the last line of a traceback has them; of a group, of its members."""
    if isinstance(error, BaseExceptionGroup) and depth:
        members: tuple[BaseException, ...] = cast("Any", error).exceptions
        return f"{error.message}: {'; '.join(describe_error(each, depth - 1) for each in members)}"
    return cut(told(cast("BaseException", error)))


def failed_step(run: Run) -> str:
    """Return the step with which a run failed, as "action 'a' of stage 's'"; "" where it is not known."""
    for record in reversed(run.stages):
        if record.error is not None and record.error is run.error and not record.recovered:
            for action in reversed(record.actions):
                if action.error is run.error:
                    return f"action {action.name!r} of stage {record.name!r}"
            return f"stage {record.name!r}"
    return ""


def print_resume_hint(command: str) -> None:
    """Print the command that resumes a run, if it can be resumed."""
    if command:
        say(f"flowdeco: to resume: {command}", out=sys.stderr)
