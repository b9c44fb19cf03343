"""A run as its journal has it, read without taking it up: nothing of it runs.

A journal has what is over. The stages of its steps are put side by side with the pipeline that they were steps of, so
that they can be compared with its plan. Who inserted a stage is known from what each action inserted; of a stream,
which is not repeated to read it, everything that the pipeline does not have is taken for its own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from flowdeco.declare import action
from flowdeco.definitions import Action, Parallel, Pipeline, Stage, Stream, Unit, one_action_stage
from flowdeco.durable import RunInfo, SqliteJournal, history
from flowdeco.errors import JournalError, RunError
from flowdeco.journal import Codec, Row
from flowdeco.runs import ActionRecord, Run, StageRecord, Status
from flowdeco.store import Store

__all__ = ["Step", "recorded", "steps"]


class Step(NamedTuple):
    """A stage of a journal, with the rows of its actions; `row` is None where the stage is not over."""

    name: str
    row: Row | None
    actions: list[Row]


def steps(rows: Iterable[Row]) -> list[Step]:
    """Return the stages that rows tell of, in the order in which they were over, those that are not over last."""
    found: list[Step] = []
    open: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind == "action":
            open[row.branch].append(row)
        elif row.kind == "stage":
            found.append(Step(row.stage, row, open.pop(row.branch, [])))
    found.extend(Step(actions[0].stage, None, actions) for actions in open.values())
    return found


def recorded(path: str, info: RunInfo, flow: Pipeline) -> Run:
    """Return a run of a journal with the records of what is over; its store is empty.

    Raises `JournalError` where its steps are written in a codec of somebody's own.
    """
    if info.codec not in ("pickle", "json"):
        raise JournalError(f"run {info.id!r} is written in the codec {info.codec!r}, which only your program knows")
    codec = SqliteJournal(path, codec=cast("Any", info.codec)).codec
    run = Run(info.id, flow, Store())
    run.status = Status(info.status)
    run.reason = info.reason
    run.error = RunError(info.error) if info.error is not None else None
    run.started = info.started
    run.elapsed = max(0.0, info.updated - info.started)
    rows = history(path, info.id)
    known = _Known(flow, codec, run.status)
    for row in rows:
        if row.kind == "pipeline":
            known.expect(known.told(row).get("inserted", ()), row.stage)
    run.stages = [known.record(step) for step in steps(rows)]
    return run


class _Known:
    """The stages that can come: those of the pipeline, and those that were inserted."""

    def __init__(self, flow: Pipeline, codec: Codec, status: Status) -> None:
        self.codec = codec
        self.status = status
        self.static = {stage.name: stage for stage in _stages(flow)}
        self.inserted: defaultdict[str, deque[tuple[Stage, str]]] = defaultdict(deque)
        self.streams: list[str] = []

    def told(self, row: Row) -> dict[str, Any]:
        """Return what a row has beside its columns."""
        return cast("dict[str, Any]", self.codec.decode(row.payload))

    def expect(self, units: Iterable[Any], by: str) -> None:
        """Expect the stages of units that were inserted."""
        for unit in units:
            if isinstance(unit, Stream):
                self.streams.append(by)
            else:
                for stage in _stages(unit):
                    self.inserted[stage.name].append((stage, by))

    def record(self, step: Step) -> StageRecord:
        """Return the record of a stage; one that is not over has the status of the run that it stopped with."""
        stage, inserted_by = self._take(step.name)
        dynamic: dict[str, tuple[Action[..., Any], str]] = {}
        actions = [self._action(stage, row, dynamic) for row in step.actions]
        first = step.row or step.actions[0]
        told = {} if step.row is None else self.told(step.row)
        self.expect(told.get("inserted", ()), stage.name)
        status = self.status if step.row is None else Status(step.row.status)
        return StageRecord(
            step.name, stage, status, first.started, first.elapsed, inserted_by, actions,
            told.get("error"), told.get("attempts") or 1, told.get("recovered", False),
        )  # fmt: skip

    def _take(self, name: str) -> tuple[Stage, str | None]:
        if self.inserted[name]:
            return self.inserted[name].popleft()
        if name in self.static:
            return self.static[name], None
        return Stage(name), self.streams[-1] if self.streams else None

    def _action(self, stage: Stage, row: Row, dynamic: dict[str, tuple[Action[..., Any], str]]) -> ActionRecord:
        """Return the record of an action; the actions that it inserted join those of the stage."""
        name, told, who = row.action or "", self.told(row), f"{row.stage}/{row.action}"
        known, inserted_by = dynamic.get(name) or (_action_of(stage, name), None)
        inserted = tuple(told.get("inserted", ()))
        for unit in inserted:
            if isinstance(unit, Action):
                found = cast("Action[..., Any]", unit)
                dynamic[found.name] = found, who
        self.expect((unit for unit in inserted if not isinstance(unit, Action)), who)
        return ActionRecord(
            name, known, Status(row.status), row.started, row.elapsed, inserted_by,
            told.get("error"), told.get("attempts") or 1, told.get("recovered", False), inserted,
        )  # fmt: skip


def _stages(unit: Unit) -> Iterator[Stage]:
    if isinstance(unit, (Pipeline, Parallel)):
        for part in unit.units:
            yield from _stages(part)
    elif isinstance(unit, Stage):
        yield unit
    else:
        yield one_action_stage(cast("Action[..., Any]", unit))


def _action_of(stage: Stage, name: str) -> Action[..., Any]:
    for found in stage:
        if found.name == name:
            return found
    return _gone.with_options(name=name)


@action
def _gone() -> None:
    """Stands for an action that the pipeline no longer has."""
