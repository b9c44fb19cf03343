"""Waits: for a time, and for the answers to questions, kept over resumes.

An unfinished step runs again from its beginning when the run is resumed. So its record has everything that it has
waited for, in order (`Wait`), and when it runs again, its n-th sleep, or its n-th question of a key, is matched with
that of the record. A sleep keeps its due time, a question its deadline and its answer, and only the next one is asked.

1. A sleep longer than `suspend_after` suspends a durable run; the rest of it is slept, or suspends again.
2. A middleware that sleeps after a failure begins a *pause*: the attempt has failed and is recorded, and the next
   attempt begins when the pause has ended, without the layers that lead to it.
3. Everything that a run is given has a number. An open question takes the last value of its key that was given
   since it was asked, the first question in branch order. That value is used up, and never in the store; values given in
   advance are in the store, from which the first wait removes them.
4. Another attempt keeps the answers of the one before it, and nothing else.
5. If the middleware of an action suspends after a successful call, that call is among the waits, and is not repeated.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, cast

from flowdeco.engine.outcome import NOWHERE, ROOT, Outcome, Outcomes, Status, branch_id, pinned
from flowdeco.errors import (
    ANSWERED,
    CALLED,
    FOUND,
    NOT_GIVEN,
    OVER,
    PAUSE,
    QUESTION,
    REFUSED,
    SLEEP,
    USED,
    DefinitionError,
    Suspend,
    Wait,
    shortened,
    suggestion,
)
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Key
from flowdeco.model.options import LAST_SECOND
from flowdeco.model.store import Store
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from flowdeco.engine.deadlines import Deadline

__all__ = [
    "Called",
    "Given",
    "Nap",
    "Waits",
    "Wall",
    "answered",
    "asked",
    "check_answer",
    "consumed",
    "kept",
    "moment",
    "open_questions",
    "refusals",
    "starting_point",
    "used",
    "waits_by_step",
]


class Wall(NamedTuple):
    """The wall clock of a run, in POSIX seconds, with its ways to sleep: to block, and to be awaited.

    A sleep of more than `suspend_after` seconds suspends the run. The default stands still, for tests of the engine.
    """

    now: Callable[[], float] = float
    sleep: Callable[[float], object] = float
    sleeping: Callable[[float], Awaitable[object]] | None = None
    suspend_after: float = inf
    deadline: Deadline | None = None  # of the scopes around the action that sleeps

    def pause(self, seconds: float) -> None:
        """Sleep in an action, until its time is up."""
        if self.deadline is None:
            self.sleep(seconds)
        else:
            self.deadline.sleep_in_action(self.sleep, seconds)


class Nap:
    """A sleep that a coroutine awaits; `begun` once it does."""

    __slots__ = ("_sleeping", "begun", "seconds")

    def __init__(self, seconds: float, sleeping: Callable[[float], Awaitable[object]] | None) -> None:
        self.seconds = seconds
        self.begun = sleeping is None
        self._sleeping = sleeping

    def __await__(self) -> Generator[Any, Any, None]:
        self.begun = True
        if self._sleeping is not None:
            yield from self._sleeping(self.seconds).__await__()


class Called(NamedTuple):
    """A successful call of an action: the value that it returned, and its effects through its context."""

    value: Any
    delta: Delta
    inserted: Sequence[Any]
    switches: Sequence[tuple[str, bool]]

    def effects(self) -> Called:
        """Return its effects, as a context does."""
        return self


class Waits:
    """What a step waits for in this leg of the run, matched with what it waited for before."""

    __slots__ = ("_earlier", "_over", "_since", "_slept", "called", "noted", "pause", "wall")

    def __init__(self, wall: Wall, since: int, earlier: Iterable[Wait]) -> None:
        self.wall = wall
        self.noted: list[Wait] = []
        self.pause: Wait | None = None
        self.called: Called | None = None
        self._since = since  # the number of the next answer
        self._earlier: dict[tuple[int, str], deque[Wait]] = {}
        self._over: dict[int, int] = {}  # by layer: sleeps that were over before
        self._slept: dict[int, int] = {}  # and those of this leg
        for wait in earlier:
            if wait.kind == OVER:
                self._over[wait.who] = wait.times
            elif wait.kind == CALLED:
                self.called = cast("Called | None", wait.value)
            else:
                self._earlier.setdefault((wait.who, wait.key), deque()).append(wait)

    def sleep(self, who: int, seconds: float, until: float | None = None) -> float:
        """Return the seconds left of the next sleep; raises `Suspend` if these are too many."""
        count = self._slept.get(who, 0)
        left = 0.0
        if count >= self._over.get(who, 0):
            now, earlier = self.wall.now(), self._next(who, "")
            wait = earlier or Wait(SLEEP, now + seconds if until is None else until, who)
            left = seconds if earlier is None and until is None else max(0.0, (wait.due or 0.0) - now)
            if left > self.wall.suspend_after:
                self.noted.append(wait)
                raise Suspend.until(wait)
        self._slept[who] = count + 1
        return left

    def pausing(self, who: int, seconds: float) -> float:
        """Return the seconds of a sleep after a failure; raises `Suspend` if these are too many, and begins a pause."""
        if seconds <= self.wall.suspend_after:
            return seconds
        self.pause = Wait(PAUSE, self.wall.now() + seconds, who)
        raise Suspend.until(self.pause)

    def question(self, key: Key[Any], about: object, timeout: float | None) -> Wait:
        """Return the next question of this key: as it was asked before the run was resumed, or a new one."""
        found = self._next(-1, key.name)
        if found is not None:
            return found
        now = self.wall.now()
        due = None if timeout is None else now + timeout
        return Wait(
            QUESTION, due, key=key.name, about=about, type=key.described(), classes=key.references(), asked=now,
            since=self._since,
        )  # fmt: skip

    def use_time(self, who: int, seconds: float) -> None:
        """Note how much of its timeout the layer has used so far."""
        self.noted = [wait for wait in self.noted if (wait.kind, wait.who) != (USED, who)]
        self.noted.append(Wait(USED, seconds, who, key=USED))

    def time_used(self, who: int) -> float:
        """Return how much of its timeout the layer has used before the run was suspended."""
        found = self._next(who, USED)
        return 0.0 if found is None else found.due or 0.0

    def adopt(self, other: Waits) -> None:
        """Continue from what a copy of these has waited for in another process."""
        for name in ("noted", "_earlier", "_over", "_slept"):
            setattr(self, name, getattr(other, name))

    def another_attempt(self, who: int = -1) -> None:
        """Forget everything of the attempt that has failed but its answers; layers up to this one have not begun anew."""
        self.called = None
        for wait in reversed(kept(self.noted)):  # its answers: sleeps that are over are not noted
            self._earlier.setdefault((wait.who, wait.key), deque()).appendleft(wait)
        self.noted = [wait for wait in self.noted if _is_layer(wait.who, who)]
        for counted in (self._slept, self._over):
            for each in [each for each in counted if not _is_layer(each, who)]:
                del counted[each]

    def recorded(self) -> tuple[Wait, ...]:
        """Return everything that the step has waited for, in order."""
        counts = Counter(self._over) | Counter(self._slept)  # the greater ones
        over = (Wait(OVER, who=who, times=times) for who, times in counts.items())
        rest = (wait for waits in self._earlier.values() for wait in waits)
        called = () if self.called is None else (Wait(CALLED, value=self.called),)
        return (*over, *self.noted, *rest, *called, *(() if self.pause is None else (self.pause,)))

    def _next(self, who: int, key: str) -> Wait | None:
        waits = self._earlier.get((who, key))
        return waits.popleft() if waits else None

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        state = {name: getattr(self, name) for name in self.__slots__}
        return None, {**state, "wall": Wall(suspend_after=self.wall.suspend_after, deadline=self.wall.deadline)}


def _is_layer(each: int, until: int) -> bool:
    """Whether this is the number of a layer, and that of this other one or one around it."""
    return each != -1 and each <= until


def moment(when: datetime | float) -> float:
    """Return a time in POSIX seconds; raises `DefinitionError` for one without a time zone."""
    if isinstance(when, (int, float)) and not isinstance(when, bool) and -LAST_SECOND <= when < inf:
        if when > LAST_SECOND:
            raise DefinitionError(
                f"ctx.sleep_until takes POSIX seconds, and {shortened(when)} is after the year 9999: are these "
                "milliseconds?"
            )
        return float(when)
    given: Any = when
    if not callable(getattr(when, "utcoffset", None)) or not callable(getattr(when, "timestamp", None)):
        raise DefinitionError(f"ctx.sleep_until takes an aware datetime or POSIX seconds, not {shortened(when)}")
    if given.utcoffset() is None:
        raise DefinitionError(
            f"ctx.sleep_until takes an aware datetime, and {shortened(when)} has no time zone, so that its meaning would "
            "depend on the machine: write it with one, such as datetime(2025, 1, 31, 12, tzinfo=timezone.utc), or "
            "when.astimezone()"
        )
    return float(given.timestamp())


def kept(waits: Iterable[Wait], *, only_answers: bool = False) -> list[Wait]:
    """Return the waits that a step has behind it when it begins anew after a failure: its sleeps and its answers."""
    states = (ANSWERED, FOUND)
    return [
        wait
        for wait in waits
        if (wait.state in states if wait.kind == QUESTION else not only_answers and wait.kind == OVER)
    ]


# Answers.


class Given(NamedTuple):
    """Values that a run was given at once, as inputs or answers, when its journal had so many rows."""

    rows: int
    values: Mapping[str, Any]
    errors: Mapping[str, BaseException] = {}


def asked(steps: Outcomes, branch: str = ROOT) -> Iterator[tuple[str, Outcome]]:
    """Yield the unfinished steps that have waited for something, with their branches, in branch order."""
    left = _waited(steps, branch)
    while left:
        branch, number = left.pop()
        outcome = steps[branch][number]
        if outcome.waits and not outcome.is_final:
            yield branch, outcome
        for index in reversed(range(outcome.branches)):
            left += _waited(steps, branch_id(f"{branch}.{number}", index))


def _waited(steps: Outcomes, branch: str) -> list[tuple[str, int]]:
    """Return the steps of a branch that have waited, or have branches, the last one first."""
    mine = steps.get(branch, {})
    numbers = sorted((number for number, did in mine.items() if did.waits or did.branches), reverse=True)
    return [(branch, number) for number in numbers]


def all_asked(steps: Outcomes) -> Iterator[tuple[str, Outcome]]:
    """Yield these of the whole run."""
    yield from asked(steps)
    yield from asked(steps, NOWHERE)


def open_questions(steps: Outcomes) -> list[Wait]:
    """Return the questions without an answer, in branch order."""
    return [wait for _, outcome in all_asked(steps) for wait in outcome.waits if wait.is_open]


def waits_by_step(steps: Outcomes) -> dict[tuple[str, int], Sequence[Wait]]:
    """Return the earlier waits of each step, for when it runs again."""
    found: dict[tuple[str, int], list[Wait]] = {}
    for branch, outcome in all_asked(steps):
        waits = outcome.waits if outcome.status is not Status.FAILED else kept(outcome.waits)
        for wait in waits:
            found.setdefault(wait.at or (branch, outcome.number), []).append(wait)
    return dict(found)


def consumed(waits: Iterable[Wait], *, values: bool) -> list[Wait]:
    """Return the rest of the waits of a step that has finished: the questions that consumed an answer."""
    return [
        Wait(QUESTION, key=wait.key, state=wait.state, value=wait.value if values else None, given=wait.given)
        for wait in waits
        if wait.given != NOT_GIVEN
    ]


def used(steps: Outcomes) -> set[tuple[str, int]]:
    """Return the answers that questions have used up, by key and number."""
    outcomes = (outcome for mine in steps.values() for outcome in mine.values() if outcome.waits)
    return {(wait.key, wait.given) for outcome in outcomes for wait in outcome.waits if wait.given >= 0}


def answered(steps: Outcomes, given: Sequence[Given]) -> Outcomes:
    """Return the steps with the answers to their open questions; raises `StoreTypeError` for one of a wrong type."""
    gone = used(steps)
    found = dict(steps)
    for branch, outcome in list(all_asked(steps)):
        waits = [_answered(wait, given, gone) if wait.is_open else wait for wait in outcome.waits]
        found[branch] = {**found[branch], outcome.number: outcome._replace(waits=waits)}
    return found


def _with_values(steps: Outcomes, given: Sequence[Given]) -> Outcomes:
    """Return the steps with the values of the answers that they consumed: another attempt may need them."""

    def valued(wait: Wait) -> Wait:
        return wait._replace(value=given[wait.given].values.get(wait.key)) if wait.given >= 0 else wait

    found = dict(steps)
    for branch, mine in steps.items():
        of = {
            number: did._replace(waits=[*map(valued, did.waits)])
            for number, did in mine.items()
            if did.waits and did.is_final
        }
        if of:
            found[branch] = {**mine, **of}
    return found


def _answered(wait: Wait, given: Sequence[Given], gone: set[tuple[str, int]]) -> Wait:
    key = wait.key
    last = max((number for each, number in gone if each == key), default=-1)
    for number in range(len(given) - 1, max(last, wait.since - 1), -1):
        values, errors = given[number].values, given[number].errors
        if key in errors or key in values:
            gone.add((key, number))
            if key in errors:
                return wait._replace(state=REFUSED, value=errors[key], given=number)
            check_answer(wait, values[key])
            return wait._replace(state=ANSWERED, value=values[key], given=number)
    return wait


def check_answer(wait: Any, value: object) -> None:
    """Raise `StoreTypeError` if a value is not of the type that a question wants; of unknown types, any value is."""
    Key.of(wait.key, wait.type, wait.classes).check(value)


def starting_point(steps: Outcomes, given: Sequence[Given], rows: float = inf) -> tuple[Outcomes, Store]:
    """Return the steps with their answers, and the store with which the run begins again, or had begun at so many rows.

    Older writes to keys that were given later do not count.
    """
    steps = _with_values(answered(steps, given), given)
    last = dict(sorted(used(steps)))  # of several numbers of a key, the greatest
    live: dict[str, int] = {
        key: number
        for number, each in enumerate(given)
        if each.rows <= rows
        for key in each.values
        if number > last.get(key, -1)
    }
    store = Store()
    store.supply({key: given[number].values[key] for key, number in live.items()})
    pins = {key: given[number].rows for key, number in live.items() if number}
    return pinned(steps, pins) if pins else steps, store


def refusals(error: object, questions: Sequence[Any], run_id: str) -> dict[str, BaseException]:
    """Return the errors by which questions are answered, by key; raises `DefinitionError` if it is not clear which."""
    if error is None:
        return {}
    keys = list(dict.fromkeys(wait.key for wait in questions))
    names = ", ".join(map(repr, keys))
    if not keys:
        raise DefinitionError(f"an error answers a question, and run {run_id!r} waits for nothing now: leave it out")
    found: Mapping[Any, Any]
    if isinstance(error, Mapping):
        found = cast("Mapping[Any, Any]", error)
    elif len(questions) == 1:
        found = {keys[0]: error}
    else:
        raise DefinitionError(
            f"error= answers one question, and run {run_id!r} waits for {names}: write error={{key: exception}}"
        )
    for key, each in found.items():
        if key not in keys:
            raise DefinitionError(
                f"run {run_id!r} does not wait for {key!r}. {suggestion(str(key), keys, 'It waits for')}"
            )
        if not isinstance(each, Exception):
            raise DefinitionError(f"error= is an exception, such as RuntimeError('refused'), not {shortened(each)}")
    return dict(found)
