"""Parallel groups: branches over forks of the store, and the merge of their outcomes into one (L9).

A group's *conductor* supplies its branches, and decides on each that ends. They are merged in their order, whatever the
order of their ends: each as soon as all before it are, into an overlay that reaches the store when the group completes.
Until its turn comes, a branch that has ended is held; a stream waits while too many are.

One failure is raised as itself, several as an `ExceptionGroup`; a cancellation that the group itself asked for is not a
failure. A `Bail` ends the run, and only its branch counts; a `Suspend` waits for the others, and names everything that
they wait for. A failed branch that the group tolerates is *lost*: it counts as little as one that has never begun.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator
from typing import Any, Final, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.merger import Merger
from flowdeco.engine.noting import ended_as, note
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ALL, Outcome, Scope, Selection, Status, branch_id
from flowdeco.engine.overlay import warn_of_merge
from flowdeco.engine.requests import CAUGHT_UP, Begin, Failure, Fork, Forked, Raised, Request, Walk
from flowdeco.engine.restoring import go_live, restore
from flowdeco.engine.sources import Listed, Source, Streamed
from flowdeco.engine.verdicts import Verdicts
from flowdeco.errors import Bail, Cancelled, Suspend
from flowdeco.events import BranchesHeld
from flowdeco.model.definitions import Parallel, Unit
from flowdeco.model.sentinels import UNSET

__all__ = ["run_group"]

_STREAMED: Final = 32  # branches of a stream that are at work at once
_HELD: Final = 2  # times as many may wait to be merged


def run_group(branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome | None) -> Walk:
    """Run the branches of a group, and apply their merged outcome; return the failure."""
    past = branch.terms.past
    if past is not None and earlier is not None and branch.restores(earlier):
        return (yield from _restore_group(branch, group, scope, earlier))
    # One that had begun catches up through its branches (`Schedule._one_caught_up`).
    error = (yield from go_live(branch)) if earlier is None else None
    conductor = _Conductor(branch, group, scope, earlier)
    error = error or (yield from conductor.announce())
    if error is not None:
        return error
    interrupt = yield from conductor.side_by_side()
    if past is not None and past.rehearses:
        # It ends here: the branches of a group that had not ended end in `past.stop`, or with an interrupt are withdrawn.
        failed = (error for error in conductor.verdicts.unexpected() if not isinstance(error, (Suspend, Cancelled)))
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
    conductor.merger.adopt(earlier.error)
    _keep(branch, restore(branch, earlier, group, scope.by, (), scope.place))
    return earlier.error


def _keep(branch: Branch, did: Outcome) -> None:
    """Keep the record of a group, unless all of its branches count."""
    if did.error is None:
        branch.records.add_scope(did.kept())


class _Conductor:
    """Decides which branches of a group begin, and what each that ends means for the group.

    Of the branches of a resumed group, those before `verdicts.known` may have begun: the supply begins with them. It
    `is_live` unless everything in it is restored; it `is_restoring` until the supply is past what had begun. `later` are
    units that are among those, and have not begun.
    """

    def __init__(self, branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome | None) -> None:
        self.branch = branch
        self.group = group
        self.scope = scope
        self.earlier = earlier
        self.place = cast("Scope", scope.place)
        self.id = self.place.id
        self.by = scope.by and str(scope.by)  # of branches: the number is that of a step in another branch
        self.is_live = not (branch.sealed or branch.terms.rehearses)
        self.is_streamed = group.stream is not None
        self.limit: int = group.limit or (_STREAMED if self.is_streamed else sys.maxsize)
        self.verdicts = Verdicts(group, branch.terms.is_cancellation, earlier, is_live=self.is_live)
        self.names: dict[int, str] = {}  # of lost branches
        self.merger = Merger(branch, group, scope, self.verdicts)
        self.later: deque[tuple[int, Unit]] = deque()
        self.is_open = self.has_room = True
        self.held = 0  # as observers know, while the supply is held up
        self.is_restoring = earlier is not None
        self.must_catch_up = self.is_restoring and self.is_live
        self.source = self._source()
        if earlier is not None:
            self.source.bound = max(self.source.bound, earlier.branches)
            begun = (index for index in reversed(range(earlier.branches)) if self._has_begun(index))
            self.verdicts.known = max(next(begun, -1), *self.verdicts.lost, -1) + 1
        elif branch.terms.rehearses:
            self.verdicts.known = len(group.units)  # of an empty history

    def _source(self) -> Source:
        group = self.group
        if group.stream is None:
            return Listed(group.units)
        return Streamed(self.branch, group, group.stream, (_HELD + 1) * self.limit, self.announce)

    @property
    def is_enough(self) -> bool:
        """Whether the branches that count have completed."""
        return self.verdicts.is_enough

    def _has_begun(self, index: int) -> bool:
        """Whether a branch is to be restored."""
        branch, earlier = self.branch, self.earlier
        if branch.terms.rehearses and not (branch.sealed or self.is_streamed):
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
            scope.number, scope=scope.place, branches=self.source.bound, selection=selection,
        )  # fmt: skip

    def side_by_side(self) -> Generator[Request, Any, Failure]:
        """Have the branches evaluated; those that count are merged as they end (`ended`). Return the interrupt."""
        ended: Any = yield Fork(self)
        self._tell(0)
        if not self.is_live or self.is_enough:
            self.merger.merge_all(self.source.count)
        self.merger.take_the_rest()
        return cast("Failure", ended.error if type(ended) is Raised else ended.interrupt)

    # Decisions.

    def decide_loss(self, fork: Branch, error: BaseException) -> None:
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
        verdicts, merger = self.verdicts, self.merger
        index: int = self.source.count if fork is None else fork.index
        if fork is not None:
            merger.unmerged[index] = fork
        is_skipped = fork is not None and verdicts.chooses and fork.records.all_skipped()
        stops = verdicts.ended(index, failure, is_skipped=is_skipped)
        if self.is_streamed and isinstance(failure, Suspend) and index not in self.verdicts.lost:
            self.is_open = False
        if merger.turn in merger.unmerged and verdicts.ended_by is None and merger.error is None:
            merger.merge_ready()
            if merger.error is not None:
                self.is_open = self.is_open and not self.is_streamed  # how many have begun depends on their timing
                stops = stops or self.branch.terms.is_cancellation(merger.error)
        if self.is_streamed:
            self._look()
        return stops

    def _look(self) -> None:
        """See whether another branch may be pulled; observers receive the number of held ones while it may not."""
        self.has_room = bool(self.later) or self.source.count - self.merger.turn <= _HELD * self.limit
        self._tell(0 if self.has_room else len(self.merger.unmerged))

    def _tell(self, held: int) -> None:
        terms, before, self.held = self.branch.terms, self.held, held
        if terms.notify is not None and held != before:
            terms.notify(BranchesHeld(terms.run_id, self.group.name, held, self.merger.turn))

    # The supply.

    def supply(self) -> Walk:
        """Supply the branches: first those that had begun before a resume."""
        unit: Any = yield from self._begun_before()
        self.is_restoring = False
        wanted = unit is None and self.is_live
        if wanted and self.must_catch_up:
            wanted = (yield CAUGHT_UP) is not False
        while wanted:
            if self.later:
                index, unit = self.later.popleft()
            else:
                index, unit = self.source.count, (yield from self.source.next())
            if unit is UNSET or type(unit) is Raised:
                break
            if self.is_streamed:
                self._look()
            wanted = yield Begin(self._fork(index, unit))
        interrupt = yield from self.source.close()
        return unit.error if type(unit) is Raised else interrupt

    def _begun_before(self) -> Generator[Request, Any, Any]:
        """Supply the branches that are known from before a resume; return `Raised` if there are fewer of them now."""
        source = self.source
        while source.count < self.verdicts.known:
            index, unit = source.count, (yield from source.next())
            if unit is UNSET or type(unit) is Raised:
                return Raised(self._fewer()) if unit is UNSET else unit
            if index in self.verdicts.lost:
                self.names[index] = unit.name
            if self._has_begun(index):
                yield Begin(self._fork(index, unit))
            elif self.is_live and index not in self.verdicts.lost:
                self.later.append((index, unit))
            else:  # it never began, or nothing is left of it
                self.merger.unmerged[index] = None
        return None

    def _fewer(self) -> BaseException:
        past: Any = self.branch.terms.past
        change = f"the parallel group {self.group.name!r} had more than {self.source.count} branches"
        return cast("BaseException", past.changed(change))

    def _fork(self, index: int, unit: Unit) -> Branch:
        """Return the evaluation of a branch."""
        branch, scope = self.branch, self.scope
        # What is outside lends values and layers; a failure of the branch stops at its base.
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
        branch, index, earlier = self.branch, fork.index, self.earlier
        is_lost = index in self.verdicts.lost
        remains = None if branch.sealed or is_lost else past.remains_of(fork.id)
        if remains is not None:
            fork.store, fork.result = remains.store_over(branch.store), remains.result
            fork.read = fork.store.reader()
        if earlier is not None:
            takes_all = earlier.error is None and earlier.selection == ALL
            fork.ended_early |= is_lost or (bool(branch.sealed) and not takes_all)
            fork.sealed += is_lost
        if past.archive is not None:
            past.archive.begin_branch(branch.id, fork.id, self.group.name, index)

    # The end of the group.

    def finish(self, interrupt: Failure) -> Walk:
        """Note and apply the outcome of the group."""
        branch, group, scope, merger = self.branch, self.group, self.scope, self.merger
        terms, count = branch.terms, self.source.count
        error = self.verdicts.failure(interrupt, count) or merger.error
        lost = [] if error is not None else [(self.names[at], each) for at, each in sorted(self.verdicts.lost.items())]
        try:
            writes = merger.writes(error, lost)
        except Exception as conflict:
            error = conflict
            writes = merger.writes(error, [])
        takes = error is None or isinstance(error, Bail)
        writes = merger.with_changes(writes)
        status, shown, *_ = ended_as(branch, error, None)
        did, refused = note(branch, Outcome(
            group.name, group, status, scope.started + terms.epoch, terms.clock() - scope.started, scope.by,
            scope.number, scope=scope.place, error=shown, writes=writes, end=scope.number + 1,
            branches=count if self.is_streamed else len(group.units), selection=self.verdicts.selection(error),
        ))  # fmt: skip
        _keep(branch, did)
        error = refused or error
        if takes and refused is None:
            branch.store.apply(writes._replace(changes={}))
            if group.merge and error is None:
                warn_of_merge(terms.run_id, group, writes)
        merger.adopt(error)
        if error is not None and not isinstance(error, Bail):
            merger.leave_remains()
        return error or (yield from branch.save())
