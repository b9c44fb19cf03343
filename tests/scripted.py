"""Evaluations that are driven by hand: every request can be looked at, and its answer chosen.

`evaluation` gives a run and its generator; `perform` drives one to its end the simple way, without threads, loops or
pauses.
"""

from itertools import count

from flowdeco import Run, Store
from flowdeco.drivers.interrupts import is_cancellation
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.branch import Branch
from flowdeco.engine.evaluation import evaluate, evaluate_run
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Await, Fork, Raised, Save
from flowdeco.engine.schedule import Schedule
from flowdeco.engine.scopes import open_scope
from flowdeco.engine.terms import Terms
from flowdeco.model.definitions import as_pipeline


class Clock:
    """A clock that ticks whenever it is read."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        self.seconds += 1.0
        return self.seconds


def terms_of(*, clock=None, **more):
    """The terms of a run that began at 1000, in POSIX seconds."""
    return Terms("run-1", clock or Clock(), 1000.0, is_cancellation, **more)


def evaluation(flow, inputs=None, *, use=(), **more):
    """A run and the generator that evaluates it; what is given beside is of its `Terms`."""
    terms = terms_of(**more)
    run = Run("run-1", as_pipeline(flow), Store(inputs))
    return run, evaluate_run(run, terms, use)


def performed(request):
    """What comes of a request: calls are called, and nothing is waited for."""
    try:
        if isinstance(request, tuple):
            step, args, kwargs = request
            return step.function(*args, **(kwargs or {}))
        if isinstance(request, Save):
            return request.write(*request.args)
        if isinstance(request, Await):
            return awaited(request)
        return side_by_side(request) if isinstance(request, Fork) else None
    except BaseException as error:
        return Raised(error)


def awaited(request):
    """What comes of an awaitable that has nothing to wait for."""
    try:
        request.awaitable.__await__().send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def side_by_side(fork, requests=None):
    """The end of branches, of which each request is answered before the next one is looked at."""
    schedule = Schedule(fork, count(1), evaluate)
    while schedule.ended is None:
        task = schedule.begin.pop(0)
        if requests is not None:
            requests.append(task.request)
        schedule.deliver(task.ticket, task.context.run(performed, task.request))
    return schedule.ended


def perform(walk, requests=None):
    """Perform all requests, and note them; return what the walk returns."""
    answer = None
    while True:
        try:
            request = walk.send(answer)
        except StopIteration as end:
            return end.value
        if requests is not None:
            requests.append(request)
        answer = performed(request)


def recorder():
    """A recorder of a journal in memory, in which the run has begun."""
    journal = MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    return Recorder(journal, "run-1", lambda function: "code", digest)


def in_stage(stage, inputs=None, **terms):
    """A branch that has just begun a stage, the only one of its pipeline; its steps are for the test to begin."""
    branch = Branch(terms_of(**terms), Store(inputs), OpenScope(None, None, None, 0.0))
    branch.scope = OpenScope(branch.base, as_pipeline(stage), None, 0.0)
    scope = OpenScope(branch.scope, stage, None, 0.0, branch.next_number())
    scope.use_actions = stage.use_actions
    open_scope(branch, scope, (), None)
    del branch.agenda[1:]
    return branch
