"""The requests that evaluation makes of a driver, and their answers: the only exits of the engine.

A call of a function is the plain tuple `(step, args, kwargs)`, because a run consists mostly of calls; everything else
is one of the classes below. The answer to any request is its result, or `Raised`: an exception of a user's function is
passed on as a value, so that a user's `StopIteration` never ends the evaluation.

An interrupt (Ctrl-C, the cancellation of a task) is such an answer too, and arrives in no other way: a driver lets it
in while user code runs (`Gate`), or between two requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from flowdeco.errors import Cancelled, MiddlewareError, meant_by
from flowdeco.model.options import Duration, seconds_of
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator

    from flowdeco.engine.deadlines import Deadline
    from flowdeco.model.steps import Step

__all__ = [
    "CAUGHT_UP",
    "Await",
    "Awaited",
    "Begin",
    "Chore",
    "Conductor",
    "Deferred",
    "Ended",
    "Failure",
    "Fork",
    "Forked",
    "FunctionCall",
    "Gate",
    "Raised",
    "Request",
    "Save",
    "Sleep",
    "Walk",
    "ended_by_another",
]


Failure: TypeAlias = "BaseException | None"


class Raised:
    """The answer to a request that ended with an exception; a group of nothing but signals counts as the signal."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = meant_by(error)


class Gate:
    """Open while user code runs: only then may a driver raise an interrupt, and it closes the gate as it does.

    One that arrives while the gate is closed is `pending`, and is the answer to the next request. The `deadline`, if any,
    is that of the run's own branch: a driver answers the request that is under way then.
    """

    __slots__ = ("cancelled", "deadline", "open", "pending", "sleepers", "wake")

    def __init__(self) -> None:
        self.open = False
        self.pending: BaseException | None = None
        self.cancelled: BaseException | None = None  # the interrupt by which the run was cancelled from outside
        self.deadline: Deadline | None = None
        self.wake: Callable[[], object] | None = None  # has a waiting driver look for an interrupt, from any thread
        self.sleepers: list[Callable[[], object]] = []  # the same for sleeping actions and layers, in any threads

    def interrupt(self, error: BaseException) -> bool:
        """Cancel the run by the answer to the next request; return False if that will be another interrupt."""
        self.cancelled = error
        return self.arrive(error)

    def arrive(self, error: BaseException) -> bool:
        """Have this answer the next request, from any thread; return False if that will be another interrupt."""
        if self.pending is None:
            self.pending = error
        heard, wake = self.pending is error, self.wake
        for each in [*self.sleepers, *([] if wake is None else [wake])]:
            each()
        return heard

    def raise_cancelled(self) -> None:
        """Raise the interrupt by which the run was cancelled, if it was, in an action that asks."""
        if self.cancelled is not None:
            self.drop_late()
            raise self.cancelled

    def drop_late(self) -> None:
        """Forget the interrupt that the run was cancelled by, which has ended."""
        if self.pending is self.cancelled:
            self.pending = None


class Sleep:
    """A pause in seconds that a middleware yields: `time.sleep` in a sync run, `asyncio.sleep` in an async one."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: Duration) -> None:
        self.seconds = seconds_of(seconds, "Sleep takes", MiddlewareError)

    def __repr__(self) -> str:
        return f"Sleep({self.seconds!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sleep) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return hash((Sleep, self.seconds))


class Await:
    """Await this in the run's event loop, for at most `timeout` seconds; `action` is the name of its action."""

    __slots__ = ("action", "awaitable", "timeout")

    def __init__(self, awaitable: Awaitable[Any], timeout: float | None = None, action: str = "") -> None:
        self.awaitable = awaitable
        self.timeout = timeout
        self.action = action

    def discard(self) -> None:
        """Close an awaitable that will not be awaited."""
        close = getattr(self.awaitable, "close", None)
        if close is not None:
            close()


class Deferred:
    """An awaitable that is made when it is awaited.

    A step of an asynchronous generator that is made and not awaited is a warning, and closing it may close the generator.
    """

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._function = function
        self._args = args

    def __await__(self) -> Any:
        awaitable = self._function(*self._args)
        begin = getattr(awaitable, "__await__", None)
        return awaitable if begin is None else begin()  # a coroutine may be a decorated generator


class Awaited(NamedTuple):
    """The answer to the call of a coroutine function that the driver has awaited: it is not awaited again."""

    value: Any


class Chore(NamedTuple):
    """A call that is not an action, in place of a step: pulling a stream, running a generator to its end."""

    function: Any
    name: str
    timeout: float | None = None
    is_async: bool = False


class Save:
    """Write to the journal: I/O that must end before the run continues, and must not hold up an event loop."""

    __slots__ = ("args", "write")

    def __init__(self, write: Callable[..., None], *args: Any) -> None:
        self.write = write
        self.args = args


class Forked(Protocol):
    """A branch, as its schedule sees it."""

    stopped: bool  # it must begin nothing more
    deadline: Deadline | None  # of its innermost scope that has one

    def stop(self) -> None:
        """Begin nothing more."""


class Conductor(Protocol):
    """Decides which branches a fork has, and when it has had enough of them; its schedule asks, and reports."""

    limit: int  # of branches at work
    is_restoring: bool  # the next branches had begun before the run was resumed, or their group had ended
    must_catch_up: bool  # its group had not ended: the supply and its branches say when they are past their history
    has_room: bool  # another branch may begin, as far as those are concerned that wait to be merged
    is_open: bool  # more branches are wanted

    @property
    def is_enough(self) -> bool:
        """Whether the branches that count have completed: the calls of others count no more."""
        ...

    def supply(self) -> Walk:
        """Yield requests, and each branch in a `Begin`; after that, continue if the answer is true, or else end."""
        ...

    def ended(self, branch: Forked | None, failure: Failure) -> bool:
        """Note that a branch has ended, or the supply (None) failed; return whether this ends the group."""
        ...


class Fork:
    """Evaluate branches side by side; the answer is `Ended`.

    A driver has a `Schedule` do it, which evaluates each branch as the run itself is (`evaluation.evaluate`).
    """

    __slots__ = ("conductor",)

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor


class Begin:
    """Begin this branch; the answer comes when another one is wanted (True), or no more (False)."""

    __slots__ = ("branch",)

    def __init__(self, branch: Forked) -> None:
        self.branch = branch


class Ended(NamedTuple):
    """The end of a `Fork`, with the interrupt that ended it."""

    interrupt: Failure


class _CaughtUp:
    """The request of a resumed branch or supply that has restored its history.

    It is answered when all in its group have; False tells a supply that no more branches are wanted.
    """

    __slots__ = ()


CAUGHT_UP: Final = _CaughtUp()

FunctionCall: TypeAlias = "tuple[Step | Chore, Sequence[Any], Mapping[str, Any] | None]"
Request: TypeAlias = "FunctionCall | Sleep | Await | Save | Fork | Begin | _CaughtUp"

Walk: TypeAlias = "Generator[Request, Any, Failure]"  # yields requests, and returns the failure


def ended_by_another() -> Cancelled:
    """Return the error of a step that another branch has ended: a new one for each, since notes and causes are added."""
    return Cancelled("the group has been ended by another branch")
