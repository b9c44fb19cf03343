"""Deadlines: the `timeout` of a stage, a pipeline or a run.

1. A scope with a timeout has a `Deadline` from when its layers are entered until it has ended. Those of a branch form a
   chain, with those of the branches around it.
2. When the first of a chain has passed, a step no longer begins in its scope, and whatever the branch waits for ends:
   the driver answers that request, once, with the `OutOfTime` of the deadline. That is a cancellation, not a failure:
   inside the scope, layers may clean up, and wait for that, but a retry does not try again.
3. Out of the scope comes a `UnitTimeout`. So each attempt that a layer around the scope asks for has its own time.
4. A scope that suspends the run notes the time that it has used: when it is resumed, it has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowdeco.errors import Bail, OutOfTime, Suspend, UnitTimeout

__all__ = ["Deadline"]


class Deadline:
    """The time at which a scope must have ended, by the clock of the run; `outer` is that of a scope around it.

    `owner` is the branch that has opened it, `expired` means that the driver, or a step, has been told.
    """

    __slots__ = ("_clock", "at", "expired", "message", "outer", "owner", "scope", "watched")

    def __init__(self, what: str, seconds: float, owner: Any, *, used: float = 0.0, scope: Any = None) -> None:
        self._clock: Callable[[], float] = owner.terms.clock
        self.at: float = self._clock() + seconds - used
        self.message = f"{what} took longer than its timeout of {seconds:g} s"
        self.owner = owner
        self.scope = scope
        self.outer: Deadline | None = owner.deadline
        self.expired = False
        self.watched: dict[Deadline, Any] | None = None  # the deadlines that a driver watches, this one included
        owner.live_by(self)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.at - self._clock()

    def first(self) -> Deadline | None:
        """Return the first that will expire, of this one and those around it."""
        found: Deadline | None = None
        each: Deadline | None = self
        while each is not None:
            if not each.expired and (found is None or each.at <= found.at):
                found = each
            each = each.outer
        return found

    def expire(self) -> OutOfTime:
        """Note that the time is up; return the answer to whatever its branch waits for."""
        self.expired = True
        return OutOfTime(self.message)

    def refusal(self) -> OutOfTime | None:
        """Return the error of a step that must not begin any more; None while there is time."""
        each: Deadline | None = self
        while each is not None:
            if each.expired or each.left() < 0:
                return each.expire()
            each = each.outer
        return None

    def sleep(self, sleep: Callable[[float], object], seconds: float) -> object:
        """Sleep, at most for the time that is left; then raise `OutOfTime`."""
        first = self.first()
        if first is None or seconds <= first.left():
            return sleep(seconds)
        sleep(max(0.0, first.left()))
        raise first.expire()

    def sleep_in_action(self, sleep: Callable[[float], object], seconds: float) -> object:
        """Sleep in an action, which may be under way after the time was up: then, do not begin."""
        refused = self.refusal()
        if refused is not None:
            raise refused
        return self.sleep(sleep, seconds)

    # Detached, in another process: the first deadline of the chain, with the time that was left when the call was sent.

    def __reduce__(self) -> tuple[Any, ...]:
        first = self.first() or self
        return _elsewhere, (first.message, first.left())

    def begin_elsewhere(self, clock: Callable[[], float]) -> None:
        """Have the time that is left count from here, by the clock of the process that it has been sent to."""
        self._clock = clock
        self.at += clock()

    def close(self, error: BaseException | None) -> BaseException | None:
        """Return how its scope ends, which has ended inside with this error; an interrupt is always passed on."""
        is_late = self.expired or self.left() < 0
        self.owner.live_by(self.outer)
        if self.watched is not None:
            self.watched.pop(self, None)
        if not is_late or not (error is None or isinstance(error, (Exception, OutOfTime, Bail, Suspend))):
            return error
        late = UnitTimeout(self.message)
        late.__cause__ = error if isinstance(error, Exception) else None
        return late


def _elsewhere(message: str, left: float) -> Deadline:
    deadline = Deadline.__new__(Deadline)
    deadline.message, deadline.at = message, left
    deadline.outer, deadline.expired = None, False
    return deadline
