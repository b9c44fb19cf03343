"""The context: an action's view of its run, and its means to change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from flowdeco.engine.outcome import step_id
from flowdeco.errors import WAITING, ContextEndedError, Suspend
from flowdeco.model.definitions import (
    Action,
    Pipeline,
    Stage,
    Stream,
    Unit,
    insertable,
    make_action,
    stage_selectors,
    values_of,
)
from flowdeco.model.options import checked_selectors
from flowdeco.model.selectors import switched_off
from flowdeco.model.store import NOTHING, Delta, Key, Store, View, key_name

if TYPE_CHECKING:
    from flowdeco.engine.logs import RunLogger
    from flowdeco.events import Event

__all__ = ["Context", "Effects"]

T = TypeVar("T")


class Effects(NamedTuple):
    """The effects of an action through its context."""

    delta: Delta
    inserted: list[Unit | Stream]
    switches: list[tuple[str, bool]]
    messages: list[Event]


class Context:
    """The run as an action sees it; a parameter annotated `Context`, or an unannotated one named `ctx`, receives it.

    The action's writes, insertions and switches take effect when it completes, and are dropped if it fails. Once it has
    ended, all of these raise `ContextEndedError`, in a thread that outlives it too.
    """

    __slots__ = (
        "_inserted",
        "_messages",
        "_notify",
        "_place",
        "_switches",
        "_upcoming",
        "action",
        "pipeline",
        "run_id",
        "stage",
        "store",
    )

    def __init__(
        self,
        run_id: str,
        pipeline: Pipeline,
        stage: Stage,
        action: Action[..., Any],
        store: Store,
        upcoming: Callable[[Sequence[tuple[str, bool]]], Iterator[Unit | Stream]],
        notify: Callable[[Event], None] | None,
        place: tuple[str, int] | str,
    ) -> None:
        self.run_id = run_id
        self.pipeline = pipeline
        self.stage = stage
        self.action = action
        self._place = place
        self.store = View(store)
        self._upcoming = upcoming
        self._notify = notify
        self._inserted: list[Unit | Stream] = []
        self._switches: list[tuple[str, bool]] = []
        self._messages: list[Event] = []

    @property
    def step_id(self) -> str:
        """The identity of this step in this run, the same over retries and resumes: for idempotency keys."""
        place, stage, action = self._place, self.stage, self.action
        if isinstance(place, str):
            return place  # in another process, the id itself
        return step_id(self.run_id, *place, stage.name, action.name, values_of(stage), values_of(action))

    @property
    def logger(self) -> RunLogger:
        """The logger `flowdeco.run`, with run, stage and action as `extra`."""
        from flowdeco.engine.logs import run_logger

        return run_logger(self.run_id, self.stage.name, self.action.name)

    @property
    def pending(self) -> list[Unit | Stream]:
        """The units that will run after the current stage, in order; not those that are skipped or disabled."""
        return list(self._upcoming(self._switches))

    def insert(self, *units: Unit | Stream) -> None:
        """Insert units as if the action had returned them, ahead of those it does return."""
        self._check_open("ctx.insert")
        self._inserted.extend(insertable(units, f"action {self.action.name!r}", "inserted"))

    def disable(self, *selectors: str) -> None:
        """Do not run the selected units in the rest of this run."""
        self._check_open("ctx.disable")
        self._switches.extend((selector, False) for selector in checked_selectors(selectors, "disable"))

    def enable(self, *selectors: str) -> None:
        """Undo `disable`; units that the caller of the run skips stay skipped."""
        self._check_open("ctx.enable")
        self._switches.extend((selector, True) for selector in checked_selectors(selectors, "enable"))

    def emit(self, kind: str, **payload: Any) -> None:
        """Send a message to the observers, at once."""
        self._check_open("ctx.emit")
        if self._notify is not None:
            from flowdeco.events import Message

            self._notify(Message(self.run_id, self.stage.name, self.action.name, kind, payload))

    def progress(self, done: float, total: float | None = None) -> None:
        """Report the progress of the action to the observers, at once."""
        self._check_open("ctx.progress")
        if self._notify is not None:
            from flowdeco.events import Progress

            self._notify(Progress(self.run_id, self.stage.name, self.action.name, done, total))

    @overload
    def wait_for(self, key: Key[T]) -> T: ...
    @overload
    def wait_for(self, key: str) -> Any: ...
    def wait_for(self, key: str | Key[Any]) -> Any:
        """Return the value of the key if the run has it, else suspend the run until it is resumed with one."""
        self._check_open("ctx.wait_for")
        if key in self.store:
            return self.store[key]
        raise Suspend(f"{WAITING}{key_name(key)!r}")

    def _check_open(self, use: str) -> None:
        if self.store.ended is not None:
            raise ContextEndedError.of(self.store.ended, use)

    # Detached, in another process: its view of the store travels there, and its effects come back.

    def __reduce__(self) -> tuple[Any, ...]:
        known = (self.run_id, self.step_id, self.pipeline.name, _shadow(self.stage), self.action.name)
        local = self.store.local_names(), self.store.dropped()
        return Context.detached, (known, dict(self.store), local, [_shadow(unit) for unit in self.pending])

    def __repr__(self) -> str:
        return f"<Context of {self.stage.name}/{self.action.name} in run {self.run_id}>"

    # For the engine, and for shipping calls.

    def effects(self) -> Effects:
        """Return the effects of the action through this context."""
        return Effects(self.store.delta(), self._inserted, self._switches, self._messages)

    def messages_only(self) -> Effects:
        """Return the effects of an action that has failed: a copy, since an abandoned call may still be at work."""
        return Effects(NOTHING, [], [], list(self._messages))

    def catch_up(self, effects: Effects) -> None:
        """Repeat the effects of a detached copy, unless the action has been abandoned meanwhile."""
        if self.store.ended is not None:
            return
        self.store.apply(effects.delta)
        self._inserted.extend(effects.inserted)
        self._switches.extend(effects.switches)
        for message in effects.messages:
            if self._notify is not None:
                self._notify(message)

    @classmethod
    def detached(
        cls,
        known: tuple[str, str, str, Stage, str],
        values: dict[str, Any],
        local: tuple[list[str], dict[str, str]],
        upcoming: list[Stage],
    ) -> Context:
        """Return the copy that travels to another process, and keeps the messages for the observers."""
        run_id, place, pipeline, stage, name = known
        action, waiting = make_action(_nothing, name=name), partial(_still_on, upcoming)
        store = Store(values)
        store.know_local(*local)
        context = cls(run_id, Pipeline(name=pipeline), stage, action, store, waiting, None, place)
        context._notify = context._messages.append
        return context


def _still_on(upcoming: list[Stage], switches: Sequence[tuple[str, bool]]) -> Iterator[Stage]:
    return (unit for unit in upcoming if not switched_off(stage_selectors(unit), switches))


def _shadow(unit: Unit | Stream) -> Stage:
    """Return a stand-in for a unit in another process, with its name and tags but no actions."""
    if isinstance(unit, Stage):
        return Stage(unit.name, title=unit.title, tags=unit.tags, description=unit.description)
    return Stage(unit.name, tags=getattr(unit, "tags", ()))


def _nothing() -> None:
    """Stand in for the function of an action known only by its name."""
