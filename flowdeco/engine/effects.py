"""The outcome of an action, and its effect: its writes, insertions, switches and result.

All of it is applied, or none (L4). If it is refused (a value that cannot be journaled, an insertion that nothing can
supply), the action has failed. Its layers have ended by then: they may replace what it returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.changes import Watch
from flowdeco.engine.context import Context
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.layers import Layers
from flowdeco.engine.messages import MessageRecord, Messages
from flowdeco.engine.noting import ended_as, note
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import COMPLETED, NOTHING_DROPPED, ActionRecord, Outcome, inserter
from flowdeco.engine.requests import Failure, Raised
from flowdeco.engine.results import HOLDING, sort_out, unit_in
from flowdeco.engine.waiting import with_waits
from flowdeco.engine.waits import Called
from flowdeco.errors import Bail, StoreTypeError
from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import Action, Stage, Stream, Unit
from flowdeco.model.deltas import Delta, Mark
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step, local_names, localized, step_of
from flowdeco.model.wiring import unmet

__all__ = ["Execution", "conclude", "messages_of", "note_frozen", "take_effect", "try_complete"]


class Execution:
    """The execution of an action: who inserted it, its place in the branch, its value and its effect so far."""

    __slots__ = (
        "bail", "by", "context", "inserted", "layers", "mark", "messages", "number", "result", "started", "step", "switches",
        "value", "watch",
    )  # fmt: skip

    def __init__(self, step: Step, by: str | None, number: int, started: float) -> None:
        self.step = step
        self.by = by
        self.number = number
        self.started = started
        self.value: Any = UNSET  # as returned, or `Raised`
        self.bail: Bail | None = None  # of its layers, after which its value counts
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


def try_complete(branch: Branch, step: Step, by: str | None, number: int, started: float, value: Any) -> bool:
    """Apply a plain value: nothing, a stage, or data under one key; return False, and do nothing, if it takes more.

    It is the short form of `conclude` and `take_effect`; of an insertion it checks what `check_insertion` does.
    """
    terms, scope, kind = branch.terms, branch.scope, cast("type[object]", type(value))
    inserted: tuple[Stage, ...] = ()
    if kind is Stage:
        inserted = (value,)
        if terms.recorder is not None or unmet(inserted, branch.store, terms.skip):
            return False
    elif value is not step.nothing:
        if kind not in ATOMS and (kind not in HOLDING or unit_in(value) is not None):  # `Raised` as well
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
        or step.drops_empty
        or branch.terms.recorder is not None
    ):
        return False
    try:
        branch.store.append(step.collects, value)
    except StoreTypeError:
        return False
    return True


def conclude(branch: Branch, act: Execution) -> Failure:
    """Make the outcome of an action, note it, and apply it; return the failure."""
    store, value = branch.store, act.value
    error = value.error if type(value) is Raised else act.bail
    own: Mark | None = None  # undoes the action's own writes if they are refused
    if error is None or isinstance(error, Bail):
        try:
            inserted, data = ((), UNSET) if type(value) is Raised else sort_out(act.step, value)
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


def _let_write(branch: Branch, act: Execution, inserted: tuple[Unit | Stream, ...], data: Any) -> None:
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
        note_frozen(branch, act.step)
    if inserted:
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
        messages=messages_of(act.layers or act), writes=writes, result=act.result,
    )  # fmt: skip


def messages_of(keeper: Layers | Execution) -> Sequence[MessageRecord]:
    return () if keeper.messages is None else keeper.messages.recorded()


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


def note_frozen(branch: Branch, step: Step) -> None:
    """Note the frozen keys of an action, whose values are not checked for changes from now on."""
    if step.frozen and branch.terms.recorder is not None:
        branch.terms.recorder.looks.frozen |= step.frozen
