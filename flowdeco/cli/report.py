"""The output of commands for people: tables, times, errors in one line."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO, cast

from flowdeco.cli.inputs import awaited_keys
from flowdeco.errors import cut_middle, duration, message_of, printable, told

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run, Scope, StageRecord

__all__ = [
    "Coloured",
    "coloured",
    "describe_error",
    "duration",
    "error_message",
    "escaped",
    "failed_step",
    "moment",
    "one_line",
    "plural",
    "print_error",
    "print_facts",
    "print_resume_hint",
    "print_stages",
    "print_steps",
    "print_table",
    "print_warning",
    "resume_command",
    "say",
    "shortened",
]

_COLOURS: Final = {
    "completed": "32", "failed": "31", "error": "31", "crashed": "31", "damaged": "31", "bailed": "36",
    "suspended": "33", "cancelled": "33", "possible": "33", "warning": "33", "running": "34", "skipped": "2",
}  # fmt: skip
_MOST: Final = 20  # stages that are listed one by one


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


def moment(posix: float) -> str:
    """Return a point in time in the local time zone; one that no calendar has, in seconds."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(posix))
    except (OverflowError, ValueError, OSError):  # of a damaged run
        return f"{posix:g}"


# Tables.


def print_facts(facts: Iterable[tuple[str, str]], status: Coloured | None = None) -> None:
    """Print a line for each fact; `status` comes before that of the name."""
    for name, value in facts:
        first = [status] if status is not None and name == "status" else []
        say(f"{name:<9} ", *first, one_line(value))


_PROSE: Final = ("WHY", "RESULT", "VALUE")  # columns that are cut at their ends, to no less than 20 characters
_NAMES: Final = ("INSERTED BY", "WORKFLOW", "STAGE")  # columns that are cut in the middle, to no less than 12


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print aligned columns, those named in `right` to the right; texts and names are cut to the width of a terminal."""
    table = [list(header), *([printable(one_line(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    aligned_right = {column for column, name in enumerate(header) if name in right}
    excess = sum(widths) + 2 * (len(widths) - 1) - _width()
    for column in sorted(
        range(len(header)), key=lambda column: (*_PROSE, *_NAMES, header[column]).index(header[column])
    ):
        least = 20 if header[column] in _PROSE else 12 if header[column] in _NAMES else widths[column]
        narrower = max(0, min(excess, widths[column] - least))
        excess -= narrower
        widths[column] -= narrower
        cut = shortened if header[column] in _PROSE else cut_middle
        for row in table if narrower else ():
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


def print_stages(run: Run) -> None:
    """Print the stages of a run; of very many, the first and the last, and those that did not complete."""
    print_steps([[*row, "", "", ""][:4] for row in _stage_rows(run)])


def print_steps(rows: Sequence[Sequence[str]]) -> None:
    """Print a line for each step of a run: name, status, time, and who inserted it."""
    shown = 4 if any(row[3] for row in rows) else 3
    if rows:
        header = ["STAGE", "STATUS", "TIME", "INSERTED BY"]
        print_table(header[:shown], [row[:shown] for row in rows], right=["TIME"])


def _stage_rows(run: Run) -> Iterator[list[str]]:
    """Yield a row for each stage that is listed, and before it one for each parallel group that it is the first of."""
    from flowdeco.engine.inserters import depths

    records = list(run.stages)
    below = depths(records)
    hidden = 0
    groups: list[Scope] = []
    for index, record in enumerate(records):
        at_the_ends = index < _MOST // 2 or index >= len(records) - _MOST // 2
        if not (at_the_ends or len(records) <= _MOST or record.status not in ("completed", "skipped")):
            hidden += 1
            continue
        if hidden:
            yield [f"… {hidden} more"]
            hidden = 0
        before, groups = [group.id for group in groups], _groups(record.scope)
        for depth, group in enumerate(groups):
            if before[: depth + 1] != [each.id for each in groups[: depth + 1]]:
                yield [f"{'  ' * (depth + below[index])}{group.name} (parallel)"]
        name, *rest = _stage_row(run, record)
        yield [f"{'  ' * (len(groups) + below[index])}{name}", *rest]


def _groups(scope: Scope | None) -> list[Scope]:
    """Return the branches of parallel groups that a stage ran in, the outermost first."""
    found: list[Scope] = []
    while scope is not None:
        if scope.branch is not None:
            found.insert(0, scope)
        scope = scope.outer
    return found


def _stage_row(run: Run, record: StageRecord) -> list[str]:
    status = "recovered" if record.recovered else str(record.status)
    attempts = max([record.attempts, *(action.attempts for action in record.actions)])
    if attempts > 1:
        status += f", {attempts} attempts"
    if record.actions and all(action.cached for action in record.actions):
        status += ", cached"
    elapsed = "" if record.status == "skipped" else duration(record.elapsed)
    return [record.name, status, elapsed, record.inserted_by or ""]


# Errors.


def print_error(error: BaseException, options: Namespace, text: str | None = None) -> None:
    """Print an error to the standard error in one line; with `--traceback`, after its traceback."""
    if options.traceback:
        import traceback

        say("".join(traceback.format_exception(error)).rstrip(), out=sys.stderr)
    say("flowdeco: ", Coloured("error"), ": ", one_line(text or error_message(error)), out=sys.stderr)


def print_warning(text: str) -> None:
    """Print a warning to the standard error."""
    say("flowdeco: ", Coloured("warning"), ": ", one_line(text), out=sys.stderr)


def error_message(error: BaseException) -> str:
    """Return the message of an error of ours; of several problems or changes the first, and how many there are."""
    problems: Sequence[Any] = getattr(error, "problems", ())
    if problems:
        more = f" ({len(problems) - 1} more: see flowdeco validate)" if len(problems) > 1 else ""
        return f"{problems[0].message} If it is an input: -i {problems[0].key}=VALUE{more}"
    changes: Sequence[str] = getattr(error, "changes", ())
    if changes:
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        return (
            f"the definition has changed since the run was interrupted: {changes[0]}{more}. "
            f"Give --on-change ignore to resume all the same, or --on-change rerun to run again from the first change"
        )
    return message_of(error) or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the type and the message of an exception, as the last line of a traceback has them."""
    if isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = cast("Any", error).exceptions
        return f"{error.message}: {'; '.join(map(describe_error, members))}"
    return told(error)


def failed_step(run: Run) -> str:
    """Return the step with which a run failed, as "action 'a' of stage 's'"; "" where it is not known."""
    for record in reversed(run.stages):
        if record.error is not None and record.error is run.error and not record.recovered:
            for action in reversed(record.actions):
                if action.error is run.error:
                    return f"action {action.name!r} of stage {record.name!r}"
            return f"stage {record.name!r}"
    return ""


def print_resume_hint(run_id: str, status: str, reason: str | None, options: Namespace, entry: str = "") -> None:
    """Print the command that resumes a run, if it can be resumed."""
    command = resume_command(run_id, status, reason, options.journal, entry)
    if command:
        say(f"flowdeco: to resume: {command}", out=sys.stderr)


def resume_command(run_id: str, status: str, reason: str | None, path: str | None, entry: str = "") -> str:
    """Return the command that resumes a run, "" if it cannot be resumed."""
    if status not in ("failed", "suspended", "cancelled", "crashed"):
        return ""
    keys = (awaited_keys(reason) or ["KEY"]) if status == "suspended" else []
    value = "".join(f" -i {shlex.quote(key)}=VALUE" for key in keys)
    journal = f" --journal {shlex.quote(path)}" if path else ""
    return f"flowdeco resume {entry}{shlex.quote(run_id)}{journal}{value}"
