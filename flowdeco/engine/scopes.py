"""Scopes, which are pipelines and stages: opened, filled with their contents, closed.

A scope is on the agenda below its contents; when its turn comes, all of these have ended. Around it are its layers,
entered as it opens and left as it closes; they may recover a failure, or ask for another attempt. A scope that had ended
before the run was resumed opens without its layers: its contents are restored, and then its outcome.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, cast

from flowdeco.engine.attempts import forget_attempt, forget_held, repeat_changes, state_before
from flowdeco.engine.branch import Branch
from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.history import History
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.layers import Layers, enter, leave
from flowdeco.engine.noting import ended_as, note, note_entry_writes
from flowdeco.engine.open_scopes import UNNUMBERED, OpenScope
from flowdeco.engine.outcome import (
    COMPLETED,
    NOTHING_DROPPED,
    Outcome,
    Scope,
    StageRecord,
    Status,
    amended,
    enclosing,
    inserter,
    record_kind,
)
from flowdeco.engine.requests import Failure, Walk
from flowdeco.engine.restoring import go_live, reapply, restore
from flowdeco.engine.waiting import not_reached, rest_of_pause, time_used, with_waits
from flowdeco.errors import Bail, Suspend
from flowdeco.events import StageStarted
from flowdeco.model.definitions import Pipeline, Stage
from flowdeco.model.deltas import NOTHING, Delta, Mark
from flowdeco.model.options import Middleware
from flowdeco.model.steps import steps_of

__all__ = ["end_scope", "fill_scope", "leave_scope", "limited", "open_scope"]


def open_scope(
    branch: Branch, scope: OpenScope, layers: tuple[Middleware, ...] = (), earlier: Outcome | None = None
) -> Walk | Failure:
    """Put a scope on the agenda, and its contents on top of it, once its layers are entered."""
    terms = branch.terms
    scope.depth = len(branch.agenda)
    branch.agenda.append((scope, None))
    branch.scope = scope
    scope.earlier = earlier
    if earlier is not None:
        if branch.restores(earlier):
            _seal(branch, scope, earlier)
            return None
        past = cast("History", terms.past)
        if (
            not earlier.entered and earlier.end > scope.number + 1
        ):  # its layers had skipped its contents, and decide anew
            past.drop_from(branch.id, scope.number + 1)
    is_stage = type(scope.unit) is Stage
    if is_stage and terms.notify is not None:
        terms.notify(StageStarted(terms.run_id, scope.unit.name, scope.by, _branches(scope.place)))
    if terms.rehearses:
        fill_scope(branch, scope)
        return None
    if layers:
        return _begin_layers(branch, scope, layers, earlier)
    error = None
    if is_stage and scope.unit.has_data:
        recalled = _earlier_entry_writes(branch, scope, earlier, 1)
        if recalled is None:
            error = _merge(branch, scope)
        for written in recalled or ():
            reapply(branch, written)
    elif earlier is not None and not is_stage:  # the run has lost its layers; what they wrote stays
        terms.waits.pop((branch.id, scope.number), None)
        for written in _earlier_entry_writes(branch, scope, earlier, 0) or ():
            reapply(branch, written)
    if error is None:
        fill_scope(branch, scope)
    return error


def _seal(branch: Branch, scope: OpenScope, earlier: Outcome) -> None:
    """Open a scope that had ended before the run was resumed: its contents are restored, and then its outcome."""
    scope.before = state_before(branch) if earlier.error is not None or earlier.dropped else None
    branch.sealed += 1
    for written in earlier.entry_writes:
        reapply(branch, written)
    if earlier.entered:
        fill_scope(branch, scope)
    elif earlier.status is Status.SKIPPED and type(scope.unit) is Pipeline and earlier.end > earlier.number + 1:
        _skip_contents(branch, scope)


def _skip_contents(branch: Branch, scope: OpenScope) -> None:
    """Have the units of a pipeline that its middleware has skipped recorded as skipped."""
    scope.is_skipped = True
    fill_scope(branch, scope)


def limited(branch: Branch, scope: OpenScope, level: str) -> tuple[Middleware, ...]:
    """Return the layer that ends a scope when its time is up, if it has a timeout: around the unit's own middleware."""
    unit = scope.unit
    if unit.timeout is None:
        return ()

    def limit(call: Any) -> Generator[None, None, None]:
        who, clock, error = call.who, branch.terms.clock, None
        used, began = time_used(branch, scope.number, who), clock()
        deadline = Deadline(f"{level} {unit.name!r}", unit.timeout, branch, used=used, scope=scope)
        try:
            yield
        except BaseException as failure:
            error = failure
        error = deadline.close(error)
        if isinstance(error, Suspend):
            branch.waits_of(scope.number).use_time(who, used + clock() - began)
        if error is not None:
            raise error

    limit.supplies = False  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    return (limit,)


def _earlier_entry_writes(
    branch: Branch, scope: OpenScope, earlier: Outcome | None, count: int
) -> Sequence[Delta] | None:
    """Return the earlier writes of an unfinished scope's layers; None if the scope had not begun before the resume.

    If the process was killed, it has a row only if its layers or data wrote; otherwise its first step shows that it had
    begun. For a run in memory these writes are empty: its store has them.
    """
    past = branch.terms.past
    if past is None or not (past.has(branch.id, scope.number + 1) if earlier is None else earlier.entered):
        return None
    if earlier is not None and earlier.entry_writes and not past.is_in_memory:
        return earlier.entry_writes
    return [NOTHING] * count


def _merge(branch: Branch, scope: OpenScope) -> Failure:
    """Merge the data of a stage into the store."""
    store = branch.store
    scope.mark = store.mark()
    try:
        store.update(scope.unit.data)
    except BaseException as error:  # from copying a value
        return error
    refused = None
    if branch.terms.recorder is not None:
        refused = note_entry_writes(branch, scope, [store.since(scope.mark)])
    if refused is None:
        store.release(scope.mark)
        scope.mark = None
    return refused


def _begin_layers(branch: Branch, scope: OpenScope, layers: tuple[Middleware, ...], earlier: Outcome | None) -> Walk:
    terms, error = branch.terms, None
    if terms.past is not None and not terms.past.has_more(branch.id):
        error = yield from go_live(branch)
    if error is None and earlier is not None and terms.waits:
        error = yield from rest_of_pause(branch, scope.number)
    if error is not None:
        return _not_begun(branch, scope, earlier, error)
    recalled: Sequence[Delta | None] | None = _earlier_entry_writes(branch, scope, earlier, len(layers))
    is_run = scope.outer is branch.base and branch.parent is None  # with its caller's layers
    if is_run:
        recalled = _around_run(branch, scope, None if earlier is None else recalled, len(layers))
    around = _scope_layers(branch, scope, layers)
    if is_run:
        around.count_from_inside()
    if earlier is not None:
        around.continue_from(earlier)
        around.inside = {wait.at for wait in earlier.waits if wait.at is not None}
    if terms.recorder is not None or recalled is not None:
        around.mark = scope.mark
    if recalled is not None:
        around.replays = (written and partial(reapply, branch, written) for written in recalled)
        around.has_new_layers = None in recalled
    return (yield from _enter_and_fill(branch, scope, around))


def _around_run(
    branch: Branch, scope: OpenScope, recalled: Sequence[Delta | None] | None, count: int
) -> Sequence[Delta | None] | None:
    """Return the earlier writes of so many layers around a run: its caller may give others than before.

    They are counted from the inside: None for each that is new; those of lost ones are applied.
    """
    past = branch.terms.past
    if past is None or recalled is None:
        return None
    if past.is_in_memory:
        recalled = [NOTHING] * len(past.unfinished(branch.id, scope.number)[0])
    kept = max(0, len(recalled) - count)
    for written in recalled[:kept]:
        reapply(branch, cast("Delta", written))
    return [*[None] * (count - len(recalled)), *recalled[kept:]]


def _scope_layers(branch: Branch, scope: OpenScope, layers: tuple[Middleware, ...]) -> Layers:
    """Return the layers of a scope, not yet entered; note records, switches and result, to which another attempt returns.

    The store returns to the mark of the layer that asks for it (`Layers.open`).
    """
    scope.mark = branch.store.mark()
    scope.before = state_before(branch)
    scope.held = len(branch.rows)
    branch.revocable += 1
    scope.layers = around = branch.layers(scope.number, layers, scope.unit if type(scope.unit) is Stage else None)
    if around.watch is not None:
        around.entry_writes = []
    return around


def _not_begun(branch: Branch, scope: OpenScope, earlier: Outcome | None, error: BaseException) -> BaseException:
    """End a scope before its layers are entered: the next attempt is not due, or the run is interrupted.

    One from before the resume stays as it is in the journal.
    """
    if earlier is None:
        scope.mark = branch.store.mark()
        return error
    scope.number = UNNUMBERED
    if isinstance(earlier, StageRecord):
        branch.records.add(earlier._replace(unit=scope.unit, inserted_by=scope.by, scope=scope.place).kept())
    return error


def _enter_and_fill(branch: Branch, scope: OpenScope, layers: Layers) -> Walk:
    """Enter the layers of a scope, and fill it."""
    past, resumes = branch.terms.past, layers.replays is not None
    entered = enter(layers)
    error: Failure
    runs, error = entered if isinstance(entered, tuple) else (yield from entered)
    if not runs and layers.mark is not None:
        layers.note_entry_writes()  # of the layer that has skipped the target, or raised
    layers.replays = None
    if runs and resumes and past is not None and past.is_in_memory and scope.before is not None:
        marks, result = past.unfinished(branch.id, scope.number)
        for mark, noted in zip(layers.marks()[::-1], marks[::-1], strict=False):
            mark.continue_from(noted)  # another attempt returns to the state that the first one found
        scope.before = scope.before._replace(result=result)
    scope.values = layers.values
    if layers.entry_writes is not None and (layers.has_new_layers or not resumes):
        error = note_entry_writes(branch, scope, layers.entry_writes, None if branch.atomic else layers) or error
        if layers.attempt > 1:  # it counts, should the process be killed now
            error = error or (yield from branch.save())
    if layers.undoes and not scope.is_atomic:
        scope.is_atomic = True
        branch.atomic += 1
    if runs and error is None:
        if layers.watch is not None:
            layers.watch.rest()
        fill_scope(branch, scope)
    elif error is None and type(scope.unit) is Pipeline:
        _skip_contents(branch, scope)
    return error


def fill_scope(branch: Branch, scope: OpenScope) -> None:
    """Put the contents of a scope on the agenda."""
    unit = scope.unit
    if type(unit) is Stage:
        scope.is_quiet = branch.terms.looks_nothing_up and not (scope.values or branch.switches or scope.is_skipped)
        scope.is_bare = scope.is_quiet and not scope.use_actions
        steps = steps_of(unit)
        if unit.local and steps:
            scope.local = steps[0][0].local
        branch.agenda.extend(steps)  # the last one first already
    else:
        branch.agenda.extend((part, scope.by) for part in reversed(unit.units))


def end_scope(branch: Branch, scope: OpenScope, by: str | None) -> Walk | Failure:
    """Close a scope whose turn has come: all of its contents have ended."""
    if scope.layers is not None:
        return leave_scope(branch, scope, None)
    if scope.is_quiet and branch.terms.is_unobserved:
        _finish_quiet(branch, scope)
        return None
    return _finish(branch, scope, None)


def leave_scope(branch: Branch, scope: OpenScope, error: Failure) -> Walk:
    """Leave the layers of a scope, and finish it, or have its contents run again.

    When a layer asks for another attempt, `leave` has taken the store back to where that layer was entered, and the layer
    is open again: only those inside it are still to be entered. Records, numbers and rows follow (`forget_attempt`).
    """
    layers, store = scope.layers, branch.store
    if layers is None:
        return _finish(branch, scope, error)
    marks, watch = layers.marks(), layers.watch
    leaving_mark: Mark | None = None  # gone with another attempt, as the store is taken back
    if watch is not None:
        leaving_mark = store.mark()
        try:
            watch.resume()
        except BaseException as failure:  # of a user's `__reduce__`
            error = error or failure
    left = leave(layers, error)
    again, error = left if isinstance(left, tuple) else (yield from left)
    is_pause, unsaved = error is not None and error is layers.pause, None
    if again or is_pause:
        unsaved = yield from forget_attempt(branch, scope)
        repeat_changes(branch, layers)
    if again:
        branch.left_behind().unwinding = None  # undone with the writes since, as all marks that were set meanwhile
        if scope.number in branch.waits:
            branch.waits_of(scope.number).another_attempt(layers.asked_again)
        branch.agenda.append((scope, None))
        branch.scope, scope.is_skipped = scope, scope.outer.is_skipped
        return unsaved or (yield from _enter_and_fill(branch, scope, layers))
    if is_pause:  # the next attempt begins inside these layers
        layers.entered = True
        error = note_entry_writes(branch, scope, layers.entry_writes or [], layers) or unsaved or error
    leaving = None
    if watch is not None and leaving_mark is not None:
        try:
            leaving = watch.with_changes(store.since(leaving_mark))
        except BaseException as failure:
            error = error or failure
        store.release(leaving_mark)
    error = _finish(branch, scope, error, leaving, marks)
    if not scope.is_atomic:
        return error
    return (yield from branch.save()) or error  # whatever its layers have committed is not done again


def _finish(
    branch: Branch, scope: OpenScope, error: Failure, leaving: Delta | None = None, marks: Sequence[Mark] = ()
) -> Failure:
    """Note the outcome of a scope, and have the inserted units run next."""
    branch.scope = scope.outer
    if scope.earlier is not None and branch.sealed:
        return _finish_restored(branch, scope, scope.earlier, error)
    if scope.number == UNNUMBERED:
        return error
    error = error or _refused_insertion(branch, scope)
    if error is None:
        if branch.leftovers is not None:
            branch.leftovers.recover(branch.store)
        error = branch.unsaved()
    has_failed = error is not None and not isinstance(error, Bail)
    entered = _has_begun(scope) and not (has_failed and scope.is_atomic)  # a failed atomic one begins anew
    if has_failed and scope.is_atomic:
        forget_held(branch, scope)
    if has_failed and not entered:
        branch.left_behind().unwind(branch.store, scope.mark)
        entered = _carry_over(branch, scope)
    elif scope.mark is not None:
        _release(branch, scope, error, marks)
    _leave_protection(branch, scope)
    outcome = _scope_outcome(branch, scope, error, entered, leaving)
    if branch.waits or branch.terms.waits or branch.held_waits:
        outcome = _with_waits(branch, scope, outcome)
    did, refused = note(branch, outcome)
    return _keep_and_insert(branch, scope, did, refused or error)


def _with_waits(branch: Branch, scope: OpenScope, outcome: Outcome) -> Outcome:
    """Return the outcome of a scope with the waits of its layers, and those that steps inside it will need again."""
    outcome = with_waits(branch, outcome)
    if not outcome.is_final:
        held = branch.held_waits if scope.is_atomic else ()
        outcome = outcome._replace(waits=(*outcome.waits, *held, *not_reached(branch, scope)))
    if not branch.atomic:
        branch.held_waits = ()
    return outcome


def _refused_insertion(branch: Branch, scope: OpenScope) -> Failure:
    """Return why the insertions of its layers are refused, or None."""
    layers, recorder = scope.layers, branch.terms.recorder
    if layers is None or not layers.inserted:
        return None
    try:
        check_insertion(branch, layers.inserted)
        if recorder is not None:
            recorder.check_repeatable(layers.inserted, f"a middleware of {layers.level} {layers.name!r}")
    except Exception as error:
        return error
    return None


def _finish_quiet(branch: Branch, scope: OpenScope) -> None:
    """Finish a stage that nothing surrounds and nothing observes: 10 x the loop, not 20 x."""
    terms, unit = branch.terms, scope.unit
    branch.scope = scope.outer
    did = StageRecord(
        unit.name, unit, COMPLETED, scope.started + terms.epoch, terms.clock() - scope.started,
        scope.by, scope.number, (), scope.records, scope.place, branch.number,
    )  # fmt: skip
    if branch.logged is not None:
        branch.logged[scope.number] = did
    branch.records.add(did)
    if scope.local:
        branch.store.drop_local(scope.local, unit.name)
    if scope.inserted:
        branch.agenda.extend(reversed(scope.inserted))


def _has_begun(scope: OpenScope) -> bool:
    """Whether the contents of a scope have begun: its layers are entered, or its data is merged."""
    return scope.mark is None if scope.layers is None else scope.layers.entered


def _carry_over(branch: Branch, scope: OpenScope) -> bool:
    """Keep what an earlier leg left of a scope that this one could not enter; return whether that one had entered it."""
    past = branch.terms.past
    if past is None or not past.is_in_memory or scope.is_atomic or scope.earlier is None or not scope.earlier.entered:
        return False
    branch.left_behind().unfinished.update(past.unfinished_from(branch.id, scope.number))
    return True


def _release(branch: Branch, scope: OpenScope, error: Failure, marks: Sequence[Mark]) -> None:
    """Release the mark of a scope; those of its layers are kept for a resume in memory if it has not completed."""
    if error is not None:
        branch.left_behind().unfinished[scope.number] = list(marks), scope.before and scope.before.result
    branch.store.release(cast("Mark", scope.mark))


def _leave_protection(branch: Branch, scope: OpenScope) -> None:
    """Note that a scope can no longer ask for another attempt, nor hold back rows."""
    branch.revocable -= scope.layers is not None
    branch.atomic -= scope.is_atomic
    if not branch.revocable:
        branch.inner_branches.clear()


def _scope_outcome(branch: Branch, scope: OpenScope, error: Failure, entered: bool, leaving: Delta | None) -> Outcome:
    kind = record_kind(scope.unit)
    layers, terms = scope.layers, branch.terms
    status, failure, attempts, recovered, failures = ended_as(branch, error, layers)
    inserted = layers.inserted if layers is not None and error is None else ()
    started, elapsed = scope.started + terms.epoch, terms.clock() - scope.started
    if terms.past is not None and (before := _before_resume(scope)):
        started, elapsed = before[0].started, elapsed + sum(each.elapsed for each in before)
    return kind(
        scope.unit.name, scope.unit, status, started, elapsed, scope.by,
        scope.number, inserted, scope.records, scope.place, branch.number, failure, attempts, recovered, (), False,
        entered, repeats=() if layers is None else layers.repeats, failures=failures, writes=leaving,
        dropped=NOTHING_DROPPED if layers is None else layers.dropped,
    )  # fmt: skip


def _before_resume(scope: OpenScope) -> list[Outcome]:
    """Return what is known of a scope from before the run was resumed: its record.

    If that is missing, because the process was killed, its restored actions are all that is known.
    """
    return [each for each in scope.records if each.restored] if scope.earlier is None else [scope.earlier]


def _finish_restored(branch: Branch, scope: OpenScope, earlier: Outcome, error: Failure) -> Failure:
    past = branch.terms.past
    branch.sealed -= 1
    if past is None or not past.is_known(error):
        return error
    if not earlier.entered:
        branch.number = max(branch.number, earlier.end)
    changed = past.confirm(branch.id, earlier, scope.unit, branch.number)
    if changed is not None:
        return changed
    error = None if earlier.recovered else earlier.error or error
    did = restore(branch, earlier, scope.unit, scope.by, scope.records, scope.place)
    return _keep_and_insert(branch, scope, did, error)


def _keep_and_insert(branch: Branch, scope: OpenScope, did: Outcome, error: Failure) -> Failure:
    """Keep the record of a scope, and put inserted units on the agenda: those of its actions, then those of its layers."""
    if branch.terms.keeps_records:
        _keep_record(branch, scope, did, error)
    if error is None:
        if did.inserted:
            who = inserter(did.name, did.number)
            scope.inserted.extend((unit, who) for unit in did.inserted)
        branch.agenda.extend(reversed(scope.inserted))
    return error


def _keep_record(branch: Branch, scope: OpenScope, did: Outcome, error: Failure) -> None:
    if isinstance(did, StageRecord):
        branch.records.add(amended(did.kept(), did) if did.error is not None or did.dropped else did.kept())
        if error is not None and not isinstance(error, Bail):
            branch.left_behind().abandoned.update(dict.fromkeys(scope.local, did.name))  # a resume may need them
        elif scope.local and not (did.restored and cast("History", branch.terms.past).is_in_memory):
            # Of a stage that had ended before a resume in memory, the store has none: they are those of a later one.
            branch.store.drop_local(scope.local, did.name)
    else:
        branch.records.add_scope(did.kept())
        if scope.before is not None and (did.error is not None or did.dropped):
            branch.records.amend(did, scope.before.records)


def _branches(place: Scope | None) -> str | None:
    """Return the place of a scope in parallel groups, for observers: "outer[1]/inner[0]"."""
    branches = [f"{each.name}[{each.branch}]" for each in enclosing(place) if each.branch is not None]
    return "/".join(reversed(branches)) or None
