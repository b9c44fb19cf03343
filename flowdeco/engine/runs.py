"""A run: its status, its store, and a record of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from flowdeco.engine.memory import Log
from flowdeco.engine.outcome import ActionRecord, Outcome, Scope, StageRecord, Status
from flowdeco.errors import (
    CALLED,
    DefinitionError,
    SerializationError,
    Wait,
    members_of,
    portable,
    printable,
    shortened,
)
from flowdeco.model.definitions import Pipeline
from flowdeco.model.keys import Key
from flowdeco.model.options import Middleware
from flowdeco.model.paths import culprit, shown_key
from flowdeco.model.references import can_pickle, pickles, searched_once
from flowdeco.model.store import Store
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    import os
    import types
    from pathlib import Path

    from flowdeco.engine.journal import Journal
    from flowdeco.running import Ran

__all__ = ["ActionRecord", "Resumption", "Run", "Scope", "StageRecord", "Status", "remember"]

T = TypeVar("T")


class Resumption(NamedTuple):
    """The origin of a resume: the options that the run was started with, and its journal or its log in memory."""

    use: tuple[Middleware, ...]
    skip: frozenset[str]
    log: Log | None = None
    journal: Journal | None = None

    def portable(self, of: Callable[[Any], Any]) -> Resumption:
        """Return the part to pickle, with outcomes and waits as the function returns them."""
        use = self.use if self.journal is None else ()  # those of a durable run are given again
        return self._replace(use=use, log=self.log and self.log.portable(of))


_ATTRIBUTE: Final = "__flowdeco_run__"


class Run:
    """One evaluation of a pipeline; `run["key"]` reads its store."""

    __slots__ = {  # noqa: RUF023  in the order of a reader
        "id": "The id of the run in logs, events and journals.",
        "pipeline": "The pipeline that was run.",
        "status": "Its status.",
        "store": "The final store.",
        "result": "The last data value (not None) that an action returned.",
        "error": "The exception that ended the run, None if none did.",
        "reason": "The reason of a `Bail` or `Suspend`.",
        "stages": "The `StageRecord` of each stage, in the order of execution.",
        "pipelines": "The `Outcome` of each pipeline that its middleware recovered or tried again, or that failed.",
        "started": "Its start in POSIX seconds; that of a resumed run is the start of its first leg.",
        "elapsed": "Its duration in seconds; that of a resumed run includes all legs.",
        "resumed": "The start of each later leg, in POSIX seconds.",
        "forgotten": "The number of stage records that `history=` has dropped.",
        "waits": "The waits of a suspended run, in branch order.",
        "resumption": "The state needed to resume it, None if it cannot be resumed.",
    }

    def __init__(self, id: str, pipeline: Pipeline, store: Store) -> None:
        self.id = id
        self.pipeline = pipeline
        self.status = Status.PENDING
        self.store = store
        self.result: Any = None
        self.error: BaseException | None = None
        self.reason: str | None = None
        self.stages: Sequence[StageRecord] = []
        self.pipelines: Sequence[Outcome] = []
        self.forgotten = 0
        self.started = 0.0
        self.elapsed = 0.0
        self.resumed: Sequence[float] = ()
        self.waits: Sequence[Wait] = ()
        self.resumption: Resumption | None = None

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """Return the state to pickle: errors and definitions that would not be unpickled have stand-ins."""
        state = self._portable(_Portable(units=False))
        if not can_pickle(state):
            self._check_values()
            with searched_once():
                state = self._portable(_Portable(units=True))
            if not can_pickle(state):
                state["resumption"] = None
        return None, state

    def _portable(self, of: _Portable) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.__slots__}
        state["pipeline"] = of(self.pipeline)
        state["waits"] = list(map(of, self.waits))
        state["error"] = self.error and of(self.error)
        state["stages"] = list(map(of, self.stages))
        state["pipelines"] = list(map(of, self.pipelines))
        kept = self.resumption
        return {**state, "resumption": None if kept is None else kept.portable(of)}

    def _check_values(self) -> None:
        """Raise the `SerializationError` of a value that cannot be pickled."""
        try:
            pickles((self.store, self.result))
        except Exception as error:
            named = (
                *((f"store[{shown_key(key)}]", value) for key, value in self.store.items()),
                ("result", self.result),
            )
            found = (culprit(value, name, pickles) for name, value in named)
            path, reason = next(filter(None, found), ("store", error))
            raise SerializationError(f"cannot pickle run {self.id!r}: {path}: {reason}") from reason

    def __copy__(self) -> Run:
        made = Run.__new__(Run)
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        import copy  # rarely

        made = copy.copy(self)  # records and definitions are never changed
        made.store, made.result = copy.deepcopy((self.store, self.result), memo)
        return made

    @staticmethod
    def of(error: BaseException) -> Run:
        """Return the run behind a raised exception; a `LookupError` for one that no run raised."""
        if not isinstance(cast("object", error), BaseException):
            raise DefinitionError(f"Run.of takes an exception that a run raised, not {shortened(error)}")
        run = _run_behind(error)
        if run is None:
            raise LookupError(f"no run raised this {type(error).__name__}: {error}")
        return run

    @overload
    def __getitem__(self, key: Key[T]) -> T: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        return self.store[key]

    def __contains__(self, key: object) -> bool:
        return key in self.store

    __iter__ = None  # not by index, as `__getitem__` would imply; `run.store` has the keys

    @property
    def due(self) -> float | None:
        """The earliest end of a sleep or deadline of a question, in POSIX seconds."""
        return min((wait.due for wait in self.waits if wait.due is not None), default=None)

    def ran(self) -> Ran:
        """Return the steps that ran, and who inserted them, as a value that prints as text and renders in notebooks."""
        made: Ran = _running().ran(self)
        return made

    def to_html(self, path: str | os.PathLike[str], *, values: bool = False) -> Path:
        """Write a page that shows the run, and return its path: one file, which loads nothing.

        It has a timeline, every stage and action, errors with their tracebacks and notes, the differences from the plan,
        and the keys of the store with types and sizes. Values of the store are in it only with `values=True`; without,
        known values in error messages are replaced by their keys (`docs/see.md` lists those that are not known).
        """
        written: Path = _running().write_page(self, path, values)
        return written

    def _repr_html_(self) -> str:
        return str(_running().html_of(self))  # in a notebook

    def __repr__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        failed = f" with {type(self.error).__name__}" if self.error is not None else ""
        count = f"{len(self.stages)} stage{'s' * (len(self.stages) != 1)}"
        return printable(f"<Run {self.id} {self.status}{failed}{why}, {count} in {self.elapsed:.3f} s>")


class _Portable:
    """Returns errors, waits, outcomes and (if `units`) definitions as they are pickled: one object stays one."""

    def __init__(self, *, units: bool) -> None:
        self._units = units
        self._known: dict[int, Any] = {}

    def __call__(self, thing: Any) -> Any:
        if id(thing) not in self._known:
            self._known[id(thing)] = self._made(thing)
        return self._known[id(thing)]

    def _made(self, thing: Any) -> Any:
        if isinstance(thing, Outcome):
            return thing.portable(self)
        if isinstance(thing, BaseException):
            return portable(thing, _copied)
        if isinstance(thing, Wait):
            thing = thing if can_pickle(thing.about) else thing._replace(about=shortened(thing.about))
            return thing if thing.kind != CALLED or can_pickle(thing.value) else thing._replace(value=None)
        if not self._units:
            return thing
        from flowdeco.model import stand_ins  # not loaded for runs that are not pickled

        return stand_ins.portable(thing, self)


def _copied(error: BaseException) -> Any:
    import pickle

    return pickle.loads(pickle.dumps(error))


class _Link:
    """The run behind an exception; it stays where it is when the exception is pickled or copied.

    An attribute of the exception, because any table of exceptions and runs would keep both alive: a run has its error.
    """

    __slots__ = ("run",)

    def __init__(self, run: Run) -> None:
        self.run = run

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> _Link:
        return self


def remember(run: Run, error: BaseException) -> None:
    """Tie a run to an exception that leaves it, for `Run.of`; also to those in a group, which `except*` splits."""
    for each in members_of(error):
        with suppress(Exception):
            BaseException.__setattr__(each, _ATTRIBUTE, _Link(run))  # also of a frozen one


def _run_behind(error: BaseException) -> Run | None:
    # Those in a group count if it is a part of the one that was raised. It may have come of the run's own: a StopIteration
    # leaves a coroutine as the cause of a RuntimeError (PEP 479), a cancelled `asyncio.run` raises a KeyboardInterrupt.
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        run = next(filter(None, map(_linked, members_of(current))), None)
        if run is not None:
            return run
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return None


def _linked(error: BaseException) -> Run | None:
    link = getattr(error, _ATTRIBUTE, None)
    return link.run if isinstance(link, _Link) else None


def _running() -> types.ModuleType:
    # The import that points upwards: views are loaded when a run is shown.
    from flowdeco import running

    return running
