"""What evaluation asks of a driver, and what it is sent back: every way out of the core is in this file.

A call of a function is the plain tuple `(step, args, kwargs)`, because it is what a run mostly consists of; everything
else is one of the classes below. Whatever was asked, the answer is the value that came of it, or `Raised`: what a
user's function raises is handed over as a value, so that a `StopIteration` of theirs never ends the evaluation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from flowdeco.errors import MiddlewareError

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import Context

    from flowdeco.model.wiring import Step

__all__ = [
    "CAUGHT_UP",
    "Await",
    "Begun",
    "Chore",
    "Failure",
    "FunctionCall",
    "Raised",
    "Request",
    "Save",
    "Sleep",
    "Wait",
    "Walk",
]


class Raised:
    """The answer to a request that ended with an exception."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Sleep:
    """What a middleware yields to wait, in seconds: `time.sleep` in a sync run, `asyncio.sleep` in an async one."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise MiddlewareError(f"Sleep takes a number of seconds that is not negative, not {seconds!r}")
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"Sleep({self.seconds!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sleep) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return hash((Sleep, self.seconds))


class Await:
    """Await this in the run's event loop, for at most so many seconds."""

    __slots__ = ("action", "awaitable", "timeout")

    def __init__(self, awaitable: Awaitable[Any], timeout: float | None = None, action: str = "") -> None:
        self.awaitable = awaitable
        self.timeout = timeout
        self.action = action


class Chore(NamedTuple):
    """A call that is not of an action, in the place of its step: pulling a stream, running a generator to its end."""

    function: Any
    name: str
    timeout: float | None = None


class Save:
    """Write to the journal: I/O that must be over before the run goes on, and must not hold up an event loop."""

    __slots__ = ("args", "write")

    def __init__(self, write: Callable[..., None], *args: Any) -> None:
        self.write = write
        self.args = args


class Wait:
    """Begin these, cancel those, and wait until something that is under way is over.

    What is begun has a ticket, and the context variables of its branch. The answer is a list of `(ticket, answer)`; the
    ticket None stands for the run itself, which is to end.
    """

    __slots__ = ("begin", "cancel")

    def __init__(self, begin: list[Begun], cancel: list[int]) -> None:
        self.begin = begin
        self.cancel = cancel


# What a branch of a resumed run says to its group before it goes on: it has restored its past.
CAUGHT_UP: Final = Wait([], [])


FunctionCall: TypeAlias = "tuple[Step | Chore, Sequence[Any], Mapping[str, Any] | None]"
Request: TypeAlias = "FunctionCall | Sleep | Await | Save | Wait"
Begun: TypeAlias = "tuple[int, Request, Context]"

Failure: TypeAlias = "BaseException | None"
Walk: TypeAlias = "Generator[Request, Any, Failure]"  # what asks for all this, and comes to an end
