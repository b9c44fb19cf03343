"""What runs next, driven by script: the agenda, failures, what is restored; and the short ways compared with the long one."""

import types
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import evaluation, perform, performed, side_by_side, terms_of
from support import actions_run, again, around, examples, failing, flaky, one, statuses, step, swallow, wants

from flowdeco import Bail, Key, Run, Stage, Store, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.adoption import Archive
from flowdeco.engine.branch import Branch
from flowdeco.engine.evaluation import evaluate, evaluate_run
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.memory import Log, Remains
from flowdeco.engine.open_scopes import OpenScope, OpenStream
from flowdeco.engine.outcome import ROOT, RUN, ActionRecord, Outcome, Scope, StageRecord, Status, branch_id
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.records import Records
from flowdeco.engine.requests import Chore, Fork, Raised, Save
from flowdeco.engine.rows import Recorded, outcomes
from flowdeco.engine.schedule import Schedule
from flowdeco.errors import (
    Cancelled,
    CodeChangedError,
    OutOfTime,
    SerializationError,
    StoreTypeError,
    UnitTimeout,
    Wait,
    WiringError,
)
from flowdeco.events import ActionStarted, RunFinished, RunStarted, StageStarted
from flowdeco.middleware import atomic
from flowdeco.model.deltas import Delta


def branch_of(*units, inputs=None, **terms):
    """A branch with these on its agenda, in a pipeline."""
    flow = pipeline(*units)
    base = OpenScope(OpenScope(None, flow, None, 0.0), None, None, 0.0)
    branch = Branch(terms_of(**terms), Store(inputs), base)
    branch.agenda.extend((unit, None) for unit in reversed(units))
    return branch


def agenda(branch):
    """The names of what is on the agenda, the next thing first; of a scope that is to be closed, with a slash."""
    return [
        f"/{unit.unit.name}" if isinstance(unit, OpenScope) else getattr(unit, "name", type(unit).__name__)
        for unit, _ in reversed(branch.agenda)
    ]


def followed(branch):
    """Evaluate a branch; return what it ended with, and what was called with the agenda as it was then."""
    walk, answer, seen = evaluate(branch), None, []
    while True:
        try:
            request = walk.send(answer)
        except StopIteration as end:
            return end.value, seen
        if isinstance(request, tuple) and not isinstance(request[0], Chore):
            seen.append((request[0].name, agenda(branch)))
        answer = performed(request)


# -- the agenda


def test_the_agenda_is_what_is_left_to_do():
    """The steps of the open stage, the scopes that are to be closed, the units behind them."""
    inner = Stage("s", [step([], "a"), step([], "b")])
    error, seen = followed(branch_of(pipeline(inner, one([], "c"), name="p"), one([], "d")))
    assert error is None
    assert seen == [
        ("a", ["b", "/s", "c", "/p", "d"]),
        ("b", ["/s", "c", "/p", "d"]),
        ("c", ["/c", "/p", "d"]),
        ("d", ["/d"]),
    ]


def test_what_is_inserted_goes_on_top():
    """Of an action, actions at once, and the rest when its stage closes: so order is depth first."""

    @action(name="a")
    def inserts(ctx):
        ctx.insert(step([], "now"))
        return [one([], "next"), pipeline(one([], "then"), name="p")]

    branch = branch_of(Stage("s", [inserts, step([], "b")]), one([], "end"))
    _, seen = followed(branch)
    assert seen == [
        ("a", ["b", "/s", "end"]),
        ("now", ["b", "/s", "end"]),
        ("b", ["/s", "end"]),
        ("next", ["/next", "p", "end"]),
        ("then", ["/then", "/p", "end"]),
        ("end", ["/end"]),
    ]
    actions = [(each.name, each.inserted_by) for record in branch.records.kept for each in record.actions]
    assert actions[:3] == [("a", None), ("now", "s/a"), ("b", None)]


def test_a_stream_is_on_the_agenda_below_what_it_gives():
    """It is pulled again when that has run."""
    gives = step([], "a", lambda: stream(one([], name) for name in "xy"))
    _, seen = followed(branch_of(Stage("s", [gives]), one([], "end")))
    assert [(name, left[1:]) for name, left in seen[1:]] == [
        ("x", ["OpenStream", "end"]), ("y", ["OpenStream", "end"]), ("end", []),
    ]  # fmt: skip


def loops(make, times):
    """An action whose stage, or pipeline, comes again so many times."""
    left = iter(range(times))
    unit = None

    def body():
        return unit if next(left, None) is not None else None

    unit = make(action(name="a")(body))
    return unit


@pytest.mark.parametrize(
    "make",
    [
        lambda act: Stage("s", [act]),
        lambda act: pipeline(Stage("s", [act])),
        lambda act: pipeline(Stage("s", [act]), name="p", use_stages=[swallow], use_actions=[swallow]),
        lambda act: act,
    ],
    ids=["stage", "pipeline", "pipeline with options", "action"],
)
def test_what_returns_itself_is_a_loop_in_constant_memory(make):
    """The agenda forgets what has run, and so do the scopes."""
    branch = branch_of(loops(make, 100), one([], "end"), most_records=0)
    error, seen = followed(branch)
    assert error is None
    assert len(seen) == 102
    assert max(len(left) for _, left in seen[50:]) <= max(len(left) for _, left in seen[:3])


@pytest.mark.parametrize("waiting", [0, 1000])
def test_inserting_costs_what_is_inserted_whatever_else_is_waiting(waiting):
    """What waits is not touched."""
    branch = branch_of(one([], "s", lambda: one([], "t")), *[one([], f"n{n}") for n in range(waiting)])
    below = list(branch.agenda[:waiting])
    walk = evaluate(branch)
    answer = performed(walk.send(None))
    assert walk.send(answer)[0].name == "t"
    assert all(one is other for one, other in zip(branch.agenda, below, strict=False))


# -- failures


@pytest.mark.parametrize("error", [ValueError("no"), Suspend("waits"), Bail("done"), KeyboardInterrupt()], ids=repr)
def test_a_failure_or_signal_closes_scopes_from_the_inside_out(error):
    """What is left inside is dropped, and what is left behind it."""
    log = []
    inner = Stage("s", [failing(log, "a", error), step(log, "b")], use=[around(log, "stage")])
    branch = branch_of(pipeline(inner, one(log, "c"), name="p", use=[around(log, "pipeline")]), one(log, "d"))
    assert perform(evaluate(branch)) is error
    assert log == ["+pipeline", "+stage", "a", "-stage", "-pipeline"]
    assert (branch.agenda, branch.scope) == ([], branch.base)


def test_what_comes_behind_the_scope_that_recovers_runs():
    """Inside, nothing more."""
    log = []
    failed = Stage("s", [failing(log, "a", ValueError()), step(log, "b")])
    branch = branch_of(pipeline(failed, one(log, "c"), name="p", use=[swallow]), one(log, "d"))
    assert perform(evaluate(branch)) is None
    assert log == ["a", "d"]


def test_another_attempt_fills_the_scope_anew():
    """What the failed one inserted and recorded is forgotten."""
    log = []

    def fails_once():
        log.append("fails")
        if log.count("fails") == 1:
            raise ValueError

    inserts = one(log, "a", lambda: one(log, f"inserted {log.count('a')}"))
    branch = branch_of(pipeline(inserts, action(name="b")(fails_once), name="p", use=[again(2)]))
    assert perform(evaluate(branch)) is None
    assert log == ["a", "inserted 1", "fails", "a", "inserted 2", "fails"]
    assert [record.name for record in branch.records.kept] == ["a", "inserted 2", "b"]


def test_a_stream_that_is_not_pulled_any_more_is_closed():
    """Before the scopes around it are."""
    log = []

    def units():
        try:
            yield failing(log, "fails", ValueError("no"))
        finally:
            log.append("closed")

    unit = pipeline(one(log, "a", lambda: stream(units())), name="p", use=[around(log, "p")])
    assert str(perform(evaluate(branch_of(unit)))) == "no"
    assert log == ["+p", "a", "fails", "closed", "-p"]


@pytest.mark.parametrize(("at", "error"), [(6, StopIteration("no")), *((at, LookupError("no")) for at in range(2, 9))])
def test_what_code_of_others_raises_is_a_failure_like_any_other(at, error):
    """Here it is the clock, wherever that is read. Nothing leaves the evaluation, least of all a `StopIteration`."""
    log = []
    flow = pipeline(
        Stage("s", [step(log, "a"), step(log, "b")], use=[around(log, "m")]), name="p", use=[around(log, "p")]
    )
    clock = Odd(error, at)
    run, walk = evaluation(flow, clock=clock)
    perform(walk)
    assert clock.read > at
    assert (run.status, run.error) == ("failed", error)
    assert [each for each in log if each[0] == "+"] == [f"+{each[1]}" for each in reversed(log) if each[0] == "-"]


class Odd:
    """A clock that raises once: whatever code of others the evaluation calls may."""

    def __init__(self, error, at):
        self.error, self.at, self.read = error, at, 0

    def __call__(self):
        self.read += 1
        if self.read == self.at:
            raise self.error
        return float(self.read)


def test_what_is_raised_as_the_last_scope_ends_is_the_failure_of_the_run():
    """Here by the digest of a value that the layers of the run have read. The scope is finished all the same."""
    error, left = LookupError("no"), []

    def digests(value):
        if left:
            raise left.pop()
        return digest(value)

    def reads(call):
        assert call.store["k"] == [1]
        yield
        left.append(error)

    journal = MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    recorder = Recorder(journal, "run-1", lambda function: "code", digests)
    run, walk = evaluation(one([], "a"), {"k": [1]}, use=[reads], recorder=recorder)
    perform(walk)
    assert (run.status, run.error) == ("failed", error)
    rows = journal.history("run-1")
    assert [(row.kind, row.status) for row in rows][-2:] == [("stage", "completed"), ("pipeline", "failed")]


def test_a_group_is_one_request():
    """Each of its branches is an evaluation of its own, over a fork of the store."""
    run, walk = evaluation(parallel(step([], "a", 1), step([], "b", 2), limit=1), {"k": 0})
    fork = next(walk)
    assert isinstance(fork, Fork)
    supply = fork.conductor.supply()
    branches = [supply.send(answer).branch for answer in (None, True)]
    assert fork.conductor.limit == 1
    assert [next(evaluate(branch))[0].name for branch in branches] == ["a", "b"]
    with pytest.raises(StopIteration):
        supply.send(True)
    walk.close()


def recording(journal=None):
    """A recorder of a journal in which the run has begun."""
    journal = journal or MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    return Recorder(journal, "run-1", lambda function: "code", digest)


def test_a_group_whose_beginning_cannot_be_written_does_not_begin():
    """The journal has failed, and so has the run."""
    log, full = [], OSError("disk full")
    run, walk = evaluation(parallel(step(log, "a"), step(log, "b")), recorder=recording())
    assert isinstance(next(walk), Save)
    with pytest.raises(StopIteration):
        walk.send(Raised(full))
    assert (run.status, run.error, log) == ("failed", full, [])


def test_what_a_group_came_to_must_be_writable_too():
    """Each of its branches is; what they are merged into is not."""
    group = parallel(
        *(step([], name, 1, returns="k") for name in "ab"), merge={"k": lambda one, other: Lock()}, limit=1
    )
    recorder = recording()
    run, walk = evaluation(group, recorder=recorder)
    perform(walk)
    assert (run.status, type(run.error), dict(run.store)) == ("failed", SerializationError, {})
    *_, row = recorder.journal.history("run-1")
    assert (row.kind, row.status) == ("group", "failed")


def test_the_attempts_of_an_atomic_scope_are_not_dropped_from_the_journal_either():
    """None of its rows has got there."""
    log = []
    flow = Stage("s", [step(log, "first"), flaky(log, "fails", 1)], use=[atomic, again(2)])
    recorder = recording()
    run, walk = evaluation(flow, recorder=recorder)
    requests = []
    perform(walk, requests)
    assert (log, run.status) == (["first", "fails", "first", "fails"], "completed")
    (saved,) = [request for request in requests if isinstance(request, Save)]
    assert saved.write == recorder.write
    assert [row.action or row.stage for row in recorder.journal.history("run-1")] == ["first", "fails", "s"]


def test_a_stream_must_not_give_what_nothing_can_supply():
    """It is checked as it is pulled, like what an action inserts."""
    gives = step([], "a", lambda: stream([Stage("s", [wants("nowhere")])]))
    error = perform(evaluate(branch_of(Stage("t", [gives]))))
    assert isinstance(error, WiringError)
    assert "nowhere" in str(error)


def test_an_argument_of_the_wrong_type_is_the_failure_of_its_action():
    """The function is not called."""

    @action
    def reads(n: Annotated[int, Key("n", int)]):
        raise AssertionError

    run, walk = evaluation(reads, {"n": "text"})
    perform(walk)
    assert (run.status, type(run.error)) == ("failed", StoreTypeError)


def test_an_interrupt_in_the_rehearsal_of_a_group_that_had_ended_is_the_end_of_it():
    """It comes while the stream in one of its branches is pulled again."""
    gives = step([], "a")
    group = parallel(gives, name="g")
    stage = one([], "a")
    inside = {
        0: StageRecord("a", stage, Status.COMPLETED, 1.0, 1.0, number=0, end=2),
        1: ActionRecord("a", gives, Status.COMPLETED, 1.0, 1.0, number=1, inserted=(stream(list),)),
    }
    then = Outcome("g", group, Status.COMPLETED, 1.0, 1.0, number=0, end=1, branches=1)
    history = {ROOT: {0: then}, branch_id("0.0", 0): inside}
    rehearsal = Rehearsal(history, pipeline=pipeline(group), code=None)
    run, walk = evaluation(group, past=rehearsal)
    schedule = Schedule(next(walk), count(1), evaluate)
    interrupt = KeyboardInterrupt()
    (pulling,) = schedule.begin
    schedule.begin.clear()
    schedule.interrupt(interrupt)
    schedule.deliver(pulling.ticket, Raised(Cancelled("withdrawn")))
    with pytest.raises(StopIteration):
        walk.send(schedule.ended)
    assert run.error is interrupt


# -- what had been done before the run was resumed


def steps(*outcomes):
    """The history of a run with these steps, in their order."""
    return {ROOT: dict(enumerate(outcomes))}


def did(act, value, number, **more):
    """The outcome of an action that had returned this."""
    writes = Delta({act.name: value}, [], {})
    return ActionRecord(act.name, act, Status.COMPLETED, 1.0, 1.0, number=number, writes=writes, result=value, **more)


def test_a_step_that_had_ended_is_restored_instead_of_performed():
    """Its outcome takes effect as if it were new: writes, result, insertions, records."""
    log = []
    act, inserted = step(log, "a", 0), one(log, "inserted", 3)
    stage = Stage("s", [act])
    then = StageRecord("s", stage, Status.COMPLETED, 1.0, 2.0, number=0, end=2, attempts=2)
    past = History(steps(then, did(act, 1, 1, inserted=(inserted,))))
    run, walk = evaluation(pipeline(stage, one(log, "after", 4)), past=past)
    requests = []
    perform(walk, requests)
    assert [request[0].name for request in requests] == log == ["inserted", "after"]
    assert (run["a"], run.result, run.status) == (1, 4, "completed")
    assert statuses(run) == [("s", "completed"), ("inserted", "completed"), ("after", "completed")]
    record = run.stages[0]
    assert (record.restored, record.started, record.attempts, record.actions[0].restored) == (True, 1.0, 2, True)
    assert (record.actions[0].action, record.stage) == (act, stage)


def test_a_stage_that_had_not_ended_runs_on():
    """What it had done is restored, and the rest performed."""
    log = []
    first, second = step(log, "a", 0), step(log, "b", 2)
    run, walk = evaluation(Stage("s", [first, second]), past=History({ROOT: {1: did(first, 1, 1)}}))
    perform(walk)
    assert (log, run["a"], run["b"]) == (["b"], 1, 2)
    assert [record.restored for record in run.stages[0].actions] == [True, False]
    assert not run.stages[0].restored


PLACE = Scope("p", "0.p1", None, None, None)


def ended(name, unit, number, end, **more):
    """The outcome of a scope that had completed."""
    kind = StageRecord if isinstance(unit, Stage) else Outcome
    return kind(name, unit, Status.COMPLETED, 1.0, 2.0, number=number, end=end, **more)


@pytest.mark.parametrize("where", ["stage", "pipeline", "run", "caller"])
def test_layers_of_what_had_ended_are_not_entered_again(where):
    """Its contents are restored, and what is behind them runs."""
    log, mine = [], around((called := []), "m")
    stage = one([], "a", 1, use=[mine] if where == "stage" else [])
    (act,) = stage
    flow, use = pipeline(stage, name="flow"), []
    if where == "pipeline":
        outer = pipeline(stage, name="p", use=[mine])
        flow, history = pipeline(outer, one(log, "b"), name="flow"), {0: ended("p", outer, 0, 3)}
    elif where == "stage":
        flow, history = pipeline(stage, one(log, "b")), {}
    elif where == "run":
        flow = pipeline(stage, name="flow", use=[mine])
        history = {0: ended("flow", flow, 0, 3)}
    else:
        use, history = [mine], {RUN: ended("flow", flow, RUN, 2)}
    at = 1 if 0 in history else 0
    history |= {at: ended("a", stage, at, at + 2), at + 1: did(act, 1, at + 1)}
    run, walk = evaluation(flow, past=History({ROOT: history}), use=use)
    perform(walk)
    assert (run.error, run["a"], called, run.stages[0].restored) == (None, 1, [], True)
    assert log == (["b"] if where in ("pipeline", "stage") else [])
    if use:  # left out, what was in them is restored all the same
        run, walk = evaluation(flow, past=History({ROOT: history}))
        perform(walk)
        assert (run.error, run["a"], run.stages[0].restored) == (None, 1, True)


def test_layers_of_what_had_not_ended_are_entered_again():
    """Around the steps that are restored, and those that are not."""
    log = []
    stage = Stage("s", [step(log, "a", 1), step(log, "b", 2)])
    act, _ = stage
    began = ended("flow", pipeline(), RUN, -1)._replace(status=Status.SUSPENDED)
    past = History({ROOT: {RUN: began, 1: did(act, 1, 1)}})
    run, walk = evaluation(pipeline(stage, name="flow"), past=past, use=[around(log, "m")])
    perform(walk)
    assert (run.error, log, run["a"]) == (None, ["+m", "b", "-m"], 1)


def test_a_step_that_had_failed_is_performed_again():
    """Its failure counts only where something around it has recovered from it."""
    log = []
    act = step(log, "a", 2)
    failed = ActionRecord("a", act, Status.FAILED, 1.0, 1.0, number=1, error=ValueError("then"))
    run, walk = evaluation(Stage("s", [act]), past=History({ROOT: {1: failed}}))
    perform(walk)
    assert (log, run["a"], run.status) == (["a"], 2, "completed")
    log.clear()
    recovered = StageRecord("s", None, Status.FAILED, 1.0, 1.0, number=0, end=2, error=failed.error, recovered=True)
    stage = Stage("s", [act])
    run, walk = evaluation(stage, past=History(steps(recovered._replace(unit=stage), failed)))
    perform(walk)
    assert (log, run.status, statuses(run)) == ([], "completed", [("s", "failed")])
    assert "a" not in run.store


def test_a_history_that_goes_on_where_the_definition_ends_is_an_error():
    """What had completed is gone."""
    act = step([], "a", 0)
    stage = Stage("s", [act])
    then = StageRecord("s", stage, Status.COMPLETED, 1.0, 2.0, number=0, end=2)
    history = steps(then, did(act, 1, 1), then._replace(name="t", number=2, end=3))
    run, walk = evaluation(stage, past=History(history))
    perform(walk)
    assert isinstance(run.error, CodeChangedError)
    assert "the run ends where it had stage 't'" in str(run.error)


GIVES = stream(list)
REST = {
    "an action": (Stage("s", [step([], "a"), step([], "b")]), {}),
    "a stage in layers": (pipeline(Stage("s", [step([], "a")]), Stage("t", [step([], "b")], use=[swallow])), {}),
    "a group": (pipeline(Stage("s", [step([], "a")]), parallel(step([], "b"))), {}),
    "a stream": (Stage("s", [step([], "a")]), {"inserted": (GIVES,)}),
    "a stream that was begun in the rehearsal": (Stage("s", [step([], "a")]), {"inserted": (GIVES,)}),
}


@pytest.mark.parametrize("title", REST)
def test_a_branch_whose_group_has_ended_while_it_waited_begins_nothing(title):
    """It had restored what it had done; another one then turned out not to be what it was."""
    unit, more = REST[title]
    stage = unit if isinstance(unit, Stage) else unit.units[0]
    (act, *others) = stage
    mine = {1: did(act, 1, 1, **more)}
    if not others:
        mine[0] = StageRecord("s", stage, Status.COMPLETED, 1.0, 1.0, number=0, end=2)
    gone = StageRecord("gone", stage, Status.COMPLETED, 1.0, 1.0, number=0, end=1)
    group = parallel(unit, one([], "other"))
    first, second = (branch_id("0.0", index) for index in range(2))
    began = Outcome(group.name, group, Status.RUNNING, 1.0, 0.0, number=0, branches=2)
    streams = {(first, 0): OpenStream(GIVES, iter([]))} if "rehearsal" in title else {}
    past = History({ROOT: {0: began}, first: mine, second: {0: gone}}, streams=streams)
    run, walk = evaluation(group, past=past)
    requests = []
    ended = side_by_side(next(walk), requests)
    with pytest.raises(StopIteration):
        walk.send(ended)
    assert requests == []
    assert isinstance(run.error, CodeChangedError)


# -- interrupts are answers


@pytest.mark.parametrize("use", [[], [swallow]], ids=["alone", "in a layer"])
def test_an_interrupt_is_the_failure_of_the_action_that_was_asked_for(use):
    """It takes the way of any failure; a layer that recovers failures does not recover this one."""
    run, walk = evaluation(Stage("s", [step([], "a", use=use), step([], "b")]))
    next(walk)
    with pytest.raises(StopIteration):
        walk.send(Raised(KeyboardInterrupt()))
    assert (run.status, statuses(run), actions_run(run)) == ("cancelled", [("s", "cancelled")], [])
    assert [record.status for record in run.stages[0].actions] == ["cancelled"]


# -- records


def test_records_are_forgotten_in_one_go():
    """Whenever twice as many are there as are to be kept; in the end, the last so many are kept."""
    records = Records(2)
    for number in range(7):
        records.add(number)
    assert (records.kept, records.forgotten, len(records)) == ([3, 4, 5, 6], 3, 7)
    assert records.last() == [5, 6]


def test_records_of_a_branch_are_added_to_those_of_its_parent():
    """Forgotten ones count, too."""
    records, of_branch = Records(1), Records(1)
    records.add("a")
    for number in range(3):
        of_branch.add(number)
    records.adopt(of_branch)
    assert (records.last(), len(records)) == ([2], 4)


@pytest.mark.parametrize(("count", "kept", "forgotten"), [(6, [4, 5], 4), (5, [4], 4), (4, [], 4), (2, [], 2)])
def test_records_of_a_failed_attempt_are_cut_off(count, kept, forgotten):
    """Forgotten ones as well, as far as they came after it had begun."""
    records = Records(None)
    records.kept, records.forgotten = [4, 5], 4
    records.cut(count)
    assert (records.kept, records.forgotten, len(records)) == (kept, forgotten, count)
    assert records.last() == kept


# -- the run


class Still:
    """A clock that a test sets."""

    def __init__(self, now=5.0):
        self.now = now

    def __call__(self):
        return self.now


def test_a_run_knows_when_it_began_and_how_long_it_took():
    """A later leg adds its time to that of the legs before it, which has begun."""
    for before, expected in (((0.0, 0.0), (1005.0, 3.0)), ((900.0, 10.0), (900.0, 13.0))):
        clock = Still()
        run, walk = evaluation(one([], "a"), clock=clock)
        run.started, run.elapsed = before
        next(walk)
        assert (run.status, run.started) == ("running", expected[0])
        clock.now = 8.0
        with pytest.raises(StopIteration):
            walk.send(7)
        assert ((run.started, run.elapsed), run.status, run.result) == (expected, "completed", 7)


def test_observers_hear_of_the_run_and_of_each_action_that_begins():
    """In order, with the stages that are known at the beginning, and with the outcome at the end."""
    events, error = [], ValueError("no")
    flow = pipeline(one([], "a", lambda: step([], "b")), parallel(one([], "c"), failing([], "d", error)), name="p")
    run, walk = evaluation(flow, notify=events.append, clock=Still())
    perform(walk)
    assert events[0] == RunStarted("run-1", "p", 3)
    assert events[-1] == RunFinished("run-1", "p", run.status, run.error, run.elapsed)
    assert (run.status, type(events[-1].error)) == ("failed", ValueError)
    began = [event for event in events if isinstance(event, (StageStarted, ActionStarted))]
    assert began[:3] == [
        StageStarted("run-1", "a", None, None),
        ActionStarted("run-1", "a", "a", None),
        ActionStarted("run-1", "a", "b", "a/a"),
    ]


@pytest.mark.parametrize(
    "error", [None, Bail("done"), Suspend("waits"), ValueError("no"), KeyboardInterrupt()], ids=repr
)
def test_a_run_says_what_it_ended_with(error):
    """A failure as itself, with its place; of a signal, the reason. What is left is kept for a resume in memory."""
    log = Log()
    act = failing([], "b", error) if error else step([], "b", 2)
    run, walk = evaluation(Stage("s", [step([], "a", 1), act]), log=log, waits={(ROOT, 9): ["waits"]})
    perform(walk)
    is_signal = isinstance(error, (Bail, Suspend))
    assert run.error is (None if is_signal else error)
    assert run.reason == (error.reason if is_signal else None)
    assert run.waits == ()
    assert (run.result, [record.name for record in run.stages]) == (2 if error is None else 1, ["s"])
    assert (list(log.remains), log.waits) == (([ROOT], {(ROOT, 9): ["waits"]}) if error else ([], {}))
    if run.error is not None:
        (note,) = run.error.__notes__
        assert note == "in action 'b' of stage 's', pipeline 'pipeline', run 'run-1'"


def test_a_suspended_run_has_the_waits_of_its_signal():
    """All of them."""
    signal = Suspend.until(Wait("question", key="k"))
    run, walk = evaluation(failing([], "a", signal))
    perform(walk)
    assert (run.waits, run.reason) == (signal.waits, "waiting for 'k'")


def test_a_run_has_so_many_records_as_are_kept_and_the_number_of_the_others():
    """The last ones."""
    run, walk = evaluation(pipeline(*(one([], name) for name in "abcde")), most_records=2)
    perform(walk)
    assert ([record.name for record in run.stages], run.forgotten) == (["d", "e"], 3)
    run, walk = evaluation(one([], "a"))
    perform(walk)
    assert (len(run.stages), run.forgotten, run.pipelines) == (1, 0, [])


def test_a_run_knows_which_switches_have_selected_nothing():
    """Of those that are still in effect: not those of an attempt that was dropped."""

    @action
    def disables(ctx):
        ctx.disable("never", "t", "other")

    flow = pipeline(disables, one([], "t"))
    terms = terms_of(idle={"dropped": ("s", "a", False)})
    run = Run("run-1", flow, Store())
    walk = evaluate_run(run, terms, ())
    perform(walk)
    assert sorted(terms.idle) == ["never", "other"]
    assert statuses(run) == [("disables", "completed"), ("t", "skipped")]


@pytest.mark.parametrize("error", [None, Bail("done"), Suspend("waits"), ValueError("no")], ids=repr)
def test_a_journal_that_cannot_be_written_in_the_end_is_the_failure_of_the_run(error):
    """Unless it has failed already."""
    full, recorder = OSError("full"), recording()
    run, walk = evaluation(failing([], "a", error) if error else step([], "a"), recorder=recorder)
    answers = iter([None, Raised(full)])  # the row of the action is written
    answer = None
    with pytest.raises(StopIteration):
        while True:
            request = walk.send(answer)
            answer = next(answers) if isinstance(request, Save) else performed(request)
    assert list(answers) == []
    assert run.error is (error if isinstance(error, ValueError) else full)
    if run.error is full:
        assert full.__notes__ == ["in pipeline 'pipeline', run 'run-1'"]


def test_a_run_that_had_finished_performs_nothing():
    """What it had done is restored, and there is nothing new in it."""
    log = []
    stage = one(log, "a", 1)
    (act,) = stage
    then = StageRecord("a", stage, Status.COMPLETED, 1.0, 2.0, number=0, end=2)
    run, walk = evaluation(stage, past=History(steps(then, did(act, 1, 1)), finished=True))
    perform(walk)
    assert (log, run.status, run["a"], run.result) == ([], "completed", 1, 1)
    run, walk = evaluation(pipeline(stage, one(log, "new")), past=History(steps(then, did(act, 1, 1)), finished=True))
    perform(walk)
    assert (log, type(run.error)) == ([], CodeChangedError)


def test_a_run_in_memory_continues_with_its_last_result():
    """Which its store does not have."""
    past = History({}, is_in_memory=True, remains={ROOT: Remains(Store(), None, 7, {})})
    for known, expected in ((past, 7), (History({}), None)):
        run, walk = evaluation(Stage("s"), past=known)
        perform(walk)
        assert run.result == expected


def test_streams_of_the_rehearsal_that_a_run_does_not_take_over_are_closed_at_its_end():
    """The rehearsal itself leaves them open."""

    def units():
        try:
            yield
        finally:
            closed.append("closed")

    for kind, more, expected in ((History, {}, ["closed"]), (Rehearsal, {"pipeline": pipeline(), "code": None}, [])):
        iterator, closed = units(), []
        next(iterator)
        run, walk = evaluation(Stage("s"), past=kind({}, streams={(ROOT, 0): OpenStream(GIVES, iterator)}, **more))
        perform(walk)
        assert (run.error, closed) == (None, expected)


# -- the end of a branch


class Tolerant:
    """A conductor that notes the failures of its branches."""

    id = "0.0"

    def __init__(self):
        self.lost = []

    def decide_loss(self, branch, error):
        self.lost.append(error)


def branch_in_group(*units, **terms):
    """A branch of a group, with these on its agenda."""
    parent = branch_of(*units, **terms)
    base = OpenScope(parent.scope, None, None, 0.0)
    base.place = Scope("g", "0.0", 0, None, None)
    branch = Branch(parent.terms, parent.store.fork(), base, parent, Tolerant())
    branch.unit, branch.agenda = units[0], parent.agenda
    return branch


def test_the_conductor_of_a_branch_hears_of_its_failure_before_its_rows_are_written():
    """They say whether that was tolerated."""
    error = ValueError("no")
    for recorder in (None, recording()):
        branch = branch_in_group(failing([], "a", error), recorder=recorder)
        requests = []
        assert perform(evaluate(branch), requests) is error
        assert (branch.conductor.lost, branch.rows) == ([error], [])
        assert isinstance(requests[-1], Save) == (recorder is not None)
    branch = branch_in_group(step([], "a"), recorder=recording())
    requests = []
    assert perform(evaluate(branch), requests) is None
    assert (branch.conductor.lost, branch.rows) == ([], [])
    assert [row.kind for request in requests[1:] for row in request.args[0]] == ["action", "stage"]


def test_rows_of_a_branch_that_cannot_be_written_are_its_failure():
    """Whatever it ended with."""
    full = OSError("full")
    for unit in (one([], "a"), failing([], "a", ValueError("no"))):
        walk, answer = evaluate(branch_in_group(unit, recorder=recording())), None
        with pytest.raises(StopIteration) as ended:
            while True:
                request = walk.send(answer)
                answer = Raised(full) if isinstance(request, Save) else performed(request)
        assert ended.value.value is full


def test_a_generator_exit_of_a_user_is_a_failure_and_closing_the_evaluation_is_not():
    """Both arrive in the same way."""
    log = []
    run, walk = evaluation(Stage("s", [step(log, "a")]), clock=Odd(GeneratorExit(), at=4))
    perform(walk)
    assert (run.status, type(run.error)) == ("failed", GeneratorExit)
    run, walk = evaluation(one(log, "a", lambda: stream(one(log, name) for name in "xy")))
    request = next(walk)
    while request[0].name != "x":
        request = walk.send(performed(request))
    walk.close()  # asks for nothing more, as closing the stream would
    assert run.status == "running"
    with pytest.raises(StopIteration):
        next(walk)


# -- guarded branches


def test_a_branch_that_was_stopped_begins_no_unit():
    """Its open scopes end: their layers are left with that error. A stream is closed."""
    log = []

    def units():
        try:
            yield one(log, "x")
            yield one(log, "y")
        finally:
            log.append("closed")

    gives = one(log, "a", lambda: stream(units()))
    branch = branch_in_group(pipeline(gives, one(log, "b"), name="p", use=[around(log, "p")]))
    walk, answer = evaluate(branch), None
    with pytest.raises(StopIteration) as ended:
        while True:
            request = walk.send(answer)
            answer = performed(request)
            if log[-1] == "x":
                branch.stop()
    assert isinstance(ended.value.value, Cancelled)
    assert log == ["+p", "a", "x", "closed", "-p"]
    assert [record.name for record in branch.records.kept] == ["a", "x"]


def test_while_there_is_time_everything_runs_as_without_a_timeout():
    """Streams, and units that name who inserted them."""
    gives = one([], "a", lambda: [one([], "b"), stream([one([], "x"), one([], "y")])])
    run, walk = evaluation(pipeline(gives, one([], "z"), timeout=1000))
    perform(walk)
    assert statuses(run) == [(name, "completed") for name in "abxyz"]
    assert [record.inserted_by for record in run.stages] == [None, *["a/a"] * 3, None]


def test_steps_are_restored_even_if_none_may_begin():
    """In a branch that catches up, or in a scope that had ended."""
    stage = one([], "a", 1)
    (act,) = stage
    then = StageRecord("a", stage, Status.COMPLETED, 1.0, 2.0, number=0, end=2)
    for sealed in (0, 1):
        branch = branch_in_group(stage, past=History({branch_id("0.0", 0): {0: then, 1: did(act, 1, 1)}}))
        branch.sealed = sealed
        branch.is_catching_up = not sealed
        branch.stop()
        assert perform(evaluate(branch)) is None
        assert (branch.store["a"], len(branch.records.kept)) == (1, 1)


def test_a_scope_whose_time_is_up_fails_even_if_nothing_was_left_to_do():
    """Its layers are told, once; a scope around or inside it, without a timeout of its own, is not."""
    told = []

    def layer(call):
        try:
            yield
        except BaseException as error:
            told.append((call.name, type(error)))
            raise

    clock = Still()

    def late():
        clock.now += 10

    inner = Stage("inner", [step([], "a", late)], use=[layer])
    flow = pipeline(
        Stage("outer", use=[layer]), pipeline(inner, name="limited", use=[layer], timeout=5), name="p", use=[layer]
    )
    run, walk = evaluation(flow, clock=clock)
    perform(walk)
    assert type(run.error) is UnitTimeout
    assert told == [("limited", OutOfTime), ("p", UnitTimeout)]
    assert statuses(run) == [("outer", "completed"), ("inner", "completed")]


# -- failures, and streams that are not pulled any more


@pytest.mark.parametrize("in_group", [False, True])
def test_an_interrupt_while_a_stream_is_closed_counts_more_than_the_failure(in_group):
    """In the run itself: a branch of a group is interrupted by its group."""
    error, interrupt = ValueError("no"), KeyboardInterrupt()

    def units():
        try:
            yield failing([], "fails", error)
        finally:
            raise interrupt

    unit = one([], "a", lambda: stream(units()))
    branch = (branch_in_group if in_group else branch_of)(unit)
    assert perform(evaluate(branch)) is (error if in_group else interrupt)


def test_all_that_is_left_in_the_base_is_dropped_by_a_failure():
    """The first entry, too; streams are closed."""
    closed = []

    def units():
        try:
            yield one([], "x")
        finally:
            closed.append("closed")

    iterator = units()
    next(iterator)
    branch = branch_of(failing([], "a", ValueError("no")), one([], "b"))
    branch.agenda[0] = (OpenStream(GIVES, iterator), None)
    assert str(perform(evaluate(branch))) == "no"
    assert (branch.agenda, closed) == ([], ["closed"])


# -- pipelines


def places(run):
    """The scopes in which stages ran."""
    return {record.name: record.scope and (record.scope.name, record.scope.inserted_by) for record in run.stages}


def test_pipelines_with_options_have_places_of_their_own():
    """That of the run has none. Each has another id, and knows the one around it."""
    inner = pipeline(step([], "b"), name="inner")
    flow = pipeline(one([], "a"), pipeline(one([], "x", lambda: inner), inner, name="outer"), one([], "c"), name="flow")
    run, walk = evaluation(flow)
    perform(walk)
    scopes = [record.scope for record in run.stages]
    outer = Scope("outer", "0.p1", None, None, None)
    assert scopes == [
        None,
        outer,
        Scope("inner", "0.p2", None, "x/x", outer),
        Scope("inner", "0.p3", None, None, outer),
        None,
    ]
    assert [record.inserted_by for record in run.stages] == [None, None, "x/x", None, None]


def test_a_group_has_a_place_in_the_pipeline_around_it():
    """Its branches are in there. The run knows that it came to a group."""
    flow = pipeline(pipeline(parallel(one([], "a"), one([], "b"), name="g"), one([], "c"), name="p"))
    terms = terms_of()
    assert not terms.has_group
    run = Run("run-1", flow, Store())
    perform(evaluate_run(run, terms, ()))
    outer = Scope("p", "0.p1", None, None, None)
    assert [record.scope for record in run.stages] == [*(Scope("g", "0.0", n, None, outer) for n in (0, 1)), outer]
    assert terms.has_group is True


def test_a_pipeline_that_returns_itself_is_in_one_place_however_often():
    """It comes after its turn before, and not in it: whether anything is left of the pipeline around it or not."""
    for rest in ((), (one([], "z"),)):
        turns, unit = iter(range(2)), None
        inserts = one([], "a", lambda turns=turns: unit if next(turns, None) is not None else None)
        unit = pipeline(inserts, name="p")
        run, walk = evaluation(pipeline(pipeline(unit, *rest, name="outer"), one([], "end")))
        perform(walk)
        outer = Scope("outer", "0.p1", None, None, None)
        turns = [Scope("p", f"0.p{n}", None, by, outer) for n, by in ((2, None), (3, "a/a"), (4, "a/a"))]
        assert [record.scope for record in run.stages] == [*turns, *(outer for _ in rest), None]


def test_the_layers_of_pipelines_add_up():
    """Outermost first. A pipeline that returns itself neither adds its own once more, nor loses those around it."""
    log = []
    turns = iter(range(2))
    unit = None
    inserts = step(log, "a", lambda: unit if next(turns, None) is not None else None)
    unit = pipeline(Stage("s", [inserts]), name="in", use_stages=[around(log, "is")], use_actions=[around(log, "ia")])
    flow = pipeline(unit, name="out", use_stages=[around(log, "os")], use_actions=[around(log, "oa")])
    run, walk = evaluation(flow)
    perform(walk)
    assert run.status == "completed"
    assert log == ["+os", "+is", "+oa", "+ia", "a", "-ia", "-oa", "-is", "-os"] * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {-1: "flow", 0: "a", 2: "step", 3: "b"}),
        ({"use": [around([], "m")]}, {0: "flow", 1: "a", 3: "step", 4: "b"}),
        ({"timeout": 9.0}, {0: "flow", 1: "a", 3: "step", 4: "b"}),
    ],
    ids=["plain", "middleware", "timeout"],
)
def test_a_pipeline_with_middleware_is_a_step(options, expected):
    """It has a number, and an outcome; one without has none. The layers of the caller have a number of their own."""
    inner = pipeline(one([], "a"), name="plain"), pipeline(one([], "b"), name="step", use=[around([], "m")])
    flow = pipeline(*inner, name="flow", **options)
    run, walk = evaluation(flow, use=[around([], "caller's")], log=(log := Log()), clock=Still())
    perform(walk)
    assert {number: outcome.name for number, outcome in log.steps[ROOT].items()} == expected
    run, walk = evaluation(pipeline(*inner), log=(log := Log()))
    perform(walk)
    assert {number: outcome.name for number, outcome in log.steps[ROOT].items()} == {0: "a", 2: "step", 3: "b"}


# -- skipped units


SKIPPED = pipeline(
    one([], "a"), pipeline(one([], "b"), one([], "c"), name="p", use=[around([], "m")]),
    parallel(one([], "d"), pipeline(one([], "e"), parallel(one([], "f"), name="h"), name="q"), name="g"), one([], "z"),
)  # fmt: skip


def test_a_skipped_unit_is_recorded_and_so_are_the_stages_in_it():
    """Where they would have run; the units behind it run."""
    log, terms = Log(), {"skip": frozenset({"p", "g"}), "clock": Still()}
    run, walk = evaluation(SKIPPED, log=log, unmatched={"p", "g", "nothing"}, **terms)
    called = []
    perform(walk, called)
    assert [request[0].name for request in called] == ["a", "z"]
    assert statuses(run) == [("a", "completed"), *((name, "skipped") for name in "bcdef"), ("z", "completed")]
    where = {record.name: record.scope and (record.scope.name, record.scope.branch) for record in run.stages}
    assert where == {
        "a": None,
        "b": ("p", None),
        "c": ("p", None),
        "d": ("g", 0),
        "e": ("q", None),
        "f": ("h", 0),
        "z": None,
    }
    (e,) = [record for record in run.stages if record.name == "e"]
    assert (e.scope.outer.name, e.scope.outer.branch) == ("g", 1)
    assert {(record.started, record.elapsed, len(record.actions)) for record in run.stages[1:-1]} == {(1005.0, 0.0, 0)}
    assert {type(record) for record in run.stages} == {StageRecord}
    assert [record.stage.name for record in run.stages] == [record.name for record in run.stages]
    skipped = {number: did.name for number, did in log.steps[ROOT].items() if did.status == "skipped"}
    assert skipped == {2: "p", 3: "b", 4: "c", 5: "g", 6: "d", 7: "e", 8: "h", 9: "f"}
    assert all(did.number + 1 == did.end for number, did in log.steps[ROOT].items() if number in skipped)


def test_a_skipped_stage_has_selected_its_actions_too():
    """Their selectors match something, although the stage is not entered."""
    selectors = frozenset({"s", "s/a", "tag:t"})
    unmatched = set(selectors)
    run, walk = evaluation(Stage("s", [step([], "a", tags=["t"])], data={"k": 1}), skip=selectors, unmatched=unmatched)
    perform(walk)
    assert (unmatched, dict(run.store), statuses(run)) == (set(), {}, [("s", "skipped")])


def test_a_skipped_unit_that_cannot_be_written_fails():
    """With the journal's error."""

    class Refusing:
        def __getattr__(self, name):
            return getattr(made, name)

        def row(self, *args):
            raise error

    error, made = OSError("full"), recording()
    for name in ("a", "p", "g"):
        run, walk = evaluation(SKIPPED, skip=frozenset({name}), recorder=Refusing())
        perform(walk)
        assert run.error is error


def test_an_inserted_group_that_is_skipped_names_its_inserter():
    """In the records of its stages."""
    inserts = one([], "x", lambda: parallel(one([], "d"), name="g"))
    run, walk = evaluation(inserts, skip=frozenset({"g"}))
    perform(walk)
    (_, record) = run.stages
    assert (record.inserted_by, record.scope.inserted_by, type(record.inserted_by)) == ("x/x", "x/x", str)


def skipped(name, unit, number, **more):
    """The outcome of a unit that was skipped."""
    kind = StageRecord if isinstance(unit, Stage) else Outcome
    return kind(name, unit, Status.SKIPPED, 1.0, 0.0, number=number, end=number + 1, **more)


def test_what_was_skipped_before_a_resume_is_restored_as_skipped():
    """Whatever is selected now: with its place and inserter, which are those that it has now. The rehearsal knows it."""
    log = []
    stage, group = one(log, "b"), parallel(one(log, "d"), name="g")
    outer = pipeline(one(log, "c"), name="p", use=[around(log, "m")])
    first = one(log, "a")
    (act,) = first
    flow = pipeline(first, name="flow")
    history = steps(
        ended("a", first, 0, 2), did(act, None, 1, inserted=(pipeline(stage, outer, group, name="inserted"),)),
        skipped("b", stage, 2), skipped("p", outer, 3), skipped("c", outer[0], 4), skipped("g", group, 5),
        skipped("d", group.units[0], 6),
    )  # fmt: skip
    rehearsal = Rehearsal(history, pipeline=flow, code=None)
    for past in (rehearsal, History(history)):
        run, walk = evaluation(flow, past=past, log=(memory := Log()))
        perform(walk)
        assert (log, run.error) == ([], None)
    assert (rehearsal.changes, rehearsal.taken) == ([], {(ROOT, number) for number in range(7)})
    inserted = Scope("inserted", "0.p1", None, "a/a", None)
    assert run.stages[1:] == [
        skipped("b", stage, 2, restored=True, inserted_by="a/a", scope=inserted),
        skipped("c", outer[0], 4, restored=True, inserted_by="a/a", scope=Scope("p", "0.p2", None, "a/a", inserted)),
        skipped("d", group.units[0], 6, restored=True, inserted_by="a/a", scope=Scope("g", "0.5", 0, "a/a", inserted)),
    ]
    assert {number: did.name for number, did in memory.steps[ROOT].items()} == dict(
        zip((0, *range(2, 7)), "abpcgd", strict=True)
    )


def test_what_had_begun_and_is_skipped_now_is_forgotten():
    """And nothing else: the journal keeps what had ended before it."""
    first, stage = one([], "a", 1), Stage("s", [step([], "b", 2), step([], "c", 3)])
    (act,), (inside, _) = first, stage
    began = ended("s", stage, 2, -1)._replace(status=Status.FAILED, error=ValueError())
    history = steps(ended("a", first, 0, 2), did(act, 1, 1), began, did(inside, 2, 3)._replace(status=Status.FAILED))
    flow = pipeline(first, stage)
    rehearsal = Rehearsal(history, pipeline=flow, code=None)
    for past in (rehearsal, History(history)):
        run, walk = evaluation(flow, past=past, skip=frozenset({"s"}))
        perform(walk)
        assert run.error is None
    assert rehearsal.cuts() == {ROOT: 3}
    assert (statuses(run), dict(run.store)) == ([("a", "completed"), ("s", "skipped")], {"a": 1})


def test_a_skipped_unit_that_was_adopted_from_an_earlier_generation_is_written_in_its_present_place():
    """By its number now, with the scope and inserter that it has now."""
    stage = one([], "b")
    flow = pipeline(pipeline(one([], "a"), stage, name="p"), name="flow")
    archive = Archive([{ROOT: {0: skipped("b", stage, 0)._replace(unit=Recorded("stage", ""))}}])
    recorder = recording()
    run, walk = evaluation(flow, past=History({}, archive=archive), recorder=recorder)
    perform(walk)
    assert statuses(run) == [("a", "completed"), ("b", "skipped")]
    rows = outcomes(recorder.journal.history("run-1"), recorder.codec)[ROOT]
    assert (rows[2].name, rows[2].status, rows[2].inserted_by) == ("b", "skipped", None)
    assert rows[2].scope == PLACE


# -- stages


CALLED = []


@stage
def fixable(name):
    step(CALLED, "old")


def test_a_stage_that_was_inserted_in_memory_runs_with_the_code_of_its_module_now(monkeypatch):
    """In a notebook, its cell was fixed and run again. Stages of the definition are new anyway; a journal has names only."""
    older = fixable("x")
    monkeypatch.setitem(globals(), "fixable", stage(lambda name: step(CALLED, "new") and None, name="fixable"))
    first = one([], "a")
    (act,) = first
    then = StageRecord("a", first, Status.COMPLETED, 1.0, 2.0, number=0, end=2)
    for flow, inserted, is_in_memory, expected in (
        (first, (older,), True, ["new"]),
        (first, (older,), False, ["old"]),
        (pipeline(first, older), (), True, ["old"]),
    ):
        CALLED.clear()
        past = History(steps(then, did(act, None, 1, inserted=inserted)), is_in_memory=is_in_memory)
        run, walk = evaluation(flow, past=past)
        perform(walk)
        assert (run.error, CALLED) == (None, expected)
    # One that had ended is recorded as it was.
    (inside,) = older
    after = {2: ended("fixable[x]", older, 2, 4), 3: did(inside, None, 3)}
    past = History({ROOT: {0: then, 1: did(act, None, 1, inserted=(older,)), **after}}, is_in_memory=True)
    run, walk = evaluation(first, past=past)
    perform(walk)
    assert run.error is None
    assert run.stages[1].stage is older


def test_the_data_of_a_stage_is_seen_by_its_layers_and_not_by_those_around_it():
    """It is merged between the two, whether it has layers of its own or not."""
    seen = []

    def layer(name):
        def looks(call):
            seen.append((name, call.store.get("k")))
            yield

        return looks

    for use in ([], [layer("own")]):
        stage = Stage("s", [wants("k")], data={"k": 1}, use=use)
        run, walk = evaluation(pipeline(stage, Stage("t", use=use), use_stages=[layer("around")]))
        perform(walk)
        assert (run.error, run["k"]) == (None, 1)
    assert seen == [("around", None), ("around", 1), ("around", None), ("own", 1), ("around", 1), ("own", 1)]


def test_a_stage_may_have_nothing_but_a_timeout():
    """It ends the stage when its time is up."""
    clock = Still()

    def late():
        clock.now += 10

    run, walk = evaluation(Stage("s", [step([], "a", late), step([], "b")], timeout=5), clock=clock)
    perform(walk)
    assert (type(run.error), str(run.error)) == (UnitTimeout, "stage 's' took longer than its timeout of 5 s")
    assert [record.name for record in run.stages[0].actions] == ["a"]


# -- the short ways: of plain actions, with layers or without, and of what is around them


@dataclass(frozen=True)
class Plan:
    """An action, with what it reads, what comes of it, and the layers around it."""

    reads: str
    result: str
    options: str
    fails: int
    use: tuple


@types.coroutine
def later(value):
    """A coroutine that may be dropped without a warning."""
    return value
    yield


def written(ctx):
    """What an action does with its context, and reads of it."""
    ctx.store["w"] = "by context"
    ctx.insert(one([], "by context"))
    return ctx.store.get("given")


READS = {
    "nothing": lambda body: lambda: body(None),
    "an input": lambda body: lambda given: body(given),
    "a default": lambda body: lambda missing=7: body(missing),
    "what was written": lambda body: lambda w=0: body(w),
    "the context": lambda body: lambda ctx: body(written(ctx)),
    "by keyword": lambda body: lambda *, given: body(given),
}
RESULTS = {
    "none": lambda read: None,
    "number": lambda read: read,
    "list": lambda read: [1],
    "pair": lambda read: (1, 2),
    "dict": lambda read: {"k": read},
    "stage": lambda read: one([], "inserted"),
    "action": lambda read: step([], "inserted action", 3),
    "generator": lambda read: (one([], name) for name in "xy"),
    "awaitable": later,
    "odd": lambda read: object,
    "bail": lambda read: done(),
}
OPTIONS = {
    "usual": {},
    "other key": {"returns": "w"},
    "no key": {"returns": None},
    "collected": {"collect": "collected"},
    "two keys": {"returns": ("left", "right")},
}


def done():
    raise Bail("done")


def writes(call):
    call.store["w"] = f"before {call.name}"
    yield
    call.store.append("collected", f"after {call.name}")


def gives(call):
    yield {"given": "given by a layer", "missing": "not missing"}


def replaces(call):
    yield
    call.outcome = "replaced"


def skips(call):
    return
    yield


def supplies(call):
    call.outcome = "supplied"
    return
    yield


def supplies_later(call):
    call.outcome = later("supplied later")
    return
    yield


def inserts(call):
    if not call.name.startswith("by"):  # what is inserted has the same layers
        call.insert(one([], f"by {call.name}"))
    yield


def breaks(call):
    yield
    raise LookupError("broken")


LAYERS = {
    "swallow": swallow, "again": again(2), "writes": writes, "gives": gives, "replaces": replaces, "skips": skips,
    "supplies": supplies, "supplies later": supplies_later, "inserts": inserts, "breaks": breaks,
}  # fmt: skip
KINDS = st.sampled_from(["swallow", "again", "writes", "gives", "again", *LAYERS])
PLANS = st.builds(
    Plan,
    reads=st.sampled_from([*READS]),
    result=st.sampled_from(["none", "number", "number", "dict", *RESULTS]),
    options=st.sampled_from(["usual", "usual", *OPTIONS]),
    fails=st.sampled_from([0, 0, 0, 0, 1, 2]),
    use=st.lists(KINDS, max_size=2).map(tuple),
)
SOME_LAYERS = st.one_of(st.just(()), st.just(()), st.lists(KINDS, max_size=2).map(tuple))


def planned(plan, name, log):
    """The action that does this."""

    def body(read):
        log.append((name, read))
        if log.count((name, read)) <= plan.fails:
            raise ValueError(name)
        return RESULTS[plan.result](read)

    use = [noted(log, kind, name) for kind in plan.use]
    return action(name=name, use=use, **OPTIONS[plan.options])(READS[plan.reads](body))


def noted(log, kind, name):
    """A layer of this kind that notes what it sees, and passes on all the rest."""

    def layer(call):
        log.append((f"+{kind}", name, call.name, call.attempt))
        inner = LAYERS[kind](call)
        send, value = inner.send, None
        while True:
            try:
                item = send(value)
            except StopIteration:
                break
            try:
                value, send = (yield item), inner.send
                log.append((f"-{kind}", name, seen(value)))
            except Exception as error:
                log.append((f"!{kind}", name, repr(error)))
                value, send = error, inner.throw

    return layer


def seen(value):
    """A value as it can be compared with that of another run."""
    return getattr(value, "name", type(value)) if type(value) not in (int, str, list, tuple, dict) else value


def came_to(plans, layers, listens):
    """What a run of these comes to; `listens` makes every action take the long way."""
    log = []
    acts = [planned(plan, f"a{n}", log) for n, plan in enumerate(plans)]
    use, use_actions, use_stages = ([noted(log, kind, "of the rest") for kind in each] for each in layers)
    flow = pipeline(
        Stage("s", acts[:2], use=use, use_actions=use_actions), Stage("t", acts[2:], data={"w": "data"}),
        use_stages=use_stages,
    )  # fmt: skip
    run, walk = evaluation(flow, {"given": 1}, notify=(lambda event: None) if listens else None)
    requests = []
    perform(walk, requests)
    records = [without_times(record) for record in run.stages]
    asked = [
        (request[0].name, [seen(value) for value in request[1]], request[2] or {})
        if isinstance(request, tuple)
        else type(request)
        for request in requests
        if not (isinstance(request, tuple) and isinstance(request[0], Chore))
    ]
    store = {key: list(value) if isinstance(value, list) else value for key, value in run.store.items()}
    store = {key: seen(value) for key, value in store.items()}
    return log, str(run.status), repr(run.error), store, seen(run.result), records, asked


def without_times(record):
    """All that a record says of a stage, or of an action, except for when it was."""
    inserted = [unit.name for unit in record.inserted]
    actions = [without_times(each) for each in record.actions]
    changed = record._replace(
        started=0.0, elapsed=0.0, unit=None, inserted=inserted, actions=actions, error=repr(record.error),
        failures=[*map(repr, record.failures)],
    )  # fmt: skip
    return tuple(changed)


@settings(
    max_examples=examples(150, 3000),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(plans=st.lists(PLANS, min_size=1, max_size=4), layers=st.tuples(SOME_LAYERS, SOME_LAYERS, SOME_LAYERS))
def test_the_short_ways_come_to_what_the_long_one_comes_to(plans, layers):
    """Of any plain actions, in any layers: requests, calls, what layers see, store, result, records, status."""
    assert came_to(plans, layers, listens=False) == came_to(plans, layers, listens=True)
