"""Why a parameter is missing: what became of the actions before it that supply its key, or where it is supplied later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Final

from flowdeco.engine.branch import Branch
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, StageRecord, Status
from flowdeco.errors import MissingInputError, told
from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import Parallel, Stage, Unit, action_selectors, stage_selectors
from flowdeco.model.steps import Step, steps_of
from flowdeco.model.wiring import suppliers

__all__ = ["explain"]

MOST_UNITS: Final = 10_000  # that are looked through
MOST_NOTES: Final = 3


def explain(error: MissingInputError, branch: Branch, step: Step) -> None:
    """Add notes to the error of a missing parameter: why actions before it did not supply it, or that it comes later."""
    for wanted, key in zip(step.inputs, step.keys, strict=True):
        if wanted.default is EMPTY and not wanted.context and wanted.name not in step.bound and key not in branch.store:
            reasons = list(islice(_before(branch, step, wanted.key), MOST_NOTES))
            for reason in dict.fromkeys(reasons or islice(_after(branch, step, wanted.key), 1)):
                error.add_note(reason)


def _before(branch: Branch, step: Step, key: str) -> Iterator[str]:
    """Yield why the actions that ran before, or should have run, did not supply a key."""
    stage: Stage = branch.scope.unit
    yield from _of_actions(branch, stage, branch.scope.records, key, "")
    if key in step.local:  # which hides what others supply
        return
    at: Branch | None = branch
    while at is not None:
        for record in reversed(at.records.kept):
            yield from _of_stage(branch, at, record, key)
        for _, did in at.records.pipelines:
            if did.recovered:
                yield from _of_pipeline(at, did, key)
        at = at.parent


def _of_pipeline(at: Branch, recovered: Outcome, key: str) -> Iterator[str]:
    ran = {record.name for record in at.records.kept}
    for missed, each in suppliers((recovered.unit,), key):
        if missed.name not in ran:
            yield (
                f"action {each.name!r} of stage {missed.name!r} supplies {key!r}, and did not run: pipeline "
                f"{recovered.name!r} failed before it, and was recovered"
            )


def _of_stage(branch: Branch, at: Branch, record: StageRecord, key: str) -> Iterator[str]:
    supplying = {each.name for _, each in suppliers((record.stage,), key)}
    if not supplying and not any(each.inserted_by for each in record.actions):
        return
    if record.status is Status.SKIPPED and not record.actions:
        for name in sorted(supplying):
            how = _how_skipped(branch, stage_selectors(record.stage))
            yield f"action {name!r} supplies {key!r}, and its stage {record.name!r} {how}"
        return
    group = _failed_group(at, record)
    around = f"parallel group {group!r}" if group else f"stage {record.name!r}" if record.recovered else ""
    yield from _of_actions(branch, record.stage, record.actions, key, around)
    ended = {Status.FAILED: "failed before it, and was recovered", Status.CANCELLED: "was cancelled before it"}
    if record.status in ended:
        for name in sorted(supplying - {each.name for each in record.actions}):
            yield (
                f"action {name!r} supplies {key!r}, and did not run: its stage {record.name!r} {ended[record.status]}"
            )


def _of_actions(branch: Branch, stage: Stage, records: Sequence[ActionRecord], key: str, failed: str) -> Iterator[str]:
    """Yield why actions that have a record did not supply a key; `failed` is what failed around them."""
    own = {id(step.action): step for step, _ in steps_of(stage)}
    for record in records:
        step = own.get(id(record.action)) or Step.read(record.action)
        is_hidden = stage.local and stage is not branch.scope.unit and step.supplies_own_name and step.name == key
        if key not in step.supplies or is_hidden:
            continue
        who = f"action {record.name!r}"
        if record.status is Status.SKIPPED:
            how = _how_skipped(branch, [*stage_selectors(stage), *action_selectors(stage, record.action)])
            yield f"{who} supplies {key!r}, and {how}"
        elif record.status is Status.FAILED:
            how = (
                "that was recovered around it"
                if failed or not record.recovered
                else "it was recovered without an outcome"
            )
            yield f"{who} supplies {key!r}, and failed: {how} ({told(record.error)})"
        elif record.status is Status.CANCELLED:
            yield f"{who} supplies {key!r}, and was cancelled: {failed or 'something around it'} failed, and was recovered"
        elif failed:
            yield f"{who} has run, and {failed} failed and was recovered: {key!r} was dropped, or never returned"
        else:
            yield (
                f"{who} has run, and returned nothing for {key!r}: None, and a generator that yields nothing, are not "
                f"stored. Give the parameter a default, or have the action store None by its annotation: `-> T | None`"
            )


def _failed_group(at: Branch, record: StageRecord) -> str:
    """Return the name of the group around a stage that merged nothing, since one of its branches failed; else ""."""
    recovered = {did.scope.id for _, did in at.records.pipelines if did.recovered and did.scope is not None}
    failed = [
        other.scope
        for other in at.records.kept
        if other.status is Status.FAILED
        and not (other.recovered and recovered.isdisjoint(scope.id for scope in _around(other.scope)))
    ]
    broken = {scope.id for each in failed for scope in _around(each)}
    for scope in takewhile(lambda scope: scope != at.base.place, _around(record.scope)):
        if scope.branch is not None and scope.id in broken:
            return scope.name
    return ""


def _around(scope: Scope | None) -> Iterator[Scope]:
    while scope is not None:
        yield scope
        scope = scope.outer


def _how_skipped(branch: Branch, selectors: Sequence[str]) -> str:
    skipped = branch.terms.skip.intersection(selectors)
    if skipped:
        return f"was skipped (skip={sorted(skipped)!r})"
    disabled = [selector for selector, on in branch.switches.items() if selector in selectors and not on]
    return f"was disabled (ctx.disable({disabled[-1]!r}))" if disabled else "was skipped"


def _after(branch: Branch, step: Step, key: str) -> Iterator[str]:
    """Yield where a key is supplied later, or in another branch."""
    scope = branch.scope
    rest: list[Any] = [unit.action for unit, _ in reversed(branch.agenda[scope.depth + 1 :]) if isinstance(unit, Step)]
    inside = next((action for action in rest if key in Step.read(action).supplies), None)
    if inside is not None:
        yield f"action {inside.name!r} supplies {key!r}, but comes later, in the same stage: let it run first"
    if key in step.local:
        return
    coming = (unit for unit in islice(branch.upcoming(), MOST_UNITS) if isinstance(unit, Unit))
    for stage, each in suppliers(coming, key):
        if each.function is not step.function:
            yield f"action {each.name!r} of stage {stage.name!r} supplies {key!r}, but comes later: let it run first"
    at = branch
    while at.parent is not None:
        group: Parallel = at.conductor.group
        for stage, each in suppliers((unit for unit in group.units if unit is not at.unit), key):
            yield (
                f"action {each.name!r} of stage {stage.name!r} supplies {key!r} in another branch of the parallel group "
                f"{group.name!r}, and branches do not see each other: let it run before the group"
            )
        at = at.parent
