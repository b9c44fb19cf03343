"""The outcome of a step, as one value.

A step is an action, a stage, a pipeline with middleware, or a parallel group. Its `Outcome` describes it completely:
it is applied to the store, kept as the record (`run.stages`), reported as an event, written to the journal, merged by a
group, and applied once more when the run is resumed. Any new property of a step is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from operator import is_
from typing import Any, Final, Self, TypeAlias, cast

from flowdeco.engine.messages import MessageRecord, interleaved, joined
from flowdeco.errors import Bail, Suspend, Wait, printable
from flowdeco.events import ActionFinished, Event, StageFinished, UnitsInserted
from flowdeco.model.definitions import Action, Stage, Stream, Unit
from flowdeco.model.deltas import Delta
from flowdeco.model.sentinels import UNSET
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import every_unit

__all__ = [
    "ALL",
    "COMPLETED",
    "NOTHING_DROPPED",
    "NOWHERE",
    "ROOT",
    "RUN",
    "ActionRecord",
    "Dropped",
    "Inserter",
    "Outcome",
    "Scope",
    "Selection",
    "StageRecord",
    "Status",
    "amended",
    "branch_id",
    "branches_of",
    "dropped_errors",
    "enclosing",
    "innermost_branch",
    "inserter",
    "pinned",
    "record_kind",
    "stage_count",
    "status_of",
    "step_id",
]

ROOT: Final = "0"  # the branch that is the run itself
RUN: Final = -1  # the number in it of the scope of the caller's layers, which a resume may leave out
NOWHERE: Final = ""  # no branch: for the waits of steps that have not run again, in memory

# The messages and errors of steps in dropped attempts, in order: each step by its place (`_place`), its number there, and
# its name.
Dropped: TypeAlias = "Mapping[tuple[str, int, str], Sequence[MessageRecord | BaseException]]"
NOTHING_DROPPED: Final[Dropped] = {}


class Status(StrEnum):
    """The status of a run, a stage or an action."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    BAILED = "bailed"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


COMPLETED: Final = Status.COMPLETED  # looking up a member takes a quarter of the loop
_FINAL: Final = frozenset({Status.COMPLETED, Status.SKIPPED, Status.BAILED})


Outcomes: TypeAlias = "dict[str, dict[int, Outcome]]"  # by branch and number


def cut_steps(steps: Outcomes, cuts: Mapping[str, int]) -> None:
    """Forget the steps of these branches from these numbers on."""
    for branch, since in cuts.items():
        mine = steps.get(branch, {})
        for number in [number for number in mine if number >= since]:
            del mine[number]


def pinned(steps: Mapping[str, Mapping[int, Outcome]], pins: Mapping[str, int]) -> Outcomes:
    """Return the steps without writes to these keys that are older than so many rows: they no longer count."""

    def current(delta: Delta) -> Delta:
        outdated = {key for key, rows in pins.items() if delta.order < rows}
        return delta if outdated.isdisjoint((*delta.keys(), *delta.changes)) else delta.without(outdated)

    def of(did: Outcome) -> Outcome:
        return did._replace(
            writes=did.writes and current(did.writes), entry_writes=tuple(map(current, did.entry_writes))
        )

    return {branch: {number: of(did) for number, did in mine.items()} for branch, mine in steps.items()}


def branch_id(group: str, branch: int) -> str:
    """Return the identity of a branch of a group: of constant size, however deep groups are nested."""
    return _hashed(f"{group}\0{branch}")


def branches_of(branch: str, number: int, outcome: Outcome) -> list[str]:
    """Return the ids of the branches of a group."""
    return [branch_id(f"{branch}.{number}", index) for index in range(outcome.branches)]


def step_id(run_id: str, branch: str, number: int, *names: str) -> str:
    """Return the identity of a step: the same whenever, and however often, it is performed in this run.

    Its place does not tell it from others: another attempt may insert other stages there.
    """
    return _hashed("\0".join((run_id, branch, str(number), *names)))


def _hashed(parts: str) -> str:
    # Not loaded for runs without groups and journals: it takes 2 of the 15 ms of our import.
    from hashlib import blake2b

    return blake2b(parts.encode(), digest_size=10).hexdigest()


class Inserter(str):
    """The step that inserted a unit, as "stage/action"; `number` is its place in its branch: several may have one name."""

    __slots__ = ("number",)
    number: int


def inserter(name: str, number: int) -> Inserter:
    """Return the step of this name and number, as the inserter of a unit."""
    by = Inserter(name)
    by.number = number
    return by


class Scope(NamedTuple):
    """Where a stage ran, for its record: in a pipeline with options, or in a branch of a parallel group.

    `branch` is the place of the branch in its group, None for a pipeline. `id` distinguishes those of one name; the
    branches of a group share it. `outer` is the enclosing scope.
    """

    name: str
    id: str
    branch: int | None
    inserted_by: str | None
    outer: Scope | None

    def of(self, branch: int) -> Scope:
        """Return the scope of this branch of the group."""
        name, id, _, by, outer = self
        return Scope(name, id, branch, by, outer)


def enclosing(scope: Scope | None) -> Iterator[Scope]:
    """Yield a scope, and the scopes around it, the innermost first."""
    while scope is not None:
        yield scope
        scope = scope.outer


def innermost_branch(scope: Scope | None) -> Scope | None:
    """Return the innermost branch of a parallel group that a scope is in; None outside of groups."""
    return next((each for each in enclosing(scope) if each.branch is not None), None)


_NONE: Final[Mapping[int, BaseException]] = {}


class Selection(NamedTuple):
    """The branches of a group that do not count: those `lost`, with their errors, and all others but those `counted`."""

    lost: Mapping[int, BaseException] = _NONE
    counted: frozenset[int] | None = None

    def takes(self, index: int) -> bool:
        """Whether this branch counts."""
        return index not in self.lost and (self.counted is None or index in self.counted)


ALL: Final = Selection()


class Outcome(NamedTuple):
    """The outcome of a step: `started` in POSIX seconds, `elapsed` in seconds.

    `inserted_by` is `"stage/action"` (an `Inserter`; within a branch whose group was inserted, the group's has the number),
    None for a unit that was there from the start. `inserted` are the units that the step itself inserted (a stage, by its
    layers: those of its actions are in their outcomes), `switches` the selectors that it disabled (False) and enabled. For
    a stage, `actions` are the outcomes of its actions, and `scope` says where it ran. `restored` means that a resume did
    not run it again. `failures` are the errors of the attempts before the last one, in order; the record of a step also
    has those of its attempts that another attempt at something around it has dropped, and is `recovered` if something
    around it has recovered its failure. `attempts` counts its own, within the last attempt at what is around it.

    The step's effect is in `writes` (all its writes to the store, its result included; for a scope, those of its
    middleware on the way out), `entry_writes` (a scope's writes before its first step, layer by layer) and `result` (the
    data that an action returned). A record that is kept has none of them: it keeps no value alive. `number` is the
    step's place in its branch, `end` that of the step after it; `entered` tells whether a scope reached its first step;
    `branches` is the number of branches of a group (of a streamed one that has not ended, at most so many have begun),
    `selection` tells which of them count, `fingerprint` that of an action's code in a durable run; `repeats` says how often
    each of its layers has asked for another attempt, and `dropped` has the messages and errors of steps inside it in the
    attempts before the last one. `cached` means that it was taken from a cache. `waits` are those of an unfinished step,
    over or not; of a finished one, the questions that consumed an answer. `messages` are those of an action, also of its
    earlier attempts, and of those before the run was resumed.
    """

    name: str
    unit: Any
    status: Status
    started: float
    elapsed: float
    inserted_by: str | None = None
    number: int = -1
    inserted: tuple[Unit | Stream, ...] = ()
    actions: Sequence[ActionRecord] = ()
    scope: Scope | None = None
    end: int = -1
    error: BaseException | None = None
    attempts: int = 1
    recovered: bool = False
    switches: tuple[tuple[str, bool], ...] = ()
    restored: bool = False
    entered: bool = True
    branches: int = 0
    fingerprint: str = ""
    repeats: tuple[int, ...] = ()
    failures: Sequence[BaseException] = ()
    dropped: Dropped = NOTHING_DROPPED
    cached: bool = False
    selection: Selection = ALL
    waits: Sequence[Wait] = ()
    messages: Sequence[MessageRecord] = ()
    writes: Delta | None = None  # the effect is last, so that `kept` is quick
    entry_writes: Sequence[Delta] = ()
    result: Any = UNSET

    @property
    def is_final(self) -> bool:
        """Whether a resumed run takes it over; a failure only if its own layers recovered it."""
        return self.status in _FINAL or self.recovered

    def as_restored(
        self, unit: Any, by: str | None, actions: Sequence[ActionRecord] = (), scope: Scope | None = None
    ) -> Outcome:
        """Return the record of a restored step: the earlier outcome, with the unit and scope it has now."""
        return record_kind(unit)(
            self.name, unit, self.status, self.started, self.elapsed, by, self.number, self.inserted, actions, scope,
            self.end, self.error, self.attempts, self.recovered, self.switches, True, self.entered, self.branches,
            failures=self.failures, dropped=self.dropped, cached=self.cached, selection=self.selection,
            waits=self.waits, messages=self.messages,
        )  # fmt: skip

    def refused(self, error: BaseException) -> Self:
        """Return the outcome of a step that has failed because its effect cannot be written to the journal."""
        return self._replace(
            status=Status.FAILED, error=error, recovered=False, inserted=(), switches=(), writes=None, result=UNSET,
            cached=False,
        )  # fmt: skip

    def kept(self) -> Any:
        """Return the outcome without its values: the record to keep once it has been applied and written."""
        if self.writes is None and not self.entry_writes and self.result is UNSET:
            return self
        return type(self)(*cast("Any", self[:_EFFECT]))

    def portable(self, of: Callable[[Any], Any]) -> Self:
        """Return the outcome with its exceptions, units, waits and actions as `of` returns them."""
        dropped = {
            step: [of(each) if isinstance(each, BaseException) else each for each in attempts]
            for step, attempts in self.dropped.items()
        }
        changes: dict[str, Any] = {
            "unit": of(self.unit),
            "error": self.error and of(self.error),
            "dropped": dropped or self.dropped,
            **{name: _mapped(of, getattr(self, name)) for name in ("inserted", "failures", "waits", "actions")},
        }
        return (
            self if all(value is getattr(self, name) for name, value in changes.items()) else self._replace(**changes)
        )

    def events(self, run_id: str, stage: str | None) -> list[Event]:
        """Return the events for observers."""
        if not self.inserted or (self.error is not None and not self.recovered):
            return []
        names, stages, action = tuple(each.name for each in self.inserted), stage_count(self.inserted), None
        if isinstance(self, ActionRecord):
            action = self.name
            stages -= sum(isinstance(each, Action) for each in self.inserted)  # they run in this stage
        return [UnitsInserted(run_id, self.name if isinstance(self, StageRecord) else stage, action, names, stages)]

    def __repr__(self) -> str:
        failed = f" with {type(self.error).__name__}" if self.error is not None else ""
        again = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        inside = ""
        if isinstance(self, StageRecord):
            inside = f": {', '.join(record.name for record in self.actions) or 'no actions'}"
        text = f"<{type(self).__name__} {self.name} {self.status}{failed}{again} in {self.elapsed:.6f} s{inside}>"
        return printable(text)


def _mapped(of: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
    """Return what the function returns for the items; the same sequence if these are the items themselves."""
    made = tuple(map(of, items))
    return items if all(map(is_, made, items)) else made


_EFFECT: Final = Outcome._fields.index("writes")


class ActionRecord(Outcome):
    """The outcome of one action."""

    __slots__ = ()

    @property
    def action(self) -> Action[..., Any]:
        """The action itself."""
        return cast("Action[..., Any]", self.unit)

    def events(self, run_id: str, stage: str | None) -> list[Event]:
        found = super().events(run_id, stage)
        if not self.restored:
            how = self.status, self.error, self.elapsed, self.attempts, self.recovered, self.cached
            found.append(ActionFinished(run_id, stage or "", self.name, *how, tuple(self.failures)))
        return found


class StageRecord(Outcome):
    """The outcome of one stage, with the records of its actions."""

    __slots__ = ()

    @property
    def stage(self) -> Stage:
        """The stage itself."""
        return cast("Stage", self.unit)

    def events(self, run_id: str, stage: str | None) -> list[Event]:
        how = self.status, self.error, self.elapsed, self.attempts, self.recovered, self.restored
        return [*super().events(run_id, stage), StageFinished(run_id, self.name, *how, tuple(self.failures))]


def dropped_errors(records: Iterable[Outcome], scope: Scope | None, before: Dropped) -> Dropped:
    """Return messages and errors of these steps, of an attempt that is dropped, after those of the attempts before it.

    They are stages, or the actions of a stage that ran in this scope.
    """
    found = dict(before)
    for record in records:
        place = _place(record.scope or scope)
        for did in (record, *record.actions):
            errors = (*did.failures, did.error) if did.status is Status.FAILED else did.failures
            if errors or did.messages:
                key = place, did.number, did.name
                messages, earlier = joined(found.get(key, ()), did.messages, cast("Any", errors))
                found[key] = interleaved(messages, earlier)
    return found


def amended(record: StageRecord, around: Outcome) -> StageRecord:
    """Return the record of a stage, given the outcome of a pipeline around it, or its own.

    A failure that went no further than that has been recovered; and errors of earlier attempts at the stage and its
    actions are theirs.
    """
    place, went_on = _place(record.scope), around.recovered or around.status in (Status.BAILED, Status.SUSPENDED)

    def one(did: Any) -> Any:
        before = around.dropped.get((place, did.number, did.name))
        recovered = did.recovered or (went_on and did.status is Status.FAILED)
        if before:
            messages, failures = joined(before, did.messages, did.failures)
            did = did._replace(messages=messages, failures=failures)
        return did._replace(recovered=recovered)

    return cast("StageRecord", one(record)._replace(actions=list(map(one, record.actions)), dropped=NOTHING_DROPPED))


def _place(scope: Scope | None) -> str:
    """Return a scope in short: the numbers of its steps are unique there."""
    return "" if scope is None else f"{scope.id}[{scope.branch}]"


def record_kind(unit: Unit) -> type[Outcome]:
    """Return the class of the outcomes of this unit."""
    if isinstance(unit, Stage):
        return StageRecord
    return ActionRecord if isinstance(unit, Action) else Outcome


def status_of(error: BaseException | None, is_cancellation: Any) -> Status:
    """Return the status of a step that ended with this exception, or with none."""
    if error is None:
        return Status.COMPLETED
    if isinstance(error, Bail):
        return Status.BAILED
    if isinstance(error, Suspend):
        return Status.SUSPENDED
    return Status.CANCELLED if is_cancellation(error) else Status.FAILED


def stage_count(units: Sequence[Unit | Stream]) -> int:
    """Return the number of stages that are known to be in these units."""
    return sum(isinstance(unit, (Stage, Action)) for unit in every_unit(units))
