"""One action: from its step to its outcome.

It is restored, skipped, or called (`calling`), inside its layers if it has any (`layered`); then its effect is applied
(`effects`).
"""

from __future__ import annotations

from typing import Any

from flowdeco.engine.branch import Branch
from flowdeco.engine.calling import call_action, messages_after, settled
from flowdeco.engine.effects import Execution, conclude, note_frozen, take_effect, try_complete
from flowdeco.engine.layered import in_layers
from flowdeco.engine.noting import note
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ActionRecord, Outcome, Status
from flowdeco.engine.requests import Failure, Walk
from flowdeco.engine.restoring import go_live, recall, restore
from flowdeco.engine.results import SETTLED
from flowdeco.engine.waiting import rest_of_pause
from flowdeco.events import ActionStarted
from flowdeco.model.definitions import action_selectors
from flowdeco.model.reload import reloaded
from flowdeco.model.steps import Step, localized, step_of

__all__ = ["begin_action", "finish_simple"]


def finish_simple(branch: Branch, step: Step, by: str | None, started: float, value: Any) -> Any:
    """Apply the value that a simple action returned."""
    number, is_durable = branch.number, branch.terms.recorder is not None
    branch.number = number + 1
    if try_complete(branch, step, by, number, started, value):
        return branch.save() if is_durable else None
    act = Execution(step, by, number, started)
    act.mark = branch.store.mark() if is_durable else None
    act.value = value
    return _settle_and_conclude(branch, act) if is_durable or type(value) not in SETTLED else conclude(branch, act)


def _settle_and_conclude(branch: Branch, act: Execution) -> Walk:
    act.value = yield from settled(act.step, act.value)
    error = conclude(branch, act)
    return (yield from branch.save()) or error


def begin_action(branch: Branch, step: Step, by: str | None) -> Walk | Failure:
    """Return the walk of an action's call, with everything that may surround it, unless it was performed before a resume."""
    scope = branch.scope
    layers = scope.use_actions + step.use
    if layers and scope.is_quiet and branch.terms.is_unobserved:
        number = branch.number
        branch.number = number + 1
        return in_layers(branch, step, by, number, branch.terms.clock(), layers)
    number, earlier = branch.next_number(), None
    if not scope.is_quiet:
        off = branch.is_off(lambda: action_selectors(scope.unit, step.action))  # even if too late, as in `skips`
        earlier = recall(branch, number, step)
        if earlier is not None and branch.restores(earlier):
            return _restore(branch, earlier, step, by)
        if scope.is_skipped or off:
            return _skip(branch, step, by, number)
    return _perform(branch, step, by, number, earlier)


def _perform(branch: Branch, step: Step, by: str | None, number: int, earlier: Outcome | None) -> Walk:
    scope, terms = branch.scope, branch.terms
    layers = scope.use_actions + step.use
    if terms.past is not None:
        error = yield from _await_turn(branch, earlier, step, number)
        if error is not None:
            return error
        step = _renewed(step, scope) if terms.past.is_in_memory and by is not None else step
        layers = terms.past.layers_of(scope.use_actions + step.use)
    if terms.notify is not None:
        terms.notify(ActionStarted(terms.run_id, scope.unit.name, step.name, by))
    started = terms.clock()
    if layers:
        error = yield from in_layers(branch, step, by, number, started, layers, earlier)
    else:
        act = Execution(step, by, number, started)
        if earlier is not None:
            act.messages = messages_after(earlier)
        if terms.recorder is not None:
            act.mark = branch.store.mark()
            act.watch = terms.recorder.looks.watch(branch.store, branch.note_changed)
        act.value = yield from call_action(branch, act, scope.values)
        error = conclude(branch, act)
    return error if terms.recorder is None else ((yield from branch.save()) or error)


def _await_turn(branch: Branch, earlier: Outcome | None, step: Step, number: int) -> Walk:
    """Wait until all that was performed before the resume is restored, and until an attempt may begin."""
    error = yield from go_live(branch)
    if error is None and earlier is not None and branch.terms.waits:
        error = yield from rest_of_pause(branch, number)
        if error is not None:
            branch.scope.records.append(earlier._replace(unit=step.action))
    return error


def _renewed(step: Step, scope: OpenScope) -> Step:
    """Return the step of an inserted action with the code that its module has now."""
    step = step_of(reloaded(step.action))
    return localized(step, scope.local) if scope.local else step


def _restore(branch: Branch, earlier: Outcome, step: Step, by: str | None) -> Failure:
    note_frozen(branch, step)
    did = restore(branch, earlier, step.action, by)
    take_effect(branch, branch.scope, did)
    return None if did.recovered else did.error


def _skip(branch: Branch, step: Step, by: str | None, number: int) -> Walk:
    did, refused = note(branch, ActionRecord(step.name, step.action, Status.SKIPPED, branch.now(), 0.0, by, number))
    branch.scope.records.append(did)
    return refused or (yield from branch.save())
