"""Branches side by side: what begins, what happens to the others when one ends badly, and the merge (L9).

A branch is a walk, a generator of requests, as the run is. A `Crew` drives the walks of a group and passes their
requests on together: a `Wait` says what to begin and what to cancel, and is answered with what is over by now. A group
inside a branch yields `Wait` as well, so groups nest without knowing of each other, and none ever holds a worker.

When a branch ends with a failure or a `Bail`, the group *stops*: no branch and no action begins any more, what is under
way is cancelled where that is possible (what is awaited) and waited for where it is not (a call in a thread). A
`Suspend` lets the other branches finish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextvars import copy_context
from functools import reduce
from typing import Any, TypeAlias

from flowdeco.engine.requests import CAUGHT_UP, Begun, Chore, Failure, Raised, Request, Wait, Walk
from flowdeco.errors import WAITING, Bail, Cancelled, Suspend, WriteConflictError
from flowdeco.model.definitions import Parallel
from flowdeco.model.store import NOTHING, Delta, same

__all__ = ["Crew", "ended_by_another", "merged"]

Answers: TypeAlias = "list[tuple[int | None, Any]]"


class _Member:
    """A branch at work."""

    __slots__ = ("begun", "context", "error", "grouped", "send", "told")

    def __init__(self, walk: Walk) -> None:
        self.send = walk.send
        self.context = copy_context()  # what is set in a branch is seen in that branch only, in all of it
        self.error: Failure = None
        self.begun = False  # before the run was resumed
        self.grouped = False  # it waits as a group: for the answers to several requests
        self.told = False  # that group knows that it must stop


class Crew:
    """The branches of a group at work; when `work` is over, `verdict` says what came of them."""

    def __init__(
        self, walks: Sequence[Walk], limit: int | None, tickets: Iterator[int], stop: Callable[[], None]
    ) -> None:
        self.members = [_Member(walk) for walk in walks]
        self._waiting = deque(self.members)
        self._limit = limit or len(walks)
        self._tickets = tickets
        self._tell_branches = stop
        self._owners: dict[int, _Member] = {}
        self._begin: list[Begun] = []
        self._cancel: list[int] = []
        self._active = 0
        self._interrupt: Failure = None
        self._stopped = False
        self._ended_by: _Member | None = None

    def catch_up(self, members: Iterable[_Member]) -> Generator[Request, Any, bool]:
        """Let these branches of a resumed run restore their past, one by one, before any goes on or stops the others.

        Gives whether one of them has something left to do.
        """
        begun: list[_Member] = []
        for member in members:
            self._waiting.remove(member)
            if (yield from self._caught_up(member)):
                begun.append(member)
        self._waiting.extendleft(reversed(begun))
        return bool(begun)

    def _caught_up(self, member: _Member) -> Generator[Request, Any, bool]:
        answer = None
        while True:
            try:
                request = member.context.run(member.send, answer)
            except StopIteration as end:
                member.error = end.value
                if member.error is not None and not isinstance(member.error, Suspend):
                    self._ended_by = self._ended_by or member
                return False
            if request is CAUGHT_UP:
                member.begun = True
                return True
            answer = yield request

    def work(self) -> Generator[Wait, Answers, None]:
        """Run the branches until all that began are over."""
        if self._ended_by is not None:
            self._stop()
        while True:
            while self._waiting and self._active < self._limit and (not self._stopped or self._waiting[0].begun):
                self._active += 1
                self._resume(self._waiting.popleft(), None)
            if not self._active:
                return
            begin, cancel = self._begin, self._cancel
            self._begin, self._cancel = [], []
            answers: Any = yield Wait(begin, cancel)
            if type(answers) is Raised:  # Ctrl-C before the driver had looked at it
                self._begin, self._cancel = begin, cancel
                answers = [(None, answers)]
            self._deliver(answers)

    def _deliver(self, answers: Answers) -> None:
        together: dict[_Member, Answers] = {}
        for ticket, answer in answers:
            if ticket is None:
                self._interrupt = answer.error
                self._stop()
                continue
            member = self._owners.pop(ticket)
            if member.grouped:
                together.setdefault(member, []).append((ticket, answer))
            else:
                self._resume(member, answer)
        for member, several in together.items():
            self._resume(member, several)

    def _resume(self, member: _Member, answer: Any) -> None:
        """Send a branch its answer, and take its next request."""
        while True:
            try:
                request = member.context.run(member.send, answer)
            except StopIteration as end:
                self._active -= 1
                member.error = end.value
                if member.error is not None and not isinstance(member.error, Suspend) and not self._stopped:
                    self._ended_by = member
                    self._stop()
                return
            member.grouped = type(request) is Wait
            if type(request) is Wait:
                refused = self._take(member, request)
                if not (self._stopped and not member.told):
                    return
                member.told = True
                answer = [*((ticket, _refusal()) for ticket in refused), (None, _refusal())]
            elif self._stopped and _is_action(request):
                answer = _refusal()
            else:
                ticket = next(self._tickets)
                self._owners[ticket] = member
                self._begin.append((ticket, request, member.context))
                return

    def _take(self, member: _Member, request: Wait) -> list[int]:
        """Pass on what a group inside a branch asks for; return the tickets of what must not begin any more."""
        refused: list[int] = []
        for begun in request.begin:
            ticket, wanted, _ = begun
            if self._stopped and _is_action(wanted):
                refused.append(ticket)
            else:
                self._owners[ticket] = member
                self._begin.append(begun)
        self._cancel.extend(request.cancel)
        return refused

    def _stop(self) -> None:
        """Begin nothing more, and cancel what can be cancelled."""
        if self._stopped:
            return
        self._stopped = True
        self._tell_branches()
        withdrawn = dict.fromkeys(ticket for ticket, request, _ in self._begin if _is_action(request))
        self._begin = [begun for begun in self._begin if not _is_action(begun[1])]
        groups = dict.fromkeys(owner for owner in self._owners.values() if owner.grouped)
        self._cancel.extend(
            ticket for ticket, owner in self._owners.items() if owner not in groups and ticket not in withdrawn
        )
        self._deliver([(ticket, _refusal()) for ticket in withdrawn if self._owners[ticket] not in groups])
        for member in groups:
            member.told = True
            mine = [ticket for ticket in withdrawn if self._owners.get(ticket) is member]
            for ticket in mine:
                del self._owners[ticket]
            self._resume(member, [*((ticket, _refusal()) for ticket in mine), (None, _refusal())])

    def verdict(self, group: Parallel, cancels: Callable[[BaseException], bool]) -> Failure:
        """Return how the group ended: None, a failure (or the group of them), a signal."""
        interrupt = self._interrupt
        if interrupt is not None and not isinstance(interrupt, Cancelled):
            return interrupt
        ended = [member for member in self.members if member.error is not None]
        failures = [
            member.error
            for member in ended
            if member.error is not None
            and not isinstance(member.error, (Bail, Suspend))
            and (member is self._ended_by or not cancels(member.error))  # a cancellation we asked for is no failure
        ]
        failures = list({id(error): error for error in failures}.values())  # several may end with one, of the journal
        if len(failures) > 1:
            return BaseExceptionGroup(f"{len(failures)} branches of the parallel group {group.name!r} failed", failures)
        if failures:
            return failures[0]
        if interrupt is not None:
            return interrupt
        bail = next((member.error for member in ended if isinstance(member.error, Bail)), None)
        return bail or _all_of([member.error for member in ended if isinstance(member.error, Suspend)])


def _all_of(suspended: list[Suspend]) -> Suspend | None:
    """Return what says all that these wait for; None for none."""
    if len({each.reason for each in suspended}) < 2:
        return suspended[0] if suspended else None
    # That of a group inside may name several.
    reasons = [reason for each in suspended for reason in each.reason.split("; ") if reason]
    waits = [reason.removeprefix(WAITING).split(", ") for reason in reasons if reason.startswith(WAITING)]
    others = dict.fromkeys(reason for reason in reasons if not reason.startswith(WAITING))
    keys = ", ".join(dict.fromkeys(key for several in waits for key in several))
    return Suspend("; ".join([WAITING + keys, *others] if keys else others))


def ended_by_another() -> Cancelled:
    """Return the error of what another branch has ended: one for each, since notes and causes are written to it."""
    return Cancelled("the group has been ended by another branch")


def _refusal() -> Raised:
    return Raised(ended_by_another())


def _is_action(request: Request) -> bool:
    return type(request) is tuple and not isinstance(request[0], Chore)


def merged(group: Parallel, deltas: list[Delta]) -> Delta:
    """Return what all branches wrote, as one; raises `WriteConflictError` where they disagree."""
    writers: dict[str, list[int]] = {}
    for number, delta in enumerate(deltas):
        for part in delta if delta is not NOTHING else ():
            for key in part:
                writers.setdefault(key, []).append(number)
    whole = Delta({}, [], {})
    for key, numbers in writers.items():
        written = [deltas[number] for number in numbers]
        if all(key in delta.appends for delta in written):
            whole.appends[key] = [item for delta in written for item in delta.appends[key]]
        elif all(key in delta.deletes for delta in written):
            whole.deletes.append(key)
        elif all(key in delta.puts for delta in written) and _agree(group, key, written):
            values = [delta.puts[key] for delta in written]
            whole.puts[key] = reduce(group.merge[key], values) if key in group.merge else values[0]
        else:
            raise _conflict(group, key, numbers)
    return whole


def _agree(group: Parallel, key: str, written: list[Delta]) -> bool:
    return key in group.merge or all(same(written[0].puts[key], delta.puts[key]) for delta in written[1:])


def _conflict(group: Parallel, key: str, numbers: list[int]) -> WriteConflictError:
    branches = " and ".join(f"{number} ({group.units[number].name!r})" for number in numbers)
    return WriteConflictError(
        f"the branches {branches} of the parallel group {group.name!r} wrote different values to the key {key!r}. "
        f"Write to different keys, hand in results with collect=, or fold them: "
        f"parallel(..., merge={{{key!r}: function}})"
    )
