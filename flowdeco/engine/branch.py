"""The state of an evaluation: of the run itself, or of a branch of a parallel group.

A `Branch` has an *agenda*, a stack of the work left to do, the next item on top: units, the steps of the open stage,
and, below their contents, the scopes still to be closed. It has a store of its own, numbers its steps, and notes their
outcomes: as records, for observers, for the journal.

In a resumed run a branch is *sealed* while it is inside a scope that had ended: everything there is restored, and
nothing may be performed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.history import History
from flowdeco.engine.journal import Payload, Row
from flowdeco.engine.layers import Layers
from flowdeco.engine.memory import Remains
from flowdeco.engine.open_scopes import Before, OpenScope, OpenStream
from flowdeco.engine.outcome import (
    ROOT,
    ActionRecord,
    Outcome,
    Scope,
    Status,
    branch_id,
    dropped_errors,
    status_of,
)
from flowdeco.engine.records import Records
from flowdeco.engine.requests import CAUGHT_UP, Failure, Raised, Save, Sleep, Walk, ended_by_another
from flowdeco.engine.terms import Terms
from flowdeco.engine.waits import Waits, consumed, kept
from flowdeco.errors import PAUSE, Bail, Suspend, Wait
from flowdeco.model.declare import name_in_group
from flowdeco.model.definitions import Action, Parallel, Stage, Stream, Unit, stage_selectors
from flowdeco.model.options import UNSET
from flowdeco.model.selectors import switched_off
from flowdeco.model.store import NOTHING, Delta, Mark, Name, Store
from flowdeco.model.wiring import Step

__all__ = ["Branch"]


_WELL: Final = (Status.COMPLETED, None, 1, False, ())


class Branch:
    """One line of evaluation, over a store of its own.

    `conductor` decides on it, and `index` is its place in the group: None and 0 for the run itself.
    """

    # The defaults cost a branch nothing; each of them set for each branch would take as long as an action.
    unit: Any = None  # the branch of the group
    number = 0  # of the next step
    places = 0  # of pipelines with options, to which records refer
    result: Any = None
    sealed = 0  # open scopes that had ended before the run was resumed
    revocable = 0  # open scopes that may ask for another attempt
    atomic = 0  # open scopes that are one step: rows are held back
    unwinding: Mark | None = None  # in memory: set when a failure began to close scopes
    ended_early = False  # in a group that had failed, before a resume
    stopped = False  # by the end of another branch of its group
    deadline: Deadline | None = None  # of the innermost scope that has one
    guarded = False  # perhaps the next step must not begin: it was stopped, or has a deadline
    is_behind = False  # it may lack what other branches had changed in place before a resume
    restoring = False
    begun = False
    logged: dict[int, Outcome] | None = None  # in memory: the outcomes of its scopes
    _id: str | None = None

    def __init__(
        self, terms: Terms, store: Store, base: OpenScope, parent: Branch | None = None, conductor: Any = None,
        index: int = 0,
    ) -> None:  # fmt: skip
        self.terms = terms
        self.store = store
        self.read = store.reader()
        self.base = self.scope = base
        self.parent = parent
        self.conductor = conductor
        self.index = index
        self.agenda: list[tuple[Any, str | None]] = []
        self.records = Records(terms.history)
        self.switches: dict[str, bool] = {}  # the latest one last
        self.switched: dict[str, bool] = {}  # those of this branch
        # Groups in revocable scopes: the number of each, and the ids of all its branches.
        self.forks: list[tuple[int, list[str]]] = []
        self.rows: list[Any] = []  # not yet written to the journal
        self.changed: set[str] = set()  # with a journal: keys whose values were changed in place
        # Changed in place before a resume: the order of the last change, and the value after it.
        self.revised: dict[Name, tuple[int, Any]] = {}
        self.abandoned: dict[str, str] = {}  # local results of stages that failed, each with the name of its stage
        self.remains: dict[str, Remains] = {}  # in memory: left behind by unfinished groups, by branch
        self.unfinished: dict[int, tuple[list[Mark], Any]] = {}  # in memory: scopes that failed, by number
        self.waits: dict[int, Waits] = {}  # of the steps at work
        self.held_waits: list[Wait] = []  # of the steps inside an atomic one
        self.consumed: set[str] = set()  # keys of answers
        # Answers that another attempt at an open scope will need: number here, branch and number there.
        self.answered: list[tuple[int, tuple[str, int], list[Wait]]] = []
        if terms.log is not None:
            self.logged = terms.log.of(None if conductor is None else conductor.id, index)
        if parent is not None and (parent.switches or parent.revocable or parent.atomic or terms.past is not None):
            self._inherit(parent)
        if parent is not None and parent.deadline is not None:
            self.deadline, self.guarded = parent.deadline, True
        if terms.past is not None:
            self.is_behind = parent is not None
            self.restoring = terms.past.has_more(self.id)
            self.begun = self.restoring and not terms.rehearses

    def _inherit(self, parent: Branch) -> None:
        self.switches.update(parent.switches)
        self.revocable, self.atomic = parent.revocable, parent.atomic
        self.sealed, self.ended_early = parent.sealed, parent.ended_early

    @property
    def id(self) -> str:
        """Its identity in logs and journals, worked out when it is needed: that takes as long as an action."""
        if self._id is None:
            self._id = ROOT if self.conductor is None else branch_id(self.conductor.id, self.index)
        return self._id

    # Whether another step may begin.

    def stop(self) -> None:
        """Begin nothing more: another branch has ended the group."""
        self.stopped = self.guarded = True

    def live_by(self, deadline: Deadline | None) -> None:
        """Have this deadline, and those around it, count from here on."""
        self.deadline = deadline
        self.guarded = self.stopped or deadline is not None
        if self.parent is None:
            self.terms.gate.deadline = deadline

    def refusal(self) -> Failure:
        """Return the error of a step that must not begin."""
        if self.stopped:
            return ended_by_another()
        return None if self.deadline is None else self.deadline.refusal()

    def time_used(self, number: int, who: int) -> float:
        """Return how much of its timeout a layer of a scope has used before the run was suspended."""
        is_known = number in self.waits or (self.id, number) in self.terms.waits
        return self.waits_of(number).time_used(who) if is_known else 0.0

    # Numbers, and the history of a resumed run.

    def continue_over(self, store: Store, result: Any) -> None:
        """Continue with the store and the result that the branch had before the run was resumed."""
        self.store, self.read, self.result = store, store.reader(), result

    def next_number(self) -> int:
        """Take the next number of the branch."""
        self.number += 1
        return self.number - 1

    def next_place(self) -> str:
        """Return the id that distinguishes the next pipeline with options from others of its name."""
        self.places += 1
        return f"p{self.places}"

    def recall(self, number: int, unit: Unit | Step) -> Outcome | None:
        """Return the earlier outcome of a step, whether it counts or not; None if the step had not begun."""
        past = self.terms.past
        if past is None:
            return None
        if self.sealed:
            self._check_sealed(past, number, unit)
        return past.recall(self.id, number, unit, self.scope.unit, sealed=bool(self.sealed))

    def _check_sealed(self, past: History, number: int, unit: Unit | Step) -> None:
        """Raise `CodeChangedError` for a step in a scope that had ended before it."""
        scope: OpenScope | None = self.scope
        while scope is not None and scope.earlier is None and scope is not self.base:
            scope = scope.outer
        earlier = None if scope is None else scope.earlier
        is_behind = earlier is not None and 0 <= earlier.end <= number
        if is_behind and earlier is not None and earlier.error is None:
            raise past.new(unit, self.scope.unit)
        if is_behind or (self.ended_early and not past.has(self.id, number)):
            self.number = number
            raise past.early_stop

    def restores(self, earlier: Outcome | None) -> bool:
        """Whether a step is restored: it, or a scope around it, had ended well."""
        return earlier is not None and (earlier.is_final or bool(self.sealed))

    def catch_up(self) -> Walk:
        """Report, before anything new runs, that the history is restored; return the error if the group has ended since."""
        if self.restoring:
            self.restoring = False
            if self.parent is not None and not self.sealed:
                yield CAUGHT_UP
                if self.stopped:
                    return ended_by_another()
        if self.is_behind:
            self._catch_up_with_others()
        return None

    # Waiting.

    def waits_of(self, number: int) -> Waits:
        """Return the waits of a step at work."""
        found = self.waits.get(number)
        if found is None:
            terms = self.terms
            earlier, wall = terms.waits.pop((self.id, number), ()), terms.wall
            if self.deadline is not None:
                wall = wall._replace(sleep=partial(self.deadline.sleep_in_action, wall.sleep))
            found = self.waits[number] = Waits(wall, terms.since, earlier)
        return found

    def waited(self, number: int) -> tuple[Wait, ...]:
        """Return everything that a step has waited for so far."""
        waits = self.waits.get(number)
        return tuple(self.terms.waits.get((self.id, number), ())) if waits is None else waits.recorded()

    def with_waits(self, did: Outcome) -> Any:
        """Return the outcome of a step with its waits, or with the answers that it used up."""
        waits, place = self.waited(did.number), (self.id, did.number)
        self.waits.pop(did.number, None)
        self.terms.waits.pop(place, None)
        if self.atomic:
            self.held_waits += [wait._replace(at=wait.at or place) for wait in waits]
        if self.revocable and (answers := kept(waits, only_answers=True)):
            self.answered.append((did.number, place, answers))
        if did.is_final:
            did = did._replace(waits=consumed(waits, values=bool(self.revocable)))
            self.consumed.update(wait.key for wait in did.waits)
            return did
        return did._replace(waits=waits)

    def not_reached(self, scope: OpenScope) -> Iterator[Wait]:
        """Yield the waits of steps inside a scope that have not run again yet."""
        for place in () if scope.layers is None else scope.layers.inside:
            yield from (wait._replace(at=place) for wait in self.terms.waits.get(place, ()))

    def rest_of_pause(self, number: int) -> Walk:
        """Sleep until the next attempt at a step may begin; return the signal if that suspends the run again."""
        terms, place = self.terms, (self.id, number)
        waits = terms.waits.get(place, ())
        for pause in [wait for wait in waits if wait.kind == PAUSE]:
            left = (pause.due or 0.0) - terms.wall.now()
            if left > terms.wall.suspend_after:
                return Suspend.until(pause)
            answer = (yield Sleep(left)) if left > 0 else None
            if type(answer) is Raised:
                return answer.error
            terms.waits[place] = [wait for wait in waits if wait is not pause]
        return None

    # Noting outcomes.

    def note(self, outcome: Outcome) -> tuple[Outcome, Failure]:
        """Note an outcome for the journal, for a resume in memory, for observers.

        If the journal cannot take it, the step has failed. Return the outcome as noted, and that error.
        """
        terms, refused = self.terms, None
        if terms.records_only and outcome.error is None and type(outcome) is ActionRecord:
            return outcome, None
        stage = self.scope.unit if isinstance(outcome.unit, Action) else None
        name = None if stage is None else stage.name
        if terms.recorder is not None and not outcome.restored:
            try:
                self.add_row(terms.recorder.row(self.id, name, outcome))
            except BaseException as error:  # whatever a user's `__reduce__` raises
                if outcome.is_final:  # a failure that is not written happens again on resume
                    refused, outcome = error, outcome.refused(error)
                    with suppress(BaseException):
                        self.rows.append(terms.recorder.row(self.id, name, outcome))
        elif self.logged is not None and stage is None:
            self.logged[outcome.number] = outcome.kept()
        if outcome.error is not None:
            self.note_place(outcome.error, _place(outcome, name, self.scope.pipeline.name))
        if terms.notify is not None:
            for event in outcome.events(terms.run_id, name):
                terms.notify(event)
        return outcome, refused

    def restore(
        self,
        earlier: Outcome,
        unit: Any,
        by: str | None,
        actions: Sequence[ActionRecord] = (),
        place: Scope | None = None,
    ) -> Outcome:
        """Let an earlier outcome take effect again, and note it; return its record."""
        if earlier.writes is not None:
            self.reapply(earlier.writes)
        if earlier.result is not UNSET:
            self.result = earlier.result
        if earlier.waits:
            self.consumed.update(wait.key for wait in earlier.waits)
            if self.revocable:
                self.answered.append(
                    (earlier.number, (self.id, earlier.number), kept(earlier.waits, only_answers=True))
                )
        past = self.terms.past
        if past is not None and past.archive is not None:
            self.note_adopted(earlier, unit, by, place)
        did, _ = self.note(earlier.as_restored(unit, by, actions, place))
        return did

    def note_adopted(self, earlier: Outcome, unit: Any, by: str | None, place: Scope | None) -> None:
        """Note an outcome of an earlier generation of the run for the journal, in its present place."""
        recorder, past = self.terms.recorder, self.terms.past
        if recorder is not None and past is not None and past.has_adopted(self.id, earlier.number):
            stage = self.scope.unit.name if isinstance(unit, Action) else None
            adopted = earlier._replace(unit=unit, inserted_by=by, scope=place)
            self.rows.append(recorder.row(self.id, stage, adopted))

    def reapply(self, written: Delta) -> None:
        """Let the writes of an earlier outcome take effect again, and its changes in place."""
        if written.changes:
            if not self.terms.rehearses:  # no user code has changed these values in a rehearsal
                for key, value in written.changes.items():
                    self._revise(key, value, written.order)
            self.changed.update(key for key in written.changes if isinstance(key, str))
            written = written._replace(changes={})
        self.store.apply(written)

    def _revise(self, key: Name, value: Any, order: int) -> None:
        """Take a value as it was changed in place before a resume, here or in the enclosing branch that it is from.

        Branches are restored one after the other, but may have changed it in turn: the latest change counts.
        """
        parent = self.parent
        if parent is not None and isinstance(key, str) and key in parent.store and not self.store.has_written(key):
            parent._revise(key, value, order)
            self.store.revise(key, parent.store[key])
            return
        latest, known = self.revised.get(key, (order, value))
        self.revised[key] = latest, value = (order, value) if order >= latest else (latest, known)
        self.store.revise(key, value)

    def _catch_up_with_others(self) -> None:
        """Take the values that other branches had changed in place: all of them are restored now."""
        parent, self.is_behind = cast("Branch", self.parent), False
        if parent.is_behind:
            parent._catch_up_with_others()
        for key in parent.changed_before():
            if key in parent.store and not self.store.has_written(key):
                self.store.revise(key, parent.store[key])

    def changed_before(self) -> Iterator[str]:
        """Yield the keys of values that were changed in place before a resume, by any branch that has them."""
        branch: Branch | None = self
        while branch is not None:
            yield from (key for key in branch.revised if isinstance(key, str))
            branch = branch.parent

    def note_entering(self, scope: OpenScope, entering: Sequence[Delta], layers: Layers | None = None) -> Failure:
        """Note the writes of a scope's layers as they were entered; return the error if the journal cannot take them."""
        recorder, unit = self.terms.recorder, scope.unit
        is_first = layers is None or layers.attempt == 1
        if recorder is None or (is_first and all(delta == NOTHING for delta in entering)):
            return None
        began = Outcome(
            unit.name, unit, Status.RUNNING, scope.started + self.terms.epoch, 0.0, scope.by, scope.number,
            scope=scope.place, entering=entering,
        )  # fmt: skip
        if layers is not None:
            began = began._replace(attempts=layers.attempt, repeats=layers.repeats, failures=layers.failures)
        if layers is not None:
            began = began._replace(dropped=layers.dropped)
        began = began._replace(waits=(*self.waited(scope.number), *self.not_reached(scope)))
        try:
            self.rows.append(recorder.row(self.id, None, began))
        except BaseException as refused:
            return refused
        return None

    def note_place(self, error: BaseException, where: str) -> None:
        """Add a note to an exception, once, with its place in the run."""
        place = f"run {self.terms.run_id!r}"
        if isinstance(error, (Bail, Suspend)):
            return
        with suppress(Exception):  # the exception may allow neither reading nor writing
            if not any(note.endswith(place) for note in getattr(error, "__notes__", ())):
                error.add_note(", ".join([f"in {where}", *self._branches(), place]))

    def _branches(self) -> Iterator[str]:
        """Yield the branches that this one is in, itself first: their places, and their units with bound values."""
        branch = self
        while branch.parent is not None:
            place = cast("Scope", branch.base.place)
            yield f"branch {place.branch} ({name_in_group(branch.unit)!r}) of parallel group {place.name!r}"
            branch = branch.parent

    def add_row(self, row: Row) -> None:
        """Have a row written by the next `save`; one that an atomic scope holds back longer keeps its own values."""
        if self.atomic and type(row.payload) is Payload:
            row = row._replace(payload=row.payload.kept())
        self.rows.append(row)

    def save(self) -> Walk:
        """Write the noted rows to the journal; once that has failed, nothing more is written."""
        recorder = self.terms.recorder
        if recorder is None:
            return None
        if self.rows and recorder.unsaved is None and not self.atomic:
            rows, self.rows = self.rows, []
            answer = yield recorder.saving(rows)
            if type(answer) is Raised:
                recorder.unsaved = answer.error
        return recorder.unsaved

    def unsaved(self) -> Failure:
        """Return the error that keeps the journal from being written: no layer recovers it."""
        recorder = self.terms.recorder
        return None if recorder is None else recorder.unsaved

    # Another attempt.

    def before(self) -> Before:
        return Before(len(self.records), dict(self.switches), dict(self.switched), self.result, self.places)

    def go_back(self, scope: OpenScope) -> Walk:
        """Forget a failed attempt at a scope, here and in the journal; return the error if the journal fails."""
        records, switches, switched, self.result, self.places = scope.before or self.before()
        dropped: Sequence[Outcome] = self.records.cut(records)
        layers = cast("Layers", scope.layers)
        if type(scope.unit) is Stage:
            dropped = scope.records
        layers.dropped = dropped_errors(dropped, scope.place, layers.dropped)
        self.switches, self.switched = dict(switches), dict(switched)
        scope.records, scope.inserted = [], []
        if scope.layers is not None and self.answered:
            again = (place for at, place, _ in self.answered if at >= scope.number)
            scope.layers.inside = {*scope.layers.inside, *again}
        refused = yield from self.drop_from(scope.number)  # with the row of its layers' writes on entry
        self.number = scope.number + 1
        return refused

    def repeat_changes(self, layers: Layers) -> None:
        """Have the journal note changes in place again: a failed attempt's are not undone, though its rows are dropped."""
        changes = {key: self.store[key] for key in sorted(self.changed) if key in self.store}
        if changes and layers.entering:
            layers.entering[-1] = layers.entering[-1]._replace(changes={**layers.entering[-1].changes, **changes})

    def drop_from(self, number: int) -> Walk:
        """Forget all steps from this number on, and the branches of groups among them."""
        terms = self.terms
        gone = [id for at, ids in self.forks if at >= number for id in ids]
        self.forks = [fork for fork in self.forks if fork[0] < number]
        self.number = number
        self.remains.clear()
        self.unfinished = {at: left for at, left in self.unfinished.items() if at < number}
        terms.waits.update({place: waits for at, place, waits in self.answered if at >= number})
        self.answered = [each for each in self.answered if each[0] < number]
        self.held_waits = [wait for wait in self.held_waits if not _is_cut(wait, self.id, number, gone)]
        cuts = {self.id: number, **dict.fromkeys(gone, 0)}
        if terms.past is not None:
            cuts = {**terms.past.drop_from(self.id, number), **cuts}
            terms.past.forget(cuts)
        if terms.log is not None:
            terms.log.forget(cuts)
        recorder = terms.recorder
        if recorder is None or recorder.unsaved is not None:
            return self.unsaved()
        recorder.looks.forget()  # the journal loses changes with these rows
        self.rows = [row for row in self.rows if row.number < cuts.get(row.branch, row.number + 1)]
        if not self.atomic:
            answer = yield Save(recorder.journal.drop, recorder.run_id, cuts)
            if type(answer) is Raised:
                recorder.unsaved = answer.error
        return recorder.unsaved

    def remember_branches(self, number: int, ids: list[str]) -> None:
        """Remember the branches of a group, as long as another attempt may have to forget them."""
        if self.revocable:
            self.forks.append((number, ids))

    def unwind(self, mark: Mark | None = None) -> None:
        """Note that a failure begins to close scopes: a resume in memory undoes the writes of layers from here on.

        For a step that left nothing behind, `mark` was set when it began: the writes of its layers are undone as well.
        A run that cannot be resumed from memory only lets go of that mark.
        """
        if self.terms.log is None:
            if mark is not None:
                self.store.release(mark)
        elif mark is not None:
            if self.unwinding is not None:
                self.store.release(self.unwinding)
            self.unwinding = mark
        else:
            self.unwinding = self.store.mark()

    def end_unwinding(self) -> None:
        """Stop noting the writes of layers after a failure."""
        if self.unwinding is not None:
            self.store.discard(self.unwinding)

    def forget_failure(self) -> None:
        """Forget the remains of a failure: an enclosing scope has recovered it."""
        if self.unwinding is not None:
            self.store.release(self.unwinding)
            self.unwinding = None
        for name, stage in self.abandoned.items():
            self.store.drop_local((name,), stage)
        self.abandoned.clear()
        self.remains.clear()
        self.unfinished.clear()

    def forget_held(self, scope: OpenScope) -> None:
        """Forget the steps of an atomic scope that has failed: it runs again from its beginning."""
        del self.rows[scope.held :]
        if self.terms.recorder is not None:
            self.terms.recorder.looks.forget()
        self.remains.clear()
        self.unfinished.clear()
        if self.terms.log is not None:
            gone = [id for at, ids in self.forks if at > scope.number for id in ids]
            self.terms.log.forget({self.id: scope.number + 1, **dict.fromkeys(gone, 0)})

    # Selectors.

    def switch(self, selector: str, on: bool) -> None:
        """Note that the selected units are disabled, or enabled again, from here on."""
        for switches in (self.switches, self.switched):
            switches.pop(selector, None)
            switches[selector] = on

    def is_off(self, selectors: Callable[[], list[str]]) -> bool:
        """Whether a unit with these selectors is skipped or disabled; they have selected something."""
        if not (self.terms.skip or self.switches):
            return False
        known = selectors()
        self.terms.unmatched.difference_update(known)
        self.terms.used.update(self.switches.keys() & known)
        return self._is_off(known)

    def _is_off(self, known: list[str], more: Iterable[tuple[str, bool]] = ()) -> bool:
        return not self.terms.skip.isdisjoint(known) or switched_off(known, (*self.switches.items(), *more))

    def skips(self, unit: Unit, earlier: Outcome | None) -> bool:
        """Whether a unit is skipped as a whole, now or before the run was resumed."""
        off = self.is_off(lambda: stage_selectors(unit))  # even if too late: the selector has matched
        if earlier is not None and self.restores(earlier):
            return earlier.status is Status.SKIPPED and earlier.entered
        return off or self.scope.is_skipped

    # Surroundings.

    def upcoming(self, more: Sequence[tuple[str, bool]] = ()) -> Iterator[Unit | Stream]:
        """Yield the units that will run after the current stage, if these switches are added."""
        for unit in self._waiting():
            if not (isinstance(unit, Unit) and self._is_off(stage_selectors(unit), more)):
                yield unit

    def _waiting(self) -> Iterator[Unit | Stream]:
        yield from (unit for unit, _ in self.scope.inserted)
        branch: Branch | None = self
        while branch is not None:
            for unit, _ in reversed(branch.agenda):
                if isinstance(unit, OpenStream):
                    yield unit.stream
                elif isinstance(unit, (Unit, Stream)):
                    yield unit
            branch = branch.parent

    def now(self) -> float:
        """Return the time in POSIX seconds."""
        return self.terms.clock() + self.terms.epoch

    def ended_as(
        self, error: Failure, layers: Layers | None
    ) -> tuple[Status, Failure, int, bool, tuple[BaseException, ...]]:
        """Return status, error, attempts, whether it was recovered, and earlier errors, for the outcome of a step."""
        if layers is None:
            return _WELL if error is None else (status_of(error, self.terms.is_cancellation), error, 1, False, ())
        attempts, failures = layers.attempt, layers.failures
        if error is None and layers.recovered:
            return Status.FAILED, layers.failure, attempts, True, failures
        if error is None and not layers.entered and layers.given is UNSET:
            return Status.SKIPPED, None, attempts, False, failures
        return status_of(error, self.terms.is_cancellation), error, attempts, False, failures

    def all_remains(self) -> dict[str, Remains]:
        """Return the remains in memory of an unfinished branch, and of the branches in it."""
        return {**self.remains, self.id: Remains(self.store.settled(), self.unwinding, self.result, self.unfinished)}


def _is_cut(wait: Wait, branch: str, number: int, gone: Sequence[str]) -> bool:
    place = wait.at or (branch, -1)
    return place[0] in gone or (place[0] == branch and place[1] >= number)


def _place(outcome: Outcome, stage: str | None, pipeline: str) -> str:
    unit = outcome.unit
    if isinstance(unit, Action):
        return f"action {outcome.name!r} of stage {stage!r}, pipeline {pipeline!r}"
    if isinstance(unit, Stage):
        return f"stage {outcome.name!r}, pipeline {pipeline!r}"
    if isinstance(unit, Parallel):
        return f"parallel group {outcome.name!r}, pipeline {pipeline!r}"
    return f"pipeline {outcome.name!r}"
