"""One action: from its step to its outcome.

An action is called inside its layers, and its returned value is settled: awaited, or run to its end. Then its effect is
applied, all of it or none (L4): its writes, insertions, switches and result. If that is refused (a value that cannot be
journaled, an insertion that nothing can supply), the action has failed.
"""

from __future__ import annotations

import types
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.changes import Watch
from flowdeco.engine.context import Context
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.layers import Layers, enter, leave
from flowdeco.engine.messages import MessageRecord, Messages, cut, interleaved
from flowdeco.engine.missing import explain
from flowdeco.engine.noting import ended_as, note, restore
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import COMPLETED, NOTHING_DROPPED, ActionRecord, Outcome, Status, inserter
from flowdeco.engine.requests import Await, Awaited, Chore, Failure, Raised, Request, Walk
from flowdeco.engine.results import (
    HOLDING,
    SETTLED,
    Begun,
    Exhausting,
    exhaust,
    is_awaited,
    is_generator,
    is_plain_iterator,
    sort_out,
    unit_in,
)
from flowdeco.engine.resuming import await_others, recall
from flowdeco.engine.waiting import rest_of_pause, waited, with_waits
from flowdeco.engine.waits import Called
from flowdeco.errors import Bail, MissingInputError, StoreTypeError, Suspend, told
from flowdeco.events import ActionStarted
from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import Action, Stage, Stream, Unit, action_selectors
from flowdeco.model.deltas import NOTHING, Delta, Mark
from flowdeco.model.options import Middleware
from flowdeco.model.reload import reloaded
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step, local_names, localized, step_of
from flowdeco.model.store import Store
from flowdeco.model.wiring import may_supply, unmet

__all__ = ["begin_action", "finish_simple", "simple_arguments"]


class Execution:
    """The execution of an action: who inserted it, its place in the branch, its value and its effect so far."""

    __slots__ = (
        "by", "context", "inserted", "layers", "mark", "messages", "number", "result", "started", "step", "switches",
        "value", "watch",
    )  # fmt: skip

    def __init__(self, step: Step, by: str | None, number: int, started: float) -> None:
        self.step = step
        self.by = by
        self.number = number
        self.started = started
        self.value: Any = UNSET  # as returned, or `Raised`
        self.context: Context | Called | None = None  # `Called` for a call before the run was resumed
        self.watch: Watch | None = None  # with a journal: over the values that it may change in place
        self.layers: Layers | None = None
        self.messages: Messages | None = None  # unless its layers have them
        # Set before its layers were entered, before it was called, or after a simple call:
        self.mark: Mark | None = None
        # Its effect beyond its writes:
        self.inserted: tuple[Unit | Stream, ...] = ()
        self.switches: tuple[tuple[str, bool], ...] = ()
        self.result: Any = UNSET

    def forget(self) -> None:
        """Take back its effect: it was refused."""
        self.inserted, self.switches, self.result = (), (), UNSET


def simple_arguments(branch: Branch, step: Step) -> tuple[Any, ...] | None:
    """Return the arguments of an action if all of them are in the store, the common case.

    In a durable run, only if it cannot change them in place. With this, an action costs 5 x the loop, not 11 x, and a layer
    around it 8 x, not 9 x.
    """
    if not step.simple or branch.guarded:
        return None
    try:
        args = tuple(map(branch.read, step.keys))
    except KeyError:
        return None  # it may have a default
    return args if branch.terms.recorder is None or ATOMS.issuperset(map(type, args)) else None


def finish_simple(branch: Branch, step: Step, by: str | None, started: float, value: Any) -> Any:
    """Apply the value that a simple action returned."""
    number, is_durable = branch.number, branch.terms.recorder is not None
    branch.number = number + 1
    if complete(branch, step, by, number, started, value):
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
    if layers and scope.is_quiet and branch.terms.is_unobserved and not branch.guarded:
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
        step = _renewed(step, scope) if terms.past.in_store and by is not None else step
        layers = terms.past.layers_of(scope.use_actions + step.use)
    if terms.notify is not None:
        terms.notify(ActionStarted(terms.run_id, scope.unit.name, step.name, by))
    started = terms.clock()
    if layers:
        error = yield from in_layers(branch, step, by, number, started, layers, earlier)
    else:
        act = Execution(step, by, number, started)
        if earlier is not None:
            act.messages = _after(earlier)
        if terms.recorder is not None:
            act.mark = branch.store.mark()
            act.watch = terms.recorder.looks.watch(branch.store, branch.changed)
        act.value = yield from _call(branch, act, scope.values)
        error = conclude(branch, act)
    return error if terms.recorder is None else ((yield from branch.save()) or error)


def _await_turn(branch: Branch, earlier: Outcome | None, step: Step, number: int) -> Walk:
    """Wait until all that was performed before the resume is restored, and until an attempt may begin."""
    error = yield from await_others(branch)
    if error is None and earlier is not None and branch.terms.waits:
        error = yield from rest_of_pause(branch, number)
        if error is not None:
            branch.scope.records.append(earlier._replace(unit=step.action))
    return error


def _renewed(step: Step, scope: OpenScope) -> Step:
    """Return the step of an inserted action with the code that its module has now."""
    step = step_of(reloaded(step.action))
    return localized(step, scope.local) if scope.local else step


def in_layers(
    branch: Branch, step: Step, by: str | None, number: int, started: float, layers: tuple[Middleware, ...],
    earlier: Outcome | None = None,
) -> Walk:  # fmt: skip
    """Call an action inside its layers, as often as they ask for it; then conclude it."""
    around, watch = _layers_around(branch, step, number, layers, earlier)
    mark = branch.store.mark()
    act: Execution | None = None
    called = None if earlier is None else _call_before(branch, number)
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
            elif called is not None:
                act = Execution(step, by, number, started)
                act.context, value, called = called, called.value, None
            else:
                act = Execution(step, by, number, started)
                act.watch, act.layers = watch, around
                value = yield from _call(branch, act, around.values)
            if type(value) not in SETTLED:
                value = yield from settled(step, value)
            if act is not None or watch is not None or step.writes is None or type(value) not in ATOMS:
                value = _tried(branch, act or Execution(step, by, number, started), around, value)
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
        _note_call(branch, act or Execution(step, by, number, started), watch, value, error)
    returned, value = value, around.given if error is None else Raised(error)
    if value is not returned and type(value) not in SETTLED:  # supplied by a layer
        value = yield from settled(step, value)
    if act is None and watch is None and _did_nothing(branch, around, mark):
        branch.store.release(mark)
        if complete(branch, step, by, number, started, value):
            return None
    act = act or Execution(step, by, number, started)
    act.value, act.layers, act.mark, act.watch = value, around, mark, watch
    return conclude(branch, act)


def _tried(branch: Branch, act: Execution, layers: Layers, value: Any) -> Any:
    """Return a returned value, or `Raised` if its effect would be refused, so that the layers see the failure.

    The effect is applied and taken back: it takes place when the layers have ended, who may replace the value.
    """
    if type(value) is Raised:
        return value
    store, recorder, step, act.layers = branch.store, branch.terms.recorder, act.step, layers
    before: Mark | None = None
    try:
        inserted, data = sort_out(step, value)
        is_taken = _takes_any(step, store) and (recorder is None or recorder.takes(data))
        if inserted or act.context is not None or not is_taken:
            before = store.mark()
            _let_write(branch, act, inserted, data, is_trial=True)
            if recorder is not None:
                recorder.check(step.name, branch.scope.unit.name, store.since(before), act.inserted, act.result)
    except BaseException as failure:  # as in `conclude`
        return Raised(failure)
    finally:
        act.forget()
        if before is not None:
            store.undo(before)
    return value


def _takes_any(step: Step, store: Store) -> bool:
    """Whether no data is refused where the step writes it."""
    key = step.collects
    if key is None or step.result_key is not None:
        return step.writes is not None
    return type(key) is str and isinstance(store.get(key, []), list)


def _did_nothing(branch: Branch, layers: Layers, mark: Mark) -> bool:
    """Whether the layers only surrounded the call, in a scope that leaves it alone as well."""
    return not mark and branch.scope.is_quiet and layers.stood_by()


def _call_before(branch: Branch, number: int) -> Called | None:
    """Return the call of an action after which its middleware has suspended the run."""
    return branch.waits_of(number).called if (branch.id, number) in branch.terms.waits else None


def _note_call(branch: Branch, act: Execution, watch: Watch | None, value: Any, error: BaseException) -> None:
    """Note a call after which middleware suspends the run, so that it is not repeated.

    Not in an atomic scope, which begins anew, nor a call that has changed values in place: these would not be restored.
    """
    if not isinstance(error, Suspend) or type(value) is Raised or branch.atomic:
        return
    if watch is not None and watch.with_changes(NOTHING).changes:
        return
    effects = Called(value, NOTHING, (), ()) if act.context is None else act.context.effects()
    branch.waits_of(act.number).called = Called(value, effects.delta, effects.inserted, effects.switches)


def _layers_around(
    branch: Branch, step: Step, number: int, layers: tuple[Middleware, ...], earlier: Outcome | None
) -> tuple[Layers, Watch | None]:
    """Return the layers of an action, and with a journal what they and the action may change in place."""
    terms, scope, shown = branch.terms, branch.scope, branch.store
    watch: Watch | None = None
    if terms.recorder is not None:
        watch = terms.recorder.looks.watch(shown, branch.changed)
        shown = watch.watched()
    around = Layers(terms.run_id, shown, scope.pipeline, scope.unit, step.action, layers, terms.gate)
    around.values = scope.values
    if step.local:
        around.localized = step
    if watch is not None:
        around.waits = partial(branch.waits_of, number)
    if earlier is not None:
        around.continue_from(earlier)
        around.messages = _after(earlier)
    return around, watch


def _another_attempt(branch: Branch, act: Execution, layers: Layers) -> Walk:
    """Forget the waits of an attempt that has failed; have the journal note that another one begins.

    It counts, should the process be killed.
    """
    recorder, step = branch.terms.recorder, act.step
    if branch.waits:
        branch.waits_of(act.number).another_attempt(layers.reopened)
    if recorder is None:
        return None
    began = ActionRecord(
        step.name, step.action, Status.RUNNING, act.started + branch.terms.epoch, 0.0, act.by, act.number,
        attempts=layers.attempt, repeats=layers.repeats, failures=layers.failures, waits=waited(branch, act.number),
        messages=_messages(layers),
    )  # fmt: skip
    branch.rows.append(recorder.row(branch.id, branch.scope.unit.name, began))
    return (yield from branch.save())


def _call(branch: Branch, act: Execution, values: Mapping[str, Any]) -> Generator[Request, Any, Any]:
    """Call an action; return its settled value, or `Raised`."""
    terms, store, stage, step, watch = branch.terms, branch.store, branch.scope.unit, act.step, act.watch
    # Layers may have taken their time, or ask for another attempt.
    refused = branch.refusal() if branch.guarded else None
    if refused is not None:
        return Raised(refused)
    if watch is not None:
        _note_frozen(branch, step)
        watch.look(step.keys)
    context: Context | None = None
    if step.wants_context:
        place = branch, act.number
        context = act.context = Context(
            terms.run_id, branch.scope.pipeline, stage, step.action, store, branch, terms.notify, place
        )
        context.messages = act.messages
        if act.layers is not None:
            context.attempt, context.messages = act.layers.attempt, act.layers.messages
        if watch is not None:
            context.store.on_read = watch.look_at
    try:
        args, kwargs = step.gather(store, values, context, stage.name)
    except Exception as error:
        if isinstance(error, MissingInputError):
            explain(error, branch, step)
        return Raised(error)
    value = yield step, args, kwargs
    if type(value) not in SETTLED:
        value = yield from settled(step, value)
    if context is not None:
        context.store.ended = step.name
        if context.messages is not None:
            (act.layers or act).messages = context.messages
    return value


def _after(earlier: Outcome) -> Messages | None:
    """Return the messages of an action that ended early before the run was resumed, with the reason why it did."""
    error, before, count = earlier.error, list(earlier.messages), len(earlier.failures)

    def ended(failure: BaseException) -> MessageRecord:
        payload = {"status": str(earlier.status), "error": cut(told(failure))}
        return MessageRecord("ended", earlier.started + earlier.elapsed, payload, count)

    if earlier.status is Status.FAILED:  # its attempts no longer count
        attempts, count = interleaved(before, earlier.failures), 0
        before = [each._replace(failures=0) if isinstance(each, MessageRecord) else ended(each) for each in attempts]
    if error is not None and (before or not isinstance(error, Suspend)):
        before.append(ended(error))
    return Messages(before) if before else None


def _messages(keeper: Layers | Execution) -> Sequence[MessageRecord]:
    return () if keeper.messages is None else keeper.messages.recorded()


def settled(step: Step, value: Any) -> Generator[Request, Any, Any]:
    """Await what is to be awaited, and then run a generator to its end, or begin an iterator: each of them once."""
    if type(value) is Awaited:
        value = value.value
    elif is_awaited(value):
        value = yield Await(value, step.timeout, step.name)
    if is_generator(value):
        return (yield Chore(exhaust, step.name, step.timeout), (value,), None)
    if type(value) is types.AsyncGeneratorType:
        return (yield Await(Exhausting(cast("Any", value)), step.timeout, step.name))
    if step.inserts and is_plain_iterator(cast("type[object]", type(value))):  # it may have units in it
        return (yield Chore(Begun, step.name, step.timeout), (value,), None)
    return value


# The outcome, and its effect.


def complete(branch: Branch, step: Step, by: str | None, number: int, started: float, value: Any) -> bool:
    """Apply a plain value: nothing, a stage, or data under one key; return False if it takes more than that.

    It is the short form of `conclude` and `take_effect`.
    """
    terms, scope, kind = branch.terms, branch.scope, cast("type[object]", type(value))
    inserted: tuple[Stage, ...] = ()
    if kind is Stage:
        inserted = (value,)
        if terms.recorder is not None or unmet(inserted, branch.store, terms.skip):
            return False
    elif value is not step.nothing:
        if kind not in ATOMS and not _is_plain(kind, value):  # `Raised` as well
            return False
        if step.writes is None and not _collect(branch, step, value):
            return False
    elapsed = terms.clock() - started
    did = ActionRecord(step.name, step.action, COMPLETED, started + terms.epoch, elapsed, by, number, inserted)
    if inserted:
        scope.inserted.append((value, inserter(f"{scope.unit.name}/{step.name}", number)))
    elif terms.recorder is not None:
        row = terms.recorder.value_row(branch.id, scope.unit.name, did, step, value)
        if row is None:
            return False
        branch.add_row(row)
    if value is not step.nothing and not inserted:
        if value is not None:
            branch.result = value
        if step.writes is not None:
            branch.store.put(step.writes, value)
    if terms.notify is not None:
        for event in did.events(terms.run_id, scope.unit.name):
            terms.notify(event)
    scope.records.append(did)
    return True


def _collect(branch: Branch, step: Step, value: Any) -> bool:
    """Append a plain value to the list under a key, if that is all its step does with it: 8 x the loop, not 22 x."""
    if (
        step.result_key is not None
        or type(step.collects) is not str
        or step.names_units
        or branch.terms.recorder is not None
    ):
        return False
    try:
        branch.store.append(step.collects, value)
    except StoreTypeError:
        return False
    return True


def _is_plain(kind: type[object], value: Any) -> bool:
    return kind in HOLDING and unit_in(value) is None


def conclude(branch: Branch, act: Execution) -> Failure:
    """Make the outcome of an action, note it, and apply it; return the failure."""
    store, value = branch.store, act.value
    error = value.error if type(value) is Raised else None
    own: Mark | None = None  # undoes the action's own writes if they are refused
    if error is None or isinstance(error, Bail):
        try:
            inserted, data = ((), UNSET) if error is not None else sort_out(act.step, value)
            if data is not UNSET or act.context is not None:
                own = store.mark()
            _let_write(branch, act, inserted, data)
        except BaseException as failure:  # whatever a user's `__deepcopy__` or `__eq__` raises
            act.forget()
            if own is not None:
                store.undo(own)
            error = failure
    writes = _writes(branch, act)
    outcome = _outcome(branch, act, error, writes)
    if branch.waits or branch.terms.waits:
        outcome = with_waits(branch, outcome)
    did, refused = note(branch, outcome)
    error = refused or error
    if refused is not None and own is not None:
        store.undo(own)
    elif own is not None:
        store.release(own)
    if error is not None and not isinstance(error, Bail):
        branch.left_behind().unwind(branch.store, act.mark)
    elif act.mark is not None:
        store.release(act.mark)
    take_effect(branch, branch.scope, did)
    return error if error is not None else branch.unsaved()


def _let_write(
    branch: Branch, act: Execution, inserted: tuple[Unit | Stream, ...], data: Any, *, is_trial: bool = False
) -> None:
    """Apply the writes of an action to the store, and check the rest of its effect."""
    context, layers, recorder = act.context, act.layers, branch.terms.recorder
    if layers is not None:
        inserted = (*layers.inserted, *inserted)
        if layers.recovered:
            context = None  # the effects of a failed action are dropped
    if context is not None:
        effects = context.effects()
        inserted = (*effects.inserted, *inserted)
        act.switches = tuple(effects.switches)
        branch.store.apply(effects.delta)
    if data is not UNSET:
        act.step.deliver(data, branch.store)
        _note_frozen(branch, act.step)
    if inserted:
        if layers is None or not (is_trial and may_supply(layers.layers)):  # on the way out, they may still
            check_insertion(branch, inserted, is_action=True)
        if recorder is not None:
            recorder.check_repeatable(inserted, f"action {act.step.name!r}")
    act.inserted, act.result = inserted, UNSET if data is None else data


def _writes(branch: Branch, act: Execution) -> Delta | None:
    """Return the writes of an action and its layers, for the journal."""
    if act.mark is None or branch.terms.recorder is None:
        return None
    written = branch.store.since(act.mark)
    return written if act.watch is None else act.watch.with_changes(written)


def _outcome(branch: Branch, act: Execution, error: Failure, writes: Delta | None) -> ActionRecord:
    terms, step = branch.terms, act.step
    status, failure, attempts, recovered, failures = ended_as(branch, error, act.layers)
    return ActionRecord(
        step.name, step.action, status, act.started + terms.epoch, terms.clock() - act.started, act.by, act.number,
        act.inserted, (), None, -1, failure, attempts, recovered, act.switches, False, True, 0, "",
        () if act.layers is None else act.layers.repeats, failures, NOTHING_DROPPED,
        error is None and act.layers is not None and act.layers.cached,
        messages=_messages(act.layers or act), writes=writes, result=act.result,
    )  # fmt: skip


def take_effect(branch: Branch, scope: OpenScope, did: Outcome) -> None:
    """Apply the rest of an action's outcome, whether it was just performed or is restored."""
    if branch.terms.keeps_records:
        scope.records.append(did.kept())
    if did.result is not UNSET:
        branch.result = did.result
    if did.inserted:
        who = inserter(f"{scope.unit.name}/{did.name}", did.number)
        steps: list[tuple[Step, str]] = []
        for unit in did.inserted:
            if type(unit) is Action:
                steps.append((step_of(unit), who))
            else:
                scope.inserted.append((unit, who))
        if scope.unit.local:
            steps = _made_local(branch, scope, steps)
        branch.agenda.extend(reversed(steps))
    for selector, on in did.switches:
        branch.switch(selector, on)
        branch.terms.idle.setdefault(selector, (scope.unit.name, did.name, on))
        scope.is_quiet = scope.is_bare = False


def _made_local(branch: Branch, scope: OpenScope, steps: list[tuple[Step, str]]) -> list[tuple[Step, str]]:
    """Return inserted steps as steps of their stage; the names that they supply are local to all that follow them."""
    names = scope.local | local_names(step for step, _ in steps)
    if names != scope.local:
        scope.local, behind = names, scope.depth + 1
        branch.agenda[behind:] = [(localized(step, names), by) for step, by in branch.agenda[behind:]]
    return [(localized(step, names), by) for step, by in steps]


def _note_frozen(branch: Branch, step: Step) -> None:
    """Note the frozen keys of an action, whose values are not checked for changes from now on."""
    if step.frozen and branch.terms.recorder is not None:
        branch.terms.recorder.looks.frozen |= step.frozen


def _restore(branch: Branch, earlier: Outcome, step: Step, by: str | None) -> Failure:
    _note_frozen(branch, step)
    did = restore(branch, earlier, step.action, by)
    take_effect(branch, branch.scope, did)
    return None if did.recovered else did.error


def _skip(branch: Branch, step: Step, by: str | None, number: int) -> Walk:
    did, refused = note(branch, ActionRecord(step.name, step.action, Status.SKIPPED, branch.now(), 0.0, by, number))
    branch.scope.records.append(did)
    return refused or (yield from branch.save())
