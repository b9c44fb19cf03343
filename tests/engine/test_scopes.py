"""Scopes are opened, filled and closed: a branch with one of them on its agenda, step by step."""

from types import SimpleNamespace

import pytest
from scripted import perform, terms_of
from support import again, around, one, step, swallow

from flowdeco import Bail, Sleep, Stage, Status, Store, Suspend, action, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.branch import Branch
from flowdeco.engine.changes import Watch
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.memory import Log, Remains
from flowdeco.engine.open_scopes import UNNUMBERED, OpenScope
from flowdeco.engine.outcome import ROOT, RUN, ActionRecord, Outcome, Scope, StageRecord, branch_id, inserter
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import CAUGHT_UP, Raised
from flowdeco.engine.scopes import end_scope, fill_scope, leave_scope, limited, open_scope
from flowdeco.engine.waits import Wall
from flowdeco.errors import Cancelled, SerializationError, Wait
from flowdeco.events import StageStarted
from flowdeco.middleware import atomic
from flowdeco.model.deltas import NOTHING, Delta, Mark

A, B = step([], "a"), step([], "b")
S = Stage("s", [A, B])
PLACE = Scope("p", "p1", None, None, None)


def done(walk):
    """What a walk that may have nothing to ask for comes to."""
    return perform(walk) if hasattr(walk, "send") else walk


def branch_with(flow=S, inputs=None, **terms):
    """A branch in a pipeline, without anything on its agenda."""
    branch = Branch(terms_of(**terms), Store(inputs), OpenScope(None, None, None, 0.0))
    branch.scope = OpenScope(branch.base, pipeline(flow), None, 0.0)
    return branch


def opened(branch, unit=S, use=(), number=0, earlier=None):
    """The scope of a unit, opened in a branch as its next step, and the error of that."""
    scope = OpenScope(branch.scope, unit, "x/y", 5.0, number)
    scope.place = PLACE
    branch.number = number + 1
    return scope, done(open_scope(branch, scope, use, earlier))


def closed(branch, scope, error=None):
    """Take a scope from the agenda with all that is above it, and close it; return the failure that is left."""
    while branch.agenda and branch.agenda.pop()[0] is not scope:
        pass
    if error is not None:
        return done(leave_scope(branch, scope, error))
    return done(end_scope(branch, scope, "x/y"))


def recorder():
    """A recorder of a journal in which the run has begun."""
    journal = MemoryJournal()
    journal.create("run-1", "pipeline", journal.codec.encode({}, "inputs"), ())
    return Recorder(journal, "run-1", lambda function: "code", digest)


def agenda(branch):
    """The names on the agenda, the next thing first."""
    return [getattr(unit, "name", unit) for unit, _ in reversed(branch.agenda)]


def passes(call):
    yield


def writes(key="w", leaving="l"):
    """A layer that writes before and after its target, whatever comes of that."""

    def layer(call):
        call.store[key] = "before"
        try:
            yield
        finally:
            call.store[leaving] = "after"

    return layer


def skips(call):
    return
    yield


# -- on the agenda


def test_a_scope_is_below_its_contents():
    """It knows its depth, and the branch is inside it, until it ends."""
    branch = branch_with()
    outer = branch.scope
    branch.agenda.append(("waiting", None))
    scope, error = opened(branch)
    assert (error, scope.depth, branch.scope, scope.outer) == (None, 1, scope, outer)
    assert agenda(branch) == ["a", "b", scope, "waiting"]
    inner, _ = opened(branch, pipeline(B, S, name="p"), number=UNNUMBERED)
    assert (inner.depth, agenda(branch)[:3]) == (4, ["b", "s", inner])
    assert [by for _, by in branch.agenda[-2:]] == ["x/y", "x/y"]
    assert closed(branch, inner) is None
    assert (branch.scope, branch.records.kept) == (scope, [])  # a pipeline without layers is no step
    assert closed(branch, scope) is None
    assert (branch.scope, agenda(branch)) == (outer, ["waiting"])


@pytest.mark.parametrize("use", [(), (passes,)], ids=["plain", "in a layer"])
@pytest.mark.parametrize("keeps", [True, False])
def test_the_record_of_a_stage_says_what_became_of_it(use, keeps):
    """In POSIX seconds, with its place and that of the next step; a run without records has none."""
    branch = branch_with(most_records=None if keeps else 0)
    scope, _ = opened(branch, use=use, number=3)
    branch.number = 6
    scope.records.append("a record")
    assert closed(branch, scope) is None
    records = [
        record._replace(elapsed=0.0) for record in (branch.records.kept if keeps else ())
    ]  # the clock ticks whenever it is read
    expected = StageRecord("s", S, Status.COMPLETED, 1005.0, 0.0, "x/y", 3, actions=["a record"], scope=PLACE, end=6)
    assert records == [expected] * keeps


@pytest.mark.parametrize("plain", [True, False])
def test_the_time_of_a_stage_ends_when_it_does(plain):
    """Whether anything observes it or not."""
    branch = branch_with(clock=lambda: 8.0, notify=None if plain else lambda event: None)
    scope, _ = opened(branch)
    closed(branch, scope)
    assert [record.elapsed for record in branch.records.kept] == [3.0]
    branch = branch_with(log=Log(), notify=None if plain else lambda event: None)
    scope, _ = opened(branch)
    closed(branch, scope)
    assert branch.logged == {0: branch.records.kept[0]}


def test_what_was_inserted_comes_next():
    """By the actions of a scope, and then by its layers, in order; not after a failure."""
    units = [one([], name) for name in "vwxyz"]

    def inserts(call):
        call.insert(units[2], units[3])
        yield

    for error, use, expected in (
        (None, (), ["v", "w"]),
        (None, (inserts,), ["v", "w", "x", "y"]),
        (None, (inserts, skips), ["v", "w", "x", "y"]),
        (ValueError(), (inserts,), []),
        (Bail(), (inserts,), []),
    ):
        branch = branch_with()
        scope, _ = opened(branch, use=use, number=3)
        scope.inserted += [(unit, "s/a") for unit in units[:2]]
        assert closed(branch, scope, error) is error
        assert agenda(branch) == expected
        assert {by for _, by in branch.agenda[: -2 or None]} <= {"s"}
        if expected[2:]:
            assert [(by, by.number) for _, by in branch.agenda[:2]] == [(inserter("s", 3), 3)] * 2
        (record,) = branch.records.kept
        assert [unit.name for unit in record.inserted] == expected[2:]


def test_what_layers_insert_must_be_possible():
    """Nothing that lacks a value, nor in a durable run a stream that cannot be called again."""

    @action
    def lacks(nowhere):
        pass

    def inserts(*units):
        def layer(call):
            call.insert(*units)
            yield

        return layer

    from flowdeco import stream

    for terms, unit, text in (
        ({}, Stage("t", [lacks]), "nowhere"),
        ({"recorder": recorder()}, stream([S]), "a middleware of stage 's' inserted the stream of"),
    ):
        branch = branch_with(**terms)
        scope, _ = opened(branch, use=(inserts(unit),))
        error = closed(branch, scope)
        assert text in str(error)
        (record,) = branch.records.kept
        assert (record.status, record.error, record.inserted, agenda(branch)) == ("failed", error, (), [])
    branch = branch_with()
    scope, _ = opened(branch, use=(inserts(stream([S])),))
    assert closed(branch, scope) is None


# -- what is known of its surroundings


def test_observers_hear_that_a_stage_begins():
    """With the step that inserted it, and the branches it is in; of a pipeline they do not."""
    heard = []
    group = Scope("g", "0.3", 1, None, Scope("p", "p1", None, None, Scope("h", "0.2", 0, None, None)))
    for place, expected in ((None, None), (PLACE, None), (group, "h[0]/g[1]")):
        branch = branch_with(notify=heard.append)
        scope = OpenScope(branch.scope, S, "x/y", 5.0, 0)
        scope.place = place
        done(open_scope(branch, scope, (), None))
        assert heard.pop() == StageStarted("run-1", "s", "x/y", expected)
    opened(branch, pipeline(S, name="p"))
    assert heard == []


@pytest.mark.parametrize(
    ("change", "is_quiet", "is_bare"),
    [
        (lambda branch, scope: None, True, True),
        (lambda branch, scope: setattr(scope, "use_actions", (passes,)), True, False),
        (lambda branch, scope: setattr(scope, "values", {"k": 1}), False, False),
        (lambda branch, scope: setattr(scope, "is_skipped", True), False, False),
        (lambda branch, scope: branch.switch("t", False), False, False),
    ],
    ids=["nothing", "layers of actions", "values", "skipped", "switched off"],
)
def test_the_actions_of_a_plain_stage_need_not_be_looked_at_one_by_one(change, is_quiet, is_bare):
    """If nothing selects or supplies anything; they may have layers."""
    branch = branch_with()
    scope = OpenScope(branch.scope, S, None, 5.0, 0)
    assert (scope.is_quiet, scope.is_bare) == (False, False)
    change(branch, scope)
    fill_scope(branch, scope)
    assert (scope.is_quiet, scope.is_bare) == (is_quiet, is_bare)


def test_local_results_are_dropped_with_their_stage():
    """Unless it failed: a resume may need them."""
    local = Stage("s", [A, B], local=True)
    for error, names in ((None, []), (Bail(), []), (ValueError(), ["a", "b"])):
        for notify in (None, lambda event: None):
            branch = branch_with(local, notify=notify)
            scope, _ = opened(branch, local)
            assert scope.local == {"a", "b"}
            for act, _ in list(branch.agenda[1:]):
                branch.store.put(act.writes, 1)
            assert closed(branch, scope, error) is error
            assert branch.left_behind().abandoned == dict.fromkeys(names, "s")
            assert branch.store.ended_locals() == ({} if names else {"a": "s", "b": "s"})
            left = [name.name for name, _ in branch.store.everything()]
            assert sorted(left) == (names if not isinstance(error, Bail) else left)


# -- the data of a stage


DATA = Stage("s", [A], data={"k": [1]})


def test_the_data_of_a_stage_is_merged_as_it_opens():
    """Copied, and before its contents; without a journal nothing is noted of it."""
    branch = branch_with(DATA, {"k": 0})
    scope, error = opened(branch, DATA)
    assert (error, branch.store["k"], scope.mark, branch.rows) == (None, [1], None, [])
    assert branch.store["k"] is not DATA.data["k"]
    assert agenda(branch) == ["a", scope]


class Odd:
    """A value that can be declared, and later neither be copied nor pickled."""

    can_be_copied = True

    def __deepcopy__(self, memo):
        if not self.can_be_copied:
            raise LookupError("no copy")
        return self

    def __reduce__(self):
        raise LookupError("no pickle")


def test_data_that_cannot_be_copied_is_the_failure_of_its_stage():
    """Nothing in it runs, and nothing of it is left."""
    odd = Odd()
    unit = Stage("s", [A], data={"j": 1, "k": odd})
    odd.can_be_copied = False
    branch = branch_with(unit, {"j": 0}, log=Log())
    scope, error = opened(branch, unit)
    assert "key 'k' holds an Odd (no copy)" in str(error)
    assert agenda(branch) == [scope]
    assert closed(branch, scope, error) is error
    assert branch.left_behind().unwinding is not None
    assert (branch.left_behind().unfinished, branch.records.kept[0].entered) == ({}, False)


def test_in_a_durable_run_the_data_is_in_the_journal_as_the_stage_begins():
    """What cannot be written there fails the stage."""
    branch = branch_with(DATA, recorder=recorder())
    scope, error = opened(branch, DATA, number=4)
    (row,) = branch.rows
    assert (error, scope.mark, row.number, row.kind, row.status, row.started) == (
        None,
        None,
        4,
        "stage",
        "running",
        1005.0,
    )
    unit = Stage("s", [A], data={"k": Odd()})
    branch = branch_with(unit, recorder=recorder())
    scope, error = opened(branch, unit)
    assert isinstance(error, SerializationError)
    assert scope.mark is not None


# -- in layers


def test_layers_are_entered_before_the_contents_and_see_the_scope():
    """They are around it, and what they supply is for what is inside."""
    log, seen = [], []

    def gives(call):
        seen.append((call.level, call.name, call.run_id, call.store, call.stage, call.pipeline.name))
        yield {"given": 1}

    branch = branch_with()
    scope, error = opened(branch, use=(around(log, "m"), gives))
    assert (error, log, scope.values) == (None, ["+m"], {"given": 1})
    assert agenda(branch) == ["a", "b", scope]
    assert seen == [("stage", "s", "run-1", branch.store, S, "pipeline")]
    assert closed(branch, scope) is None
    assert log == ["+m", "-m"]
    flow = pipeline(S, name="p")
    opened(branch, flow, (gives,))
    assert seen[1] == ("pipeline", "p", "run-1", branch.store, None, "p")


def test_a_layer_that_skips_its_target_leaves_nothing_to_do():
    """The scope is skipped, and has not been entered."""
    branch = branch_with()
    scope, _ = opened(branch, use=(skips,), number=3)
    assert agenda(branch) == [scope]
    assert closed(branch, scope) is None
    (record,) = branch.records.kept
    assert (record.status, record.entered, record.end) == ("skipped", False, 4)


def test_what_is_in_a_skipped_pipeline_is_skipped_one_by_one():
    """So its contents are on the agenda, in a scope that is skipped."""
    branch = branch_with()
    scope, _ = opened(branch, pipeline(S, name="p"), (skips,))
    assert (agenda(branch)[0], scope.is_skipped, scope.layers.entered) == ("s", True, False)


def test_open_layers_may_ask_for_another_attempt():
    """Until they are left, the branch knows the groups inside."""
    branch = branch_with()
    outer, _ = opened(branch, pipeline(S, name="p"), (passes,))
    inner, _ = opened(branch, S, (passes,), number=1)
    assert branch.revocable == 2
    branch.inner_branches = [(2, ["x"])]
    closed(branch, inner)
    assert (branch.revocable, branch.inner_branches) == (1, [(2, ["x"])])
    closed(branch, outer)
    assert (branch.revocable, branch.inner_branches) == (0, [])
    branch.inner_branches = [(2, ["x"])]
    plain, _ = opened(branch)
    closed(branch, plain, ValueError())
    assert (branch.revocable, branch.inner_branches) == (0, [])


def test_the_state_that_another_attempt_restores_is_that_before_the_layers():
    """Its records, result and switches, the store, and the rows that were held."""
    branch = branch_with(inputs={"k": 1})
    branch.records.add("earlier")
    branch.result = "earlier"
    branch.rows.append("held")
    scope, _ = opened(branch, use=(writes(),))
    assert (scope.before.records, scope.before.result, scope.held) == (1, "earlier", 1)
    assert dict(branch.store) == {"k": 1, "w": "before"}
    branch.store.undo(scope.mark)
    assert dict(branch.store) == {"k": 1}


@pytest.mark.parametrize("error", [None, ValueError(), Bail(), Suspend("waits")], ids=repr)
@pytest.mark.parametrize("use", [(), (passes,), (again(1),), (writes(),), (atomic,), (skips,)])
def test_marks_are_let_go_with_their_scope(error, use):
    """A store that nobody may undo notes nothing, whether the run is durable or not."""
    for terms in ({}, {"recorder": recorder()}):
        branch = branch_with(DATA, **terms)
        scope, _ = opened(branch, DATA, use)
        closed(branch, scope, error)
        branch.store["new"] = 1
        assert not branch.store.has_written("new")


# -- what a failure leaves behind in memory


@pytest.mark.parametrize("error", [None, Bail(), ValueError(), Suspend("waits")], ids=repr)
def test_a_scope_that_failed_is_left_open_for_a_resume(error):
    """By the marks of its layers, and the result before it; a `Bail` is an end as well."""
    branch = branch_with(log=Log())
    branch.result = "before"
    scope, _ = opened(branch, use=(writes(), writes("v")), number=3)
    branch.result = "after"
    assert closed(branch, scope, error) is error
    left = branch.left_behind().unfinished
    assert list(left) == ([] if error is None else [3])
    if error is not None:
        marks, result = left[3]
        assert (len(marks), result) == (2, "before")
    assert (
        branch.logged[3].status
        == {None: "completed", Bail: "bailed", ValueError: "failed", Suspend: "suspended"}[error and type(error)]
    )
    branch = branch_with(log=Log())
    scope, _ = opened(branch, number=3)
    closed(branch, scope, error)
    assert branch.left_behind().unfinished == {}


def test_a_scope_that_was_not_entered_begins_anew_on_a_resume():
    """The writes of its layers are undone as well, inside and out."""

    def fails(call):
        raise LookupError("no")
        yield

    branch = branch_with(inputs={"k": 1}, log=Log())
    scope, error = opened(branch, use=(writes(), fails), number=3)
    assert closed(branch, scope, error) is error
    (record,) = branch.records.kept
    assert (record.entered, branch.left_behind().unfinished) == (False, {})
    branch.store.undo(branch.left_behind().unwinding)
    assert dict(branch.store) == {"k": 1}


def test_a_scope_that_succeeds_recovers_what_was_left():
    """Of a failure inside it."""
    branch = branch_with(log=Log())
    outer, _ = opened(branch, pipeline(S, name="p"), (swallow,))
    inner, _ = opened(branch, number=1)
    branch.left_behind().unwind(branch.store)
    error = closed(branch, inner, ValueError("no"))
    assert branch.left_behind().unwinding is not None
    assert closed(branch, outer, error) is None
    assert branch.left_behind().unwinding is None
    (record,) = branch.records.kept
    assert (record.status, record.recovered) == ("failed", True)


# -- one step


def test_an_atomic_scope_holds_its_rows_back():
    """While it is open, and those inside it as well; then they are written at once."""
    made = recorder()
    branch = branch_with(recorder=made)
    branch.rows.append(None)
    branch.rows.clear()
    outer, _ = opened(branch, pipeline(S, name="p"), (atomic,))
    assert (outer.is_atomic, branch.atomic) == (True, 1)
    inner, _ = opened(branch, S, (atomic, passes), number=1)
    assert (inner.is_atomic, branch.atomic) == (True, 2)
    plain, _ = opened(branch, Stage("t"), number=2)
    assert closed(branch, plain) is None
    assert closed(branch, inner) is None
    assert (branch.atomic, [row.stage for row in branch.rows]) == (1, ["t", "s"])
    assert made.journal.history("run-1") == []
    assert closed(branch, outer) is None
    assert (branch.atomic, branch.rows) == (0, [])
    assert [row.stage for row in made.journal.history("run-1")] == ["t", "s", "p"]


@pytest.mark.parametrize("error", [ValueError("no"), Suspend("waits"), Bail()], ids=repr)
def test_an_atomic_scope_that_fails_is_as_if_it_had_not_begun(error):
    """It leaves its own row alone; after a `Bail` it stands."""
    made = recorder()
    branch = branch_with(inputs={"k": 1}, recorder=made)
    branch.rows.append(made.row("0", None, StageRecord("t", Stage("t"), Status.COMPLETED, 0.0, 0.0, number=0, end=1)))
    scope, _ = opened(branch, use=(writes(), atomic), number=1)
    plain, _ = opened(branch, Stage("u"), number=2)
    assert closed(branch, plain) is None
    assert closed(branch, scope, error) is error
    bailed = isinstance(error, Bail)
    rows = made.journal.history("run-1")
    assert [row.stage for row in rows if row.status != "running"] == ["t", *(["u"] * bailed), "s"]
    assert rows[-1].status == str(branch.records.kept[-1].status)
    assert branch.records.kept[-1].entered is bailed
    branch = branch_with(inputs={"k": 1}, log=Log())
    scope, _ = opened(branch, use=(writes(), atomic), number=1)
    branch.store["inside"] = 1
    closed(branch, scope, error)
    assert list(branch.left_behind().unfinished) == [1] * bailed
    if not bailed:
        branch.store.undo(branch.left_behind().unwinding)
        assert dict(branch.store) == {"k": 1}


def test_another_attempt_at_an_atomic_scope_counts_once():
    """It is one step from the first one on."""
    log = []
    branch = branch_with(recorder=recorder())
    scope, _ = opened(branch, use=(again(2), atomic))
    assert closed(branch, scope, ValueError()) is None
    assert (branch.atomic, scope.is_atomic, branch.revocable) == (1, True, 1)
    assert agenda(branch) == ["a", "b", scope]
    assert closed(branch, scope) is None
    assert (branch.atomic, branch.revocable, log) == (0, 0, [])
    (record,) = branch.records.kept
    assert (record.attempts, record.status, record.repeats) == (2, "completed", (1, 0))
    assert [type(error) for error in record.failures] == [ValueError]


# -- time


def test_a_timeout_is_a_layer_of_its_unit():
    """With the name of it; how much of it a suspended run has used is known when it continues."""
    now = [100.0]
    branch = branch_with(clock=lambda: now[0], recorder=recorder())
    scope = OpenScope(branch.scope, Stage("s", [A], timeout=5.0), None, 0.0, 0)
    assert limited(branch, OpenScope(branch.scope, S, None, 0.0, 0), "stage") == ()
    (limit,) = limited(branch, scope, "stage")
    assert limit.supplies is False
    for used in (0.0, 2.0):
        if used:
            branch.terms.waits["0", 0] = [Wait("used", used, 0, key="used")]
        done(open_scope(branch, scope, (limit,), None))
        deadline = branch.deadline
        assert (deadline.message, deadline.scope) == ("stage 's' took longer than its timeout of 5 s", scope)
        assert deadline.left() == 5.0 - used
        now[0] += 1.5
        error = Suspend("waits")
        assert closed(branch, scope, error) is error
        assert branch.deadline is None
        (wait,) = branch.records.kept.pop().waits
        assert wait == Wait("used", used + 1.5, 0, key="used")
    done(open_scope(branch, scope, (limit,), None))
    now[0] += 5.5
    error = closed(branch, scope)
    assert (str(error), error.__cause__) == ("stage 's' took longer than its timeout of 5 s", None)


def test_a_failure_passes_the_timeout_as_it_is():
    """Only a suspended scope has used some of it."""
    branch = branch_with()
    unit = Stage("s", [A], timeout=50.0)
    for error in (None, ValueError()):
        scope = OpenScope(branch.scope, unit, None, 0.0, 0)
        done(open_scope(branch, scope, limited(branch, scope, "stage"), None))
        assert closed(branch, scope, error) is error
        assert branch.records.kept.pop().waits == ()


# -- a scope that had ended before the run was resumed


def earlier(status=Status.COMPLETED, number=0, **more):
    """A stage as it was before."""
    more = {"end": number + 3, "started": 7.0, "elapsed": 2.0, **more}
    return StageRecord("s", S, status, number=number, **more)


def sealed(then, unit=S, use=(), **terms):
    """A branch in which a scope that had ended is open again."""
    branch = branch_with(past=History({}), **terms)
    scope, error = opened(branch, unit, use, then.number, then)
    assert error is None
    return branch, scope


def test_a_scope_that_had_ended_opens_without_its_layers():
    """What they wrote takes effect again, and its contents are restored."""
    log, heard = [], []
    then = earlier(entry_writes=[Delta({"w": 1}, [], {}), Delta({"v": 2}, [], {})], writes=Delta({"l": 3}, [], {}))
    branch, scope = sealed(then, use=(around(log, "m"),), notify=heard.append)
    assert (branch.sealed, scope.earlier, branch.revocable) == (1, then, 0)
    assert (dict(branch.store), agenda(branch), log, heard) == ({"w": 1, "v": 2}, ["a", "b", scope], [], [])
    assert scope.before is None
    branch.number = 3
    scope.records.append("a record")
    assert closed(branch, scope) is None
    assert (branch.sealed, branch.store["l"]) == (0, 3)
    assert branch.records.kept == [
        StageRecord(
            "s", S, Status.COMPLETED, 7.0, 2.0, "x/y", 0, actions=["a record"], scope=PLACE, end=3, restored=True
        )
    ]


def test_a_branch_is_sealed_until_all_such_scopes_have_ended():
    """However deep they are nested."""
    branch, outer = sealed(
        Outcome("p", pipeline(S, name="p"), Status.COMPLETED, 1.0, 1.0, number=0, end=4), pipeline(S, name="p")
    )
    inner, _ = opened(branch, S, (), 1, earlier(number=1))
    assert branch.sealed == 2
    branch.number = 4
    assert closed(branch, inner) is None
    assert branch.sealed == 1
    assert closed(branch, outer) is None
    assert branch.sealed == 0


def test_a_scope_that_was_not_entered_has_no_contents():
    """The next step has the number that it had."""
    for number in (1, 5):
        branch, scope = sealed(earlier(Status.SKIPPED, entered=False))
        assert agenda(branch) == [scope]
        branch.number = number
        assert closed(branch, scope) is None
        assert branch.number == max(3, number)


@pytest.mark.parametrize(
    ("status", "end", "contents"),
    [(Status.SKIPPED, 4, ["s"]), (Status.SKIPPED, 2, ["s"]), (Status.SKIPPED, 1, []), (Status.BAILED, 4, [])],
)
def test_the_contents_of_a_pipeline_that_was_skipped_are_skipped_again(status, end, contents):
    """If it was its layers that had skipped it, and the contents were recorded."""
    flow = pipeline(S, name="p")
    branch, scope = sealed(Outcome("p", flow, status, 1.0, 1.0, number=0, end=end, entered=False), flow)
    assert agenda(branch) == [*contents, scope]
    assert scope.is_skipped == bool(contents)


@pytest.mark.parametrize("recovered", [True, False])
def test_a_scope_ends_as_it_had_ended(recovered):
    """With its failure, unless that was recovered; what it inserted comes again, if it did not fail."""
    no = ValueError("no")
    status = Status.FAILED if recovered else Status.BAILED
    then = earlier(status, error=no, recovered=recovered, inserted=(Stage("t"),))
    branch, scope = sealed(then)
    assert scope.before is not None
    branch.number = 3
    past = branch.terms.past
    past.steps["0"] = {0: then}
    past.take("0", 0, S, None, sealed=True)
    assert closed(branch, scope, no) is (None if recovered else no)
    assert agenda(branch) == ["t"] * recovered
    assert [by for _, by in branch.agenda] == ["s"] * recovered


def test_a_scope_that_ends_otherwise_has_changed():
    """With another error, or another number of steps."""
    branch, scope = sealed(earlier())
    error = LookupError("new")
    assert closed(branch, scope, error) is error
    assert branch.records.kept == []
    branch, scope = sealed(earlier())
    branch.number = 5
    assert "stage 's' has completed, and ends elsewhere" in str(closed(branch, scope))
    branch, scope = sealed(earlier())
    branch.terms.past.steps[ROOT] = {2: did_a()}
    branch.number = 2
    assert "action s/a has completed, and no longer exists" in str(closed(branch, scope))
    branch, scope = sealed(earlier())
    branch.number = 3
    stop = branch.terms.past.early_stop
    assert closed(branch, scope, stop) is stop


def test_local_results_of_a_restored_stage_are_dropped_unless_they_are_in_memory():
    """There, those in the store are of a later stage."""
    local = Stage("s", [A, B], local=True)
    for is_in_memory in (False, True):
        branch = branch_with(local, past=History({}, is_in_memory=is_in_memory))
        scope, _ = opened(branch, local, earlier=earlier())
        branch.store.put(branch.agenda[1][0].writes, 1)
        branch.number = 3
        closed(branch, scope)
        assert [name.name for name, _ in branch.store.everything()] == ["b"] * is_in_memory


def test_records_inside_a_pipeline_learn_what_it_came_to():
    """A failure that it recovered, and errors of attempts that it dropped; no others."""
    inside = StageRecord("t", Stage("t"), Status.FAILED, 0.0, 0.0, number=1, scope=PLACE, error=ValueError("no"))
    flow = pipeline(S, name="p")
    dropped = {("p1[None]", 1, "t"): [LookupError("before")]}
    for more, recovered, failures in (
        ({}, False, 0),
        ({"status": Status.FAILED, "error": ValueError("no"), "recovered": True}, True, 0),
        ({"dropped": dropped}, False, 1),
    ):
        then = Outcome(
            "p", flow, **{"status": Status.COMPLETED, "started": 1.0, "elapsed": 1.0, "number": 0, "end": 3, **more}
        )
        branch, scope = sealed(then, flow)
        assert (scope.before is None) == (not more)
        branch.number = 3
        branch.records.add(inside)
        assert closed(branch, scope) is None
        (record,) = branch.records.kept
        assert (record.recovered, len(record.failures)) == (recovered, failures)
    branch = branch_with()
    scope, _ = opened(branch, flow, (swallow,))
    branch.records.add(inside)
    closed(branch, scope, inside.error)
    assert [record.recovered for record in branch.records.kept] == [True]
    stage = StageRecord("s", S, Status.FAILED, 7.0, 2.0, number=0, end=3, error=ValueError(), recovered=True)
    branch, scope = sealed(stage)
    branch.number = 3
    scope.records.append(ActionRecord("a", A, Status.FAILED, 0.0, 0.0, number=1, error=stage.error))
    closed(branch, scope)
    assert branch.records.kept[0].actions[0].recovered


# -- a scope that had begun


def begun(unit=S, use=(), status=Status.FAILED, entry_writes=(), past=None, **more):
    """A branch in which a scope is open that had begun before the run was resumed, and the error of that."""
    then = earlier(status, end=-1, entry_writes=entry_writes, error=ValueError("then"))._replace(name=unit.name)
    then = then._replace(**{name: more.pop(name) for name in list(more) if name in Outcome._fields})
    branch = branch_with(past=History({}, is_in_memory=False) if past is None else past, **more)
    scope, error = opened(branch, unit, use, 0, then)
    return branch, scope, error


def test_the_time_of_a_scope_goes_on():
    """From when it had begun."""
    branch, scope, _ = begun(clock=lambda: 6.0)
    assert closed(branch, scope) is None
    (record,) = branch.records.kept
    assert (record.started, record.elapsed, record.restored, record.error) == (7.0, 3.0, False, None)
    branch = branch_with(past=History({}), clock=lambda: 6.0)  # it has no row, but its actions do
    scope, _ = opened(branch)
    scope.records.append(did_a()._replace(started=3.0, elapsed=0.5, restored=True))
    closed(branch, scope)
    assert (branch.records.kept[0].started, branch.records.kept[0].elapsed) == (3.0, 1.5)


def test_layers_do_not_write_again_what_they_had_written():
    """As they are entered: what was in the store then counts."""
    entering = [Delta({"w": "then"}, [], {}), Delta({"v": "then"}, [], {})]
    log = []
    branch, scope, error = begun(
        use=(writes(), around(log, "m"), writes("v")), entry_writes=[*entering[:1], NOTHING, entering[1]]
    )
    assert (error, dict(branch.store), log) == (None, {"w": "then", "v": "then"}, ["+m"])
    assert (branch.rows, scope.layers.replays, branch.revocable) == ([], None, 1)
    closed(branch, scope)
    assert branch.store["l"] == "after"
    branch, _, _ = begun(use=(writes(),), entered=False)
    assert dict(branch.store) == {"w": "before"}  # they had not been entered
    branch, _, _ = begun(use=(writes(),))
    assert dict(branch.store) == {}  # they had written nothing


def test_the_data_of_a_stage_that_had_begun_is_not_merged_again():
    """In a journal it is with the beginning of the stage; in memory it is in the store."""
    branch, _, _ = begun(DATA, entry_writes=[Delta({"k": "then"}, [], {})])
    assert dict(branch.store) == {"k": "then"}
    branch, _, _ = begun(DATA, entry_writes=[Delta({"k": "then"}, [], {})], past=History({}, is_in_memory=True))
    assert dict(branch.store) == {}
    branch, _, _ = begun(DATA, entered=False)
    assert dict(branch.store) == {"k": [1]}
    for inside, expected in (({1: did_a()}, {}), ({2: did_a()}, {"k": [1]}), ({}, {"k": [1]})):
        branch = branch_with(past=History({ROOT: inside}))
        opened(branch, DATA)
        assert dict(branch.store) == expected


def did_a():
    return ActionRecord("a", A, Status.COMPLETED, 1.0, 1.0, number=1)


def test_of_layers_that_the_run_has_lost_the_writes_stay():
    """Around a pipeline, with what they had waited for."""
    flow = pipeline(S, name="p")
    waits = {("0", 0): [Wait("sleep", 1.0)], ("0", 4): [Wait("sleep", 2.0)]}
    branch = branch_with(past=History({}), waits=waits)
    then = Outcome("p", flow, Status.FAILED, 1.0, 1.0, number=0, entry_writes=[Delta({"w": 1}, [], {})])
    scope, error = opened(branch, flow, (), 0, then)
    assert (error, dict(branch.store), list(branch.terms.waits)) == (None, {"w": 1}, [("0", 4)])
    assert agenda(branch) == ["s", scope]
    branch = branch_with(past=History({}))
    opened(branch, flow, (), 0, then._replace(entry_writes=()))
    assert dict(branch.store) == {}


def in_group(parent, past=None):
    """A branch of a group in this branch, with history left to restore."""
    base = OpenScope(parent.scope, None, None, 0.0)
    base.place = PLACE.of(0)
    fork = Branch(parent.terms, parent.store.fork(), base, parent, SimpleNamespace(id="0.3"), 0)
    fork.is_catching_up = True
    return fork


def test_before_layers_are_entered_a_branch_has_caught_up():
    """If there is nothing left to restore; the group may have ended meanwhile."""
    for inside, stopped in ((False, False), (False, True), (True, False)):
        log = []  # the layers of the last turn may end late
        past = History({branch_id("0.3", 0): {5: did_a()}} if inside else {})
        fork = in_group(branch_with(past=past))
        scope = OpenScope(fork.scope, S, None, 0.0, 0)
        walk = open_scope(fork, scope, (around(log, "m"),), None)
        if not inside:
            assert next(walk) is CAUGHT_UP
            assert log == []
            if stopped:
                fork.stop()
        requests = []
        error = perform(walk, requests)
        assert (isinstance(error, Cancelled), log) == (stopped, ["+m"] * (not stopped))
        assert CAUGHT_UP not in requests


@pytest.mark.parametrize("began", [False, True])
def test_a_scope_that_is_stopped_before_its_layers_are_entered_has_not_begun(began):
    """In the journal it stays as it was: the layers are entered by the next resume, or what they wrote is restored."""
    branch, _ = durable()
    branch.terms.past = History({})
    fork = in_group(branch)
    fork.unit = S
    then = StageRecord("s", S, Status.CANCELLED, 1.0, 1.0, number=0, entry_writes=[Delta({"l": 1}, [], {})])
    scope = OpenScope(fork.scope, S, None, 0.0, 0)
    walk = open_scope(fork, scope, (around([], "m"),), then if began else None)
    assert next(walk) is CAUGHT_UP
    fork.stop()
    error = perform(walk)
    assert closed(fork, scope, error) is error
    assert [(row.number, row.status) for row in fork.rows] == ([] if began else [(0, "cancelled")])
    if not began:
        assert branch.terms.recorder.codec.decode(fork.rows[0].payload)["entered"] is False


PAUSED = Wait("pause", 130.0, 0)


@pytest.mark.parametrize(
    ("suspend_after", "now", "slept"), [(60.0, 100.0, 30.0), (60.0, 140.0, None), (10.0, 100.0, 0)]
)
def test_the_pause_before_another_attempt_goes_on(suspend_after, now, slept):
    """What is left of it; if that is too long, the scope stays as it is in the journal."""
    log = []
    other = Wait("question", key="k")
    wall = Wall(now=lambda: now, suspend_after=suspend_after)
    for unit in (S, pipeline(S, name="p")):
        log.clear()
        branch = branch_with(past=History({}), wall=wall, waits={(ROOT, 0): [PAUSED, other]})
        then = earlier(Status.SUSPENDED, end=-1, actions=["a record"], writes=NOTHING)
        then = (
            then._replace(unit=Stage("before"))
            if unit is S
            else Outcome("p", unit, Status.SUSPENDED, 7.0, 2.0, number=0)
        )
        scope = OpenScope(branch.scope, unit, "x/y", 0.0, 0)
        scope.place = PLACE
        walk, requests = open_scope(branch, scope, (around(log, "m"),), then), []
        error = perform(walk, requests)
        if slept == 0:
            assert (type(error), error.waits, log) == (Suspend, (PAUSED,), [])
            assert closed(branch, scope, error) is error
            kept = [then._replace(unit=S, inserted_by="x/y", scope=PLACE, writes=None)] if unit is S else []
            assert branch.records.kept == kept
            assert branch.revocable == 0
        else:
            assert (error, log) == (None, ["+m"])
            assert [request.seconds for request in requests] == ([] if slept is None else [slept])


def test_an_interrupt_of_the_pause_ends_it():
    """Like any failure before the layers are entered."""
    wall = Wall(now=lambda: 100.0, suspend_after=60.0)
    branch = branch_with(past=History({}), wall=wall, waits={(ROOT, 0): [PAUSED]})
    scope = OpenScope(branch.scope, S, "x/y", 0.0, 0)
    walk = open_scope(branch, scope, (passes,), earlier(Status.SUSPENDED, end=-1))
    assert next(walk).seconds == 30.0
    interrupt = KeyboardInterrupt()
    with pytest.raises(StopIteration) as ended:
        walk.send(Raised(interrupt))
    assert ended.value.value is interrupt


def test_attempts_before_a_resume_count():
    """And the errors of them; a pause in a layer belongs to its waits."""
    failures = [LookupError("before")]
    dropped = {("p1[None]", 1, "a"): [ValueError("dropped")]}
    then = {
        "attempts": 3,
        "repeats": (2,),
        "failures": failures,
        "dropped": dropped,
        "waits": [Wait("sleep", 1.0, at=("0", 4))],
    }
    branch, scope, _ = begun(use=(passes,), status=Status.SUSPENDED, **then)
    layers = scope.layers
    assert (layers.attempt, layers.repeats, list(layers.failures), layers.dropped) == (3, (2,), failures, dropped)
    assert layers.inside == {("0", 4)}
    closed(branch, scope)
    (record,) = branch.records.kept
    assert (record.attempts, record.repeats, list(record.failures)) == (3, (2,), failures)


# -- around the run itself


def run_scope(use, then=None, past=None, **terms):
    """The scope of the caller's layers, opened."""
    branch = Branch(terms_of(past=past, **terms), Store(), OpenScope(None, None, None, 0.0))
    flow = pipeline(S, name="p")
    scope = OpenScope(branch.base, flow, None, 0.0, RUN)
    assert done(open_scope(branch, scope, use, then)) is None
    return branch, scope


def test_the_caller_s_layers_are_counted_from_the_inside():
    """A resume may come with more or fewer of them: those inside are the same."""
    log = []
    delta = [Delta({name: "then"}, [], {}) for name in "abc"]
    then = Outcome("p", None, Status.FAILED, 1.0, 1.0, number=RUN, entry_writes=delta[1:])
    for names, expected in (
        ("bc", {"b": "then", "c": "then"}),
        ("abc", {"a": "before", "b": "then", "c": "then"}),
        ("c", {"b": "then", "c": "then"}),
        ("", {"b": "then", "c": "then"}),
    ):
        branch, scope = run_scope([writes(name, f"-{name}") for name in names], then, History({}))
        assert dict(branch.store) == expected, names
        if names:
            assert scope.layers.has_new_layers == (names == "abc")
    appended = then._replace(entry_writes=[Delta({}, [], {"xs": [1]}), NOTHING])
    for use in ([], [passes], [passes, passes], [passes] * 3):
        branch, _ = run_scope(use, appended, History({}))
        assert branch.store["xs"] == [1]
    branch, _ = run_scope([writes("a")], None, History({ROOT: {0: earlier()}}))
    assert branch.store["a"] == "before"  # it has no row: its process was killed before it began
    branch, scope = run_scope([around(log, "m"), passes], None, History({}))
    assert (log, scope.layers.replays) == (["+m"], None)


def test_the_rehearsal_of_a_resume_merges_no_data():
    """It performs nothing, not even a copy."""
    copies = []

    class Value:
        def __deepcopy__(self, memo):
            copies.append(self)
            return self

    stage = Stage("data", [A], data={"x": Value()})
    copies.clear()
    branch = branch_with(past=Rehearsal({}, pipeline=pipeline(stage), code=None))
    scope, error = opened(branch, stage)
    assert (error, dict(branch.store), agenda(branch), copies) == (None, {}, ["a", scope], [])


# -- in a durable run


def durable(flow=S, inputs=None, journal=None, **terms):
    """A branch of a durable run, and the decoder of its rows."""
    made = recorder()
    if journal is not None:
        made.journal.__class__ = journal
    return branch_with(flow, inputs, recorder=made, **terms), made.codec.decode


def test_what_layers_write_as_they_are_entered_is_noted_as_the_scope_begins():
    """Layer by layer; nothing of those that write nothing, nor of those of an earlier leg."""
    branch, decode = durable()
    opened(branch, S, (writes(), passes, writes("v")))
    (row,) = branch.rows
    assert (row.kind, row.number, row.status) == ("stage", 0, "running")
    assert decode(row.payload)["entering"] == [{"puts": {"w": "before"}}, {}, {"puts": {"v": "before"}}]
    branch, _ = durable()
    opened(branch, S, (passes, passes))
    assert branch.rows == []
    branch, _, _ = begun(use=(writes(),), entry_writes=[Delta({"w": 1}, [], {})], recorder=recorder())
    assert branch.rows == []
    then = Outcome("p", None, Status.FAILED, 1.0, 1.0, number=RUN, entry_writes=[Delta({"b": "then"}, [], {})])
    branch, scope = run_scope([writes("a"), writes("b")], then, History({}), recorder=recorder())
    (row,) = branch.rows
    assert decode(row.payload)["entering"] == [{"puts": {"a": "before"}}, {"puts": {"b": "then"}}]


def test_writes_of_layers_that_cannot_be_encoded_fail_the_scope():
    """Its contents do not begin."""
    branch, _ = durable()

    def layer(call):
        call.store["k"] = Odd()
        yield

    scope, error = opened(branch, S, (layer,))
    assert isinstance(error, SerializationError)
    assert agenda(branch) == [scope]


def test_values_that_layers_change_in_place_are_noted():
    """With the writes of the layer, on the way in and out; not those that are changed inside."""

    def layer(call):
        call.store["xs"].append("in")
        yield
        call.store["ys"].append("out")

    branch, decode = durable(S, {"xs": [], "ys": [], "zs": []})
    scope, _ = opened(branch, S, (layer,))
    assert branch.changed == {"xs"}
    assert decode(branch.rows[0].payload)["entering"] == [{"changes": {"xs": ["in"]}}]
    branch.store["zs"].append("inside")
    closed(branch, scope)
    assert branch.changed == {"xs", "ys"}
    assert decode(branch.rows[-1].payload)["changes"] == {"ys": ["out"]}


def test_what_layers_write_as_they_are_left_is_in_the_outcome():
    """Also after a failure; not the writes inside."""
    for error in (None, ValueError("no")):
        branch, decode = durable()
        scope, _ = opened(branch, S, (writes(), writes("v", "m")))
        branch.store["inside"] = 1
        assert closed(branch, scope, error) is error
        assert decode(branch.rows[-1].payload)["puts"] == {"l": "after", "m": "after"}
        branch.store["new"] = 1
        assert not branch.store.has_written("new")


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_a_value_that_cannot_be_looked_at_as_a_scope_ends_is_its_failure(error):
    """Its layers are told; a failure that there was already counts."""
    seen = []

    def told(call):
        try:
            yield
        except BaseException as failure:
            seen.append(failure)
            raise

    class Blind(Watch):
        def resume(self):
            raise SystemExit("blind")

    branch, _ = durable()
    scope, _ = opened(branch, S, (told,))
    looks = branch.terms.recorder.looks
    scope.layers.watch = Blind(looks, branch.store, set())
    left = closed(branch, scope, error)
    assert seen == [left]
    assert (left is error) if error else str(left) == "blind"


def test_another_attempt_counts_from_when_it_begins():
    """The rows of the failed one are dropped, and it is written at once; not inside an atomic scope."""
    branch, decode = durable(S, {"xs": []})

    def changes(call):
        yield

    scope, _ = opened(branch, S, (again(3), changes))
    branch.note_changed(["xs"])
    assert closed(branch, scope, ValueError("no")) is None
    journal = branch.terms.recorder.journal
    (row,) = journal.history("run-1")
    parts = decode(row.payload)
    assert (row.status, parts["attempts"], parts["repeats"]) == ("running", 2, [1, 0])
    assert {"changes": {"xs": []}} in parts["entering"]
    assert agenda(branch) == ["a", "b", scope]
    assert (branch.scope, branch.number, branch.rows) == (scope, 1, [])
    outer_branch, _ = durable()
    opened(outer_branch, pipeline(S, name="p"), (atomic,))
    inner, _ = opened(outer_branch, S, (again(2),), number=1)
    assert closed(outer_branch, inner, ValueError("no")) is None
    assert outer_branch.rows == []
    assert outer_branch.terms.recorder.journal.history("run-1") == []


class Full(MemoryJournal):
    def drop(self, run_id, cuts):
        raise OSError("disk full")


class FullLater(MemoryJournal):
    def write(self, run_id, rows):
        raise OSError("disk full")


@pytest.mark.parametrize("journal", [Full, FullLater])
def test_a_journal_that_cannot_note_another_attempt_ends_the_run(journal):
    """It does not begin; whatever recovers it, the error stays."""
    branch, _ = durable(journal=journal)
    scope, _ = opened(branch, S, (again(2),))
    error = closed(branch, scope, ValueError("no"))
    assert str(error) == "disk full"
    assert branch.unsaved() is error
    scope, _ = opened(branch)
    assert closed(branch, scope) is error
    assert (branch.records.kept[-1].status, branch.records.kept[-1].error) == ("failed", error)


def test_an_atomic_scope_ends_with_the_error_of_its_journal():
    """It is written as it ends."""
    branch, _ = durable(journal=FullLater)
    scope, _ = opened(branch, S, (atomic,))
    assert str(closed(branch, scope)) == "disk full"


def naps(call):
    yield Sleep(50)
    try:
        yield
    except ValueError:
        yield Sleep(100)
        yield


def test_a_layer_that_sleeps_too_long_suspends_the_run():
    """Before its target; the scope keeps what it has waited for."""
    wall = Wall(now=lambda: 1000.0, suspend_after=10.0)
    for unit, number in ((S, 0), (S, 3)):
        branch, _ = durable(unit, wall=wall)
        scope, error = opened(branch, unit, (passes, naps), number)
        assert isinstance(error, Suspend)
        assert closed(branch, scope, error) is error
        (record,) = branch.records.kept
        (wait,) = record.waits
        assert (record.status, record.entered, wait.kind, wait.due, wait.who) == (
            "suspended",
            False,
            "sleep",
            1050.0,
            1,
        )


def test_layers_inside_another_attempt_sleep_anew():
    """What they had slept before is not over for a resume; what layers outside had slept is."""
    seconds = [30, 40, 90]

    def sleeps(call):
        yield Sleep(seconds.pop(0))
        yield

    branch, _ = durable(wall=Wall(now=lambda: 1000.0, suspend_after=60.0))
    scope, error = opened(branch, S, (sleeps, again(2), sleeps))
    assert (error, seconds) == (None, [90])
    error = closed(branch, scope, ValueError("no"))
    assert isinstance(error, Suspend)
    assert closed(branch, scope, error) is error
    assert branch.records.kept[0].waits == (Wait("over", who=0, times=1), Wait("sleep", 1090.0, who=2))


def test_a_pause_before_another_attempt_suspends_the_run():
    """The attempt is dropped; the next one begins inside the same layers."""
    wall = Wall(now=lambda: 1000.0, suspend_after=60.0)
    branch, decode = durable(S, {"k": 1}, wall=wall)
    scope, _ = opened(branch, S, (writes(), naps))
    branch.store["inside"] = 1
    branch.number = 3
    branch.add_row(branch.terms.recorder.row("0", "s", did_a()))
    scope.records.append(did_a()._replace(status=Status.FAILED, error=ValueError("no")))
    error = closed(branch, scope, ValueError("no"))
    assert isinstance(error, Suspend)
    assert dict(branch.store) == {"k": 1, "w": "before", "l": "after"}
    (record,) = branch.records.kept
    assert (record.status, record.entered, record.attempts, record.repeats) == ("suspended", True, 2, (0, 1))
    assert [(wait.kind, wait.due, wait.who) for wait in record.waits if wait.kind == "pause"] == [("pause", 1100.0, 1)]
    began, ended = branch.rows[-2:]
    assert (began.status, ended.status) == ("running", "suspended")
    assert decode(began.payload)["entering"][0] == {"puts": {"w": "before"}}
    assert decode(began.payload)["attempts"] == 2
    assert [row.number for row in branch.rows if row.kind == "action"] == []


def test_waits_of_steps_inside_an_atomic_scope_are_held_with_it():
    """Until it has ended; it needs them only if it runs again."""
    held = Wait("question", key="k", at=(ROOT, 2))
    for error, waits in ((Suspend("waits"), (held,)), (ValueError(), (held,)), (None, ())):
        branch, _ = durable()
        outer, _ = opened(branch, pipeline(S, name="p"), (atomic,))
        branch.held_waits = (held,)
        inner, _ = opened(branch, Stage("t"), number=1)
        assert closed(branch, inner) is None
        assert branch.held_waits == (held,)
        suspended, _ = opened(branch, Stage("u"), number=2)
        closed(branch, suspended, Suspend("waits"))
        assert tuple(branch.records.kept[-1].waits) == ()
        plain, _ = opened(branch, S, (atomic,), number=2)
        closed(branch, plain, error)
        assert tuple(branch.records.kept[-1].waits) == waits
        assert branch.held_waits == (held,)
        closed(branch, outer, error)
        assert branch.held_waits == ()


def test_waits_of_steps_that_were_not_reached_stay_with_their_scope():
    """It may run again, and then they do."""
    left, place = Wait("question", key="k"), (ROOT, 4)
    for error, waits in ((ValueError(), (left._replace(at=place),)), (None, ())):
        branch, scope, _ = begun(use=(passes,), status=Status.SUSPENDED, waits=[Wait("sleep", 1.0, at=place)])
        branch.terms.waits[place] = [left]
        closed(branch, scope, error)
        assert tuple(branch.records.kept[-1].waits) == waits


# -- resumed in memory


@pytest.mark.parametrize(
    ("use", "k"),
    [
        ((passes, again(2)), "inner"),
        ((again(2), passes), "outer"),
        ((again(2),), "inner"),
        ((passes, passes, again(2)), "inner"),
        ((again(2), passes, passes), "outer"),
    ],
)
def test_another_attempt_returns_to_the_state_that_the_first_one_found(use, k):
    """Each layer to its own, counted from the inside; the result is that before it, too."""
    outer, inner = Mark(), Mark()
    outer["k"], inner["k"] = "outer", "inner"
    remains = Remains(Store(), None, "since", {0: ([outer, inner], "before")})
    past = History({}, is_in_memory=True, remains={ROOT: remains})
    branch = branch_with(S, {"k": "now"}, past=past)
    branch.result = "since"
    then = earlier(Status.FAILED, end=-1, error=ValueError("then"))
    scope, error = opened(branch, S, use, 0, then)
    assert (error, branch.store["k"], scope.before.result) == (None, "now", "before")
    assert closed(branch, scope, ValueError("no")) is None
    assert (branch.store["k"], branch.result) == (k, "before")
    assert closed(branch, scope, ValueError("no")) is not None


def test_errors_of_a_dropped_attempt_are_kept_with_the_scope():
    """And are in the records of its actions."""
    no = ValueError("no")
    branch = branch_with(log=Log())
    scope, _ = opened(branch, S, (again(2),))
    scope.records.append(did_a()._replace(status=Status.FAILED, error=no))
    assert closed(branch, scope, no) is None
    scope.records.append(did_a())
    assert closed(branch, scope) is None
    assert list(branch.logged[0].dropped.values()) == [[no]]
    assert [list(action.failures) for action in branch.records.kept[0].actions] == [[no]]


def test_layers_of_a_scope_in_memory_do_not_write_again():
    """Its store has it already; those that are new around the run write."""
    log = Log()
    past = History({}, is_in_memory=True, remains={ROOT: Remains(Store(), None, None, {RUN: ([Mark()], None)})})
    then = Outcome("p", None, Status.FAILED, 1.0, 1.0, number=RUN)
    branch, scope = run_scope([writes("a"), writes("b")], then, past, log=log)
    assert dict(branch.store) == {"a": "before"}
    branch, _, _ = begun(
        use=(writes(),), past=History({}, is_in_memory=True), entry_writes=[Delta({"w": "then"}, [], {})]
    )
    assert dict(branch.store) == {}
