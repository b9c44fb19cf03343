"""The end of the branches of a group: each is merged as soon as all before it are, whatever the order of their ends."""

from __future__ import annotations

from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.memory import Remains
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import Outcome, Scope, branch_id, enclosing
from flowdeco.engine.overlay import Overlay
from flowdeco.engine.requests import Failure
from flowdeco.engine.verdicts import Verdicts
from flowdeco.errors import Bail
from flowdeco.model.definitions import Parallel
from flowdeco.model.deltas import NOTHING, Delta

__all__ = ["Merger"]


class Merger:
    """Merges the branches of a group into the outcome of the group, in their order.

    All before `turn` are merged; `unmerged` are others that have ended, None for one that did not begin. What the branches
    that count have done is in the `overlay`, and in `switched` and `result`; what counts however a branch ends is taken over
    by the enclosing branch. `error` is that of merging.
    """

    def __init__(self, branch: Branch, group: Parallel, scope: OpenScope, verdicts: Verdicts) -> None:
        self.turn = 0
        self.unmerged: dict[int, Branch | None] = {}
        self.overlay = Overlay(group)
        self.switched: dict[str, bool] = {}
        self.result: Any = None
        self.error: Failure = None
        self._branch = branch
        self._group = group
        self._scope = scope
        self._verdicts = verdicts
        self._group_id = cast("Scope", scope.place).id
        self._first_record = len(branch.records)
        self._bailed: Branch | None = None
        self._changed: set[str] = set()  # keys of values that were changed in place, with a journal
        self._used: set[str] = set()  # keys of answers that branches consumed
        self._ids: list[str] = []
        # In memory:
        self._remains: dict[str, Remains] = {}
        self._merged: list[tuple[int, Delta]] = []  # index and writes of each
        self._last_result: tuple[int, Any] = -1, None  # the index of its branch: those before it no longer count

    def merge_ready(self) -> None:
        """Merge the branches whose turn has come: as far as they have ended, and none has failed that is not lost."""
        verdicts = self._verdicts
        while self.turn in self.unmerged and self.error is None:
            if self.turn in verdicts.failures and self.turn not in verdicts.lost:
                return
            self._merge(self.turn)

    def merge_all(self, count: int) -> None:
        """Merge all of so many branches that have ended, as the group has."""
        while self.turn < count and self.error is None:
            if self.turn in self.unmerged:
                self._merge(self.turn)
            else:
                self.turn += 1

    def _merge(self, index: int) -> None:
        """Take the branch whose turn it is, with its effect if it counts; an error meanwhile ends all merging."""
        verdicts = self._verdicts
        self.turn = index + 1
        is_lost, has_failed = index in verdicts.lost, index in verdicts.failures
        is_loser = verdicts.chooses and not (is_lost or verdicts.counts(index))
        if is_loser and (fork := self.unmerged[index]) is not None:
            fork.records.cancel_last()
        try:
            self._take(index, counts=not (is_lost or is_loser or has_failed))
        except BaseException as failure:  # a conflict, a reducer that raises, Ctrl-C in one
            self._branch.terms.gate.open = False
            self.error = failure

    def take_the_rest(self) -> None:
        """Take the branches that were not merged, without their effect; the enclosing branch remembers the ids of all."""
        for index in sorted(self.unmerged):
            self._take(index, counts=False)
        if self._branch.revocable:
            self._branch.inner_branches.append((self._scope.number, self._ids))

    def _take(self, index: int, *, counts: bool) -> None:
        """Take a branch that has ended: its records, rows and ids, and its effect if that counts."""
        fork = self.unmerged.pop(index)
        if fork is None:
            return
        self._take_over(fork)
        if counts:
            self._count_in(fork)
            return
        if isinstance(self._verdicts.failures.get(index), Bail) and self._bailed is None:
            self._bailed = fork
        if self._branch.terms.log is not None:
            self._remains.update(fork.remains())

    def _take_over(self, fork: Branch) -> None:
        """Take over the parts that count however the branch ended: records, rows, ids, changed values and waits."""
        branch, terms = self._branch, self._branch.terms
        if fork.leftovers is not None:
            fork.end_unwinding()
        branch.records.adopt(fork.records)
        if fork.rows:
            branch.rows += fork.rows
        if branch.revocable and not (terms.recorder is None and terms.log is None):
            self._ids += (fork.id, *(id for _, ids in fork.inner_branches for id in ids))
        if fork.changed:
            self._changed |= fork.changed
        if fork.held_waits or fork.consumed or fork.answered:
            branch.held_waits += fork.held_waits
            branch.consumed |= fork.consumed
            branch.answered += tuple((self._scope.number, place, waits) for _, place, waits in fork.answered)

    def _count_in(self, fork: Branch) -> None:
        """Merge the effect of a branch: its writes, its switches, its result; what is restored has the group's."""
        terms, delta = self._branch.terms, fork.store.delta()
        if terms.log is not None:
            self._merged.append((fork.index, delta))
            if fork.result is not None:
                self._last_result = fork.index, fork.result
        if fork.switched or fork.result is not None:
            self._adopt(fork)
        if self._verdicts.is_live and delta is not NOTHING:
            terms.gate.open = bool(self._group.merge)  # a reducer is user code
            if fork.consumed:  # no conflict with what another branch writes
                self._used |= fork.consumed.intersection(delta.deletes)
                delta = delta._replace(deletes=[key for key in delta.deletes if key not in fork.consumed])
            self.overlay.add(fork.index, fork.unit, delta)
            terms.gate.open = False

    def _adopt(self, fork: Branch) -> None:
        for selector, on in fork.switched.items():
            self.switched.pop(selector, None)
            self.switched[selector] = on
        if fork.result is not None:
            self.result = fork.result

    # The outcome of the group.

    def writes(self, error: Failure, lost: list[tuple[str, BaseException]]) -> Delta:
        """Return the writes of the group: of all branches that count; after a `Bail` of that one alone; of none otherwise.

        `lost` are the names and failures of lost branches. Raises `WriteConflictError` or `StoreTypeError` for their key.
        """
        overlay = self.overlay
        if isinstance(error, Bail):
            overlay = Overlay(self._group)
            if self._bailed is not None:
                overlay.add(self._bailed.index, self._bailed.unit, self._bailed.store.delta())
        elif error is None:
            overlay.use_up(self._used)
            if self._group.failures is not None:
                overlay.put_failures(self._group.failures, lost)
        else:
            overlay = Overlay(self._group)
        return overlay.delta

    def with_changes(self, writes: Delta) -> Delta:
        """Return the merged writes, with the values of the enclosing store that branches changed in place.

        They are for the journal: the store has them already, and changing a value is not a write that could conflict.
        """
        branch = self._branch
        changed = {key for key in self._changed if key in branch.store}
        if not changed:
            return writes
        branch.changed |= changed
        kept = changed - writes.puts.keys() - set(writes.deletes)
        return writes._replace(changes={key: branch.store[key] for key in sorted(kept)})

    def adopt(self, error: Failure) -> None:
        """Adopt the switches and results of the branches that count: after a `Bail` that one, after a failure none."""
        branch, verdicts = self._branch, self._verdicts
        if error is not None:
            self.switched, self.result = {}, None
            if isinstance(error, Bail) and self._bailed is not None:
                self._adopt(self._bailed)
        for selector, on in self.switched.items():
            branch.switch(selector, on)
        if self.result is not None:
            branch.result = self.result
        if verdicts.lost and not verdicts.is_exceeded:
            branch.records.recover(self._first_record, self._is_in_lost)

    def _is_in_lost(self, record: Outcome) -> bool:
        lost = self._verdicts.lost
        return any(scope.id == self._group_id and scope.branch in lost for scope in enclosing(record.scope))

    def leave_remains(self) -> None:
        """Leave what a resume in memory needs of a group that has failed."""
        left, group = self._branch.left_behind(), self._group_id
        left.unwind(self._branch.store)
        left.remains.update(self._remains)
        for index, merged in self._merged:
            result = self._last_result[1] if index == self._last_result[0] else None
            left.remains[branch_id(group, index)] = Remains(None, None, result, {}, merged)
