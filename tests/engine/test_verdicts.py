"""Verdicts on the branches of a group: one after another, against what can be said of all of them at once."""

import asyncio
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Bail, Stage, Status, Suspend, parallel, stream
from flowdeco.engine.outcome import Outcome, Selection
from flowdeco.engine.verdicts import Verdicts
from flowdeco.errors import Cancelled, CodeChangedError, OutOfTime, RunError

KINDS = {  # how a branch may end
    "completed": lambda: None,
    "failed": lambda: ValueError("no"),
    "changed": lambda: CodeChangedError("changed"),
    "interrupted": KeyboardInterrupt,
    "exited": SystemExit,
    "exited in tasks": lambda: BaseExceptionGroup("tasks", [ValueError("no"), SystemExit()]),
    "bailed": Bail,
    "suspended": Suspend,
    "cancelled": asyncio.CancelledError,
    "stopped": lambda: Cancelled("with its group"),
    "run cancelled": lambda: Cancelled.from_outside("run"),
}
INTERRUPTS = [
    None,
    KeyboardInterrupt,
    SystemExit,
    asyncio.CancelledError,
    Bail,
    Cancelled,
    OutOfTime,
    lambda: Cancelled.from_outside("run"),
]


def is_cancellation(error):
    return isinstance(error, (KeyboardInterrupt, Cancelled, asyncio.CancelledError))


def is_exit(error):
    """Whether it is to end the program, which counts more than any cancellation."""
    return isinstance(error, (KeyboardInterrupt, SystemExit)) or type(error) is BaseExceptionGroup


def group_of(size, streamed=False, **options):
    """A group of so many branches; that of a stream does not say how many it has."""
    units = [Stage(f"s{number}") for number in range(size)]
    return parallel(stream(iter, units), name="g", **options) if streamed else parallel(*units, name="g", **options)


def begun(group, earlier=None, is_live=True):
    return Verdicts(group, is_cancellation, earlier, is_live=is_live)


def restored(**selection):
    """A group that had ended, with these branches selected."""
    return Outcome("g", None, Status.COMPLETED, 0.0, 0.0, selection=Selection(**selection))


def end(verdicts, index, error):
    """Have a branch end as the conductor does; return whether it is lost, and whether it ends the group."""
    lost = error is not None and verdicts.loses(index, error)
    return lost, verdicts.ended(index, error)


def may_be_lost(group, size):
    """The number of branches that may be lost: as many as are written, that fraction of all, or all but `enough`."""
    allowed = group.tolerate
    if isinstance(allowed, float):
        allowed = math.floor(Fraction(str(allowed)) * size)
    return allowed if group.stream is not None or group.enough is None else min(allowed, size - group.enough)


class Seen:
    """The ends of all branches of a group at once, in the order of time: the first that decide are those that count."""

    def __init__(self, group, ends):
        self.group, self.ends, self.size = group, ends, len(ends)
        self.allowed = may_be_lost(group, self.size)
        self.is_open = group.stream is not None and isinstance(group.tolerate, float)  # so many: known at the end
        tolerable = [
            index
            for index, error in ends
            if group.tolerate and isinstance(error, Exception) and not isinstance(error, CodeChangedError)
        ]
        lost = tolerable if self.is_open else tolerable[: self.allowed]
        self.lost = {index: error for index, error in ends if index in lost}
        self.exceeds = len(tolerable) > self.allowed
        others = [(index, error) for index, error in ends if index not in lost]
        completions = [index for index, error in others if error is None]
        self.winners = completions[: group.enough] if group.enough else completions
        decisive = [
            index
            for index, error in others
            if error is not None and not (isinstance(error, Suspend) or (type(error) is Cancelled and not error.of_run))
        ]
        enough = [self.winners[-1]] if group.enough and len(self.winners) == group.enough else []
        self.last = next((index for index, _ in ends if index in {*decisive, *enough}), None)
        self.is_enough = self.last is not None and self.last in enough
        self.left = dict(sorted(others))

    def ends_as(self, interrupt):
        """The errors with which the group ends; a KeyboardInterrupt among them is the only one."""
        ends = self.all_ends(interrupt)
        return [error for error in ends if isinstance(error, KeyboardInterrupt)][:1] or ends

    def all_ends(self, interrupt):
        left = {index: error for index, error in self.left.items() if error is not None}
        exits = [error for error in left.values() if is_exit(error)]
        if interrupt is not None and (not isinstance(interrupt, Cancelled) or interrupt.of_run):
            return [interrupt] if is_exit(interrupt) else exits or [interrupt]
        if self.is_enough:
            left = {index: error for index, error in left.items() if is_exit(error)}
        is_at_its_end = interrupt is None and not left
        needs_more = is_at_its_end and self.group.enough is not None and not self.is_enough
        if needs_more and self.size < self.group.enough:
            return [RunError]
        exceeds = self.exceeds and (is_at_its_end if self.is_open else not self.is_enough)
        failures = {**left, **(self.lost if exceeds or needs_more else {})}
        by = None if exits or isinstance(interrupt, OutOfTime) else self.last
        failed = [
            failures[index]
            for index in sorted(failures)
            if not isinstance(failures[index], (Bail, Suspend))
            and (index == by or is_exit(failures[index]) or not is_cancellation(failures[index]))
        ]
        bails, suspended = ([error for error in left.values() if isinstance(error, kind)] for kind in (Bail, Suspend))
        return failed or (bails[:1] or suspended[:1] or [None] if interrupt is None else [interrupt])


@st.composite
def groups_and_ends(draw):
    size = draw(st.integers(1, 5))
    streamed = draw(st.booleans())
    tolerate = draw(st.one_of(st.integers(0, 2), st.sampled_from([0.2, 0.4, 0.5, 0.9])))
    most = size + 1 if streamed else size
    enough = draw(st.none() | st.integers(1, most))
    kinds = draw(st.lists(st.sampled_from(["completed", "failed", *KINDS]), min_size=size, max_size=size))
    order = draw(st.permutations(range(size)))
    options = {"limit": 1} if streamed else {}
    group = group_of(size, streamed, tolerate=tolerate, enough=enough, **options)
    return group, [(index, KINDS[kinds[index]]()) for index in order]


@settings(max_examples=examples(200), deadline=None)
@given(drawn=groups_and_ends(), make=st.sampled_from(INTERRUPTS))
def test_a_group_ends_as_its_branches_decide(drawn, make):
    """The first losses are tolerated, the first decisive end ends the group, and the result names what is left."""
    group, ends = drawn
    interrupt = None if make is None else make()
    verdicts, seen = begun(group), Seen(group, ends)

    told = [(index, *end(verdicts, index, error)) for index, error in ends]

    assert [(index, lost) for index, lost, _ in told] == [(index, index in seen.lost) for index, _ in ends]
    assert [index for index, _, stops in told if stops] == ([] if seen.last is None else [seen.last])
    assert verdicts.is_enough is seen.is_enough
    assert verdicts.unexpected() == [error for error in seen.left.values() if error is not None]
    counted = set(seen.winners) if seen.is_enough else set(range(len(ends)))
    assert all(verdicts.counts(index) for index in counted)
    if seen.is_enough:
        assert [index for index, _ in ends if verdicts.counts(index)] == [i for i, _ in ends if i in seen.winners]

    error = verdicts.failure(interrupt, len(ends))

    expected = seen.ends_as(interrupt)
    if expected == [RunError]:
        assert type(error) is RunError
    elif len(expected) > 1:
        assert isinstance(error, BaseExceptionGroup)
        assert list(error.exceptions) == expected
    elif isinstance(expected[0], Suspend):
        assert isinstance(error, Suspend)
    else:
        assert error is expected[0]


def test_a_branch_is_counted_before_the_group_has_enough():
    """While it may still be among those that count, it does; then only those that completed in time."""
    verdicts = begun(group_of(3, enough=2))
    assert end(verdicts, 2, None) == (False, False)
    assert [verdicts.counts(index) for index in range(3)] == [True, True, True]
    assert end(verdicts, 0, None) == (False, True)
    assert [verdicts.counts(index) for index in range(3)] == [True, False, True]


@pytest.mark.parametrize(("error", "counts"), [(ValueError("no"), False), (SystemExit(), True)], ids=repr)
def test_after_a_group_has_enough_only_an_exit_counts(error, counts):
    """A branch that was not needed may end the program, as anything else may."""
    verdicts = begun(group_of(2, enough=1))
    assert end(verdicts, 0, None) == (False, True)
    end(verdicts, 1, error)
    assert verdicts.failure(None, 2) is (error if counts else None)


def test_the_selection_says_which_branches_count():
    """Those that completed a group of some, and the lost ones of a group that tolerated all of its losses."""
    no = ValueError("no")
    some = begun(group_of(3, enough=1, tolerate=1))
    end(some, 0, no)
    end(some, 2, None)
    assert some.selection(None) == ({0: no}, {2})
    assert some.selection(no) == ({0: no}, None)
    all_of_them = begun(group_of(2))
    end(all_of_them, 0, None)
    assert all_of_them.selection(None) == ({}, None)


def test_a_group_that_lost_too_many_has_lost_none():
    """All failures are raised as usual, and recorded as such."""
    verdicts = begun(group_of(3, tolerate=1))
    errors = [ValueError(str(number)) for number in range(2)]
    assert [end(verdicts, number, error) for number, error in enumerate(errors)] == [(True, False), (False, True)]
    failure = verdicts.failure(None, 3)
    assert isinstance(failure, BaseExceptionGroup)
    assert failure.message == "2 branches of the parallel group 'g' failed"
    assert verdicts.selection(failure) == ({}, None)


def test_one_error_of_several_branches_is_raised_once():
    """They may all end with that of the journal."""
    verdicts, no = begun(group_of(2)), ValueError("no")
    for index in range(2):
        end(verdicts, index, no)
    assert verdicts.failure(None, 2) is no


def test_a_stream_with_too_few_branches_says_how_many_it_had():
    """How many there are is known at its end."""
    verdicts = begun(group_of(2, streamed=True, enough=3))
    end(verdicts, 0, None)
    assert str(verdicts.failure(None, 1)) == (
        "the parallel group 'g' completes when 3 branches have, and its stream yielded 1"
    )


def test_a_branch_that_was_lost_before_a_resume_stays_lost():
    """However it ends now, the group does not, and a further failure counts with the earlier ones."""
    no = ValueError("no")
    verdicts = begun(group_of(3, tolerate=1), restored(lost={0: no}))
    verdicts.known = 2
    assert not verdicts.loses(0, no)  # it is already
    assert [verdicts.ended(0, None), end(verdicts, 1, ValueError("another"))] == [False, (False, True)]
    assert verdicts.selection(None).lost == {}
    assert begun(group_of(3, tolerate=2), restored(lost={0: no})).selection(None).lost == {0: no}


def test_a_lost_branch_whose_end_cannot_be_noted_ends_the_group():
    """It ends with another error than the one it was lost with: that of the journal."""
    verdicts, full = begun(group_of(2, tolerate=1)), OSError("disk full")
    assert verdicts.loses(0, ValueError("no"))
    assert verdicts.ended(0, full)
    assert verdicts.ended_by == 0


def test_a_restored_group_decides_nothing_again():
    """Which branches counted is in its outcome; no end of a branch ends it."""
    no = ValueError("no")
    chosen = begun(group_of(3, enough=1, tolerate=1), restored(counted=frozenset({1})), is_live=False)
    assert [end(chosen, 1, None), end(chosen, 2, None), end(chosen, 0, no)] == [(False, False)] * 3
    assert [chosen.counts(index) for index in range(3)] == [False, True, False]
    assert chosen.unexpected() == [no]
    for earlier in (None, restored()):
        assert begun(group_of(1), earlier, is_live=False).counts(0)


@pytest.mark.parametrize(("size", "share", "allowed"), [(100, 0.29, 29), (10, 0.3, 3), (3, 0.5, 1)])
@pytest.mark.parametrize("streamed", [False, True], ids=["fixed", "streamed"])
def test_a_share_of_branches_is_as_it_was_written(size, share, allowed, streamed):
    """So many may fail and not one more: 0.29 of 100 are 29, though the float is a little less."""
    for failed in (allowed, allowed + 1):
        verdicts = begun(group_of(size, streamed, tolerate=share))
        for index in range(failed):
            end(verdicts, index, ValueError("no"))
        assert (verdicts.failure(None, size) is None) is (failed == allowed)
