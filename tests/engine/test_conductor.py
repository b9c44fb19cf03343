"""A group is run by hand: its branches are supplied one by one, end as the test says, and the group ends with them."""

from types import SimpleNamespace

import pytest
from scripted import performed, terms_of

from flowdeco import Bail, Stage, Status, Store, Suspend, parallel, stream
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.adoption import Archive
from flowdeco.engine.branch import Branch
from flowdeco.engine.groups import run_group
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.memory import Log, Remains
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ROOT, Outcome, Scope, Selection, StageRecord, branch_id, inserter
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import CAUGHT_UP, Begin, Fork, Raised, Save
from flowdeco.engine.rows import outcomes
from flowdeco.errors import Cancelled, CodeChangedError, SerializationError, WriteConflictError
from flowdeco.events import BranchesHeld
from flowdeco.model.definitions import as_pipeline
from flowdeco.model.deltas import Delta

NO = ValueError("no")
UNITS = [Stage(f"s{index}") for index in range(4)]


def recorder():
    """A recorder of a journal in which the run has begun."""
    journal = MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    return Recorder(journal, "run-1", lambda function: "code", digest)


class Run:
    """A group of four branches, number 3 in its branch; `requests` are those before its branches begin."""

    def __init__(self, *units, earlier=None, inputs=None, sealed=0, group=None, caught_up=None, **terms):
        self.group = group or parallel(*(units or UNITS), name="g", **terms.pop("options", {}))
        self.branch = Branch(terms_of(**terms), Store(inputs), OpenScope(None, None, None, 0.0))
        self.branch.scope = OpenScope(self.branch.base, as_pipeline(self.group), None, 0.0)
        self.branch.sealed = sealed
        self.branch.number = 4
        self.scope = OpenScope(self.branch.scope, self.group, "s/a", 0.0, 3)
        self.scope.place = Scope("g", "0.3", None, "s/a", None)
        self.walk = run_group(self.branch, self.group, self.scope, earlier)
        self.requests, self.error = [], None
        answer = None
        try:
            while type(request := self.walk.send(answer)) is not Fork:
                self.requests.append(request)
                answer = performed(request)
        except StopIteration as ended:
            self.error = ended.value
            return
        self.conductor = request.conductor
        self.source = self.conductor.supply()
        self.answer = None
        self.supplied = None  # what the supply ended with

    def next(self, answer=True):
        """The next branch, or None; whatever else is asked for meanwhile is noted."""
        while True:
            try:
                request = self.source.send(self.answer)
            except StopIteration as ended:
                self.supplied = ended.value
                return None
            if type(request) is Begin:
                self.answer = answer
                return request.branch
            self.requests.append(request)
            self.answer = performed(request)

    def ends(self, fork, error=None, **puts):
        """Have a branch end; return whether that ends the group."""
        fork.store.update(puts)
        fork.number = 2
        fork.records.add(StageRecord(fork.unit.name, fork.unit, Status.COMPLETED, 0.0, 0.0, scope=fork.base.place))
        if error is not None:
            self.conductor.decide_loss(fork, error)
        return self.conductor.ended(fork, error)

    def finish(self, interrupt=None, raised=None):
        """End the group; return its failure."""
        answer = Raised(raised) if raised is not None else SimpleNamespace(interrupt=interrupt)
        try:
            request = self.walk.send(answer)
            while True:
                self.requests.append(request)
                request = self.walk.send(performed(request))
        except StopIteration as ended:
            self.error = ended.value
            return ended.value

    def all(self, **puts):
        """Have all branches begin."""
        found = []
        while (fork := self.next()) is not None:
            found.append(fork)
        return found


# -- the supply


def test_each_branch_is_an_evaluation_over_a_fork():
    """In its place, and with its unit on its agenda."""
    run = Run(inputs={"k": 1})
    forks = run.all()
    assert [fork.index for fork in forks] == [0, 1, 2, 3]
    assert [fork.agenda for fork in forks] == [[(unit, "s/a")] for unit in UNITS]
    assert [fork.unit for fork in forks] == UNITS
    first = forks[0]
    assert (first.parent, first.conductor, first.base.outer) == (run.branch, run.conductor, run.branch.scope)
    assert (first.base.place, first.base.by, first.base.started) == (run.scope.place.of(0), "s/a", 0.0)
    first.store["k"] = 2
    assert run.branch.store["k"] == 1
    assert (run.supplied, first.id) == (None, branch_id("0.3", 0))
    assert (run.conductor.id, run.requests) == ("0.3", [])
    run = Run()
    assert [run.next(answer=False).index, run.next()] == [0, None]  # no more are wanted


@pytest.mark.parametrize(
    ("group", "limit"),
    [
        (parallel(*UNITS), 9),
        (parallel(*UNITS, limit=2), 2),
        (parallel(stream(UNITS)), 32),
        (parallel(stream(UNITS), limit=5), 5),
    ],
)
def test_a_group_has_a_limit(group, limit):
    """As it is given; of a stream, 32."""
    conductor = Run(group=group).conductor
    assert conductor.limit == limit if limit != 9 else conductor.limit > 1_000_000
    assert (conductor.is_open, conductor.has_room, conductor.is_enough) == (True, True, False)


def test_the_writes_of_the_branches_are_those_of_the_group():
    """It has a record only if not all of them count."""
    run = Run()
    for fork in run.all():
        run.ends(fork, **{f"k{fork.index}": fork.index})
    assert run.finish() is None
    assert dict(run.branch.store) == {"k0": 0, "k1": 1, "k2": 2, "k3": 3}
    assert (run.branch.records.scopes, [each.name for each in run.branch.records.kept]) == (
        [],
        ["s0", "s1", "s2", "s3"],
    )


def test_in_a_durable_run_the_group_has_rows_of_its_beginning_and_end():
    """Written at once; with its place, times and number of branches."""
    run = Run(recorder=recorder())
    (saved,) = run.requests
    assert isinstance(saved, Save)
    (began,) = run.branch.terms.recorder.journal.history("run-1")
    assert (began.number, began.kind, began.status, began.started, began.elapsed) == (
        3,
        "group",
        "running",
        1000.0,
        0.0,
    )
    for fork in run.all():
        run.ends(fork, k=1)
    assert run.finish() is None
    (_, ended) = run.branch.terms.recorder.journal.history("run-1")
    assert (ended.number, ended.status, ended.started) == (3, "completed", 1000.0)
    assert 0.0 < ended.elapsed < 50.0
    did = outcomes([ended], run.branch.terms.recorder.codec)[ROOT][3]
    assert (did.branches, did.end, did.inserted_by, did.writes.puts, did.selection) == (
        4,
        4,
        "s/a",
        {"k": 1},
        Selection(),
    )
    assert (began.stage, ended.stage) == ("g", "g")
    began = outcomes([began], run.branch.terms.recorder.codec)[ROOT][3]
    assert (began.branches, began.inserted_by) == (4, "s/a")


def test_rows_of_a_group_have_the_scopes_around_it():
    """Both that of its beginning and that of its end."""
    made = recorder()
    group = parallel(*UNITS, name="g")
    branch = Branch(terms_of(recorder=made), Store(), OpenScope(None, None, None, 0.0))
    scope = OpenScope(branch.base, group, None, 2.0, 3)
    scope.place = Scope("g", "0.3", None, None, Scope("p", "0.p1", None, None, None))
    walk, answer = run_group(branch, group, scope, None), None
    while type(request := walk.send(answer)) is not Fork:
        answer = performed(request)
    for saved in (made.journal.history("run-1"), None):
        if saved is None:
            with pytest.raises(StopIteration):
                performed(walk.send(SimpleNamespace(interrupt=None)))
                walk.send(None)
            saved = branch.rows or made.journal.history("run-1")[1:]
        assert made.codec.decode(saved[0].payload)["in"] == [["p", "0.p1", None, None]]


def test_an_inserted_group_has_one_inserter_for_all_branches():
    """Without its number, which is that of a step in another branch."""
    run = Run()
    run.scope.by = inserter("s/a", 7)
    conductor = type(run.conductor)(run.branch, run.group, run.scope, None)
    assert (conductor.by, type(conductor.by)) == ("s/a", str)
    run.scope.by = None
    assert type(run.conductor)(run.branch, run.group, run.scope, None).by is None


def test_a_resumed_branch_catches_up_before_a_new_group():
    """It may have been stopped meanwhile; a group that had begun catches up through its branches."""
    for stopped in (False, True):
        group = parallel(*UNITS, name="g")
        parent = Branch(terms_of(past=History({})), Store(), OpenScope(None, None, None, 0.0))
        base = OpenScope(parent.base, None, None, 0.0)
        base.place = Scope("h", "0.1", 0, None, None)
        branch = Branch(parent.terms, parent.store.fork(), base, parent, SimpleNamespace(id="0.1"), 0)
        for earlier in (None, restored(Status.RUNNING, branches=0)):
            branch.is_catching_up = True
            scope = OpenScope(base, group, None, 0.0, 3)
            scope.place = Scope("g", "0.3", None, None, base.place)
            walk = run_group(branch, group, scope, earlier)
            request = walk.send(None)
            if earlier is not None:
                assert type(request) is Fork
                continue
            assert request is CAUGHT_UP
            if stopped:
                branch.stop()
                with pytest.raises(StopIteration) as ended:
                    walk.send(None)
                assert isinstance(ended.value.value, Cancelled)
            else:
                assert type(walk.send(None)) is Fork


def test_a_failure_of_a_branch_is_that_of_the_group():
    """Its record names it, nothing is written, and what is left is kept for a resume in memory."""
    log = Log()
    run = Run(log=log)
    first, second, *_ = run.all()
    assert run.ends(first, k=1) is False
    assert run.ends(second, NO) is True
    assert run.finish() is NO
    record = log.steps[ROOT][3]
    assert run.branch.records.scopes == []
    assert (record.status, record.error, record.end, record.branches, record.scope) == (
        "failed",
        NO,
        4,
        4,
        run.scope.place,
    )
    assert (record.started, record.inserted_by, record.number, record.writes) == (1000.0, "s/a", 3, None)
    assert 0.0 < record.elapsed < 50.0
    assert dict(run.branch.store) == {}
    assert set(run.branch.left_behind().remains) == {first.id, second.id}
    assert run.branch.left_behind().unwinding is not None


def test_a_bail_ends_the_run_with_the_writes_of_its_branch():
    """Nothing is left behind."""
    bail = Bail("done")
    run = Run(log=Log())
    first, second, *_ = run.all()
    run.ends(first, k=1)
    run.ends(second, bail, b=2)
    assert run.finish() is bail
    assert dict(run.branch.store) == {"b": 2}
    assert (run.branch.left_behind().remains, run.branch.left_behind().unwinding) == ({}, None)
    assert run.branch.logged[3].status == "bailed"


@pytest.mark.parametrize("how", ["interrupt", "raised"])
def test_an_interrupt_of_the_group_is_its_failure(how):
    """Whether it comes in a branch, or to the request itself."""
    interrupt = KeyboardInterrupt()
    run = Run()
    for fork in run.all():
        run.ends(fork, k=1)
    assert run.finish(**{how: interrupt}) is interrupt
    assert dict(run.branch.store) == {}


def test_a_conflict_fails_the_group():
    """Also one that is only found as it ends: with the key of its failures."""
    run = Run()
    first, second, *_ = run.all()
    run.ends(first, k=1)
    assert run.ends(second, k=2) is False
    assert isinstance(run.finish(), WriteConflictError)
    run = Run(options={"tolerate": 1, "failures": "lost"}, log=Log())
    first, second, *_ = run.all()
    run.ends(first, lost=1)
    run.ends(second, NO)
    assert isinstance(run.finish(), WriteConflictError)
    assert dict(run.branch.store) == {}
    assert run.branch.logged[3].status == "failed"


def test_an_interrupt_in_a_reducer_ends_the_group():
    """No other error of merging does before its branches have ended."""
    for error, stops in ((KeyboardInterrupt(), True), (LookupError(), False)):

        def reducer(one, other, error=error):
            raise error

        run = Run(options={"merge": {"k": reducer}})
        first, second, *_ = run.all()
        run.ends(first, k=1)
        assert run.ends(second, k=2) is stops
        assert run.conductor.is_open
        assert run.finish() is error


def test_what_cannot_be_written_fails_the_group():
    """Its writes do not take effect."""

    class Odd:
        def __reduce__(self):
            raise LookupError

    run = Run(recorder=recorder())
    run.ends(run.next(), k=Odd())
    error = run.finish()
    assert isinstance(error, SerializationError)
    assert dict(run.branch.store) == {}
    (_, row) = [*run.branch.terms.recorder.journal.history("run-1"), *run.branch.rows]
    assert row.status == "failed"


def test_a_group_that_cannot_be_announced_does_not_begin():
    """Its journal has failed."""
    made = recorder()
    made.unsaved = OSError("disk full")
    run = Run(recorder=made)
    assert (run.error, run.requests) == (made.unsaved, [])
    made = recorder()
    run = Run(recorder=made)
    run.ends(run.next())
    made.unsaved = OSError("disk full")
    assert run.finish() is made.unsaved


def test_a_group_that_needs_only_some_branches_merges_those():
    """However many come before them; its outcome says which."""
    run = Run(options={"enough": 1}, log=Log())
    first, second, *_ = run.all()
    assert run.ends(second, k=2) is True
    assert run.conductor.is_enough
    run.ends(first, Cancelled("with its group"), k=1)
    assert run.finish() is None
    assert dict(run.branch.store) == {"k": 2}
    assert (run.branch.logged[3].selection, run.branch.logged[3].branches) == (Selection({}, frozenset([1])), 4)
    run = Run(options={"enough": 2}, log=Log())
    first, second = run.next(), run.next()
    run.ends(first)
    run.ends(second, NO)
    assert run.finish() is NO
    assert (run.branch.logged[3].selection, run.branch.logged[3].branches) == (Selection(), 4)


def test_switches_and_results_of_a_group_that_failed_do_not_count():
    """Its time is that since it began."""
    for error in (None, NO):
        run = Run(log=Log(), clock=lambda: 8.0)
        run.scope.started = 5.0
        first, second, *_ = run.all()
        first.switch("tag:t", False)
        first.result = 7
        run.ends(first)
        run.ends(second, error)
        assert run.finish() is error
        assert (run.branch.switches, run.branch.result) == (({}, None) if error else ({"tag:t": False}, 7))
        assert (run.branch.logged[3].started, run.branch.logged[3].elapsed) == (1005.0, 3.0)


def test_a_reducer_for_nothing_is_logged(caplog):
    """With the run and the group; not if that failed, or bailed."""
    for error, count in ((NO, 0), (Bail(), 0), (None, 1)):
        run = Run(options={"merge": {"unknown": max}})
        run.ends(run.next(), error, k=1)
        run.finish()
        assert len(caplog.records) == count
    assert "run run-1: merge of the parallel group 'g' has the key 'unknown'" in caplog.text
    assert "'k'" in caplog.text or "no branch wrote" in caplog.text


# -- lost branches


def test_a_lost_branch_is_noted_with_its_last_rows():
    """By its name in the list of failures; the group has a record."""
    run = Run(options={"tolerate": 2, "failures": "lost"}, recorder=recorder())
    first, second, third, fourth = run.all()
    for fork in (third, first):
        assert run.ends(fork, NO) is False
        (row,) = fork.rows
        did = outcomes([row], run.branch.terms.recorder.codec)[ROOT][3]
        assert (did.status, list(did.selection.lost)) == ("running", [fork.index])
    run.ends(second, k=1)
    run.ends(fourth)
    assert run.finish() is None
    assert run.branch.store["lost"] == [("s0", NO), ("s2", NO)]
    ((_, record),) = run.branch.records.scopes
    assert list(record.selection.lost) == [2, 0]
    assert [each.status for each in run.branch.records.kept] == ["completed"] * 4


@pytest.mark.parametrize("why", ["stopped", "unsaved", "not tolerated"])
def test_a_branch_that_may_not_be_lost_is_not(why):
    """It was stopped, the journal has failed, or nothing is tolerated."""
    made = recorder()
    run = Run(options={"tolerate": 0 if why == "not tolerated" else 1}, recorder=made)
    fork = run.next()
    if why == "stopped":
        fork.stop()
    elif why == "unsaved":
        made.unsaved = NO
    assert run.ends(fork, NO) is True
    assert (fork.rows, run.conductor.verdicts.lost, run.conductor.names) == ([], {}, {})


# -- streams


def streamed(count=20, limit=2, journal=None, **options):
    """A group of so many branches of a stream."""
    heard = []
    group = parallel(stream([Stage(f"s{index}") for index in range(count)]), limit=limit, name="g", **options)
    return Run(group=group, notify=heard.append, recorder=journal), heard


def test_a_stream_waits_while_too_many_branches_are_held():
    """Until it is the turn of the first of them; observers hear how many."""
    run, heard = streamed()
    forks = [run.next() for _ in range(4)]
    assert run.conductor.has_room
    forks.append(run.next())
    assert (run.conductor.has_room, heard) == (False, [])
    for fork in forks[1:4]:
        run.ends(fork)
    assert [(event.group, event.held, event.first) for event in heard] == [("g", 1, 0), ("g", 2, 0), ("g", 3, 0)]
    run.ends(forks[0])
    assert (run.conductor.has_room, run.conductor.merger.turn) == (True, 4)
    assert heard[3:] == [BranchesHeld("run-1", "g", 0, 4)]
    assert len(heard) == 4
    run.ends(forks[4])
    assert heard[4:] == []


def test_at_the_end_nothing_is_held_any_more():
    """Observers hear of it."""
    journal = recorder()
    run, heard = streamed(6, journal=journal)
    forks = run.all()
    assert len(forks) == 6
    run.ends(forks[1])
    run.ends(forks[0], NO)
    heard.clear()
    run.conductor.held = 3
    assert run.finish() is NO
    assert [event.held for event in heard] == [0]
    assert outcomes(run.branch.rows or journal.journal.history("run-1"), journal.codec)[ROOT][3].branches == 6


def test_a_suspended_branch_ends_its_stream_but_not_the_others():
    """Unless it is lost; of fixed branches, the others go on."""
    for run, is_open in ((streamed()[0], False), (Run(), True)):
        fork = run.next()
        assert run.ends(fork, Suspend("waits")) is False
        assert run.conductor.is_open is is_open
    for error, is_open in ((ValueError(), True), (LookupError(), True)):
        run, _ = streamed(tolerate=1)
        run.ends(run.next(), error)
        assert run.conductor.is_open is is_open


def test_an_error_of_merging_ends_a_stream():
    """How many of its branches have begun would depend on their timing."""
    run, _ = streamed()
    run.ends(run.next(), k=1)
    run.ends(run.next(), k=2)
    assert not run.conductor.is_open


def test_the_journal_knows_how_many_branches_may_have_begun():
    """A multiple of the limit; it is told before there are more."""
    run, _ = streamed(journal=recorder())
    for _ in range(6):
        run.next()
    saves = [request for request in run.requests if isinstance(request, Save)]
    assert len(saves) == 1
    run.next()
    saves = [request for request in run.requests if isinstance(request, Save)]
    assert len(saves) == 2
    rows = run.branch.terms.recorder.journal.history("run-1")
    bounds = [outcomes([row], run.branch.terms.recorder.codec)[ROOT][3].branches for row in rows]
    assert bounds == [6, 12]


def test_an_error_of_the_stream_is_that_of_the_supply():
    """As its end; the group ends with it."""

    def units():
        yield UNITS[0]
        raise NO

    closed = []

    def left():
        try:
            yield from UNITS
        finally:
            closed.append("closed")

    run = Run(group=parallel(stream(left), name="g"))
    run.next(answer=False)
    assert (run.next(), closed) == (None, ["closed"])
    run = Run(group=parallel(stream(units), name="g"))
    assert run.next().index == 0
    assert run.next() is None
    assert run.supplied is NO
    assert run.conductor.ended(None, NO) is True
    assert run.finish() is NO


# -- resumed


def restored(status=Status.COMPLETED, branches=4, **more):
    """The group as it was before."""
    return Outcome("g", parallel(*UNITS, name="g"), status, 7.0, 2.0, number=3, end=4, branches=branches, **more)


def inside(*indexes):
    """Steps of these branches."""
    return {
        branch_id("0.3", index): {
            0: StageRecord(f"s{index}", UNITS[index], Status.COMPLETED, 1.0, 1.0, number=0, end=1)
        }
        for index in indexes
    }


def recalls(run, fork):
    """Have a branch restore all of its steps."""
    run.branch.terms.past.take(fork.id, 0, fork.unit, None, sealed=True)


def test_a_group_that_had_ended_is_restored():
    """First its branches, then its outcome; the journal hears nothing."""
    then = restored(writes=Delta({"k": 1}, [], {}), result=5)
    run = Run(earlier=then, past=History(inside(0, 1, 2, 3)))
    forks = run.all()
    assert [fork.index for fork in forks] == [0, 1, 2, 3]
    assert (run.branch.sealed, [fork.sealed for fork in forks]) == (1, [1] * 4)
    assert not any(fork.ended_early for fork in forks)
    for fork in forks:
        recalls(run, fork)
        run.ends(fork, **{f"k{fork.index}": 0})
    assert run.finish() is None
    assert (run.branch.sealed, dict(run.branch.store), run.branch.result) == (0, {"k": 1}, 5)
    assert run.requests == []
    run = Run(earlier=then, past=History(inside(0, 1, 2, 3)), sealed=1)
    assert (run.next().sealed, run.finish(), run.branch.sealed) == (2, None, 1)


def test_a_restored_group_keeps_its_record_if_not_all_branches_count():
    """With its unit, its inserter and its place as they are now; its switches and results are its branches'."""
    then = restored(selection=Selection({}, frozenset([1])), branches=4)
    past = History(inside(0, 1))
    run = Run(earlier=then, past=past, options={"enough": 1})
    unneeded, fork = run.all()
    assert (unneeded.index, fork.index, fork.ended_early) == (0, 1, True)
    fork.switch("tag:t", False)
    run.ends(unneeded, past.early_stop)
    run.ends(fork)
    assert run.finish() is None
    ((_, record),) = run.branch.records.scopes
    assert record == then._replace(unit=run.group, inserted_by="s/a", scope=run.scope.place, restored=True)
    assert run.branch.switches == {"tag:t": False}
    no = ValueError("no")
    then = restored(Status.FAILED, error=no)._replace(recovered=True)
    past = History(inside(0))
    past._errors.append(no)
    run = Run(earlier=then, past=past)
    fork = run.next()
    fork.switch("tag:t", False)
    run.ends(fork)
    assert run.finish() is no
    assert run.branch.switches == {}


def test_the_rehearsal_of_a_restored_group_notes_that_it_holds():
    """If it ends where it had ended."""
    past = rehearsal({ROOT: {3: restored()}, **inside(0, 1, 2, 3)})
    run = Run(earlier=restored(), past=past)
    for fork in run.all():
        past.take(fork.id, 0, fork.unit, None, sealed=True)
        past.confirm(fork.id, past._all[fork.id][0], fork.unit, 1)
        run.ends(fork)
    assert run.finish() is None
    assert (ROOT, 3) in past.taken
    assert past.changes == []


def test_what_differs_in_a_restored_group_is_its_error():
    """An unknown one of a branch, or an interrupt."""
    for error, interrupt in ((NO, None), (None, KeyboardInterrupt())):
        run = Run(earlier=restored(), past=History(inside(0, 1, 2, 3)))
        run.ends(run.next(), error)
        assert run.finish(interrupt) is (error or interrupt)
        assert run.branch.sealed == 0


def test_a_restored_group_ends_with_its_failure():
    """Which something around it has recovered; a branch of it may not have begun."""
    no = ValueError("no")
    then = restored(Status.FAILED, error=no, selection=Selection())._replace(recovered=True)
    past = History(inside(0, 2))
    run = Run(earlier=then, past=past, sealed=1)
    past._errors.append(no)
    forks = run.all()
    assert [fork.index for fork in forks] == [0, 2]
    assert all(fork.ended_early for fork in forks)
    for fork in forks:
        run.ends(fork)
    assert run.finish() is no
    assert run.branch.records.scopes == []


def test_lost_branches_are_restored_as_lost():
    """As far as they had come, and sealed; their failure is not one of the group."""
    then = restored(Status.RUNNING, selection=Selection({1: NO}))
    past = History(inside(1, 2))
    run = Run(earlier=then, past=past, options={"tolerate": 1, "failures": "lost"})
    forks = [run.next(), run.next()]
    assert [(fork.index, fork.sealed, fork.ended_early) for fork in forks] == [(1, 1, True), (2, 0, False)]
    more = run.all()
    assert [fork.index for fork in more] == [0, 3]
    assert CAUGHT_UP in run.requests
    for fork in (*forks, *more):
        run.ends(fork, NO if fork.index == 1 else None)
    assert run.finish() is None
    assert run.branch.store["lost"] == [("s1", NO)]
    then = restored(Status.RUNNING, selection=Selection({2: NO}))
    run = Run(earlier=then, past=History(inside(0)), options={"tolerate": 1})
    assert run.conductor.verdicts.known == 3  # nothing of it is left, and it does not begin again
    assert [fork.index for fork in run.all()] == [0, 1, 3]
    assert run.conductor.merger.unmerged == {2: None}


def test_branches_that_had_begun_are_supplied_first():
    """Then the group has caught up, and the others begin; a group that has ended meanwhile needs no more."""
    for answer in (True, False):
        run = Run(earlier=restored(Status.RUNNING), past=History(inside(0, 2)))
        conductor = run.conductor
        assert (conductor.is_restoring, conductor.must_catch_up, conductor.verdicts.known) == (True, True, 3)
        assert [run.next().index, run.next().index] == [0, 2]
        assert conductor.is_restoring
        request = run.source.send(True)
        assert request is CAUGHT_UP
        assert not conductor.is_restoring
        run.answer = answer
        assert [fork.index for fork in run.all()] == ([1, 3] if answer else [])
    run = Run(earlier=restored(Status.RUNNING, branches=0), past=History({}))
    assert run.conductor.verdicts.known == 0
    run = Run()
    assert (run.conductor.is_restoring, run.conductor.must_catch_up) == (False, False)


def test_branches_continue_over_what_they_left_in_memory():
    """Not lost ones, and not in a group that had ended."""
    store = Store({"k": "left"})
    ids = [branch_id("0.3", index) for index in range(4)]
    remains = {id: Remains(store if id == ids[0] else None, None, "result", {}) for id in ids[:2]}
    remains[ids[2]] = Remains(None, None, None, {}, Delta({"k": "merged"}, [], {}))
    past, then = History(inside(0, 1, 2), is_in_memory=True, remains=remains), restored(Status.FAILED)
    run = Run(
        earlier=then._replace(selection=Selection({1: NO})), past=past, options={"tolerate": 1}, inputs={"outer": 1}
    )
    first, second, third, _ = run.all()
    assert (first.store["k"], first.read("k"), first.result) == ("left", "left", "result")
    assert ("k" in second.store, second.result) == (False, None)
    assert (dict(third.store), third.read("k")) == ({"outer": 1, "k": "merged"}, "merged")
    run = Run(earlier=restored(), past=History(inside(0), is_in_memory=True, remains=remains))
    assert run.next().result is None


def test_branches_of_an_archived_run_have_an_address():
    """By the name of the group, and their place in it."""
    seen = []
    archive = Archive([{}])
    archive.begin_branch = lambda *place: seen.append(place)
    run = Run(past=History({}, archive=archive))
    run.next()
    assert seen == [(ROOT, branch_id("0.3", 0), "g", 0)]


def test_a_stream_must_give_as_many_branches_as_before():
    """Else the run has changed."""
    group = parallel(stream(UNITS[:1]), name="g", limit=2)
    past = History(inside(0, 1))
    run = Run(group=group, earlier=restored(Status.RUNNING, branches=6), past=past)
    assert run.next().index == 0
    assert run.next() is None
    assert isinstance(run.supplied, CodeChangedError)
    assert "the parallel group 'g' had more than 1 branches" in str(run.supplied)

    def fails():
        yield UNITS[0]
        raise NO

    run = Run(group=parallel(stream(fails), name="g"), earlier=restored(Status.RUNNING, branches=6), past=past)
    assert (run.next().index, run.next(), run.supplied) == (0, None, NO)
    run = Run(group=group, earlier=restored(Status.RUNNING, branches=20), past=History({}))
    assert run.conductor.source.bound == 20


# -- rehearsed


def rehearsal(steps, **options):
    return Rehearsal(steps, pipeline=as_pipeline(parallel(*UNITS, name="g")), code=None, **options)


def test_a_rehearsal_of_an_unfinished_group_ends_with_it():
    """All of its branches are walked through; nothing is performed or noted."""
    for earlier in (restored(Status.RUNNING), None):
        past = rehearsal(inside(0, 1))
        run = Run(earlier=earlier, past=past)
        forks = run.all()
        assert [fork.index for fork in forks] == [0, 1, 2, 3]
        for fork in forks:
            run.ends(fork, past.stop)
        assert run.finish() is past.stop
        assert (run.requests, run.branch.records.scopes) == ([], [])


def test_the_first_failure_of_a_rehearsal_counts():
    """Before an interrupt, and before the end of the history."""
    past = rehearsal(inside(0, 1))
    run = Run(earlier=restored(Status.RUNNING), past=past)
    first, second, third, _ = run.all()
    run.ends(first, past.stop)
    run.ends(third, LookupError("later"))
    run.ends(second, NO)
    assert run.finish(KeyboardInterrupt()) is NO
    run = Run(earlier=restored(Status.RUNNING), past=rehearsal(inside(0)))
    interrupt = Cancelled("run")
    assert run.finish(interrupt) is interrupt


def test_in_the_rehearsal_of_a_stream_only_what_had_begun_is_pulled():
    """There may be no end to it."""
    group = parallel(stream(UNITS), name="g", limit=2)
    past = Rehearsal(inside(0, 2), pipeline=as_pipeline(group), code=None)
    run = Run(group=group, earlier=restored(Status.RUNNING, branches=6), past=past)
    assert [fork.index for fork in run.all()] == [0, 2]
