"""What a run is when it is over: its status, its store, and a record of everything that ran."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast, overload

from flowdeco.model.definitions import Action, Pipeline, Stage
from flowdeco.model.store import Key, Store

if TYPE_CHECKING:
    import os
    import types
    from pathlib import Path

    from flowdeco.running import Ran

__all__ = ["ActionRecord", "Run", "Scope", "StageRecord", "Status"]

T = TypeVar("T")

_new: Final = cast("Any", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]


class Status(StrEnum):
    """What became of a run, a stage or an action."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    BAILED = "bailed"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


class ActionRecord(NamedTuple):
    """What became of one action: `started` in POSIX seconds, `elapsed` in seconds.

    `inserted_by` is `"stage/action"`, None for what was there from the start; `inserted` are the units it inserted,
    `switches` the selectors it disabled (False) and enabled.
    """

    name: str
    action: Action[..., Any]
    status: Status
    started: float
    elapsed: float
    inserted_by: str | None = None
    error: BaseException | None = None
    attempts: int = 1
    recovered: bool = False
    inserted: tuple[Any, ...] = ()
    switches: tuple[tuple[str, bool], ...] = ()

    def __repr__(self) -> str:
        return f"<ActionRecord {_told(self)}>"


class Scope(NamedTuple):
    """What a stage ran in: a pipeline with options, or a branch of a parallel group.

    `branch` is the place of the branch in its group, None for a pipeline. `id` tells those of one name apart; the
    branches of a group have it in common. `outer` is the scope around this one.
    """

    name: str
    id: str
    branch: int | None
    inserted_by: str | None
    outer: Scope | None

    def of(self, branch: int) -> Scope:
        """Return the scope of this branch of the group."""
        return cast("Scope", _new(Scope, (self.name, self.id, branch, self.inserted_by, self.outer)))


class StageRecord(NamedTuple):
    """What became of one stage, with the records of its actions: `started` in POSIX seconds, `elapsed` in seconds.

    `scope` is the nested pipeline, or the branch of a parallel group, that it ran in.
    """

    name: str
    stage: Stage
    status: Status
    started: float
    elapsed: float
    inserted_by: str | None
    actions: Sequence[ActionRecord]
    error: BaseException | None = None
    attempts: int = 1
    recovered: bool = False
    inserted: tuple[Any, ...] = ()
    scope: Scope | None = None

    def __repr__(self) -> str:
        return f"<StageRecord {_told(self)}: {', '.join(record.name for record in self.actions) or 'no actions'}>"


def _told(record: ActionRecord | StageRecord) -> str:
    failed = f" with {type(record.error).__name__}" if record.error is not None else ""
    again = f" in {record.attempts} attempts" if record.attempts > 1 else ""
    return f"{record.name} {record.status}{failed}{again} in {record.elapsed:.6f} s"


_ATTRIBUTE: Final = "__flowdeco_run__"


class Run:
    """One evaluation of a pipeline; `run["key"]` reads its store."""

    __slots__ = {  # noqa: RUF023  in the order of a reader
        "id": "What the run is called in logs, events and journals.",
        "pipeline": "The pipeline that was run.",
        "status": "What became of it.",
        "store": "The store as the run left it.",
        "result": "The last data value (not None) that an action returned.",
        "error": "The exception that ended the run, None if none did.",
        "reason": "What a `Bail` or `Suspend` said.",
        "stages": "The `StageRecord` of each stage, in the order of execution.",
        "started": "When it began, in POSIX seconds.",
        "elapsed": "How long it took, in seconds.",
        "forgotten": "How many stage records `history=` has dropped.",
        "_journal": None,
        "_skip": None,
        "_trace": None,
        "_use": None,
    }

    def __init__(self, id: str, pipeline: Pipeline, store: Store) -> None:
        self.id = id
        self.pipeline = pipeline
        self._begin(store)

    def _begin(self, store: Store) -> None:
        """Be as a run that has not begun, over this store."""
        self.status = Status.PENDING
        self.store = store
        self.result: Any = None
        self.error: BaseException | None = None
        self.reason: str | None = None
        self.stages: Sequence[StageRecord] = []
        self.forgotten = 0
        self.started = 0.0
        self.elapsed = 0.0
        # What it takes to resume it.
        self._use: tuple[Any, ...] = ()
        self._skip: frozenset[str] = frozenset()
        self._trace: Any = None
        self._journal: Any = None

    @staticmethod
    def of(error: BaseException) -> Run:
        """Return the run behind a raised exception; a `LookupError` for one that no run raised."""
        run = _run_behind(error)
        if run is None:
            raise LookupError(f"no run raised this {type(error).__name__}: {error}")
        return run

    def _remember(self, error: BaseException) -> None:
        """Tie the run to an exception that leaves it, for `Run.of`; also to those in a group, which `except*` splits."""
        with suppress(Exception):  # an exception that cannot be written to
            setattr(error, _ATTRIBUTE, self)
        if isinstance(error, BaseExceptionGroup):
            for member in cast("BaseExceptionGroup[BaseException]", error).exceptions:
                self._remember(member)

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        return self.store[key]

    def __contains__(self, key: object) -> bool:
        return key in self.store

    __iter__ = None  # not by numbers, as what has `__getitem__` would be: of keys there is `run.store`

    def ran(self) -> Ran:
        """Return what ran, and who inserted it: a value that prints as text and shows itself in notebooks."""
        made: Ran = _running().ran(self)
        return made

    def to_html(self, path: str | os.PathLike[str], *, values: bool = False) -> Path:
        """Write a page that shows the run, and return its path: one file, which loads nothing.

        It has a timeline, every stage and action, errors with their tracebacks and notes, what differs from the plan,
        and the keys of the store with types and sizes. Values of the store are in it only with `values=True`; without,
        an error message that repeats a value that is known has the key in its place (`docs/see.md` says which are not).
        """
        written: Path = _running().write_page(self, path, values)
        return written

    def _repr_html_(self) -> str:
        return str(_running().html_of(self))  # in a notebook

    def __repr__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        failed = f" with {type(self.error).__name__}" if self.error is not None else ""
        return f"<Run {self.id} {self.status}{failed}{why}, {len(self.stages)} stages in {self.elapsed:.3f} s>"


def _run_behind(error: BaseException) -> Run | None:
    # A StopIteration cannot leave a coroutine: out of `arun` it comes as the cause of a RuntimeError (PEP 479).
    found = getattr(error, _ATTRIBUTE, None) or getattr(error.__cause__, _ATTRIBUTE, None)
    if found is None and isinstance(error, BaseExceptionGroup):  # a part of the group that was raised
        members = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return next(filter(None, map(_run_behind, members)), None)
    return found if isinstance(found, Run) else None


def _running() -> types.ModuleType:
    # The import that points upwards: what shows a run is loaded when it is wanted.
    from flowdeco import running

    return running
