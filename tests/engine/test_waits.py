"""Waits, by a clock that a test sets: how much of a sleep is left, which question comes next, and what answers it."""

import json
import pickle
from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Literal

import pytest

from flowdeco import Key, Suspend
from flowdeco.engine.outcome import NOWHERE, ROOT, ActionRecord, Outcome, Status, branch_id
from flowdeco.engine.waits import (
    Called,
    Given,
    Nap,
    Waits,
    Wall,
    answered,
    asked,
    check_answer,
    consumed,
    kept,
    moment,
    open_questions,
    refusals,
    starting_point,
    used,
    waits_by_step,
)
from flowdeco.errors import (
    ANSWERED,
    CALLED,
    CONSUMED,
    EXPIRED,
    FOUND,
    NOT_GIVEN,
    OPEN,
    OVER,
    PAUSE,
    QUESTION,
    REFUSED,
    SLEEP,
    USED,
    DefinitionError,
    StoreTypeError,
    Wait,
)
from flowdeco.model.deltas import NOTHING, Delta

NOON = 1000.0


def leg(*earlier, now=NOON, since=0, suspend_after=60.0):
    """The waits of a step in one leg of its run, after those of the legs before it."""
    return Waits(Wall(lambda: now, suspend_after=suspend_after), since, earlier)


def suspended(sleep, *args):
    """The wait by which a sleep suspends the run."""
    with pytest.raises(Suspend) as raised:
        sleep(*args)
    (wait,) = raised.value.waits
    return wait


# -- the wall clock


def test_the_wall_of_tests_stands_still_and_never_suspends():
    """Nobody sleeps there."""
    wall = Wall()
    assert (wall.now(), wall.sleep(5), wall.sleeping, wall.suspend_after, wall.deadline) == (0.0, 5.0, None, inf, None)


def test_an_action_sleeps_until_its_time_is_up():
    """Its deadline decides for how long; without one, it sleeps for as long as it wants to."""

    class Deadline:
        def sleep_in_action(self, sleep, seconds):
            sleep(seconds - 1)

    slept = []
    Wall(sleep=slept.append).pause(5)
    Wall(sleep=slept.append, deadline=Deadline()).pause(5)
    assert slept == [5, 4]


def test_a_nap_begins_as_it_is_awaited():
    """One that has nothing to wait for has begun as soon as it is made."""

    class Sleeping:
        def __init__(self, seconds):
            self.seconds = seconds

        def __await__(self):
            yield self.seconds

    nap = Nap(3.0, Sleeping)
    assert (nap.seconds, nap.begun) == (3.0, False)
    steps = nap.__await__()
    assert (nap.begun, next(steps)) == (False, 3.0)
    assert nap.begun
    with pytest.raises(StopIteration):
        next(steps)
    nothing = Nap(0.0, None)
    assert (nothing.begun, list(nothing.__await__())) == (True, [])


# -- sleeps


def test_short_sleeps_are_slept_and_only_counted():
    """For each layer, and for the action: another leg of the run does not sleep them again, and sleeps those after them."""
    waits = leg()
    assert [waits.sleep(-1, 5), waits.sleep(-1, 60), waits.sleep(2, 7)] == [5, 60, 7]
    assert waits.noted == []
    record = waits.recorded()
    assert sorted(record) == [Wait(OVER, who=-1, times=2), Wait(OVER, who=2, times=1)]
    later = leg(*record)
    assert [later.sleep(-1, 5), later.sleep(-1, 60), later.sleep(-1, 8)] == [0.0, 0.0, 8]
    assert [later.sleep(2, 7), later.sleep(2, 7), later.sleep(3, 1)] == [0.0, 7, 1]
    assert sorted(later.recorded()) == [Wait(OVER, who=who, times=times) for who, times in ((-1, 3), (2, 2), (3, 1))]


def test_sleeps_that_are_over_stay_over_if_a_leg_does_not_come_to_them():
    """It may have ended before."""
    waits = leg(Wait(OVER, who=-1, times=2), Wait(OVER, who=1, times=1))
    waits.sleep(-1, 5)
    assert sorted(waits.recorded()) == [Wait(OVER, who=-1, times=2), Wait(OVER, who=1, times=1)]


@pytest.mark.parametrize(("who", "sleep"), [(-1, (61.0,)), (2, (61.0,)), (-1, (0.0, NOON + 61))])
def test_a_long_sleep_suspends_the_run_until_its_due_time(who, sleep):
    """Resumed early, it suspends the run again, or sleeps the short rest; late, it continues at once."""
    waits = leg()
    waits.sleep(who, 1)
    wait = suspended(waits.sleep, who, *sleep)
    assert wait == Wait(SLEEP, NOON + 61, who)
    record = waits.recorded()
    assert record == (Wait(OVER, who=who, times=1), wait)
    for now, left in ((NOON + 1, 60.0), (NOON + 59, 2.0), (NOON + 61, 0.0), (NOON + 500, 0.0)):
        later = leg(*record, now=now)
        assert [later.sleep(who, 1), later.sleep(who, *sleep)] == [0.0, left]
        assert later.recorded() == (Wait(OVER, who=who, times=2),)
    early = leg(*record, now=NOON + 0.5)
    early.sleep(who, 1)
    assert suspended(early.sleep, who, *sleep) == wait
    assert early.recorded() == record


def test_a_sleep_until_a_time_lasts_until_then():
    """One that has passed is not slept. Any other sleep lasts as long as it says."""
    waits = leg()
    assert leg(now=2e9).sleep(-1, 0.1) == 0.1  # as it is, not by the clock
    assert [waits.sleep(-1, 0.0, NOON + 30), waits.sleep(-1, 0.0, NOON - 30), waits.sleep(-1, 0.0, 0.0)] == [30, 0, 0]


def test_a_long_sleep_after_a_failure_begins_a_pause():
    """It is the last wait of its step."""
    waits = leg()
    assert waits.pausing(1, 60.0) == 60.0
    assert (waits.pause, waits.recorded()) == (None, ())
    assert suspended(waits.pausing, 1, 61.0) == Wait(PAUSE, NOON + 61, 1)
    waits.sleep(-1, 1)
    waits.called = Called(1, NOTHING, (), ())
    assert waits.recorded() == (Wait(OVER, times=1), Wait(CALLED, value=waits.called), Wait(PAUSE, NOON + 61, 1))


# -- questions


def test_a_question_has_everything_that_is_to_be_known_of_it():
    """What it is about, the type of its answer, when it was asked, its deadline, and the first answer that may be its own."""
    wait = leg(since=3).question(Key("k", int), "which?", 5.0)
    assert wait == Wait(
        QUESTION, NOON + 5, key="k", about="which?", type="int", classes=Key("k", int).references(), asked=NOON, since=3
    )
    assert (wait.who, wait.state, wait.given, wait.is_open) == (-1, OPEN, NOT_GIVEN, True)
    plain = leg().question(Key("k"), None, None)
    assert (plain.due, plain.type, plain.classes, plain.about, plain.since) == (None, None, None, None, 0)


def test_questions_are_matched_with_earlier_ones_of_their_key_in_order():
    """Whatever the order of different keys; when all were asked, the next one is new."""
    earlier = [Wait(QUESTION, key=key, state=ANSWERED, value=value) for key, value in (("a", 1), ("b", 2), ("a", 3))]
    waits = leg(*earlier)
    found = [waits.question(Key(key), None, None).value for key in "baa"]
    assert found == [2, 1, 3]
    assert waits.question(Key("a"), None, None).state == OPEN


def test_questions_that_a_leg_does_not_come_to_are_not_forgotten():
    """They come behind those that it asked."""
    earlier = [Wait(QUESTION, key=key) for key in "aab"]
    waits = leg(*earlier)
    waits.noted.append(waits.question(Key("a"), None, None)._replace(state=EXPIRED))
    assert waits.recorded() == (earlier[0]._replace(state=EXPIRED), *earlier[1:])


# -- the time of a timeout, and calls that have succeeded


def test_the_time_that_a_timeout_has_used_is_kept():
    """Of each layer, the last figure; the next leg takes it once."""
    waits = leg()
    waits.use_time(1, 3.0)
    waits.use_time(1, 4.5)
    assert waits.recorded() == (Wait(USED, 4.5, 1, key=USED),)
    later = leg(*waits.recorded())
    assert [later.time_used(who) for who in (0, 1, 1)] == [0.0, 4.5, 0.0]
    assert later.recorded() == ()


def test_a_call_that_has_succeeded_is_kept():
    """With its effects, which are those of a context."""
    called = Called(7, Delta({"k": 1}, [], {}), ("unit",), (("s", False),))
    waits = leg()
    assert waits.called is None
    waits.called = called
    assert called.effects() is called
    (wait,) = waits.recorded()
    assert (wait.kind, wait.value) == (CALLED, called)
    assert leg(wait).called is called


# -- another attempt


def test_another_attempt_keeps_the_answers_of_the_one_before_it_and_nothing_else():
    """They are found again, in their order, before those of earlier legs that it had not come to."""
    before = Wait(QUESTION, key="k", state=ANSWERED, value="left from before")
    found = [Wait(QUESTION, key="k", state=state, value=state) for state in (ANSWERED, FOUND)]
    waits = leg(Wait(OVER, who=-1, times=1), before)
    waits.called = Called(1, NOTHING, (), ())
    waits.sleep(-1, 5)
    waits.sleep(-1, 5)
    waits.noted += [
        *found,
        Wait(QUESTION, key="new", state=FOUND, value=1),
        Wait(QUESTION, key="k", state=EXPIRED),
        Wait(SLEEP, 5.0),
    ]
    waits.another_attempt()
    assert (waits.called, waits.noted) == (None, [])
    assert waits.sleep(-1, 5) == 5
    assert [waits.question(Key("k"), None, None).value for _ in range(3)] == [ANSWERED, FOUND, "left from before"]
    assert waits.question(Key("new"), None, None).value == 1
    assert waits.question(Key("k"), None, None).state == OPEN


def test_layers_around_the_one_that_tries_again_have_not_begun_anew():
    """Their sleeps are still over, and so are its own; those inside sleep again."""
    waits = leg(*(Wait(OVER, who=who, times=1) for who in range(3)))
    for who in (0, 1, 2):
        waits.sleep(who, 5)
    waits.noted += [Wait(USED, 5.0, who, key=USED) for who in (0, 1, 2, -1)]
    waits.another_attempt(1)
    assert [wait.who for wait in waits.noted] == [0, 1]
    assert [wait for wait in waits.recorded() if wait.kind == OVER] == [Wait(OVER, who=who, times=1) for who in (0, 1)]
    assert [waits.sleep(who, 5) for who in (0, 1, 2)] == [5, 5, 5]


def test_a_step_that_begins_anew_after_a_failure_has_its_sleeps_and_answers_behind_it():
    """Or its answers only: not what it was waiting for."""
    over = Wait(OVER, times=2)
    mine = [Wait(QUESTION, key="k", state=state) for state in (ANSWERED, FOUND)]
    others = [
        Wait(QUESTION, key="k"), Wait(QUESTION, key="k", state=EXPIRED), Wait(QUESTION, key="k", state=REFUSED),
        Wait(SLEEP, 5.0), Wait(PAUSE, 5.0), Wait(USED, 5.0, key=USED), Wait(CALLED),
    ]  # fmt: skip
    waits = [over, *others, *mine]
    assert kept(waits) == [over, *mine]
    assert kept(waits, only_answers=True) == mine


# -- in another process


def test_waits_travel_to_another_process_and_back():
    """There, the clock stands still; everything that it has come to is adopted, and the clock here stays."""
    earlier = Wait(OVER, times=1), Wait(QUESTION, key="a", value=1), Wait(QUESTION, key="b", value=2)
    here = Waits(Wall(lambda: NOON, suspend_after=60.0, deadline="deadline"), 4, earlier)
    there = pickle.loads(pickle.dumps(here))
    assert there.wall == Wall(suspend_after=60.0, deadline="deadline")
    there.sleep(-1, 1)
    there.sleep(-1, 1)
    there.noted.append(there.question(Key("a"), None, None))
    here.adopt(there)
    assert here.wall.now() == NOON
    assert here.recorded() == there.recorded()
    assert [wait.value for wait in here.recorded()] == [None, 1, 2]
    assert here.question(Key("c"), None, None).since == there.question(Key("c"), None, None).since == 4
    assert here.sleep(-1, 9) == 9


# -- moments


def test_a_moment_is_posix_seconds_or_an_aware_datetime():
    """As a number in POSIX seconds."""
    assert [moment(5), moment(-2.5), moment(253_402_300_799)] == [5.0, -2.5, 253_402_300_799.0]
    assert type(moment(5)) is float
    assert moment(-253_402_300_799) == -253_402_300_799
    assert moment(datetime(1970, 1, 2, tzinfo=UTC)) == 86400.0


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (datetime(2025, 1, 31), "no time zone.*timezone.utc"),
        (253_402_300_800, "and 253402300800 is after the year 9999: are these milliseconds"),
        (10**400, "after the year 9999"),
        (inf, "aware datetime or POSIX seconds, not inf"),
        (-inf, "not -inf"),
        (-253_402_300_800, "not -253402300800"),
        (nan, "not nan"),
        (True, "not True"),
        ("noon", "not 'noon'"),
        (timedelta(1), "not datetime.timedelta"),
        (type("Odd", (), {"utcoffset": print, "__repr__": lambda self: "odd"})(), "not odd"),
    ],
)
def test_any_other_moment_is_refused(when, message):
    """The message says what was given, and what to write."""
    with pytest.raises(DefinitionError, match=f"ctx.sleep_until takes .*{message}"):
        moment(when)


# -- the waits of a run: by step, in branch order


FIRST, SECOND = (branch_id("0.2", index) for index in range(2))


def did(number, *waits, status=Status.SUSPENDED, branches=0, **more):
    """The outcome of a step that has waited for these."""
    return Outcome(f"s{number}", None, status, 1.0, 1.0, number=number, waits=waits, branches=branches, **more)


def question(key, **more):
    """An open question."""
    return Wait(QUESTION, key=key, **more)


def test_steps_are_asked_in_branch_order():
    """Those in a group come where the group is, behind a wait of its own; those that have finished wait for nothing."""
    steps = {
        SECOND: {0: did(0, question("e"))},
        FIRST: {5: did(5, question("d")), 1: did(1, question("c")), 2: did(2)},
        ROOT: {
            3: did(3, question("f")),
            2: did(2, question("b"), branches=3),
            1: did(1, question("gone"), status=Status.COMPLETED),
            0: did(0, question("a")),
        },
        NOWHERE: {0: did(0, question("g"), Wait(SLEEP, 5.0), question("h", state=ANSWERED))},
    }
    assert [branch for branch, _ in asked(steps)] == [ROOT, ROOT, FIRST, FIRST, SECOND, ROOT]
    assert [outcome.waits[0].key for _, outcome in asked(steps)] == [*"abcdef"]
    assert [wait.key for wait in open_questions(steps)] == [*"abcdefg"]
    assert open_questions({}) == []


def test_the_waits_of_a_step_are_found_by_its_place():
    """Those of a step that is part of an atomic one have their own; one that failed begins anew."""
    inside, mine = question("a", at=(FIRST, 7)), question("b")
    sleep, over = Wait(SLEEP, 5.0), Wait(OVER, times=1)
    steps = {
        ROOT: {0: did(0, inside, mine), 1: did(1, sleep, over, status=Status.FAILED), 3: did(3, sleep)},
        NOWHERE: {0: did(0, question("c", at=(FIRST, 7)))},
    }
    assert waits_by_step(steps) == {
        (FIRST, 7): [inside, question("c", at=(FIRST, 7))], (ROOT, 0): [mine], (ROOT, 1): [over], (ROOT, 3): [sleep],
    }  # fmt: skip


def test_of_a_finished_step_only_the_answers_that_it_consumed_are_left():
    """By key and number; with the values, if another attempt may need them."""
    taken = question("a", state=ANSWERED, value=5, given=2, about="what?", asked=3.0)
    found = question("b", state=FOUND, value=6, given=CONSUMED)
    waits = [taken, found, question("c", state=EXPIRED), Wait(OVER, times=2)]
    left = [Wait(QUESTION, key="a", state=ANSWERED, given=2), Wait(QUESTION, key="b", state=FOUND, given=CONSUMED)]
    assert consumed(waits, values=False) == left
    assert [wait.value for wait in consumed(waits, values=True)] == [5, 6]
    steps = {ROOT: {0: did(0, taken, found), 1: did(1)}, FIRST: {0: did(0, question("d", given=0))}}
    assert used(steps) == {("a", 2), ("d", 0)}


# -- answers


def test_an_open_question_takes_the_last_answer_that_was_given_since_it_was_asked():
    """Older values under its key are inputs, and no answers."""
    given = [Given(0, {"k": "input"}), Given(1, {"k": "first"}), Given(2, {"k": "last"}), Given(3, {"other": 1})]
    for since, expected in ((1, ("last", 2)), (2, ("last", 2)), (0, ("last", 2)), (3, (None, NOT_GIVEN))):
        steps = {ROOT: {0: did(0, question("k", since=since))}}
        (wait,) = answered(steps, given)[ROOT][0].waits
        assert (wait.value, wait.given) == expected
        assert wait.state == (OPEN if expected[0] is None else ANSWERED)
        assert steps[ROOT][0].waits[0].is_open  # a value, not a place


def test_an_answer_is_used_up_by_the_first_question_in_branch_order():
    """The next one takes one that was given later, and never an older one."""
    steps = {
        FIRST: {0: did(0, question("k", since=1), question("k", since=1))},
        ROOT: {2: did(2, branches=1), 9: did(9, question("k", since=1), question("other", since=1))},
    }
    given = [Given(0, {}), Given(1, {"k": 1}), Given(2, {"k": 2, "other": 3})]
    found = answered(steps, given)
    assert [wait.value for wait in found[FIRST][0].waits] == [2, None]
    assert [wait.value for wait in found[ROOT][9].waits] == [None, 3]
    # In a later leg, the used answer is in a record.
    again = answered(found, [*given, Given(3, {"k": 4})])
    assert [wait.value for wait in again[FIRST][0].waits] == [2, 4]
    assert [wait.value for wait in again[ROOT][9].waits] == [None, 3]
    done = {
        ROOT: {0: did(0, question("k", state=ANSWERED, given=2), status=Status.COMPLETED), 1: did(1, question("k"))}
    }
    assert answered(done, given)[ROOT][1].waits[0].is_open


def test_a_question_may_be_answered_by_a_failure():
    """It counts more than a value that was given with it."""
    no = ValueError("no")
    steps = {ROOT: {0: did(0, question("k"), question("j"))}}
    one, other = answered(steps, [Given(0, {"k": 1, "j": 2}, {"k": no})])[ROOT][0].waits
    assert (one.state, one.value, one.given) == (REFUSED, no, 0)
    assert (other.state, other.value, other.given) == (ANSWERED, 2, 0)


def test_an_answer_must_be_of_the_type_of_the_question():
    """Where the type is known."""
    key = Key("k", int)
    wait = question("k", type=key.described(), classes=key.references())
    check_answer(wait, 5)
    check_answer(question("k"), "any")
    with pytest.raises(StoreTypeError, match="'k' is declared as int"):
        check_answer(wait, "five")
    with pytest.raises(StoreTypeError, match="'k' is declared as int, but its value is a str: 'five'"):
        answered({ROOT: {0: did(0, wait)}}, [Given(0, {"k": "five"})])


def test_an_answer_is_one_of_the_values_of_a_literal():
    """As the journal keeps it; nested in a union."""
    key = Key("k", Literal["fast", "slow"] | None)
    wait = question("k", type=key.described(), classes=json.loads(json.dumps(key.references())))
    check_answer(wait, "slow")
    check_answer(wait, None)
    with pytest.raises(
        StoreTypeError, match=r"'k' is declared as .*Literal\['fast', 'slow'\].*, but its value .* 'medium'"
    ):
        check_answer(wait, "medium")


# -- where a run begins again


def test_a_run_begins_again_with_the_last_of_everything_that_it_was_given():
    """Not with answers: those are used up, with the values that were given under their key before."""
    steps = {ROOT: {0: did(0, question("k", since=1)), 1: did(1, question("j", state=ANSWERED, given=0))}}
    given = [Given(0, {"a": 1, "b": 1, "k": 1, "j": 1}), Given(2, {"b": 2, "k": 2}), Given(4, {"c": 3, "j": 3})]
    found, store = starting_point(steps, given)
    assert dict(store) == {"a": 1, "b": 2, "c": 3, "j": 3}
    assert all(store.is_given(key) for key in store)
    assert (found[ROOT][0].waits[0].value, found[ROOT][0].waits[0].given) == (2, 1)
    _, store = starting_point(steps, given, rows=2)
    assert dict(store) == {"a": 1, "b": 2}
    asks = {ROOT: {number: did(number, question("k", state=ANSWERED, given=number)) for number in (1, 2, 0)}}
    _, store = starting_point(asks, [Given(0, {"k": number}) for number in range(4)])
    assert dict(store) == {"k": 3}
    _, store = starting_point(asks, [Given(0, {"k": number}) for number in range(3)])
    assert dict(store) == {}
    _, store = starting_point(steps, given[:1], rows=0)
    assert dict(store) == {"a": 1, "b": 1, "k": 1}


def test_older_writes_to_keys_that_were_given_later_do_not_count():
    """Writes behind that do, and so do those to keys that were given at the beginning."""

    def wrote(number, order):
        writes = Delta({"a": number, "b": number}, [], {}, order=order)
        return ActionRecord(f"s{number}", None, Status.COMPLETED, 1.0, 1.0, number=number, writes=writes)

    steps = {ROOT: {0: wrote(0, 0), 1: wrote(1, 3)}}
    found, _ = starting_point(steps, [Given(0, {"a": 9}), Given(3, {"b": 9})])
    assert [found[ROOT][number].writes.puts for number in range(2)] == [{"a": 0}, {"a": 1, "b": 1}]
    same, _ = starting_point(steps, [Given(0, {"a": 9, "b": 9})])
    assert same == steps


def test_a_finished_step_has_the_values_of_the_answers_that_it_consumed():
    """Its record keeps only their numbers; another attempt at something around it asks again."""
    waits = [question("k", given=1), question("k", given=0), question("gone", given=1)]
    waits.append(question("j", given=CONSUMED, value="kept"))
    steps = {
        ROOT: {
            0: did(0, *waits, status=Status.COMPLETED),
            1: did(1, question("x")),
            2: did(2, status=Status.COMPLETED),
        },
        FIRST: {0: did(0, question("y"))},
    }
    found, _ = starting_point(steps, [Given(0, {"k": 4}), Given(1, {"k": 5})])
    assert [wait.value for wait in found[ROOT][0].waits] == [5, 4, None, "kept"]
    for branch, number in ((ROOT, 1), (ROOT, 2), (FIRST, 0)):
        assert tuple(found[branch][number].waits) == steps[branch][number].waits


# -- answers that are failures


def test_one_open_question_is_answered_by_one_failure():
    """Several by their keys."""
    no, other = ValueError("no"), KeyError("other")
    assert refusals(None, [question("a")], "r") == {}
    assert refusals(no, [question("a")], "r") == {"a": no}
    assert refusals({"b": no}, [question("a"), question("b")], "r") == {"b": no}
    assert refusals({"a": no, "b": other}, [question("a"), question("b")], "r") == {"a": no, "b": other}


@pytest.mark.parametrize(
    ("error", "keys", "message"),
    [
        (ValueError("no"), "", "an error answers a question, and run 'r' waits for nothing now: leave it out"),
        (ValueError("no"), "ab", "run 'r' waits for 'a', 'b': write error={key: exception}"),
        (ValueError("no"), "aa", "run 'r' waits for 'a': write error={key: exception}"),
        ({"approvel": ValueError("no")}, ["approval"], "run 'r' does not wait for 'approvel'. Did you mean 'approval'"),
        ({1: ValueError("no")}, "a", "run 'r' does not wait for 1"),
        ("no", "a", "error= is an exception, such as RuntimeError('refused'), not 'no'"),
        (KeyboardInterrupt(), "a", "not KeyboardInterrupt()"),
    ],
)
def test_a_failure_that_answers_no_question_is_refused(error, keys, message):
    """The message says what the run waits for, and what to write."""
    with pytest.raises(DefinitionError) as raised:
        refusals(error, [question(key) for key in keys], "r")
    assert message in str(raised.value)
