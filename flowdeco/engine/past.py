"""What is known of an earlier attempt at a run, step by step, in the order in which evaluation comes by again.

The past of a branch is a list of stages and groups, and beside it what closed the pipelines with middleware. It is told
by the rows of a journal (`memory`), or, for a run in memory, by its records and by the `Trace` that each branch leaves
behind. Only the former knows what each step wrote; in memory, the store has it already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from flowdeco.engine.runs import ActionRecord, StageRecord, Status
from flowdeco.model.options import UNSET
from flowdeco.model.store import Delta, Log, Store

__all__ = [
    "STAGE",
    "Closed",
    "Did",
    "Entry",
    "GroupPast",
    "GroupTrace",
    "Past",
    "ScopePast",
    "StagePast",
    "Trace",
    "failed_action",
    "is_over",
]


class Did(NamedTuple):
    """A step that is over: what is in its record, what it wrote, its data, and the code it had.

    `delta` is None where the store has its writes already; `code` is a fingerprint, or the function itself.
    """

    name: str
    status: Status
    started: float
    elapsed: float
    error: BaseException | None
    attempts: int
    recovered: bool
    inserted: tuple[Any, ...]
    switches: tuple[tuple[str, bool], ...]
    delta: Delta | None
    result: Any
    code: Any


class Closed(NamedTuple):
    """The end of a pipeline with middleware: where it was, what the middleware wrote and inserted.

    `opened` is how many such pipelines the branch had opened by then; `early` whether not all in it has been done, for
    it recovered from a failure, or was left by a `Bail`.
    """

    position: int
    opened: int
    delta: Delta | None
    inserted: tuple[Any, ...] = ()
    early: bool = False


class StagePast(NamedTuple):
    """A stage that had begun: where, its actions that are over, to be gone through once, and its end if it is over itself.

    Both are to be read by `Past.read`.
    """

    name: str
    position: int
    actions: Iterable[Any]
    end: Any = None


class GroupPast(NamedTuple):
    """A parallel group that had begun: the position where it did, and of how many branches."""

    name: str
    position: int
    branches: int


Entry: TypeAlias = "StagePast | GroupPast"


class Past:
    """The past of one branch, taken from the front while the branch is evaluated again.

    `fork` gives that of a branch of a group, by the position of the group and the number of the branch in it; `read` the
    steps, which are as they came: most of them are read once or twice, and forgotten.
    """

    rows: ClassVar[bool] = False  # whether a step is, before it is read, a row with what its payload says

    __slots__ = ("_at", "closed", "entries", "fork", "next", "read", "result", "scopes", "store")

    next: Entry | None  # what comes next; None at the end

    def __init__(
        self,
        entries: Sequence[Entry],
        closed: dict[int, Closed],
        fork: Callable[[int, int], Past],
        *,
        read: Callable[[Any], Did],
        store: Store | None = None,
        result: Any = None,
        scopes: dict[int, ScopePast] | None = None,
    ) -> None:
        self.entries = entries
        self.closed = closed
        self.fork = fork
        self.read = read
        self.store = store  # in memory: of a branch whose group was not merged
        self.result = result
        self.scopes = scopes or {}  # in memory: those that were left by a failure
        self._at = 0
        self.take()

    def take(self) -> None:
        """Pass over what comes next."""
        self.next = self.entries[self._at] if self._at < len(self.entries) else None
        self._at += 1

    def whole(self) -> Iterator[Entry]:
        """Give all that happened, from the beginning."""
        return iter(self.entries)

    def is_empty(self) -> bool:
        """Whether nothing has ever happened in the branch."""
        return not self.entries and not self.closed


class ScopePast(NamedTuple):
    """What the layers around a pipeline or stage had noted when it was left by a failure, and the result before it."""

    logs: list[Log]
    result: Any


STAGE: Final = -1  # beside the numbers of pipelines: the stage that was left by a failure


class Left(Protocol):
    """What a branch of a group leaves behind in memory beside its records."""

    def past(self, records: Sequence[StageRecord]) -> Past:
        """Return the past that these records of the branch tell."""
        ...


class GroupTrace(NamedTuple):
    """A group, the number of records before it, and what its branches leave behind, with their number of records."""

    group: GroupPast
    start: int
    branches: Sequence[tuple[int, Left]]


class Trace:
    """What a branch leaves behind in memory beside its records, so that it can be resumed without a journal."""

    __slots__ = ("closed", "groups", "result", "scopes", "settled", "store", "undone")

    def __init__(self) -> None:
        self.closed: dict[int, Closed] = {}
        self.groups: list[GroupTrace] = []
        self.result: Any = None
        self.store: Store | None = None  # of a branch whose group was not merged
        self.settled = 0  # as many records are over, failures that were recovered among them
        self.scopes: dict[int, ScopePast] = {}
        self.undone: tuple[int, int, int] | None = None  # records, pipelines, position: what came after was rolled back

    def settle(self, records: int) -> None:
        """Note that so many records are over: what has failed among them is recovered."""
        self.settled = records
        self.scopes.clear()
        self.undone = None

    def go_back(self, records: int, opened: int, position: int) -> None:
        """Forget what came after."""
        self.closed = {number: closed for number, closed in self.closed.items() if number < opened}
        self.groups = [group for group in self.groups if group.group.position < position]
        self.settle(min(self.settled, records))

    def past(self, records: Sequence[StageRecord]) -> Past:
        """Return the past that these records of the branch tell."""
        kept, opened, position = self.undone or (len(records), sys.maxsize, sys.maxsize)
        records = records[:kept]
        closed = {number: each for number, each in self.closed.items() if number < opened}
        entries: list[Entry] = []
        places = _Places(closed)
        forks: dict[tuple[int, int], tuple[Left, Sequence[StageRecord]]] = {}
        at = 0
        for group, start, branches in self.groups:
            if group.position >= position:
                break
            entries += self._stages(records, at, start, places)
            entries.append(group)
            places.after(group.position)
            at = start
            for index, (length, trace) in enumerate(branches):
                forks[group.position, index] = trace, records[at : at + length]
                at += length
        entries += self._stages(records, at, len(records), places)

        def fork(position: int, index: int) -> Past:
            trace, theirs = forks[position, index]
            return trace.past(theirs)

        scopes = {scope: past for scope, past in self.scopes.items() if self.undone is None or 0 <= scope < opened}
        return Past(entries, closed, fork, read=_did, store=self.store, result=self.result, scopes=scopes)

    def _stages(self, records: Sequence[StageRecord], start: int, end: int, places: _Places) -> list[StagePast]:
        """Return the past of stages; the last one may have failed, and may have to begin anew."""
        found = [_stage_past(records[at], places, at < self.settled) for at in range(start, end)]
        return found if not found or found[-1].end is not None or found[-1].actions else found[:-1]


_OVER: Final = (Status.COMPLETED, Status.SKIPPED, Status.BAILED)


def is_over(record: ActionRecord | StageRecord | Did) -> bool:
    """Whether nothing is left to do about it."""
    return record.status in _OVER or record.recovered


def failed_action(record: StageRecord) -> ActionRecord | None:
    """Return the record of the action with which a stage failed."""
    return next((action for action in reversed(record.actions) if not is_over(action)), None)


class _Places:
    """The positions of a branch, one after the other: some are those of its pipelines' ends."""

    def __init__(self, closed: dict[int, Closed]) -> None:
        self._ends = {each.position for each in closed.values()}
        self._next = 0

    def take(self, count: int) -> int:
        """Return the next position that is none of them, and pass over so many."""
        while self._next in self._ends:
            self._next += 1
        self._next += count
        return self._next - count

    def after(self, position: int) -> None:
        """Go on behind this position."""
        self._next = position + 1


def _stage_past(record: StageRecord, places: _Places, settled: bool) -> StagePast:
    over = settled or is_over(record)
    actions = [action for action in record.actions if over or is_over(action)]
    return StagePast(record.name, places.take(len(actions) + 1), actions, record if over else None)


def _did(record: ActionRecord | StageRecord) -> Did:
    switches, code = (record.switches, record.action.__wrapped__) if isinstance(record, ActionRecord) else ((), None)
    return Did(
        record.name, record.status, record.started, record.elapsed, record.error, record.attempts, record.recovered,
        record.inserted, switches, None, UNSET, code,
    )  # fmt: skip
