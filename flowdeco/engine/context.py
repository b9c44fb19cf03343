"""The context: an action's view of its run, and its means to change it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from flowdeco.engine.messages import MOST_SHOWN, MessageRecord, Messages, as_payload, cut
from flowdeco.engine.outcome import step_id
from flowdeco.engine.waits import Nap, Waits, moment
from flowdeco.errors import (
    ANSWERED,
    CONSUMED,
    EXPIRED,
    FOUND,
    NOT_GIVEN,
    OPEN,
    REFUSED,
    ContextEndedError,
    DefinitionError,
    RunError,
    StoreTypeError,
    Suspend,
    WaitTimeout,
    shortened,
    utc,
)
from flowdeco.model.definitions import (
    Action,
    Pipeline,
    Stage,
    Stream,
    Unit,
    insertable,
    stage_selectors,
    values_of,
)
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.functions import underlying
from flowdeco.model.keys import Key, key_name
from flowdeco.model.options import Duration, checked_selectors, seconds_of
from flowdeco.model.selectors import switched_off
from flowdeco.model.stand_ins import missing_action, outline
from flowdeco.model.store import Store, View
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from typing_extensions import TypeForm

    from flowdeco.engine.branch import Branch
    from flowdeco.engine.run_logger import RunLogger
    from flowdeco.errors import Wait
    from flowdeco.events import Event

__all__ = ["Context", "Effects"]

T = TypeVar("T")
D = TypeVar("D")

_NO_DEFAULT: Final[Any] = object()


class Effects(NamedTuple):
    """The effects of an action through its context."""

    delta: Delta
    inserted: list[Unit | Stream]
    switches: list[tuple[str, bool]]
    events: Sequence[Event] = ()  # of a detached context, for the observers
    waits: Waits | None = None  # of a detached context
    messages: Sequence[MessageRecord] = ()  # of a detached context


class Context:
    """The run as an action sees it; a parameter annotated `Context`, or an unannotated one named `ctx`, receives it.

    The action's writes, insertions and switches take effect when it completes, and are dropped if it fails. Once it has
    ended, all of these raise `ContextEndedError`, also in a thread that outlives it.
    """

    __slots__ = (
        "_around",
        "_inserted",
        "_naps",
        "_place",
        "_switches",
        "action",
        "attempt",
        "messages",
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
        around: Branch | _Elsewhere,
        place: tuple[Any, int] | str,
    ) -> None:
        self.run_id = run_id
        self.pipeline = pipeline
        self.stage = stage
        self.action = action
        self.attempt = 1  # at this action, by its own middleware
        self._place = place
        self.store = View(store)
        self._around = around
        self._naps: tuple[Nap, ...] = ()
        self._inserted: list[Unit | Stream] = []
        self._switches: list[tuple[str, bool]] = []
        self.messages: Messages | None = None  # of the step, those of earlier attempts included

    @property
    def step_id(self) -> str:
        """The identity of this step in this run, the same across retries and resumes: for idempotency keys."""
        place, stage, action = self._place, self.stage, self.action
        if isinstance(place, str):
            return place  # in another process, the id itself
        branch, number = place
        return step_id(self.run_id, branch.id, number, stage.name, action.name, values_of(stage), values_of(action))

    @property
    def logger(self) -> RunLogger:
        """The logger `flowdeco.run`, with run, stage and action as `extra`; the run keeps messages at INFO and above."""
        from flowdeco.engine.run_logger import run_logger

        return run_logger(self.run_id, self.stage.name, self.action.name, self._keep_log)

    @property
    def pending(self) -> list[Unit | Stream]:
        """The units that will run after the current stage, in order; not those that are skipped or disabled."""
        return list(self._around.upcoming(self._switches))

    def insert(self, *units: Unit | Stream) -> None:
        """Insert units as if the action had returned them, before those it does return."""
        self._check_open("ctx.insert")
        self._inserted.extend(insertable(units, f"action {self.action.name!r}", "ctx.insert"))

    def disable(self, *selectors: str) -> None:
        """Do not run the selected units in the rest of this run."""
        self._check_open("ctx.disable")
        self._switches.extend((selector, False) for selector in checked_selectors(selectors, "disable"))

    def enable(self, *selectors: str) -> None:
        """Undo `disable`; units that the caller of the run skips stay skipped."""
        self._check_open("ctx.enable")
        self._switches.extend((selector, True) for selector in checked_selectors(selectors, "enable"))

    def emit(self, kind: str, /, **payload: Any) -> None:
        """Send a message to the observers, at once; the run keeps it, values that are not plain as their repr."""
        self._check_open("ctx.emit")
        if not isinstance(cast("object", kind), str):
            raise DefinitionError(
                f"ctx.emit takes the kind of the message, a string, and then values by name, as in "
                f'ctx.emit("loaded", rows=3), not {shortened(kind)}'
            )
        self._keep("emit", {"kind": cut(kind), "payload": as_payload(payload)})
        notify = self._around.notify
        if notify is not None:
            from flowdeco.events import Message

            notify(Message(self.run_id, self.stage.name, self.action.name, kind, payload))

    def progress(self, done: float, total: float | None = None) -> None:
        """Report the progress of the action to the observers, at once."""
        self._check_open("ctx.progress")
        for amount in (done,) if total is None else (done, total):
            if not hasattr(cast("object", amount), "__float__"):
                raise DefinitionError(
                    f"ctx.progress takes numbers, as in ctx.progress(3, 10), not the {type(amount).__name__} "
                    f"{shortened(amount)}"
                )
        notify = self._around.notify
        if notify is not None:
            from flowdeco.events import Progress

            notify(Progress(self.run_id, self.stage.name, self.action.name, done, total))

    def show(self, value: object) -> None:
        """Show a value on the page of the run: a frame, a figure, an image, a string of Markdown; anything else by its repr.

        It is rendered at once, and not kept itself; of more than 1 MB the rest is cut.
        """
        self._check_open("ctx.show")
        from flowdeco.engine.shown import rendered

        self._keep("show", rendered(value))

    def _keep(self, kind: str, payload: Mapping[str, Any], time: float | None = None) -> None:
        if kind == "show" and not self._around.has_room(len(payload["content"])):
            payload = {
                **payload,
                "content": "",
                "note": f"not kept: the run has shown {MOST_SHOWN / 1e6:.0f} MB before",
            }
        if self.messages is None:
            self.messages = Messages()
        self.messages.add(MessageRecord(kind, self._around.now() if time is None else time, payload, self.attempt - 1))

    def _keep_log(self, level: str, text: str) -> None:
        if self.store.ended is None:
            self._keep("log", {"level": level, "text": cut(text)})

    @overload
    def wait_for(self, key: Key[T], *, about: object = None, timeout: Duration | None = None) -> T: ...
    @overload
    def wait_for(self, key: Key[T], *, about: object = None, timeout: Duration, default: D) -> T | D: ...
    @overload
    def wait_for(self, key: str, *, about: object = None, type: TypeForm[T], timeout: Duration | None = None) -> T: ...
    @overload
    def wait_for(
        self, key: str, *, about: object = None, type: TypeForm[T], timeout: Duration, default: D
    ) -> T | D: ...
    @overload
    def wait_for(
        self, key: str, *, about: object = None, type: Any = None, timeout: Duration | None = None, default: Any = ...
    ) -> Any: ...
    def wait_for(
        self,
        key: Any,
        *,
        about: object = None,
        type: Any = None,
        timeout: Duration | None = None,
        default: Any = _NO_DEFAULT,
    ) -> Any:
        """Return the answer to a question: the value of the key; if there is none, suspend the run until it is given.

        `about` describes the question to the person asked, and ``type=`` checks the answer, like that of a `Key`.
        `timeout` (seconds, or a `timedelta`) after the question was first asked, the `default` is returned, or
        `WaitTimeout` raised. The wait consumes an answer or input: when the action has completed, its key is gone from the
        store, and the next wait for the same key is a new question. Values that actions or stages wrote under the key stay.
        """
        self._check_open("ctx.wait_for")
        seconds = None if timeout is None else seconds_of(timeout, "timeout= of ctx.wait_for is")
        if seconds is None and default is not _NO_DEFAULT:
            raise DefinitionError("default= of ctx.wait_for is used after a timeout: give timeout=, in seconds")
        name = key_name(key)
        wanted: Key[Any] = Key(name, Any if type is None else type)
        if type is None and isinstance(key, Key):
            wanted = cast("Key[Any]", key)
        waits = self._waits()
        wait, refused = self._without_misfit(waits.question(wanted, about, seconds), wanted)
        if wait.state in (OPEN, FOUND) and self._has_answer(name):
            value, given = self.store[wanted], NOT_GIVEN
            if self.store.is_given(name):
                del self.store[name]
                given = CONSUMED
            waits.noted.append(wait._replace(state=FOUND, given=given))
            return value
        if wait.state == OPEN and wait.due is not None and wait.due <= waits.wall.now():
            wait = wait._replace(state=EXPIRED)
        if wait.state == ANSWERED:
            wanted.check(wait.value)  # before it is noted: after an error, the question is asked again
        waits.noted.append(wait)
        if wait.state == ANSWERED:
            return wait.value
        if wait.state == REFUSED and isinstance(wait.value, BaseException):
            raise wait.value
        if wait.state != EXPIRED:
            raise Suspend.until(wait, others=refused)
        if default is _NO_DEFAULT:
            raise WaitTimeout(
                f"nobody answered {name!r} within {seconds} s of {utc(wait.asked)}: give ctx.wait_for a default=, or "
                f"catch WaitTimeout"
            )
        return default

    def _without_misfit(self, wait: Wait, wanted: Key[Any]) -> tuple[Wait, tuple[str, ...]]:
        """Return a question, and why the value that was given before it was asked is not its answer; that is dropped."""
        name = wanted.name
        if name not in self.store or not self.store.is_given(name):
            return wait, ()
        try:
            wanted.check(self.store[name])
        except StoreTypeError as error:
            del self.store[name]
            state = OPEN if wait.state == FOUND else wait.state
            given = CONSUMED if wait.given == NOT_GIVEN else wait.given
            why = f"the answer given for {name!r} before the question was asked is refused: {error}"
            return wait._replace(state=state, given=given), (why,)
        return wait, ()

    def _has_answer(self, name: str) -> bool:
        """Whether the value under a key may be taken: a given one is for one branch."""
        return name in self.store and (not self.store.is_given(name) or self._around.may_take(name))

    def sleep(self, seconds: Duration) -> Awaitable[None]:
        """Sleep for so many seconds, or a `timedelta`; in a coroutine action, `await ctx.sleep(seconds)`.

        In a durable run, a sleep longer than `suspend_after` suspends the run, and the journal keeps the time: the action
        runs again from its beginning, and continues here when the time has come.
        """
        self._check_open("ctx.sleep")
        return self._sleep(seconds_of(seconds, "the argument of ctx.sleep is"), None)

    def sleep_until(self, when: datetime | float) -> Awaitable[None]:
        """Sleep until a time, which is an aware datetime or in POSIX seconds; otherwise as `sleep`."""
        self._check_open("ctx.sleep_until")
        return self._sleep(0.0, moment(when))

    def _sleep(self, seconds: float, until: float | None) -> Nap:
        waits = self._waits()
        left, wall = waits.sleep(-1, seconds, until), waits.wall
        function = underlying(self.action.__wrapped__)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            nap = Nap(left, wall.sleeping)
            self._naps += (nap,)
            return nap
        if left:
            wall.pause(left)
        return Nap(0.0, None)

    def _waits(self) -> Waits:
        place = self._place
        return self._around.waits_of(-1 if isinstance(place, str) else place[1])

    def _check_open(self, use: str) -> None:
        if self.store.ended is not None:
            raise ContextEndedError.of(self.store.ended, use)

    # Detached, in another process: its view of the store travels there, and its effects come back.

    def __reduce__(self) -> tuple[Any, ...]:
        known = (self.run_id, self.step_id, self.pipeline.name, outline(self.stage), self.action.name, self.attempt)
        values = dict(self.store)
        given = list(filter(self.store.is_given, values))
        around = _Elsewhere([outline(unit) for unit in self.pending], self._waits())
        local = self.store.local_names(), self.store.ended_locals()
        return Context.detached, (known, values, given, local, around)

    def __repr__(self) -> str:
        return f"<Context of {self.stage.name}/{self.action.name} in run {self.run_id}>"

    # For the engine, and for shipping calls.

    def effects(self) -> Effects:
        """Return the effects of the action through this context; raises `RunError` for a sleep that was not awaited."""
        if self._naps:
            self._check_awaited()
        return Effects(self.store.delta(), self._inserted, self._switches, *self._detached())

    def _check_awaited(self) -> None:
        forgotten = next((nap for nap in self._naps if not nap.begun), None)
        if forgotten is not None:
            raise RunError(
                f"action {self.action.name!r} called ctx.sleep and did not await it, so that it has not slept "
                f"{forgotten.seconds:g} s: write `await ctx.sleep(...)` in a coroutine action"
            )

    def _detached(self) -> tuple[Any, ...]:
        """Return the effects of a detached one only: copies, since an abandoned call may still be at work."""
        if not isinstance(self._around, _Elsewhere):
            return ()
        return list(self._around.events), self._waits(), () if self.messages is None else self.messages.recorded()

    def messages_only(self) -> Effects:
        """Return the effects of an action that has failed."""
        return Effects(NOTHING, [], [], *self._detached())

    def live_by(self, now: Callable[[], float], sleep: Callable[[float], object], clock: Callable[[], float]) -> None:
        """Take the wall clock, the sleep, and the clock for deadlines, of the process that it has been sent to."""
        waits = self._waits()
        waits.wall = waits.wall._replace(now=now, sleep=sleep)
        if waits.wall.deadline is not None:
            waits.wall.deadline.begin_elsewhere(clock)

    def catch_up(self, effects: Effects) -> None:
        """Repeat the effects of a detached copy, unless the action has been abandoned meanwhile."""
        if self.store.ended is not None:
            return
        self._waits().adopt(cast("Waits", effects.waits))
        self.store.apply(effects.delta)
        self._inserted.extend(effects.inserted)
        self._switches.extend(effects.switches)
        notify = self._around.notify
        if notify is not None:
            for event in effects.events:
                notify(event)
        for message in effects.messages:
            self._keep(message.kind, message.payload, message.time)

    @classmethod
    def detached(
        cls,
        known: tuple[str, str, str, Stage, str, int],
        values: dict[str, Any],
        given: list[str],
        local: tuple[list[str], dict[str, str]],
        around: _Elsewhere,
    ) -> Context:
        """Return the copy that travels to another process, and keeps the messages for the observers."""
        run_id, place, pipeline, stage, name, attempt = known
        action = missing_action(name)
        store = Store(values)
        store.give(given)
        store.know_local(*local)
        context = cls(run_id, Pipeline(name=pipeline), stage, action, store, around, place)
        context.attempt = attempt
        return context


class _Elsewhere:
    """The surroundings of a detached context, in place of a branch: units that come, its waits, events for the observers."""

    def __init__(self, coming: list[Stage], waits: Waits) -> None:
        self.events: list[Event] = []
        self._coming = coming
        self._waits = waits
        self._shown = 0

    def upcoming(self, more: Sequence[tuple[str, bool]] = ()) -> Iterator[Stage]:
        return (unit for unit in self._coming if not switched_off(stage_selectors(unit), more))

    def waits_of(self, number: int) -> Waits:
        return self._waits

    def may_take(self, key: str) -> bool:
        return True  # the branches of a group cannot be asked from here

    def notify(self, event: Event) -> None:
        self.events.append(event)

    def now(self) -> float:
        return self._waits.wall.now()

    def has_room(self, size: int) -> bool:
        if self._shown + size > MOST_SHOWN:
            return False
        self._shown += size
        return True
