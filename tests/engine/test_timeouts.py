"""Deadlines, by a clock that a test sets, and evaluations under one, driven by script."""

import pickle

import pytest
from scripted import evaluation, perform

from flowdeco import Bail, Stage, Suspend, action, pipeline
from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.requests import Gate, Raised, Sleep
from flowdeco.errors import Cancelled, OutOfTime, UnitTimeout


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Owner:
    """All that a deadline knows of its branch."""

    def __init__(self):
        self.terms = self
        self.clock = Clock()
        self.deadline = None

    def live_by(self, deadline):
        self.deadline = deadline


@pytest.fixture
def owner():
    return Owner()


def test_a_deadline_counts_until_it_is_closed(owner):
    """Then the one around it counts."""
    outer = Deadline("outer", 10, owner)
    inner = Deadline("inner", 5, owner, scope="scope")
    assert owner.deadline is inner
    assert (inner.scope, outer.scope, inner.owner) == ("scope", None, owner)
    assert (inner.at, inner.left(), inner.outer) == (105, 5, outer)
    assert inner.close(None) is None
    assert owner.deadline is outer
    assert outer.close(None) is owner.deadline is None


def test_the_first_of_a_chain_comes_first_if_it_has_not_expired(owner):
    """Of two at one time, the outer one."""
    outer, middle, inner = (Deadline(name, 10, owner) for name in "abc")
    assert inner.first() is outer
    outer.expire()
    assert inner.first() is middle
    inner.at -= 1
    assert inner.first() is inner
    for each in outer, middle, inner:
        each.expire()
    assert inner.first() is None


def test_time_used_before_is_missing(owner):
    """As after a suspension."""
    assert Deadline("s", 10, owner, used=4).left() == 6


def test_a_step_is_refused_when_any_deadline_has_passed(owner):
    """From then on; not while there is time, to the last moment."""
    outer, inner = Deadline("outer", 10, owner), Deadline("inner", 20, owner)
    owner.clock.now += 10
    assert inner.refusal() is None
    owner.clock.now += 0.5
    assert str(inner.refusal()) == "outer took longer than its timeout of 10 s"
    assert (outer.expired, inner.expired) == (True, False)
    owner.clock.now -= 5
    assert type(inner.refusal()) is OutOfTime


def test_a_sleep_lasts_as_long_as_there_is_time(owner):
    """For an action, none begins after that; a layer may still clean up."""
    slept = []
    deadline = Deadline("s", 10, owner)
    deadline.sleep(slept.append, 10)
    with pytest.raises(OutOfTime):
        deadline.sleep(slept.append, 11)
    deadline.sleep(slept.append, 12)
    assert slept == [10, 10, 12]
    with pytest.raises(OutOfTime):
        deadline.sleep_in_action(slept.append, 13)
    again = Deadline("t", 10, Owner())
    again.sleep_in_action(slept.append, 9)
    assert slept[3:] == [9]
    for left in (0.5, 0.0):
        short = Deadline("u", left, Owner())
        short.owner.clock.now += left == 0.0  # it is late, and nobody has been told
        with pytest.raises(OutOfTime):
            short.sleep(slept.append, 5)
        assert slept[-1] == left


def test_in_another_process_the_first_deadline_counts_from_when_it_arrives(owner):
    """By the clock there: for as long as was left when it was sent."""
    outer, inner = Deadline("outer", 10, owner), Deadline("inner", 20, owner)
    owner.clock.now += 4
    there = Clock()
    there.now = 5000.0
    copy = pickle.loads(pickle.dumps(inner))
    copy.begin_elsewhere(there)
    assert (copy.left(), copy.message, copy.outer) == (6, outer.message, None)
    slept = []
    copy.sleep_in_action(slept.append, 5)
    there.now += 5
    with pytest.raises(OutOfTime, match="outer took longer than its timeout of 10 s"):
        copy.sleep_in_action(slept.append, 1.5)
    assert slept == [5, 1]
    outer.expire()
    inner.expire()
    assert pickle.loads(pickle.dumps(inner)).message == inner.message


@pytest.mark.parametrize("late", [False, True], ids=["at the last moment", "late"])
@pytest.mark.parametrize(
    "error", [None, ValueError(), Bail(), Suspend(), OutOfTime(), Cancelled(), KeyboardInterrupt(), SystemExit()]
)
def test_a_scope_that_ends_too_late_ends_with_a_timeout(owner, error, late):
    """Unless it is interrupted from outside."""
    deadline = Deadline("s", 10, owner)
    owner.clock.now += 10 + 0.5 * late
    found = deadline.close(error)
    if late and not (type(error) is Cancelled or isinstance(error, (KeyboardInterrupt, SystemExit))):
        assert type(found) is UnitTimeout
        assert str(found) == "s took longer than its timeout of 10 s"
        assert found.__cause__ is (error if isinstance(error, ValueError) else None)
    else:
        assert found is error


def test_a_deadline_that_is_closed_is_not_watched_any_more(owner):
    """A driver keeps no more of them than there are open scopes."""
    deadline = Deadline("s", 10, owner)
    for watched in ({deadline: None}, {}):  # or not yet, or when it has expired
        deadline.watched = watched
        deadline.close(None)
        assert deadline.watched == {}


@action
def work():
    pass


def pausing(call):
    yield Sleep(5)
    yield


def test_the_gate_has_the_deadline_while_its_scope_is_open():
    """By it, the driver ends what is under way."""
    flow = pipeline(Stage("s", [work], use=[pausing], timeout=1000), timeout=2000)
    gate = Gate()
    run, walk = evaluation(flow, timeout=3000, gate=gate)
    assert next(walk) == Sleep(5)
    deadline = gate.deadline
    assert [deadline.message[:3], deadline.outer.message[:3], deadline.outer.outer.message[:3]] == ["sta", "pip", "run"]
    with pytest.raises(StopIteration):
        perform_answered(walk, Raised(deadline.expire()))
    assert type(run.error) is UnitTimeout
    assert gate.deadline is None


def perform_answered(walk, answer):
    """Answer one request, and perform the rest."""
    request = walk.send(answer)
    while True:
        request = walk.send(request[0].function(*request[1]))


def test_without_a_timeout_nothing_is_guarded():
    """Then, steps are as quick as ever."""
    run, walk = evaluation(Stage("s", [work]))
    branch = perform(walk)
    assert (run.status, branch.guarded, branch.deadline) == ("completed", False, None)
