"""The outcomes of steps are noted: for the journal, for a resume in memory, for observers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.layers import Layers
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, Status, status_of
from flowdeco.engine.requests import Failure
from flowdeco.engine.waiting import not_reached, waited
from flowdeco.errors import Bail, Suspend
from flowdeco.model.declare import name_in_group
from flowdeco.model.definitions import Action, Parallel, Stage
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.sentinels import UNSET

__all__ = ["ended_as", "note", "note_entry_writes", "note_place"]

_MOST_BRANCHES: Final = 8  # that the note of an error names


def note(branch: Branch, outcome: Outcome) -> tuple[Outcome, Failure]:
    """Note an outcome for the journal, for a resume in memory, for observers.

    If the journal cannot take it, the step has failed. Return the outcome as noted, and that error.
    """
    terms, refused = branch.terms, None
    if terms.is_unobserved and outcome.error is None and type(outcome) is ActionRecord:
        return outcome, None
    stage = branch.scope.unit if isinstance(outcome.unit, Action) else None
    name = None if stage is None else stage.name
    if terms.recorder is not None and not outcome.restored:
        try:
            branch.add_row(terms.recorder.row(branch.id, name, outcome))
        except BaseException as error:  # whatever a user's `__reduce__` raises
            if outcome.is_final:
                refused, outcome = error, outcome.refused(error)
            with suppress(BaseException):  # a failure that is not written happens again on resume
                branch.add_row(terms.recorder.row(branch.id, name, outcome._replace(writes=None)))
    elif branch.logged is not None and stage is None:
        branch.logged[outcome.number] = outcome.kept()
    if outcome.error is not None:
        note_place(branch, outcome.error, _in_words(outcome, name, branch.scope.pipeline.name))
    if terms.notify is not None:
        for event in outcome.events(terms.run_id, name):
            terms.notify(event)
    return outcome, refused


def note_entry_writes(
    branch: Branch, scope: OpenScope, entry_writes: Sequence[Delta], layers: Layers | None = None
) -> Failure:
    """Note the writes of a scope's layers as they were entered; return the error if the journal cannot take them."""
    recorder, unit = branch.terms.recorder, scope.unit
    is_first = layers is None or layers.attempt == 1
    if recorder is None or (is_first and all(delta == NOTHING for delta in entry_writes)):
        return None
    began = Outcome(
        unit.name, unit, Status.RUNNING, scope.started + branch.terms.epoch, 0.0, scope.by, scope.number,
        scope=scope.place, entry_writes=entry_writes, waits=(*waited(branch, scope.number), *not_reached(branch, scope)),
    )  # fmt: skip
    if layers is not None:
        began = began._replace(
            attempts=layers.attempt, repeats=layers.repeats, failures=layers.failures, dropped=layers.dropped
        )
    try:
        branch.rows.append(recorder.row(branch.id, None, began))
    except BaseException as refused:
        return refused
    return None


def ended_as(
    branch: Branch, error: Failure, layers: Layers | None
) -> tuple[Status, Failure, int, bool, tuple[BaseException, ...]]:
    """Return status, error, attempts, whether it was recovered, and earlier errors, for the outcome of a step."""
    status = status_of(error, branch.terms.is_cancellation)
    if layers is None:
        return status, error, 1, False, ()
    if error is None and layers.recovered:
        return Status.FAILED, layers.failure, layers.attempt, True, layers.failures
    if error is None and not layers.entered and layers.given is UNSET:
        status = Status.SKIPPED
    return status, error, layers.attempt, False, layers.failures


def note_place(branch: Branch, error: BaseException, where: str) -> None:
    """Add a note to an exception, once, with its place in the run."""
    place = f"run {branch.terms.run_id!r}"
    if isinstance(error, (Bail, Suspend)):
        return
    with suppress(Exception):  # the exception may allow neither reading nor writing
        if not any(note.endswith(place) for note in getattr(error, "__notes__", ())):
            branches = list(_branches(branch))
            if len(branches) > _MOST_BRANCHES + 1:
                branches[_MOST_BRANCHES // 2 : -_MOST_BRANCHES // 2] = [
                    f"{len(branches) - _MOST_BRANCHES} more branches"
                ]
            error.add_note(", ".join([f"in {where}", *branches, place]))


def _branches(branch: Branch) -> Iterator[str]:
    """Yield the branches that this one is in, itself first: their places, and their units with bound values."""
    while branch.parent is not None:
        place = cast("Scope", branch.base.place)
        yield f"branch {place.branch} ({name_in_group(branch.unit)!r}) of parallel group {place.name!r}"
        branch = branch.parent


def _in_words(outcome: Outcome, stage: str | None, pipeline: str) -> str:
    unit = outcome.unit
    if isinstance(unit, Action):
        return f"action {outcome.name!r} of stage {stage!r}, pipeline {pipeline!r}"
    if isinstance(unit, Stage):
        return f"stage {outcome.name!r}, pipeline {pipeline!r}"
    if isinstance(unit, Parallel):
        return f"parallel group {outcome.name!r}, pipeline {pipeline!r}"
    return f"pipeline {outcome.name!r}"
