"""What is known of an earlier attempt at a run, and consumed while the walk comes by again.

A resumed run is evaluated from its beginning, by the same law of order. Where the past has a step, the step is restored
instead of performed: what it wrote, inserted and decided takes effect again. Where the past ends, the run goes on.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from flowdeco.definitions import Action
from flowdeco.options import UNSET
from flowdeco.runs import ActionRecord, StageRecord, Status
from flowdeco.store import Delta, Store

__all__ = ["Closed", "Did", "Past", "StagePast", "Trace"]


class Did(NamedTuple):
    """An action that is over; `delta` is None where the store has its writes already.

    `same` tells whether an action has the code that was run then, `reason` why it bailed.
    """

    record: ActionRecord
    delta: Delta | None
    result: Any
    same: Callable[[Action[..., Any]], bool]
    stage: str = ""
    fingerprint: str = ""
    reason: str = ""


class Closed(NamedTuple):
    """What the middleware of a stage or pipeline wrote and inserted at its end."""

    delta: Delta | None
    inserted: tuple[Any, ...] = ()
    failed: tuple[StageRecord, ...] = ()


class StagePast:
    """A stage that had begun: its actions that are over, and its record, if it is over itself.

    Where a failure was recovered around it, `failed` is the record of the action that had failed.
    """

    __slots__ = ("actions", "closed", "failed", "name", "record")

    def __init__(
        self,
        name: str,
        actions: Iterable[Did],
        record: StageRecord | None = None,
        closed: Closed | None = None,
        failed: ActionRecord | None = None,
    ) -> None:
        self.name = name
        self.actions = deque(actions)
        self.record = record
        self.closed = closed
        self.failed = failed

    @property
    def cut_short(self) -> bool:
        """Whether it is over, and not all of its actions have run."""
        return self.record is not None and (self.record.recovered or self.record.status is Status.SKIPPED)


class Past:
    """The past of one branch: its stages in order, and the pipelines and groups in it, by the order of their opening."""

    __slots__ = ("_forks", "closed", "differs", "left", "result", "stages", "store")

    def __init__(
        self,
        stages: Iterable[StagePast],
        closed: dict[int, Closed],
        forks: Callable[[tuple[int, int]], Past | None],
        store: Store | None = None,
        result: Any = None,
        left: tuple[Trace, Sequence[StageRecord]] | None = None,
    ) -> None:
        self.result = result
        self.differs = ""  # in what is not seen step by step
        self.left = left  # what it was made of, for a branch that does not begin this time
        self.stages = deque(stages)
        self.closed = closed
        self._forks = forks
        self.store = store

    def fork(self, group: int, branch: int) -> Past | None:
        """Return the past of a branch of a group, by the number of the group and of the branch in it."""
        return self._forks((group, branch))

    def take(self, name: str) -> StagePast | None:
        """Return the next stage if it has this name."""
        return self.stages.popleft() if self.stages and self.stages[0].name == name else None

    def skip(self, name: str) -> StageRecord | None:
        """Pass over a stage that was skipped, and return its record."""
        if self.stages and self.stages[0].name == name:
            stage = self.stages[0]
            if stage.record is not None and stage.record.status is Status.SKIPPED:
                return self.stages.popleft().record
            if stage.closed is None and not any(did.delta for did in stage.actions):
                self.stages.popleft()  # it had begun, and is not wanted any more
        return None


class Trace:
    """What a branch leaves behind in memory beside its records, so that it can be resumed without a journal."""

    __slots__ = ("closed", "groups", "length", "result", "store", "undone")

    def __init__(self) -> None:
        self.length = 0
        self.closed: dict[int, Closed] = {}
        self.groups: list[list[Trace]] = []
        self.result: Any = None
        self.store: Store | None = None  # of a branch whose group was not merged
        self.undone = False  # the last stage failed, and what it wrote was rolled back

    def add_group(self, at: int, branches: list[Trace]) -> None:
        """Note a group that began after so many records, and what its branches leave behind."""
        start = Trace()
        start.length = at
        self.groups.append([start, *branches])

    def go_back(self, opened: int, groups: int) -> None:
        """Forget the pipelines and groups from these numbers on."""
        self.closed = {number: closed for number, closed in self.closed.items() if number < opened}
        del self.groups[groups:]

    def past(self, records: Sequence[StageRecord]) -> Past:
        """Return the past that these records of the branch tell."""
        forks: dict[tuple[int, int], Past] = {}
        own: list[StagePast] = []
        at = 0
        for number, group in enumerate(self.groups):
            start = group[0].length if group else at
            own.extend(map(_stage_past, records[at:start]))
            at = start
            for index, trace in enumerate(group[1:]):
                forks[number, index] = trace.past(records[at : at + trace.length])
                at += trace.length
        own.extend(map(_stage_past, records[at:]))
        if own and own[-1].record is None and (self.undone or not own[-1].actions):
            own.pop()  # it has to begin anew
        return Past(own, dict(self.closed), forks.get, self.store, self.result, (self, records))


_OVER = (Status.COMPLETED, Status.SKIPPED)


def is_over(record: ActionRecord | StageRecord) -> bool:
    """Whether nothing is left to do about it."""
    return record.status in _OVER or record.recovered


def failed_action(record: StageRecord) -> ActionRecord | None:
    """Return the record of the action with which a stage failed."""
    return next((action for action in reversed(record.actions) if not is_over(action)), None)


def _stage_past(record: StageRecord) -> StagePast:
    actions = [_did(action) for action in record.actions if is_over(action)]
    if not is_over(record):
        return StagePast(record.name, actions)
    return StagePast(record.name, actions, record, Closed(None, record.inserted), failed_action(record))


def _did(record: ActionRecord) -> Did:
    def same(action: Action[..., Any]) -> bool:
        return same_code(record.action.__wrapped__, action.__wrapped__)

    return Did(record, None, UNSET, same)


def same_code(one: Any, other: Any) -> bool:
    """Whether two functions of this process do the same, wherever they are written down."""
    if one is other:
        return True
    code, other_code = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if code is None or other_code is None:
        return type(one) is type(other)
    same: bool = _essence(code) == _essence(other_code)
    return same and _defaults(one) == _defaults(other)


def _essence(code: Any) -> Any:
    if not isinstance(code, types.CodeType):
        return code
    constants = [_essence(part) for part in code.co_consts if not isinstance(part, str)]
    texts = [part for part in code.co_consts[1:] if isinstance(part, str)]  # the first one may be the docstring
    return code.co_code, code.co_names, code.co_varnames, constants, texts


def _defaults(function: Any) -> Any:
    return repr((getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)))
