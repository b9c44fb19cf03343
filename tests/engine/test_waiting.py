"""The waits of a branch's steps: what becomes of them as a step ends, and the pauses before another attempt."""

from types import SimpleNamespace

import pytest
from scripted import terms_of

from flowdeco import Key, Store, Suspend
from flowdeco.engine.branch import Branch
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ROOT, Outcome, Status
from flowdeco.engine.requests import Raised, Sleep
from flowdeco.engine.waiting import not_reached, rest_of_pause, time_used, waited, with_waits
from flowdeco.engine.waits import Wall
from flowdeco.errors import ANSWERED, CONSUMED, OVER, PAUSE, QUESTION, SLEEP, USED, Wait

ANSWER = Wait(QUESTION, key="k", state=ANSWERED, value=5, given=0)
SLEPT = Wait(SLEEP, 50.0)


def branch_with(waits=(), **terms):
    """The branch of a run in which step 3 had waited for these."""
    terms = terms_of(waits={(ROOT, 3): waits} if waits else {}, **terms)
    return Branch(terms, Store(), OpenScope(None, None, None, 0.0))


def did(status):
    """The outcome of step 3."""
    return Outcome("s", None, status, 1.0, 1.0, number=3)


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "at work"])
@pytest.mark.parametrize("status", [Status.COMPLETED, Status.SUSPENDED])
def test_the_outcome_of_a_step_has_its_waits(status, begun):
    """Of a finished one, the answers that it consumed. Then they are no longer those of a step to come."""
    branch = branch_with([ANSWER, SLEPT])
    if begun:
        branch.waits_of(3).noted.append(branch.waits_of(3).question(Key("k"), None, None))
    assert waited(branch, 3) == (ANSWER, SLEPT)
    waits = with_waits(branch, did(status)).waits
    if status is Status.COMPLETED:
        assert waits == [ANSWER._replace(value=None)]
        assert branch.consumed == {"k"}
    else:
        assert waits == (ANSWER, SLEPT)
        assert branch.consumed == set()
    assert (branch.waits, branch.terms.waits, waited(branch, 3)) == ({}, {}, ())
    assert (branch.held_waits, branch.answered) == ((), ())


def test_a_step_that_has_waited_for_nothing_ends_as_ever():
    """Its branch knows nothing of waits."""
    branch = branch_with()
    assert tuple(with_waits(branch, did(Status.COMPLETED)).waits) == ()
    assert tuple(with_waits(branch, did(Status.FAILED)).waits) == ()
    assert (branch.waits, branch.consumed, branch.held_waits, branch.answered) == ({}, set(), (), ())


def test_keys_that_steps_have_consumed_add_up():
    """So do the answers that another attempt needs, with their values, and the waits inside an atomic scope."""
    branch = branch_with([ANSWER])
    branch.revocable = branch.atomic = 1
    assert with_waits(branch, did(Status.COMPLETED)).waits == [ANSWER]
    elsewhere = Wait(QUESTION, key="j", state=ANSWERED, given=CONSUMED, at=("b", 7))
    branch.terms.waits["0", 4] = [elsewhere, SLEPT]
    with_waits(branch, did(Status.COMPLETED)._replace(number=4))
    assert branch.consumed == {"k", "j"}
    assert branch.answered == ((3, (ROOT, 3), [ANSWER]), (4, (ROOT, 4), [elsewhere]))
    assert branch.held_waits == (ANSWER._replace(at=(ROOT, 3)), elsewhere, SLEPT._replace(at=(ROOT, 4)))
    branch.terms.waits["0", 5] = [SLEPT, Wait(OVER, times=1)]
    with_waits(branch, did(Status.SUSPENDED)._replace(number=5))
    assert len(branch.answered) == 2  # a sleep is not an answer


def test_steps_that_are_not_reached_again_keep_their_waits():
    """Those that had begun inside the scope, each with its place; a scope without layers is left as it was."""
    branch = branch_with([SLEPT])
    scope = OpenScope(None, None, None, 0.0)
    assert list(not_reached(branch, scope)) == []
    scope.layers = SimpleNamespace(inside=[("b", 1), (ROOT, 3)])
    assert list(not_reached(branch, scope)) == [SLEPT._replace(at=(ROOT, 3))]


def test_a_timeout_has_used_time_only_if_the_step_had_waited():
    """Asked of a step without waits, none are made for it."""
    branch = branch_with([Wait(USED, 4.5, 1, key=USED)])
    assert (time_used(branch, 9, 1), branch.waits) == (0.0, {})
    assert [time_used(branch, 3, who) for who in (0, 1, 1)] == [0.0, 4.5, 0.0]
    branch.waits_of(9)
    assert time_used(branch, 9, 1) == 0.0


PAUSED = Wait(PAUSE, 130.0, 1)


@pytest.mark.parametrize(
    ("now", "suspend_after", "slept"),
    [(100.0, 60.0, 30.0), (70.0, 60.0, 60.0), (129.5, 60.0, 0.5), (130.0, 60.0, 0), (200.0, 60.0, 0)],
)
def test_the_rest_of_a_pause_is_slept_once(now, suspend_after, slept):
    """When it has ended, the other waits are left for the next attempt."""
    over = Wait(OVER, times=1)
    branch = branch_with([over, PAUSED], wall=Wall(now=lambda: now, suspend_after=suspend_after))
    walk = rest_of_pause(branch, 3)
    if slept:
        assert walk.send(None) == Sleep(slept)
        assert branch.terms.waits == {(ROOT, 3): [over, PAUSED]}
    with pytest.raises(StopIteration) as ended:
        walk.send(None)
    assert (ended.value.value, branch.terms.waits) == (None, {(ROOT, 3): [over]})


def test_the_rest_of_a_pause_may_suspend_the_run_again():
    """Or be interrupted: then the pause has not ended. A step without one has nothing to wait for."""
    for suspend_after, expected in ((29.0, Suspend), (60.0, KeyboardInterrupt)):
        branch = branch_with([PAUSED], wall=Wall(now=lambda: 100.0, suspend_after=suspend_after))
        walk = rest_of_pause(branch, 3)
        with pytest.raises(StopIteration) as ended:
            walk.send(None)
            walk.send(Raised(KeyboardInterrupt()))
        assert isinstance(ended.value.value, expected)
        assert branch.terms.waits == {(ROOT, 3): [PAUSED]}
        assert getattr(ended.value.value, "waits", (PAUSED,)) == (PAUSED,)
    for waits in ((), [SLEPT]):
        with pytest.raises(StopIteration) as ended:
            rest_of_pause(branch_with(waits), 3).send(None)
        assert ended.value.value is None
