"""A branch in a resumed run: the outcomes of its steps that had ended take effect again, and are noted as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.noting import note
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope
from flowdeco.engine.requests import CAUGHT_UP, Walk, ended_by_another
from flowdeco.engine.waits import kept
from flowdeco.errors import FOUND
from flowdeco.model.definitions import Action, Unit
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Name
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step

__all__ = ["go_live", "note_adopted", "reapply", "recall", "restore"]


def recall(branch: Branch, number: int, unit: Unit | Step) -> Outcome | None:
    """Return the earlier outcome of a step, whether it counts or not; None if it has no row (see `History.take`)."""
    past = branch.terms.past
    if past is None:
        return None
    if branch.sealed:
        _check_not_past_end(branch, past, number, unit)
    return past.take(branch.id, number, unit, branch.scope.unit, sealed=bool(branch.sealed))


def _check_not_past_end(branch: Branch, past: History, number: int, unit: Unit | Step) -> None:
    """Raise for a step behind the end of a scope: `early_stop` if that had failed, otherwise a `CodeChangedError`."""
    scope = branch.scope
    while scope.earlier is None and scope is not branch.base:
        scope = scope.outer
    earlier = scope.earlier
    is_behind = earlier is not None and 0 <= earlier.end <= number
    if is_behind and earlier is not None and earlier.error is None:
        raise past.new(unit, branch.scope.unit)
    if is_behind or (branch.ended_early and not past.has(branch.id, number)):
        branch.number = number
        raise past.early_stop


def go_live(branch: Branch) -> Walk:
    """Report, before anything new runs, that the history is restored; return the error if the group has ended since.

    In the group of the branch, nothing new runs until all of its branches have come to their ends, or to this.
    """
    if branch.terms.rehearses:
        return None
    if branch.is_catching_up:
        branch.is_catching_up = False
        if branch.parent is not None and not branch.sealed:
            yield CAUGHT_UP
            if branch.stopped:
                return ended_by_another()
    if branch.is_behind:
        _catch_up_with_others(branch)
    return None


def restore(
    branch: Branch,
    earlier: Outcome,
    unit: Any,
    by: str | None,
    actions: Sequence[ActionRecord] = (),
    place: Scope | None = None,
) -> Outcome:
    """Let an earlier outcome take effect again, and note it; return its record."""
    if earlier.writes is not None:
        reapply(branch, earlier.writes)
    if earlier.result is not UNSET:
        branch.result = earlier.result
    if earlier.waits:
        branch.consumed |= {wait.key for wait in earlier.waits}
        for wait in earlier.waits:
            if wait.state == FOUND:
                branch.may_take(wait.key)  # from now on, no other branch may
        if branch.revocable:
            at = (branch.id, earlier.number)
            branch.answered += ((earlier.number, at, kept(earlier.waits, only_answers=True)),)
    if not branch.terms.keeps_records:
        return earlier
    note_adopted(branch, earlier, unit, by, place)
    did, _ = note(branch, earlier.as_restored(unit, by, actions, place))
    return did


def note_adopted(branch: Branch, earlier: Outcome, unit: Any, by: str | None, place: Scope | None) -> None:
    """Note an outcome of an earlier generation of the run for the journal, in its present place."""
    recorder = branch.terms.recorder
    if recorder is not None and earlier.restored:
        stage = branch.scope.unit.name if isinstance(unit, Action) else None
        adopted = earlier._replace(unit=unit, inserted_by=by, scope=place)
        branch.rows.append(recorder.row(branch.id, stage, adopted))


def reapply(branch: Branch, written: Delta) -> None:
    """Let the writes of an earlier outcome take effect again, and its changes in place: not in a rehearsal."""
    if branch.terms.rehearses:
        return
    if written.changes:
        for key, value in written.changes.items():
            _revise(branch, key, value, written.order)
        branch.note_changed(written.changes)
        written = written._replace(changes={})
    branch.store.apply(written)


def _revise(branch: Branch, key: Name, value: Any, order: int) -> None:
    """Take a value as it was changed in place before a resume, here or in the enclosing branch that it is from.

    Branches are restored one after the other, but may have changed it in turn: the latest change counts.
    """
    borrowed: list[Branch] = []
    while isinstance(key, str) and _is_borrowed(branch, key):
        borrowed.append(branch)
        branch = cast("Branch", branch.parent)
    latest, known = branch.revised.get(key, (order, value))
    branch.revised[key] = latest, value = (order, value) if order >= latest else (latest, known)
    for each in (branch, *borrowed):
        each.store.revise(key, value)


def _is_borrowed(branch: Branch, key: str) -> bool:
    """Whether a value is that of the enclosing branch."""
    return branch.parent is not None and key in branch.parent.store and not branch.store.has_written(key)


def _catch_up_with_others(branch: Branch) -> None:
    """Take the values that other branches had changed in place: all of them are restored now."""
    behind: list[Branch] = []
    while branch.is_behind:
        behind.append(branch)
        branch = cast("Branch", branch.parent)
    for each in reversed(behind):
        each.is_behind, parent = False, cast("Branch", each.parent)
        for key in _changed_before(parent):
            if _is_borrowed(each, key):
                each.store.revise(key, parent.store[key])


def _changed_before(branch: Branch | None) -> Iterator[str]:
    """Yield the keys of values that were changed in place before a resume, by any branch that has them."""
    while branch is not None:
        yield from (key for key in branch.revised if isinstance(key, str))
        branch = branch.parent
