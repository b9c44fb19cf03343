"""What a run in memory keeps, so that it can be resumed: the outcomes of its scopes, and the remains of its branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from flowdeco.engine.outcome import NOWHERE, ROOT, Outcome, Outcomes, Status, branch_id, cut_steps
from flowdeco.errors import Wait
from flowdeco.model.deltas import NOTHING, Delta, Mark
from flowdeco.model.store import Store
from flowdeco.model.tuples import NamedTuple

__all__ = ["Leftovers", "Log", "Remains", "in_memory"]


class Remains(NamedTuple):
    """The remains in memory of a branch that did not end.

    `unwinding` notes the writes of layers as the failure passed them: a resume undoes these. `unfinished` are the scopes
    that were open: the marks of their layers, to which another attempt returns, and the result before them. Of a branch that
    did end, in a group that did not, there is no `store`, but its writes.
    """

    store: Store | None
    unwinding: Mark | None
    result: Any
    unfinished: Mapping[int, tuple[list[Mark], Any]]
    writes: Delta = NOTHING

    def store_over(self, outer: Store) -> Store:
        """Return the store of a branch to continue with, over that of the enclosing branch."""
        if self.store is not None:
            return self.store
        store = outer.fork()
        store.apply(self.writes)
        return store

    def revived(self, inputs: Mapping[str, Any]) -> Remains:
        """Return a copy to continue with, as if the failure had not passed any layer."""
        if self.store is None:
            return self._replace(writes=self.writes.without(inputs.keys()))
        marks = [mark for marks, _ in self.unfinished.values() for mark in marks]
        store, copies = self.store.twin(*([] if self.unwinding is None else [self.unwinding]), *marks)
        copy = iter(copies)
        if self.unwinding is not None:
            store.undo(next(copy))
        unfinished = {at: ([next(copy) for _ in marks], result) for at, (marks, result) in self.unfinished.items()}
        store.supply(inputs)
        return Remains(store, None, self.result, unfinished)


class Leftovers:
    """What a failure leaves behind in a branch, for a resume in memory to continue from.

    `unwinding` is set when the failure begins to close scopes; `unfinished` are these, by number; `abandoned` are local
    results of stages, each with the name of its stage; `remains` are those of the branches of unfinished groups.
    """

    __slots__ = ("abandoned", "is_kept", "remains", "unfinished", "unwinding")

    def __init__(self, *, is_kept: bool) -> None:
        self.is_kept = is_kept
        self.unwinding: Mark | None = None
        self.unfinished: dict[int, tuple[list[Mark], Any]] = {}
        self.abandoned: dict[str, str] = {}
        self.remains: dict[str, Remains] = {}

    def unwind(self, store: Store, mark: Mark | None = None) -> None:
        """Note that a failure begins to close scopes: a resume undoes the writes of layers from here on.

        For a step that left nothing behind, `mark` was set when it began: the writes of its layers are undone as well.
        A run that cannot be resumed from memory only lets go of that mark.
        """
        if not self.is_kept:
            if mark is not None:
                store.release(mark)
        elif mark is None:
            self.unwinding = store.mark()
        else:
            if self.unwinding is not None:
                store.release(self.unwinding)
            self.unwinding = mark

    def end_unwinding(self, store: Store) -> None:
        """Stop noting the writes of layers after a failure."""
        if self.unwinding is not None:
            store.discard(self.unwinding)

    def recover(self, store: Store) -> None:
        """Forget the failure: an enclosing scope has recovered it."""
        if self.unwinding is not None:
            store.release(self.unwinding)
            self.unwinding = None
        for name, stage in self.abandoned.items():
            store.drop_local((name,), stage)
        self.abandoned.clear()
        self.cut(0)

    def cut(self, number: int) -> None:
        """Forget what steps from this number on have left."""
        self.remains.clear()
        self.unfinished = {at: left for at, left in self.unfinished.items() if at < number}

    def all_remains(self, branch: str, store: Store, result: Any) -> dict[str, Remains]:
        """Return the remains of an unfinished branch, and of the branches in it."""
        return {**self.remains, branch: Remains(store.detached(), self.unwinding, result, self.unfinished)}


class Log:
    """The outcomes of the scopes of a run in memory, without their effects, from which it can be resumed."""

    def __init__(self) -> None:
        self.remains: Mapping[str, Remains] = {}
        self.since = 0  # how often it was given something
        self.waits: Mapping[tuple[str, int], Sequence[Wait]] = {}  # of unfinished steps that have not run again
        self._steps: Outcomes = {}
        self._added: list[tuple[str | None, int, dict[int, Outcome]]] = []

    def of(self, group: str | None = None, index: int = 0) -> dict[int, Outcome]:
        """Return the scopes of a branch, a dict to add to; the outcomes of actions are in that of their stage."""
        steps: dict[int, Outcome] = {}
        self._added.append((group, index, steps))
        return steps

    @property
    def steps(self) -> Outcomes:
        """All scopes, by branch; the ids are worked out here, because most runs are never resumed."""
        for group, index, steps in self._added:
            self._steps[ROOT if group is None else branch_id(group, index)] = steps
        self._added.clear()
        return self._steps

    def forget(self, cuts: Mapping[str, int]) -> None:
        """Forget the steps of these branches from these numbers on."""
        cut_steps(self.steps, cuts)

    def keep_untaken(self, steps: Outcomes, remains_of: Callable[[str], Remains | None]) -> None:
        """Keep the steps of an earlier leg to which this one did not come, as a layer around them failed: the next may."""
        for branch, mine in steps.items():
            self.steps[branch] = {**mine, **self.steps.get(branch, {})}
            remains = remains_of(branch)
            if remains is not None:
                self.remains = {branch: remains, **self.remains}

    def portable(self, of: Callable[[Any], Any]) -> Log:
        """Return a copy with outcomes and waits as the function returns them."""
        copied = Log()
        copied.remains, copied.since = self.remains, self.since
        copied.waits = {place: list(map(of, waits)) for place, waits in self.waits.items()}
        copied._steps = {
            branch: {number: of(did) for number, did in steps.items()} for branch, steps in self.steps.items()
        }
        return copied

    def history(self) -> Outcomes:
        """Return all steps, including actions."""
        found: Outcomes = {}
        for branch, steps in self.steps.items():
            mine: dict[int, Outcome] = {}
            if steps:
                found[branch] = mine
            for number, outcome in steps.items():
                mine[number] = outcome
                if outcome.entered:  # otherwise it runs again from its beginning
                    mine.update((action.number, action) for action in outcome.actions)
        if self.waits:
            waits = [wait._replace(at=place) for place, waits in self.waits.items() for wait in waits]
            found[NOWHERE] = {0: Outcome("", None, Status.SUSPENDED, 0.0, 0.0, number=0, waits=waits)}
        return found


def in_memory(store: Store, log: Log, inputs: Mapping[str, Any]) -> tuple[Store, dict[str, Remains]]:
    """Return the material to resume a run in memory: its store, and the remains of its branches."""
    revived = {branch: remains.revived(inputs) for branch, remains in log.remains.items()}
    if ROOT in revived:
        return cast("Store", revived[ROOT].store), revived
    mine, _ = store.twin()
    mine.supply(inputs)
    return mine, revived
