"""The table of a run, read from the rows of its journal, without the modules that read whole runs: they take a while.

The rows are read by the rule of `engine.reading`: a stage has the number before that of its first action, and its actions
follow it without a gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from flowdeco.cli.report import StepRow, duration
from flowdeco.durable import Row
from flowdeco.durable.codec import OutlineCodec
from flowdeco.errors import JournalError

__all__ = ["Step", "step_rows", "steps"]

_ROOT: Final = "0"  # the branch of the run itself
_DEEPEST: Final = 16  # stages whose insertions are nested deeper are indented like these
_OPEN: Final = ("failed", "suspended", "cancelled")  # stages that a resume continues


@dataclass(slots=True)
class Step:
    """A stage or group of a journal, with the rows of its actions; `row` is None where a stage has not finished.

    `depth` is how far it is indented, `by` who inserted a stage.
    """

    name: str
    row: Row | None
    depth: int
    by: str
    actions: list[Row] = field(default_factory=list[Row])


def step_rows(rows: list[Row], state: str, codec: str) -> Iterator[StepRow]:
    """Yield the rows of a run in its order, with a row for each group before its stages."""
    for step in steps(rows, codec).values():
        yield from (row._replace(depth=row.depth + step.depth) for row in _rows_of(step, state, codec))


def _rows_of(step: Step, state: str, codec: str) -> Iterator[StepRow]:
    """Yield a row for a group; for a stage, and for each of its actions unless it has only one of the same name."""
    row, alone = step.row, [action.action for action in step.actions] == [step.name]
    if row is not None and row.kind == "group":
        yield StepRow(0, f"{step.name} (parallel)")
    elif row is not None and row.status != "running":
        elapsed = "" if row.status == "skipped" else duration(row.elapsed)
        yield StepRow(0, step.name, _with_attempts(step.actions[0] if alone else row, codec, state), elapsed, step.by)
    elif alone and state == "running" and step.actions[0].status == "completed":
        # The end of a stage is written together with the step after it.
        yield StepRow(0, step.name, "completed", duration(step.actions[0].elapsed), step.by)
    else:
        status = f"{state} here or later" if state in ("crashed", "running") else state
        yield StepRow(0, step.name, status if row is None else f"{status}{_attempts(row, codec)}", "", step.by)
    levels: dict[int, tuple[str, int]] = {}  # the names and depths of actions, by number
    for action in () if alone else step.actions:
        name, number, by = str(action.action), *_inserter_of(action, codec)
        above, depth = levels.get(number, (name, 1))
        depth = min(depth + (above != name), _DEEPEST)
        levels[action.number] = name, depth
        yield StepRow(depth, name, _with_attempts(action, codec, state), duration(action.elapsed), by)


def _with_attempts(row: Row, codec: str, state: str) -> str:
    """Return the status of a step, and of one that failed whether it was recovered and how many attempts it took."""
    if row.status == "suspended" and state == "cancelled":
        return "cancelled"
    went_on = row.status == "failed" and state in ("completed", "bailed", "suspended")
    may_be = row.status in ("failed", "cancelled")  # otherwise, it need not be read
    status = "recovered" if went_on or (may_be and _parts_of(row, codec).get("recovered")) else row.status
    return f"{status}{_attempts(row, codec)}"


def _attempts(row: Row, codec: str) -> str:
    """Return how many attempts a step took, "" for one."""
    attempts = _parts_of(row, codec).get("attempts", 1) if b"attempts" in row.payload else 1
    return f", {attempts} attempts" if attempts > 1 else ""


def steps(rows: list[Row], codec: str) -> dict[tuple[str, int], Step]:
    """Return the stages and groups of a run in its order, by branch and number."""
    table = _Table(rows, codec)
    for row in sorted(rows, key=table.path):
        table.add(row)
    return table.steps


class _Table:
    """The stages and groups of a run, to which its rows are added in the order of the run."""

    def __init__(self, rows: list[Row], codec: str) -> None:
        self.steps: dict[tuple[str, int], Step] = {}
        self._codec = codec
        self._written = {(row.branch, row.number): at for at, row in enumerate(rows)}
        self._groups = {branch: place for row in rows if row.kind == "group" for branch, place in _branches(row, codec)}
        self._others: dict[str, int] = {}  # branches of groups that have no row yet
        self._around: dict[tuple[str, int], Step] = {}  # the stage at each place, and that of each action
        self._left: dict[tuple[str, int], tuple[str, int]] = {}  # who inserted units, and how many have not begun

    def path(self, row: Row) -> tuple[int, ...]:
        """Return the place of a step in the order of the run."""
        places, branch = [row.number], row.branch
        while branch in self._groups:
            group, index = self._groups[branch]
            places += index, group.number
            branch = group.branch
        places.append(0 if branch == _ROOT else self._others.setdefault(branch, len(self._others) + 1))
        return tuple(reversed(places))

    def add(self, row: Row) -> None:
        """Add the row of a stage, a group or an action; a pipeline has no row in the table."""
        branch, number = key = row.branch, row.number
        by = branch, _inserter_of(row, self._codec)[0]
        if by in self._left:
            who, count = self._left[by]
            self._left[by] = who, count - 1
        if row.kind in ("stage", "group"):
            self._begin(key, row, by)
        elif row.kind == "action":
            self._add_action(row, self._around.get((branch, number - 1)) or self._begin_without_row(row, by))

    def _add_action(self, action: Row, step: Step) -> None:
        key = action.branch, action.number
        step.actions.append(action)
        self._around[key] = step
        row = step.row
        if row is not None and row.status in _OPEN and self._written[key] > self._written[row.branch, row.number]:
            step.row = None  # a resume has reopened it
        if b"inserted" in action.payload:
            units: Any = _parts_of(action, self._codec).get("inserted", ())
            count = len(units["$tuple"] if hasattr(units, "keys") else units)
            self._left[key] = f"{action.stage}/{action.action}", count

    def _begin_without_row(self, first: Row, by: tuple[str, int]) -> Step:
        """Begin the stage of a first action; it was inserted by the latest action that has units left, if there is one."""
        waiting = (at for at, (_, count) in reversed(self._left.items()) if at[0] == first.branch and count > 0)
        return self._begin((first.branch, first.number - 1), first, next(waiting, by))

    def _begin(self, key: tuple[str, int], row: Row, by: tuple[str, int]) -> Step:
        """Begin a stage or group; `by` is the action that inserted it, and `row` its own, or that of its first action."""
        group, _ = self._groups.get(key[0], (None, 0))
        inserter, is_action = self._around.get(by), row.kind == "action"
        if inserter is not None:
            depth = inserter.depth + (inserter.name != row.stage or row.kind == "group")
        else:
            depth = 0 if group is None else self.steps[group.branch, group.number].depth + 1
        source = group if is_action else row
        who = (
            self._left[by][0] if is_action and by in self._left else "" if source is None else _by(source, self._codec)
        )
        step = Step(row.stage, None if is_action else row, min(depth, _DEEPEST), who)
        self.steps[key] = self._around[key] = step
        return step


def _branches(group: Row, codec: str) -> Iterator[tuple[str, tuple[Row, int]]]:
    """Yield the branches of a group that has ended, each with the group and its number there."""
    from flowdeco.engine.outcome import branch_id  # most runs need nothing of it

    count = _parts_of(group, codec).get("branches")
    for index in range(count if isinstance(count, int) else 0):
        yield branch_id(f"{group.branch}.{group.number}", index), (group, index)


def _inserter_of(row: Row, codec: str) -> tuple[int, str]:
    """Return the number and the name of the step that inserted a step, -1 and "" for none."""
    parts = _parts_of(row, codec) if b"by_number" in row.payload else {}
    number = parts.get("by_number")
    return (number, str(parts["by"])) if isinstance(number, int) else (-1, "")


def _by(row: Row, codec: str) -> str:
    """Return who inserted a step, or the group that it came with; "" for none."""
    return str(_parts_of(row, codec).get("by") or "")


def _parts_of(row: Row, codec: str) -> dict[str, Any]:
    """Return the description of a step, as far as it can be read without the modules that it needs."""
    try:
        parts: Any = json.loads(row.payload) if codec == "json" else OutlineCodec().decode(row.payload)
    except (JournalError, ValueError):
        return {}
    return cast("dict[str, Any]", parts) if isinstance(parts, dict) else {}
