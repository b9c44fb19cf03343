"""A run as its journal has it, read without taking it up: nothing of it runs.

A journal has what is over. The stages of its steps are put side by side with the pipeline that they were steps of, so
that they can be compared with its plan: branch by branch, in the order of the run. Who inserted a stage is known from
what each action inserted; of a stream, which is not repeated to read it, everything that nobody else inserted is taken
for its own. Where a run failed stands behind its error (see `engine.location`); otherwise the stage in which it stopped
is the one that was next, where that is certain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from flowdeco.durable import RunInfo, SqliteJournal, history
from flowdeco.durable.info import Step
from flowdeco.engine.journal import Codec, Row
from flowdeco.engine.location import Place, places_of
from flowdeco.engine.memory import ROOT, branch_id, in_full
from flowdeco.engine.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.errors import JournalError, RunError, Suspend
from flowdeco.model.declare import action
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, one_action_stage
from flowdeco.model.store import Store

if TYPE_CHECKING:
    from flowdeco.show import Ran
    from flowdeco.show.parts import Part

__all__ = ["crashed", "recorded"]


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
    text, places = places_of(info.error)
    if info.error is not None:
        run.error = _error(text)
        for place in places:
            run.error.add_note(f"{place}, run {info.id!r}" if not place.error else str(place))
    run.started = info.started
    run.elapsed = max(0.0, info.updated - info.started)
    run.stages = _Reader(run, codec, history(path, info.id), places).records()
    return run


def crashed(ran: Ran) -> Ran:
    """Return what ran of a run that was under way when its process ended, called so."""
    return replace(ran, status=_CRASHED, parts=tuple(map(_crashed, ran.parts)))


def _crashed(part: Part) -> Part:
    status = _CRASHED if part.status is Status.RUNNING else part.status
    return part._replace(status=status, parts=tuple(map(_crashed, part.parts)))


_CRASHED: Final = cast("Status", "crashed")  # a word of those who look at journals: no run says so of itself


def _error(text: str) -> RunError:
    """Return an error that says what the run failed with, and is named like it."""
    name, colon, message = text.partition(": ")
    if not (colon and name.replace(".", "").isidentifier()):
        return RunError(text)
    named: type[RunError] = type(name, (RunError,), {"__module__": "builtins"})
    return named(message)


class _Coming(NamedTuple):
    """A stage or a group whose turn has not come yet."""

    unit: Stage | Parallel
    by: str | None
    scope: Scope | None


class _Branch:
    """A branch while its rows are read: what can come in it, in order, and its last stage if that is not over."""

    def __init__(self, queue: list[_Coming], *, certain: bool) -> None:
        self.queue = queue
        self.certain = certain  # what comes next was under way, if the run was
        self.stopped = False  # before its end
        self.streams: list[str] = []
        self.records: list[StageRecord] = []


class _Reader:
    """What puts rows side by side with the pipeline."""

    def __init__(self, run: Run, codec: Codec, rows: Iterable[Row], places: list[Place]) -> None:
        self.run = run
        self.codec = codec
        self.places = list(places)
        self.blamed = bool(places)
        self.error: BaseException | None = run.error
        if run.status is Status.SUSPENDED:
            self.error = Suspend(run.reason or "")
        self.rows: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self.rows[row.branch].append(row)
        self._ids = count()

    def records(self) -> list[StageRecord]:
        """Return the records of the run."""
        return self._read(ROOT, [self.run.pipeline], None, None, certain=True).records

    def _read(
        self, id: str, units: Iterable[Any], by: str | None, scope: Scope | None, *, certain: bool
    ) -> _Branch:  # fmt: skip
        branch = _Branch([], certain=certain)
        branch.queue = self._coming(branch, units, by, scope)
        actions: list[Row] = []
        for row in sorted(self.rows[id], key=lambda row: row.number):
            if row.kind == "action":
                actions.append(row)
            elif row.kind == "stage":
                self._stage(branch, Step(row.stage, row, actions))
                actions = []
            elif row.kind == "group":
                self._group(branch, row)
            else:
                self._end_of_pipeline(branch, row)
        self._stopped(branch, actions)
        return branch

    def _coming(self, branch: _Branch, units: Iterable[Any], by: str | None, scope: Scope | None) -> list[_Coming]:
        """Return the stages and groups of units, with who inserted them and what they are in."""
        found: list[_Coming] = []
        for unit in units:
            if isinstance(unit, Stream):
                branch.streams.append(by or "")
            elif isinstance(unit, Pipeline):
                whole = unit.plain or (unit is self.run.pipeline and by is None)
                within = scope if whole else Scope(unit.name, f"pipeline {next(self._ids)}", None, by, scope)
                found += self._coming(branch, unit.units, by, within)
            elif isinstance(unit, (Parallel, Stage)):
                found.append(_Coming(unit, by, scope))
            else:
                found.append(_Coming(one_action_stage(cast("Action[..., Any]", unit)), by, scope))
        return found

    # What is over.

    def _stage(self, branch: _Branch, step: Step) -> StageRecord:
        """Add the record of a stage; one that is not over has the status of the run that it stopped with."""
        coming = self._take(branch, step)
        stage, dynamic = cast("Stage", coming.unit), dict[str, tuple[Action[..., Any], str]]()
        inserted: list[_Coming] = []
        actions: list[ActionRecord] = []
        for row in step.actions:
            did = _ran(stage, row, self._told(row), dynamic)
            units = (unit for unit in did.inserted if not isinstance(unit, Action))
            inserted += self._coming(branch, units, f"{row.stage}/{row.action}", coming.scope)
            actions.append(did)
        first = step.row or step.actions[0]
        told = {} if step.row is None else self._told(step.row)
        if told.get("failed"):  # the action whose failure was recovered around the stage
            name, failed, started, elapsed, by, error, attempts = told["failed"]
            known = dynamic[name][0] if name in dynamic else _action_of(stage, name)
            actions.append(ActionRecord(name, known, Status(failed), started, elapsed, by, error, attempts))
        branch.queue[:0] = inserted + self._coming(branch, told.get("inserted", ()), stage.name, coming.scope)
        status, error = self.run.status, self.error
        if step.row is not None:
            status, error = Status(step.row.status), told.get("error")
        elif len(actions) == len(stage) + len(dynamic) and self.run.status is Status.RUNNING and not stage.use:
            status = Status.COMPLETED  # its end is written with what comes next
        else:
            self._blame(stage, actions, dynamic)
        record = StageRecord(
            step.name, stage, status, first.started, max(first.elapsed, sum(action.elapsed for action in actions)),
            coming.by, actions, error, told.get("attempts") or 1, told.get("recovered", False), scope=coming.scope,
        )  # fmt: skip
        branch.records.append(record)
        return record

    def _group(self, branch: _Branch, row: Row) -> None:
        """Add what the branches of a group did."""
        index = next((i for i, one in enumerate(branch.queue) if _is_group(one.unit, row.stage)), None)
        coming = None if index is None else branch.queue.pop(index)
        by, outer = (None, None) if coming is None else coming[1:]
        scope = Scope(row.stage, f"{row.branch}.{row.number}", None, by, outer)
        units = () if coming is None else cast("Parallel", coming.unit).units
        limited = coming is None or cast("Parallel", coming.unit).limit is not None
        for number in range(self._told(row).get("branches", 0)):
            its = branch_id(row.branch, row.number, number)
            certain = branch.certain and (not limited or self.run.status is Status.SUSPENDED)
            inside = self._read(its, units[number : number + 1], by, scope.of(number), certain=certain)
            branch.records += inside.records
            branch.stopped = branch.stopped or inside.stopped or bool(inside.queue or inside.streams)

    def _end_of_pipeline(self, branch: _Branch, row: Row) -> None:
        """Add what the middleware of a pipeline inserted; what was left to do in it is left out."""
        told = self._told(row)
        last = branch.records[-1].scope if branch.records else None
        ended = next((scope for scope in _outwards(last) if scope.branch is None and scope.name == row.stage), None)
        outer = None if ended is None else ended.outer
        if told.get("early") and ended is not None:
            branch.queue = [one for one in branch.queue if ended not in _outwards(one.scope)]
        branch.queue[:0] = self._coming(branch, told.get("inserted", ()), row.stage, outer)

    def _take(self, branch: _Branch, step: Step) -> _Coming:
        queue = branch.queue
        if step.row is not None and step.row.status == Status.SKIPPED:
            self._open_skipped(branch, step.name)
        for index, coming in enumerate(queue):
            if isinstance(coming.unit, Stage) and coming.unit.name == step.name:
                return queue.pop(index)
        return _Coming(Stage(step.name), branch.streams[-1] if branch.streams else None, None)

    def _open_skipped(self, branch: _Branch, name: str) -> None:
        """Put what is in a group in its place, if that is what a skipped stage was in: the group never began."""
        queue = branch.queue
        for index, (unit, by, outer) in enumerate(queue):
            if isinstance(unit, Stage):
                if unit.name == name:
                    return
                continue
            scope = Scope(unit.name, f"group {next(self._ids)}", None, by, outer)
            inside = [
                coming
                for number, part in enumerate(unit.units)
                for coming in self._coming(branch, [part], by, scope.of(number))
            ]
            if any(coming.unit.name == name for coming in inside):
                queue[index : index + 1] = inside
                return

    # Where it stopped.

    def _stopped(self, branch: _Branch, actions: list[Row]) -> None:
        """Add the record of the stage that was under way, if it can be told which one that was."""
        if self.run.status in (Status.COMPLETED, Status.BAILED):
            return
        if actions and self._stage(branch, Step(actions[0].stage, None, actions)).status is not Status.COMPLETED:
            branch.stopped = True
            return
        coming = branch.queue[0] if branch.queue else None
        if coming is None or not isinstance(coming.unit, Stage) or branch.streams:
            return
        blamed = any(place.stage == coming.unit.name for place in self.places)
        if not blamed and (self.blamed or branch.stopped or not branch.certain):
            return
        branch.stopped = True
        del branch.queue[0]
        stage, run, actions_of_it = coming.unit, self.run, list[ActionRecord]()
        if blamed:
            self._blame(stage, actions_of_it, {})
        elif len(stage):
            first = stage._actions[0]
            actions_of_it.append(ActionRecord(first.name, first, run.status, run.started, 0.0, None, self.error))
        record = StageRecord(
            stage.name, stage, run.status, run.started, 0.0, coming.by, actions_of_it, self.error, scope=coming.scope
        )
        branch.records.append(record)

    def _blame(
        self, stage: Stage, actions: list[ActionRecord], dynamic: dict[str, tuple[Action[..., Any], str]]
    ) -> None:
        """Add the action with which a stage failed, if that is known."""
        place = next((place for place in self.places if place.stage == stage.name), None)
        if place is None:
            return
        self.places.remove(place)
        if place.action is not None:
            known, by = dynamic.get(place.action) or (_action_of(stage, place.action), None)
            error = _error(place.error) if place.error else self.error
            what = ActionRecord(place.action, known, self.run.status, self.run.started, 0.0, by, error, place.attempts)
            actions.append(what)

    def _told(self, row: Row) -> dict[str, Any]:
        """Return what a row has beside its columns."""
        return in_full(self.codec.decode(row.payload))


def _ran(
    stage: Stage, row: Row, told: dict[str, Any], dynamic: dict[str, tuple[Action[..., Any], str]]
) -> ActionRecord:
    """Return the record of an action; the actions that it inserted join those of the stage."""
    name = row.action or ""
    known, inserted_by = dynamic.get(name) or (_action_of(stage, name), None)
    inserted = tuple(told.get("inserted", ()))
    for unit in inserted:
        if isinstance(unit, Action):
            found = cast("Action[..., Any]", unit)
            dynamic[found.name] = found, f"{row.stage}/{name}"
    return ActionRecord(
        name, known, Status(row.status), row.started, row.elapsed, inserted_by,
        told.get("error"), told.get("attempts") or 1, told.get("recovered", False), inserted,
    )  # fmt: skip


def _is_group(unit: Stage | Parallel, name: str) -> bool:
    return isinstance(unit, Parallel) and unit.name == name


def _outwards(scope: Scope | None) -> Iterator[Scope]:
    while scope is not None:
        yield scope
        scope = scope.outer


def _action_of(stage: Stage, name: str) -> Action[..., Any]:
    for found in stage:
        if found.name == name:
            return found
    return _gone.with_options(name=name)


@action
def _gone() -> None:
    """Stands for an action that the pipeline no longer has."""
