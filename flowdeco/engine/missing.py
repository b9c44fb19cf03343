"""Why a parameter is missing: what became of the actions before it that supply its key, or where it is supplied later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Final

from flowdeco.engine.branch import Branch
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, StageRecord, Status, enclosing
from flowdeco.errors import MissingInputError, WiringError, told
from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import Parallel, Stage, Unit, action_selectors, stage_selectors
from flowdeco.model.steps import Step, step_of
from flowdeco.model.wiring import Supplier, beside, suppliers

__all__ = ["MOST_UNITS", "explain", "explain_refusal"]

MOST_UNITS: Final = 10_000  # that are looked through
MOST_NOTES: Final = 3

_NONE: Final = frozenset[str]()


def explain(error: MissingInputError, branch: Branch, step: Step) -> None:
    """Add notes to the error of a missing parameter: why actions before it did not supply it, or that it comes later."""
    for wanted, key in zip(step.inputs, step.keys, strict=True):
        if wanted.default is EMPTY and not wanted.context and wanted.name not in step.bound and key not in branch.store:
            reasons = list(islice(_before(branch, wanted.key, step.local), MOST_NOTES))
            for reason in dict.fromkeys(reasons or islice(_after(branch, step, wanted.key), 1)):
                error.add_note(reason)


def explain_refusal(error: WiringError, branch: Branch) -> None:
    """Add notes to the error of a refused insertion: why actions that ran before it did not supply a key."""
    local = branch.scope.local | branch.store.ended_locals().keys()  # the message says so
    for key in dict.fromkeys(problem.key for problem in error.problems):
        for reason in dict.fromkeys(islice(_before(branch, key), MOST_NOTES)) if key not in local else ():
            error.add_note(reason)


def _before(branch: Branch, key: str, local: frozenset[str] = _NONE) -> Iterator[str]:
    """Yield why the actions that ran before, or should have run, did not supply a key."""
    scope = branch.scope
    if isinstance(scope.unit, Stage):
        yield from _of_actions(branch, scope.unit, scope.records, key, "")
    if key in local:  # which hides what others supply
        return
    at: Branch | None = branch
    while at is not None:
        for record in _reached(at):
            yield from _of_stage(branch, at, record, key)
        for _, did in at.records.scopes:
            yield from _of_scope(at, did, key)
        at = at.parent


def _of_scope(at: Branch, did: Outcome, key: str) -> Iterator[str]:
    """Yield what supplies the key in those parts of a pipeline or group that did not run."""
    parts: list[tuple[int | None, tuple[Unit, ...]]] = []
    if isinstance(did.unit, Parallel):
        parts = [(index, (unit,)) for index, unit in enumerate(did.unit.units) if not did.selection.takes(index)]
    elif did.recovered or did.status is Status.SKIPPED:
        parts = [(None, did.unit.units)]
    for index, units in parts:
        ran = {record.name for record in _reached(at) if _is_in(record.scope, did.scope, index)}
        for missed in suppliers(units, key):
            if missed.stage.name not in ran:
                yield f"{missed.says(repr(key))}, and did not run: {_how_lost(did, index)}"


def _reached(at: Branch) -> Iterator[StageRecord]:
    """Yield the records of a branch, the latest first, but for those in pipelines that their middleware skipped."""
    skipped = [did.scope for _, did in at.records.scopes if did.status is Status.SKIPPED]
    for record in reversed(at.records.kept):
        if not any(_is_in(record.scope, scope, None) for scope in skipped):
            yield record


def _is_in(scope: Scope | None, outer: Scope | None, branch: int | None) -> bool:
    return outer is None or any(each.id == outer.id and each.branch == branch for each in enclosing(scope))


def _how_lost(did: Outcome, index: int | None) -> str:
    """Return why a branch of a group, or a pipeline, did not run to its end, or does not count."""
    if index is None:
        how = "was skipped by its middleware" if did.status is Status.SKIPPED else "failed before it, and was recovered"
        return f"pipeline {did.name!r} {how}"
    if index in did.selection.lost:
        return f"branch {index} of the parallel group {did.name!r} failed, and was tolerated"
    return f"the parallel group {did.name!r} was complete without its branch {index}"


def _of_stage(branch: Branch, at: Branch, record: StageRecord, key: str) -> Iterator[str]:
    found = list(suppliers((record.stage,), key))
    if not found and not any(each.inserted_by or each.name == key for each in record.actions):
        return
    if record.status is Status.SKIPPED and not record.actions:
        how = _how_skipped(branch, stage_selectors(record.stage))
        for each in found:
            stage = "" if each.step is None else f"its stage {record.name!r} "
            yield f"{_says(each, key)}, and {stage}{how}"
        return
    yield from _of_actions(branch, record.stage, record.actions, key, _dropped(at, record))
    ended = {Status.FAILED: "failed before it, and was recovered", Status.CANCELLED: "was cancelled before it"}
    if record.status in ended:
        ran = {each.name for each in record.actions}
        for each in found:
            if each.step is not None and each.step.name not in ran:
                yield f"{_says(each, key)}, and did not run: its stage {record.name!r} {ended[record.status]}"


def _says(supplier: Supplier, key: str) -> str:
    return supplier.says(repr(key)) if supplier.step is None else f"action {supplier.step.name!r} supplies {key!r}"


def _of_actions(branch: Branch, stage: Stage, records: Sequence[ActionRecord], key: str, dropped: str) -> Iterator[str]:
    """Yield why actions that have a record did not supply a key; `dropped` is why what they did does not count."""
    for record in records:
        step = step_of(record.action)
        is_hidden = stage.local and stage is not branch.scope.unit and step.supplies_own_name and step.name == key
        elsewhere = "" if record.status is not Status.COMPLETED else step.keeps_elsewhere(key)
        if elsewhere:
            yield f"action {record.name!r} has run, and {elsewhere}"
        if key not in step.supplies or is_hidden:
            continue
        yield f"action {record.name!r} {_why(branch, stage, record, key, dropped)}"


def _why(branch: Branch, stage: Stage, record: ActionRecord, key: str, dropped: str) -> str:
    """Return how an action that should have supplied a key did not."""
    supplies = f"supplies {key!r}, and"
    if record.status is Status.SKIPPED:
        selectors = [*stage_selectors(stage), *action_selectors(stage, record.action)]
        return f"{supplies} {_how_skipped(branch, selectors)}"
    if record.status is Status.FAILED:
        is_around = dropped or not record.recovered
        how = "that was recovered around it" if is_around else "it was recovered without an outcome"
        return f"{supplies} failed: {how} ({told(record.error)})"
    if record.status is Status.CANCELLED:
        return f"{supplies} was cancelled: {dropped or 'something around it failed and was recovered'}"
    if dropped:
        return f"has run, and {dropped}: {key!r} was dropped, or never returned"
    if branch.store.was_deleted(key):
        return f"has run, and {key!r} was deleted from the store"
    if record.inserted:
        names = ", ".join(repr(each.name) for each in record.inserted)
        return f"has run, and inserted {names}: it returned no data for {key!r}"
    return (
        f"has run, and returned nothing for {key!r}: None, and a generator that yields nothing, are not stored. Give the "
        f"parameter a default, or have the action store None by its annotation: `-> T | None`"
    )


def _dropped(at: Branch, record: StageRecord) -> str:
    """Return why the effect of a stage does not count: something around it failed, or is complete without it; else ""."""
    chosen = {did.scope.id: did for _, did in at.records.scopes if did.scope is not None}
    recovered = {did.scope.id for _, did in at.records.scopes if did.recovered and did.scope is not None}
    failed = [
        other.scope
        for other in at.records.kept
        if other.status is Status.FAILED
        and not (other.recovered and recovered.isdisjoint(scope.id for scope in enclosing(other.scope)))
    ]
    broken = {scope.id for each in failed for scope in enclosing(each)}
    for scope in takewhile(lambda scope: scope != at.base.place, enclosing(record.scope)):
        if scope.branch is None:
            continue
        group = chosen.get(scope.id)
        if group is not None and not group.selection.takes(scope.branch):
            return _how_lost(group, scope.branch)
        if scope.id in broken:
            return f"parallel group {scope.name!r} failed and was recovered"
    return f"stage {record.name!r} failed and was recovered" if record.recovered else ""


def _how_skipped(branch: Branch, selectors: Sequence[str]) -> str:
    skipped = branch.terms.skip.intersection(selectors)
    if skipped:
        return f"was skipped (skip={sorted(skipped)!r})"
    disabled = [selector for selector, on in branch.switches.items() if selector in selectors and not on]
    return f"was disabled (ctx.disable({disabled[-1]!r}))" if disabled else "was skipped"


def _after(branch: Branch, step: Step, key: str) -> Iterator[str]:
    """Yield where a key is supplied later, or in another branch."""
    rest = (unit for unit, _ in reversed(branch.agenda) if isinstance(unit, Step))
    inside = next((each for each in rest if key in each.supplies), None)
    if inside is not None:
        yield f"action {inside.name!r} supplies {key!r}, but comes later, in the same stage: let it run first"
    if key in step.local:
        return
    coming = (unit for unit in islice(branch.upcoming(), MOST_UNITS) if isinstance(unit, Unit))
    for each in suppliers(coming, key):
        if each.step is None or each.step.function is not step.function:
            yield f"{each.says(repr(key))}, but comes later: let it run first"
    at = branch
    while at.parent is not None:
        group: Parallel = at.conductor.group
        for each in suppliers((unit for unit in group.units if unit is not at.unit), key):
            yield f"{each.says(repr(key))} {beside(group)}"
        at = at.parent
