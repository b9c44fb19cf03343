"""Branches side by side: which of their requests are under way, and which must no longer begin. It performs nothing.

All branches of all groups, however they nest, are tasks of one schedule. A task waits for the answer to a request (it
has a ticket), or for a group that it has forked. A driver takes the requests to `begin` and to `cancel`, and delivers
answers, until the schedule has `ended`.

1. A group has a `Conductor`. Its supply is a task as well, which hands out one branch at a time: the next one when the
   one before it has begun, fewer than `limit` are at work, and the conductor has room. Those that had begun before a
   resume come first, all of them.
2. A branch or a supply whose end the conductor finds decisive *stops* its group, and the groups inside it: no further
   branch or action begins there, and requests under way are cancelled where that is possible.
3. Before any task of a resumed group continues, all that had begun restore their history.
4. When the deadline of a scope has passed, whatever its branch waits for is ended in the same way.
5. At most `most` calls of actions are under way in all groups together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeAlias, cast

from flowdeco.engine.requests import (
    CAUGHT_UP,
    Await,
    Begin,
    Chore,
    Ended,
    Failure,
    Fork,
    Forked,
    Raised,
    Request,
    Walk,
    ended_by_another,
)
from flowdeco.errors import Bail, Suspend, is_exit

__all__ = ["Schedule", "Task"]


Evaluate: TypeAlias = Callable[[Any], Walk]  # `evaluation.evaluate`


class Task:
    """A branch at work, or (`branch` is None) the supply of a group.

    It waits for the answer to its `request`, which is performed in its `context` variables, and delivered with the `ticket`.
    Awaitables are awaited in the lane of its `server`: those of a supply where the branch of the group awaits.
    """

    __slots__ = (
        "branch", "context", "discards", "group", "inner", "lane", "overdue", "request", "send", "server", "ticket",
    )  # fmt: skip

    def __init__(self, branch: Any, walk: Walk, group: _Group, context: Context) -> None:
        self.branch = branch
        self.send = walk.send
        self.context = context
        self.group = group
        self.request: Any = None
        self.ticket: int | None = None  # None while nothing is under way
        self.inner: _Group | None = None  # it waits for these branches of its own
        self.lane: Any = None  # whatever a driver keeps for the branch until it ends
        self.server: Task | None = None  # another one that awaits for it
        self.discards = False  # nothing that its calls return counts any more
        self.overdue: Failure = None  # the answer to a request that is cancelled because its time is up


class _Group:
    """The branches of a `Fork`, and the task that waits for them; None for the run itself."""

    __slots__ = (
        "active", "catching_up", "conductor", "held_back", "interrupt", "is_parked", "parent", "stopped", "supply",
        "tasks",
    )  # fmt: skip

    def __init__(self, fork: Fork, parent: Task | None) -> None:
        self.conductor = conductor = fork.conductor
        self.parent = parent
        self.stopped: bool = parent is not None and cast("Forked", parent.branch).stopped
        self.interrupt: Failure = ended_by_another() if self.stopped else None
        self.tasks: dict[Task, None] = {}  # that have begun, and not ended
        self.held_back: dict[Task, None] = {}  # of these: had begun before the run was resumed, and do not continue yet
        self.active = 0  # the others
        self.catching_up = int(conductor.must_catch_up)  # the supply and tasks that have not restored their history
        self.is_parked = False  # the supply waits until another branch is wanted
        context = copy_context() if parent is None else parent.context
        self.supply: Task | None = Task(None, conductor.supply(), self, context)
        if parent is not None:
            self.supply.server = parent.server or parent


class Schedule:
    """The branches of one `Fork`, and of all branches that they fork; `ended` is the answer, once there is one.

    `limited` are tasks that wait for something while a deadline counts.
    """

    def __init__(self, fork: Fork, tickets: Iterator[int], evaluate: Evaluate, most: int | None = None) -> None:
        self.begin: list[Task] = []
        self.cancel: list[int] = []
        self.limited: list[Task] = []
        self.left: list[Any] = []  # the lanes of tasks that have ended
        self.ended: Ended | None = None
        self._tickets = tickets
        self._evaluate = evaluate
        self._most = most
        self._calls = 0  # under way, if there is a limit to them
        self._queued: deque[Task] = deque()  # with calls beyond it
        self._under_way: dict[int, Task] = {}
        self._ready: deque[Callable[[], None]] = deque()  # steps of tasks, and what may lead to others
        self._root = self._opened(fork, None)
        self._work()

    def deliver(self, ticket: int, answer: Any) -> None:
        """Take the answer to a request that was to begin."""
        task = self._under_way.pop(ticket)
        task.ticket = None
        if self._most is not None and _is_call(task.request):
            self._call_ended()
        if task.discards and _is_call(task.request) and not _is_interrupt(answer):
            answer = Raised(ended_by_another())
        if task.overdue is not None:
            if _is_cancelled(answer):
                answer = Raised(task.overdue)
            task.overdue = None
        self._step(task, answer)
        if self._ready:
            self._work()

    def task(self, ticket: int) -> Task:
        """Return the task in whose lane the request with this ticket is awaited."""
        task = self._under_way[ticket]
        return task.server or task

    def interrupt(self, error: BaseException, task: Task | None = None) -> bool:
        """End everything, or the group that a task waits for, from outside; return False if it is ending already."""
        group = self._root if task is None else task.inner
        if group is None or group.interrupt is not None:
            return False
        group.interrupt = error
        self._stop(group)
        self._work()
        return True

    def expire(self, error: BaseException, task: Task | None) -> None:
        """End whatever a task waits for, because its time is up; a call that cannot be cancelled ends by itself."""
        if task is None or task.inner is not None:
            self.interrupt(error, task)
        elif task.ticket is not None:
            task.overdue = error
            self._withdraw(task.ticket)
            self._work()

    def _work(self) -> None:
        while self._ready:
            self._ready.popleft()()

    def _opened(self, fork: Fork, parent: Task | None) -> _Group:
        group = _Group(fork, parent)
        if parent is not None:
            parent.inner = group
        if group.stopped and not group.conductor.is_restoring:
            group.supply = None
            self._proceed(group)
        else:
            self._ready.appendleft(partial(self._step, cast("Task", group.supply), None))
        return group

    def _one_caught_up(self, group: _Group) -> None:
        """Continue once all tasks of a group that had begun have restored their history, or have ended in it."""
        group.catching_up -= 1
        while not group.catching_up:
            parent = group.parent
            if parent is None or not parent.group.catching_up:
                self._proceed(group)
                return
            group = parent.group
            group.catching_up -= 1

    def _proceed(self, group: _Group) -> None:
        """Have as many tasks of a group continue as its limit allows, or end it if none is left."""
        ready: list[Callable[[], None]] = []
        limit = group.conductor.limit
        while group.held_back and group.active < limit and not group.catching_up:
            task = next(iter(group.held_back))
            del group.held_back[task]
            group.active += 1
            inner = task.inner
            ready.append(partial(self._step, task, None) if inner is None else partial(self._proceed, inner))
        supply = group.supply
        if supply is None:
            if not (group.active or group.held_back):
                if group.parent is None:
                    self.ended = Ended(group.interrupt)
                else:
                    group.parent.inner = None
                    ready.append(partial(self._step, group.parent, Ended(group.interrupt)))
        elif (wanted := self._answer_to_supply(group)) is not None:
            ready.append(partial(self._step, supply, wanted))
        self._ready.extendleft(reversed(ready))

    def _ask_supply(self, group: _Group) -> None:
        """See whether the supply of a group continues."""
        wanted = self._answer_to_supply(group)
        if wanted is not None:
            self._step(cast("Task", group.supply), wanted)

    def _answer_to_supply(self, group: _Group) -> bool | None:
        """Have a parked supply continue: return whether it is to yield another branch, or no more; None for not yet."""
        conductor, wanted = group.conductor, False
        if not group.is_parked:
            return None
        if conductor.is_restoring:
            wanted = True
        elif not group.stopped and conductor.is_open:
            if not (conductor.has_room and group.active < conductor.limit):
                return None
            wanted = True
        group.is_parked = False
        return wanted

    def _begin(self, group: _Group, branch: Forked) -> None:
        """Begin a branch that was supplied, and then continue the supply."""
        group.is_parked = True
        self._ready.appendleft(partial(self._ask_supply, group))
        if group.stopped:
            branch.stop()
            if not group.conductor.is_restoring:
                return
        # A variable set in a branch is seen in all of it, and only there; all see those of the branch that forked them.
        context = copy_context() if group.parent is None else group.parent.context.copy()
        task = Task(branch, self._evaluate(branch), group, context)
        group.tasks[task] = None
        if group.catching_up:
            group.catching_up += 1
            group.held_back[task] = None
        else:
            group.active += 1
        self._step(task, None)

    def _step(self, task: Task, answer: Any) -> None:
        """Send a task its answer, and take its next request."""
        while True:
            request: Request | None
            failure: Failure = None
            try:
                request = task.context.run(task.send, answer)
            except StopIteration as end:
                request, failure = None, end.value
            if request is None:  # here, so that what merging raises has no `StopIteration` as its context
                self._task_ended(task, failure)
                return
            if type(request) is tuple:
                if isinstance(request[0], Chore) or not task.branch.stopped:
                    break
                answer = Raised(ended_by_another())
                continue
            if type(request) is Begin:
                self._begin(task.group, request.branch)
                return
            if request is CAUGHT_UP:  # answered by `_proceed`, once nothing in the group is catching up
                if not task.group.catching_up:
                    answer = None
                    continue
                if task.branch is None:
                    task.group.is_parked = True
                self._one_caught_up(task.group)
                return
            break
        if task.branch is not None and task.branch.deadline is not None:
            self.limited.append(task)
        if type(request) is Fork:
            self._opened(request, task)
            return
        task.ticket, task.request = next(self._tickets), request
        self._under_way[task.ticket] = task
        if self._most is not None and _is_call(request):
            if self._calls == self._most:
                self._queued.append(task)
                return
            self._calls += 1
        self.begin.append(task)

    def _call_ended(self) -> None:
        if self._queued:
            self.begin.append(self._queued.popleft())
        else:
            self._calls -= 1

    def _task_ended(self, task: Task, failure: Failure) -> None:
        group = task.group
        if task.lane is not None:
            self.left.append(task.lane)
        if task.branch is None:
            group.supply = None
            stops = failure is not None and group.conductor.ended(None, failure)
        else:
            del group.tasks[task]
            stops = group.conductor.ended(task.branch, failure)
        if stops and not group.stopped:
            self._stop(group)
        if task in group.held_back:
            del group.held_back[task]
            self._one_caught_up(group)
        elif task.branch is None and group.catching_up:
            self._one_caught_up(group)
        else:
            group.active -= task.branch is not None
            if group.is_parked and not group.held_back:
                self._ready.appendleft(partial(self._ask_supply, group))
            elif group.held_back or not group.active:
                self._proceed(group)

    def _stop(self, group: _Group) -> None:
        discards = group.conductor.is_enough
        groups = [group]
        while groups:
            stopped = groups.pop()
            stopped.stopped = True
            if stopped is not group:
                stopped.interrupt = stopped.interrupt or ended_by_another()
            for task in stopped.tasks:
                task.discards |= discards
                if task.branch.stopped:
                    continue
                task.branch.stop()
                if task.inner is not None:
                    groups.append(task.inner)
                elif task.ticket is not None:
                    self._withdraw(task.ticket)
            supply = stopped.supply  # if parked, it is told to end as the next branch ends (`_task_ended`)
            if supply is not None and supply.ticket is not None:
                self._withdraw(supply.ticket)

    def _withdraw(self, ticket: int) -> None:
        """Answer a call that the driver has not begun yet; have anything else that is under way cancelled."""
        for waiting in (self.begin, self._queued):
            for task in waiting:
                if task.ticket == ticket and _is_call(task.request):
                    waiting.remove(task)
                    del self._under_way[ticket]
                    task.ticket = None
                    if isinstance(task.request, Await):
                        task.request.discard()
                    if self._most is not None and waiting is self.begin:
                        self._call_ended()
                    self._ready.append(partial(self._step, task, Raised(task.overdue or ended_by_another())))
                    task.overdue = None
                    return
        self.cancel.append(ticket)


def _is_call(request: Any) -> bool:
    """Whether this is the call of an action, or awaits what one has returned."""
    if type(request) is tuple:
        return not isinstance(request[0], Chore)
    return isinstance(request, Await) and bool(request.action)


def _is_cancelled(answer: Any) -> bool:
    return (
        type(answer) is Raised
        and not isinstance(answer.error, (Exception, Bail, Suspend))
        and not is_exit(answer.error)
    )


def _is_interrupt(answer: Any) -> bool:
    return type(answer) is Raised and is_exit(answer.error)
