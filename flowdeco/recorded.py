"""A run as its journal has it, read without taking it up: nothing of it runs.

A journal has what is over. The stages of its steps are put side by side with the pipeline that they were steps of, so
that they can be compared with its plan. Who inserted a stage is known from what each action inserted; of a stream,
which is not repeated to read it, everything that nobody else inserted is taken for its own. The stage in which a run
stopped has no step before its first action is over: outside of groups it is the one that was next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from flowdeco.declare import action
from flowdeco.definitions import Action, Parallel, Pipeline, Stage, Stream, Unit, one_action_stage
from flowdeco.durable import RunInfo, SqliteJournal, history
from flowdeco.durable.info import Step, steps
from flowdeco.errors import JournalError, RunError
from flowdeco.journal import Codec, Row
from flowdeco.runs import ActionRecord, Run, StageRecord, Status
from flowdeco.store import Store

__all__ = ["recorded"]


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
    run.error = _error(info.error) if info.error is not None else None
    run.started = info.started
    run.elapsed = max(0.0, info.updated - info.started)
    rows = history(path, info.id)
    coming = _Coming(flow, codec, run)
    for row in rows:
        if row.kind == "pipeline":
            coming.later += coming.of(coming.told(row).get("inserted", ()), row.stage)
    found = steps(rows)
    run.stages = [coming.record(step) for step in found]
    if run.status not in (Status.COMPLETED, Status.BAILED) and all(step.row is not None for step in found):
        run.stages += coming.stopped_in()
    return run


def _error(text: str) -> RunError:
    """Return an error that says what the run failed with, and is named like it."""
    name, colon, message = text.partition(": ")
    if not (colon and name.replace(".", "").isidentifier()):
        return RunError(text)
    named: type[RunError] = type(name, (RunError,), {"__module__": "builtins"})
    return named(message)


class _Coming:
    """The stages that can come, in order: those of the pipeline, and before them those that were inserted."""

    def __init__(self, flow: Pipeline, codec: Codec, run: Run) -> None:
        self.codec = codec
        self.run = run
        self.groups = False
        self.streams: list[str] = []
        self.queue = self.of([flow], None)
        self.later: list[tuple[Stage, str | None]] = []

    def told(self, row: Row) -> dict[str, Any]:
        """Return what a row has beside its columns."""
        return cast("dict[str, Any]", self.codec.decode(row.payload))

    def of(self, units: Iterable[Any], by: str | None) -> list[tuple[Stage, str | None]]:
        """Return the stages of units, with who inserted them."""
        found: list[tuple[Stage, str | None]] = []
        for unit in units:
            if isinstance(unit, Stream):
                self.streams.append(by or "")
            else:
                self.groups = self.groups or _has_groups(unit)
                found.extend((stage, by) for stage in _stages(unit))
        return found

    def record(self, step: Step) -> StageRecord:
        """Return the record of a stage; one that is not over has the status of the run that it stopped with."""
        stage, inserted_by = self._take(step.name)
        dynamic: dict[str, tuple[Action[..., Any], str]] = {}
        inserted: list[tuple[Stage, str | None]] = []
        actions = [self._action(stage, row, dynamic, inserted) for row in step.actions]
        first = step.row or step.actions[0]
        told = {} if step.row is None else self.told(step.row)
        if told.get("failed"):  # the action whose failure was recovered around the stage
            name, failed, started, elapsed, by, error, attempts = told["failed"]
            known = dynamic[name][0] if name in dynamic else _action_of(stage, name)
            actions.append(ActionRecord(name, known, Status(failed), started, elapsed, by, error, attempts))
        self.queue[:0] = inserted + self.of(told.get("inserted", ()), stage.name)
        status = self.run.status if step.row is None else Status(step.row.status)
        stopped = told.get("error") if step.row is not None else self.run.error
        return StageRecord(
            step.name, stage, status, first.started, first.elapsed, inserted_by, actions,
            stopped, told.get("attempts") or 1, told.get("recovered", False),
        )  # fmt: skip

    def stopped_in(self) -> list[StageRecord]:
        """Return the record of the stage that was next, if it can be told which one that was."""
        if self.groups or self.streams or not self.queue:
            return []
        run, (stage, by) = self.run, self.queue[0]
        actions = [ActionRecord(action.name, action, run.status, run.started, 0.0, None, run.error) for action in stage]
        return [StageRecord(stage.name, stage, run.status, run.started, 0.0, by, actions[:1], run.error)]

    def _take(self, name: str) -> tuple[Stage, str | None]:
        for coming in (self.queue, self.later):
            for index, (stage, by) in enumerate(coming):
                if stage.name == name:
                    del coming[index]
                    return stage, by
        return Stage(name), self.streams[-1] if self.streams else None

    def _action(
        self, stage: Stage, row: Row, dynamic: dict[str, tuple[Action[..., Any], str]],
        coming: list[tuple[Stage, str | None]],
    ) -> ActionRecord:  # fmt: skip
        """Return the record of an action; the actions that it inserted join those of the stage."""
        name, told, who = row.action or "", self.told(row), f"{row.stage}/{row.action}"
        known, inserted_by = dynamic.get(name) or (_action_of(stage, name), None)
        inserted = tuple(told.get("inserted", ()))
        for unit in inserted:
            if isinstance(unit, Action):
                found = cast("Action[..., Any]", unit)
                dynamic[found.name] = found, who
        coming += self.of((unit for unit in inserted if not isinstance(unit, Action)), who)
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


def _has_groups(unit: Unit) -> bool:
    return isinstance(unit, Parallel) or (isinstance(unit, Pipeline) and any(map(_has_groups, unit.units)))


def _action_of(stage: Stage, name: str) -> Action[..., Any]:
    for found in stage:
        if found.name == name:
            return found
    return _gone.with_options(name=name)


@action
def _gone() -> None:
    """Stands for an action that the pipeline no longer has."""
