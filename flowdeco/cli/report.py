"""What the command line prints: tables for people, plain values for machines."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run, Scope, StageRecord
    from flowdeco.show import Plan
    from flowdeco.show.parts import Part

__all__ = [
    "duration",
    "moment",
    "one_line",
    "painted",
    "plain",
    "plan_as_data",
    "run_as_data",
    "shortened",
    "stages",
    "table",
    "where",
]

_COLOURS: Final = {
    "completed": "32", "failed": "31", "error": "31", "crashed": "31", "bailed": "36",
    "suspended": "33", "cancelled": "33", "possible": "33", "warning": "33", "running": "34", "skipped": "2",
}  # fmt: skip
_MOST: Final = 20  # stages that are shown one by one


# For people.


def painted(word: str, out: TextIO) -> str:
    """Return a status in its colour, where the output is a terminal that wants colours."""
    colour = _COLOURS.get(word.strip().partition(",")[0])
    plain_output = not out.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return word if colour is None or plain_output else f"\x1b[{colour}m{word}\x1b[0m"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], out: TextIO, right: Iterable[str] = ()) -> None:
    """Print aligned columns: those named in `right` end together, and a last one that is too long is shortened."""
    shown = [list(header), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    ending = {column for column, name in enumerate(header) if name in right}
    room = _width(out) - sum(widths[:-1]) - 2 * (len(widths) - 1)
    for row in shown:
        cells = [
            cell.rjust(width) if column in ending else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        if len(widths) - 1 not in ending:
            cells[-1] = shortened(row[-1], max(room, 20))
        print("  ".join(painted(cell, out) for cell in cells).rstrip(), file=out)


def _width(out: TextIO) -> int:
    return shutil.get_terminal_size().columns if out.isatty() else sys.maxsize


def shortened(text: str, width: int) -> str:
    """Return the text, with an ellipsis for what is too much."""
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(text: str) -> str:
    """Return the text with its lines joined."""
    return " ".join(text.split()) if "\n" in text or "\r" in text else text


def duration(seconds: float) -> str:
    """Return a duration as people read it."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def moment(posix: float) -> str:
    """Return a point in time by the clock of this place."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(posix))


def stages(run: Run, out: TextIO) -> None:
    """Print the stages of a run; of very many, the first and the last, and those that did not complete."""
    records = list(run.stages)
    dynamic = any(record.inserted_by for record in records)
    header = ["STAGE", "STATUS", "TIME", *(["INSERTED BY"] if dynamic else [])]
    rows: list[list[str]] = []
    folded = 0
    around: list[Scope] = []
    for index, record in enumerate(records):
        ends = index < _MOST // 2 or index >= len(records) - _MOST // 2
        if ends or len(records) <= _MOST or record.status not in ("completed", "skipped"):
            if folded:
                rows.append([f"… {folded} more", "", "", ""][: len(header)])
                folded = 0
            before, around = around, _groups(record.scope)
            for depth, group in enumerate(around):
                if [each.id for each in before[: depth + 1]] != [each.id for each in around[: depth + 1]]:
                    rows.append([f"{'  ' * depth}{group.name} (parallel)", "", "", ""][: len(header)])
            name, *rest = _stage_row(record)[: len(header)]
            rows.append([f"{'  ' * len(around)}{name}", *rest])
        else:
            folded += 1
    if rows:
        table(header, rows, out, right=["TIME"])


def _groups(scope: Scope | None) -> list[Scope]:
    """Return the branches of parallel groups that a stage ran in, the outermost first."""
    found: list[Scope] = []
    while scope is not None:
        if scope.branch is not None:
            found.insert(0, scope)
        scope = scope.outer
    return found


def _stage_row(record: StageRecord) -> list[str]:
    status = "recovered" if record.recovered else str(record.status)
    attempts = max([record.attempts, *(action.attempts for action in record.actions)])
    if attempts > 1:
        status += f", {attempts} attempts"
    # The end of a stage may be all that was left of it when its run was resumed.
    took = max(record.elapsed, sum(action.elapsed for action in record.actions))
    elapsed = "" if record.status == "skipped" else duration(took)
    return [record.name, status, elapsed, record.inserted_by or ""]


def where(run: Run) -> str:
    """Return where a run failed, as "action 'a' of stage 's'"; "" where that is not known."""
    for record in reversed(run.stages):
        if record.error is not None and record.error is run.error and not record.recovered:
            for action in reversed(record.actions):
                if action.error is run.error:
                    return f"action {action.name!r} of stage {record.name!r}"
            return f"stage {record.name!r}"
    return ""


# For machines.


def run_as_data(run: Run) -> dict[str, Any]:
    """Return a run as JSON has it: the attributes of `Run`, of `StageRecord` and of `ActionRecord`."""
    return {
        "id": run.id,
        "pipeline": run.pipeline.name,
        "status": str(run.status),
        "result": plain(run.result),
        "reason": run.reason,
        "error": _error(run.error),
        "started": run.started,
        "elapsed": run.elapsed,
        "stages": [
            {**_record(record), "actions": [_record(action) for action in record.actions]} for record in run.stages
        ],
        "store": plain(dict(run.store)),
    }


def plan_as_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON has it: of each part what it has."""
    return {"name": plan.name, "title": plan.title, "description": plan.description, "parts": _parts(plan.parts)}


_PLANNED: Final = (
    "kind", "name", "title", "description", "tags", "reads", "writes", "inserts", "middleware", "data", "limit",
)  # fmt: skip


def _parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for part in parts:
        data = {name: getattr(part, name) for name in _PLANNED if getattr(part, name)}
        shown.append({**data, "parts": _parts(part.parts)} if part.parts else data)
    return shown


def _record(record: Any) -> dict[str, Any]:
    return {
        "name": record.name,
        "status": str(record.status),
        "started": record.started,
        "elapsed": record.elapsed,
        "inserted_by": record.inserted_by,
        "error": _error(record.error),
        "attempts": record.attempts,
        "recovered": record.recovered,
    }


def _error(error: BaseException | None) -> str | None:
    return None if error is None else "".join(traceback.format_exception_only(error)).rstrip()


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: lambda value: value,
    str: lambda value: value,
    float: lambda value: value if math.isfinite(value) else repr(value),
}


def plain(value: Any, above: frozenset[int] = frozenset()) -> Any:
    """Return a value as JSON can have it: what JSON has no form for as the text that Python shows for it."""
    found = _PLAIN.get(cast("type[Any]", type(value)))
    if found is not None:
        return found(value)
    if id(value) in above:
        return "..."
    inside = above | {id(value)}
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key if isinstance(key, str) else repr(key): plain(item, inside) for key, item in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, inside) for item in cast("Iterable[Any]", value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), inside) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", value))
    if callable(getattr(value, "isoformat", None)):
        return str(cast("Any", value).isoformat())
    if isinstance(value, str):  # of a subclass, an enumeration for one
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return plain(int(value) if isinstance(value, int) else float(value))
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
