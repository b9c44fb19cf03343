"""The state of an evaluation: what a branch has of its own, and what of the one that forked it."""

from scripted import terms_of
from support import one, step

from flowdeco import Key, Stage, Store, parallel, stream
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History
from flowdeco.engine.journal import Payload, Row
from flowdeco.engine.memory import Log
from flowdeco.engine.messages import MOST_SHOWN
from flowdeco.engine.open_scopes import OpenScope, OpenStream
from flowdeco.engine.outcome import ROOT, Outcome, Status, branch_id
from flowdeco.engine.requests import Raised, Save
from flowdeco.engine.waits import Wall
from flowdeco.errors import Cancelled, OutOfTime, Wait

A, B = one([], "a"), one([], "b")


class Conductor:
    """All that a branch knows of it."""

    def __init__(self, id="0.3"):
        self.id = id


class Deadline:
    """A deadline that refuses steps with this."""

    def __init__(self, error=None):
        self.error = error

    def refusal(self):
        return self.error


def root(**terms):
    """The branch that is the run itself."""
    return Branch(terms_of(**terms), Store(), OpenScope(None, None, None, 0.0))


def fork(parent, index=0, group="0.3"):
    """A branch of a group in another one."""
    base = OpenScope(parent.scope, None, None, 0.0)
    return Branch(parent.terms, parent.store.fork(), base, parent, Conductor(group), index)


# -- beginning


def test_the_run_itself_is_a_branch():
    """The first, with a base that never ends."""
    branch = root()
    assert (branch.id, branch.parent, branch.conductor, branch.index) == (ROOT, None, None, 0)
    assert (branch.scope, branch.agenda, branch.rows, branch.waits) == (branch.base, [], [], {})
    assert (branch.logged, branch.revised, branch.changed, branch.inner_branches) == (None, {}, set(), [])
    assert not any((branch.is_behind, branch.is_catching_up, branch.guarded, branch.stopped))
    branch.store["k"] = 1
    assert branch.read("k") == 1


def test_a_branch_of_a_group_is_known_by_its_place():
    """By that of the group, and its own."""
    parent = root()
    assert [fork(parent, index).id for index in (0, 1)] == [branch_id("0.3", 0), branch_id("0.3", 1)]
    branch = fork(parent, 1)
    assert branch.id is branch.id
    assert (branch.parent, branch.index, branch.conductor.id) == (parent, 1, "0.3")


def test_a_branch_begins_with_the_state_of_the_one_that_forks_it():
    """Of its switches, scopes and deadline; its own switches are those that it will switch."""
    for given in (
        {"switches": {"tag:t": False}}, {"revocable": 1}, {"atomic": 2}, {"deadline": Deadline()},
    ):  # fmt: skip
        parent = root()
        for name, value in given.items():
            setattr(parent, name, value)
        branch = fork(parent)
        for name in ("switches", "revocable", "atomic", "deadline"):
            assert getattr(branch, name) == getattr(parent, name)
        assert branch.guarded == ("deadline" in given)
        assert branch.switched == {}
    parent = root(past=History({branch_id("0.3", 1): {0: None}}))
    parent.sealed, parent.ended_early = 1, True
    first, second = fork(parent, 0), fork(parent, 1)
    assert [(each.sealed, each.ended_early, each.is_behind) for each in (first, second)] == [(1, True, True)] * 2
    assert [each.is_catching_up for each in (first, second)] == [False, True]
    assert (parent.is_behind, parent.is_catching_up) == (False, False)
    assert root(past=History({ROOT: {0: None}})).is_catching_up


def test_in_memory_the_outcomes_of_its_scopes_are_logged():
    """For each branch, by its id."""
    log = Log()
    parent = root(log=log)
    branch = fork(parent, 1)
    parent.logged[0], branch.logged[1] = "outcome", "other"
    assert log.steps == {ROOT: {0: "outcome"}, branch_id("0.3", 1): {1: "other"}}


def test_only_so_many_records_are_kept():
    """As the run wants."""
    branch = root(most_records=1)
    for number in range(5):
        branch.records.add(number)
    assert branch.records.last() == [4]


# -- whether another step may begin


def test_nothing_more_begins_in_a_branch_that_was_stopped():
    """Each step is refused by an error of its own."""
    branch = root()
    assert branch.refusal() is None
    branch.stop()
    assert (branch.stopped, branch.guarded) == (True, True)
    assert type(branch.refusal()) is Cancelled
    assert branch.refusal() is not branch.refusal()


def test_nothing_more_begins_in_a_run_that_was_cancelled():
    """In any of its branches; what is still to arrive of that is forgotten."""
    branch, error = root(), Cancelled("from outside")
    branch.terms.gate.interrupt(error)
    assert fork(branch).refusal() is error
    assert branch.terms.gate.pending is None


def test_nothing_more_begins_when_the_time_is_up():
    """Of any scope around the step: the deadline knows."""
    branch, late = root(), OutOfTime()
    branch.deadline = Deadline()
    assert branch.refusal() is None
    branch.deadline = Deadline(late)
    assert branch.refusal() is late
    assert fork(branch).refusal() is late


def test_steps_are_guarded_while_one_may_have_to_be_refused():
    """By a deadline, by the end of the group, or by the cancellation of the run; the driver knows the deadline of the run."""
    branch, deadline = root(), Deadline()
    branch.live_by(deadline)
    assert (branch.deadline, branch.guarded, branch.terms.gate.deadline) == (deadline, True, deadline)
    inner, other = fork(branch), Deadline()
    inner.live_by(other)
    assert (inner.deadline, branch.terms.gate.deadline) == (other, deadline)
    branch.live_by(None)
    assert (branch.deadline, branch.guarded, branch.terms.gate.deadline) == (None, False, None)
    branch.terms.gate.cancelled = Cancelled()
    branch.live_by(None)
    assert branch.guarded
    stopped = root()
    stopped.stop()
    stopped.live_by(None)
    assert stopped.guarded


# -- numbers


def test_steps_and_places_are_numbered():
    """Steps from 0; pipelines with options have ids of another kind."""
    branch = root()
    assert [branch.next_number() for _ in range(3)] == [0, 1, 2]
    assert [branch.next_place() for _ in range(2)] == ["p1", "p2"]
    assert branch.number == 3


def test_a_step_is_restored_if_it_had_ended_well():
    """Or is in a scope that had."""
    branch = root()
    done, failed = (Outcome("s", A, status, 0.0, 0.0) for status in (Status.COMPLETED, Status.FAILED))
    assert [branch.restores(each) for each in (None, done, failed)] == [False, True, False]
    branch.sealed = 1
    assert [branch.restores(each) for each in (None, done, failed)] == [False, True, True]


# -- waiting


def test_the_waits_of_a_step_continue_those_of_earlier_legs():
    """Once; they have the wall clock, with the deadline of the scopes around the step."""
    wall, over = Wall(now=lambda: 100.0), Wait("over", times=1)
    branch = root(wall=wall, since=3, waits={(ROOT, 2): [over]})
    waits = branch.waits_of(2)
    assert (waits.recorded(), waits.wall, branch.terms.waits) == ((over,), wall, {})
    assert branch.waits_of(2) is waits
    branch.deadline = Deadline()
    other = branch.waits_of(4)
    assert (other.recorded(), other.wall) == ((), wall._replace(deadline=branch.deadline))
    assert other.question(Key("k"), None, None).since == 3
    assert branch.waits == {2: waits, 4: other}


def test_a_given_value_is_for_the_first_branch_that_takes_it():
    """Of each group around the step; anywhere in that branch, it may be asked for again."""
    run = root()
    first, second = fork(run, 0), fork(run, 1)
    inner, other = fork(first, 0, "inner"), fork(first, 1, "inner")
    assert run.may_take("k")
    assert inner.may_take("k")
    assert [each.may_take("k") for each in (inner, first, other, second)] == [True, True, False, False]
    assert [each.may_take("j") for each in (second, inner, other)] == [True, False, False]
    assert [each.may_take("i") for each in (first, other, inner)] == [True, True, False]


# -- the journal


class Recorder:
    """All that a branch knows of one."""

    def __init__(self):
        self.unsaved = None
        self.write = "write"


def saved(branch, answer=None):
    """What saving asks for, and comes to."""
    requests, walk = [], branch.save()
    try:
        requests.append(walk.send(None))
        walk.send(answer)
    except StopIteration as ended:
        return requests, ended.value
    raise AssertionError("one request is enough")


def row(payload=b"plain"):
    return Row("0", 0, "stage", "s", None, "completed", 0.0, 0.0, "", payload)


def test_rows_are_written_once():
    """In one request; nothing is written if there are none, or no journal."""
    assert saved(root()) == ([], None)
    assert root().unsaved() is None
    recorder = Recorder()
    branch = root(recorder=recorder)
    assert saved(branch) == ([], None)
    rows = [row(), row()]
    for each in rows:
        branch.add_row(each)
    (request,), error = saved(branch)
    assert (type(request), request.write, request.args, error) == (Save, "write", (rows,), None)
    assert (branch.rows, saved(branch), branch.unsaved()) == ([], ([], None), None)


def test_once_writing_has_failed_nothing_more_is_written():
    """The error is that of every further write: no layer recovers it."""
    full, branch = OSError("full"), root(recorder=Recorder())
    branch.add_row(row())
    (_,), error = saved(branch, Raised(full))
    assert error is full
    branch.add_row(row())
    assert saved(branch) == ([], full)
    assert (fork(branch).unsaved(), len(branch.rows)) == (full, 1)


def test_the_rows_of_an_atomic_scope_are_held_back():
    """Each with its values as they are now: user code may change them before they are written."""
    branch, part = root(recorder=Recorder()), bytearray(b"before")
    for atomic in (0, 1):
        branch.atomic = atomic
        branch.add_row(row(Payload(b"", [part])))
    branch.add_row(row())
    part[:] = b"after!"
    assert [list(each.payload.parts) for each in branch.rows[:2]] == [[b"after!"], [b"before"]]
    assert branch.rows[2] == row()
    assert (saved(branch), len(branch.rows)) == (([], None), 3)


def test_a_cancellation_that_arrives_while_rows_are_written_guards_the_next_step():
    """As any that comes from outside."""
    branch = root(recorder=Recorder())
    saved(branch)
    assert not branch.guarded
    branch.terms.gate.cancelled = Cancelled()
    saved(branch)
    assert branch.guarded


# -- after a failure


def test_what_failures_leave_behind_is_kept_if_the_run_can_be_resumed_from_memory():
    """The writes of layers are noted until the branch ends."""
    for log in (None, Log()):
        branch = root(log=log)
        branch.end_unwinding()
        left = branch.left_behind()
        assert (left.is_kept, branch.left_behind()) == (log is not None, left)
        left.unwind(branch.store)
        branch.store["w"] = 1
        branch.end_unwinding()
        branch.store["later"] = 1
        branch.result = 7
        remains = branch.remains()
        assert list(remains) == [ROOT]
        assert (dict(remains[ROOT].store), remains[ROOT].result) == ({"w": 1, "later": 1}, 7)


# -- selectors


def test_the_last_switch_of_a_selector_counts():
    """Those of the branch are kept apart from those that it began with."""
    parent = root()
    parent.switch("a", False)
    parent.switch("b", False)
    branch = fork(parent)
    branch.switch("c", False)
    branch.switch("a", True)
    assert list(branch.switches.items()) == [("b", False), ("c", False), ("a", True)]
    assert list(branch.switched.items()) == [("c", False), ("a", True)]
    assert parent.switches == {"a": False, "b": False}


def test_a_unit_is_off_if_it_is_to_be_skipped_or_was_disabled():
    """By the latest of the switches that name it; selectors that have selected something are known then."""
    branch = root(skip=frozenset({"x"}), unmatched={"x", "y"})
    assert not branch.is_off(lambda: ["a"])
    assert branch.is_off(lambda: ["a", "x"])
    assert branch.terms.unmatched == {"y"}
    branch.switch("a", False)
    branch.switch("b", False)
    assert branch.is_off(lambda: ["a"])
    assert branch.terms.used == {"a"}
    branch.switch("a", True)
    assert not branch.is_off(lambda: ["a"])
    assert not branch.is_off(lambda: ["a", "b"])
    assert branch.is_off(lambda: ["b", "c"])
    assert branch.terms.used == {"a", "b"}
    assert not root().is_off(None)  # the usual case asks for no selectors


def outcome(status, entered=True):
    return Outcome("a", A, status, 0.0, 0.0, entered=entered)


def test_a_unit_is_skipped_as_a_whole_now_or_as_it_was_before_a_resume():
    """What had ended is as it was, whatever is selected now; what had not is skipped now, also by the scope around it."""
    branch = root(skip=frozenset({"a"}), unmatched={"a"})
    assert branch.skips(A, None)
    assert not branch.skips(B, None)
    assert branch.skips(A, outcome(Status.FAILED))
    assert not branch.skips(A, outcome(Status.COMPLETED))
    assert branch.terms.unmatched == set()
    branch = root()
    assert branch.skips(B, outcome(Status.SKIPPED))
    assert not branch.skips(B, outcome(Status.SKIPPED, entered=False))  # by its middleware
    assert not branch.skips(B, outcome(Status.FAILED))
    branch.scope.is_skipped = True
    assert branch.skips(B, None)
    assert not branch.skips(B, outcome(Status.COMPLETED))


# -- surroundings


def test_upcoming_units_are_those_after_the_current_stage():
    """First those that it has inserted; streams too; not what is skipped or disabled, or will be."""
    act, flowing, disabled = step([], "act"), stream([A]), one([], "disabled")
    branch = root(skip=frozenset({"skipped"}))
    branch.switch("disabled", False)
    scope = branch.scope = OpenScope(branch.base, Stage("s", [act]), None, 0.0)
    scope.inserted = [(A, "s/a"), (disabled, "s/a")]
    group = parallel(A, B)
    branch.agenda = [
        (group, None), (one([], "skipped"), None), (stream([B]), None), (OpenStream(flowing, iter([])), None),
        (B, None), (scope, None),
    ]  # fmt: skip
    assert list(branch.upcoming()) == [A, B, flowing, branch.agenda[2][0], group]
    assert list(branch.upcoming([("b", False)])) == [A, flowing, branch.agenda[2][0], group]
    inner = fork(branch)
    mine = Stage("in the branch")
    inner.agenda = [(mine, None)]
    assert list(inner.upcoming()) == [mine, B, flowing, branch.agenda[2][0], group]


def test_a_run_has_an_end_to_what_it_shows():
    """Counted over all of its branches."""
    branch = root()
    assert branch.has_room(MOST_SHOWN - 1)
    assert not fork(branch).has_room(2)
    assert fork(branch).has_room(1)
    assert not branch.has_room(1)
    assert branch.has_room(0)


def test_the_time_is_that_of_the_run():
    """In POSIX seconds; its observers are those of all branches."""

    def notify(event):
        pass

    branch = root(clock=lambda: 5.0, notify=notify)
    assert (branch.now(), branch.notify) == (1005.0, notify)
    assert fork(branch).notify is notify
    assert root().notify is None
