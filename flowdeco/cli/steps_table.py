"""The table of a run, read from the rows of its journal, without the modules that read whole runs: they take a while."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

from flowdeco.cli.report import StepRow, duration
from flowdeco.durable import Row
from flowdeco.durable.codec import OutlineCodec
from flowdeco.durable.info import Step, steps
from flowdeco.errors import JournalError

__all__ = ["Places", "place", "step_rows"]

_ROOT: Final = "0"  # the branch of the run itself
_DEEPEST: Final = 16  # stages whose insertions are nested deeper are indented like these


def step_rows(rows: list[Row], state: str, codec: str) -> Iterator[StepRow]:
    """Yield the rows of a run in its order, with a row for each group before its stages."""
    places = Places(rows, codec)
    found: list[tuple[tuple[str, int], Iterable[StepRow]]] = [
        ((row.branch, row.number), [StepRow(0, f"{row.stage} (parallel)")]) for row in places.groups
    ]
    for step in steps(rows):
        found.append((place(step), _rows_of(step, state, codec, places.inserters.get(place(step), ""))))
    for key, made in sorted(found, key=lambda each: places.path(*each[0])):
        yield from (row._replace(depth=row.depth + places.depth(*key)) for row in made)


def place(step: Step) -> tuple[str, int]:
    """Return the branch and the number of a stage; one that is at work has them before its first action."""
    return (step.row.branch, step.row.number) if step.row else (step.actions[0].branch, step.actions[0].number - 1)


def _rows_of(step: Step, state: str, codec: str, by: str) -> Iterator[StepRow]:
    """Yield a row for a stage, and for each of its actions unless it has only one of the same name.

    `by` is who inserted a stage that is at work.
    """
    alone = [action.action for action in step.actions] == [step.name]
    if step.row is not None:
        elapsed = "" if step.row.status == "skipped" else duration(step.row.elapsed)
        status = _with_attempts(step.actions[0] if alone else step.row, codec, state)
        yield StepRow(0, step.name, status, elapsed, str(_parts_of(step.row, codec).get("by") or ""))
    elif alone and state == "running" and step.actions[0].status == "completed":
        # The end of a stage is written together with the step after it.
        yield StepRow(0, step.name, "completed", duration(step.actions[0].elapsed), by)
    else:
        yield StepRow(0, step.name, f"{state} here or later" if state in ("crashed", "running") else state, "", by)
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
    if row.status not in ("failed", "cancelled") and b"attempts" not in row.payload:  # it need not be read
        return row.status
    parts = _parts_of(row, codec)
    went_on = row.status == "failed" and state in ("completed", "bailed", "suspended")
    status = "recovered" if went_on or parts.get("recovered") else row.status
    attempts = parts.get("attempts", 1)
    return f"{status}, {attempts} attempts" if attempts > 1 else status


class Places:
    """Where the stages and groups of a run are: their order, and how far they are indented."""

    def __init__(self, rows: Sequence[Row], codec: str) -> None:
        self._codec = codec
        self.groups = [row for row in rows if row.kind == "group"]
        self._around = dict(_branches(self.groups, codec))  # the group of a branch, and the number of the branch in it
        self._others: dict[str, int] = {}  # branches of groups that have no row yet
        self.depths: dict[tuple[str, int], int] = {}
        self.inserters: dict[tuple[str, int], str] = {}  # of stages at work, which have no row before they end
        self._steps: dict[tuple[str, int], tuple[str, int]] = {}  # the name and depth of a stage, also for its actions
        left: dict[tuple[str, int], tuple[str, int]] = {}  # who inserted units, and how many of these have not begun
        for row in sorted(rows, key=lambda row: self.path(row.branch, row.number)):
            branch, number = key = row.branch, row.number
            by = branch, _inserter_of(row, codec)[0]
            if by in left:
                left[by] = left[by][0], left[by][1] - 1
            if row.kind in ("stage", "group"):
                self._put(key, row.stage, by, is_group=row.kind == "group")
            elif row.kind == "action":
                if (branch, number - 1) not in self._steps:
                    by = next((at for at, (_, count) in reversed(left.items()) if at[0] == branch and count > 0), by)
                    self._put((branch, number - 1), row.stage, by)
                    self.inserters[branch, number - 1] = left[by][0] if by in left else self._inserter_of_group(branch)
                self._steps[key] = self._steps[branch, number - 1]
                if b"inserted" in row.payload:
                    units: Any = _parts_of(row, codec).get("inserted", ())
                    left[key] = f"{row.stage}/{row.action}", len(units["$tuple"] if hasattr(units, "keys") else units)

    def _put(self, key: tuple[str, int], stage: str, by: tuple[str, int], *, is_group: bool = False) -> None:
        """Note the name and the depth of a stage or group; `by` is the action that inserted it."""
        inserter = self._steps.get(by)
        name, above = inserter or (stage, self.depth(*key))
        is_below = name != stage or (is_group and inserter is not None)
        self.depths[key] = min(above + is_below, _DEEPEST)
        self._steps[key] = stage, self.depths[key]

    def _inserter_of_group(self, branch: str) -> str:
        row, _ = self._around.get(branch, (None, 0))
        return "" if row is None else str(_parts_of(row, self._codec).get("by") or "")

    def path(self, branch: str, number: int) -> tuple[int, ...]:
        """Return the place of a step in the order of the run."""
        places = [number]
        while (around := self._around.get(branch)) is not None:
            group, index = around
            places += index, group.number
            branch = group.branch
        places.append(0 if branch == _ROOT else self._others.setdefault(branch, len(self._others) + 1))
        return tuple(reversed(places))

    def depth(self, branch: str, number: int) -> int:
        """Return how far a step is indented."""
        inside = 0
        while (branch, number) not in self.depths and (around := self._around.get(branch)) is not None:
            branch, number, inside = around[0].branch, around[0].number, inside + 1
        return self.depths.get((branch, number), 0) + inside


def _branches(groups: Iterable[Row], codec: str) -> Iterator[tuple[str, tuple[Row, int]]]:
    """Yield the branches of groups that have ended, each with its group and its number there."""
    for row in groups:
        from flowdeco.engine.outcome import branch_id  # most runs need nothing of it

        count = _parts_of(row, codec).get("branches")
        for index in range(count if isinstance(count, int) else 0):
            yield branch_id(f"{row.branch}.{row.number}", index), (row, index)


def _inserter_of(row: Row, codec: str) -> tuple[int, str]:
    """Return the number and the name of the step that inserted a step, -1 and "" for none."""
    parts = _parts_of(row, codec) if b"by_number" in row.payload else {}
    number = parts.get("by_number")
    return (number, str(parts["by"])) if isinstance(number, int) else (-1, "")


def _parts_of(row: Row, codec: str) -> dict[str, Any]:
    """Return the description of a step, as far as it can be read without the modules that it needs."""
    try:
        parts: Any = json.loads(row.payload) if codec == "json" else OutlineCodec().decode(row.payload)
    except (JournalError, ValueError):
        return {}
    return cast("dict[str, Any]", parts) if isinstance(parts, dict) else {}
