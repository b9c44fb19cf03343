"""Parallel groups: branches over forks of the store, and the merge of their outcomes into one (L9).

A group's *conductor* supplies its branches, fixed ones or those that a stream yields, and decides on each that ends. They
are merged in their order, whatever the order of their ends: each as soon as all before it are, into an overlay that
reaches the store when the group completes. Until its turn comes, a branch that has ended is held; a stream waits while
too many are.

One failure is raised as itself, several as an `ExceptionGroup`; a cancellation that the group itself asked for is not a
failure. A `Bail` ends the run, and only its branch counts; a `Suspend` waits for the others, and names everything that
they wait for. A failed branch that the group tolerates is *lost*: it counts as little as one that has never begun.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator
from typing import Any, Final, cast

from flowdeco.engine.actions import check_insertion
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.memory import Remains
from flowdeco.engine.noting import ended_as, note, note_place, restore
from flowdeco.engine.open_scopes import OpenScope, OpenStream
from flowdeco.engine.outcome import ALL, Outcome, Scope, Selection, Status, branch_id
from flowdeco.engine.overlay import Overlay, warn_of_merge
from flowdeco.engine.requests import CAUGHT_UP, Begin, Failure, Fork, Forked, Raised, Request, Walk
from flowdeco.engine.resuming import catch_up
from flowdeco.engine.streams import begin_stream, close_stream, next_unit
from flowdeco.engine.verdicts import Verdicts
from flowdeco.errors import (
    Bail,
    Suspend,
)
from flowdeco.events import BranchesHeld
from flowdeco.model.definitions import Parallel, Unit, insertable
from flowdeco.model.options import UNSET
from flowdeco.model.store import NOTHING, Delta

__all__ = ["run_group"]

_STREAMED: Final = 32  # branches of a stream that are at work at once
_HELD: Final = 2  # times as many may wait to be merged


def run_group(branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome | None) -> Walk:
    """Run the branches of a group, and apply their merged outcome; return the failure."""
    past = branch.terms.past
    if past is not None and earlier is not None and branch.restores(earlier):
        return (yield from _restore_group(branch, group, scope, earlier))
    error = (yield from catch_up(branch)) if earlier is None else None
    conductor = _Conductor(branch, group, scope, earlier)
    error = error or (yield from conductor.announce())
    if error is not None:
        return error
    interrupt = yield from conductor.side_by_side()
    if past is not None and past.rehearses:
        failed = (error for error in conductor.verdicts.unexpected() if not isinstance(error, Suspend))
        return next(failed, interrupt or past.stop)
    return (yield from conductor.finish(interrupt))


def _restore_group(branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome) -> Walk:
    """Restore a group that had ended: first the contents of its branches, then its outcome."""
    past: Any = branch.terms.past
    branch.sealed += 1
    conductor = _Conductor(branch, group, scope, earlier)
    interrupt = yield from conductor.side_by_side()
    branch.sealed -= 1
    for error in (interrupt, *conductor.verdicts.unexpected()):
        if not past.is_known(error):
            return error
    past.confirm(branch.id, earlier, group, scope.number + 1)
    conductor.adopt(earlier.error)
    restore(branch, earlier, group, scope.by, (), scope.place)
    return earlier.error


class _Conductor:
    """The branches of a group, by number: which are to begin, which have ended, and what they come to.

    `count` are known so far; all before `turn` are merged; `over` are others that have ended, None for one that did not
    begin. `failures` are how branches ended, and those of `lost` ones are tolerated.
    """

    def __init__(self, branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome | None) -> None:
        self.branch = branch
        self.group = group
        self.scope = scope
        self.earlier = earlier
        self.place = cast("Scope", scope.place)
        self.id = self.place.id
        self.by = scope.by and str(scope.by)  # of branches: the number is that of a step in another branch
        self.is_live = not (branch.sealed or branch.terms.rehearses)  # otherwise, everything is restored
        self.is_streamed = group.stream is not None
        self.limit: int = group.limit or (_STREAMED if self.is_streamed else sys.maxsize)
        self.count = 0
        self.turn = 0
        self.over: dict[int, Branch | None] = {}
        self.later: deque[tuple[int, Unit]] = deque()  # known from before a resume, and not begun
        self.verdicts = Verdicts(group, branch.terms.is_cancellation, earlier, is_live=self.is_live)
        self.lost = self.verdicts.lost
        self.names: dict[int, str] = {}  # of lost branches
        self.bailed: Branch | None = None
        self.merges = bool(group.merge)
        self.is_open = self.has_room = True
        self.is_held_up = False
        self.held = 0  # as observers know
        self.error: Failure = None  # of merging
        self.overlay = Overlay(group)
        self.switched: dict[str, bool] = {}
        self.result: Any = None
        self.changed: set[str] = set()  # keys of values that were changed in place, with a journal
        self.used: set[str] = set()  # keys of answers that branches consumed
        self.ids: list[str] = []
        self.remains: dict[str, Remains] = {}  # in memory
        self.merged: list[tuple[int, Any, Delta]] = []  # the same of merged branches: index, result, writes
        self.stream: OpenStream | None = None
        self.first_record = len(branch.records)
        self.bound = (_HELD + 1) * self.limit if self.is_streamed else len(group.units)  # of `count`, as journaled
        self.is_restoring = earlier is not None
        self.had_begun = self.is_restoring and self.is_live
        if earlier is not None:
            self.bound = max(self.bound, earlier.branches)
            begun = (index for index in reversed(range(earlier.branches)) if self._has_begun(index))
            self.verdicts.known = max(next(begun, -1), *self.lost, -1) + 1
        elif branch.terms.rehearses:
            self.verdicts.known = len(group.units)  # of an empty history

    @property
    def is_enough(self) -> bool:
        """Whether the branches that count have completed."""
        return self.verdicts.is_enough

    def _has_begun(self, index: int) -> bool:
        """Whether a branch is to be restored."""
        branch, earlier = self.branch, self.earlier
        if branch.terms.rehearses and not branch.sealed and self.group.stream is None:
            return True  # as far as it comes, which may be nowhere
        if branch.sealed and earlier is not None and earlier.error is None and earlier.selection.takes(index):
            return True
        return cast("bool", cast("Any", branch.terms.past).has_more(branch_id(self.id, index)))

    def announce(self) -> Walk:
        """Have the journal note that the group is running, and everything before it."""
        recorder = self.branch.terms.recorder
        if recorder is None:
            return None
        self.branch.rows.append(recorder.row(self.branch.id, None, self._running(ALL)))
        return (yield from self.branch.save())

    def _running(self, selection: Selection) -> Outcome:
        scope = self.scope
        return Outcome(
            self.group.name, self.group, Status.RUNNING, scope.started + self.branch.terms.epoch, 0.0, scope.by,
            scope.number, scope=scope.place, branches=self.bound, selection=selection,
        )  # fmt: skip

    def side_by_side(self) -> Generator[Request, Any, Failure]:
        """Have the branches evaluated, and take over from all of them the parts that count however the group ends.

        These are the records, the rows that are held back, and the ids. Return the interrupt.
        """
        ended: Any = yield Fork(self)
        if self.is_held_up:
            self._tell(0)
        if not self.is_live or self.is_enough:
            self._merge(to_the_end=True)
        for index in sorted(self.over):
            self._take(index, counts=False)
        self.branch.remember_branches(self.scope.number, self.ids)
        return cast("Failure", ended.error if type(ended) is Raised else ended.interrupt)

    # The supply.

    def supply(self) -> Walk:
        """Supply the branches: first those that had begun before a resume."""
        unit: Any = yield from self._begun_before()
        self.is_restoring = False
        wanted = unit is None and self.is_live
        if wanted and self.had_begun:
            wanted = (yield CAUGHT_UP) is not False
        while wanted:
            index, unit = yield from self._another()
            if _ends(unit):
                break
            if self.is_streamed:
                self._look()
            wanted = yield Begin(self._fork(index, unit))
        interrupt = None if self.stream is None else (yield from close_stream(self.branch, self.stream))
        return unit.error if type(unit) is Raised else interrupt

    def _begun_before(self) -> Generator[Request, Any, Any]:
        """Supply the branches that are known from before a resume; return `Raised` if there are fewer of them now."""
        while self.count < self.verdicts.known:
            index, unit = self.count, (yield from self._next())
            if _ends(unit):
                return Raised(self._fewer()) if unit is UNSET else unit
            if index in self.lost:
                self.names[index] = unit.name
            if self._has_begun(index):
                yield Begin(self._fork(index, unit))
            elif self.is_live and index not in self.lost:
                self.later.append((index, unit))
            else:  # it never began, or nothing is left of it
                self.over[index] = None
        return None

    def _another(self) -> Generator[Request, Any, tuple[int, Any]]:
        """Return the index and the unit of the next branch to begin; the unit is `UNSET` for none, or `Raised`."""
        if self.later:
            return self.later.popleft()
        index, units = self.count, self.group.units
        if self.is_streamed:
            return index, (yield from self._next())
        if index == len(units):
            return index, UNSET
        self.count += 1
        return index, units[index]

    def _next(self) -> Generator[Request, Any, Any]:
        """Return the unit of the next branch, which is counted; `UNSET` for none, or `Raised`."""
        group, branch = self.group, self.branch
        if group.stream is None:  # of those that had begun
            self.count += 1
            return group.units[self.count - 1]
        where = f"of the parallel group {group.name!r}"
        if self.stream is None:
            begun = yield from begin_stream(branch, group.stream, where, sealed=self.is_restoring)
            if isinstance(begun, BaseException):
                return Raised(begun)
            self.stream = begun
        unit = yield from next_unit(branch, self.stream)
        if unit is UNSET:
            self.stream = None
            return unit
        if type(unit) is not Raised:
            unit = self._checked(unit, where)
        if type(unit) is Raised:
            note_place(branch, unit.error, f"the {group.stream.name} {where}")
            return unit
        self.count += 1
        if self.count > self.bound:
            self.bound *= 2
            unsaved = yield from self.announce()
            return unit if unsaved is None else Raised(unsaved)
        return unit

    def _checked(self, unit: Any, where: str) -> Any:
        try:
            if not isinstance(unit, Unit):
                insertable((unit,), f"the {self.group.stream.name} {where}", "yielded")  # says why not
                raise TypeError(f"the {self.group.stream.name} {where} yielded another stream")
            if self.is_live:
                check_insertion(self.branch, (unit,))
        except Exception as refused:
            return Raised(refused)
        return unit

    def _fewer(self) -> BaseException:
        past: Any = self.branch.terms.past
        return cast(
            "BaseException", past.changed(f"the parallel group {self.group.name!r} had more than {self.count} branches")
        )

    def _fork(self, index: int, unit: Unit) -> Branch:
        """Return the evaluation of a branch."""
        branch, scope = self.branch, self.scope
        base = OpenScope(branch.scope, None, scope.by, scope.started)
        base.place = self.place.of(index)
        fork = Branch(branch.terms, branch.store.fork(), base, branch, self, index)
        fork.unit = unit
        fork.agenda.append((unit, self.by))
        if branch.terms.past is not None:
            self._continue(fork, branch.terms.past)
        return fork

    def _continue(self, fork: Branch, past: History) -> None:
        """Have a branch continue where it was before the run was resumed."""
        branch, index = self.branch, fork.index
        is_lost = index in self.lost
        remains = None if branch.sealed or is_lost else past.remains_of(fork.id)
        if remains is not None:
            fork.continue_over(remains.store_over(branch.store), remains.result)
        if self.earlier is not None:
            fork.ended_early |= is_lost or (bool(branch.sealed) and not self._takes_all())
            fork.sealed += is_lost
        if past.archive is not None:
            past.archive.begin_branch(branch.id, fork.id, self.group.name, index)

    def _takes_all(self) -> bool:
        earlier = cast("Outcome", self.earlier)
        return earlier.error is None and earlier.selection == ALL

    # Decisions.

    def lose_if_tolerated(self, fork: Branch, error: BaseException) -> None:
        """Decide whether a branch that is about to end is lost, and note it for the journal, with the branch's last rows."""
        terms = self.branch.terms
        if fork.stopped or error is self.branch.unsaved() or not self.verdicts.loses(fork.index, error):
            return
        self.names[fork.index] = fork.unit.name
        if terms.recorder is not None:
            lost = self._running(Selection({fork.index: error}))
            fork.rows.append(terms.recorder.row(self.branch.id, None, lost))

    def ended(self, branch: Forked | None, failure: Failure) -> bool:
        """Note that a branch has ended, or the supply (None) failed; return whether this ends the group."""
        fork: Any = branch
        index: int = self.count if fork is None else fork.index
        if fork is not None:
            self.over[index] = fork
        verdicts = self.verdicts
        stops = verdicts.ended(index, failure)
        if self.is_streamed and isinstance(failure, Suspend) and index not in self.lost:
            self.is_open = False
        if self.turn in self.over and verdicts.ended_by is None and self.error is None:
            self._merge()
            if self.error is not None:
                self.is_open = self.is_open and not self.is_streamed  # how many have begun depends on their timing
                stops = stops or self.branch.terms.is_cancellation(self.error)
        if self.is_streamed:
            self._look()
        return stops

    def _look(self) -> None:
        """See whether another branch may be pulled; observers receive the number of held ones while it may not."""
        self.has_room = bool(self.later) or self.count - self.turn <= _HELD * self.limit
        if self.is_held_up or not self.has_room:
            self.is_held_up = not self.has_room
            self._tell(0 if self.has_room else len(self.over))

    def _tell(self, held: int) -> None:
        terms, before, self.held = self.branch.terms, self.held, held
        if terms.notify is not None and held != before:
            terms.notify(BranchesHeld(terms.run_id, self.group.name, held, self.turn))

    # The end of branches.

    def _merge(self, *, to_the_end: bool = False) -> None:
        """Merge the branches whose turn has come."""
        verdicts = self.verdicts
        while self.turn in self.over or (to_the_end and self.turn < self.count):
            index, self.turn = self.turn, self.turn + 1
            if index not in self.over:
                continue
            is_lost, has_failed = index in self.lost, index in verdicts.failures
            if has_failed and not is_lost and not to_the_end:
                self.turn = index
                return
            is_loser = verdicts.chooses and not (is_lost or verdicts.counts(index))
            if is_loser and (fork := self.over[index]) is not None:
                fork.records.cancel_last()
            try:
                self._take(index, counts=not (is_lost or is_loser or has_failed))
            except BaseException as failure:  # a conflict, a reducer that raises, Ctrl-C in one
                self.branch.terms.gate.open = False
                self.error = failure
                return

    def _take(self, index: int, *, counts: bool) -> None:
        """Take a branch that has ended: its records, rows and ids, and its effect if that counts."""
        fork = self.over.pop(index)
        if fork is None:
            return
        self._take_over(fork)
        if counts:
            self._count_in(fork)
            return
        if isinstance(self.verdicts.failures.get(index), Bail) and self.bailed is None:
            self.bailed = fork
        if self.branch.terms.log is not None:
            self.remains.update(fork.left.all_remains(fork.id, fork.store, fork.result))

    def _take_over(self, fork: Branch) -> None:
        """Take over the parts that count however the branch ended: records, rows, ids, changed values and waits."""
        branch, terms = self.branch, self.branch.terms
        if fork.left.unwinding is not None:
            fork.left.end_unwinding(fork.store)
        branch.records.adopt(fork.records)
        if fork.rows:
            branch.rows += fork.rows
        if branch.revocable and not (terms.recorder is None and terms.log is None):
            self.ids += (fork.id, *(id for _, ids in fork.forks for id in ids))
        if fork.changed:
            self.changed |= fork.changed
        if fork.held_waits or fork.consumed or fork.answered:
            branch.held_waits += fork.held_waits
            branch.consumed |= fork.consumed
            branch.answered += [(self.scope.number, place, waits) for _, place, waits in fork.answered]

    def _count_in(self, fork: Branch) -> None:
        """Merge the effect of a branch: its writes, its switches, its result."""
        terms, delta = self.branch.terms, fork.store.delta()
        if terms.log is not None:
            self.merged.append((fork.index, fork.result, delta))
        if fork.switched or fork.result is not None:
            self._adopt(fork)
        if self.is_live and delta is not NOTHING:
            terms.gate.open = self.merges  # a reducer is user code
            if fork.consumed:  # no conflict with what another branch writes
                self.used |= fork.consumed.intersection(delta.deletes)
                delta = delta._replace(deletes=[key for key in delta.deletes if key not in fork.consumed])
            self.overlay.add(fork.index, fork.unit, delta)
            terms.gate.open = False

    def _adopt(self, fork: Branch) -> None:
        for selector, on in fork.switched.items():
            self.switched.pop(selector, None)
            self.switched[selector] = on
        if fork.result is not None:
            self.result = fork.result

    # The end of the group.

    def adopt(self, error: Failure) -> None:
        """Adopt the switches and results of the branches that count: after a `Bail` that one, after a failure none."""
        if error is not None:
            self.switched, self.result = {}, None
            if isinstance(error, Bail) and self.bailed is not None:
                self._adopt(self.bailed)
        for selector, on in self.switched.items():
            self.branch.switch(selector, on)
        if self.result is not None:
            self.branch.result = self.result
        if self.lost and not self.verdicts.is_exceeded:
            self.branch.records.recover(self.first_record, self._is_in_lost)

    def _is_in_lost(self, record: Outcome) -> bool:
        scope = record.scope
        while scope is not None and scope.id != self.id:
            scope = scope.outer
        return scope is not None and scope.branch in self.lost

    def finish(self, interrupt: Failure) -> Walk:
        """Note and apply the outcome of the group: of all its branches, or after a `Bail` of that one alone."""
        branch, group, scope, terms = self.branch, self.group, self.scope, self.branch.terms
        error = self.verdicts.failure(interrupt, self.count) or self.error
        overlay = self.overlay
        try:
            if isinstance(error, Bail):
                overlay = Overlay(group)
                if self.bailed is not None:
                    overlay.add(self.bailed.index, self.bailed.unit, self.bailed.store.delta())
            elif error is None:
                overlay.use_up(self.used)
                if group.failures is not None:
                    lost = [(self.names[index], self.lost[index]) for index in sorted(self.lost)]
                    overlay.put_failures(group.failures, lost)
        except Exception as conflict:
            error = conflict
        takes = error is None or isinstance(error, Bail)
        writes = self._with_changes(overlay.delta if takes else Delta({}, [], {}))
        status, shown, *_ = ended_as(branch, error, None)
        _, refused = note(branch, Outcome(
            group.name, group, status, scope.started + terms.epoch, terms.clock() - scope.started, scope.by,
            scope.number, scope=scope.place, error=shown, writes=writes, end=scope.number + 1,
            branches=self.count if group.stream is not None else len(group.units),
            selection=self.verdicts.selection(error),
        ))  # fmt: skip
        error = refused or error
        if takes and refused is None:
            branch.store.apply(writes._replace(changes={}))
            if self.merges and error is None:
                warn_of_merge(terms.run_id, group, writes)
        self.adopt(error)
        if error is not None and not isinstance(error, Bail):
            branch.left.unwind(branch.store)
            branch.left.remains.update(self.remains)
            for index, result, merged in self.merged:
                branch.left.remains[branch_id(self.id, index)] = Remains(None, None, result, {}, merged)
        return error or (yield from branch.save())

    def _with_changes(self, writes: Delta) -> Delta:
        """Return the merged writes, with the values of the enclosing store that branches changed in place.

        They are for the journal: the store has them already, and changing a value is not a write that could conflict.
        """
        branch = self.branch
        changed = {key for key in self.changed if key in branch.store}
        if not changed:
            return writes
        branch.changed |= changed
        kept = changed - writes.puts.keys() - set(writes.deletes)
        return writes._replace(changes={key: branch.store[key] for key in sorted(kept)})


def _ends(unit: Any) -> bool:
    """Whether a supply ends here."""
    return unit is UNSET or type(unit) is Raised
