"""All exceptions of flowdeco, in one hierarchy ordered by who is at fault.

A `DefinitionError` is the fault of a definition and is raised before a run, a `RunError` is caused by an
event in one. An exception of a user's own function is never wrapped: it propagates as it is, with a note.

`Bail` and `Suspend` are signals, not errors. They derive from `BaseException`, so that no `except Exception` and no
retry swallows them.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

__all__ = [
    "ActionTimeout",
    "Bail",
    "Cancelled",
    "CodeChangedError",
    "ContextEndedError",
    "DefinitionError",
    "EmptyStageError",
    "ExecutorError",
    "FlowdecoError",
    "JournalError",
    "MiddlewareError",
    "MissingInputError",
    "OutOfTime",
    "ReturnValueError",
    "RunBusyError",
    "RunError",
    "RunExistsError",
    "RunNotFoundError",
    "SerializationError",
    "ShippingError",
    "StoreKeyError",
    "StoreTypeError",
    "Suspend",
    "UnitTimeout",
    "UnreferencedError",
    "Wait",
    "WaitTimeout",
    "WiringError",
    "WorkerDiedError",
    "WriteConflictError",
]


class FlowdecoError(Exception):
    """The base class of all flowdeco errors. A message shows no addresses, whatever values it shows."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_addresses(each) if isinstance(each, str) else each for each in args))


class DefinitionError(FlowdecoError, TypeError):
    """A definition is wrong; also a `TypeError`, like a wrong call of a plain function."""


class EmptyStageError(DefinitionError):
    """The body of a `@stage` function evaluated no action."""


class UnreferencedError(DefinitionError):
    """A definition must be pickled, but it, or a value in it, cannot be; or the stand-in for such a one was called."""


class Problem(NamedTuple):
    """A parameter that nothing supplies (`certain`), or that possibly nothing supplies, or with another type."""

    stage: str
    action: str
    parameter: str
    key: str
    certain: bool
    message: str


class WiringError(DefinitionError):
    """Nothing can supply some parameters; `problems` lists them."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class RunError(FlowdecoError):
    """A run failed for a reason other than the user's own exception."""


class MissingInputError(RunError, LookupError):
    """An action needs a value that nothing supplied."""


class ReturnValueError(RunError, TypeError):
    """An action returned a value without meaning: a template, a mix of units and data, a sequence of the wrong length."""


class MiddlewareError(RunError):
    """A middleware broke the protocol: it yielded nonsense, or yielded again after a success."""


class StoreKeyError(RunError, KeyError):
    """The store does not have this key."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreTypeError(RunError, TypeError):
    """A value or a key does not have the declared type."""


class WriteConflictError(RunError):
    """Two branches of a parallel group wrote different values to one key."""


class ContextEndedError(RunError):
    """A `ctx`, or a middleware's call, was used after its target had ended, and could no longer take effect."""

    @classmethod
    def of(cls, action: str, use: str) -> ContextEndedError:
        """Return the error of an action's context for this use of it."""
        return cls(
            f"{use} after action {action!r} has ended would have no effect: its ctx can be used only while it runs. Wait in "
            f"the action for the threads and tasks that it starts (a `with` block of an executor, a TaskGroup), or return "
            f"what they need, and do the rest in a later action"
        )


class ActionTimeout(RunError, TimeoutError):
    """An attempt of an action took longer than its `timeout`."""


class UnitTimeout(RunError, TimeoutError):
    """A stage, a pipeline or a run took longer than its `timeout`; its cause is an error that resulted from that, if any."""


class WaitTimeout(RunError, TimeoutError):
    """A question was not answered within its `timeout`, and has no default."""


class ShippingError(RunError):
    """An action, an argument or a result cannot travel to another process or back; the message names the part."""


class ExecutorError(RunError, RuntimeError):
    """An executor accepts no calls, or dropped one: it was shut down, or is broken."""


class WorkerDiedError(ExecutorError):
    """A worker of an executor died while performing an action, or could not start."""


class JournalError(RunError):
    """A journal cannot be written or read, or it is damaged; the message describes the damage."""


class RunNotFoundError(JournalError, LookupError):
    """The journal has no run with that id."""


class RunExistsError(JournalError):
    """The journal already has a run with that id, which no process is working on."""


class RunBusyError(JournalError):
    """Another process is working on the run; the message names its host and pid."""


class CodeChangedError(JournalError):
    """The completed part of a run does not match the present code; `changes` lists the differences, one line each."""

    def __init__(self, message: str, changes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.changes = tuple(changes)

    @classmethod
    def listing(cls, run_id: str, changes: Iterable[str]) -> CodeChangedError:
        """Return the error that lists the changes since the run was interrupted."""
        lines = "\n".join(f"  - {change}" for change in changes)
        return cls(
            f"the definition has changed since run {run_id!r} was interrupted:\n{lines}\n"
            f"Resume with on_change='ignore' to continue all the same, or 'rerun' to run again from the first change",
            changes,
        )


class SerializationError(JournalError, TypeError):
    """A value cannot be written to the journal, or pickled with its run; the message has the path of the part."""


WAITING: Final = "waiting for "  # the beginning of the reason, if the run waits for an answer
SLEEPING: Final = "sleeping until "

# Kinds of waits, and the states of a question.
QUESTION: Final = "question"
SLEEP: Final = "sleep"
PAUSE: Final = "pause"
OVER: Final = "over"
USED: Final = "used"
CALLED: Final = "called"
OPEN: Final = "open"
ANSWERED: Final = "answered"
REFUSED: Final = "refused"  # answered by an exception
EXPIRED: Final = "expired"
FOUND: Final = "found"  # in the store

NOT_GIVEN: Final = -1  # the number of an answer that there is not
CONSUMED: Final = -2  # that of an input that was given in advance, and is in the store until it is consumed


class _Signal(BaseException):
    """A signal that an action raises to end its run without failing."""

    def __init__(self, reason: str = "") -> None:
        if not isinstance(reason, str):
            name = type(self).__name__
            raise TypeError(
                f'the reason of {name} is a string, and {shortened(reason)} is not one: write {name}("why"), '
                f"and put data into the store"
            )
        super().__init__(reason)
        self.reason = reason


class Bail(_Signal):
    """End the run now, successfully: its status is `bailed`, and the writes of the action are kept."""


class Wait(NamedTuple):
    """One wait of a step, as it is kept over resumes.

    A *question* is a wait for a `key`; `due` is its deadline, if it has one. Any other wait is a *sleep* until `due`, a
    *pause* before another attempt until then, a number of sleeps (`times`) that are *over*, the seconds of a timeout
    (`due`) that are *used*, or that an action was *called*, with the outcome of that call (`value`), after which its
    middleware waits. `who` is the layer that waits, counted from outside, or -1 for the action itself; around a run,
    the innermost is -2, the next one -3. `given` is
    the number of the answer among everything that the run was given, `since` the number of the first that may be the
    answer. `at` is the place of the step, if that is another step of the same atomic one.
    """

    kind: str
    due: float | None = None
    who: int = -1
    times: int = 0
    key: str = ""
    about: object = None
    type: str | None = None
    classes: tuple[Any, ...] | None = None
    asked: float = 0.0
    since: int = 0
    state: str = OPEN
    value: object = None
    given: int = NOT_GIVEN
    at: tuple[str, int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is a question that has no answer yet."""
        return self.kind == QUESTION and self.state == OPEN


class Suspend(_Signal):
    """Stop here until the run is resumed: the writes of the action are dropped, and it runs again on resume."""

    waits: tuple[Wait, ...] = ()  # that of the step, or those of all branches, in their order
    others: tuple[str, ...] = ()  # reasons of users, beside these

    @classmethod
    def until(cls, *waits: Wait, others: tuple[str, ...] = ()) -> Suspend:
        """Return the signal of a run that waits for these."""
        keys = ", ".join(dict.fromkeys(repr(wait.key) for wait in waits if wait.kind == QUESTION))
        dues = dict.fromkeys(
            f"{SLEEPING}{utc(cast('float', wait.due), up=True)}" for wait in waits if wait.kind != QUESTION
        )
        made = cls("; ".join([*([WAITING + keys] if keys else ()), *dues, *others]))
        made.waits, made.others = waits, others
        return made


def utc(seconds: float, *, up: bool = False) -> str:
    """Return a time in POSIX seconds as people read it: in UTC, wherever it is shown; rounded `up` for the end of a wait."""
    from datetime import UTC, datetime  # not loaded for runs that do not wait

    try:
        whole = -(-seconds // 1) if up else seconds // 1
        return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


class Cancelled(_Signal):
    """A run was cancelled from outside, by `durable.cancel`; or a branch, because another one ended their group."""

    of_run = False

    @classmethod
    def from_outside(cls, run_id: str) -> Cancelled:
        """Return the signal that ends a run."""
        made = cls(f"run {run_id!r} was cancelled by durable.cancel, or flowdeco cancel")
        made.of_run = True
        return made


class OutOfTime(Cancelled):
    """Inside a stage, pipeline or run whose `timeout` has passed: active work is cancelled, and nothing more begins."""


def meant_by(error: BaseException) -> BaseException:
    """Return the signal that an exception group consists of, or its KeyboardInterrupt; any other exception as it is.

    A task group wraps what its tasks raise. As in parallel groups, the first `Bail` counts, or all of `Suspend`
    together; alongside a real failure, the failure counts, and a KeyboardInterrupt alongside anything.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    members = members_of(cast("BaseException", error))
    raised = [each for each in members if not isinstance(each, BaseExceptionGroup)]
    interrupt = next((each for each in raised if isinstance(each, KeyboardInterrupt)), None)
    if interrupt is not None:
        return interrupt
    signals = [each for each in raised if isinstance(each, _Signal)]
    if len(signals) < len(raised):
        return cast("BaseException", error)
    bail = next((each for each in signals if isinstance(each, Bail)), None)
    return bail or all_of([each for each in signals if isinstance(each, Suspend)]) or signals[0]


def is_exit(error: BaseException | None) -> bool:
    """Whether this is to end the program: Ctrl-C, a `SystemExit`, or a group with one of them."""
    return any(isinstance(each, (KeyboardInterrupt, SystemExit)) for each in members_of(error))


def all_of(suspended: list[Suspend]) -> Suspend | None:
    """Return one signal that names everything these wait for; None if there are none."""
    if len(suspended) < 2:
        return suspended[0] if suspended else None
    waits = tuple(wait for each in suspended for wait in each.waits)
    others = (reason for each in suspended for reason in (each.others if each.waits else (each.reason,)))
    return Suspend.until(*waits, others=tuple(dict.fromkeys(reason for reason in others if reason)))


def message_of(error: BaseException) -> str:
    """Return the message of an exception, whatever its `__str__` does."""
    try:
        return str(error)
    except Exception as failure:
        return f"<its message cannot be read: {type(failure).__name__}>"


def cut(message: str, most: int = 4_000) -> str:
    """Return a message without the end of a very long one, and how much of it is missing."""
    rest = len(message) - most
    return message if rest <= 0 else f"{message[:most]}… ({rest:,} more characters)"


def frames_of_users(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Return the traceback with the frames of user code only: the way an action is called tells its author nothing."""
    kept: list[types.TracebackType] = []
    while traceback is not None:
        if not str(traceback.tb_frame.f_globals.get("__name__", "")).startswith("flowdeco."):
            kept.append(traceback)
        traceback = traceback.tb_next
    following: types.TracebackType | None = None
    for entry in reversed(kept):
        following = types.TracebackType(following, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return following


def told(error: BaseException | None) -> str:
    """Return type and message of an exception, all of its lines."""
    if error is None:
        return ""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def members_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and, for a group, everything in it, however deep."""
    waiting = [] if error is None else [error]
    while waiting:
        member = waiting.pop()
        yield member
        if isinstance(member, BaseExceptionGroup):
            waiting += reversed(cast("BaseExceptionGroup[BaseException]", member).exceptions)


def portable(error: BaseException, copied: Callable[[BaseException], Any]) -> BaseException:
    """Return an exception that can be copied in this way: itself, or else one that describes it."""
    try:
        if type(copied(error)) is type(error):
            return error
    except Exception:
        pass
    found: BaseException = RunError(told(error))
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        with suppress(RecursionError):  # groups in groups, without end
            found = BaseExceptionGroup(group.message, [portable(member, copied) for member in group.exceptions])
    for note in getattr(cast("Any", error), "__notes__", ()):
        found.add_note(note)
    return found


# Joiners and selectors of emoji: not printable by themselves, and harmless.
_HARMLESS: Final = frozenset("\u200c\u200d\ufe0e\ufe0f")


def printable(text: str) -> str:
    """Return a text in one line: control characters, and those that change the direction of text, are escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def without_addresses(text: str) -> str:
    """Return the repr of a value, or a text that has it, without the addresses of objects."""
    return _ADDRESS.sub("", text)


def shortened(value: object, limit: int = 60) -> str:
    """Return the repr of a value, in one line, without addresses and cut short, for use in a message."""
    try:
        text = without_addresses(repr(value))
    except Exception:  # of a user's `__repr__`, or of an integer with more digits than Python converts
        text = f"{value:#x}" if isinstance(value, int) else a_type(value)
    if "\n" in text:
        text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def a_type(value: object) -> str:
    """Return the name of the type of a value with its article: "an int", "a list"."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


_UNITS: Final = ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (60.0, 1.0, "s"))


def duration(seconds: float | None) -> str:
    """Return a duration with three digits: "0 µs", "1.24 ms", "12.3 s", "2 min 5 s", "3 h 20 min"."""
    if seconds is None:
        return ""
    for below, factor, unit in _UNITS:
        value = seconds * factor
        if seconds < below:
            digits = 0 if unit == "µs" or value >= 99.95 else 1 if value >= 9.995 else 2
            if value < 999.5 and not (unit == "s" and value >= 59.95):
                return f"{value:.{digits}f} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"


def cut_middle(text: str, width: int, dots: str = "…") -> str:
    """Return a name cut to a width in its middle: its beginning and its end distinguish it."""
    if len(text) <= width:
        return text
    kept = max(0, width - len(dots))
    return text[: kept - kept // 2] + dots[:width] + text[len(text) - kept // 2 :]


_LISTED: Final = 16  # names of what there is instead


def suggestion(wrong: str, known: Iterable[str], what: str = "There are", closeness: float = 0.6) -> str:
    """Return a sentence that names the likely corrections of `wrong`, or else the known names."""
    from difflib import get_close_matches

    names = sorted(set(known) - {wrong})
    if not names:
        return f"{what}: none."
    close = get_close_matches(wrong, names, n=3, cutoff=closeness)
    close = close or [name for name in names if name.lower() == wrong.lower()]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, names[:_LISTED]))
    return f"{what}: {shown}{', …' if len(names) > _LISTED else ''}."


_TAG: Final = "tag:"


def close_selectors(wrong: str, known: Iterable[str]) -> list[str]:
    """Return the likely corrections of a selector, the best one first.

    Tags are compared without their prefix, which would make all of them alike. Only if nothing of its kind is close, a
    selector without the prefix is compared with tags, and with actions alone; one with it is compared with names.
    """
    from difflib import get_close_matches

    prefix, colon, rest = wrong.partition(":")
    is_tag = bool(colon) and bool(get_close_matches(prefix.strip().lower(), [_TAG[:-1]]))
    meant = (rest if is_tag else wrong).strip().lower()
    tags, names, actions = dict[str, str](), dict[str, str](), dict[str, str]()
    for selector in sorted(set(known)):
        if selector.startswith(_TAG):
            tags[selector.removeprefix(_TAG).lower()] = selector
        else:
            names[selector.lower()] = selector
            actions.setdefault(selector.lower().rpartition("/")[2], selector)
    same, others = (tags, actions | names) if is_tag else (names, actions | tags)
    if meant in others and meant not in same:
        return [others[meant]]
    close = [(kind, each) for kind in (same, others) for each in get_close_matches(meant, kind, n=3)]
    return list(dict.fromkeys(kind[each] for kind, each in close if kind is close[0][0]))


def selector_suggestion(wrong: Collection[str], known: Iterable[str]) -> str:
    """Return a sentence for each selector that names its likely corrections, or else the known selectors."""
    known, found = set(known), list[str]()
    for selector in wrong:
        if close := close_selectors(selector, known):
            which = f" by {selector!r}" if len(wrong) > 1 else ""
            found.append(f"Did you mean {' or '.join(map(repr, close))}{which}?")
    return " ".join(found) or suggestion("", known)
