"""Branches side by side: which of their requests are under way, and which must no longer begin. It performs nothing.

All branches of all groups, however they nest, are tasks of one schedule. A task waits for the answer to a request (it
has a ticket), or for a group that it has forked. A driver takes the requests to `begin` and to `cancel`, and delivers
answers, until the schedule has `ended`.

1. At most `limit` tasks of a group are active; those that had begun before a resume come first.
2. A task that ends with a failure or a `Bail` *stops* its group, and the groups inside it: no further task or action
   begins there, and requests under way are cancelled where that is possible. A `Suspend` stops nothing.
3. Before any task of a resumed group continues, all that had begun restore their history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from typing import Any, NamedTuple, TypeAlias

from flowdeco.engine.requests import (
    CAUGHT_UP,
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
from flowdeco.errors import Suspend

__all__ = ["Begun", "Schedule", "Task"]


Evaluate: TypeAlias = Callable[[Any], Walk]  # `evaluation.evaluate`


class Begun(NamedTuple):
    """A request to be performed now, in the context variables of its branch; its answer is delivered with the ticket."""

    ticket: int
    request: Any
    context: Context
    task: Task


class Task:
    """A branch at work."""

    __slots__ = ("branch", "context", "failure", "group", "inner", "lane", "send", "ticket")

    def __init__(self, branch: Any, walk: Walk, group: _Group) -> None:
        self.branch: Forked = branch
        self.send = walk.send
        self.context = copy_context()  # a variable set in a branch is seen in all of it, and only there
        self.group = group
        self.ticket: int | None = None
        self.inner: _Group | None = None  # it waits for these branches of its own
        self.failure: Failure = None
        self.lane: Any = None  # whatever a driver keeps for the branch until it ends


class _Group:
    """The branches of a `Fork`, and the task that waits for them; None for the run itself."""

    __slots__ = ("active", "catching_up", "ended_by", "interrupt", "limit", "parent", "stopped", "tasks", "waiting")

    def __init__(self, fork: Fork, parent: Task | None, evaluate: Evaluate) -> None:
        self.parent = parent
        self.stopped: bool = parent is not None and parent.branch.stopped
        self.interrupt: Failure = ended_by_another() if self.stopped else None
        self.ended_by: int | None = None
        self.tasks = [Task(branch, evaluate(branch), self) for branch in fork.branches]
        for branch in fork.branches if self.stopped else ():
            branch.stopped = True
        self.waiting = deque(sorted(self.tasks, key=lambda task: not task.branch.begun))
        self.limit = fork.limit or len(fork.branches)
        self.active = 0
        self.catching_up = sum(branch.begun for branch in fork.branches)

    def answer(self) -> Ended:
        return Ended([task.failure for task in self.tasks], self.ended_by, self.interrupt)


class Schedule:
    """The branches of one `Fork`, and of all branches that they fork; `ended` is the answer, once there is one."""

    def __init__(self, fork: Fork, tickets: Iterator[int], evaluate: Evaluate) -> None:
        self.begin: list[Begun] = []
        self.cancel: list[int] = []
        self.left: list[Any] = []  # the lanes of tasks that have ended
        self.ended: Ended | None = None
        self._tickets = tickets
        self._evaluate = evaluate
        self._waiting: dict[int, Task] = {}
        self._ready: deque[tuple[Task, Any]] = deque()
        self._root = self._opened(fork, None)
        self._work()

    def deliver(self, ticket: int, answer: Any) -> None:
        """Take the answer to a request that was to begin."""
        task = self._waiting.pop(ticket)
        task.ticket = None
        self._ready.append((task, answer))
        self._work()

    def task(self, ticket: int) -> Task:
        """Return the task that waits for the answer with this ticket."""
        return self._waiting[ticket]

    def interrupt(self, error: BaseException, task: Task | None = None) -> bool:
        """End everything, or the group that a task waits for, from outside; return False if it is ending already."""
        group = self._root if task is None else task.inner
        if group is None or group.interrupt is not None:
            return False
        group.interrupt = error
        self._stop(group)
        self._work()
        return True

    def _work(self) -> None:
        while self._ready:
            self._step(*self._ready.popleft())

    def _opened(self, fork: Fork, parent: Task | None) -> _Group:
        if parent is None:
            group = _Group(fork, None, self._evaluate)
        else:  # the tasks see the context variables of the branch that forked them
            group = parent.inner = parent.context.run(_Group, fork, parent, self._evaluate)
        if group.catching_up:
            self._ready.extend((task, None) for task in group.tasks if task.branch.begun)
        else:
            self._caught_up(group)
        return group

    def _caught_up(self, group: _Group) -> None:
        """Continue once all tasks of a group that had begun have restored their history, or have ended in it."""
        parent = group.parent
        if parent is None or not parent.group.catching_up or not group.waiting:
            self._fill(group)
        else:
            self._one_caught_up(parent.group)

    def _one_caught_up(self, group: _Group) -> None:
        group.catching_up -= 1
        if not group.catching_up:
            self._caught_up(group)

    def _fill(self, group: _Group) -> None:
        """Start as many tasks of a group as its limit allows; a nested group begins before the branches after it."""
        self._ready.extendleft(reversed(self._next_of(group)))

    def _next_of(self, group: _Group) -> list[tuple[Task, Any]]:
        """Return the tasks that can continue now, each with its answer; if none is left, the group has ended."""
        ready: list[tuple[Task, Any]] = []
        while group.waiting and group.active < group.limit and (group.waiting[0].branch.begun or not group.stopped):
            task = group.waiting.popleft()
            group.active += 1
            ready += self._next_of(task.inner) if task.inner is not None else [(task, None)]
        if not group.active:
            if group.parent is None:
                self.ended = group.answer()
            else:
                group.parent.inner = None
                ready.append((group.parent, group.answer()))
        return ready

    def _step(self, task: Task, answer: Any) -> None:
        """Send a task its answer, and take its next request."""
        while True:
            try:
                request: Request = task.context.run(task.send, answer)
            except StopIteration as end:
                self._ended(task, end.value)
                return
            if request is CAUGHT_UP:
                if not task.group.catching_up:
                    answer = None
                    continue
                self._one_caught_up(task.group)
                return
            if isinstance(request, Fork):
                self._opened(request, task)
                return
            if not (task.branch.stopped and _is_action(request)):
                break
            answer = Raised(ended_by_another())
        task.ticket = next(self._tickets)
        self._waiting[task.ticket] = task
        self.begin.append(Begun(task.ticket, request, task.context, task))

    def _ended(self, task: Task, failure: Failure) -> None:
        group = task.group
        task.failure = failure
        if task.lane is not None:
            self.left.append(task.lane)
        if failure is not None and not isinstance(failure, Suspend) and not group.stopped:
            group.ended_by = group.tasks.index(task)
            self._stop(group)
        if group.catching_up:
            group.waiting.remove(task)
            self._one_caught_up(group)
        else:
            group.active -= 1
            self._fill(group)

    def _stop(self, group: _Group) -> None:
        groups = [group]
        while groups:
            stopped = groups.pop()
            stopped.stopped = True
            if stopped is not group:
                stopped.interrupt = stopped.interrupt or ended_by_another()
            for task in stopped.tasks:
                if task.branch.stopped:
                    continue
                task.branch.stopped = True
                if task.inner is not None:
                    groups.append(task.inner)
                elif task.ticket is not None:
                    self._withdraw(task.ticket)

    def _withdraw(self, ticket: int) -> None:
        """Answer an action that the driver has not begun yet; have anything else that is under way cancelled."""
        for index, begun in enumerate(self.begin):
            if begun.ticket == ticket and _is_action(begun.request):
                del self.begin[index]
                task = self._waiting.pop(ticket)
                task.ticket = None
                self._ready.append((task, Raised(ended_by_another())))
                return
        self.cancel.append(ticket)


def _is_action(request: Request) -> bool:
    return type(request) is tuple and not isinstance(request[0], Chore)
