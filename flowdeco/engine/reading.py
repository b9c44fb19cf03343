"""A run read from its journal, without its pipeline: no part of it runs, and another process may be working on it.

1. The rows of a branch, by their numbers, are its steps in the order of the run. A stage has the number before that of
   its first action, and its actions follow it without a gap.
2. A scope that ended has a row. A stage whose row is missing is `running`, and so is one that had failed, if one of its
   actions was written later than its own row: a resume has reopened it.
3. The row of a step names the pipelines around it; that of a group has the number of its branches, which gives their ids.
4. The definitions of a run are not in its journal. Stages that are not found by their names get stand-ins with
   the actions that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import reduce
from math import inf
from typing import Any, Final, TypeAlias, cast

from flowdeco.engine.generations import generations
from flowdeco.engine.journal import Codec, Remembered
from flowdeco.engine.outcome import (
    ROOT,
    ActionRecord,
    Inserter,
    Outcome,
    Outcomes,
    Scope,
    StageRecord,
    Status,
    amended,
    branch_id,
    enclosing,
    innermost_branch,
    inserter,
)
from flowdeco.engine.records import Records
from flowdeco.engine.rows import outcomes, with_actions
from flowdeco.engine.runs import Run
from flowdeco.engine.waits import Given, asked, open_questions, starting_point
from flowdeco.errors import NOT_GIVEN, PAUSE, SLEEP, JournalError, RunError, Wait, members_of, portable, told
from flowdeco.model.deep import Deep, evaluated
from flowdeco.model.definitions import Action, Pipeline, Stage, Stream, Unit, stages_in
from flowdeco.model.sentinels import UNSET
from flowdeco.model.stand_ins import missing_action
from flowdeco.model.store import Store

__all__ = [
    "branch_of",
    "encoded_inputs",
    "failed_steps",
    "given_inputs",
    "in_branch",
    "questions_and_used_keys",
    "read_outline",
    "read_run",
    "read_steps",
    "stages_by_name",
]

Find: TypeAlias = "Callable[[str], Stage | None]"
_ERRORS: Final = ""
_FAILED = frozenset({Status.FAILED, Status.CANCELLED})


def read_run(remembered: Remembered, codec: Codec, find: Find = lambda name: None) -> Run:
    """Return a run as its journal has it; `find` returns the stages of its pipeline by name.

    Its store is that with which a resume would begin; once the run has ended, with the writes of its layers on the way out.
    """
    remembered = generations(remembered)[-1]
    store, steps = read_steps(remembered, codec)
    run = Run(remembered.run_id, Pipeline(name=remembered.pipeline), store)
    run.status = Status(remembered.status)
    _apply(steps.get(ROOT, {}), store, has_ended=run.status is not Status.RUNNING)
    result = evaluated(_result(steps, ROOT))
    run.result = None if result is UNSET else result
    run.reason = remembered.reason
    if run.status is Status.SUSPENDED:
        run.waits = current_waits(steps)
    reader = _Reader(_marked(steps, remembered), find)
    run.stages, run.pipelines = evaluated(reader.branch(ROOT, None)), reader.pipelines
    run.error = _error(steps.get(ROOT, {}), remembered)
    if run.error is not None:
        run.stages = _with_one_error(run.stages, list(members_of(run.error)))
    run.started, run.elapsed = remembered.started, remembered.total()
    run.resumed = [started for _, started in remembered.legs]
    return run


def _marked(steps: Outcomes, remembered: Remembered) -> Outcomes:
    """Return the steps of a run, those marked as restored that had ended before it was resumed last."""
    if not remembered.legs:
        return steps
    since, _ = remembered.legs[-1]
    written = {(row.branch, row.number): at for at, row in enumerate(remembered.rows)}  # last
    return {
        branch: {
            number: did._replace(restored=True) if did.is_final and written[branch, number] < since else did
            for number, did in mine.items()
        }
        for branch, mine in steps.items()
    }


def current_waits(steps: Outcomes) -> list[Wait]:
    """Return the times and the answers that a suspended run waits for, in branch order."""
    return [wait for _, did in asked(steps) for wait in did.waits if wait.kind in (SLEEP, PAUSE) or wait.is_open]


def read_outline(remembered: Remembered, *codecs: Codec, whole: bool = False) -> Run:
    """Return a run without its values, to show where it failed; or the whole of it, with values as the codecs read them.

    Only failures are decoded, which takes little memory and imports nothing that the values need. Each payload is decoded
    by the first codec that can; one that none can decode is left out, and so are the contents of completed groups.
    """
    lenient = _Lenient(*codecs)
    if whole:
        return read_run(remembered, lenient)
    nothing = lenient.encode({}, "")
    rows = [row if row.status in _FAILED else row._replace(payload=nothing) for row in remembered.rows]
    return read_run(remembered._replace(inputs=[], rows=rows), lenient)


class _Lenient:
    """A codec that decodes a payload by the first of several codecs that can; as empty, if none can."""

    def __init__(self, *codecs: Codec) -> None:
        self.name = codecs[0].name
        self.encode = codecs[0].encode
        self._codecs = codecs

    def decode(self, payload: bytes) -> Any:
        for codec in self._codecs:
            with suppress(JournalError):
                return codec.decode(payload)
        return {}


def read_steps(remembered: Remembered, codec: Codec) -> tuple[Store, Outcomes]:
    """Return the store with the inputs of a run, and its steps."""
    remembered = generations(remembered)[-1]
    steps, store = starting_point(outcomes(remembered.rows, codec), given_inputs(remembered, codec))
    return store, steps


def questions_and_used_keys(remembered: Remembered, codec: Codec) -> tuple[list[Wait], set[str]]:
    """Return the open questions, and the keys whose answers or inputs were used, as far as payloads can be decoded."""
    steps = outcomes(generations(remembered)[-1].rows, _Lenient(codec))
    waits = (wait for mine in steps.values() for did in mine.values() for wait in did.waits)
    return open_questions(steps), {wait.key for wait in waits if wait.given != NOT_GIVEN}


def encoded_inputs(
    encode: Callable[[Any, str], bytes],
    codec: Codec,
    values: Mapping[str, Any],
    errors: Mapping[str, BaseException] = {},
) -> bytes:
    """Return inputs and answers as they are written; errors are under the one key that no value can have."""

    def copied(error: BaseException) -> Any:
        return codec.decode(codec.encode(error, "error"))

    known = {key: portable(error, copied) for key, error in errors.items()}
    return encode({**values, _ERRORS: known} if known else dict(values), "inputs")


def given_inputs(remembered: Remembered, codec: Codec) -> list[Given]:
    """Return everything that a run was given, in order; raises `JournalError`."""
    try:
        found: list[Given] = []
        for rows, payload in remembered.inputs:
            values = dict(codec.decode(payload))
            errors = values.pop(_ERRORS, {})
            found.append(Given(rows, Store(values), errors))
        return found
    except (TypeError, ValueError) as error:
        raise JournalError(
            f"the journal is damaged: the inputs of run {remembered.run_id!r} are not a mapping"
        ) from error


# The state of the run.


def _apply(steps: dict[int, Outcome], store: Store, *, has_ended: bool) -> None:
    """Apply the writes of the steps of the run's own branch: for a scope, when it begins and when it ends."""
    open: list[Outcome] = []
    for number in [*sorted(steps), inf]:
        while open and number >= max(open[-1].end, open[-1].number + 1):
            left = open.pop()
            if left.writes is not None and (left.is_final or has_ended):
                store.apply(left.writes)
        if number in steps:
            begun = steps[cast("int", number)]
            open.append(begun)
            for written in begun.entry_writes if begun.entered or begun.is_final or has_ended else ():
                store.apply(written)


def _result(steps: Outcomes, branch: str) -> Deep[Any]:
    """Return the last value that an action of a branch returned; for groups, that of their merged branches."""
    result: Any = UNSET
    for number, did in sorted(steps.get(branch, {}).items()):
        if did.unit.kind == "group" and did.is_final:
            counts = did.selection.takes
            inner = [branch_id(f"{branch}.{number}", index) for index in range(did.branches) if counts(index)]
            if did.status is Status.BAILED:
                inner = [id for id in inner if _has_bailed(steps, id)][:1]
            for id in inner:
                found = yield _result(steps, id)
                result = result if found is UNSET else found
        elif did.result is not UNSET:
            result = did.result
    return result


def _has_bailed(steps: Outcomes, branch: str) -> bool:
    return any(did.status is Status.BAILED for did in steps.get(branch, {}).values())


def _error(steps: dict[int, Outcome], remembered: Remembered) -> BaseException | None:
    """Return the error of the run: that of the outermost failed step, if the journal agrees."""
    text = remembered.error
    if remembered.status not in _FAILED:
        return None
    within = -1  # the end of the last step that ended well
    for number, did in sorted(steps.items()):
        if did.is_final:
            within = max(within, did.end)
        elif number >= within and did.error is not None and did.status in _FAILED:
            if text in (None, told(did.error), str(did.error)):
                return did.error
            break
    return None if text is None else RunError(text)


# The stages that ran.


def stages_by_name(units: Iterable[Any]) -> dict[str, Stage]:
    """Return the stages in these units, by name; not those of which several have one name, as branches may."""
    found: dict[str, Stage] = {}
    ambiguous: set[str] = set()
    for stage in stages_in(units):
        if found.setdefault(stage.name, stage) != stage:
            ambiguous.add(stage.name)
    return {name: stage for name, stage in found.items() if name not in ambiguous}


def branch_of(scope: Scope | None) -> str:
    """Return the branch in which the steps of this scope ran, unless it was skipped with its group."""
    branch = innermost_branch(scope)
    return ROOT if branch is None else branch_id(branch.id, cast("int", branch.branch))


def in_branch(scope: Scope | None) -> bool:
    """Whether this is a branch of a group, or inside one."""
    return innermost_branch(scope) is not None


def failed_steps(run: Run) -> Iterator[tuple[StageRecord, ActionRecord | None]]:
    """Yield the stages whose errors a run failed with, each with the action to blame, None if it was the stage itself."""
    errors = {id(error) for error in members_of(run.error)}
    for record in run.stages:
        if id(record.error) in errors and not record.recovered:
            yield record, next((each for each in reversed(record.actions) if each.error is record.error), None)


class _Reader:
    def __init__(self, steps: Outcomes, find: Find) -> None:
        self._steps = steps
        self._find = find
        self._inserted: dict[str, tuple[Stage, str]] = {}  # so far: stages, and who inserted them
        self._left: dict[
            tuple[str, int], tuple[Inserter, int]
        ] = {}  # who inserted units not read, how many are to come
        self.pipelines: list[Outcome] = []  # so far: those that did not simply complete

    def branch(self, id: str, base: Scope | None) -> Deep[list[StageRecord]]:
        """Return the stages of a branch, and of the groups in it."""
        records: list[StageRecord] = []
        steps = self._steps.get(id, {})
        order = {number: at for at, number in enumerate(steps)}
        around: list[Outcome] = []  # pipelines that did not simply complete, the innermost first
        for did, actions in with_actions(steps):
            around = [each for each in around if not 0 <= each.end <= did.number]
            scope = _within(did.scope, base)
            kind = did.unit.kind
            self._note_begun(did.inserted_by)
            if kind == "group":
                group = Scope(did.name, f"{id}.{did.number}", None, did.inserted_by, scope)
                for index in range(did.branches):
                    inside = yield self._branch(did, index, group.of(index))
                    records += [reduce(amended, around, record) for record in inside]
            elif kind == "stage":
                reopened = not did.is_final and any(order[each.number] > order.get(did.number, -1) for each in actions)
                did = did._replace(status=Status.RUNNING, error=None) if reopened else did
                records.append(reduce(amended, (did, *around), self._stage(did, actions, scope)))
            elif did.error is not None or did.attempts > 1:
                around.insert(0, did)
                inside = (order[number] for number in steps if did.number < number < did.end)
                if did.is_final or all(at < order[did.number] for at in inside):
                    self.pipelines.append(did.kept()._replace(unit=Pipeline(name=did.name), scope=scope))
            self._note_inserted(did, inserter(did.name, did.number))
        return records

    def _branch(self, did: Outcome, index: int, place: Scope) -> Deep[list[StageRecord]]:
        """Return the stages of a branch of a group, as the end of the group leaves them."""
        since, selection = len(self.pipelines), did.selection
        found: list[StageRecord] = yield self.branch(branch_id(place.id, index), place)
        if selection.takes(index):
            return found
        records = Records(None)
        records.kept = found
        records.scopes = [(0, record) for record in self.pipelines[since:]]
        if index in selection.lost:
            records.recover(0, lambda record: True)
        else:
            records.cancel_last()
        self.pipelines[since:] = [record for _, record in records.scopes]
        return records.kept

    def _stage(self, did: Outcome, outcomes: list[Outcome], scope: Scope | None) -> StageRecord:
        stage, by = self._known(did)
        named = {} if stage is None else {each.name: each for each in stage}
        actions: list[ActionRecord] = []
        for each in outcomes:
            known = named.get(each.name)
            error = each.error
            if error is not None and did.error is not None and told(error) == told(did.error):
                error = did.error  # which has passed through the stage
            action = missing_action(each.name) if known is None else known
            self._note_begun(each.inserted_by)
            units = _units(each)
            actions.append(ActionRecord._make(each.kept())._replace(unit=action, error=error, inserted=units))
            named |= {unit.name: unit for unit in each.inserted if isinstance(unit, Action)}
            self._note_inserted(each, inserter(f"{did.name}/{each.name}", each.number))
        unit = stage if stage is not None else Stage(did.name, [each.action for each in actions])
        elapsed = did.elapsed or sum(each.elapsed for each in actions)
        return StageRecord._make(did.kept())._replace(
            unit=unit, elapsed=elapsed, inserted_by=by, actions=actions, scope=scope, inserted=_units(did)
        )

    def _known(self, did: Outcome) -> tuple[Stage | None, str | None]:
        """Return the stage of this name, and who inserted it.

        For one without a row the name alone decides; if no unit of its run could be read, it is taken for the next of
        those that were inserted last.
        """
        inserted, who = self._inserted.get(did.name, (None, None))
        if did.inserted_by is not None:
            return inserted or self._find(did.name), did.inserted_by
        found = self._find(did.name)
        if found is not None or did.end >= 0:
            return found, None
        return inserted, who or next((by for by, count in reversed(self._left.values()) if count > 0), None)

    def _note_begun(self, by: str | None) -> None:
        if self._left and isinstance(by, Inserter) and (by, by.number) in self._left:
            who, count = self._left[by, by.number]
            self._left[by, by.number] = who, count - 1

    def _note_inserted(self, did: Outcome, who: Inserter) -> None:
        unread = sum(not isinstance(unit, (Unit, Stream)) for unit in did.inserted)
        if unread:
            self._left[who, who.number] = who, unread
        units = [unit for unit in _units(did) if did.unit.kind != "action" or not isinstance(unit, Action)]
        for name, stage in stages_by_name(units).items():
            self._inserted[name] = stage, who


def _units(did: Outcome) -> tuple[Unit | Stream, ...]:
    """Return the units that a step inserted, as far as they could be read without importing their code."""
    return tuple(unit for unit in did.inserted if isinstance(unit, (Unit, Stream)))


def _within(scope: Scope | None, base: Scope | None) -> Scope | None:
    """Return a scope of a branch, with the scopes around the branch."""
    within = base
    for each in reversed([*enclosing(scope)]):
        within = each._replace(outer=within)
    return within


def _with_one_error(records: Iterable[StageRecord], errors: list[BaseException]) -> list[StageRecord]:
    """Return the records with the errors of the run, where theirs are the same: each was written separately."""
    by_text = {told(error): error for error in reversed(errors)}

    def one(record: Any) -> Any:
        error = by_text.get(told(record.error)) if record.status in _FAILED and not record.recovered else None
        return record if error is None else record._replace(error=error)

    return [one(record)._replace(actions=list(map(one, record.actions))) for record in records]
