"""Another attempt at a scope: the failed one is forgotten, here and in the journal."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.layers import Layers
from flowdeco.engine.open_scopes import Before, OpenScope
from flowdeco.engine.outcome import Outcome, dropped_errors
from flowdeco.engine.requests import Raised, Save, Walk
from flowdeco.model.definitions import Stage

__all__ = ["forget_attempt", "forget_held", "repeat_changes", "state_before"]


def state_before(branch: Branch) -> Before:
    return Before(len(branch.records), branch.switches, branch.switched, branch.result, branch.places)


def forget_attempt(branch: Branch, scope: OpenScope) -> Walk:
    """Forget a failed attempt at a scope, whose writes are undone (`leave`); return the error if the journal fails."""
    layers, before = cast("Layers", scope.layers), cast("Before", scope.before)
    records, branch.switches, branch.switched, branch.result, branch.places = before
    dropped: Sequence[Outcome] = branch.records.cut(records)
    if type(scope.unit) is Stage:
        dropped = scope.records
    layers.dropped = dropped_errors(dropped, scope.place, layers.dropped)
    scope.records, scope.inserted = [], []
    layers.inside = {*layers.inside, *(place for at, place, _ in branch.answered if at >= scope.number)}
    branch.number = scope.number + 1
    return (yield from _drop_from(branch, scope.number))  # with the row of its layers' writes on entry


def repeat_changes(branch: Branch, layers: Layers) -> None:
    """Have the journal note changes in place again: a failed attempt's are not undone, though its rows are dropped."""
    changes = {key: branch.store[key] for key in sorted(branch.changed) if key in branch.store}
    if changes and layers.entry_writes:
        layers.entry_writes[-1] = layers.entry_writes[-1]._replace(
            changes={**layers.entry_writes[-1].changes, **changes}
        )


def forget_held(branch: Branch, scope: OpenScope) -> None:
    """Forget the steps of an atomic scope that has failed: it runs again from its beginning."""
    del branch.rows[scope.held :]
    if branch.terms.recorder is not None:
        branch.terms.recorder.looks.forget()
    branch.left_behind().cut(0)
    if branch.terms.log is not None:
        branch.terms.log.forget(_cuts(branch, scope.number + 1))


def _cuts(branch: Branch, number: int) -> dict[str, int]:
    """Return the numbers from which on to forget the steps of a branch, and of the branches of groups among these."""
    gone = [id for at, ids in branch.inner_branches if at >= number for id in ids]
    return {branch.id: number, **dict.fromkeys(gone, 0)}


def _drop_from(branch: Branch, number: int) -> Walk:
    """Forget all steps from this number on, and the branches of groups among them."""
    terms, cuts = branch.terms, _cuts(branch, number)
    branch.inner_branches = [fork for fork in branch.inner_branches if fork[0] < number]
    branch.left_behind().cut(number)
    terms.waits.update({place: waits for at, place, waits in branch.answered if at >= number})
    branch.answered = tuple(each for each in branch.answered if each[0] < number)
    held = ((wait.at or (branch.id, -1), wait) for wait in branch.held_waits)
    branch.held_waits = tuple(wait for (id, at), wait in held if at < cuts.get(id, inf))
    if terms.past is not None:
        cuts = {**terms.past.drop_from(branch.id, number), **cuts}
        terms.past.forget(cuts)
    if terms.log is not None:
        terms.log.forget(cuts)
    recorder = terms.recorder
    if recorder is None or recorder.unsaved is not None:
        return branch.unsaved()
    recorder.looks.forget()  # the journal loses changes with these rows
    branch.rows = [row for row in branch.rows if row.number < cuts.get(row.branch, inf)]
    if not branch.atomic:  # the row of the scope itself has its attempts so far, and is replaced as the next one begins
        answer = yield Save(recorder.drop, {**cuts, branch.id: number + 1})
        if type(answer) is Raised:
            recorder.unsaved = answer.error
    return recorder.unsaved
