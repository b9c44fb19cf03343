"""A run of a journal put side by side with its pipeline, so that they can be compared: no part of it runs.

`engine.reading` reads the run; here its stages are found in the pipeline by their names. The rows of a run
whose process was killed do not name the step that was under way. The pipeline does, as long as it has not changed: it is
taken through the completed steps, and the first one without a row was the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from flowdeco.cli.walk import walk
from flowdeco.durable import SqliteJournal
from flowdeco.engine.evaluation import evaluate_run
from flowdeco.engine.history import Rehearsal
from flowdeco.engine.outcome import ActionRecord, Outcome, Outcomes, Scope, StageRecord, Status, enclosing
from flowdeco.engine.reading import branch_of, read_run, read_steps, stages_by_name
from flowdeco.engine.requests import Begin, Raised
from flowdeco.engine.runs import Run
from flowdeco.engine.terms import Terms
from flowdeco.model.definitions import Parallel, Pipeline
from flowdeco.model.steps import Step

if TYPE_CHECKING:
    from flowdeco.engine.journal import Codec, Remembered
    from flowdeco.show import Ran
    from flowdeco.show.parts import Part

__all__ = ["crashed", "recorded"]


def recorded(journal: SqliteJournal, run_id: str, flow: Pipeline) -> Run:
    """Return a run of a journal as one of this pipeline."""
    remembered = journal.read(run_id)
    run = read_run(remembered, journal.codec, stages_by_name([flow]).get)
    run.pipeline = flow
    if run.status is Status.RUNNING:
        run.stages = _with_next(run, remembered, journal.codec)
    return run


def crashed(ran: Ran) -> Ran:
    """Return the view of a run that was under way when its process ended, with `crashed` as its status."""
    from flowdeco.show.parts import with_ahead

    return replace(ran, status=_CRASHED, parts=with_ahead(map(_crashed, ran.parts), False))


def _crashed(part: Part) -> Part:
    status = _CRASHED if part.status is Status.RUNNING else part.status
    return part._replace(status=status, parts=tuple(map(_crashed, part.parts)))


_CRASHED: Final = cast("Status", "crashed")  # a word for readers of journals: no run has this status


# The steps that were under way when the process ended.


class _Ahead(Rehearsal):
    """A rehearsal that notes the step it stops at in each branch. It calls no stream."""

    def __init__(self, steps: Outcomes, flow: Pipeline) -> None:
        super().__init__(steps, pipeline=flow, code=None)
        self.keeps_records = True
        self.next: dict[str, Step] = {}  # the last action asked for, by branch
        self.begun = frozenset(steps)
        self.by_turns: set[str] = set()  # scopes of groups whose branches are not all under way

    def take(self, branch: str, number: int, unit: Any, around: Any, *, sealed: bool) -> Outcome | None:
        if isinstance(unit, Step):
            self.next[branch] = unit
        elif isinstance(unit, Parallel) and unit.limit is not None:
            self.by_turns.add(f"{branch}.{number}")
        return super().take(branch, number, unit, around, sealed=sealed)

    def begun_stream(self, branch: str, stream: Any, where: str, *, sealed: bool) -> Any:
        return self.stop


def _with_next(run: Run, remembered: Remembered, codec: Codec) -> list[StageRecord]:
    """Return the records of a run, with the steps that were under way if the pipeline determines them."""
    store, steps = read_steps(remembered, codec)
    ahead, read = _Ahead(steps, run.pipeline), list(run.stages)
    trial = Run(run.id, run.pipeline, store)
    terms = Terms(run.id, lambda: 0.0, 0.0, lambda _: False, skip=frozenset(remembered.skip), past=ahead)
    walk(evaluate_run(trial, terms, ()), lambda request: isinstance(request, Begin) or Raised(ahead.stop))
    rows = {_key(record): record for record in read}
    if ahead.changes or trial.error is not None or not rows.keys() <= set(map(_key, trial.stages)):
        return read
    records: list[StageRecord] = []
    for record in trial.stages:
        known = rows.get(_key(record))
        if known is not None and known.status is not Status.RUNNING:
            records.append(known)
        elif record.status is Status.COMPLETED and not record.stage.use:  # its end is written with the next step
            actions = [each._replace(restored=False) for each in record.actions]
            records.append(record._replace(actions=actions, restored=False))
        elif known is not None or not _takes_turns(record.scope, ahead):
            records.append(_under_way(record, known, ahead.next.get(_key(record)[0])))
    return records


def _under_way(record: StageRecord, known: StageRecord | None, step: Step | None) -> StageRecord:
    """Return the record of a stage with the action that came next."""
    actions = [] if known is None else list(known.actions)
    if step is not None and step.name not in [each.name for each in actions]:
        actions.append(ActionRecord(step.name, step.action, Status.RUNNING, 0.0, 0.0))
    seen = record if known is None else known
    return record._replace(
        status=Status.RUNNING, error=None, actions=actions, started=seen.started, elapsed=seen.elapsed
    )


def _key(record: StageRecord) -> tuple[str, int]:
    return branch_of(record.scope), record.number


def _takes_turns(scope: Scope | None, ahead: _Ahead) -> bool:
    """Whether a branch around a stage may not have begun: it has no rows, and its group is limited."""
    return any(
        each.id in ahead.by_turns and each.branch is not None and branch_of(each) not in ahead.begun
        for each in enclosing(scope)
    )
