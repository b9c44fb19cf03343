"""An action inside its layers: called as often as they ask for it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.calling import call_action, messages_after, settled, simple_arguments
from flowdeco.engine.changes import Watch
from flowdeco.engine.context import Context
from flowdeco.engine.effects import Execution, conclude, messages_of, try_complete
from flowdeco.engine.layers import Layers, enter, leave
from flowdeco.engine.outcome import ActionRecord, Outcome, Status
from flowdeco.engine.requests import Failure, Raised, Request, Walk
from flowdeco.engine.results import SETTLED
from flowdeco.engine.waiting import waited
from flowdeco.engine.waits import Called
from flowdeco.errors import Bail, Suspend
from flowdeco.model.deltas import NOTHING, Mark
from flowdeco.model.options import Middleware
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step

__all__ = ["in_layers"]


def in_layers(
    branch: Branch, step: Step, by: str | None, number: int, started: float, layers: tuple[Middleware, ...],
    earlier: Outcome | None = None,
) -> Walk:  # fmt: skip
    """Call an action inside its layers, as often as they ask for it; then conclude it."""
    around = _layers_around(branch, step, number, layers, earlier)
    mark, watch = branch.store.mark(), around.watch
    act: Execution | None = None
    called = None if earlier is None else branch.waits_of(number).called
    error: Failure = None
    value: Any = UNSET
    again = True
    while again:
        act = None
        entered = enter(around)
        runs, error = entered if isinstance(entered, tuple) else (yield from entered)
        if runs:
            args = None if around.values or called is not None else simple_arguments(branch, step)
            if args is not None:
                value = yield step, args, None
            else:
                act = Execution(step, by, number, started)
                act.watch, act.layers = watch, around
                value = yield from _called(branch, act, called)
                called = None
            if type(value) not in SETTLED:
                value = yield from settled(step, value)
            if type(value) is Raised:
                error = value.error
            else:
                around.given = value
        left = leave(around, error)
        again, error = left if isinstance(left, tuple) else (yield from left)
        if again:
            error = yield from _another_attempt(branch, Execution(step, by, number, started), around)
            again = error is None
    if error is not None and around.entered:
        _note_call(branch, number, None if act is None else act.context, watch, value, error)
    bail = error if isinstance(error, Bail) else None  # what the layers leave counts
    returned, value = value, around.given if error is None or bail is not None else Raised(error)
    if value is not returned and type(value) not in SETTLED:  # supplied by a layer
        value = yield from settled(step, value)
    undoes: Mark | None = mark
    if act is None and watch is None and bail is None and _did_nothing(branch, around, mark):
        branch.store.release(mark)
        if try_complete(branch, step, by, number, started, value):
            return None
        undoes = None
    act = act or Execution(step, by, number, started)
    act.value, act.bail, act.layers, act.mark, act.watch = value, bail, around, undoes, watch
    return conclude(branch, act)


def _layers_around(
    branch: Branch, step: Step, number: int, layers: tuple[Middleware, ...], earlier: Outcome | None
) -> Layers:
    """Return the layers of an action, which continue from its earlier outcome."""
    around = branch.layers(number, layers, branch.scope.unit, step.action)
    if step.local:
        around.localized = step
    if earlier is not None:
        around.continue_from(earlier)
        around.messages = messages_after(earlier)
    return around


def _called(branch: Branch, act: Execution, before: Called | None) -> Generator[Request, Any, Any]:
    """Call an action in its layers, unless that was done before the run was suspended; return its value."""
    if before is None:
        layers = cast("Layers", act.layers)
        return (yield from call_action(branch, act, layers.values))
    act.context = before
    return before.value


def _did_nothing(branch: Branch, layers: Layers, mark: Mark) -> bool:
    """Whether the layers only surrounded the call, in a scope that leaves it alone as well."""
    return not mark and branch.scope.is_quiet and layers.stood_by()


def _note_call(
    branch: Branch, number: int, context: Context | Called | None, watch: Watch | None, value: Any, error: BaseException
) -> None:
    """Note a call after which middleware suspends the run, so that it is not repeated.

    Not in an atomic scope, which begins anew, nor a call that has changed values in place: these would not be restored.
    """
    if not isinstance(error, Suspend) or type(value) is Raised or branch.atomic:
        return
    if watch is not None and watch.with_changes(NOTHING).changes:
        return
    called = Called(value, NOTHING, (), ())
    if context is not None:
        effects = context.effects()
        called = Called(value, effects.delta, effects.inserted, effects.switches)
    branch.waits_of(number).called = called


def _another_attempt(branch: Branch, act: Execution, layers: Layers) -> Walk:
    """Forget the waits of an attempt that has failed; have the journal note that another one begins.

    It counts, should the process be killed.
    """
    recorder, step = branch.terms.recorder, act.step
    if branch.waits:
        branch.waits_of(act.number).another_attempt(layers.asked_again)
    if recorder is None:
        return None
    began = ActionRecord(
        step.name, step.action, Status.RUNNING, act.started + branch.terms.epoch, 0.0, act.by, act.number,
        attempts=layers.attempt, repeats=layers.repeats, failures=layers.failures, waits=waited(branch, act.number),
        messages=messages_of(layers),
    )  # fmt: skip
    branch.rows.append(recorder.row(branch.id, branch.scope.unit.name, began))
    return (yield from branch.save())
